package meter_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sublet/internal/meter"
	"sublet/internal/vps"
)

// noon is in the middle of the month that begins on 2026-10-31 in Shanghai.
var noon = time.Date(2026, 11, 10, 12, 0, 0, 0, time.UTC)

func quotaOf(change func(*vps.Quota), steps ...string) vps.Quota {
	q := vps.NewQuota(vps.QuotaGuest, "alice", "Asia/Shanghai")
	q.Limit, q.ResetDay, q.Steps = 1000*vps.MiB, 31, nil
	for _, s := range steps {
		step, err := vps.ParseQuotaStep(s)
		if err != nil {
			panic(err)
		}
		q.Steps = append(q.Steps, step)
	}
	if change != nil {
		change(&q)
	}
	return q
}

// used is an account of so many MiB, all received.
func used(q *vps.Quota, mib int64, now time.Time) []vps.QuotaAccount {
	start, _ := q.Period(now)
	return []vps.QuotaAccount{{ID: q.ID(), Start: start, In: mib * int64(vps.MiB)}}
}

// hostOf has alice and bob, both of the tenant t.
func hostOf() vps.Host {
	var h vps.Host
	for _, name := range []string{"alice", "bob"} {
		g := vps.Guest{ID: "id-" + name, Spec: vps.NewGuestSpec(name)}
		g.Spec.Tenant = "t"
		h.Guests = append(h.Guests, g)
	}
	return h
}

func shaped(string, vps.BitRate) bool { return true }

// summary is what follows from a state, in few words.
func summary(states []meter.QuotaState) string {
	var b strings.Builder
	for _, s := range states {
		for _, r := range s.New {
			fmt.Fprintf(&b, "new %s; ", r.Step)
		}
		for _, r := range s.Undone {
			fmt.Fprintf(&b, "undone %s; ", r.Step)
		}
		if s.Use.Action != "" {
			fmt.Fprintf(&b, "%s %s; ", s.Use.Action, s.Use.Rate)
		}
		if s.Use.GraceUntil != nil {
			fmt.Fprintf(&b, "grace %s; ", s.Use.GraceUntil.Sub(noon))
		}
	}
	h := hostOf()
	meter.Restrain(states, &h)
	quotas, suspended := meter.KernelQuotas(states, &h, noon, shaped)
	for _, k := range quotas {
		fmt.Fprintf(&b, "kernel %v", k.Links)
		if k.Block >= 0 {
			fmt.Fprintf(&b, " block %s", vps.Bytes(k.Block).Exact())
		}
		if k.Throttle >= 0 {
			fmt.Fprintf(&b, " throttle %s %s", vps.Bytes(k.Throttle).Exact(), k.Rate)
		}
		b.WriteString("; ")
	}
	if len(suspended) > 0 {
		fmt.Fprintf(&b, "suspended %v", suspended)
	}
	return strings.TrimSuffix(strings.TrimSpace(b.String()), ";")
}

func TestEvaluateQuotas(t *testing.T) {
	t.Parallel()
	ladder := []string{"80%=notify", "100%=throttle:1Mbit", "110%=suspend-network", "120%=stop"}
	grace := func(q *vps.Quota) { q.Grace = vps.Duration(time.Hour) }
	month := func(q *vps.Quota) string { return q.Month(noon) }
	reached := func(at time.Duration, steps ...string) []vps.QuotaReached {
		q := quotaOf(nil, steps...)
		start, _ := q.Period(noon)
		var all []vps.QuotaReached
		for _, s := range q.Steps {
			all = append(all, vps.QuotaReached{Quota: q.ID(), Start: start, Step: s, At: noon.Add(at)})
		}
		return all
	}
	tests := []struct {
		name    string
		quota   vps.Quota
		mib     int64
		reached []vps.QuotaReached
		want    string
	}{
		{"nothing used", quotaOf(nil, ladder...), 0, nil, "kernel [sl-alice] block 1100MiB throttle 1000MiB 1Mbit"},
		{"told", quotaOf(nil, ladder...), 800, nil, "new 80%=notify; kernel [sl-alice] block 1100MiB throttle 1000MiB 1Mbit"},
		{"told before", quotaOf(nil, ladder...), 900, reached(-time.Hour, "80%=notify"), "kernel [sl-alice] block 1100MiB throttle 1000MiB 1Mbit"},
		{"one byte is missing", quotaOf(func(q *vps.Quota) { q.Limit = 1000*vps.MiB + 1 }, "100%=stop"), 1000, nil, "kernel [sl-alice] block 1048576001B"},
		{"throttled", quotaOf(nil, ladder...), 1000, reached(-time.Hour, "80%=notify"), "new 100%=throttle:1Mbit; throttle 1Mbit; kernel [sl-alice] block 1100MiB"},
		{"a jump tells of all", quotaOf(nil, ladder...), 5000, nil, "new 80%=notify; new 100%=throttle:1Mbit; new 110%=suspend-network; new 120%=stop; stop 0; suspended [sl-alice]"},
		{"suspended", quotaOf(nil, ladder...), 1150, reached(-time.Hour, ladder[:3]...), "suspend-network 0; kernel [sl-alice] block 1200MiB; suspended [sl-alice]"},
		{"a slower throttle comes next", quotaOf(nil, "50%=throttle:10Mbit", "100%=throttle:1Mbit", "120%=throttle:5Mbit"), 600, reached(-time.Hour, "50%=throttle:10Mbit"), "throttle 10Mbit; kernel [sl-alice] throttle 1000MiB 1Mbit"},
		{"a faster throttle changes nothing", quotaOf(nil, "50%=throttle:1Mbit", "100%=throttle:10Mbit"), 2000, reached(-time.Hour, "50%=throttle:1Mbit", "100%=throttle:10Mbit"), "throttle 1Mbit"},
		{"only told", quotaOf(nil, "80%=notify", "100%=notify"), 10, nil, ""},
		{"grace begins", quotaOf(grace, ladder[1:]...), 1000, nil, "new 100%=throttle:1Mbit; grace 1h0m0s"},
		{"grace goes on", quotaOf(grace, ladder...), 1000, reached(-time.Minute, ladder[:2]...), "grace 59m0s"},
		{"grace is over", quotaOf(grace, ladder...), 1100, reached(-time.Hour, ladder[:2]...), "new 110%=suspend-network; throttle 1Mbit; grace 1h0m0s"},
		{"grace, and the clock was stepped back", quotaOf(grace, ladder...), 1000, reached(100*time.Hour, ladder[:2]...), "grace 1h0m0s"},
		{"topped up", quotaOf(func(q *vps.Quota) { q.Topup, q.TopupMonth = 500*vps.MiB, month(q) }, "80%=notify", "100%=stop"), 1000, reached(-time.Hour, "80%=notify", "100%=stop"), "undone 80%=notify; undone 100%=stop; kernel [sl-alice] block 1500MiB"},
		{"topped up, for another month", quotaOf(func(q *vps.Quota) { q.Topup, q.TopupMonth = 500*vps.MiB, "2026-09-30" }, "100%=stop"), 1000, reached(-time.Hour, "100%=stop"), "stop 0; suspended [sl-alice]"},
		{"lifted", quotaOf(func(q *vps.Quota) { q.LiftedMonth = month(q) }, ladder...), 1100, reached(-time.Hour, ladder[:2]...), "new 110%=suspend-network"},
		{"lifted, for another month", quotaOf(func(q *vps.Quota) { q.LiftedMonth = "2026-09-30" }, "100%=stop"), 1100, reached(-time.Hour, "100%=stop"), "stop 0; suspended [sl-alice]"},
		{"of the tenant", quotaOf(func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaTenant, "t" }, "100%=suspend-network"), 1, nil, "kernel [sl-alice sl-bob] block 1000MiB"},
		{"of the tenant, suspended", quotaOf(func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaTenant, "t" }, "100%=suspend-network"), 1000, nil, "new 100%=suspend-network; suspend-network 0; suspended [sl-alice sl-bob]"},
		{"of the host", quotaOf(func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaHost, "" }, "100%=suspend-network"), 1, nil, "kernel [] block 1000MiB"},
		{"of the host, suspended", quotaOf(func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaHost, "" }, "100%=suspend-network"), 1000, nil, "new 100%=suspend-network; suspend-network 0; suspended [sl-alice sl-bob]"},
		{"beyond what can be counted", quotaOf(func(q *vps.Quota) { q.Limit = 1<<63 - 1 }, "100%=suspend-network", "1000%=stop"), 1 << 40, nil, "kernel [sl-alice] block 9223372036854775807B"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			quotas := []vps.Quota{tt.quota}
			if got := summary(meter.EvaluateQuotas(quotas, used(&tt.quota, tt.mib, noon), tt.reached, noon)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestQuotaResets(t *testing.T) {
	t.Parallel()
	tests := []struct {
		zone       string
		day        int
		start, end string // the month of the account, and the last moment in it
	}{
		{"Etc/UTC", 31, "2027-02-28T00:00:00Z", "2027-03-30T23:59:59Z"},
		{"Etc/UTC", 31, "2027-01-31T00:00:00Z", "2027-02-27T23:59:59Z"},
		{"Asia/Shanghai", 1, "2026-10-31T16:00:00Z", "2026-11-30T15:59:59Z"},
		{"Europe/Berlin", 25, "2026-09-24T22:00:00Z", "2026-10-24T21:59:59Z"},
		{"Europe/Berlin", 26, "2026-10-25T23:00:00Z", "2026-11-25T22:59:59Z"}, // the day after clocks are set back
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.zone, tt.day), func(t *testing.T) {
			t.Parallel()
			q := quotaOf(func(q *vps.Quota) { q.Timezone, q.ResetDay = tt.zone, tt.day }, "50%=notify", "100%=stop")
			at := func(s string) time.Time {
				parsed, err := time.Parse(time.RFC3339, s)
				if err != nil {
					t.Fatal(err)
				}
				return parsed
			}
			account := []vps.QuotaAccount{{ID: q.ID(), Start: at(tt.start), In: 1 << 40}}
			last := meter.EvaluateQuotas([]vps.Quota{q}, account, nil, at(tt.end))[0]
			if last.Use.Action != vps.ActionStop || !last.Next.Equal(at(tt.end).Add(time.Second)) {
				t.Errorf("in the last second: %q, until %s", last.Use.Action, last.Next)
			}
			// The ledger has not begun the new month yet.
			next := meter.EvaluateQuotas([]vps.Quota{q}, account, last.New, last.Next)[0]
			if next.Use.Action != "" || next.Use.Used != 0 || len(next.New)+len(next.Undone) != 0 || !next.Use.Start.Equal(last.Use.End) {
				t.Errorf("after the reset: %+v", next)
			}
			// A step of the month before is told again in the new one.
			account[0].Start = next.Use.Start
			if again := meter.EvaluateQuotas([]vps.Quota{q}, account, last.New, last.Next)[0]; len(again.New) != 2 {
				t.Errorf("in the new month: %v", again.New)
			}
			// A clock that goes back over the reset finds its steps told.
			account[0].Start = at(tt.start)
			if back := meter.EvaluateQuotas([]vps.Quota{q}, account, last.New, at(tt.end))[0]; len(back.New) != 0 || back.Use.Action != vps.ActionStop {
				t.Errorf("back in the old month: %q, %v", back.Use.Action, back.New)
			}
		})
	}
}

func TestTheStrictestWins(t *testing.T) {
	t.Parallel()
	of := func(scope vps.QuotaScope, name, step string) vps.Quota {
		return quotaOf(func(q *vps.Quota) { q.Scope, q.Name = scope, name }, step)
	}
	tests := []struct {
		name              string
		host, tenant, own string
		alice, bob        string
	}{
		{"a slower throttle", "100%=throttle:5Mbit", "100%=throttle:1Mbit", "100%=throttle:2Mbit", "throttled to 1Mbit by the quota tenant/t", "throttled to 1Mbit by the quota tenant/t"},
		{"suspended over throttled", "100%=throttle:5Mbit", "500%=stop", "100%=suspend-network", "network suspended by the quota guest/alice", "throttled to 5Mbit by the quota host"},
		{"stopped over all", "100%=suspend-network", "100%=notify", "100%=stop", "stopped by the quota guest/alice", "network suspended by the quota host"},
		{"told only", "100%=notify", "100%=notify", "100%=notify", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			quotas := []vps.Quota{of(vps.QuotaHost, "", tt.host), of(vps.QuotaTenant, "t", tt.tenant), of(vps.QuotaGuest, "alice", tt.own)}
			var accounts []vps.QuotaAccount
			for i := range quotas {
				accounts = append(accounts, used(&quotas[i], 1000, noon)...)
			}
			h := hostOf()
			meter.Restrain(meter.EvaluateQuotas(quotas, accounts, nil, noon), &h)
			for i, want := range []string{tt.alice, tt.bob} {
				got := ""
				if r := h.Guests[i].Restraint; r != nil {
					got = r.String()
				}
				if got != want {
					t.Errorf("%s: got %q, want %q", h.Guests[i].Spec.Name, got, want)
				}
			}
		})
	}
}

// TestTheKernelHoldsAThrottleUntilItIsShaped: there is no moment without one.
func TestTheKernelHoldsAThrottleUntilItIsShaped(t *testing.T) {
	t.Parallel()
	q := quotaOf(func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaTenant, "t" }, "100%=throttle:1Mbit", "200%=suspend-network")
	states := meter.EvaluateQuotas([]vps.Quota{q}, used(&q, 1000, noon), nil, noon)
	h := hostOf()
	meter.Restrain(states, &h)
	for _, n := range []string{"", "sl-alice", "sl-bob"} {
		quotas, _ := meter.KernelQuotas(states, &h, noon, func(link string, rate vps.BitRate) bool { return rate == vps.Mbit && link != n })
		want := int64(0)
		if n == "" {
			want = -1
		}
		if len(quotas) != 1 || quotas[0].Throttle != want || quotas[0].Block < 0 {
			t.Errorf("without a shape on %q: %+v", n, quotas)
		}
	}
}

func TestTellAndForecast(t *testing.T) {
	t.Parallel()
	q := quotaOf(func(q *vps.Quota) { q.Grace = vps.Duration(2 * time.Hour) }, "80%=notify", "100%=throttle:1Mbit", "100%=stop")
	s := meter.EvaluateQuotas([]vps.Quota{q}, used(&q, 1000, noon), nil, noon)[0]
	var got []string
	for _, r := range s.New {
		got = append(got, s.Tell(r, noon))
	}
	want := []string{
		"80% of the quota of the guest alice is used: 1000MiB of 1000MiB since 2026-10-31",
		"100% of the quota of the guest alice is used: 1000MiB of 1000MiB since 2026-10-31; its network is throttled to 1Mbit from 2026-11-10 22:00 CST until 2026-11-30 00:00 CST",
		"100% of the quota of the guest alice is used: 1000MiB of 1000MiB since 2026-10-31; it is stopped from 2026-11-10 22:00 CST until 2026-11-30 00:00 CST",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	day := 24 * time.Hour.Seconds()
	for _, tt := range []struct {
		count   vps.QuotaCount
		in, out float64 // MiB a day
		want    time.Duration
	}{
		{vps.CountBoth, 100, 25, 4 * 24 * time.Hour},
		{vps.CountIn, 100, 1e9, 5 * 24 * time.Hour},
		{vps.CountOut, 1e9, 200, 5 * 24 * time.Hour},
		{vps.CountMax, 100, 500, 2 * 24 * time.Hour},
		{vps.CountIn, 0, 1, 0},
		{vps.CountIn, 1, 1, 0},
	} {
		u := vps.QuotaUse{Quota: q, End: noon.Add(10 * 24 * time.Hour), Limit: 1000 * int64(vps.MiB)}
		u.Quota.Count = tt.count
		if u.In = 500 * int64(vps.MiB); tt.count == vps.CountOut {
			u.In = 0
		}
		u.Used = u.Quota.Count.Used(u.In, u.Out)
		at := meter.ForecastQuota(&u, tt.in*float64(vps.MiB)/day, tt.out*float64(vps.MiB)/day, noon)
		if tt.want == 0 && at != nil || tt.want != 0 && (at == nil || at.Sub(noon) != tt.want) {
			t.Errorf("%s: %v, want after %s", tt.count, at, tt.want)
		}
	}
}

// TestTellTenant: a tenant hears what the host's quota means for him, and not
// how much the host has.
func TestTellTenant(t *testing.T) {
	t.Parallel()
	host := func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaHost, "" }
	const begin = "100% of the traffic that the whole host may have in its month is used; "
	for name, tt := range map[string]struct {
		change func(*vps.Quota)
		step   string
		want   string
		acts   bool
	}{
		"throttled":         {host, "100%=throttle:1Mbit", begin + "the network of all guests of bob is throttled to 1Mbit until 2026-11-30 00:00 CST", true},
		"suspended":         {host, "100%=suspend-network", begin + "the network of all guests of bob is suspended until 2026-11-30 00:00 CST", true},
		"stopped":           {host, "100%=stop", begin + "all guests of bob are stopped until 2026-11-30 00:00 CST", true},
		"after grace":       {func(q *vps.Quota) { host(q); q.Grace = vps.Duration(2 * time.Hour) }, "100%=stop", begin + "all guests of bob are stopped from 2026-11-10 22:00 CST until 2026-11-30 00:00 CST", true},
		"grace outlasts it": {func(q *vps.Quota) { host(q); q.Grace = vps.Duration(720 * time.Hour) }, "100%=stop", begin + "the month ends before the grace does", false},
	} {
		q := quotaOf(tt.change, tt.step)
		s := meter.EvaluateQuotas([]vps.Quota{q}, used(&q, 1000, noon), nil, noon)[0]
		r := s.New[0]
		if got := s.TellTenant(r, noon, "bob"); got != tt.want || s.Acts(r, noon) != tt.acts {
			t.Errorf("%s: %q, acts: %v", name, got, s.Acts(r, noon))
		}
		if data := string(s.TenantData(r, noon)); strings.Contains(data, "used") || strings.Contains(data, "limit") || strings.Contains(data, `"from"`) != tt.acts {
			t.Errorf("%s: %s", name, data)
		}
		if data := string(s.Data(r, noon)); !strings.Contains(data, `"used":`) || !strings.Contains(data, `"limit":`) || !strings.Contains(data, `"quota":"host"`) {
			t.Errorf("%s, to the owner: %s", name, data)
		}
	}
}

func TestQuotaPaces(t *testing.T) {
	t.Parallel()
	h := hostOf()
	day := func(n int) time.Time { return noon.Truncate(24*time.Hour).AddDate(0, 0, -n) }
	h.Tenants = []vps.Tenant{{Name: "t", Created: day(80)}, {Name: "u", Created: day(80)}}
	row := func(guest string, class vps.TrafficClass, start time.Time, in, out int64) vps.TrafficRow {
		return vps.TrafficRow{GuestID: guest, Tenant: "t", TenantMade: day(80), Start: start, TrafficKey: vps.TrafficKey{Class: class}, TrafficCount: vps.TrafficCount{InBytes: in, OutBytes: out}}
	}
	rows := []vps.TrafficRow{
		row("id-alice", vps.TrafficInternet, day(2), 1000, 100), row("id-alice", vps.TrafficHost, day(0), 500, 50),
		row("id-alice", vps.TrafficBetween, day(2), 1e9, 1e9), row("id-alice", vps.TrafficDropped, day(2), 1e9, 1e9),
		row("id-bob", vps.TrafficInternet, day(4), 10, 1), row("", vps.TrafficUplink, day(2), 9000, 90), row("id-gone", vps.TrafficInternet, day(6), 70, 7),
	}
	before := row("id-alice", vps.TrafficInternet, day(6), 200, 20) // she was another's
	before.Tenant = "v"
	namesake := row("id-gone", vps.TrafficInternet, day(6), 1e9, 1e9) // of a tenant who had the name before
	namesake.TenantMade = day(100)
	rows = append(rows, before, namesake)
	tests := []struct {
		name  string
		scope vps.QuotaScope
		of    string
		made  time.Time
		in    float64 // in all
		span  time.Duration
	}{
		{"a guest", vps.QuotaGuest, "alice", day(90), 1700, noon.Sub(day(6))},
		{"a guest that was made yesterday", vps.QuotaGuest, "alice", day(1), 1700, noon.Sub(day(1))},
		{"a guest that was just made", vps.QuotaGuest, "alice", noon.Add(-time.Minute), 0, time.Hour},
		{"a tenant", vps.QuotaTenant, "t", day(90), 1580, noon.Sub(day(6))},
		{"the host", vps.QuotaHost, "", day(1), 9000, noon.Sub(day(2))},
		{"nobody", vps.QuotaTenant, "u", day(90), 0, time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := vps.Host{Guests: slices.Clone(h.Guests), Tenants: h.Tenants}
			for i := range h.Guests {
				h.Guests[i].Created = tt.made
			}
			q := quotaOf(func(q *vps.Quota) { q.Scope, q.Name = tt.scope, tt.of })
			in, out := meter.NewQuotaPaces(&h, rows, noon).Of(&q)
			if want := tt.in / tt.span.Seconds(); in != want || out > in {
				t.Errorf("got %g and %g, want %g received", in, out, want)
			}
		})
	}
}

// TestStepsOnceAMonth lets traffic, clocks, edits and restarts come in any
// order: each step is told once for each time that it is reached, at once when
// it is, nothing is in force that was not told, and whatever can be used up
// next is held by the kernel.
func TestStepsOnceAMonth(t *testing.T) {
	t.Parallel()
	all := []string{"10%=notify", "50%=throttle:10Mbit", "80%=notify", "100%=throttle:1Mbit", "100%=suspend-network", "120%=stop"}
	rapid.Check(t, func(t *rapid.T) {
		steps := rapid.SliceOfDistinct(rapid.SampledFrom(all), rapid.ID[string]).Draw(t, "steps")
		slices.SortFunc(steps, func(a, b string) int { return slices.Index(all, a) - slices.Index(all, b) })
		q := quotaOf(func(q *vps.Quota) {
			q.ResetDay = rapid.IntRange(1, 31).Draw(t, "day")
			q.Timezone = rapid.SampledFrom([]string{"Etc/UTC", "Asia/Shanghai", "America/Sao_Paulo", "Europe/Berlin"}).Draw(t, "zone")
			q.Grace = vps.Duration(rapid.SampledFrom([]time.Duration{0, 0, time.Hour}).Draw(t, "grace"))
		}, steps...)
		now := noon
		var kept []vps.QuotaReached // what a store would have
		account := used(&q, 0, now)
		for range rapid.IntRange(1, 40).Draw(t, "turns") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1, 2:
				account[0].In += int64(rapid.IntRange(0, 400).Draw(t, "MiB")) * int64(vps.MiB)
			case 3:
				now = now.Add(time.Duration(rapid.IntRange(-2, 20*24).Draw(t, "hours")) * time.Hour)
			case 4:
				q.TopupMonth = q.Month(now)
				q.Topup += 300 * vps.MiB
			case 5:
				q.LiftedMonth = rapid.SampledFrom([]string{"", q.Month(now)}).Draw(t, "lifted")
			}
			if start, _ := q.Period(now); !start.Equal(account[0].Start) {
				account = used(&q, 0, now)
			}
			s := meter.EvaluateQuotas([]vps.Quota{q}, account, kept, now)[0]
			kept = slices.DeleteFunc(kept, func(r vps.QuotaReached) bool { return slices.Contains(s.Undone, r) })
			for _, r := range s.New {
				if slices.ContainsFunc(kept, func(k vps.QuotaReached) bool { return k.Step == r.Step && k.Start.Equal(r.Start) }) {
					t.Fatalf("%s is told twice", r.Step)
				}
			}
			kept = append(kept, s.New...)
			again := meter.EvaluateQuotas([]vps.Quota{q}, account, kept, now)[0]
			if len(again.New)+len(again.Undone) != 0 || again.Use.Action != s.Use.Action {
				t.Fatalf("the same once more: %+v", again)
			}
			check(t, &q, &again, kept, now)
		}
	})
}

// check compares a state with what the steps say, one by one.
func check(t *rapid.T, q *vps.Quota, s *meter.QuotaState, kept []vps.QuotaReached, now time.Time) {
	limit := q.LimitAt(now)
	h := hostOf()
	meter.Restrain([]meter.QuotaState{*s}, &h)
	kernel, suspended := meter.KernelQuotas([]meter.QuotaState{*s}, &h, now, shaped)
	for _, step := range q.Steps {
		reached := s.Use.Used >= step.At(limit)
		told := slices.ContainsFunc(kept, func(k vps.QuotaReached) bool { return k.Step == step && k.Start.Equal(s.Use.Start) })
		if reached != told {
			t.Fatalf("%s at %s of %s: told %v", step, vps.Bytes(s.Use.Used), limit, told)
		}
		hold := step.Action == vps.ActionSuspend || step.Action == vps.ActionStop
		lifted := q.LiftedAt(now)
		switch {
		case lifted && (s.Use.Action != "" || len(kernel) > 0):
			t.Fatalf("lifted, and %q with %v in the kernel", s.Use.Action, kernel)
		case !lifted && hold && reached && q.Grace == 0 && len(suspended) != 1:
			t.Fatalf("%s is reached, and nothing is suspended", step)
		case !lifted && hold && !reached && q.Grace == 0 && len(suspended) == 0 && (len(kernel) != 1 || kernel[0].Block < s.Use.Used):
			t.Fatalf("%s is not reached, and the kernel holds %v", step, kernel)
		}
	}
	if !s.Next.After(now) {
		t.Fatalf("the next change was at %s, and it is %s", s.Next, now)
	}
}

// BenchmarkQuotas is what a sample of 1,000 guests costs, each with a quota.
func BenchmarkQuotas(b *testing.B) {
	var h vps.Host
	var quotas []vps.Quota
	var accounts []vps.QuotaAccount
	var reached []vps.QuotaReached
	for i := range 1000 {
		name := fmt.Sprintf("guest%d", i)
		h.Guests = append(h.Guests, vps.Guest{ID: name, Spec: vps.NewGuestSpec(name)})
		q := quotaOf(func(q *vps.Quota) { q.Name = name }, "80%=notify", "100%=throttle:1Mbit", "110%=suspend-network")
		quotas = append(quotas, q)
		accounts = append(accounts, used(&q, 1050, noon)...)
		reached = append(reached, meter.EvaluateQuotas(quotas[i:], accounts[i:], nil, noon)[0].New...)
	}
	for b.Loop() {
		states := meter.EvaluateQuotas(quotas, accounts, reached, noon)
		meter.Restrain(states, &h)
		if kernel, _ := meter.KernelQuotas(states, &h, noon, shaped); len(kernel) != 1000 {
			b.Fatal(len(kernel))
		}
	}
}
