package bill

import (
	"math/big"
	"slices"
	"time"

	"sublet/internal/vps"
)

// estimate adds to an open bill what it comes to by the end of its month, if
// the guests of its last day stay, and traffic goes on as so far. Without the
// time to tell that by, and for amounts beyond 63 bits, there is none.
func estimate(b *vps.Bill, in Input, now time.Time) {
	const least = 100 // a hundredth of the month, as for traffic
	passed, whole := now.Sub(in.Start), in.End.Sub(in.Start)
	if passed < whole/least || passed <= 0 {
		return
	}
	today := in.Month.Day(in.Passed)
	lived := in.Lived
	in.Lived = slices.Clone(lived)
	for _, d := range lived {
		if d.Day != today {
			continue
		}
		for day := in.Passed + 1; day <= in.Month.Days(); day++ {
			d.Day = in.Month.Day(day)
			in.Lived = append(in.Lived, d)
		}
	}
	in.Passed = in.Month.Days()
	if passed < whole {
		in.Rows = slices.Clone(in.Rows)
		for i := range in.Rows {
			r := &in.Rows[i]
			received, fits := scale(r.InBytes, whole, passed)
			sent, too := scale(r.OutBytes, whole, passed)
			if !fits || !too {
				return
			}
			r.InBytes, r.OutBytes = received, sent
		}
	}
	month, err := Make(in)
	if err != nil {
		return
	}
	b.Estimate = &month.Total
	for i := range b.Tenants {
		for _, t := range month.Tenants {
			if t.Tenant == b.Tenants[i].Tenant {
				b.Tenants[i].Estimate = &t.Total
			}
		}
	}
}

// scale is n times whole over part, rounded down. fits is false when that has
// more than 63 bits.
func scale(n int64, whole, part time.Duration) (scaled int64, fits bool) {
	x := new(big.Int).Mul(big.NewInt(n), big.NewInt(int64(whole)))
	x.Quo(x, big.NewInt(int64(part)))
	return x.Int64(), x.IsInt64()
}
