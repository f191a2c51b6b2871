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

// The tables with rows of history: what was counted, and what was imported.
const (
	countTable  = "traffic"
	importTable = "traffic_import"
)

// fewPages is up to how many pages are looked up one by one. Rows lie by time,
// so that those of one moment are written side by side; to look for single pages
// pays while the others are many.
const fewPages = 8

// addRows adds amounts, by guest, to the rows of one step, a place in
// vps.TrafficSteps.
func addRows(ctx context.Context, tx *sql.Tx, step int, begin int64, amounts map[int64]*tally) error {
	if len(amounts) == 0 {
		return nil
	}
	// There are some when a step runs for the second time, after the clock was
	// set, or when a guest has left in it.
	window := scan{table: countTable, step: step + 1, from: begin, until: begin + 1}
	err := window.each(ctx, tx, func(_, guest int64, there *tally) {
		if amounts[guest] == nil {
			if !touches(amounts, guest/pageSize) {
				return
			}
			amounts[guest] = &tally{}
		}
		amounts[guest].add(there)
	})
	if err != nil {
		return err
	}
	return putRows(ctx, tx, countTable, step, begin, amounts)
}

// touches tells whether there are amounts of a page.
func touches(amounts map[int64]*tally, page int64) bool {
	for guest := page * pageSize; guest < (page+1)*pageSize; guest++ {
		if amounts[guest] != nil {
			return true
		}
	}
	return false
}

// putRows writes the pages that amounts are on, whole.
func putRows(ctx context.Context, tx *sql.Tx, table string, step int, begin int64, amounts map[int64]*tally) error {
	pages := map[int64][]byte{}
	for guest, amount := range amounts {
		pages[guest/pageSize] = appendCounts(pages[guest/pageSize], guest, amount)
	}
	replace := "INSERT OR REPLACE INTO traffic (step, time, page, counts) VALUES (?, ?, ?, ?)"
	if table == importTable {
		replace = "INSERT OR REPLACE INTO traffic_import (step, time, page, counts) VALUES (?, ?, ?, ?)"
	}
	return writing(ctx, tx, replace, func(write writer) error {
		for _, page := range slices.Sorted(maps.Keys(pages)) {
			if err := write(step+1, begin, page, notNil(pages[page])); err != nil {
				return err
			}
		}
		return nil
	})
}

// prune drops what is too old.
func prune(ctx context.Context, tx *sql.Tx, now time.Time) error {
	for _, drop := range []string{"DELETE FROM traffic WHERE step = ? AND time < ?", "DELETE FROM traffic_import WHERE step = ? AND time < ?"} {
		for step, keep := range []time.Duration{keepFive, keepHours} {
			if _, err := tx.ExecContext(ctx, drop, step+1, now.Add(-keep).Unix()); err != nil {
				return err
			}
		}
	}
	return nil
}

// scan is a look at rows of history.
type scan struct {
	table       string  // traffic or traffic_import
	step        int     // as in the table
	from, until int64   // bounds of the time: from <= time < until
	guests      []int64 // nil: all
}

// each calls do for what each guest had in each step, the oldest step first; the
// tally is valid until do returns. Nil guests means all.
func (s scan) each(ctx context.Context, tx *sql.Tx, do func(begin, guest int64, counts *tally)) error {
	query := "SELECT time, page, counts FROM " + s.table + " WHERE step = ?1 AND time >= ?2 AND time < ?3 ORDER BY time, page"
	args := []any{s.step, s.from, s.until}
	wanted, pages := s.wanted(), map[int64]bool{}
	if s.guests != nil {
		for _, g := range s.guests {
			pages[g/pageSize] = true
		}
		if len(pages) <= fewPages {
			list, err := json.Marshal(slices.Collect(maps.Keys(pages)))
			if err != nil {
				return err
			}
			query, args = s.jumping(), append(args, string(list))
		}
	}
	var counts tally // one for all pages, of which there are thousands
	return each(ctx, tx, func(rows *sql.Rows) error {
		var begin, page int64
		var blob sql.RawBytes
		if err := rows.Scan(&begin, &page, &blob); err != nil || s.guests != nil && !pages[page] {
			return err
		}
		return readCounts(blob, &counts, func(guest int64, counts *tally) {
			if s.guests == nil || wanted[guest] {
				do(begin, guest, counts)
			}
		})
	}, query, args...)
}

// wanted is the set of the guests that are named.
func (s scan) wanted() map[int64]bool {
	set := make(map[int64]bool, len(s.guests))
	for _, g := range s.guests {
		set[g] = true
	}
	return set
}

// jumping is a query that goes from one begin of a step to the next, and looks
// up the pages there.
func (s scan) jumping() string {
	return `WITH RECURSIVE begins(begin) AS (
		SELECT (SELECT time FROM ` + s.table + ` WHERE step = ?1 AND time >= ?2 AND time < ?3 ORDER BY time LIMIT 1)
		UNION ALL
		SELECT (SELECT time FROM ` + s.table + ` WHERE step = ?1 AND time > begin AND time < ?3 ORDER BY time LIMIT 1) FROM begins WHERE begin IS NOT NULL
	) SELECT time, page, counts FROM begins CROSS JOIN json_each(?4) AS one CROSS JOIN ` + s.table + `
		WHERE step = ?1 AND time = begin AND page = one.value ORDER BY time, page`
}

// Traffic returns rows of history that are not zero, with what the steps that
// still run have so far, sorted by time, then guest, class and family. Two
// guests may have had the same name, one after the other. Sums of whole queries
// are sorted by guest.
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
	found := newRowsOf(q.Step)
	found.whole = q.Whole
	err := db.view(ctx, func(tx *sql.Tx) (err error) {
		guests, err := guestRows(ctx, tx, q.GuestIDs, q.Tenant)
		if err != nil {
			return err
		}
		if q.GuestIDs != nil || q.Tenant != nil {
			window.guests = []int64{}
			for i := range guests {
				window.guests = append(window.guests, guests[i].row)
			}
		}
		if q.Together {
			guests = slices.DeleteFunc(guests, func(g guestBook) bool { return !slices.Contains(q.Apart, g.ID) })
		}
		found.name(guests)
		tables := []string{countTable, importTable}
		if q.Counted {
			tables = tables[:1]
		}
		if q.Imported {
			tables = tables[1:]
		}
		for _, window.table = range tables {
			if err := window.each(ctx, tx, found.add); err != nil {
				return err
			}
		}
		if q.Imported {
			return nil
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
	marks := map[int64]tally{}
	err = eachMark(ctx, tx, w.step, func(_ int, row int64, total *tally) { marks[row] = *total })
	if err != nil {
		return err
	}
	wanted := w.wanted()
	return eachLink(ctx, tx, func(_ string, l *linkBook) {
		if l.guest == nobody || w.guests != nil && !wanted[l.guest] {
			return
		}
		mark := marks[l.row]
		amount := l.total.since(&mark)
		do(begin, l.guest, &amount)
	})
}

type rowKey struct{ begin, guest int64 }

// rowsOf gathers rows of history.
type rowsOf struct {
	step vps.TrafficStep
	// guests are who the rows of history are of. A guest that was of several
	// tenants has several, which are added up in the first: as says which. What is
	// not in it is added up in the row of nobody. Whole sums keep tenants apart.
	guests map[int64]guestBook
	as     map[int64]int64
	counts map[rowKey]*tally
	// whole adds up all steps; first is where each guest's first one begins.
	whole bool
	first map[int64]int64
}

func newRowsOf(step vps.TrafficStep) *rowsOf {
	return &rowsOf{step: step, guests: map[int64]guestBook{}, as: map[int64]int64{}, counts: map[rowKey]*tally{}, first: map[int64]int64{}}
}

// name tells guests apart, which come in the order of their rows.
func (r *rowsOf) name(guests []guestBook) {
	first := make(map[string]int64, len(guests))
	for i := range guests {
		g := &guests[i]
		if first[g.ID] == nobody || r.whole {
			first[g.ID] = g.row
		}
		r.as[g.row] = first[g.ID]
		r.guests[first[g.ID]] = *g // as it was last
	}
}

func (r *rowsOf) add(begin, guest int64, counts *tally) {
	key := rowKey{begin, r.as[guest]}
	if r.whole {
		if first, ok := r.first[key.guest]; !ok || begin < first {
			r.first[key.guest] = begin
		}
		key.begin = 0
	}
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
	if len(keys) == 0 {
		return nil
	}
	size := 0
	for _, c := range r.counts {
		size += c.used()
	}
	rows := make([]vps.TrafficRow, 0, size) // which are large, so that growing costs
	for _, k := range keys {
		g := r.guests[k.guest]
		begin := k.begin
		if r.whole {
			begin = r.first[k.guest]
		}
		for i, c := range r.counts[k] {
			if c != (vps.TrafficCount{}) {
				rows = append(rows, vps.TrafficRow{GuestID: g.ID, Guest: g.Name, Tenant: g.Tenant, TenantMade: instant(g.tenantMade), Start: time.Unix(begin, 0).UTC(), Step: r.step, TrafficKey: keyOf(i), TrafficCount: c})
			}
		}
	}
	return rows
}
