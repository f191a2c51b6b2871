package daemon

import (
	"slices"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// address gives the owner, bob and zoe a webhook and a mail address each, and
// bob the guest alice. Zoe has no guest.
func (w *quotaWorld) address() {
	w.t.Helper()
	_, err := w.state.SetSettings(w.t.Context(), func(s *vps.Settings) {
		s.Notices.Webhook, s.Notices.To = "https://owner.example.org/", "owner@example.org"
		s.Notices.Server, s.Notices.From = "mail.example.org:25", "sublet@example.org"
	}, false)
	w.must(err)
	for _, name := range []string{"bob", "zoe"} {
		_, err = w.state.PutTenant(w.t.Context(), name, func(t vps.Tenant) vps.Tenant {
			t.Webhook, t.Email = "https://"+name+".example.org/", name+"@example.org"
			return t
		})
		w.must(err)
	}
	_, err = w.state.Update(w.t.Context(), "alice", func(s vps.GuestSpec) (vps.GuestSpec, error) {
		s.Tenant = "bob"
		return s, nil
	}, false)
	w.must(err)
}

// told returns what was put in the outbox since the last call, sorted: to whom
// and on which channel, about whom, and how the message begins.
func (w *quotaWorld) told() []string {
	w.t.Helper()
	all, err := w.db.Notices(w.t.Context())
	w.must(err)
	lines := make([]string, 0, len(all))
	for _, n := range all {
		message, _, _ := strings.Cut(n.Message, " until")
		message, _, _ = strings.Cut(message, ":")
		lines = append(lines, n.String()+": "+n.Guest+"/"+n.Tenant+": "+message)
		w.must(w.db.NoticeDone(w.t.Context(), n.UID, nil))
	}
	slices.Sort(lines)
	return lines
}

// TestNoticesOfSteps: one for each step, recipient and channel, whose quota
// ever it is, and none again from a new daemon.
func TestNoticesOfSteps(t *testing.T) {
	t.Parallel()
	to := func(message string, whom ...string) (lines []string) {
		for _, who := range whom {
			lines = append(lines, who+" by mail: "+message, who+" by webhook: "+message)
		}
		slices.Sort(lines)
		return lines
	}
	both := []string{"bob", "the owner"}
	const all = "100% of the traffic that the whole host may have in its month is used; "
	for name, tt := range map[string]struct {
		scope      vps.QuotaScope
		name, last string // of the quota, and its last step
		half, full []string
	}{
		"a guest's": {
			vps.QuotaGuest, "alice", "100%=stop",
			to("alice/bob: 50% of the quota of the guest alice is used", both...), to("alice/bob: 100% of the quota of the guest alice is used", both...),
		},
		"that of the owner's own guest": {
			vps.QuotaGuest, "bob", "100%=stop",
			to("bob/owner: 50% of the quota of the guest bob is used", "the owner"), to("bob/owner: 100% of the quota of the guest bob is used", "the owner"),
		},
		"a tenant's": {
			vps.QuotaTenant, "bob", "100%=throttle:1Mbit",
			to("/bob: 50% of the quota of the tenant bob is used", both...), to("/bob: 100% of the quota of the tenant bob is used", both...),
		},
		"the host's": {
			vps.QuotaHost, "", "100%=suspend-network",
			to("/: 50% of the quota of the host is used", "the owner"),
			append(to("/bob: "+all+"the network of all guests of bob is suspended", "bob"), to("/: 100% of the quota of the host is used", "the owner")...),
		},
		"the host's, which only tells": {
			vps.QuotaHost, "", "100%=notify",
			to("/: 50% of the quota of the host is used", "the owner"), to("/: 100% of the quota of the host is used", "the owner"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newQuotaWorld(t)
			w.address()
			_, err := w.state.RemoveQuota(t.Context(), vps.QuotaGuest, "alice", false)
			w.must(err)
			_, err = w.state.SetQuota(t.Context(), tt.scope, tt.name, func(q vps.Quota) (vps.Quota, error) {
				half, err := vps.ParseQuotaStep("50%=notify")
				w.must(err)
				last, err := vps.ParseQuotaStep(tt.last)
				w.must(err)
				q.Limit, q.Steps = 1000*vps.MiB, []vps.QuotaStep{half, last}
				return q, nil
			}, false)
			w.must(err)
			for _, turn := range []struct {
				what string
				mib  int64
				want []string
			}{{"a little", 100, nil}, {"half", 500, tt.half}, {"all", 500, tt.full}, {"more", 100, nil}} {
				w.turn(turn.mib)
				if got := w.told(); !slices.Equal(got, turn.want) {
					t.Errorf("%s:\ngot  %q\nwant %q", turn.what, got, turn.want)
				}
				w.restart()
				w.turn(0)
				if got := w.told(); len(got) != 0 {
					t.Errorf("%s, told again after a restart: %q", turn.what, got)
				}
			}
		})
	}
}
