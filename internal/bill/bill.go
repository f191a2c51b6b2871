// Package bill works out what each tenant owes for a month: its guests' shares
// of the host's fixed price, and the price of their traffic. Make is pure: what
// it needs comes in, and the bill comes out. Book gathers that from stores, and
// keeps bills.
//
// Money is integers of the currency's minor unit, and everything between is
// exact arithmetic on integers and fractions of any size. Two roundings are
// left, and each is told on the bill:
//
//   - The fixed price is cut into whole minor units by the largest remainder, so
//     that the shares add up to it.
//   - The price of a guest's traffic in one direction is rounded half up.
package bill

import (
	"cmp"
	"math/big"
	"slices"
	"time"

	"sublet/internal/vps"
)

// Input is everything that a bill is made from.
type Input struct {
	Month vps.Month
	Price vps.Price
	// Zone is the host's, and Start and End bound the traffic in Rows.
	Zone       *time.Location
	Start, End time.Time
	// Passed are the days of the month that are billed, from its first on.
	Passed int
	State  vps.BillState
	Made   time.Time
	// Lived says who was there on which day of the month, in any order.
	Lived []vps.GuestDay
	// Rows are rows of the ledger with StepDay, in any order, and with StepMonth
	// what is of the month beyond its days. Those of classes that are not billed
	// do not count.
	Rows []vps.TrafficRow
	// Tenants tells, by a guest's ID, whose a guest with traffic is that was not
	// there on any day of the month. Others are those that the row names.
	Tenants map[string]string
}

// Make makes the bill. It fails with vps.CodeInvalid when an amount is beyond
// 63 bits, and for no other reason. The order of what comes in changes nothing.
func Make(in Input) (vps.Bill, error) {
	m := maker{in: in, lines: map[lineKey]*line{}}
	m.place()
	m.share()
	m.count()
	m.allow()
	b := vps.Bill{
		Schema: 1, Month: in.Month, State: in.State, Made: in.Made, Start: in.Start, End: in.End, Timezone: in.Zone.String(),
		Days: in.Month.Days(), Passed: in.Passed, Price: in.Price, Digits: in.Price.Digits(), Tenants: []vps.BillTenant{},
	}
	var all, fixed sum
	for _, l := range m.sorted() {
		m.price(l)
		if n := len(b.Tenants); n == 0 || b.Tenants[n-1].Tenant != l.tenant {
			b.Tenants = append(b.Tenants, vps.BillTenant{Tenant: l.tenant, Lines: []vps.BillLine{}, Corrections: []vps.BillCorrection{}})
		}
		t := &b.Tenants[len(b.Tenants)-1]
		t.Lines = append(t.Lines, l.BillLine)
		t.Total += l.Total // part of all, which is checked
		fixed.add(l.Fixed)
		all.add(l.Total)
	}
	if m.tooMuch || fixed.tooMuch || all.tooMuch {
		return vps.Bill{}, vps.Errorf(vps.CodeInvalid, "the bill of %s has amounts beyond 2^63 minor units of %s, which cannot be counted; lower the price, or look for a fault in the ledger", in.Month, in.Price.Currency)
	}
	b.Fixed, b.Total = fixed.money, all.money
	return b, nil
}

// lineKey names a line: a guest under one of its tenants. The guest is empty for
// days without any.
type lineKey struct{ tenant, guest string }

// line is a line that is being made.
type line struct {
	vps.BillLine
	tenant string
	// share is how many days' fixed price it bears.
	share *big.Rat
}

type maker struct {
	in    Input
	lines map[lineKey]*line
	// lived are the days of each guest, by ID, the first day first.
	lived   map[string][]vps.GuestDay
	byDay   map[string][]vps.GuestDay
	tooMuch bool
}

// line returns the line of a guest under a tenant.
func (m *maker) line(tenant, id, name string) *line {
	key := lineKey{tenant, id}
	l := m.lines[key]
	if l == nil {
		l = &line{tenant: tenant, share: new(big.Rat)}
		l.GuestID, l.Guest, l.Spans, l.Rows = id, name, []vps.BillSpan{}, []vps.BillRow{}
		m.lines[key] = l
	}
	return l
}

// sorted returns the lines in the order of the bill: by tenant, then by the
// guest's name, the days without guests last.
func (m *maker) sorted() []*line {
	all := make([]*line, 0, len(m.lines))
	for _, l := range m.lines {
		all = append(all, l)
	}
	last := func(l *line) int {
		if l.GuestID == "" {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b *line) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(last(a), last(b)), cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.GuestID, b.GuestID))
	})
	return all
}

// place sorts the guests' days.
func (m *maker) place() {
	m.lived, m.byDay = map[string][]vps.GuestDay{}, map[string][]vps.GuestDay{}
	for _, d := range m.in.Lived {
		m.lived[d.GuestID] = append(m.lived[d.GuestID], d)
		m.byDay[d.Day] = append(m.byDay[d.Day], d)
	}
	for _, days := range m.lived {
		slices.SortFunc(days, func(a, b vps.GuestDay) int { return cmp.Compare(a.Day, b.Day) })
	}
}

// name is the last one that a guest had in the month.
func (m *maker) name(id string) string {
	if days := m.lived[id]; len(days) > 0 {
		return days[len(days)-1].Guest
	}
	return ""
}

// tenant is whose a guest was on a day: on the last one before on which it was
// there, or the first one after. One that was there on no day of the month is
// that of its last day, or that of the ledger, which sees all that have traffic.
func (m *maker) tenant(id, day, ledger string) string {
	days := m.lived[id]
	if len(days) == 0 {
		return cmp.Or(m.in.Tenants[id], ledger, vps.DefaultTenant)
	}
	i, found := slices.BinarySearchFunc(days, day, func(d vps.GuestDay, day string) int { return cmp.Compare(d.Day, day) })
	if !found {
		i = max(i-1, 0)
	}
	return days[i].Tenant
}

// sum adds amounts and notices when they are too much.
type sum struct {
	money   vps.Money
	tooMuch bool
}

func (s *sum) add(m vps.Money) {
	s.money += m
	s.tooMuch = s.tooMuch || s.money < 0 // m never is
}
