package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// pastPrefix sorts after every character that a key may have.
const pastPrefix = "\x7f"

// change runs do in one write transaction. Once it has begun it is not broken
// off: it is short, and its caller should know how it ended.
func (db *DB) change(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	conn, err := db.write.Conn(ctx)
	if err != nil {
		return db.explain(err)
	}
	defer func() { _ = conn.Close() }() // back to the pool
	if err := ctx.Err(); err != nil {
		return db.explain(err)
	}
	ctx = context.WithoutCancel(ctx)
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return db.explain(err)
	}
	if err := do(ctx, tx); err != nil {
		// SQLite may have rolled back by itself, as after SQLITE_FULL.
		_ = tx.Rollback()
		return db.explain(err)
	}
	return db.explain(tx.Commit())
}

// errRehearsed takes back what a rehearsal did.
var errRehearsed = errors.New("sqlite: this was a rehearsal")

// rehearse runs do as change does, and then takes back all that it did.
func (db *DB) rehearse(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	err := db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := do(ctx, tx); err != nil {
			return err
		}
		return errRehearsed
	})
	if errors.Is(err, errRehearsed) {
		return nil
	}
	return err
}

// view runs do in one read transaction: a snapshot.
func (db *DB) view(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := db.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return db.explain(err)
	}
	defer func() { _ = tx.Rollback() }()
	return db.explain(do(tx))
}

// Get implements store.Store.
func (db *DB) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Entry{}, err
	}
	e := store.Entry{Key: key}
	err := db.read.QueryRowContext(ctx, "SELECT value, created, modified, coalesce(lease, 0) FROM entry WHERE key = ?", key).
		Scan(&e.Value, &e.Created, &e.Modified, &e.Lease)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Entry{}, vps.Wrap(vps.CodeNotFound, err, "there is no %q in the state", key)
	}
	if err != nil {
		return store.Entry{}, db.explain(err)
	}
	return e, nil
}

// List implements store.Store.
func (db *DB) List(ctx context.Context, prefix string) (entries []store.Entry, revision int64, err error) {
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	err = db.view(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT revision FROM store").Scan(&revision); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx,
			"SELECT key, value, created, modified, coalesce(lease, 0) FROM entry WHERE key >= ? AND key < ? ORDER BY key",
			prefix, prefix+pastPrefix)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var e store.Entry
			if err := rows.Scan(&e.Key, &e.Value, &e.Created, &e.Modified, &e.Lease); err != nil {
				return err
			}
			entries = append(entries, e)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, 0, err
	}
	return entries, revision, nil
}

// Commit implements store.Store.
func (db *DB) Commit(ctx context.Context, conds []store.Cond, writes []store.Write) (revision int64, err error) {
	if err := store.CheckCommit(conds, writes); err != nil {
		return 0, err
	}
	changed := false
	err = db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, c := range conds {
			if err := holds(ctx, tx, c); err != nil {
				return err
			}
		}
		revision, changed, err = db.apply(ctx, tx, writes)
		return err
	})
	if err != nil {
		return 0, err
	}
	if changed {
		db.announce()
	}
	return revision, nil
}

// holds checks one precondition.
func holds(ctx context.Context, tx *sql.Tx, c store.Cond) error {
	var modified int64
	err := tx.QueryRowContext(ctx, "SELECT modified FROM entry WHERE key = ?", c.Key).Scan(&modified)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return err
	case modified == c.Modified:
		return nil
	case c.Modified == 0:
		return vps.Wrap(vps.CodeConflict, store.ErrChanged, "%q is there already", c.Key)
	case modified == 0:
		return vps.Wrap(vps.CodeConflict, store.ErrChanged, "%q was deleted in the meantime; look again and repeat", c.Key)
	default:
		return vps.Wrap(vps.CodeConflict, store.ErrChanged, "%q was changed in the meantime; look again and repeat", c.Key)
	}
}

// apply does the writes of one commit under the next revision, and says
// whether they changed anything; if not, the revision is the current one.
func (db *DB) apply(ctx context.Context, tx *sql.Tx, writes []store.Write) (revision int64, changed bool, err error) {
	if err := tx.QueryRowContext(ctx, "SELECT revision FROM store").Scan(&revision); err != nil {
		return 0, false, err
	}
	next := revision + 1
	for i, w := range writes {
		var did bool
		if w.Delete {
			did, err = remove(ctx, tx, next, i, w.Key)
		} else {
			did, err = true, put(ctx, tx, next, i, w)
		}
		if err != nil {
			return 0, false, err
		}
		changed = changed || did
	}
	if !changed {
		return revision, false, nil
	}
	if _, err := tx.ExecContext(ctx, "UPDATE store SET revision = ?", next); err != nil {
		return 0, false, err
	}
	if next%db.keep.every == 0 {
		if err := db.cutLog(ctx, tx, next); err != nil {
			return 0, false, err
		}
	}
	return next, true, nil
}

// put sets one key and logs it.
func put(ctx context.Context, tx *sql.Tx, revision int64, position int, w store.Write) error {
	value := w.Value
	if value == nil {
		value = []byte{} // nil would be NULL
	}
	var bound any // NULL for no lease, which the foreign key wants
	if w.Lease != 0 {
		var one int
		err := tx.QueryRowContext(ctx, "SELECT 1 FROM lease WHERE id = ?", w.Lease).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return noLease(w.Lease)
		}
		if err != nil {
			return err
		}
		bound = int64(w.Lease)
	}
	var created int64
	err := tx.QueryRowContext(ctx, `INSERT INTO entry (key, value, created, modified, lease) VALUES (?1, ?2, ?3, ?3, ?4)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value, modified = excluded.modified, lease = excluded.lease
		RETURNING created`, w.Key, value, revision, bound).Scan(&created)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO change (revision, position, key, value, created, lease) VALUES (?, ?, ?, ?, ?, ?)",
		revision, position, w.Key, value, created, w.Lease)
	return err
}

// remove deletes one key and logs it; false means that it was not there.
func remove(ctx context.Context, tx *sql.Tx, revision int64, position int, key string) (bool, error) {
	var created int64
	err := tx.QueryRowContext(ctx, "DELETE FROM entry WHERE key = ? RETURNING created", key).Scan(&created)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO change (revision, position, key, value, created, lease) VALUES (?, ?, ?, NULL, ?, 0)",
		revision, position, key, created)
	return err == nil, err
}

// cutLog keeps the change log within its bounds after the commit now.
func (db *DB) cutLog(ctx context.Context, tx *sql.Tx, now int64) error {
	upTo := now - db.keep.revisions
	var heavy sql.NullInt64
	err := tx.QueryRowContext(ctx, `SELECT max(revision) FROM (
		SELECT revision, sum(length(value)) OVER (ORDER BY revision DESC, position DESC) AS total FROM change
		) WHERE total > ?`, db.keep.bytes).Scan(&heavy)
	if err != nil {
		return err
	}
	// The newest commits stay whatever they weigh, so that no watcher that
	// keeps up is ever overtaken.
	upTo = max(upTo, min(heavy.Int64, now-db.keep.every))
	return compact(ctx, tx, upTo)
}

func compact(ctx context.Context, tx *sql.Tx, upTo int64) error {
	if _, err := tx.ExecContext(ctx, "UPDATE store SET compacted = ?1 WHERE compacted < ?1", upTo); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "DELETE FROM change WHERE revision <= ?", upTo)
	return err
}

// Compact forgets the changes up to and including a revision; a watch from an
// older one fails with store.ErrCompacted from then on. The log is bounded
// without it: it is there for those who want it shorter. Entries stay.
func (db *DB) Compact(ctx context.Context, upTo int64) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var revision int64
		if err := tx.QueryRowContext(ctx, "SELECT revision FROM store").Scan(&revision); err != nil {
			return err
		}
		return compact(ctx, tx, min(upTo, revision))
	})
}
