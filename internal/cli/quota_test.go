package cli

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the same zones wherever the test runs

	"github.com/google/go-cmp/cmp"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// editQuota changes a quota of the fake as the daemon does: checked with the
// whole host, and made or not.
func (f *fake) editQuota(scope vps.QuotaScope, name string, anew bool, dryRun bool, change func(*vps.Quota) error) (api.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return api.Change{}, f.failure
	}
	q := vps.NewQuota(scope, name, "Asia/Shanghai")
	i := slices.IndexFunc(f.quotas, func(o vps.Quota) bool { return o.ID() == q.ID() })
	switch {
	case scope == vps.QuotaGuest && f.guests[name] == nil:
		return api.Change{}, vps.Errorf(vps.CodeNotFound, "there is no guest %s; `sublet list` shows all", name)
	case i < 0 && !anew:
		return api.Change{}, vps.Errorf(vps.CodeNotFound, "%s has no quota; `sublet quota list` shows all", q.Whose())
	case i >= 0:
		q = f.quotas[i]
	}
	if err := errors.Join(change(&q), q.Validate()); err != nil {
		return api.Change{}, err
	}
	c := api.Change{DryRun: dryRun, Edits: []string{"quota of " + q.Whose() + " is " + q.Limit.String()}}
	if w := q.Warning(); w != "" {
		c.Warnings = []string{w}
	}
	if dryRun {
		return c, nil
	}
	if i >= 0 {
		f.quotas[i] = q
	} else {
		f.quotas = append(f.quotas, q)
		slices.SortFunc(f.quotas, vps.CompareQuotas)
	}
	return c, nil
}

func (f *fake) SetQuota(_ context.Context, scope vps.QuotaScope, name string, s api.SetQuota, dryRun bool) (api.Change, error) {
	return f.editQuota(scope, name, true, dryRun, func(q *vps.Quota) (err error) { *q, err = s.Apply(*q); return err })
}

func (f *fake) TopUpQuota(_ context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (api.Change, error) {
	return f.editQuota(scope, name, false, dryRun, func(q *vps.Quota) error {
		q.Topup, q.TopupMonth = q.Topup+more, q.Month(now)
		return nil
	})
}

func (f *fake) LiftQuota(_ context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (api.Change, error) {
	return f.editQuota(scope, name, false, dryRun, func(q *vps.Quota) error {
		q.LiftedMonth = ""
		if lifted {
			q.LiftedMonth = q.Month(now)
		}
		return nil
	})
}

func (f *fake) RemoveQuota(_ context.Context, scope vps.QuotaScope, name string, dryRun bool) (api.Change, error) {
	c, err := f.editQuota(scope, name, false, true, func(*vps.Quota) error { return nil })
	if err == nil && !dryRun {
		f.quotas = slices.DeleteFunc(f.quotas, func(q vps.Quota) bool { return q.Scope == scope && q.Name == name })
	}
	return c, err
}

// QuotaUses has each quota used to three fifths, and alice's to more than all.
func (f *fake) QuotaUses(context.Context) ([]vps.QuotaUse, error) {
	var uses []vps.QuotaUse
	for _, q := range f.quotas {
		start, end := q.Period(now)
		limit := q.LimitAt(now)
		u := vps.QuotaUse{Quota: q, Start: start, End: end, In: int64(limit) / 5 * 2, Out: int64(limit) / 5, Used: int64(limit) / 5 * 3, Limit: int64(limit)}
		switch {
		case q.Name == "alice":
			u.Used = int64(limit) + int64(limit)/10
			u.Action, u.Rate = vps.ActionThrottle, vps.Mbit
		case q.Scope == vps.QuotaHost:
			reached := end.Add(-50 * time.Hour)
			u.ReachedAt = &reached
		}
		uses = append(uses, u)
	}
	return uses, f.failure
}

func (f *fake) Quotas(ctx context.Context) ([]vps.QuotaUse, error) { return f.QuotaUses(ctx) }

func (f *fake) Quota(ctx context.Context, scope vps.QuotaScope, name string) (api.QuotaReport, error) {
	uses, err := f.QuotaUses(ctx)
	for _, u := range uses {
		if u.Quota.Scope == scope && u.Quota.Name == name {
			return api.QuotaReport{Schema: api.SchemaVersion, QuotaUse: u}, err
		}
	}
	return api.QuotaReport{}, vps.Errorf(vps.CodeNotFound, "it has no quota")
}

// TestQuotaSet sets quotas as people write them.
func TestQuotaSet(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"alice --month 500GiB --count in+out --reset-day 31 --timezone Asia/Shanghai --at 80%=notify --at 100%=throttle:1Mbit --grace 24h": "guest/alice 500GiB in+out 31 Asia/Shanghai [80%=notify 100%=throttle:1Mbit] 24h0m0s",
		"alice --at 100%=suspend-network --month 1TiB --at 80%=notify":                                                                     "guest/alice 1TiB in+out 1 Asia/Shanghai [80%=notify 100%=suspend-network] 0s",
		"--tenant bob --month 2TiB --count max --at 100%=stop":                                                                             "tenant/bob 2TiB max 1 Asia/Shanghai [100%=stop] 0s",
		"--host 2TiB":                             "host 2TiB in+out 1 Asia/Shanghai [80%=notify 100%=notify] 0s",
		"--host=2TiB --count out":                 "host 2TiB out 1 Asia/Shanghai [80%=notify 100%=notify] 0s",
		"--count in --host 2TiB --at=":            "host 2TiB in 1 Asia/Shanghai [] 0s",
		"--host --month 9223372036854775807":      "host 9223372036854775807B in+out 1 Asia/Shanghai [80%=notify 100%=notify] 0s",
		"alice --month 1GiB --timezone Etc/GMT+5": "guest/alice 1GiB in+out 1 Etc/GMT+5 [80%=notify 100%=notify] 0s",
	} {
		w := populate(t)
		w.mustRun(t, append([]string{"quota", "set"}, strings.Fields(line)...)...)
		if len(w.quotas) != 1 {
			t.Fatalf("%s: %v", line, w.quotas)
		}
		q := w.quotas[0]
		got := strings.Join([]string{q.ID(), q.Limit.Exact(), string(q.Count), strconv.Itoa(q.ResetDay), q.Timezone, "[" + stepsText(q.Steps) + "]", q.Grace.String()}, " ")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
		warned := strings.Contains(w.errors.String(), "warning: the quota of ")
		if grace := q.Grace > 0; grace && !warned {
			t.Errorf("%s: not warned: %s", line, w.errors.String())
		} else if acts := strings.Contains(want, "throttle") || strings.Contains(want, "suspend") || strings.Contains(want, "stop"); !grace && warned == acts {
			t.Errorf("%s: warned %v: %s", line, warned, w.errors.String())
		}
	}
}

// TestQuotaChange changes one of which everything else stays.
func TestQuotaChange(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.mustRun(t, "quota", "set", "alice", "--month", "500GiB", "--reset-day", "31", "--at", "100%=stop", "--grace", "24h", "--count", "out")
	before := w.quotas[0]
	w.mustRun(t, "quota", "set", "alice", "--month", "1TiB")
	before.Limit = vps.TiB
	if diff := cmp.Diff(before, w.quotas[0]); diff != "" {
		t.Errorf("more than the limit changed (-want +got):\n%s", diff)
	}
	w.says(t, 0, "is 2TiB", "quota", "set", "alice", "--month", "2TiB", "--dry-run")
	if w.quotas[0].Limit != vps.TiB {
		t.Error("a dry run changed the limit")
	}
	w.says(t, 0, "the limit of the guest alice is 1.1TiB until the reset on 2026-01-31", "quota", "topup", "alice", "100GiB")
	w.says(t, 0, "the quota of the guest alice is not enforced until its reset on 2026-01-31", "quota", "lift", "alice")
	w.says(t, 0, "lifted", "quota", "list")
	w.mustRun(t, "quota", "lift", "alice", "--undo")
	w.says(t, 0, "throttle:1Mbit", "quota", "list")
	w.mustRun(t, "quota", "remove", "alice")
	w.says(t, 3, "the guest alice has no quota", "quota", "rm", "alice")
	if len(w.quotas) > 0 {
		t.Errorf("after all are removed: %v", w.quotas)
	}
}

// TestQuotaRefused writes what is wrong, and checks that nothing changed.
func TestQuotaRefused(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.mustRun(t, "quota", "set", "alice", "--month", "500GiB", "--at", "100%=stop")
	before := slices.Clone(w.quotas)
	for _, tt := range []struct {
		line, says string
		code       int
	}{
		{"set alice --month 0", "--month: a quota of zero", ExitUsage},
		{"set bob", "--month: a new quota needs a limit", ExitUsage},
		{"set bob --at 80%=notify", "--month: a new quota needs a limit", ExitUsage},
		{"set --host", "--month: a new quota needs a limit: how much there may be in a month, for example 500GiB", ExitUsage},
		{"set --host --count out --month 0", "--month: a quota of zero", ExitUsage},
		{"set alice --month 9223372036854775808", "--month: \"9223372036854775808\" is out of range for a size; sizes stay below 2^63", ExitUsage},
		{"set alice --month 9EiB", "--month: \"9EiB\" is out of range for a size; sizes stay below 2^63", ExitUsage},
		{"set alice --month 8388608TiB", "--month: \"8388608TiB\" is out of range", ExitUsage},
		{"set alice --month 99999999999999999999999TiB", "is out of range", ExitUsage},
		{"set alice --month -1GiB", "out of range", ExitUsage},
		{"set alice --month much", "is not a size", ExitUsage},
		{"set alice --reset-day 0", "--reset-day: 0 is not a day of a month; use 1 to 31", ExitUsage},
		{"set alice --reset-day 32", "--reset-day: 32 is not a day of a month", ExitUsage},
		{"set alice --reset-day -1", "--reset-day: \"-1\" is not a whole number from 1 to 31", ExitUsage},
		{"set alice --reset-day last", "--reset-day: \"last\" is not a whole number", ExitUsage},
		{"set alice --timezone Mars/Olympus", "--timezone: there is no time zone \"Mars/Olympus\"", ExitUsage},
		{"set alice --timezone Local", "--timezone: \"Local\" is not a time zone", ExitUsage},
		{"set alice --timezone ../../etc/passwd", "is not a time zone", ExitUsage},
		{"set alice --count both", "--count: \"both\" is not a way to count", ExitUsage},
		{"set alice --at 100%=explode", "--at: \"explode\" is not what a quota can do", ExitUsage},
		{"set alice --at 100=stop", "--at: \"100=stop\" is not a step", ExitUsage},
		{"set alice --at 0%=stop", "--at: 0% is out of range", ExitUsage},
		{"set alice --at 100%=throttle", "--at: a throttle needs a rate", ExitUsage},
		{"set alice --at 100%=throttle:1MB", "--at: \"1MB\" is not a rate", ExitUsage},
		{"set alice --at 100%=stop --at 100%=stop", "--at: there are two steps for stop at 100%", ExitUsage},
		{"set alice --grace -1h", "--grace: -1h0m0s is negative", ExitUsage},
		{"set alice --grace soon", "--grace: \"soon\" is not a duration", ExitUsage},
		{"set alice 500GiB", "\"500GiB\" is too much", ExitUsage},
		{"set alice --host", "--host: \"alice\" is not a size", ExitUsage},
		{"set --host 2TiB --month 3TiB", "--host 2TiB and --month 3TiB both give the limit; leave one out", ExitUsage},
		{"set --host 2TiB 3TiB", "\"3TiB\" is too much", ExitUsage},
		{"set --host much --month 3TiB", "\"much\" is too much", ExitUsage},
		{"set --host=much", "--host: \"much\" is not a size", ExitUsage},
		{"set --host 0", "a quota of zero", ExitUsage},
		{"set --host 8388608TiB", "--host: \"8388608TiB\" is out of range", ExitUsage},
		{"set --host --tenant bob --month 1GiB", "--tenant and --host exclude each other", ExitUsage},
		{"set --month 1GiB", "needs a guest, --tenant NAME or --host", ExitUsage},
		{"set ../x --month 1GiB", "is not a name", ExitUsage},
		{"set zoe --month 1GiB", "there is no guest zoe", ExitNotFound},
		{"topup alice", "needs a size", ExitUsage},
		{"topup alice 9223372036854775807", "stay below 2^63", ExitUsage},
		{"topup noports 1GiB", "the guest noports has no quota", ExitNotFound},
		{"lift --tenant bob", "the tenant bob has no quota", ExitNotFound},
		{"lift alice bob", "\"bob\" is too much", ExitUsage},
		{"remove --host", "the host has no quota", ExitNotFound},
		{"show bob", "no quota", ExitNotFound},
		{"show alice -o csv", "is no format of this verb", ExitUsage},
	} {
		w.says(t, tt.code, tt.says, append([]string{"quota"}, strings.Fields(tt.line)...)...)
		if diff := cmp.Diff(before, w.quotas); diff != "" {
			t.Fatalf("%s changed something (-before +after):\n%s", tt.line, diff)
		}
	}
}

func TestQuotaShown(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.mustRun(t, "quota", "set", "alice", "--month", "500GiB", "--reset-day", "31", "--at", "80%=notify", "--at", "100%=throttle:1Mbit", "--grace", "24h")
	w.mustRun(t, "quota", "topup", "alice", "100GiB")
	w.mustRun(t, "quota", "set", "--tenant", "bob", "--month", "1TiB", "--at=")
	w.mustRun(t, "quota", "set", "--host", "2TiB")
	for file, line := range map[string]string{
		"quota.list": "list", "quota.list.wide": "list -o wide", "quota.list.csv": "list -o csv", "quota.list.json": "list -o json",
		"quota.show": "show alice", "quota.show.host": "show --host", "quota.show.tenant.json": "show --tenant bob -o json",
	} {
		w.mustRun(t, append([]string{"quota"}, strings.Fields(line)...)...)
		golden(t, filepath.Join("testdata/golden", file), w.out.String())
	}
}
