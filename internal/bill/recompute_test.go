package bill_test

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"sublet/internal/bill"
	"sublet/internal/vps"
)

// accountant works a bill out again, from what went in alone and in fractions,
// by the rules of docs/billing.md.
type accountant struct {
	in bill.Input
	// By tenant and guest.
	fixed      map[[2]string]*big.Rat
	bytes      map[[2]string][2]int64
	pool       map[string][2]*big.Int
	allowances [2]vps.Bytes
}

func newAccountant(in bill.Input) *accountant {
	a := &accountant{
		in: in, fixed: map[[2]string]*big.Rat{}, bytes: map[[2]string][2]int64{}, pool: map[string][2]*big.Int{},
		allowances: [2]vps.Bytes{in.Price.FreeIn, in.Price.FreeOut},
	}
	whole := new(big.Rat).Mul(big.NewRat(int64(in.Price.Month), int64(vps.DecimalOne)), a.unit())
	perDay := whole.Quo(whole, big.NewRat(int64(in.Month.Days()), 1))
	for day := 1; day <= in.Passed; day++ {
		a.shareDay(in.Month.Day(day), perDay)
	}
	for _, r := range in.Rows {
		if r.Class != vps.TrafficInternet && r.Class != vps.TrafficHost {
			continue
		}
		if r.InBytes == 0 && r.OutBytes == 0 {
			continue
		}
		key := [2]string{a.tenant(r.GuestID, r.Start.Day()), r.GuestID}
		b := a.bytes[key]
		a.bytes[key] = [2]int64{b[0] + r.InBytes, b[1] + r.OutBytes}
		p, known := a.pool[a.poolOf(key)]
		if !known {
			p = [2]*big.Int{{}, {}}
			a.pool[a.poolOf(key)] = p
		}
		p[0].Add(p[0], big.NewInt(r.InBytes))
		p[1].Add(p[1], big.NewInt(r.OutBytes))
	}
	return a
}

// unit is how many minor units a unit of the currency has.
func (a *accountant) unit() *big.Rat {
	digits := map[string]int64{"CNY": 100, "JPY": 1, "KWD": 1000, "CLF": 10000}
	return big.NewRat(digits[a.in.Price.Currency], 1)
}

func (a *accountant) shareDay(day string, price *big.Rat) {
	units := func(d vps.GuestDay) int64 {
		return map[vps.ShareRule]int64{vps.ShareEqual: 1, vps.ShareMemory: int64(d.Memory), vps.ShareWeights: int64(d.Weight)}[a.in.Price.Share]
	}
	all := new(big.Rat)
	for _, d := range a.in.Lived {
		if d.Day == day {
			all.Add(all, big.NewRat(units(d), 1))
		}
	}
	if all.Sign() == 0 {
		a.add([2]string{"owner", ""}, price)
	}
	for _, d := range a.in.Lived {
		if d.Day == day {
			part := new(big.Rat).Quo(big.NewRat(units(d), 1), all)
			a.add([2]string{d.Tenant, d.GuestID}, part.Mul(part, price))
		}
	}
}

func (a *accountant) add(key [2]string, amount *big.Rat) {
	if a.fixed[key] == nil {
		a.fixed[key] = new(big.Rat)
	}
	a.fixed[key].Add(a.fixed[key], amount)
}

// tenant is whose a guest was on a day, or on the last one before it, or the
// first one after.
func (a *accountant) tenant(id string, day int) string {
	on := map[string]string{}
	for _, d := range a.in.Lived {
		if d.GuestID == id {
			on[d.Day] = d.Tenant
		}
	}
	for n := day; n >= 1; n-- {
		if t := on[a.in.Month.Day(n)]; t != "" {
			return t
		}
	}
	for n := day; n <= a.in.Month.Days(); n++ {
		if t := on[a.in.Month.Day(n)]; t != "" {
			return t
		}
	}
	return "owner"
}

func (a *accountant) poolOf(key [2]string) string {
	return map[vps.QuotaScope]string{vps.QuotaGuest: key[1], vps.QuotaTenant: key[0], vps.QuotaHost: "all"}[a.in.Price.FreePer]
}

// traffic is what a line's traffic in a direction costs, before it is rounded.
func (a *accountant) traffic(key [2]string, direction int, price vps.Decimal) *big.Rat {
	bytes := big.NewInt(a.bytes[key][direction])
	paid := new(big.Int).Set(bytes)
	if bytes.Sign() > 0 {
		free := bytes
		allowance := big.NewInt(int64(a.allowances[direction]))
		if all := a.pool[a.poolOf(key)][direction]; all.Cmp(allowance) > 0 {
			free = new(big.Int).Mul(bytes, allowance)
			free.Quo(free, all)
		}
		paid.Sub(paid, free)
	}
	cost := new(big.Rat).SetFrac(paid, big.NewInt(1<<30))
	cost.Mul(cost, big.NewRat(int64(price), int64(vps.DecimalOne)))
	return cost.Mul(cost, a.unit())
}

// roundHalfUp is the whole number that is nearest to one that is not negative.
func roundHalfUp(r *big.Rat) *big.Int {
	r = new(big.Rat).Add(r, big.NewRat(1, 2))
	return new(big.Int).Quo(r.Num(), r.Denom())
}

// TestRecomputed: every amount of a bill is the one that an accountant gets who
// works with fractions, and nobody who was rounded down had more left over than
// somebody who was rounded up.
func TestRecomputed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := draw(t)
		b := made(t, in)
		a := newAccountant(in)
		// All of the fixed price, in shares of which each is cut.
		exact, scale := new(big.Rat), new(big.Rat)
		for _, share := range a.fixed {
			exact.Add(exact, share)
		}
		if roundHalfUp(exact).Int64() != int64(b.Fixed) {
			t.Fatalf("the fixed price is %d; want %s rounded", b.Fixed, exact.FloatString(4))
		}
		if exact.Sign() > 0 {
			scale.Quo(big.NewRat(int64(b.Fixed), 1), exact)
		}
		var down, up *big.Rat // the largest rest that was dropped, the smallest that was made whole
		lines := 0
		for _, bt := range b.Tenants {
			for _, l := range bt.Lines {
				lines++
				key := [2]string{bt.Tenant, l.GuestID}
				share := new(big.Rat)
				if a.fixed[key] != nil {
					share.Mul(a.fixed[key], scale)
				}
				whole := new(big.Int).Quo(share.Num(), share.Denom())
				rest := new(big.Rat).Sub(share, new(big.Rat).SetInt(whole))
				switch int64(l.Fixed) - whole.Int64() {
				case 0:
					if down == nil || rest.Cmp(down) > 0 {
						down = rest
					}
				case 1:
					if up == nil || rest.Cmp(up) < 0 {
						up = rest
					}
				default:
					t.Fatalf("%v has %d of the fixed price; want %s rounded", key, l.Fixed, share.FloatString(4))
				}
				received, sent := a.traffic(key, 0, in.Price.In), a.traffic(key, 1, in.Price.Out)
				if int64(l.In.Amount) != roundHalfUp(received).Int64() || int64(l.Out.Amount) != roundHalfUp(sent).Int64() {
					t.Fatalf("%v pays %d and %d for traffic; want %s and %s rounded", key, l.In.Amount, l.Out.Amount, received.FloatString(4), sent.FloatString(4))
				}
			}
		}
		if down != nil && up != nil && down.Cmp(up) > 0 {
			t.Fatalf("a rest of %s was dropped, and one of %s made whole", down.FloatString(4), up.FloatString(4))
		}
		keys := map[[2]string]bool{}
		for key := range a.fixed {
			keys[key] = true
		}
		for key := range a.bytes {
			keys[key] = true
		}
		if len(keys) != lines {
			t.Fatalf("%d lines; want %d", lines, len(keys))
		}
	})
}
