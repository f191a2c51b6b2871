package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// retryLease is how long a lease that could not be ended, because the disk is
// full for example, waits for the next try.
const retryLease = 5 * time.Second

// lease is the clock of one lease. Its deadline lives in memory, on the
// monotonic clock: renewing costs no write, and a host whose clock jumps loses
// no lease. The price is that a restart gives every lease its whole time
// again, as a change of leader does in etcd.
type lease struct {
	ttl      time.Duration
	deadline time.Time
	ended    bool // being ended: it can no longer be renewed
}

func noLease(id store.LeaseID) error {
	return vps.Wrap(vps.CodeNotFound, store.ErrNoLease, "the lease %d does not exist or has run out", id)
}

// loadLeases starts the clocks of the leases in the database.
func (db *DB) loadLeases(ctx context.Context) error {
	rows, err := db.read.QueryContext(ctx, "SELECT id, ttl FROM lease")
	if err != nil {
		return db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id store.LeaseID
		var seconds int64
		if err := rows.Scan(&id, &seconds); err != nil {
			return db.explain(err)
		}
		db.startLease(id, seconds)
	}
	return db.explain(rows.Err())
}

func (db *DB) startLease(id store.LeaseID, seconds int64) {
	ttl := time.Duration(seconds) * time.Second
	db.mu.Lock()
	db.leases[id] = &lease{ttl: ttl, deadline: time.Now().Add(ttl)}
	db.mu.Unlock()
	db.wakeLeases()
}

func (db *DB) wakeLeases() {
	select {
	case db.wake <- struct{}{}:
	default: // it has been told already
	}
}

// Grant implements store.Store.
func (db *DB) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	seconds, err := store.CheckTTL(ttl)
	if err != nil {
		return 0, err
	}
	var id store.LeaseID
	err = db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "INSERT INTO lease (ttl) VALUES (?) RETURNING id", seconds).Scan(&id)
	})
	if err != nil {
		return 0, err
	}
	db.startLease(id, seconds)
	return id, nil
}

// Renew implements store.Store. It writes nothing.
func (db *DB) Renew(ctx context.Context, id store.LeaseID) error {
	if err := ctx.Err(); err != nil {
		return db.explain(err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return closed()
	}
	l, ok := db.leases[id]
	now := time.Now()
	if !ok || l.ended || !now.Before(l.deadline) {
		return noLease(id)
	}
	l.deadline = now.Add(l.ttl) // later than before: the clock need not be woken
	return nil
}

// Revoke implements store.Store.
func (db *DB) Revoke(ctx context.Context, id store.LeaseID) error {
	return db.endLease(ctx, id)
}

// endLease deletes a lease and its keys in one commit.
func (db *DB) endLease(ctx context.Context, id store.LeaseID) error {
	changed := false
	err := db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		writes, err := leaseKeys(ctx, tx, id)
		if err != nil {
			return err
		}
		if _, changed, err = db.apply(ctx, tx, writes); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "DELETE FROM lease WHERE id = ?", id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(noLease(id), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	db.mu.Lock()
	delete(db.leases, id)
	db.mu.Unlock()
	if changed {
		db.announce()
	}
	return nil
}

// leaseKeys returns the deletions of all keys that end with a lease.
func leaseKeys(ctx context.Context, tx *sql.Tx, id store.LeaseID) ([]store.Write, error) {
	rows, err := tx.QueryContext(ctx, "SELECT key FROM entry WHERE lease = ? ORDER BY key", id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var writes []store.Write
	for rows.Next() {
		w := store.Write{Delete: true}
		if err := rows.Scan(&w.Key); err != nil {
			return nil, err
		}
		writes = append(writes, w)
	}
	return writes, rows.Err()
}

// runLeases ends leases whose time is over, until ctx ends.
func (db *DB) runLeases(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-db.wake:
		case <-timer.C:
		}
		for _, id := range db.overdue() {
			err := db.endLease(ctx, id)
			if err == nil || errors.Is(err, store.ErrNoLease) || ctx.Err() != nil {
				continue
			}
			db.log.WarnContext(ctx, "lease could not be ended", "lease", int64(id), "error", err, "retry_in", retryLease)
			db.postpone(id)
		}
		timer.Stop()
		if next, ok := db.nextDeadline(); ok {
			timer.Reset(time.Until(next))
		}
	}
}

// overdue marks the leases whose time is over as ended and returns them.
func (db *DB) overdue() []store.LeaseID {
	db.mu.Lock()
	defer db.mu.Unlock()
	now := time.Now()
	var ids []store.LeaseID
	for id, l := range db.leases {
		if !now.Before(l.deadline) {
			l.ended = true
			ids = append(ids, id)
		}
	}
	return ids
}

func (db *DB) postpone(id store.LeaseID) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if l, ok := db.leases[id]; ok {
		l.deadline = time.Now().Add(retryLease)
	}
}

func (db *DB) nextDeadline() (next time.Time, ok bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, l := range db.leases {
		if !ok || l.deadline.Before(next) {
			next, ok = l.deadline, true
		}
	}
	return next, ok
}
