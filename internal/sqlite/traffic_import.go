package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"
	"time"

	"sublet/internal/vps"
)

// TrafficImport is a guest's traffic as another program had counted it, before
// the ledger did.
type TrafficImport struct {
	Guest TrafficGuest // Link is not used
	// Zone is where its days and months begin; nil means UTC.
	Zone *time.Location
	// Rows are those of each step; GuestID and Guest are not used. A class and
	// family that are not known are vps.TrafficInternet and 0.
	Rows []vps.TrafficRow
	// Now is what the age of rows is told by.
	Now time.Time
	// DryRun changes nothing, and only tells what history would have.
	DryRun bool
}

// ImportTraffic keeps history of a guest from before the ledger knew it. Of a
// step in which the ledger began to count the guest, it takes what finer rows
// say of the part before; what lies later, and 5 minutes and hours that are too
// old to be kept, are left out. It takes the place of what an earlier import
// wrote in the steps that the rows have, so that the same import may be
// repeated. It returns the rows that history now has by it.
func (db *DB) ImportTraffic(ctx context.Context, i TrafficImport) (kept []vps.TrafficRow, err error) {
	if i.Zone == nil {
		i.Zone = time.UTC
	}
	db.ledger.mu.Lock()
	defer db.ledger.mu.Unlock()
	// Accounts change; and after an error what is in memory is not trusted.
	db.ledger.book = nil
	edit := db.change
	if i.DryRun {
		edit = db.rehearse
	}
	err = edit(ctx, func(ctx context.Context, tx *sql.Tx) error {
		row, since, tenant, err := i.owner(ctx, tx)
		if err != nil {
			return err
		}
		amounts, err := i.before(time.Unix(since, 0))
		if err != nil {
			return err
		}
		kept, err = replaceImport(ctx, tx, row, amounts)
		if err != nil {
			return err
		}
		for k := range kept {
			kept[k].GuestID, kept[k].Guest = i.Guest.ID, i.Guest.Name
		}
		// Its quotas are counted anew from the history.
		accounts, err := loadAccounts(ctx, tx)
		if err != nil {
			return err
		}
		if i.Guest.ID == "" {
			delete(accounts, (&vps.Quota{Scope: vps.QuotaHost}).ID())
		}
		delete(accounts, (&vps.Quota{Scope: vps.QuotaGuest, Name: i.Guest.Name}).ID())
		delete(accounts, (&vps.Quota{Scope: vps.QuotaTenant, Name: tenant}).ID())
		return saveAccounts(ctx, tx, accounts)
	})
	if err != nil {
		return nil, err
	}
	db.ledger.version.Add(1)
	return kept, nil
}

// owner returns the row of the guest, made if there is none, and since when and
// for which tenant it counts. Of several it is the first: what was before is his.
func (i *TrafficImport) owner(ctx context.Context, tx *sql.Tx) (row, since int64, tenant string, err error) {
	query := "SELECT id, since, tenant FROM traffic_guest WHERE guest = ? ORDER BY id LIMIT 1"
	err = tx.QueryRowContext(ctx, query, i.Guest.ID).Scan(&row, &since, &tenant)
	if errors.Is(err, sql.ErrNoRows) {
		since, tenant = i.Now.Unix(), i.Guest.Tenant
		row, err = keepGuest(ctx, tx, i.Guest, 0, i.Now)
	}
	return row, since, tenant, err
}

// before returns the amounts of each step by the begin of their rows, cut off
// where the ledger begins. A step that is not among the rows has nil.
func (i *TrafficImport) before(since time.Time) (amounts [steps]map[int64]*tally, err error) {
	var sums [steps]vps.TrafficCount
	for k := range i.Rows {
		r := &i.Rows[k]
		step := stepNumber(r.Step) - 1
		if r.Class == "" {
			r.Class = vps.TrafficInternet
		}
		at, err := slot(r.TrafficKey)
		if err != nil {
			return amounts, err
		}
		if step < 0 || min(r.InBytes, r.InPackets, r.OutBytes, r.OutPackets) < 0 {
			return amounts, vps.Errorf(vps.CodeInvalid, "a row of %s at %s is no traffic; the numbers must not be negative", r.Step, r.Start.Format(time.DateTime))
		}
		if sums[step] = sums[step].Add(r.TrafficCount); most(r.TrafficCount) > vps.MaxImportedRow || most(sums[step]) > vps.MaxImportedSum {
			return amounts, vps.Errorf(vps.CodeInvalid, "the rows of step %s up to %s have more than any link passes, at most %s each and %s together are taken over; nothing was changed",
				r.Step, r.Start.Format(time.DateTime), vps.Bytes(vps.MaxImportedRow), vps.Bytes(vps.MaxImportedSum))
		}
		if amounts[step] == nil {
			amounts[step] = map[int64]*tally{}
		}
		begin := r.Step.Begin(r.Start, i.Zone).Unix()
		if amounts[step][begin] == nil {
			amounts[step][begin] = &tally{}
		}
		row := amounts[step][begin]
		row[at] = row[at].Add(r.TrafficCount)
	}
	var finer map[int64]*tally // what is left of the step before
	for step, name := range vps.TrafficSteps() {
		for begin, amount := range amounts[step] {
			start := time.Unix(begin, 0)
			switch {
			case !name.End(start, i.Zone).After(since):
				continue
			case start.Before(since) && finer != nil:
				*amount = sumWithin(finer, begin, name.End(start, i.Zone).Unix())
			default:
				delete(amounts[step], begin)
			}
			if *amount == (tally{}) {
				delete(amounts[step], begin)
			}
		}
		finer = amounts[step]
	}
	for step, keep := range []time.Duration{keepFive, keepHours} {
		for begin := range amounts[step] {
			if begin < i.Now.Add(-keep).Unix() {
				delete(amounts[step], begin)
			}
		}
	}
	return amounts, nil
}

func most(c vps.TrafficCount) int64 {
	return max(c.InBytes, c.InPackets, c.OutBytes, c.OutPackets)
}

// sumWithin adds up the rows that begin within a time.
func sumWithin(rows map[int64]*tally, from, until int64) (sum tally) {
	for begin, amount := range rows {
		if begin >= from && begin < until {
			sum.add(amount)
		}
	}
	return sum
}

// replaceImport writes an import's rows in place of those that were there.
func replaceImport(ctx context.Context, tx *sql.Tx, guest int64, amounts [steps]map[int64]*tally) (kept []vps.TrafficRow, err error) {
	for step, name := range vps.TrafficSteps() {
		if amounts[step] == nil {
			continue
		}
		there := newRowsOf(name)
		for begin, amount := range amounts[step] {
			there.add(begin, guest, amount)
		}
		if err := replaceStep(ctx, tx, step, guest, amounts[step]); err != nil {
			return nil, err
		}
		kept = slices.Concat(kept, there.rows())
	}
	return kept, nil
}

// replaceStep writes a guest's rows of one step in place of those that were
// there. Other guests are on the same pages.
func replaceStep(ctx context.Context, tx *sql.Tx, step int, guest int64, amounts map[int64]*tally) error {
	pages := map[int64]map[int64]*tally{} // by the begin of the step
	window := scan{table: importTable, step: step + 1, from: math.MinInt64, until: math.MaxInt64}
	err := window.each(ctx, tx, func(begin, other int64, counts *tally) {
		if other/pageSize != guest/pageSize {
			return
		}
		if pages[begin] == nil {
			pages[begin] = map[int64]*tally{}
		}
		c := *counts
		if other == guest {
			c = tally{}
		}
		pages[begin][other] = &c
	})
	if err != nil {
		return err
	}
	for begin, amount := range amounts {
		if pages[begin] == nil {
			pages[begin] = map[int64]*tally{}
		}
		pages[begin][guest] = amount
	}
	for begin, page := range pages {
		if err := putRows(ctx, tx, importTable, step, begin, page); err != nil {
			return err
		}
	}
	return nil
}
