package desired_test

import (
	"encoding/json"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/desired"
	"sublet/internal/sqlite"
	"sublet/internal/store"
	"sublet/internal/vps"
)

func limit(b vps.Bytes) func(vps.Quota) (vps.Quota, error) {
	return func(q vps.Quota) (vps.Quota, error) { q.Limit = b; return q, nil }
}

// TestQuotas sets, changes and removes quotas of every scope.
func TestQuotas(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	alice := create(t, s, "alice", nil)
	if _, err := s.PutTenant(ctx, "bob", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
		t.Fatal(err)
	}
	for _, of := range [][2]string{{"guest", "alice"}, {"tenant", "bob"}, {"host", ""}} {
		e, err := s.SetQuota(ctx, vps.QuotaScope(of[0]), of[1], limit(500*vps.GiB), false)
		if err != nil {
			t.Fatal(err)
		}
		if (e.Guest == alice.ID) != (of[0] == "guest") || len(e.Lines()) != 1 {
			t.Errorf("%v: guest %q, told %q", of, e.Guest, e.Lines())
		}
	}
	var ids []string
	for _, q := range host(t, s).Quotas {
		ids = append(ids, q.ID())
	}
	if diff := cmp.Diff([]string{"host", "tenant/bob", "guest/alice"}, ids); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}

	// What is not named stays.
	e, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) {
		q.Scope, q.Name = vps.QuotaHost, "" // which it cannot become
		q.ResetDay, q.Steps[1] = 31, vps.QuotaStep{Percent: 100, Action: vps.ActionThrottle, Rate: vps.Mbit}
		return q, nil
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"quota of the guest alice: reset_day 1 -> 31",
		"quota of the guest alice: steps [80%=notify 100%=notify] -> [80%=notify 100%=throttle:1Mbit]",
	}
	if diff := cmp.Diff(want, e.Lines()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if e, err = s.SetQuota(ctx, vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) { return q, nil }, false); err != nil || len(e.Lines()) > 0 {
		t.Errorf("setting it as it is: %q, %v", e.Lines(), err)
	}
	// What looks the same rounded is told in full.
	if e, err = s.SetQuota(ctx, vps.QuotaTenant, "bob", limit(500*vps.GiB+1), false); err != nil || strings.Join(e.Lines(), "") != "quota of the tenant bob: limit 500GiB -> 536870912001B" {
		t.Errorf("a byte more: %q, %v", e.Lines(), err)
	}
	if e, err = s.RemoveQuota(ctx, vps.QuotaHost, "", false); err != nil || len(e.After.Quotas) != 2 {
		t.Errorf("removed: %v, %v", e.After.Quotas, err)
	}
	// The others go with what they count.
	if e, err = s.Delete(ctx, "alice", false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"delete the guest alice and its disk", "remove the quota of the guest alice"}, e.Lines()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if _, err = s.DeleteTenant(ctx, "bob"); err != nil || len(host(t, s).Quotas) > 0 {
		t.Errorf("after everybody is gone: %v, %v", host(t, s).Quotas, err)
	}
}

// midMonth is a moment at which all zones have the same month.
func midMonth() time.Time { return time.Date(2026, 10, 15, 12, 0, 0, 0, time.UTC) }

func TestQuotaTopUpAndLift(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	s = s.WithClock(midMonth)
	ctx := t.Context()
	create(t, s, "alice", nil)
	if _, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", limit(vps.GiB), false); err != nil {
		t.Fatal(err)
	}
	var lines []string
	told := func(e desired.Edited, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		q := e.After.Quota(vps.QuotaGuest, "alice")
		lines = append(lines, strings.ReplaceAll(strings.Join(e.Lines(), "; "), q.Month(midMonth()), "MONTH"))
	}
	for range 2 {
		told(s.TopUpQuota(ctx, vps.QuotaGuest, "alice", vps.GiB, false))
	}
	for _, lifted := range []bool{true, false, true} {
		told(s.LiftQuota(ctx, vps.QuotaGuest, "alice", lifted, false))
	}
	want := []string{
		"quota of the guest alice: topup 0B -> 1GiB; quota of the guest alice: 1GiB more in the month from MONTH",
		"quota of the guest alice: topup 1GiB -> 2GiB",
		"quota of the guest alice: not enforced in the month from MONTH", "quota of the guest alice: enforced again", "quota of the guest alice: not enforced in the month from MONTH",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	q, now := host(t, s).Quota(vps.QuotaGuest, "alice"), midMonth()
	if q.LimitAt(now) != 3*vps.GiB || !q.LiftedAt(now) {
		t.Errorf("topped up twice and lifted: %+v", q)
	}
	// A month that begins on another day is still the one that it was done for.
	for _, day := range []int{now.UTC().Day(), now.UTC().AddDate(0, 0, 1).Day()} {
		if _, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) { q.ResetDay = day; return q, nil }, false); err != nil {
			t.Fatal(err)
		}
		if q := host(t, s).Quota(vps.QuotaGuest, "alice"); q.LimitAt(now) != 3*vps.GiB || !q.LiftedAt(now) {
			t.Errorf("with reset day %d: %+v", day, q)
		}
	}
	// What was topped up in an earlier month is not added to.
	if _, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) { q.TopupMonth = q.Month(now.AddDate(-1, 0, 0)); return q, nil }, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.TopUpQuota(ctx, vps.QuotaGuest, "alice", vps.MiB, false); err != nil {
		t.Fatal(err)
	}
	if q := host(t, s).Quota(vps.QuotaGuest, "alice"); q.Topup != vps.MiB {
		t.Errorf("topped up after a reset: %+v", q)
	}
	if _, err := s.LiftQuota(ctx, vps.QuotaGuest, "alice", false, false); err != nil {
		t.Fatal(err)
	}
	if q := host(t, s).Quota(vps.QuotaGuest, "alice"); q.LiftedMonth != "" {
		t.Errorf("the lift was taken back: %+v", q)
	}
}

// TestQuotasInFiles writes, applies and prunes quotas by a host file.
func TestQuotasInFiles(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	s = s.WithClock(midMonth)
	ctx := t.Context()
	create(t, s, "alice", nil)
	apply := func(file string, prune bool) []string {
		t.Helper()
		e, err := s.Apply(ctx, strings.NewReader(file), prune, false)
		if err != nil {
			t.Fatal(err)
		}
		return e.Lines()
	}
	got := apply(`
settings: {timezone: Asia/Shanghai}
tenants: [{name: owner}, {name: bob}]
quotas:
- {scope: tenant, name: bob, limit: 1TiB}
- {scope: guest, name: alice, limit: 500GiB, reset_day: 31, steps: ["100%=stop"], grace: 24h}
- {scope: host, limit: 2TiB, count: out, steps: []}
`, false)
	want := []string{
		"settings: timezone Etc/UTC -> Asia/Shanghai", "add the tenant bob",
		"add the quota of the host: 2TiB a month from day 1 in Asia/Shanghai, counting out, steps []",
		"add the quota of the tenant bob: 1TiB a month from day 1 in Asia/Shanghai, counting in+out, steps [80%=notify 100%=notify]",
		"add the quota of the guest alice: 500GiB a month from day 31 in Asia/Shanghai, counting in+out, steps [100%=stop]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if _, err := s.TopUpQuota(ctx, vps.QuotaGuest, "alice", vps.GiB, false); err != nil {
		t.Fatal(err)
	}
	var file strings.Builder
	if err := s.Export(ctx, &file); err != nil {
		t.Fatal(err)
	}
	if got := apply(file.String(), true); len(got) > 0 {
		t.Errorf("applying an export changes %q", got)
	}
	if got := apply("quotas: [{scope: guest, name: alice, limit: 1GiB}]\n", true); len(got) != 3 || got[0] != "quota of the guest alice: limit 500GiB -> 1GiB" {
		t.Errorf("pruned to one quota: %q", got)
	}
	if got := apply("settings: {}\n", true); len(got) > 0 {
		t.Errorf("a file without quotas removes some: %q", got)
	}
	for text, says := range map[string]string{
		"quotas:\n- scope: guest\n  name: carol\n  limit: 1GiB\n":                                        "line 3, column 9: there is no guest carol",
		"quotas:\n- scope: host\n  reset_day: 31\n":                                                      "line 2, column 3: a quota of zero",
		"quotas:\n- scope: host\n  limit: 1\n  timezone: Mars/X\n":                                       "line 4, column 13: there is no time zone",
		"quotas:\n- {scope: guest, name: alice, reset_day: 31, topup: 1,\n   topup_month: 2999-10-15}\n": "line 3, column 17: no month of the quota begins on 2999-10-15; with the reset day 31 the one that holds this day begins on 2999-09-30",
		"quotas:\n- {scope: guest, name: alice, reset_day: 1,\n   lifted_month: 2026-02-30}\n":           "\"2026-02-30\" is not a day; write the one on which the quota's month begins, for example 2026-10-01",
		"quotas:\n- {scope: guest, name: alice, reset_day: 31,\n   lifted_month: 2999-02-27}\n":          "line 3, column 18: no month of the quota begins on 2999-02-27; with the reset day 31 the one that holds this day begins on 2999-01-31",
		"settings:\n  timezone: Mars/Olympus\n":                                                          "line 2, column 13: there is no time zone \"Mars/Olympus\"",
		"settings: {timezone: Local}\n":                                                                  "\"Local\" is not a time zone",
		"settings: {timezone: \"\"}\n":                                                                   "is not a time zone",
		"guests: []\nquotas: [{scope: guest, name: alice, limit: 1}]\n":                                  "is being deleted",
	} {
		if _, err := s.Apply(ctx, strings.NewReader(text), true, false); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %q", text, err, says)
		}
	}
	apply("quotas: [{scope: guest, name: alice, limit: 1, reset_day: 31, topup: 1, topup_month: 2026-02-28, lifted_month: 2026-03-31}]\n", false)
	if got := apply("guests: []\nquotas: []\n", true); len(host(t, s).Quotas) > 0 {
		t.Errorf("after all are pruned there are quotas: %q", got)
	}
}

// TestMonthsThatAreOver: what was topped up and lifted in a month that is over
// keeps no export from being applied elsewhere, whatever changed since.
func TestMonthsThatAreOver(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	past := time.Now().AddDate(0, 0, -70)
	edit := func(change func(*vps.Quota)) *vps.Quota {
		t.Helper()
		_, err := s.SetQuota(ctx, vps.QuotaHost, "", func(q vps.Quota) (vps.Quota, error) { change(&q); return q, nil }, false)
		if err != nil {
			t.Fatal(err)
		}
		return host(t, s).Quota(vps.QuotaHost, "")
	}
	q := edit(func(q *vps.Quota) {
		q.Limit, q.ResetDay, q.Topup = vps.GiB, 28, vps.MiB
		q.TopupMonth, q.LiftedMonth = q.Month(past), q.Month(past)
	})
	if q.Topup != vps.MiB || q.TopupMonth != q.Month(past) || q.LiftedMonth != q.Month(past) {
		t.Errorf("what was stays as long as the months do: %+v", q)
	}
	if q = edit(func(q *vps.Quota) { q.ResetDay = 1 }); q.Topup != 0 || q.TopupMonth != "" || q.LiftedMonth != "" {
		t.Errorf("after months begin on another day: %+v", q)
	}
	var export strings.Builder
	if err := s.Export(ctx, &export); err != nil {
		t.Fatal(err)
	}
	// One that was written when such months were kept is taken, too.
	for _, file := range []string{export.String(), "quotas: [{scope: host, limit: 1GiB, topup: 1MiB, topup_month: 2020-09-28, lifted_month: 2020-09-28}]\n"} {
		other, _ := open(t)
		if _, err := other.Apply(ctx, strings.NewReader(file), true, false); err != nil {
			t.Errorf("%v\n%s", err, file)
			continue
		}
		if e, err := other.Apply(ctx, strings.NewReader(file), true, false); err != nil || len(e.Lines()) > 0 {
			t.Errorf("applied again: %q, %v", e.Lines(), err)
		}
		if got := host(t, other).Quota(vps.QuotaHost, ""); got == nil || got.Limit != vps.GiB || got.Topup != 0 || got.LiftedMonth != "" {
			t.Errorf("%+v", got)
		}
	}
}

// TestQuotasAreRefused tries what must not be, and checks that nothing changed.
func TestQuotasAreRefused(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	create(t, s, "alice", nil)
	create(t, s, "gone", nil)
	if _, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", limit(math.MaxInt64-1), false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(ctx, "gone", false); err != nil {
		t.Fatal(err)
	}
	set := func(scope vps.QuotaScope, name string, b vps.Bytes) func() (desired.Edited, error) {
		return func() (desired.Edited, error) { return s.SetQuota(ctx, scope, name, limit(b), false) }
	}
	topUp := func(name string, b vps.Bytes) func() (desired.Edited, error) {
		return func() (desired.Edited, error) { return s.TopUpQuota(ctx, vps.QuotaGuest, name, b, false) }
	}
	before := host(t, s)
	for name, tt := range map[string]struct {
		edit func() (desired.Edited, error)
		code vps.Code
		says string
	}{
		"zero":                 {set(vps.QuotaHost, "", 0), vps.CodeInvalid, "limit: a quota of zero"},
		"another one zero":     {set(vps.QuotaGuest, "alice", 0), vps.CodeInvalid, "limit: a quota of zero"},
		"no guest":             {set(vps.QuotaGuest, "bob", 1), vps.CodeNotFound, "there is no guest bob"},
		"a guest that goes":    {set(vps.QuotaGuest, "gone", 1), vps.CodeConflict, "is being deleted"},
		"no tenant":            {set(vps.QuotaTenant, "bob", 1), vps.CodeNotFound, "there is no tenant bob"},
		"a host with a name":   {set(vps.QuotaHost, "x", 1), vps.CodeInvalid, "the host's quota has no name"},
		"no scope":             {set("", "x", 1), vps.CodeInvalid, "scope: "},
		"nothing to top up":    {topUp("alice", 0), vps.CodeInvalid, "nothing to top up with"},
		"topped up too far":    {topUp("alice", 2), vps.CodeInvalid, "stay below 2^63"},
		"topped up, no guest":  {topUp("bob", 1), vps.CodeNotFound, "there is no guest bob"},
		"lifted without one":   {func() (desired.Edited, error) { return s.LiftQuota(ctx, vps.QuotaHost, "", true, false) }, vps.CodeNotFound, "the host has no quota"},
		"removed without one":  {func() (desired.Edited, error) { return s.RemoveQuota(ctx, vps.QuotaTenant, "owner", false) }, vps.CodeNotFound, "the tenant owner has no quota"},
		"removed of nobody":    {func() (desired.Edited, error) { return s.RemoveQuota(ctx, vps.QuotaTenant, "bob", false) }, vps.CodeNotFound, "there is no tenant bob"},
		"a dry run is no edit": {func() (desired.Edited, error) { return s.RemoveQuota(ctx, vps.QuotaGuest, "alice", true) }, "", ""},
	} {
		_, err := tt.edit()
		if vps.ErrorCode(err) != tt.code || err != nil && !strings.Contains(vps.ErrorMessage(err), tt.says) {
			t.Errorf("%s: %s, %v; want %s and %q", name, vps.ErrorCode(err), err, tt.code, tt.says)
		}
	}
	if diff := cmp.Diff(before, host(t, s), comparePrefixes); diff != "" {
		t.Errorf("something changed (-before +after):\n%s", diff)
	}
}

// TestZonesThatAreGone: a zone that was known when it was set, and is not any
// more, is in the way of no edit but one that sets it.
func TestZonesThatAreGone(t *testing.T) {
	t.Parallel()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	ctx := t.Context()
	s := desired.New(db, &facts{boot: "boot-1", memory: vps.TiB, disk: vps.TiB}).WithClock(midMonth)
	create(t, s, "alice", nil)
	h := host(t, s)
	h.Settings.Timezone = "Mars/Olympus"
	quota := vps.NewQuota(vps.QuotaGuest, "alice", "Mars/Olympus")
	quota.Limit = vps.GiB
	for key, value := range map[string]any{"host/settings": h.Settings, "quotas/guest/alice": quota} {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Commit(ctx, nil, []store.Write{{Key: key, Value: text}}); err != nil {
			t.Fatal(err)
		}
	}
	create(t, s, "bob", nil)
	var file strings.Builder
	if err := s.Export(ctx, &file); err != nil {
		t.Fatal(err)
	}
	if e, err := s.SetSettings(ctx, func(s *vps.Settings) { s.MemoryOvercommit = 150 }, false); err != nil || e.After.Settings.Timezone != "Mars/Olympus" {
		t.Errorf("another setting: %v, %v", e.After.Settings, err)
	}
	if _, err := s.SetSettings(ctx, func(s *vps.Settings) { s.Timezone = "Mars/Pavonis" }, false); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("another unknown zone: %v", err)
	}
	if _, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", limit(vps.TiB), false); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("the quota with its unknown zone: %v", err)
	}
	if _, err := s.SetQuota(ctx, vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) { q.Timezone = "Etc/UTC"; return q, nil }, false); err != nil {
		t.Errorf("a known one: %v", err)
	}
	if _, err := s.SetSettings(ctx, func(s *vps.Settings) { s.Timezone = "Asia/Shanghai" }, false); err != nil {
		t.Errorf("a known zone: %v", err)
	}
}
