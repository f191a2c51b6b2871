package sqlite

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sublet/internal/vps"
)

// KeepGuestDays keeps who was there, each in place of what is there of the same
// guest on the same day. What is kept of days after today is dropped: it comes
// from a clock that was wrong. All spans are dropped, too: days has what they
// were good for.
func (db *DB) KeepGuestDays(ctx context.Context, today string, days []vps.GuestDay) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM guest_day WHERE day > ?", today); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM guest_span"); err != nil {
			return err
		}
		for _, d := range days {
			_, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO guest_day (day, guest, name, tenant, memory, weight) VALUES (?, ?, ?, ?, ?, ?)",
				d.Day, d.GuestID, d.Guest, d.Tenant, d.Memory, d.Weight)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// KeepGuestSpans keeps who was there by a clock that may be wrong, after what is
// kept of that before.
func (db *DB) KeepGuestSpans(ctx context.Context, spans []vps.GuestSpan) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, s := range spans {
			_, err := tx.ExecContext(ctx, "INSERT INTO guest_span (first, last, guest, name, tenant, memory, weight) VALUES (?, ?, ?, ?, ?, ?, ?)",
				s.First, s.Day, s.GuestID, s.Guest, s.Tenant, s.Memory, s.Weight)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// GuestSpans returns what KeepGuestSpans kept since the last KeepGuestDays, in
// its order.
func (db *DB) GuestSpans(ctx context.Context) (spans []vps.GuestSpan, err error) {
	err = db.view(ctx, func(tx *sql.Tx) error {
		return each(ctx, tx, func(rows *sql.Rows) error {
			var s vps.GuestSpan
			err := rows.Scan(&s.First, &s.Day, &s.GuestID, &s.Guest, &s.Tenant, &s.Memory, &s.Weight)
			spans = append(spans, s)
			return err
		}, "SELECT first, last, guest, name, tenant, memory, weight FROM guest_span ORDER BY id")
	})
	return spans, err
}

// GuestDays returns who was there on the days of a month, by day.
func (db *DB) GuestDays(ctx context.Context, month vps.Month) ([]vps.GuestDay, error) {
	return db.guestDays(ctx, "SELECT day, guest, name, tenant, memory, weight FROM guest_day WHERE day >= ? AND day <= ? ORDER BY day, guest",
		month.Day(1), month.Day(month.Days()))
}

// LastGuestDays returns the last day of each guest that was ever there. It goes
// from guest to guest in the index, so that the length of the record is no
// matter.
func (db *DB) LastGuestDays(ctx context.Context) ([]vps.GuestDay, error) {
	return db.guestDays(ctx, lastGuestDays)
}

const lastGuestDays = `WITH RECURSIVE one(id) AS (
		SELECT min(guest) FROM guest_day
		UNION ALL
		SELECT (SELECT min(guest) FROM guest_day WHERE guest > id) FROM one WHERE id IS NOT NULL
	) SELECT day, guest, name, tenant, memory, weight FROM one CROSS JOIN guest_day
		WHERE guest = id AND day = (SELECT max(day) FROM guest_day WHERE guest = id) ORDER BY guest`

func (db *DB) guestDays(ctx context.Context, query string, args ...any) ([]vps.GuestDay, error) {
	rows, err := db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var days []vps.GuestDay
	for rows.Next() {
		var d vps.GuestDay
		if err := rows.Scan(&d.Day, &d.GuestID, &d.Guest, &d.Tenant, &d.Memory, &d.Weight); err != nil {
			return nil, db.explain(err)
		}
		days = append(days, d)
	}
	if err := rows.Err(); err != nil {
		return nil, db.explain(err)
	}
	return days, nil
}

// FirstGuestDay returns the first day on which any guest was there, or "".
func (db *DB) FirstGuestDay(ctx context.Context) (string, error) {
	var day string
	err := db.read.QueryRowContext(ctx, "SELECT coalesce(min(day), '') FROM guest_day").Scan(&day)
	return day, db.explain(err)
}

// KeepBill keeps the bill of a month that is over, with the event that tells of
// it, unless there is one. It returns the one that is kept, and whether that is
// this one.
func (db *DB) KeepBill(ctx context.Context, b vps.Bill, ev vps.Event) (kept vps.Bill, first bool, err error) {
	content, err := packBill(b)
	summary, unwritten := json.Marshal(b.Summary())
	if err = errors.Join(err, unwritten); err != nil {
		return vps.Bill{}, false, vps.Wrap(vps.CodeInternal, err, "the bill of %s cannot be written", b.Month)
	}
	err = db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO bill (month, content, summary) VALUES (?, ?, ?)", b.Month.String(), content, string(summary))
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		if first = n == 1; err != nil || !first {
			return err
		}
		return db.addEvent(ctx, tx, &ev)
	})
	if err != nil {
		return vps.Bill{}, false, err
	}
	kept, _, err = db.Bill(ctx, b.Month)
	return kept, first, err
}

// Bill returns the bill that is kept of a month, as it was made, and its
// corrections, the oldest first. None is vps.CodeNotFound.
func (db *DB) Bill(ctx context.Context, month vps.Month) (vps.Bill, []vps.BillCorrection, error) {
	var content []byte
	err := db.read.QueryRowContext(ctx, "SELECT content FROM bill WHERE month = ?", month.String()).Scan(&content)
	if errors.Is(err, sql.ErrNoRows) {
		return vps.Bill{}, nil, vps.Errorf(vps.CodeNotFound, "no bill is kept of %s", month)
	}
	if err != nil {
		return vps.Bill{}, nil, db.explain(err)
	}
	b, err := unpackBill(content)
	if err != nil {
		return vps.Bill{}, nil, vps.Wrap(vps.CodeInternal, err, "the bill that is kept of %s cannot be read; the state database may be damaged", month)
	}
	corrections, err := db.corrections(ctx, month)
	return b, corrections, err
}

// Bills returns what there is to tell of each bill that is kept, with its
// corrections, the oldest month first.
func (db *DB) Bills(ctx context.Context) (all []vps.BillSummary, err error) {
	err = db.view(ctx, func(tx *sql.Tx) error {
		return each(ctx, tx, func(rows *sql.Rows) error {
			var month, summary string
			var content []byte
			var n int
			var corrected vps.Money
			if err := rows.Scan(&month, &summary, &content, &n, &corrected); err != nil {
				return err
			}
			s, err := readSummary(summary, content)
			if err != nil {
				return vps.Wrap(vps.CodeInternal, err, "the bill that is kept of %s cannot be read; the state database may be damaged", month)
			}
			s.Corrections, s.Corrected, s.Total = n, corrected, s.Total+corrected
			all = append(all, s)
			return nil
		}, `SELECT month, summary, CASE summary WHEN '' THEN content END,
			(SELECT count(*) FROM bill_correction AS c WHERE c.month = bill.month),
			(SELECT coalesce(sum(amount), 0) FROM bill_correction AS c WHERE c.month = bill.month)
			FROM bill ORDER BY month`)
	})
	return all, err
}

// readSummary reads the summary of a bill, or for one from before there were
// any the bill.
func readSummary(summary string, content []byte) (s vps.BillSummary, err error) {
	if summary == "" {
		b, err := unpackBill(content)
		return b.Summary(), err
	}
	err = json.Unmarshal([]byte(summary), &s)
	return s, err
}

// HasBill tells whether the bill of a month is kept.
func (db *DB) HasBill(ctx context.Context, month vps.Month) (there bool, err error) {
	err = db.read.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM bill WHERE month = ?)", month.String()).Scan(&there)
	return there, db.explain(err)
}

func (db *DB) corrections(ctx context.Context, month vps.Month) ([]vps.BillCorrection, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT id, made, guest, tenant, amount, reason FROM bill_correction WHERE month = ? ORDER BY id", month.String())
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var all []vps.BillCorrection
	for rows.Next() {
		var c vps.BillCorrection
		var made int64
		if err := rows.Scan(&c.ID, &made, &c.Guest, &c.Tenant, &c.Amount, &c.Reason); err != nil {
			return nil, db.explain(err)
		}
		c.Made = time.Unix(made, 0).UTC()
		all = append(all, c)
	}
	if err := rows.Err(); err != nil {
		return nil, db.explain(err)
	}
	return all, nil
}

// AddCorrection adds a correction, whose ID does not count, to the kept bill of
// a month. A month without one is vps.CodeNotFound, and one with
// vps.MaxCorrections vps.CodeConflict.
func (db *DB) AddCorrection(ctx context.Context, month vps.Month, c vps.BillCorrection) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var bills, corrections int
		err := tx.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM bill WHERE month = ?1), (SELECT count(*) FROM bill_correction WHERE month = ?1)", month.String()).Scan(&bills, &corrections)
		switch {
		case err != nil:
			return err
		case bills == 0:
			return vps.Errorf(vps.CodeNotFound, "no bill is kept of %s", month)
		case corrections >= vps.MaxCorrections:
			return vps.Errorf(vps.CodeConflict, "the bill of %s has %d corrections, which is the limit", month, corrections)
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO bill_correction (month, made, guest, tenant, amount, reason) VALUES (?, ?, ?, ?, ?, ?)",
			month.String(), c.Made.Unix(), c.Guest, c.Tenant, c.Amount, c.Reason)
		return err
	})
}

// Begun returns the first month whose bill is made without being asked for.
// While bills are not made it is vps.CodeNotFound.
func (db *DB) Begun(ctx context.Context) (vps.Month, error) {
	var month string
	err := db.read.QueryRowContext(ctx, "SELECT month FROM bill_since").Scan(&month)
	if errors.Is(err, sql.ErrNoRows) {
		return vps.Month{}, vps.Errorf(vps.CodeNotFound, "no bills are made without a price")
	}
	if err != nil {
		return vps.Month{}, db.explain(err)
	}
	return vps.ParseMonth(month)
}

// BeginBills says that bills are made from this month on.
func (db *DB) BeginBills(ctx context.Context, month vps.Month) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO bill_since (one, month) VALUES (1, ?)", month.String())
		return err
	})
}

// EndBills says that no bills are made any more. It is idempotent.
func (db *DB) EndBills(ctx context.Context) error {
	var n int
	if err := db.read.QueryRowContext(ctx, "SELECT count(*) FROM bill_since").Scan(&n); err != nil || n == 0 {
		return db.explain(err)
	}
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM bill_since")
		return err
	})
}

func packBill(b vps.Bill) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if err := json.NewEncoder(w).Encode(b); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

func unpackBill(content []byte) (vps.Bill, error) {
	r, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return vps.Bill{}, err
	}
	var b vps.Bill
	if err := json.NewDecoder(r).Decode(&b); err != nil {
		return vps.Bill{}, fmt.Errorf("decode the bill: %w", err)
	}
	return b, nil
}
