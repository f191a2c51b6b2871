package bill

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"sublet/internal/vps"
)

// Days keeps who was there on which day.
type Days interface {
	// KeepGuestDays keeps days in place of what is there of them, and drops
	// what is kept of days after today, and all spans.
	KeepGuestDays(ctx context.Context, today string, days []vps.GuestDay) error
	// KeepGuestSpans adds to what was kept while the clock was not sure, and
	// GuestSpans returns that, as it came.
	KeepGuestSpans(ctx context.Context, spans []vps.GuestSpan) error
	GuestSpans(ctx context.Context) ([]vps.GuestSpan, error)
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
	// Bills lists those that are kept, the oldest month first.
	Bills(ctx context.Context) ([]vps.BillSummary, error)
	// HasBill tells whether one is kept.
	HasBill(ctx context.Context, month vps.Month) (bool, error)
	// KeepBill keeps a bill with the event that tells of it, unless there is
	// one of the month; it returns the kept one.
	KeepBill(ctx context.Context, b vps.Bill, ev vps.Event) (kept vps.Bill, first bool, err error)
	AddCorrection(ctx context.Context, month vps.Month, c vps.BillCorrection) error
}

// Billing keeps from which month on bills are made unasked.
type Billing interface {
	// Begun returns that month, or vps.CodeNotFound. BeginBills keeps another
	// one, and EndBills none.
	Begun(ctx context.Context) (vps.Month, error)
	BeginBills(ctx context.Context, month vps.Month) error
	EndBills(ctx context.Context) error
}

// Ledger is the history of traffic.
type Ledger interface {
	// Traffic returns rows with all that was counted until now. When that cannot
	// be told, whole makes it an error, or else the rows lack the last of it.
	Traffic(ctx context.Context, q vps.TrafficQuery, whole bool) ([]vps.TrafficRow, error)
}

// Book keeps the days of guests and the bills. It may be used by many
// goroutines at a time: what is kept of a month is kept once.
type Book struct {
	Days    Days
	Bills   Bills
	Billing Billing
	Ledger  Ledger
	// Host returns the desired state: whose price, zone and guests count.
	Host func(ctx context.Context) (vps.Host, error)
	// Now tells the time.
	Now func() time.Time
	// Sure tells whether that may be believed. While it may not, no bill and no
	// day is kept or dropped: who is there is kept apart, as spans. Nil means
	// always.
	Sure func(ctx context.Context) bool
}

// moment is what a call goes by.
type moment struct {
	host  vps.Host
	zone  *time.Location
	now   time.Time // in zone
	month vps.Month
	sure  bool
}

func (b *Book) moment(ctx context.Context) (moment, error) {
	host, err := b.Host(ctx)
	if err != nil {
		return moment{}, err
	}
	zone := vps.Zone(host.Settings.Timezone)
	sure := b.Sure == nil || b.Sure(ctx) // asked first: the clock may be set in between
	now := b.Now().In(zone)
	return moment{host: host, zone: zone, now: now, month: vps.MonthOf(now), sure: sure}, nil
}

// Close makes and keeps the bills of all months that are over, since there is a
// price. It is idempotent, and does nothing while the clock is not sure.
func (b *Book) Close(ctx context.Context) error {
	at, err := b.moment(ctx)
	switch {
	case err != nil || !at.sure:
		return err
	case !at.host.Settings.Price.Set():
		return b.Billing.EndBills(ctx)
	}
	begun, err := b.Billing.Begun(ctx)
	if vps.ErrorCode(err) == vps.CodeNotFound || err == nil && begun.Compare(at.month) > 0 {
		begun, err = at.month, b.Billing.BeginBills(ctx, at.month)
	}
	if err != nil {
		return err
	}
	return b.eachDue(ctx, at, begun, b.keep)
}

// Settle is Close before something changes that bills go by. It fails with
// vps.CodeConflict when there seem to be bills to make, and the clock is not
// sure: they are made by what is so until then.
func (b *Book) Settle(ctx context.Context) error {
	at, err := b.moment(ctx)
	if err != nil {
		return err
	}
	if at.sure || !at.host.Settings.Price.Set() {
		return b.Close(ctx)
	}
	begun, err := b.Billing.Begun(ctx)
	if err != nil {
		return ignoreNotFound(err)
	}
	return b.eachDue(ctx, at, begun, func(ctx context.Context, at moment, m vps.Month) (vps.Bill, error) {
		made, err := b.make(ctx, at, m)
		if err == nil {
			err = vps.Errorf(vps.CodeConflict, "the bill of %s has to be made first, and that waits because the host booted or its clock was set less than 6 hours ago; look at the clock with `date`, and try again later", m.Title())
		}
		return made, err
	})
}

// eachDue lets do make the bills of the months that are over and have none, from
// begun on. Of a month in which the host was off there may be nothing to bill.
func (b *Book) eachDue(ctx context.Context, at moment, begun vps.Month, do func(context.Context, moment, vps.Month) (vps.Bill, error)) error {
	for m := begun; m.Compare(at.month) < 0; m = m.Next() {
		there, err := b.Bills.HasBill(ctx, m)
		if err == nil && !there {
			_, err = do(ctx, at, m)
		}
		if ignoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

func ignoreNotFound(err error) error {
	if vps.ErrorCode(err) == vps.CodeNotFound {
		return nil
	}
	return err
}

// Bill returns the bill of a month, nil for the one that runs. That of a month
// that is over is kept when it is made; it then never changes. While it is not
// sure that it is over, the bill is an open one. A month in the future is
// vps.CodeInvalid, and one of which there is nothing to bill, or no price to
// bill by, vps.CodeNotFound.
func (b *Book) Bill(ctx context.Context, month *vps.Month) (vps.Bill, error) {
	at, err := b.moment(ctx)
	if err != nil {
		return vps.Bill{}, err
	}
	m := at.month
	if month != nil {
		m = *month
	}
	kept, corrections, err := b.Bills.Bill(ctx, m)
	switch {
	case err == nil:
		return Correct(kept, corrections)
	case vps.ErrorCode(err) != vps.CodeNotFound:
		return vps.Bill{}, err
	case m.Compare(at.month) > 0:
		return vps.Bill{}, vps.Invalid("month", "%s is in the future; it is %s now, and a bill is made of what was", m, at.month)
	case !at.host.Settings.Price.Set():
		return vps.Bill{}, vps.Errorf(vps.CodeNotFound, "no price is set, so there is no bill; set one with `sublet price set --currency CNY --month 94`")
	case m == at.month || !at.sure:
		return b.make(ctx, at, m)
	}
	return b.keep(ctx, at, m)
}

// List tells of all bills, the oldest month first: those that are kept, and while
// there is a price the open ones since bills are made, which the month that runs
// is the last of.
func (b *Book) List(ctx context.Context) ([]vps.BillSummary, error) {
	at, err := b.moment(ctx)
	if err != nil {
		return nil, err
	}
	all, err := b.Bills.Bills(ctx)
	if err != nil || !at.host.Settings.Price.Set() {
		return all, err
	}
	begun, err := b.Billing.Begun(ctx)
	if vps.ErrorCode(err) == vps.CodeNotFound {
		begun, err = at.month, nil
	}
	if err != nil {
		return nil, err
	}
	at.month = at.month.Next() // so that the one that runs is due, too
	err = b.eachDue(ctx, at, begun, func(ctx context.Context, _ moment, m vps.Month) (vps.Bill, error) {
		made, err := b.Bill(ctx, &m)
		if err == nil {
			all = append(all, made.Summary())
		}
		return made, err
	})
	slices.SortFunc(all, func(a, b vps.BillSummary) int { return a.Month.Compare(b.Month) })
	return all, err
}

// keep makes the final bill of a month and keeps it.
func (b *Book) keep(ctx context.Context, at moment, m vps.Month) (vps.Bill, error) {
	made, err := b.make(ctx, at, m)
	if err != nil {
		return vps.Bill{}, err
	}
	kept, _, err := b.Bills.KeepBill(ctx, made, vps.Event{
		Time: made.Made, Kind: vps.EventBilled,
		Message: fmt.Sprintf("the bill of %s is made: %s %s; `sublet bill --month %s` shows it", m.Title(), made.Total.Text(made.Digits), made.Price.Currency, m),
	})
	return kept, err
}

// make gathers what a bill is made from, and makes it: a final one of a month
// that is over for sure, or else an open one with an estimate.
func (b *Book) make(ctx context.Context, at moment, m vps.Month) (vps.Bill, error) {
	in, err := b.gather(ctx, at, m)
	if err != nil {
		return vps.Bill{}, err
	}
	if in.State == vps.BillFinal {
		return Make(in)
	}
	made, err := Make(in)
	if err == nil {
		estimate(&made, in, at.now)
	}
	return made, err
}

func (b *Book) gather(ctx context.Context, at moment, m vps.Month) (Input, error) {
	in := Input{
		Month: m, Price: at.host.Settings.Price, Zone: at.zone, Made: at.now.Truncate(time.Second).UTC(),
		Passed: m.Days(), State: vps.BillOpen, Tenants: map[string]string{},
	}
	if m.Compare(at.month) < 0 && at.sure {
		in.State = vps.BillFinal
	}
	if m == at.month {
		in.Passed = at.now.Day()
	}
	unkept, err := b.record(ctx, at)
	if err != nil {
		return in, err
	}
	if in.Lived, err = b.Days.GuestDays(ctx, m); err != nil {
		return in, err
	}
	in.Lived = within(m, in.Lived, unkept)
	if err := b.count(ctx, at, &in); err != nil {
		return in, err
	}
	last, err := b.Days.LastGuestDays(ctx)
	if err != nil {
		return in, err
	}
	for _, d := range append(last, unkept...) {
		in.Tenants[d.GuestID] = d.Tenant
	}
	return in, b.known(ctx, at, in)
}

// count adds the month's rows of the ledger, and what bounds them. Those are the
// days that are called by the month, whatever the host's zone was when they
// began; but where the bill of the month before or after is kept, its bounds
// count. So no day of the ledger is billed twice, or never.
func (b *Book) count(ctx context.Context, at moment, in *Input) error {
	m := in.Month
	before, err := b.kept(ctx, vps.MonthOf(m.Start(time.UTC).AddDate(0, -1, 0)))
	if err != nil {
		return err
	}
	after, err := b.kept(ctx, m.Next())
	if err != nil {
		return err
	}
	in.Start, in.End = m.Start(at.zone), m.Next().Start(at.zone)
	if before != nil {
		in.Start = before.End.In(at.zone)
	}
	if after != nil {
		in.End = after.Start.In(at.zone)
	}
	q := vps.TrafficQuery{Step: vps.StepDay}
	q.Since, q.Until = q.Step.Around(in.Start, in.End)
	rows, err := b.Ledger.Traffic(ctx, q, in.State == vps.BillFinal)
	if err != nil {
		return err
	}
	for _, r := range rows {
		called := vps.MonthOf(vps.StepDay.Named(r.Start, at.zone, at.now)).Compare(m)
		if before == nil && called >= 0 && r.Start.Before(in.Start) {
			in.Start = r.Start.In(at.zone)
		}
		if after == nil && called > 0 && r.Start.Before(in.End) {
			in.End = r.Start.In(at.zone)
		}
	}
	in.Rows = slices.DeleteFunc(rows, func(r vps.TrafficRow) bool { return r.Start.Before(in.Start) || !r.Start.Before(in.End) })
	undated, err := b.undated(ctx, at, m)
	in.Rows = append(in.Rows, undated...)
	return err
}

// kept returns the bill that is kept of a month, or nil.
func (b *Book) kept(ctx context.Context, m vps.Month) (*vps.Bill, error) {
	bill, _, err := b.Bills.Bill(ctx, m)
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	return &bill, nil
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
