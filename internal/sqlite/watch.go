package sqlite

import (
	"context"
	"database/sql"
	"slices"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// One read of the log stops after the commit that reaches one of these, so
// that a watcher far behind costs little memory.
const (
	batchUpdates = 256
	batchBytes   = 1 << 20
)

// announce wakes all watches. They read what happened from the log, so a slow
// one holds nobody up and nothing is kept for it.
func (db *DB) announce() {
	db.mu.Lock()
	defer db.mu.Unlock()
	close(db.changed)
	db.changed = make(chan struct{})
}

// signal returns a channel that is closed by the next commit. Take it before
// reading the log, or that commit may fall in between.
func (db *DB) signal() <-chan struct{} {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.changed
}

// Watch implements store.Store.
func (db *DB) Watch(ctx context.Context, prefix string, from int64) (<-chan store.Change, error) {
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	if from < 0 {
		return nil, vps.Errorf(vps.CodeInvalid, "a watch starts at revision 0 or later, not at %d", from)
	}
	w := &watch{db: db, prefix: prefix, next: from, out: make(chan store.Change)}
	signal := db.signal()
	first, err := w.read(ctx)
	if err != nil {
		return nil, err
	}
	// Close does not wait for it: it may be held up by its reader, and a read
	// of a closed database is only an error.
	go w.run(ctx, first, signal)
	return w.out, nil
}

// watch is one running watch; next is the revision it has read up to.
type watch struct {
	db     *DB
	prefix string
	next   int64
	more   bool // the last read stopped at a bound, not at the log's end
	out    chan store.Change
}

func (w *watch) run(ctx context.Context, batch []store.Change, signal <-chan struct{}) {
	defer close(w.out)
	for {
		for _, c := range batch {
			if !w.send(ctx, c) {
				return
			}
		}
		if !w.more && !w.wait(ctx, signal) {
			return
		}
		signal = w.db.signal()
		var err error
		if batch, err = w.read(ctx); err != nil {
			w.fail(ctx, err)
			return
		}
	}
}

// send hands one change to the reader; false means that the watch is over.
func (w *watch) send(ctx context.Context, c store.Change) bool {
	select {
	case w.out <- c:
		return true
	case <-ctx.Done():
		return false
	case <-w.db.done:
		w.fail(ctx, closed())
		return false
	}
}

func (w *watch) wait(ctx context.Context, signal <-chan struct{}) bool {
	select {
	case <-signal:
		return true
	case <-ctx.Done():
		return false
	case <-w.db.done:
		w.fail(ctx, closed())
		return false
	}
}

// fail says why the watch ends, to a reader who still wants to know.
func (w *watch) fail(ctx context.Context, err error) {
	select {
	case <-ctx.Done():
		return
	default:
	}
	select {
	case w.out <- store.Change{Err: err}:
	case <-ctx.Done():
	}
}

// read returns the next commits that touch the prefix and moves next on.
func (w *watch) read(ctx context.Context) ([]store.Change, error) {
	var batch []store.Change
	err := w.db.view(ctx, func(tx *sql.Tx) error {
		var head, compacted int64
		if err := tx.QueryRowContext(ctx, "SELECT revision, compacted FROM store").Scan(&head, &compacted); err != nil {
			return err
		}
		switch {
		case w.next > head:
			return vps.Errorf(vps.CodeInvalid, "revision %d lies in the future; the newest is %d", w.next, head)
		case w.next < compacted:
			return vps.Wrap(vps.CodeConflict, store.ErrCompacted, "the changes after revision %d are not kept any more; list and watch anew", w.next)
		}
		rows, err := tx.QueryContext(ctx, `SELECT revision, key, value, value IS NULL, created, lease FROM change
			WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision, position`,
			w.next, w.prefix, w.prefix+pastPrefix)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		batch, w.more, err = collect(rows)
		if err != nil {
			return err
		}
		w.next = head
		if w.more {
			w.next = batch[len(batch)-1].Revision
		}
		return nil
	})
	return batch, err
}

// collect groups rows of the log by commit, until a bound or the end.
func collect(rows *sql.Rows) (batch []store.Change, more bool, err error) {
	updates, bytes := 0, 0
	for rows.Next() {
		var u store.Update
		if err := rows.Scan(&u.Modified, &u.Key, &u.Value, &u.Deleted, &u.Created, &u.Lease); err != nil {
			return nil, false, err
		}
		last := len(batch) - 1
		if last >= 0 && batch[last].Revision == u.Modified {
			batch[last].Updates = append(batch[last].Updates, u)
		} else {
			if updates >= batchUpdates || bytes >= batchBytes {
				return batch, true, nil
			}
			batch = append(batch, store.Change{Revision: u.Modified, Updates: []store.Update{u}})
		}
		updates, bytes = updates+1, bytes+len(u.Value)
	}
	return slices.Clip(batch), false, rows.Err()
}

func closed() error {
	return vps.Wrap(vps.CodeUnavailable, store.ErrClosed, "the state database is closed; the daemon is shutting down")
}
