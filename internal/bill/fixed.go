package bill

import (
	"math/big"
	"slices"

	"sublet/internal/vps"
)

// share cuts the fixed price. Each day has the same part of it, which the guests
// of that day share; the owner bears that of days without guests.
func (m *maker) share() {
	for day := 1; day <= m.in.Passed; day++ {
		m.shareDay(m.in.Month.Day(day))
	}
	lines := m.sorted()
	for _, l := range lines {
		for _, s := range l.Spans {
			days := new(big.Int).Mul(big.NewInt(int64(s.Days)), big.NewInt(s.Units))
			l.share.Add(l.share, new(big.Rat).SetFrac(days, big.NewInt(s.Of)))
		}
	}
	shares := make([]*big.Rat, len(lines))
	for i, l := range lines {
		shares[i] = l.share
	}
	for i, amount := range split(m.passedPrice(), shares) {
		lines[i].Fixed = amount
	}
}

// passedPrice is the fixed price of the days that passed, rounded half up.
func (m *maker) passedPrice() vps.Money {
	n := new(big.Int).Mul(big.NewInt(int64(m.in.Price.MonthMoney())), big.NewInt(int64(m.in.Passed)))
	amount, _ := halfUp(n, big.NewInt(int64(m.in.Month.Days())))
	return amount // no more than the whole price
}

// shareDay shares one day.
func (m *maker) shareDay(day string) {
	guests := m.byDay[day]
	if len(guests) == 0 {
		m.line(vps.DefaultTenant, "", "").live(day, 1, 1)
		return
	}
	var of int64
	for _, g := range guests {
		of += m.units(g)
	}
	for _, g := range guests {
		m.line(g.Tenant, g.GuestID, m.name(g.GuestID)).live(day, m.units(g), of)
	}
}

// units are what a guest's share of a day is measured in.
func (m *maker) units(g vps.GuestDay) int64 {
	switch m.in.Price.Share {
	case vps.ShareMemory:
		return max(int64(g.Memory), 1)
	case vps.ShareWeights:
		return max(int64(g.Weight), 1)
	case vps.ShareEqual:
	}
	return 1
}

// live adds a day, which follows all that the line has, to it. Days with the
// same share that follow each other are one span.
func (l *line) live(day string, units, of int64) {
	l.Days++
	if n := len(l.Spans); n > 0 {
		s := &l.Spans[n-1]
		if s.Units == units && s.Of == of && nextDay(s.To) == day {
			s.To = day
			s.Days++
			return
		}
	}
	l.Spans = append(l.Spans, vps.BillSpan{From: day, To: day, Days: 1, Units: units, Of: of})
}

// split cuts an amount in proportion to shares, by the largest remainder: each
// gets the whole units of its exact part, and what is left goes, one unit each,
// to those with the largest rests, of equal ones to the first. No part is more
// than a unit away from the exact one, and they add up to the amount.
func split(amount vps.Money, shares []*big.Rat) []vps.Money {
	parts := make([]vps.Money, len(shares))
	all := new(big.Rat)
	for _, s := range shares {
		all.Add(all, s)
	}
	if all.Sign() == 0 {
		return parts
	}
	rests := make([]*big.Rat, len(shares))
	order := make([]int, len(shares))
	left := amount
	for i, s := range shares {
		exact := new(big.Rat).SetInt64(int64(amount))
		exact.Mul(exact, s).Quo(exact, all)
		whole := new(big.Int).Quo(exact.Num(), exact.Denom())
		parts[i] = vps.Money(whole.Int64()) // no more than the amount
		rests[i] = exact.Sub(exact, new(big.Rat).SetInt(whole))
		left -= parts[i]
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return rests[b].Cmp(rests[a]) })
	for _, i := range order[:left] {
		parts[i]++
	}
	return parts
}
