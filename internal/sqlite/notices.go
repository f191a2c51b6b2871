package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"sublet/internal/vps"
)

// The outbox is bounded: by how long a notice is tried (the sender gives it
// up), and by this number that wait for one recipient on one channel.
const maxNotices = 1000

// AddNotice puts a notice into the outbox, once for each of to. A notice
// without a time gets the present.
func (db *DB) AddNotice(ctx context.Context, n vps.Notice, to []vps.NoticeTo) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error { return db.addNotice(ctx, tx, n, to) })
}

// addNotice is AddNotice as a part of a transaction, so that what is told and
// that it is told are kept together or not at all.
func (db *DB) addNotice(ctx context.Context, tx *sql.Tx, n vps.Notice, to []vps.NoticeTo) error {
	if n.Time.IsZero() {
		n.Time = time.Now()
	}
	n.Time = n.Time.UTC().Round(0)
	content, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("a notice of kind %s: %w", n.Kind, err)
	}
	for _, t := range to {
		at := n.Time.UnixMilli()
		_, err := tx.ExecContext(ctx, "INSERT INTO notice (uid, recipient, channel, content, made, tries, next, error) VALUES (?, ?, ?, ?, ?, 0, ?, '')",
			"msg_"+rand.Text(), t.Recipient, t.Channel, content, at, at)
		if err != nil {
			return err
		}
		if err := db.cutNotices(ctx, tx, t); err != nil {
			return err
		}
	}
	return nil
}

// cutNotices gives up the oldest notices to somebody who has too many.
func (db *DB) cutNotices(ctx context.Context, tx *sql.Tx, to vps.NoticeTo) error {
	result, err := tx.ExecContext(ctx, `DELETE FROM notice WHERE recipient = ?1 AND channel = ?2 AND id <= (
		SELECT id FROM notice WHERE recipient = ?1 AND channel = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)`, to.Recipient, to.Channel, maxNotices)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil || n == 0 {
		return err
	}
	ev := vps.Event{Kind: vps.EventNotice, Message: fmt.Sprintf("%d notices to %s were given up: more than %d wait there", n, to, maxNotices)}
	return db.addEvent(ctx, tx, &ev)
}

// NextNotices returns the oldest notice to each recipient on each channel,
// also those whose next try is still to come. They go out in the order in
// which they were made, so none of the others is due before.
func (db *DB) NextNotices(ctx context.Context) ([]vps.WaitingNotice, error) {
	return db.notices(ctx, "WHERE id IN (SELECT min(id) FROM notice GROUP BY recipient, channel)")
}

// Notices returns all that wait, the oldest first.
func (db *DB) Notices(ctx context.Context) ([]vps.WaitingNotice, error) {
	return db.notices(ctx, "")
}

func (db *DB) notices(ctx context.Context, where string) ([]vps.WaitingNotice, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT uid, recipient, channel, content, tries, next, error FROM notice "+where+" ORDER BY id") //nolint:gosec // where is one of two constants
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var all []vps.WaitingNotice
	for rows.Next() {
		var w vps.WaitingNotice
		var content []byte
		var next int64
		if err := rows.Scan(&w.UID, &w.Recipient, &w.Channel, &content, &w.Tries, &next, &w.Error); err != nil {
			return nil, db.explain(err)
		}
		if err := json.Unmarshal(content, &w.Notice); err != nil {
			return nil, db.damaged(err)
		}
		w.Next = time.UnixMilli(next).UTC()
		all = append(all, w)
	}
	return all, db.explain(rows.Err())
}

// NoticesWaiting counts what Notices would return.
func (db *DB) NoticesWaiting(ctx context.Context) (int, error) {
	var n int
	err := db.read.QueryRowContext(ctx, "SELECT count(*) FROM notice").Scan(&n)
	return n, db.explain(err)
}

// NoticeDone takes a notice out of the outbox: it was sent, or is given up,
// which an event tells of; nil for none. One that is gone already is no error.
func (db *DB) NoticeDone(ctx context.Context, uid string, ev *vps.Event) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM notice WHERE uid = ?", uid); err != nil || ev == nil {
			return err
		}
		return db.addEvent(ctx, tx, ev)
	})
}

// NoticeFailed keeps why a try to send a notice failed, and when the next one
// is.
func (db *DB) NoticeFailed(ctx context.Context, uid, reason string, next time.Time) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE notice SET tries = tries + 1, next = ?, error = ? WHERE uid = ?", next.UnixMilli(), reason, uid)
		return err
	})
}
