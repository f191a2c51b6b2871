package daemon

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestWebhooksAreCheckedWhenSet looks up those that an edit sets, and no others.
func TestWebhooksAreCheckedWhenSet(t *testing.T) {
	t.Parallel()
	host := func(private bool, owner string, tenants ...string) vps.Host {
		h := vps.Host{Settings: vps.DefaultSettings()}
		h.Settings.Notices.AllowPrivate, h.Settings.Notices.Webhook = private, owner
		for i, hook := range tenants {
			h.Tenants = append(h.Tenants, vps.Tenant{Name: string(rune('a' + i)), Webhook: hook})
		}
		return h
	}
	const in, out = "http://in.example/", "http://out.example/"
	for what, c := range map[string]struct {
		before, after vps.Host
		asked         []string
		refused       string
	}{
		"nothing changes":            {host(false, in, in), host(false, in, in), nil, ""},
		"the owner's":                {host(false, "", in), host(false, in, in), []string{"in.example"}, "settings.notices.webhook: in.example leads to 10.0.0.1"},
		"a tenant's":                 {host(false, in, "", ""), host(false, in, out, in), []string{"out.example", "in.example"}, "tenants[1].webhook: in.example leads to 10.0.0.1"},
		"a new tenant's":             {host(false, ""), host(false, "", out), []string{"out.example"}, ""},
		"private ones are allowed":   {host(true, ""), host(true, in, in), nil, ""},
		"and then are not any more":  {host(true, out, in), host(false, out, in), []string{"out.example", "in.example"}, "tenants[0].webhook"},
		"and are from this edit on":  {host(false, ""), host(true, in), nil, ""},
		"taken away is nothing then": {host(false, in, in), host(false, "", ""), nil, ""},
	} {
		var asked []string
		err := checkWebhooks(t.Context(), func(_ context.Context, _, name string) ([]netip.Addr, error) {
			asked = append(asked, name)
			if name == "in.example" {
				return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("1.1.1.1")}, nil
		}, c.before, c.after)
		if !slices.Equal(asked, c.asked) || (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: asked for %v, %v", what, asked, err)
		}
	}
}
