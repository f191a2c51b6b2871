package sqlite

import (
	"context"
	"database/sql"
	"time"

	"sublet/internal/vps"
)

// keepSteps is how long steps of past months are kept: a clock that is stepped
// back by less finds them, and tells of none again.
const keepSteps = 100 * days

// QuotaNews is a step that was reached, with what is told of it.
type QuotaNews struct {
	vps.QuotaReached
	Event   vps.Event
	Notices []AddressedNotice
}

// AddressedNotice is a notice that goes to all of To.
type AddressedNotice struct {
	vps.Notice
	To []vps.NoticeTo
}

// QuotaSteps returns the steps that were told of, also those of past months.
func (db *DB) QuotaSteps(ctx context.Context) ([]vps.QuotaReached, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT quota, start, step, reached FROM quota_step")
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var all []vps.QuotaReached
	for rows.Next() {
		var r vps.QuotaReached
		var step string
		var start, reached int64
		if err := rows.Scan(&r.Quota, &start, &step, &reached); err != nil {
			return nil, db.explain(err)
		}
		if r.Step, err = vps.ParseQuotaStep(step); err != nil {
			return nil, db.damaged(err)
		}
		r.Start, r.At = time.Unix(start, 0).UTC(), time.Unix(0, reached).UTC()
		all = append(all, r)
	}
	return all, db.explain(rows.Err())
}

// ReachSteps forgets the steps that are undone, gives those that are redated the
// time that they have now, and keeps those that are new, in one transaction with
// what is told of them: event and notices. A step that is kept already is not
// told of again.
func (db *DB) ReachSteps(ctx context.Context, undone, redated []vps.QuotaReached, news []QuotaNews) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, r := range undone {
			if _, err := tx.ExecContext(ctx, "DELETE FROM quota_step WHERE quota = ? AND start = ? AND step = ?", r.Quota, r.Start.Unix(), r.Step.String()); err != nil {
				return err
			}
		}
		for _, r := range redated {
			if _, err := tx.ExecContext(ctx, "UPDATE quota_step SET reached = ? WHERE quota = ? AND start = ? AND step = ?", r.At.UnixNano(), r.Quota, r.Start.Unix(), r.Step.String()); err != nil {
				return err
			}
		}
		for _, n := range news {
			if err := db.reachStep(ctx, tx, n); err != nil {
				return err
			}
		}
		return nil
	})
}

func (db *DB) reachStep(ctx context.Context, tx *sql.Tx, n QuotaNews) error {
	done, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO quota_step (quota, start, step, reached) VALUES (?, ?, ?, ?)", n.Quota, n.Start.Unix(), n.Step.String(), n.At.UnixNano())
	if err != nil {
		return err
	}
	if rows, err := done.RowsAffected(); err != nil || rows == 0 {
		return err
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM quota_step WHERE quota = ? AND start < ?", n.Quota, n.Start.Unix()-keepSteps); err != nil {
		return err
	}
	if err := db.addEvent(ctx, tx, &n.Event); err != nil {
		return err
	}
	for _, notice := range n.Notices {
		if err := db.addNotice(ctx, tx, notice.Notice, notice.To); err != nil {
			return err
		}
	}
	return nil
}
