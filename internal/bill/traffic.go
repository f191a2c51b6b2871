package bill

import (
	"cmp"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"time"

	"sublet/internal/vps"
)

// count adds the rows of the ledger to the lines, each to that of the tenant
// whose the guest was on the row's day, or on the first one of the month for what
// is of no day.
func (m *maker) count() {
	for _, r := range m.in.Rows {
		if !r.Class.Billed() || r.InBytes == 0 && r.OutBytes == 0 {
			continue
		}
		day := r.Step.Named(r.Start, m.in.Zone, m.in.Made)
		l := m.line(m.tenant(r.GuestID, day.Format(time.DateOnly), r.Tenant), r.GuestID, cmp.Or(m.name(r.GuestID), r.Guest))
		if l.In.Bytes > math.MaxInt64-r.InBytes || l.Out.Bytes > math.MaxInt64-r.OutBytes {
			m.tooMuch = true
			return
		}
		l.In.Bytes += r.InBytes
		l.Out.Bytes += r.OutBytes
		if r.Step == vps.StepMonth {
			l.In.Undated += r.InBytes
			l.Out.Undated += r.OutBytes
		}
		l.Rows = append(l.Rows, vps.BillRow{Step: r.Step, Start: day, TrafficKey: r.TrafficKey, In: r.InBytes, Out: r.OutBytes})
	}
	for _, l := range m.lines {
		slices.SortFunc(l.Rows, func(a, b vps.BillRow) int {
			return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Step, b.Step), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Family, b.Family))
		})
	}
}

// allow gives each line its part of the allowance that it shares with others.
func (m *maker) allow() {
	in, out := map[string]uint64{}, map[string]uint64{}
	for _, l := range m.lines {
		pool := m.pool(l)
		var over, more uint64
		in[pool], over = bits.Add64(in[pool], uint64(l.In.Bytes), 0)
		out[pool], more = bits.Add64(out[pool], uint64(l.Out.Bytes), 0)
		m.tooMuch = m.tooMuch || over != 0 || more != 0
	}
	if m.tooMuch {
		return
	}
	for _, l := range m.lines {
		l.In.Free = free(l.In.Bytes, in[m.pool(l)], m.in.Price.FreeIn)
		l.Out.Free = free(l.Out.Bytes, out[m.pool(l)], m.in.Price.FreeOut)
	}
}

// pool names those who share an allowance.
func (m *maker) pool(l *line) string {
	switch m.in.Price.FreePer {
	case vps.QuotaTenant:
		return l.tenant
	case vps.QuotaHost:
		return ""
	case vps.QuotaGuest:
	}
	return l.GuestID
}

// free is how many of a line's bytes are free when its pool has so many and may
// have so many free: all of them, or the line's part of the allowance in
// proportion to its bytes, without fractions of a byte. More bytes never have
// so much more of them free that fewer are paid.
func free(bytes int64, pool uint64, allowance vps.Bytes) int64 {
	if pool <= uint64(allowance) {
		return bytes
	}
	high, low := bits.Mul64(uint64(bytes), uint64(allowance))
	part, _ := bits.Div64(high, low, pool) // high < pool: bytes are a part of it, and the allowance below 2^64
	return int64(part)
}

// price prices a line's traffic and adds it up.
func (m *maker) price(l *line) {
	l.In.Amount = m.trafficPrice(l.In, m.in.Price.In)
	l.Out.Amount = m.trafficPrice(l.Out, m.in.Price.Out)
	var total sum
	for _, part := range []vps.Money{l.Fixed, l.In.Amount, l.Out.Amount} {
		total.add(part)
	}
	l.Total = total.money
	m.tooMuch = m.tooMuch || total.tooMuch
}

// trafficPrice is what paid bytes cost at the price of a GiB, rounded half up.
func (m *maker) trafficPrice(u vps.BillUsage, price vps.Decimal) vps.Money {
	n := new(big.Int).Mul(big.NewInt(u.Bytes-u.Free), big.NewInt(int64(price)))
	unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(m.in.Price.Digits())), nil)
	amount, fits := halfUp(n.Mul(n, unit), new(big.Int).Mul(big.NewInt(int64(vps.GiB)), big.NewInt(int64(vps.DecimalOne))))
	m.tooMuch = m.tooMuch || !fits
	return amount
}

// halfUp divides numbers that are not negative and rounds half up. fits is false
// when the outcome has more than 63 bits.
func halfUp(n, by *big.Int) (amount vps.Money, fits bool) {
	double := new(big.Int).Lsh(n, 1)
	double.Add(double, by).Quo(double, new(big.Int).Lsh(by, 1))
	if !double.IsInt64() {
		return 0, false
	}
	return vps.Money(double.Int64()), true
}

// nextDay is the day after one, both as "2026-10-31".
func nextDay(day string) string {
	t, err := time.Parse(time.DateOnly, day)
	if err != nil {
		return ""
	}
	return t.AddDate(0, 0, 1).Format(time.DateOnly)
}
