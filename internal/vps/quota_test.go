package vps_test

import (
	"math"
	"math/big"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the same zones wherever the test runs

	"pgregory.net/rapid"

	"sublet/internal/vps"
)

// zonesOfNote are zones whose clocks do what makes the begin of a day hard to
// tell: they skip midnight (Sao Paulo, Beirut), show it twice (Havana, Azores),
// are set back just behind it (St John's), skip a whole day (Apia, Kwajalein),
// or are off by odd amounts (Lord Howe, Kathmandu, Monrovia before 1972).
var zonesOfNote = []string{
	"Etc/UTC", "Asia/Shanghai", "America/Sao_Paulo", "Asia/Beirut", "America/Havana", "Atlantic/Azores",
	"America/St_Johns", "Pacific/Apia", "Pacific/Kwajalein", "Australia/Lord_Howe", "Asia/Kathmandu",
	"Africa/Monrovia", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Africa/Cairo", "Asia/Tehran",
}

func zone(t rapid.TB, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestQuotaPeriod draws moments from 1880 to 2200, and around changes of
// clocks.
func TestQuotaPeriod(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(zonesOfNote).Draw(t, "zone")
		l := zone(t, name)
		q := vps.NewQuota(vps.QuotaHost, "", name)
		q.ResetDay = rapid.IntRange(1, 31).Draw(t, "reset day")
		at := time.Unix(rapid.Int64Range(-2840140800, 7258118400).Draw(t, "time"), 0)
		if _, change := at.In(l).ZoneBounds(); !change.IsZero() && rapid.Bool().Draw(t, "at a change of clocks") {
			at = change.Add(time.Duration(rapid.Int64Range(-2*86400, 2*86400).Draw(t, "off by")) * time.Second)
		}
		start, end := q.Period(at)
		if at.Before(start) || !at.Before(end) {
			t.Fatalf("%s is not in its month, %s to %s", at.In(l), start, end)
		}
		if days := end.Sub(start).Hours() / 24; days < 26.9 || days > 32.1 {
			t.Errorf("the month from %s to %s has %.2f days", start, end, days)
		}
		if s, e := q.Period(end); !s.Equal(end) || !e.After(end) {
			t.Errorf("behind the month that ends at %s comes one from %s to %s", end, s, e)
		}
		if s, e := q.Period(start.Add(-1)); !e.Equal(start) || !s.Before(start) {
			t.Errorf("before the month that begins at %s comes one from %s to %s", start, s, e)
		}
		if s, e := q.Period(end.Add(-1)); !s.Equal(start) || !e.Equal(end) {
			t.Errorf("at its end the month is %s to %s, and before that %s to %s", s, e, start, end)
		}
		checkReset(t, start, q.ResetDay)
	})
}

// checkReset wants a month to begin with the first moment of its day, or of the
// day behind it where that one was skipped.
func checkReset(t *rapid.T, start time.Time, resetDay int) {
	t.Helper()
	date := func(t time.Time) time.Time {
		year, month, day := t.Date()
		return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	}
	before, day := date(start.Add(-1)), date(start)
	if !before.Before(day) {
		t.Errorf("the month begins at %s, which is not the begin of a day", start)
	}
	isReset := func(day time.Time) bool {
		return day.Day() == min(resetDay, day.AddDate(0, 1, -day.Day()).Day())
	}
	if skipped := day.AddDate(0, 0, -1); !isReset(day) && !(before.Before(skipped) && isReset(skipped)) {
		t.Errorf("the month begins at %s, and not on day %d", start, resetDay)
	}
}

func TestQuotaPeriodByHand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		zone       string
		day        int
		at         string
		start, end string
	}{
		{"Asia/Shanghai", 31, "2026-02-28T12:00:00+08:00", "2026-02-28T00:00:00+08:00", "2026-03-31T00:00:00+08:00"},
		{"Asia/Shanghai", 31, "2026-02-27T23:59:59+08:00", "2026-01-31T00:00:00+08:00", "2026-02-28T00:00:00+08:00"},
		{"Asia/Shanghai", 29, "2028-02-29T00:00:00+08:00", "2028-02-29T00:00:00+08:00", "2028-03-29T00:00:00+08:00"},
		{"Asia/Shanghai", 29, "2027-03-01T00:00:00+08:00", "2027-02-28T00:00:00+08:00", "2027-03-29T00:00:00+08:00"},
		{"Asia/Shanghai", 30, "2026-04-30T00:00:00+08:00", "2026-04-30T00:00:00+08:00", "2026-05-30T00:00:00+08:00"},
		{"Asia/Shanghai", 1, "2026-09-30T16:00:00Z", "2026-10-01T00:00:00+08:00", "2026-11-01T00:00:00+08:00"},
		{"Etc/UTC", 1, "1969-12-31T23:59:59Z", "1969-12-01T00:00:00Z", "1970-01-01T00:00:00Z"},
		{"Etc/UTC", 15, "2026-01-14T23:59:59Z", "2025-12-15T00:00:00Z", "2026-01-15T00:00:00Z"},
		{"Europe/Berlin", 29, "2026-10-25T12:00:00Z", "2026-09-29T00:00:00+02:00", "2026-10-29T00:00:00+01:00"},
		// Clocks go from 24:00 to 01:00: the day begins at one.
		{"America/Sao_Paulo", 4, "2018-11-04T12:00:00Z", "2018-11-04T01:00:00-02:00", "2018-12-04T00:00:00-02:00"},
		{"Asia/Beirut", 31, "2024-03-31T12:00:00Z", "2024-03-31T01:00:00+03:00", "2024-04-30T00:00:00+03:00"},
		// Midnight comes twice: the first counts.
		{"America/Havana", 1, "2026-11-01T04:30:00Z", "2026-11-01T00:00:00-04:00", "2026-12-01T00:00:00-05:00"},
		{"Atlantic/Azores", 25, "2026-10-25T00:30:00Z", "2026-10-25T00:00:00+00:00", "2026-11-25T00:00:00-01:00"},
		// The clock shows the month before once more.
		{"America/St_Johns", 1, "2009-11-01T03:00:00Z", "2009-11-01T00:00:00-02:30", "2009-12-01T00:00:00-03:30"},
		// There was no 30 December 2011 in Samoa, nor a 21 August 1993 on Kwajalein.
		{"Pacific/Apia", 30, "2011-12-31T12:00:00+14:00", "2011-12-31T00:00:00+14:00", "2012-01-30T00:00:00+14:00"},
		{"Pacific/Apia", 30, "2011-12-29T23:59:59-10:00", "2011-11-30T00:00:00-10:00", "2011-12-31T00:00:00+14:00"},
		{"Mars/Olympus", 1, "2026-10-15T12:00:00Z", "2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"},
	} {
		q := vps.NewQuota(vps.QuotaHost, "", tt.zone)
		q.ResetDay = tt.day
		at, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		start, end := q.Period(at)
		s, e := start.Format("2006-01-02T15:04:05-07:00"), end.Format("2006-01-02T15:04:05-07:00")
		clean := func(text string) string { return strings.Replace(text, "Z", "+00:00", 1) }
		if s != clean(tt.start) || e != clean(tt.end) {
			t.Errorf("day %d in %s at %s: %s to %s, want %s to %s", tt.day, tt.zone, tt.at, s, e, tt.start, tt.end)
		}
		if month := q.Month(at); month != tt.start[:10] {
			t.Errorf("day %d in %s at %s: the month is %s", tt.day, tt.zone, tt.at, month)
		}
	}
}

func TestQuotaMonthOnly(t *testing.T) {
	t.Parallel()
	q := vps.NewQuota(vps.QuotaGuest, "alice", "Etc/UTC")
	q.Limit, q.Topup, q.TopupMonth, q.LiftedMonth = 100, 20, "2026-10-01", "2026-10-01"
	in, after := time.Date(2026, 10, 31, 23, 59, 59, 0, time.UTC), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	if q.LimitAt(in) != 120 || !q.LiftedAt(in) {
		t.Errorf("in the month: limit %d, lifted %v", q.LimitAt(in), q.LiftedAt(in))
	}
	if q.LimitAt(after) != 100 || q.LiftedAt(after) {
		t.Errorf("at the reset: limit %d, lifted %v", q.LimitAt(after), q.LiftedAt(after))
	}
}

func TestQuotaCountUsed(t *testing.T) {
	t.Parallel()
	for c, want := range map[vps.QuotaCount]int64{vps.CountBoth: 30, vps.CountIn: 10, vps.CountOut: 20, vps.CountMax: 20} {
		if got := c.Used(10, 20); got != want {
			t.Errorf("%s of 10 in and 20 out is %d, want %d", c, got, want)
		}
	}
	if got := vps.CountBoth.Used(math.MaxInt64, 1); got != math.MaxInt64 {
		t.Errorf("in+out overflows to %d", got)
	}
}

// TestQuotaStepAt compares with arithmetic that has no limit.
func TestQuotaStepAt(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.OneOf(rapid.Int64Range(1, math.MaxInt64), rapid.Int64Range(math.MaxInt64-100_000, math.MaxInt64), rapid.Int64Range(1, 1000)).Draw(t, "limit")
		percent := rapid.IntRange(1, vps.MaxQuotaPercent).Draw(t, "percent")
		want := new(big.Int).Mul(big.NewInt(limit), big.NewInt(int64(percent)))
		want.Add(want, big.NewInt(99)).Quo(want, big.NewInt(100))
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		}
		s := vps.QuotaStep{Percent: percent, Action: vps.ActionNotify}
		if got := s.At(vps.Bytes(limit)); got != want.Int64() {
			t.Fatalf("%d%% of %d is %d, want %d", percent, limit, got, want)
		}
	})
}

func TestParseQuotaStep(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := vps.QuotaStep{
			Percent: rapid.IntRange(1, vps.MaxQuotaPercent).Draw(t, "percent"),
			Action:  rapid.SampledFrom([]vps.QuotaAction{vps.ActionNotify, vps.ActionThrottle, vps.ActionSuspend, vps.ActionStop}).Draw(t, "action"),
		}
		if s.Action == vps.ActionThrottle {
			s.Rate = vps.BitRate(rapid.Int64Range(int64(vps.MinBandwidth), int64(vps.MaxBandwidth)).Draw(t, "rate"))
		}
		if got, err := vps.ParseQuotaStep(s.String()); err != nil || got != s {
			t.Fatalf("%q is read as %v, %v", s, got, err)
		}
	})
	for text, says := range map[string]string{
		"": "is not a step", "80": "is not a step", "80%": "is not a step", "80=notify": "is not a step", "%=stop": "is not a step", "8.5%=stop": "is not a step",
		"x%=stop": "is not a step", "0x50%=stop": "is not a step", "99999999999999999999%=stop": "is not a step",
		"80%=": `"" is not what a quota can do`, "80%=explode": `"explode" is not`, "80%=Stop": `"Stop" is not`, "80%=notify=stop": `"notify=stop" is not`,
		"0%=stop": "0% is out of range", "-5%=stop": "-5% is out of range", "1001%=stop": "1001% is out of range; use 1% to 1000%",
		"100%=throttle": "needs a rate from 64kbit", "100%=throttle:": `"" is not a rate`, "100%=throttle:0": "needs a rate", "100%=throttle:1kbit": "needs a rate",
		"100%=throttle:1MB": `"1MB" is not a rate`, "100%=throttle:-1Mbit": "is not a rate", "100%=throttle:9999Gbit": "to 400Gbit",
		"100%=throttle:99999999999999999999Gbit": "is not a rate", "100%=stop:1Mbit": "a rate belongs to throttle only", "100%=notify:1Mbit": "and not to notify",
	} {
		if s, err := vps.ParseQuotaStep(text); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %v; want it refused with %q", text, s, err, says)
		}
	}
}

func TestQuotaValidate(t *testing.T) {
	t.Parallel()
	good := func() vps.Quota {
		q := vps.NewQuota(vps.QuotaGuest, "alice", "Asia/Shanghai")
		q.Limit = 500 * vps.GiB
		return q
	}
	q := good()
	if err := q.Validate(); err != nil {
		t.Fatal(err)
	}
	q.Limit, q.Topup, q.TopupMonth, q.Steps, q.Grace = math.MaxInt64-1, 1, "2026-10-31", nil, vps.MaxQuotaGrace
	if err := q.Validate(); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*vps.Quota){
		"scope: \"\" is not whose":     func(q *vps.Quota) { q.Scope = "" },
		"name: the host's quota":       func(q *vps.Quota) { q.Scope = vps.QuotaHost },
		"name: a name is needed":       func(q *vps.Quota) { q.Scope, q.Name = vps.QuotaTenant, "" },
		"limit: a quota of zero":       func(q *vps.Quota) { q.Limit = 0 },
		"limit: -1 bytes":              func(q *vps.Quota) { q.Limit = -1 },
		"reset_day: 0 is not":          func(q *vps.Quota) { q.ResetDay = 0 },
		"reset_day: 32 is not":         func(q *vps.Quota) { q.ResetDay = 32 },
		"count: \"both\"":              func(q *vps.Quota) { q.Count = "both" },
		"grace: -1s":                   func(q *vps.Quota) { q.Grace = -vps.Duration(time.Second) },
		"grace: 744h0m1s":              func(q *vps.Quota) { q.Grace = vps.MaxQuotaGrace + vps.Duration(time.Second) },
		"there is no time zone \"Mars": func(q *vps.Quota) { q.Timezone = "Mars/Olympus" },
		"timezone: \"\" is not":        func(q *vps.Quota) { q.Timezone = "" },
		"timezone: \"Local\" is not":   func(q *vps.Quota) { q.Timezone = "Local" },
		"timezone: \"../etc\" is not":  func(q *vps.Quota) { q.Timezone = "../etc" },
		"topup: -1 bytes more":         func(q *vps.Quota) { q.Topup = -1 },
		"stay below 2^63":              func(q *vps.Quota) { q.Topup, q.TopupMonth = math.MaxInt64, "2026-10-31" },
		"topup_month: a top-up needs":  func(q *vps.Quota) { q.Topup = 1 },
		"topup_month: \"2026-10\" is not a day; write the one on which the quota's month begins, for example 2026-10-01": func(q *vps.Quota) { q.TopupMonth = "2026-10" },
		"lifted_month: \"2026-02-30\"": func(q *vps.Quota) { q.LiftedMonth = "2026-02-30" },
		"steps: 17 steps":              func(q *vps.Quota) { q.Steps = make([]vps.QuotaStep, 17) },
		"steps[0]: \"\" is not what":   func(q *vps.Quota) { q.Steps = make([]vps.QuotaStep, 1) },
		"steps[1]: 80% stands behind":  func(q *vps.Quota) { q.Steps = []vps.QuotaStep{{100, vps.ActionStop, 0}, {80, vps.ActionNotify, 0}} },
		"steps[1]: there are two steps for stop at 100%": func(q *vps.Quota) {
			q.Steps = []vps.QuotaStep{{100, vps.ActionStop, 0}, {100, vps.ActionStop, 0}}
		},
	} {
		q := good()
		change(&q)
		if err := q.Validate(); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
	}
}

func TestHostQuotas(t *testing.T) {
	t.Parallel()
	quota := func(scope vps.QuotaScope, name string) vps.Quota {
		q := vps.NewQuota(scope, name, "Etc/UTC")
		q.Limit = 1
		return q
	}
	host := func(quotas ...vps.Quota) vps.Host {
		spec := vps.NewGuestSpec("alice")
		settings := vps.DefaultSettings()
		spec.Address = settings.Gateway().Next()
		return vps.Host{Settings: settings, Tenants: []vps.Tenant{{Name: vps.DefaultTenant}}, Guests: []vps.Guest{{ID: "1", Spec: spec}}, Quotas: quotas}
	}
	h := host(quota(vps.QuotaHost, ""), quota(vps.QuotaTenant, vps.DefaultTenant), quota(vps.QuotaGuest, "alice"))
	if err := h.Validate(); err != nil {
		t.Fatal(err)
	}
	for i, id := range []string{"host", "tenant/owner", "guest/alice"} {
		q := h.Quotas[i]
		if q.ID() != id || h.Quota(q.Scope, q.Name) != &h.Quotas[i] {
			t.Errorf("%s is found as %q", id, q.ID())
		}
	}
	h.Guests[0].Deleting = true
	if err := h.Validate(); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a quota of a guest that goes: %v", err)
	}
	for code, h := range map[vps.Code]vps.Host{
		vps.CodeConflict: host(quota(vps.QuotaHost, ""), quota(vps.QuotaHost, "")),
		vps.CodeNotFound: host(quota(vps.QuotaTenant, "bob")),
		vps.CodeInvalid:  host(vps.NewQuota(vps.QuotaHost, "", "Etc/UTC")),
	} {
		if err := h.Validate(); vps.ErrorCode(err) != code {
			t.Errorf("%v; want it %s", err, code)
		}
	}
}

func TestZone(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"Asia/Shanghai": "Asia/Shanghai", "Etc/UTC": "Etc/UTC", "": "UTC", "Mars/Olympus": "UTC"} {
		for range 2 { // loaded, and remembered
			if got := vps.Zone(name).String(); got != want {
				t.Errorf("%q is %s, want %s", name, got, want)
			}
		}
	}
}

// TestQuotaWarning checks what is told of quotas that let traffic pass.
func TestQuotaWarning(t *testing.T) {
	t.Parallel()
	for steps, want := range map[string]string{
		"":                             "does nothing but count: nobody is told, and traffic goes on when it is used up; `sublet quota set` makes it a hard limit with a step --at 100%=throttle:1Mbit",
		"80%=notify 100%=notify":       "does nothing but tell of its use: traffic goes on when it is used up; `sublet quota set` makes it a hard limit with a step",
		"150%=stop":                    "lets traffic go on when it is used up, until 150%=stop; `sublet quota set` makes it a hard limit",
		"80%=stop 100%=throttle:1Mbit": "the step 100%=throttle:1Mbit never acts: 80%=stop comes before it",
		"80%=throttle:1Mbit 90%=notify 100%=throttle:2Mbit": "the step 100%=throttle:2Mbit never acts: 80%=throttle:1Mbit comes before it",
		"80%=stop 100%=stop":   "the step 100%=stop never acts",
		"80%=notify 100%=stop": "",
		"80%=throttle:2Mbit 90%=throttle:1Mbit 95%=suspend-network 100%=stop": "",
	} {
		q := vps.NewQuota(vps.QuotaGuest, "alice", "Etc/UTC")
		q.Limit, q.Steps = vps.GiB, nil
		for text := range strings.FieldsSeq(steps) {
			step, err := vps.ParseQuotaStep(text)
			if err != nil {
				t.Fatal(err)
			}
			q.Steps = append(q.Steps, step)
		}
		if got := q.Warning(); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", steps, got, want)
		}
	}
}
