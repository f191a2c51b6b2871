package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"time"

	"sublet/internal/vps"
)

// fewGuests is up to how many guests are looked up one by one. Rows lie by
// time, so that those of one moment are written side by side; to look for
// single guests pays while the others are many.
const fewGuests = 16

// addRows adds amounts, by guest, to the rows of one step, a place in
// vps.TrafficSteps.
func addRows(ctx context.Context, tx *sql.Tx, step int, begin int64, amounts map[int64]*tally) error {
	if len(amounts) == 0 {
		return nil
	}
	// There are some when a step runs for the second time, after the clock was
	// set, or when a guest has left in it.
	window := scan{table: "traffic", step: step + 1, from: begin, until: begin + 1}
	if len(amounts) <= fewGuests {
		window.guests = slices.Collect(maps.Keys(amounts))
	}
	err := window.each(ctx, tx, func(_, guest int64, there *tally) {
		if amount := amounts[guest]; amount != nil {
			amount.add(there)
		}
	})
	if err != nil {
		return err
	}
	replace, err := tx.PrepareContext(ctx, "INSERT OR REPLACE INTO traffic (step, time, guest, counts) VALUES (?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = replace.Close() }()
	for _, guest := range slices.Sorted(maps.Keys(amounts)) {
		if _, err := replace.ExecContext(ctx, step+1, begin, guest, amounts[guest].encode()); err != nil {
			return err
		}
	}
	return nil
}

// prune drops what is too old.
func prune(ctx context.Context, tx *sql.Tx, now time.Time) error {
	for _, table := range []string{"traffic", "traffic_import"} {
		for step, keep := range []time.Duration{keepFive, keepHours} {
			_, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE step = ? AND time < ?", step+1, now.Add(-keep).Unix())
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// scan is a look at rows of history.
type scan struct {
	table       string // traffic or traffic_import
	step        int    // as in the table
	from, until int64  // bounds of the time: from <= time < until
	guests      []int64
}

// each calls do for each row, the oldest first; the tally is valid until do
// returns. No guests means all.
func (s scan) each(ctx context.Context, tx *sql.Tx, do func(begin, guest int64, counts *tally)) error {
	query := "SELECT time, guest, counts FROM " + s.table + " WHERE step = ?1 AND time >= ?2 AND time < ?3 ORDER BY time, guest"
	args := []any{s.step, s.from, s.until}
	if s.guests != nil {
		list, err := json.Marshal(s.guests)
		if err != nil {
			return err
		}
		args = append(args, string(list))
		if len(s.guests) <= fewGuests {
			query = s.jumping()
		} else {
			query = "SELECT time, guest, counts FROM " + s.table + ` WHERE step = ?1 AND time >= ?2 AND time < ?3
				AND +guest IN (SELECT value FROM json_each(?4)) ORDER BY time, guest`
		}
	}
	var counts tally
	return each(ctx, tx, func(rows *sql.Rows) error {
		var begin, guest int64
		var blob sql.RawBytes
		if err := rows.Scan(&begin, &guest, &blob); err != nil {
			return err
		}
		if err := counts.decode(blob); err != nil {
			return err
		}
		do(begin, guest, &counts)
		return nil
	}, query, args...)
}

// jumping is a query that goes from one begin of a step to the next, and looks
// up the guests there.
func (s scan) jumping() string {
	return `WITH RECURSIVE begins(begin) AS (
		SELECT (SELECT time FROM ` + s.table + ` WHERE step = ?1 AND time >= ?2 AND time < ?3 ORDER BY time LIMIT 1)
		UNION ALL
		SELECT (SELECT time FROM ` + s.table + ` WHERE step = ?1 AND time > begin AND time < ?3 ORDER BY time LIMIT 1) FROM begins WHERE begin IS NOT NULL
	) SELECT time, guest, counts FROM begins CROSS JOIN json_each(?4) AS one CROSS JOIN ` + s.table + `
		WHERE step = ?1 AND time = begin AND guest = one.value ORDER BY time, guest`
}

// Traffic returns rows of history that are not zero, with what the steps that
// still run have so far, sorted by time, then guest, class and family. Two
// guests may have had the same name, one after the other.
func (db *DB) Traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	step := stepNumber(q.Step)
	if step == 0 {
		return nil, vps.Errorf(vps.CodeInvalid, "%q is not a step of history; use 5min, hour, day or month", string(q.Step))
	}
	window := scan{step: step, from: math.MinInt64, until: math.MaxInt64}
	if !q.Since.IsZero() {
		window.from = ceilUnix(q.Since)
	}
	if !q.Until.IsZero() {
		window.until = ceilUnix(q.Until)
	}
	found := rowsOf{step: q.Step, guests: map[int64]TrafficGuest{}, counts: map[rowKey]*tally{}}
	err := db.view(ctx, func(tx *sql.Tx) (err error) {
		if window.guests, err = found.loadGuests(ctx, tx, q.GuestIDs); err != nil {
			return err
		}
		for _, window.table = range []string{"traffic", "traffic_import"} {
			if err := window.each(ctx, tx, found.add); err != nil {
				return err
			}
		}
		return running(ctx, tx, window, found.add)
	})
	if err != nil {
		return nil, err
	}
	return found.rows(), nil
}

// ceilUnix is the first whole second that is not before t.
func ceilUnix(t time.Time) int64 { return t.Add(time.Second - 1).Unix() }

// running calls do with what the step that still runs has so far, if it is in
// the window.
func running(ctx context.Context, tx *sql.Tx, w scan, do func(begin, guest int64, counts *tally)) error {
	var open [steps]int64
	err := tx.QueryRowContext(ctx, "SELECT five, hour, day, month FROM traffic_state").Scan(&open[0], &open[1], &open[2], &open[3])
	begin := open[w.step-1]
	if err != nil || begin < w.from || begin >= w.until {
		return err
	}
	return each(ctx, tx, func(rows *sql.Rows) error {
		var guest int64
		var total, mark tally
		var totalBlob, markBlob sql.RawBytes
		if err := rows.Scan(&guest, &totalBlob, &markBlob); err != nil {
			return err
		}
		if w.guests != nil && !slices.Contains(w.guests, guest) {
			return nil
		}
		if err := total.decode(totalBlob); err != nil {
			return err
		}
		if err := mark.decode(markBlob); err != nil {
			return err
		}
		amount := total.since(&mark)
		do(begin, guest, &amount)
		return nil
	}, "SELECT l.guest, l.total, m.total FROM traffic_link l LEFT JOIN traffic_mark m ON m.step = ? AND m.link = l.id WHERE l.guest <> 0", w.step)
}

type rowKey struct{ begin, guest int64 }

// rowsOf gathers rows of history.
type rowsOf struct {
	step   vps.TrafficStep
	guests map[int64]TrafficGuest
	counts map[rowKey]*tally
}

// loadGuests reads who guests are, nil meaning all, and returns their rows.
func (r *rowsOf) loadGuests(ctx context.Context, tx *sql.Tx, ids []string) ([]int64, error) {
	query, args := "SELECT id, guest, name, tenant FROM traffic_guest", []any(nil)
	var found []int64
	if ids != nil {
		list, err := json.Marshal(ids)
		if err != nil {
			return nil, err
		}
		query, args = query+" WHERE guest IN (SELECT value FROM json_each(?))", []any{string(list)}
		found = []int64{}
	}
	err := each(ctx, tx, func(rows *sql.Rows) error {
		var row int64
		var g TrafficGuest
		if err := rows.Scan(&row, &g.ID, &g.Name, &g.Tenant); err != nil {
			return err
		}
		r.guests[row] = g
		if ids != nil {
			found = append(found, row)
		}
		return nil
	}, query, args...)
	return found, err
}

func (r *rowsOf) add(begin, guest int64, counts *tally) {
	key := rowKey{begin, guest}
	if there := r.counts[key]; there != nil {
		there.add(counts)
		return
	}
	c := *counts
	r.counts[key] = &c
}

func (r *rowsOf) rows() []vps.TrafficRow {
	keys := slices.SortedFunc(maps.Keys(r.counts), func(a, b rowKey) int {
		if a.begin != b.begin {
			return int(max(min(a.begin-b.begin, 1), -1))
		}
		return int(max(min(a.guest-b.guest, 1), -1))
	})
	var rows []vps.TrafficRow
	for _, k := range keys {
		g := r.guests[k.guest]
		for i, c := range r.counts[k] {
			if c != (vps.TrafficCount{}) {
				rows = append(rows, vps.TrafficRow{GuestID: g.ID, Guest: g.Name, Start: time.Unix(k.begin, 0).UTC(), Step: r.step, TrafficKey: keyOf(i), TrafficCount: c})
			}
		}
	}
	return rows
}
