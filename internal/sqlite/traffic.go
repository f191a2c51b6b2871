package sqlite

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sublet/internal/vps"
)

// The ledger: what the kernel's counters grew by from sample to sample, whose
// it was, and when.
//
// The kernel counts and goes on counting; what it showed last is kept for each
// link in the same transaction as what was made of it. So whatever happens
// between two samples, and however a sample ends, nothing is lost and nothing
// counted twice: the next one starts from what the last commit says.

// How long history is kept; days and months are kept for ever.
const (
	keepFive  = 2 * 24 * time.Hour
	keepHours = 90 * 24 * time.Hour
)

const (
	// Nothing is dropped for its age, and no bill made, until the wall clock and
	// the time since the boot have agreed for so long: a clock that is wrong
	// costs no history.
	steadyFor = 6 * time.Hour
	// The two agree when they drift apart by less between two samples.
	drift = time.Minute
	// What came since a sample not longer ago counts as of the middle between
	// the two; of more it is not known when it came, and it counts as of now.
	near = time.Duration(vps.MaxTrafficSample) + time.Minute
)

// TrafficGuest is who owns a link at the time of a sample.
type TrafficGuest struct {
	ID, Name, Tenant, Link string
}

// TrafficSample is what is known at one moment.
type TrafficSample struct {
	// Counters are those of guests' links. Links that no guest owns are kept
	// for the one who will.
	Counters vps.TrafficCounters
	// Guests are all that there are, and Tenants is when each tenant was made,
	// by name: a guest that goes over to another one takes nothing along. The
	// zero time is for one that was always there.
	Guests  []TrafficGuest
	Tenants map[string]time.Time
	// Uplinks are the host's own counters, of the class vps.TrafficUplink. One
	// that is new to the ledger counts from here on.
	Uplinks []vps.LinkTraffic
	// Boot names the time since the host booted, as its boot id does, and
	// Uptime is how long that is: CLOCK_BOOTTIME, which nobody can set.
	Boot   string
	Uptime time.Duration
	// Zone is where days and months begin; nil means UTC.
	Zone *time.Location
	// Quotas are all that there are.
	Quotas []vps.Quota
}

// ledger is what this process remembers of the ledger's tables, so that a
// sample need not read them. It is only ever what the last commit says: after
// anything else it is forgotten, and read anew.
type ledger struct {
	mu   sync.Mutex
	book *book
	// version counts what was committed.
	version atomic.Int64
}

// TrafficVersion differs after each change of history that this process made:
// while it is the same, so is what Traffic returns.
func (db *DB) TrafficVersion() int64 { return db.ledger.version.Load() }

// AddTraffic adds what the counters grew by since the last sample, in one
// transaction. It returns what each of the sample's quotas has used, in their
// order. After an error nothing is changed, and the next sample has all of it.
func (db *DB) AddTraffic(ctx context.Context, s TrafficSample) ([]vps.QuotaAccount, error) {
	return db.enterTraffic(ctx, s, true)
}

// RehearseTraffic returns what AddTraffic would, and keeps nothing: the sample's
// guests and quotas need not be those that there are.
func (db *DB) RehearseTraffic(ctx context.Context, s TrafficSample) ([]vps.QuotaAccount, error) {
	return db.enterTraffic(ctx, s, false)
}

func (db *DB) enterTraffic(ctx context.Context, s TrafficSample, keep bool) ([]vps.QuotaAccount, error) {
	if s.Zone == nil {
		s.Zone = time.UTC
	}
	db.ledger.mu.Lock()
	defer db.ledger.mu.Unlock()
	b := db.ledger.book
	db.ledger.book = nil
	edit := db.change
	if !keep {
		edit = db.rehearse
	}
	var accounts []vps.QuotaAccount
	err := edit(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
		if b == nil {
			if b, err = loadBook(ctx, tx); err != nil {
				return err
			}
		}
		e := entry{book: b, tx: tx, sample: &s, moment: b.moment(&s), flows: map[int64]flow{}}
		if err := e.enter(ctx); err != nil {
			return err
		}
		accounts, err = e.settleQuotas(ctx)
		if err != nil {
			return err
		}
		return b.save(ctx, tx)
	})
	if err != nil {
		return nil, err
	}
	if keep {
		db.ledger.book = b
		db.ledger.version.Add(1)
	}
	return accounts, nil
}

// ClockSteady tells whether by the last sample the wall clock has gone as fast
// as time itself for long enough to be believed. It was read before a daemon
// started, too: one that starts under another clock than was on record is told.
func (db *DB) ClockSteady(ctx context.Context) (steady bool, err error) {
	err = db.read.QueryRowContext(ctx, "SELECT uptime - steady >= ? FROM traffic_state", int64(steadyFor)).Scan(&steady)
	return steady, db.explain(err)
}

// entry is one sample on its way into the book and the history.
type entry struct {
	*book
	tx     *sql.Tx
	sample *TrafficSample
	// moment is when the traffic counts as having passed.
	moment time.Time
	// flows are the billed bytes of this sample by guest, and the uplink's for
	// the host.
	flows map[int64]flow
}

// moment is when what came since the last sample counts as having passed.
func (b *book) moment(s *TrafficSample) time.Time {
	at := s.Counters.At
	if past := at.Sub(b.at); s.Boot == b.boot && past > 0 && past <= near && b.agrees(s) {
		return at.Add(-past / 2)
	}
	return at
}

// agrees tells whether the wall clock has gone as fast as time itself since
// the last sample.
func (b *book) agrees(s *TrafficSample) bool {
	apart := s.Counters.At.Round(0).Sub(b.at.Round(0)) - (s.Uptime - b.uptime)
	return s.Boot == b.boot && apart.Abs() < drift
}

// enter does the work of AddTraffic but for quotas.
func (e *entry) enter(ctx context.Context) error {
	if !e.agrees(e.sample) {
		e.steady = e.sample.Uptime
		if e.boot == "" {
			e.steady -= steadyFor // nothing is on record that the clock could contradict
		}
	}
	if err := e.beginEpochs(ctx); err != nil {
		return err
	}
	closed, err := e.closeSteps(ctx)
	if err != nil {
		return err
	}
	if err := e.setOwners(ctx); err != nil {
		return err
	}
	if err := e.count(); err != nil {
		return err
	}
	if err := e.countUplinks(ctx); err != nil {
		return err
	}
	e.at, e.uptime = e.sample.Counters.At, e.sample.Uptime
	if closed && e.uptime-e.steady >= steadyFor {
		return prune(ctx, e.tx, e.at)
	}
	return nil
}

// beginEpochs lets counters that began anew start at nothing, and so do their
// totals: as long as both go on together, only one of them is written.
func (e *entry) beginEpochs(ctx context.Context) error {
	anew := map[string]*linkBook{}
	for name, l := range e.links {
		again := e.epoch != e.sample.Counters.Epoch
		if l.guest == hostRow {
			again = e.boot != e.sample.Boot
		}
		if again && l.seen != (tally{}) {
			anew[name] = l
		}
	}
	e.epoch, e.boot = e.sample.Counters.Epoch, e.sample.Boot
	if err := e.flushAll(ctx, anew); err != nil {
		return err
	}
	for _, l := range anew {
		l.seen = tally{}
		l.reset(l.guest)
	}
	return nil
}

// closeSteps writes the steps that are over to the history, and begins those
// that hold the moment. It tells whether there were any.
func (e *entry) closeSteps(ctx context.Context) (closed bool, err error) {
	for i, step := range vps.TrafficSteps() {
		begin := step.Begin(e.moment, e.sample.Zone).Unix()
		// After a change of zone the step that holds the moment may begin before
		// the one that runs. What was billed until then is not added to.
		if begin == e.open[i] || begin < e.open[i] && e.moment.Unix() >= e.open[i] {
			continue
		}
		if err := e.flush(ctx, i, e.links); err != nil {
			return false, err
		}
		e.open[i], closed = begin, true
	}
	return closed, nil
}

// flush writes to the history what links have in a step that runs.
func (e *entry) flush(ctx context.Context, step int, links map[string]*linkBook) error {
	rows := map[int64]*tally{}
	for _, l := range links {
		if l.guest == nobody || l.total == l.marks[step] {
			continue
		}
		amount := l.total.since(&l.marks[step])
		if row := rows[l.guest]; row != nil {
			row.add(&amount)
		} else {
			rows[l.guest] = &amount
		}
		l.marks[step] = l.total
		l.marked[step] = true
	}
	return addRows(ctx, e.tx, step, e.open[step], rows)
}

// flushAll writes to the history what links have in all steps that run.
func (e *entry) flushAll(ctx context.Context, links map[string]*linkBook) error {
	for step := range e.open {
		if err := e.flush(ctx, step, links); err != nil {
			return err
		}
	}
	return nil
}

// setOwners gives each link to the guest that has it now. What the one before
// had of it goes to the history, and what the kernel showed last stays.
func (e *entry) setOwners(ctx context.Context) error {
	for _, l := range e.links {
		l.owner = nobody
	}
	for i := range e.sample.Guests {
		g := &e.sample.Guests[i]
		row, err := e.guest(ctx, e.tx, *g, nanoseconds(e.sample.Tenants[g.Tenant]), e.moment)
		if err != nil {
			return err
		}
		l := e.links[g.Link]
		if l == nil {
			l = e.newLink(g.Link, row)
		}
		l.owner = row
	}
	moved := map[string]*linkBook{}
	for name, l := range e.links {
		if l.guest != hostRow && l.guest != l.owner {
			moved[name] = l
		}
	}
	if err := e.flushAll(ctx, moved); err != nil {
		return err
	}
	for _, l := range moved {
		l.reset(l.owner)
	}
	e.forgetGuests()
	return nil
}

// count adds what guests' counters grew by. A counter that is missing stands
// at nothing.
func (e *entry) count() error {
	for _, l := range e.links {
		l.counted = l.guest == hostRow
	}
	err := eachTally(e.sample.Counters.Links, func(name string, now *tally) error {
		// What a link of nobody's grows by is for whoever gets it.
		if l := e.links[name]; l != nil && l.guest != hostRow {
			e.countLink(l, now)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range e.links {
		if !l.counted {
			e.countLink(l, &tally{})
		}
	}
	return nil
}

// countLink adds what one link's counters grew by.
func (e *entry) countLink(l *linkBook, now *tally) {
	l.counted = true
	if l.guest == nobody {
		l.dirty = l.seen.restart(now) || l.dirty
		return
	}
	if *now == l.seen {
		return
	}
	l.seen.restart(now)
	amount := now.since(&l.seen)
	l.total.add(&amount)
	l.seen, l.dirty = *now, true
	billed := vps.TrafficClass.Billed
	if l.guest == hostRow {
		billed = func(c vps.TrafficClass) bool { return c == vps.TrafficUplink }
	}
	e.flows[l.guest] = e.flows[l.guest].plus(amount.flow(billed))
}

// countUplinks adds what the host's own counters grew by.
func (e *entry) countUplinks(ctx context.Context) error {
	return eachTally(e.sample.Uplinks, func(name string, now *tally) error {
		if l := e.links[name]; l != nil && l.guest == hostRow {
			e.countLink(l, now)
			return nil
		}
		// It has counted since the host booted, and nobody knows what.
		e.newLink(name, hostRow).seen = *now
		_, err := e.tx.ExecContext(ctx, "UPDATE traffic_guest SET since = ? WHERE id = ? AND since = 0", e.moment.Unix(), hostRow)
		return err
	})
}

// eachTally calls each with the counters of every link, once.
func eachTally(counters []vps.LinkTraffic, each func(link string, now *tally) error) error {
	byLink := func(a, b vps.LinkTraffic) int { return strings.Compare(a.Link, b.Link) }
	if !slices.IsSortedFunc(counters, byLink) {
		counters = slices.SortedFunc(slices.Values(counters), byLink)
	}
	var t tally
	for i := range counters {
		c := &counters[i]
		at, err := slot(c.TrafficKey)
		if err != nil {
			return err
		}
		t[at] = t[at].Add(c.TrafficCount)
		if i+1 < len(counters) && counters[i+1].Link == c.Link {
			continue
		}
		if err := each(c.Link, &t); err != nil {
			return err
		}
		t = tally{}
	}
	return nil
}
