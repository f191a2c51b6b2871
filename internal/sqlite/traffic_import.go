package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"maps"
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

// Imported is what an import gave to history.
type Imported struct {
	// Rows are those that history now has by it.
	Rows []vps.TrafficRow
	// New and Replaced count the steps that nothing was imported of before, and
	// those of which something else was. Of the others it was the same.
	New, Replaced map[vps.TrafficStep]int
}

// ImportTraffic keeps history of a guest from before the ledger knew it. Of a
// step in which the ledger began to count the guest, it takes what finer rows
// say of the part before; what lies later, and 5 minutes and hours that are too
// old to be kept, are left out. A row takes the place of what was imported of
// the same step before, and steps that no row is of stay as they are: the same
// import may be repeated, and one that reaches less far back costs nothing.
func (db *DB) ImportTraffic(ctx context.Context, i TrafficImport) (made Imported, err error) {
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
		there, err := i.earlier(ctx, tx, row)
		if err != nil {
			return err
		}
		amounts, err := i.before(time.Unix(since, 0), there)
		if err != nil {
			return err
		}
		if made, err = merge(ctx, tx, row, amounts, there); err != nil {
			return err
		}
		for k := range made.Rows {
			made.Rows[k].GuestID, made.Rows[k].Guest = i.Guest.ID, i.Guest.Name
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
		return Imported{}, err
	}
	db.ledger.version.Add(1)
	return made, nil
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

// amounts returns the rows by their step and begin. A step that is not among
// them has nil.
func (i *TrafficImport) amounts() (amounts [steps]map[int64]*tally, err error) {
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
			return amounts, tooMuch(r.Step)
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
	return amounts, nil
}

// before returns the amounts of each step by the begin of their rows, cut off
// where the ledger begins. What is there adds to what a step that is cut is made
// of. A step that is not among the rows has nil.
func (i *TrafficImport) before(since time.Time, there [steps]importedStep) (amounts [steps]map[int64]*tally, err error) {
	if amounts, err = i.amounts(); err != nil {
		return amounts, err
	}
	kept := [steps]time.Duration{keepFive, keepHours}
	old := func(step int, begin int64) bool {
		return step >= 0 && kept[step] > 0 && begin < i.Now.Add(-kept[step]).Unix()
	}
	var finer map[int64]*tally // all that there is of the step before
	for step, name := range vps.TrafficSteps() {
		for begin, amount := range amounts[step] {
			start := time.Unix(begin, 0)
			switch {
			case !name.End(start, i.Zone).After(since):
			case start.Before(since) && (there[step].amounts[begin] == nil || !old(step-1, begin)):
				*amount = sumWithin(finer, begin, name.End(start, i.Zone).Unix())
			default: // the ledger counted it, or what it was made of is dropped by now
				*amount = tally{}
			}
			if *amount == (tally{}) {
				delete(amounts[step], begin)
			}
		}
		finer = maps.Clone(there[step].amounts)
		maps.Copy(finer, amounts[step])
		for _, c := range sumWithin(finer, math.MinInt64, math.MaxInt64) {
			if most(c) > vps.MaxImportedSum {
				return amounts, tooMuch(name)
			}
		}
	}
	for step := range amounts {
		maps.DeleteFunc(amounts[step], func(begin int64, _ *tally) bool { return old(step, begin) })
	}
	return amounts, nil
}

func most(c vps.TrafficCount) int64 {
	return max(c.InBytes, c.InPackets, c.OutBytes, c.OutPackets)
}

func tooMuch(step vps.TrafficStep) error {
	return vps.Errorf(vps.CodeInvalid, "the rows of step %s, with those that were imported before, have more than any link passes, at most %s each and %s together are taken over; nothing was changed",
		step, vps.Bytes(vps.MaxImportedRow), vps.Bytes(vps.MaxImportedSum))
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

// importedStep is what was imported of one step before.
type importedStep struct {
	// amounts are those of the guest, by where the step of their name begins now:
	// days and months may have begun in another zone. begins tells where they lie.
	amounts map[int64]*tally
	begins  map[int64][]int64
	// pages are the guest's pages, by where they lie: other guests are on them.
	pages map[int64]map[int64]*tally
}

// earlier returns what was imported of a guest before.
func (i *TrafficImport) earlier(ctx context.Context, tx *sql.Tx, guest int64) (there [steps]importedStep, err error) {
	page := make([]int64, pageSize)
	for k := range page {
		page[k] = guest/pageSize*pageSize + int64(k)
	}
	for step, name := range vps.TrafficSteps() {
		s := importedStep{map[int64]*tally{}, map[int64][]int64{}, map[int64]map[int64]*tally{}}
		there[step] = s
		window := scan{table: importTable, step: step + 1, from: math.MinInt64, until: math.MaxInt64, guests: page}
		err := window.each(ctx, tx, func(begin, other int64, counts *tally) {
			if s.pages[begin] == nil {
				s.pages[begin] = map[int64]*tally{}
			}
			c := *counts
			s.pages[begin][other] = &c
			if other != guest {
				return
			}
			named := name.Named(time.Unix(begin, 0), i.Zone, i.Now).Unix()
			s.begins[named] = append(s.begins[named], begin)
			if s.amounts[named] == nil {
				s.amounts[named] = &tally{}
			}
			s.amounts[named].add(&c)
		})
		if err != nil {
			return there, err
		}
	}
	return there, nil
}

// merge writes an import's rows, each in place of what was there of its step.
func merge(ctx context.Context, tx *sql.Tx, guest int64, amounts [steps]map[int64]*tally, there [steps]importedStep) (Imported, error) {
	made := Imported{New: map[vps.TrafficStep]int{}, Replaced: map[vps.TrafficStep]int{}}
	for step, name := range vps.TrafficSteps() {
		rows := newRowsOf(name)
		for begin, amount := range amounts[step] {
			rows.add(begin, guest, amount)
			switch was := there[step].amounts[begin]; {
			case was == nil:
				made.New[name]++
			case *was != *amount:
				made.Replaced[name]++
			default:
				continue
			}
			if err := there[step].put(ctx, tx, step, begin, guest, amount); err != nil {
				return made, err
			}
		}
		made.Rows = slices.Concat(made.Rows, rows.rows())
	}
	return made, nil
}

// put writes one row of a guest in place of those that had its name.
func (s importedStep) put(ctx context.Context, tx *sql.Tx, step int, begin, guest int64, amount *tally) error {
	for _, at := range append([]int64{begin}, s.begins[begin]...) {
		if s.pages[at] == nil {
			s.pages[at] = map[int64]*tally{}
		}
		s.pages[at][guest] = &tally{}
	}
	s.pages[begin][guest] = amount
	for _, at := range append([]int64{begin}, s.begins[begin]...) {
		if err := putRows(ctx, tx, importTable, step, at, s.pages[at]); err != nil {
			return err
		}
	}
	return nil
}
