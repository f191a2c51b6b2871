package bill_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sublet/internal/bill"
	"sublet/internal/vps"
)

var october = vps.Month{Year: 2026, Month: time.October}

// yuan is the price of the post that started it all.
func yuan() vps.Price {
	return vps.Price{Currency: "CNY", Month: 94 * vps.DecimalOne, Share: vps.ShareEqual, In: 530_000, Out: 530_000, FreePer: vps.QuotaGuest}
}

// input is a bill of a whole month without anybody.
func input(m vps.Month, p vps.Price) bill.Input {
	return bill.Input{
		Month: m, Price: p, Zone: time.UTC, Start: m.Start(time.UTC), End: m.Next().Start(time.UTC),
		Passed: m.Days(), State: vps.BillFinal, Made: m.Next().Start(time.UTC),
	}
}

// live adds a guest that is there from one day to another.
func live(in *bill.Input, name, tenant string, from, to int) {
	for day := from; day <= to; day++ {
		in.Lived = append(in.Lived, vps.GuestDay{
			Day: in.Month.Day(day), GuestID: "id-" + name, Guest: name, Tenant: tenant, Memory: 512 * vps.MiB, Weight: vps.DefaultBillingWeight,
		})
	}
}

// send adds traffic of a guest on a day.
func send(in *bill.Input, name string, day int, class vps.TrafficClass, received, sent int64) {
	in.Rows = append(in.Rows, vps.TrafficRow{
		GuestID: "id-" + name, Guest: name, Start: in.Month.Start(in.Zone).AddDate(0, 0, day-1), Step: vps.StepDay,
		TrafficKey: vps.TrafficKey{Class: class, Family: 4}, TrafficCount: vps.TrafficCount{InBytes: received, OutBytes: sent},
	})
}

func make1(t *testing.T, in bill.Input) vps.Bill {
	t.Helper()
	b, err := bill.Make(in)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// line finds a line by tenant and guest.
func line(t *testing.T, b vps.Bill, tenant, guest string) vps.BillLine {
	t.Helper()
	for _, bt := range b.Tenants {
		for _, l := range bt.Lines {
			if bt.Tenant == tenant && l.Guest == guest {
				return l
			}
		}
	}
	t.Fatalf("%s has no line for %q: %+v", tenant, guest, b.Tenants)
	return vps.BillLine{}
}

// TestYuan is the worked example of docs/billing.md.
func TestYuan(t *testing.T) {
	t.Parallel()
	in := input(october, yuan())
	live(&in, "alice", "alice", 1, 31)
	live(&in, "bob", "bob", 1, 31)
	live(&in, "carol", "carol", 17, 31)
	gib := int64(vps.GiB)
	send(&in, "alice", 3, vps.TrafficInternet, 20*gib, 5*gib)
	send(&in, "alice", 3, vps.TrafficBetween, 900*gib, 900*gib)
	send(&in, "alice", 3, vps.TrafficDropped, 900*gib, 900*gib)
	send(&in, "bob", 30, vps.TrafficHost, gib/2, 100*gib)
	b := make1(t, in)
	// 94.00/31 a day: 16 days for two, 15 for three.
	want := map[string][4]vps.Money{"alice": {3942, 1060, 265, 5267}, "bob": {3942, 27, 5300, 9269}, "carol": {1516, 0, 0, 1516}}
	for name, amounts := range want {
		l := line(t, b, name, name)
		if got := [4]vps.Money{l.Fixed, l.In.Amount, l.Out.Amount, l.Total}; got != amounts {
			t.Errorf("%s owes %v, want %v", name, got, amounts)
		}
	}
	if b.Fixed != 9400 || b.Total != 9400+1060+265+27+5300 {
		t.Errorf("fixed %d, total %d", b.Fixed, b.Total)
	}
	spans := []vps.BillSpan{{From: "2026-10-01", To: "2026-10-16", Days: 16, Units: 1, Of: 2}, {From: "2026-10-17", To: "2026-10-31", Days: 15, Units: 1, Of: 3}}
	if diff := cmp.Diff(spans, line(t, b, "bob", "bob").Spans); diff != "" {
		t.Error(diff)
	}
	rows := []vps.BillRow{{Step: vps.StepDay, Start: in.Rows[3].Start, TrafficKey: vps.TrafficKey{Class: vps.TrafficHost, Family: 4}, In: gib / 2, Out: 100 * gib}}
	if diff := cmp.Diff(rows, line(t, b, "bob", "bob").Rows); diff != "" {
		t.Error(diff)
	}
}

func TestShareRules(t *testing.T) {
	t.Parallel()
	for rule, want := range map[vps.ShareRule][2]vps.Money{vps.ShareEqual: {4700, 4700}, vps.ShareMemory: {1880, 7520}, vps.ShareWeights: {7050, 2350}} {
		in := input(october, yuan())
		in.Price.Share = rule
		live(&in, "a", "owner", 1, 31)
		live(&in, "b", "owner", 1, 31)
		for i := range in.Lived {
			if d := &in.Lived[i]; d.Guest == "b" {
				d.Memory = 2 * vps.GiB
			} else {
				d.Weight = 300
			}
		}
		b := make1(t, in)
		if got := [2]vps.Money{line(t, b, "owner", "a").Fixed, line(t, b, "owner", "b").Fixed}; got != want {
			t.Errorf("%s: %v, want %v", rule, got, want)
		}
	}
}

// TestNobody: the owner bears the price of days without guests.
func TestNobody(t *testing.T) {
	t.Parallel()
	in := input(october, yuan())
	b := make1(t, in)
	if l := line(t, b, vps.DefaultTenant, ""); l.Fixed != 9400 || l.Days != 31 || len(l.Spans) != 1 || b.Total != 9400 {
		t.Errorf("%+v", b)
	}
	live(&in, "bob", "bob", 10, 10)
	b = make1(t, in)
	if l := line(t, b, vps.DefaultTenant, ""); l.Fixed != 9097 || l.Days != 30 || len(l.Spans) != 2 {
		t.Errorf("%+v", l)
	}
	if l := line(t, b, "bob", "bob"); l.Fixed != 303 {
		t.Errorf("%+v", l)
	}
}

// TestOpenMonth: only the days that passed are billed.
func TestOpenMonth(t *testing.T) {
	t.Parallel()
	in := input(vps.Month{Year: 2028, Month: time.February}, yuan())
	in.State, in.Passed = vps.BillOpen, 10
	live(&in, "bob", "bob", 1, 29)
	if b := make1(t, in); b.Fixed != 3241 || b.Total != 3241 || line(t, b, "bob", "bob").Days != 10 { // 94*10/29
		t.Errorf("%+v", b)
	}
}

// TestMoved: a guest that changes its tenant, and its name, is billed by days,
// and its allowance goes with its traffic.
func TestMoved(t *testing.T) {
	t.Parallel()
	in := input(october, yuan())
	in.Price.FreeOut = 10 * vps.GiB
	live(&in, "web", "bob", 1, 10)
	live(&in, "web", "carol", 11, 31)
	for i := range in.Lived[10:] {
		in.Lived[10+i].Guest = "shop"
	}
	send(&in, "web", 10, vps.TrafficInternet, 0, 30*int64(vps.GiB))
	send(&in, "web", 11, vps.TrafficInternet, 0, 10*int64(vps.GiB))
	b := make1(t, in)
	bob, carol := line(t, b, "bob", "shop"), line(t, b, "carol", "shop")
	if bob.Days != 10 || carol.Days != 21 || bob.Fixed+carol.Fixed != 9400 {
		t.Errorf("%+v\n%+v", bob, carol)
	}
	if bob.Out.Free != 15*int64(vps.GiB)/2 || carol.Out.Free != 5*int64(vps.GiB)/2 {
		t.Errorf("free are %d and %d", bob.Out.Free, carol.Out.Free)
	}
}

func TestAllowances(t *testing.T) {
	t.Parallel()
	gib := int64(vps.GiB)
	for per, want := range map[vps.QuotaScope][3]int64{
		vps.QuotaGuest:  {8 * gib, 10 * gib, 10 * gib},
		vps.QuotaTenant: {2 * gib, 8 * gib, 10 * gib}, // a and b share 10 by 8 to 32
		vps.QuotaHost:   {gib, 4 * gib, 5 * gib},      // 8, 32 and 40 share 10
	} {
		in := input(october, yuan())
		in.Price.FreeIn, in.Price.FreePer = 10*vps.GiB, per
		for name, received := range map[string]int64{"a": 8, "b": 32, "c": 40} {
			live(&in, name, strings.Replace(name, "b", "a", 1), 1, 31)
			send(&in, name, 1, vps.TrafficInternet, received*gib, 7)
		}
		b := make1(t, in)
		got := [3]int64{line(t, b, "a", "a").In.Free, line(t, b, "a", "b").In.Free, line(t, b, "c", "c").In.Free}
		if got != want {
			t.Errorf("for each %s free are %v, want %v", per, got, want)
		}
	}
}

// TestStrangers: traffic of guests that were not there belongs to somebody all
// the same.
func TestStrangers(t *testing.T) {
	t.Parallel()
	in := input(october, yuan())
	in.Tenants = map[string]string{"id-old": "bob"}
	send(&in, "old", 1, vps.TrafficInternet, 0, int64(vps.GiB))
	send(&in, "odd", 1, vps.TrafficInternet, 0, int64(vps.GiB))
	b := make1(t, in)
	if line(t, b, "bob", "old").Total != 53 || line(t, b, vps.DefaultTenant, "odd").Total != 53 || b.Total != 9400+2*53 {
		t.Errorf("%+v", b)
	}
}

// TestZone: a row belongs to the day that it begins on in the host's zone.
func TestZone(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("east", 8*3600)
	in := input(october, yuan())
	in.Zone = zone
	live(&in, "web", "bob", 1, 10)
	live(&in, "web", "carol", 11, 31)
	send(&in, "web", 11, vps.TrafficInternet, 0, int64(vps.GiB))
	if b := make1(t, in); line(t, b, "carol", "web").Out.Amount != 53 {
		t.Errorf("%+v", b)
	}
}

func TestTooMuch(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bill.Input){
		"bytes of a guest": func(in *bill.Input) {
			send(in, "a", 1, vps.TrafficInternet, math.MaxInt64, 0)
			send(in, "a", 2, vps.TrafficInternet, 1, 0)
		},
		"bytes of a pool": func(in *bill.Input) {
			in.Price.FreePer = vps.QuotaHost
			for _, name := range []string{"a", "b", "c"} {
				send(in, name, 1, vps.TrafficInternet, math.MaxInt64, 0)
			}
		},
		"an amount": func(in *bill.Input) {
			in.Price.Currency, in.Price.Out = "CLF", vps.MaxPrice*vps.DecimalOne
			send(in, "a", 1, vps.TrafficInternet, 0, math.MaxInt64)
		},
	} {
		in := input(october, yuan())
		live(&in, "a", "owner", 1, 31)
		change(&in)
		if b, err := bill.Make(in); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), "2026-10") {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
}

// draw makes up a month.
func draw(t *rapid.T) bill.Input {
	m := vps.Month{Year: rapid.IntRange(2024, 2030).Draw(t, "year"), Month: time.Month(rapid.IntRange(1, 12).Draw(t, "month"))}
	p := vps.Price{
		Currency: rapid.SampledFrom([]string{"CNY", "JPY", "KWD", "CLF"}).Draw(t, "currency"),
		Month:    vps.Decimal(rapid.Int64Range(0, 100_000).Draw(t, "fixed")) * vps.DecimalOne,
		Share:    rapid.SampledFrom([]vps.ShareRule{vps.ShareEqual, vps.ShareMemory, vps.ShareWeights}).Draw(t, "share"),
		In:       vps.Decimal(rapid.Int64Range(0, 5_000_000).Draw(t, "in")), Out: vps.Decimal(rapid.Int64Range(0, 5_000_000).Draw(t, "out")),
		FreeIn: vps.Bytes(rapid.Int64Range(0, 1<<40).Draw(t, "free in")), FreeOut: vps.Bytes(rapid.Int64Range(0, 1<<40).Draw(t, "free out")),
		FreePer: rapid.SampledFrom([]vps.QuotaScope{vps.QuotaGuest, vps.QuotaTenant, vps.QuotaHost}).Draw(t, "per"),
	}
	in := input(m, p)
	in.Passed = rapid.IntRange(1, m.Days()).Draw(t, "passed")
	for _, name := range []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(0, 5).Draw(t, "guests")] {
		for day := 1; day <= m.Days(); day++ {
			if rapid.IntRange(0, 3).Draw(t, "there") == 0 {
				continue
			}
			live(&in, name, rapid.SampledFrom([]string{"owner", "bob"}).Draw(t, "tenant"), day, day)
			d := &in.Lived[len(in.Lived)-1]
			d.Memory, d.Weight = vps.Bytes(rapid.Int64Range(1, 1<<18).Draw(t, "memory"))*4096, rapid.IntRange(1, vps.MaxBillingWeight).Draw(t, "weight")
		}
		for range rapid.IntRange(0, 5).Draw(t, "rows") {
			class := rapid.SampledFrom(vps.TrafficClasses()).Draw(t, "class")
			send(&in, name, rapid.IntRange(1, m.Days()).Draw(t, "day"), class, rapid.Int64Range(0, 1<<41).Draw(t, "received"), rapid.Int64Range(0, 1<<41).Draw(t, "sent"))
		}
	}
	return in
}

func made(t *rapid.T, in bill.Input) vps.Bill {
	b, err := bill.Make(in)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSums: every bill adds up to the minor unit, nobody is charged less than
// nothing, and each share is less than a minor unit off the exact one.
func TestSums(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := draw(t)
		b := made(t, in)
		var total, fixed vps.Money
		var received, sent int64
		days := 0
		for _, bt := range b.Tenants {
			var owes vps.Money
			for _, l := range bt.Lines {
				checkLine(t, in, b, l)
				owes += l.Total
				fixed += l.Fixed
				received += l.In.Bytes
				sent += l.Out.Bytes
				if l.GuestID != "" {
					days += l.Days
				}
			}
			if owes != bt.Total {
				t.Fatalf("%s owes %d, its lines %d", bt.Tenant, bt.Total, owes)
			}
			total += bt.Total
		}
		if total != b.Total || fixed != b.Fixed {
			t.Fatalf("total %d of lines, %d of the bill; fixed %d and %d", total, b.Total, fixed, b.Fixed)
		}
		exact := new(big.Rat).Mul(big.NewRat(int64(in.Price.MonthMoney()), 1), big.NewRat(int64(in.Passed), int64(in.Month.Days())))
		if diff := exact.Sub(exact, big.NewRat(int64(b.Fixed), 1)); diff.Abs(diff).Cmp(big.NewRat(1, 2)) > 0 {
			t.Fatalf("the fixed price is %d, %s off", b.Fixed, diff)
		}
		for _, r := range in.Rows {
			if r.Class.Billed() {
				received -= r.InBytes
				sent -= r.OutBytes
			}
		}
		for _, d := range in.Lived {
			if d.Day <= in.Month.Day(in.Passed) {
				days--
			}
		}
		if received != 0 || sent != 0 || days != 0 {
			t.Fatalf("%d bytes in, %d out and %d days are too many", received, sent, days)
		}
	})
}

func checkLine(t *rapid.T, in bill.Input, b vps.Bill, l vps.BillLine) {
	if l.Fixed < 0 || l.In.Amount < 0 || l.Out.Amount < 0 || l.Total != l.Fixed+l.In.Amount+l.Out.Amount {
		t.Fatalf("%+v does not add up", l)
	}
	if l.In.Free < 0 || l.In.Free > l.In.Bytes || l.Out.Free < 0 || l.Out.Free > l.Out.Bytes {
		t.Fatalf("more is free than there is: %+v", l)
	}
	var received, sent int64
	for _, r := range l.Rows {
		received += r.In
		sent += r.Out
	}
	if received != l.In.Bytes || sent != l.Out.Bytes {
		t.Fatalf("the rows do not add up: %+v", l)
	}
	share, days := new(big.Rat), 0
	for _, s := range l.Spans {
		share.Add(share, big.NewRat(int64(s.Days)*s.Units, s.Of))
		days += s.Days
	}
	if days != l.Days {
		t.Fatalf("%d days in spans: %+v", days, l)
	}
	share.Mul(share, big.NewRat(int64(b.Fixed), int64(in.Passed))).Sub(share, big.NewRat(int64(l.Fixed), 1))
	if share.Abs(share).Cmp(big.NewRat(1, 1)) >= 0 {
		t.Fatalf("the fixed price is off by %s: %+v", share, l)
	}
}

// TestOrder: the order of what comes in changes nothing. Rows of one class on
// one day, which no ledger has, stay in it.
func TestOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := draw(t)
		b := made(t, in)
		shuffle := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		in.Lived, in.Rows = slices.Clone(in.Lived), slices.Clone(in.Rows)
		shuffle.Shuffle(len(in.Lived), func(i, j int) { in.Lived[i], in.Lived[j] = in.Lived[j], in.Lived[i] })
		shuffle.Shuffle(len(in.Rows), func(i, j int) { in.Rows[i], in.Rows[j] = in.Rows[j], in.Rows[i] })
		if diff := cmp.Diff(b.WithoutRows(), made(t, in).WithoutRows()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestMore: more traffic of a guest never makes it cheaper.
func TestMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := draw(t)
		if len(in.Rows) == 0 {
			return
		}
		owes := func(b vps.Bill, id string) (sum vps.Money) {
			for _, bt := range b.Tenants {
				for _, l := range bt.Lines {
					if l.GuestID == id {
						sum += l.Total
					}
				}
			}
			return sum
		}
		i := rapid.IntRange(0, len(in.Rows)-1).Draw(t, "row")
		id := in.Rows[i].GuestID
		before := owes(made(t, in), id)
		in.Rows = slices.Clone(in.Rows)
		in.Rows[i].InBytes += rapid.OneOf(rapid.Int64Range(0, 3), rapid.Int64Range(0, 1<<42)).Draw(t, "more in")
		in.Rows[i].OutBytes += rapid.OneOf(rapid.Int64Range(0, 3), rapid.Int64Range(0, 1<<42)).Draw(t, "more out")
		if after := owes(made(t, in), id); after < before {
			t.Fatalf("%s owes %d with more traffic, and %d before", id, after, before)
		}
	})
}

// TestFor: a tenant's part has what it owes and nothing of others.
func TestFor(t *testing.T) {
	t.Parallel()
	in := input(october, yuan())
	live(&in, "alice", "alice", 1, 31)
	live(&in, "bob", "bob", 1, 31)
	b := make1(t, in).For("bob")
	if len(b.Tenants) != 1 || b.Total != 4700 || b.Fixed != 4700 || line(t, b, "bob", "bob").Total != 4700 {
		t.Errorf("%+v", b)
	}
	if none := make1(t, in).For("dora"); len(none.Tenants) != 0 || none.Total != 0 || none.Fixed != 0 {
		t.Errorf("%+v", none)
	}
}
