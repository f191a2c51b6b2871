package api

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// fakeQuotas keeps one quota, and what was asked last.
type fakeQuotas struct {
	quota *vps.Quota
	asked string
}

func (f *fakeQuotas) QuotaUses(context.Context) ([]vps.QuotaUse, error) {
	if f.quota == nil {
		return nil, nil
	}
	reached := time.Date(2026, 10, 20, 0, 0, 0, 0, time.UTC)
	return []vps.QuotaUse{{Quota: *f.quota, Start: reached, End: reached.AddDate(0, 1, 0), In: 1, Out: 2, Used: 3, Limit: int64(f.quota.Limit), Action: vps.ActionThrottle, Rate: vps.Mbit, ReachedAt: &reached}}, nil
}

func (f *fakeQuotas) note(what string, scope vps.QuotaScope, name string, v any, dryRun bool) (Change, error) {
	f.asked = fmt.Sprintf("%s %s/%s %v %v", what, scope, name, v, dryRun)
	if name == "nobody" {
		return Change{}, noGuest(name)
	}
	return Change{DryRun: dryRun, Edits: []string{f.asked}}, nil
}

func (f *fakeQuotas) SetQuota(_ context.Context, scope vps.QuotaScope, name string, s SetQuota, dryRun bool) (Change, error) {
	q, err := s.Apply(vps.NewQuota(scope, name, "Etc/UTC"))
	if err != nil {
		return Change{}, err
	}
	f.quota = &q
	return f.note("set", scope, name, q.Steps, dryRun)
}

func (f *fakeQuotas) TopUpQuota(_ context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (Change, error) {
	return f.note("topup", scope, name, int64(more), dryRun)
}

func (f *fakeQuotas) LiftQuota(_ context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (Change, error) {
	return f.note("lift", scope, name, lifted, dryRun)
}

func (f *fakeQuotas) RemoveQuota(_ context.Context, scope vps.QuotaScope, name string, dryRun bool) (Change, error) {
	return f.note("remove", scope, name, "", dryRun)
}

func startQuotas(t *testing.T) (*started, *fakeQuotas) {
	t.Helper()
	f, quotas := newFake(), &fakeQuotas{}
	f.guests["alice"] = Guest{ID: "id-alice"}
	b := f.backend()
	b.Quotas = quotas
	return startWith(t, f, &b), quotas
}

func TestQuotas(t *testing.T) {
	t.Parallel()
	s, f := startQuotas(t)
	ctx := t.Context()
	if list := must[[]vps.QuotaUse](t)(s.Quotas(ctx)); list == nil || len(list) > 0 {
		t.Errorf("without quotas the list is %v", list)
	}
	wantCode(t, func() error { _, err := s.Quota(ctx, vps.QuotaHost, ""); return err }(), vps.CodeNotFound)
	// A guest or a tenant that is not there is not one without a quota.
	for _, tt := range []struct {
		scope      vps.QuotaScope
		name, says string
	}{
		{vps.QuotaGuest, "zoe", "there is no guest zoe"}, {vps.QuotaTenant, "zoe", "there is no tenant zoe"}, {vps.QuotaGuest, "alice", "the guest alice has no quota"},
	} {
		if _, err := s.Quota(ctx, tt.scope, tt.name); vps.ErrorCode(err) != vps.CodeNotFound || !strings.Contains(vps.ErrorMessage(err), tt.says) {
			t.Errorf("%s %s: %v", tt.scope, tt.name, err)
		}
	}
	limit, day, grace := vps.Bytes(math.MaxInt64), 31, vps.Duration(time.Hour)
	all := SetQuota{
		Limit: &limit, ResetDay: &day, Count: new(vps.CountMax), Timezone: new("Asia/Shanghai"), Grace: &grace,
		Steps: &[]vps.QuotaStep{{Percent: 100, Action: vps.ActionThrottle, Rate: vps.Mbit}},
	}
	must[Change](t)(s.SetQuota(ctx, vps.QuotaGuest, "alice", all, true))
	got := must[QuotaReport](t)(s.Quota(ctx, vps.QuotaGuest, "alice"))
	same(t, got.Quota, must[vps.Quota](t)(all.Apply(vps.NewQuota(vps.QuotaGuest, "alice", ""))))
	if got.Schema != SchemaVersion || got.Used != 3 || got.Limit != math.MaxInt64 || got.ReachedAt == nil || got.Rate != vps.Mbit {
		t.Errorf("%+v", got)
	}
	same(t, must[[]vps.QuotaUse](t)(s.Quotas(ctx)), []vps.QuotaUse{got.QuotaUse})
	for _, tt := range []struct {
		call func() (Change, error)
		want string
	}{
		{func() (Change, error) { return s.SetQuota(ctx, vps.QuotaHost, "", SetQuota{Limit: &limit}, false) }, "set host/ [80%=notify 100%=notify] false"},
		{func() (Change, error) {
			return s.SetQuota(ctx, vps.QuotaTenant, "bob", SetQuota{Limit: &limit, Steps: new([]vps.QuotaStep)}, true)
		}, "set tenant/bob [] true"},
		{func() (Change, error) { return s.TopUpQuota(ctx, vps.QuotaGuest, "alice", 7, true) }, "topup guest/alice 7 true"},
		{func() (Change, error) { return s.LiftQuota(ctx, vps.QuotaGuest, "alice", true, false) }, "lift guest/alice true false"},
		{func() (Change, error) { return s.LiftQuota(ctx, vps.QuotaHost, "", false, false) }, "lift host/ false false"},
		{func() (Change, error) { return s.RemoveQuota(ctx, vps.QuotaTenant, "bob", true) }, "remove tenant/bob  true"},
	} {
		c := must[Change](t)(tt.call())
		if f.asked != tt.want || c.Schema != SchemaVersion || len(c.Edits) != 1 {
			t.Errorf("asked %q, want %q; answered %+v", f.asked, tt.want, c)
		}
	}
	_, err := s.RemoveQuota(ctx, vps.QuotaGuest, "nobody", false)
	wantCode(t, err, vps.CodeNotFound)
}

// TestQuotasRefused sends what is no quota. None of it reaches the backend.
func TestQuotasRefused(t *testing.T) {
	t.Parallel()
	s, f := startQuotas(t)
	for _, tt := range []struct{ method, path, body, says string }{
		{http.MethodPatch, "/v1/quotas/everybody", `{}`, "one of"},
		{http.MethodPatch, "/v1/quotas/guest", `{}`, "a name is needed"},
		{http.MethodPatch, "/v1/quotas/guest?name=../x", `{}`, "is not a name"},
		{http.MethodPatch, "/v1/quotas/host?name=x", `{}`, "the host's quota has no name"},
		{http.MethodPatch, "/v1/quotas/host", `{"limit":9223372036854775808}`, "cannot"},
		{http.MethodPatch, "/v1/quotas/host", `{"limit":1e30}`, "cannot"},
		{http.MethodPatch, "/v1/quotas/host", `{"limit":-1}`, "expected number"},
		{http.MethodPatch, "/v1/quotas/host", `{"limit":"500GiB"}`, "integer"},
		{http.MethodPatch, "/v1/quotas/host", `{"count":"both"}`, "this is not known; use one of in+out, in, out, max"},
		{http.MethodPatch, "/v1/quotas/host", `{"steps":[{"percent":100,"action":"explode"}]}`, "one of"},
		{http.MethodPatch, "/v1/quotas/host", `{"steps":[{"percent":100}]}`, "required property action"},
		{http.MethodPatch, "/v1/quotas/host", `{"month":"500GiB"}`, "not known"},
		{http.MethodPost, "/v1/quotas/host/topup", `{}`, "required property bytes"},
		{http.MethodPost, "/v1/quotas/host/lift", `{}`, "required property lifted"},
	} {
		resp, body := s.raw(t, tt.method, tt.path, typeJSON, tt.body)
		if resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(body, tt.says) || f.asked != "" {
			t.Errorf("%s %s: %d %s, asked %q; want %q", tt.path, tt.body, resp.StatusCode, body, f.asked, tt.says)
		}
	}
}
