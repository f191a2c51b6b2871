package daemon

import (
	"context"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// TestQuotasAreForeseen makes edits that are not made: they tell what would be
// in force at once by what was counted up to now, and change nothing.
func TestQuotasAreForeseen(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	ctx := t.Context()
	set := func(scope vps.QuotaScope, name string, dryRun bool, limit vps.Bytes, grace time.Duration, steps ...string) func() (desired.Edited, error) {
		return func() (desired.Edited, error) {
			return w.state.SetQuota(ctx, scope, name, func(q vps.Quota) (vps.Quota, error) {
				q.Limit, q.Grace = limit, vps.Duration(grace)
				return withSteps(q, steps)
			}, dryRun)
		}
	}
	foresee := func(edit func() (desired.Edited, error)) string {
		t.Helper()
		e, err := edit()
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, l := range w.foreseeQuotas(ctx, &e) {
			l, _, _ = strings.Cut(l, " since ") // and the day
			lines = append(lines, l)
		}
		return strings.Join(lines, "; ")
	}
	for _, c := range []struct {
		what string
		edit func() (desired.Edited, error)
		want string
	}{
		{"nothing is used", set(vps.QuotaGuest, "alice", true, 1000, 0, "100%=stop"), ""},
		{"alice has traffic", func() (desired.Edited, error) {
			w.count("alice", vps.TrafficInternet, 700, 300)
			return set(vps.QuotaGuest, "alice", true, 1000, 0, "80%=notify", "100%=throttle:1Mbit")()
		}, "notice: 80% of the quota of the guest alice is used: 1000B of 1000B; notice: 100% of the quota of the guest alice is used: 1000B of 1000B; guest alice: throttled to 1Mbit by the quota guest/alice"},
		{"with grace", set(vps.QuotaGuest, "alice", true, 1000, time.Hour, "100%=throttle:1Mbit"), "notice: 100% of the quota of the guest alice is used: 1000B of 1000B"},
		{"more than is used", set(vps.QuotaGuest, "alice", true, 1001, 0, "100%=throttle:1Mbit"), ""},
		{"of the tenant", set(vps.QuotaTenant, vps.DefaultTenant, true, 1, 0, "100%=suspend-network"), "notice: 100% of the quota of the tenant owner is used: 1000B of 1B; guest alice: network suspended by the quota tenant/owner; guest bob: network suspended by the quota tenant/owner"},
	} {
		if got := foresee(c.edit); got != strings.ReplaceAll(c.want, "owner", vps.DefaultTenant) {
			t.Errorf("%s: got %q", c.what, got)
		}
	}
	events, err := w.db.Events(ctx, sqlite.EventQuery{})
	steps, err2 := w.db.QuotaSteps(ctx)
	accounts, err3 := w.db.QuotaAccounts(ctx)
	if len(events)+len(steps)+len(accounts) > 0 || err != nil || err2 != nil || err3 != nil {
		t.Errorf("something was kept: %v, %v, %v (%v, %v, %v)", events, steps, accounts, err, err2, err3)
	}
	w.want(w.history(api.TrafficQuery{Guest: "alice"}), "alice internet4 700 300")

	if _, err := set(vps.QuotaGuest, "alice", false, 1000, 0, "100%=throttle:1Mbit")(); err != nil {
		t.Fatal(err)
	}
	w.sampleTraffic(ctx)
	for what, edit := range map[string]func() (desired.Edited, error){
		"topped up": func() (desired.Edited, error) { return w.state.TopUpQuota(ctx, vps.QuotaGuest, "alice", 1, true) },
		"lifted":    func() (desired.Edited, error) { return w.state.LiftQuota(ctx, vps.QuotaGuest, "alice", true, true) },
		"removed":   func() (desired.Edited, error) { return w.state.RemoveQuota(ctx, vps.QuotaGuest, "alice", true) },
	} {
		if got, want := foresee(edit), "guest alice: not throttled to 1Mbit by the quota guest/alice any more"; got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	if got, want := foresee(set(vps.QuotaGuest, "alice", true, 1000, 0, "100%=suspend-network")), "notice: 100% of the quota of the guest alice is used: 1000B of 1000B; guest alice: network suspended by the quota guest/alice"; got != want {
		t.Errorf("a stricter step: got %q, want %q", got, want)
	}
	// What is not about quotas tells of none, and has in force what there is.
	e, err := w.state.Update(context.WithoutCancel(ctx), "alice", func(s vps.GuestSpec) (vps.GuestSpec, error) { s.Bandwidth = vps.Gbit; return s, nil }, true)
	if err != nil {
		t.Fatal(err)
	}
	if lines := w.foreseeQuotas(ctx, &e); len(lines) > 0 || e.After.Guest("alice").Restraint.Throttle(0) != vps.Mbit {
		t.Errorf("%v, %v", lines, e.After.Guest("alice").Restraint)
	}
}

// TestHostFilesAreWarnedOf: quotas of a host file that let traffic go on are
// told of when they come, and not with each later edit.
func TestHostFilesAreWarnedOf(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	const file = `
version: 1
quotas:
  - {scope: guest, name: alice, limit: 1GiB}
  - {scope: guest, name: bob, limit: 1GiB, steps: ["100%=stop"]}
  - {scope: host, limit: 1TiB, steps: ["150%=stop"]}
`
	apply := func(file string) string {
		t.Helper()
		e, err := w.state.Apply(t.Context(), strings.NewReader(file), false, false)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(quotaWarnings(e.Before, e.After), "\n")
	}
	got := apply(file)
	if strings.Count(got, "\n") != 1 || !strings.Contains(got, "the quota of the host lets traffic go on when it is used up, until 150%=stop") || !strings.Contains(got, "the quota of the guest alice does nothing but tell of its use") {
		t.Errorf("warned of %s", got)
	}
	if got := apply(file); got != "" {
		t.Errorf("the same file again: warned of %s", got)
	}
}
