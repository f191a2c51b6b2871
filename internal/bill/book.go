package bill

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"sublet/internal/vps"
)

// Days keeps who was there on which day.
type Days interface {
	// KeepGuestDays keeps days in place of what is there of them, and drops
	// what is kept of days after today.
	KeepGuestDays(ctx context.Context, today string, days []vps.GuestDay) error
	GuestDays(ctx context.Context, month vps.Month) ([]vps.GuestDay, error)
	// LastGuestDays returns each guest's last day, FirstGuestDay the first day
	// of any, or "".
	LastGuestDays(ctx context.Context) ([]vps.GuestDay, error)
	FirstGuestDay(ctx context.Context) (string, error)
}

// Bills keeps bills of months that are over.
type Bills interface {
	// Bill returns a bill as it was made, and its corrections, or
	// vps.CodeNotFound.
	Bill(ctx context.Context, month vps.Month) (vps.Bill, []vps.BillCorrection, error)
	// HasBill tells whether one is kept.
	HasBill(ctx context.Context, month vps.Month) (bool, error)
	// KeepBill keeps a bill with the event that tells of it, unless there is
	// one of the month; it returns the kept one.
	KeepBill(ctx context.Context, b vps.Bill, ev vps.Event) (kept vps.Bill, first bool, err error)
	AddCorrection(ctx context.Context, month vps.Month, c vps.BillCorrection) error
	// BeginBills returns the first month whose bill is made unasked, which is
	// the given one if none is kept; EndBills forgets it.
	BeginBills(ctx context.Context, month vps.Month) (vps.Month, error)
	EndBills(ctx context.Context) error
}

// Ledger is the history of traffic. What it tells of a month that is over is
// all that there will be.
type Ledger interface {
	Traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error)
}

// Book keeps the days of guests and the bills. It may be used by many
// goroutines at a time: what is kept of a month is kept once.
type Book struct {
	Days   Days
	Bills  Bills
	Ledger Ledger
	// Host returns the desired state: whose price, zone and guests count.
	Host func(ctx context.Context) (vps.Host, error)
	// Now tells the time.
	Now func() time.Time
}

// moment is what a call goes by.
type moment struct {
	host  vps.Host
	zone  *time.Location
	now   time.Time // in zone
	month vps.Month
}

func (b *Book) moment(ctx context.Context) (moment, error) {
	host, err := b.Host(ctx)
	if err != nil {
		return moment{}, err
	}
	zone, err := time.LoadLocation(host.Settings.Timezone)
	if err != nil {
		zone = time.UTC
	}
	now := b.Now().In(zone)
	return moment{host: host, zone: zone, now: now, month: vps.MonthOf(now)}, nil
}

// Record keeps that the guests of this moment are there today, and on the days
// since each was last seen or made: while no daemon ran, nothing changed. It is
// idempotent. Guests of an audit are nobody's.
func (b *Book) Record(ctx context.Context) error {
	at, err := b.moment(ctx)
	if err != nil {
		return err
	}
	last, err := b.Days.LastGuestDays(ctx)
	if err != nil {
		return err
	}
	seen := map[string]string{}
	for _, d := range last {
		seen[d.GuestID] = d.Day
	}
	today := at.now.Format(time.DateOnly)
	var days []vps.GuestDay
	for i := range at.host.Guests {
		g := &at.host.Guests[i]
		if g.Spec.Probe != "" || g.Created.In(at.zone).Format(time.DateOnly) > today {
			continue // not of anybody, or the clock is behind
		}
		d := vps.GuestDay{GuestID: g.ID, Guest: g.Spec.Name, Tenant: g.Spec.Tenant, Memory: g.Spec.Memory, Weight: g.Spec.BillingWeight}
		for _, d.Day = range missing(g.Created.In(at.zone), seen[g.ID], at.now) {
			days = append(days, d)
		}
		d.Day = today
		days = append(days, d)
	}
	return b.Days.KeepGuestDays(ctx, today, days)
}

// missing are the days before today that are not kept of a guest, at most two
// years of them: it was made at created, and last seen on a day, or on none.
func missing(created time.Time, seen string, now time.Time) []string {
	const most = 2 * 366
	today := now.Format(time.DateOnly)
	first := created.Format(time.DateOnly)
	if seen != "" { // by a clock that was behind it may have been before it was made
		first = max(first, nextDay(seen))
	}
	if created.IsZero() || first >= today {
		return nil
	}
	first = max(first, now.AddDate(0, 0, -most).Format(time.DateOnly))
	var days []string
	for day := first; day < today; day = nextDay(day) {
		days = append(days, day)
	}
	return days
}

// Close makes and keeps the bills of all months that are over, since there is a
// price. It is idempotent.
func (b *Book) Close(ctx context.Context) error {
	at, err := b.moment(ctx)
	if err != nil {
		return err
	}
	if !at.host.Settings.Price.Set() {
		return b.Bills.EndBills(ctx)
	}
	since, err := b.Bills.BeginBills(ctx, at.month)
	if err != nil {
		return err
	}
	for m := since; m.Compare(at.month) < 0; m = m.Next() {
		there, err := b.Bills.HasBill(ctx, m)
		if err == nil && !there {
			_, err = b.keep(ctx, at, m)
		}
		// Of a month in which the host was off there may be nothing to bill.
		if err != nil && vps.ErrorCode(err) != vps.CodeNotFound {
			return err
		}
	}
	return nil
}

// Bill returns the bill of a month, nil for the one that runs. That of a month
// that is over is kept when it is made; it then never changes. A month in the
// future is vps.CodeInvalid, and one of which there is nothing to bill, or no
// price to bill by, vps.CodeNotFound.
func (b *Book) Bill(ctx context.Context, month *vps.Month) (vps.Bill, error) {
	at, err := b.moment(ctx)
	if err != nil {
		return vps.Bill{}, err
	}
	m := at.month
	if month != nil {
		m = *month
	}
	if m.Compare(at.month) > 0 {
		return vps.Bill{}, vps.Invalid("month", "%s is in the future; it is %s now, and a bill is made of what was", m, at.month)
	}
	kept, corrections, err := b.Bills.Bill(ctx, m)
	if err == nil {
		return Correct(kept, corrections)
	}
	if vps.ErrorCode(err) != vps.CodeNotFound {
		return vps.Bill{}, err
	}
	if !at.host.Settings.Price.Set() {
		return vps.Bill{}, vps.Errorf(vps.CodeNotFound, "no price is set, so there is no bill; set one with `sublet price set --currency CNY --month 94`")
	}
	if m == at.month {
		return b.make(ctx, at, m, vps.BillOpen)
	}
	return b.keep(ctx, at, m)
}

// keep makes the final bill of a month and keeps it.
func (b *Book) keep(ctx context.Context, at moment, m vps.Month) (vps.Bill, error) {
	made, err := b.make(ctx, at, m, vps.BillFinal)
	if err != nil {
		return vps.Bill{}, err
	}
	kept, _, err := b.Bills.KeepBill(ctx, made, vps.Event{
		Time: made.Made, Kind: vps.EventBilled,
		Message: fmt.Sprintf("the bill of %s is made: %s %s; `sublet bill --month %s` shows it", m.Title(), made.Total.Text(made.Digits), made.Price.Currency, m),
	})
	return kept, err
}

// make gathers what a bill is made from, and makes it.
func (b *Book) make(ctx context.Context, at moment, m vps.Month, state vps.BillState) (vps.Bill, error) {
	in := Input{
		Month: m, Price: at.host.Settings.Price, Zone: at.zone, State: state, Made: at.now.Truncate(time.Second).UTC(),
		Passed: m.Days(), Tenants: map[string]string{},
	}
	if m == at.month {
		in.Passed = at.now.Day()
	}
	var err error
	if in.Start, in.End, err = b.span(ctx, at, m); err != nil {
		return vps.Bill{}, err
	}
	if err := b.Record(ctx); err != nil {
		return vps.Bill{}, err
	}
	if in.Lived, err = b.Days.GuestDays(ctx, m); err != nil {
		return vps.Bill{}, err
	}
	if in.Rows, err = b.Ledger.Traffic(ctx, vps.TrafficQuery{Step: vps.StepDay, Since: in.Start, Until: in.End}); err != nil {
		return vps.Bill{}, err
	}
	last, err := b.Days.LastGuestDays(ctx)
	if err != nil {
		return vps.Bill{}, err
	}
	for _, d := range last {
		in.Tenants[d.GuestID] = d.Tenant
	}
	if err := b.known(ctx, at, in); err != nil {
		return vps.Bill{}, err
	}
	return Make(in)
}

// span are the bounds of a month's traffic. They are those of the calendar,
// unless the bill before or after it has others, because the host's zone was
// another one then: no day of the ledger is billed twice, or never.
func (b *Book) span(ctx context.Context, at moment, m vps.Month) (start, end time.Time, err error) {
	start, end = m.Start(at.zone), m.Next().Start(at.zone)
	before := vps.MonthOf(m.Start(time.UTC).AddDate(0, -1, 0))
	kept, _, err := b.Bills.Bill(ctx, before)
	if err == nil {
		start = kept.End.In(at.zone)
	} else if vps.ErrorCode(err) != vps.CodeNotFound {
		return start, end, err
	}
	kept, _, err = b.Bills.Bill(ctx, m.Next())
	if err == nil {
		end = kept.Start.In(at.zone)
	} else if vps.ErrorCode(err) != vps.CodeNotFound {
		return start, end, err
	}
	return start, end, nil
}

// known refuses a month before everything that is on record.
func (b *Book) known(ctx context.Context, at moment, in Input) error {
	if in.Month == at.month || len(in.Lived) > 0 || len(in.Rows) > 0 {
		return nil
	}
	first, err := b.Days.FirstGuestDay(ctx)
	if err != nil {
		return err
	}
	if first == "" || in.Month.Day(in.Month.Days()) < first {
		return vps.Errorf(vps.CodeNotFound, "there is nothing on record of %s: no guest and no traffic; the record begins with %s", in.Month, cmp.Or(first, at.now.Format(time.DateOnly)))
	}
	return nil
}
