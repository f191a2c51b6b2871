package cli

import (
	"context"
	"strings"
	"testing"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// askedHost keeps what the settings are asked to be.
type askedHost struct {
	*fake
	settings vps.Settings
}

func (f *askedHost) UpdateHost(ctx context.Context, u api.UpdateHost, dryRun bool) (api.Change, error) {
	f.settings = vps.DefaultSettings()
	u.Apply(&f.settings)
	return f.fake.UpdateHost(ctx, u, dryRun)
}

func TestHostSetEdge(t *testing.T) {
	t.Parallel()
	w := newWorld()
	asked := &askedHost{fake: w.fake}
	w.options.Dial = func(string) Client { return asked }
	w.mustRun(t, strings.Fields("host set --edge-caller proxy-v2 --edge-trusted-proxies 192.0.2.7,2001:db8::/48 --edge-trusted-proxies 198.51.100.0/24 "+
		"--edge-caller-connections 5 --edge-caller-rate 6 --edge-handshake-timeout 7s --edge-idle-timeout 2d --edge-drain-timeout 0s --edge-wake-timeout 9s "+
		"--edge-access-log json --edge-metric-domains 0 --edge-quic=false --edge-disabled --edge-resolvers 9.9.9.9,[2620:fe::fe]:5353 --edge-allow-private")...)
	e := asked.settings.Edge
	var got []string
	for _, f := range edgeSettings(&e) {
		got = append(got, f.name+": "+f.value)
	}
	want := []string{
		"edge: disabled, its ports are another router's; proxy-v2 callers; each has at most 5 connections, and 6 new ones per second", "proxies: 192.0.2.7/32, 2001:db8::/48, 198.51.100.0/24",
		"timeouts: handshake 7s, idle 48h0m0s, drain 0s, wake 9s", "access log: as json", "quic: closed",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", got)
	}
	if e.MetricDomains != 0 || !e.AllowPrivate || len(e.Resolvers) != 2 || e.Resolvers[0].String() != "9.9.9.9:53" || e.Resolvers[1].String() != "[2620:fe::fe]:5353" {
		t.Errorf("%+v", e)
	}
	// What is not named stays.
	w.mustRun(t, "host", "set", "--edge-trusted-proxies", "", "--edge-resolvers", "")
	if e := asked.settings.Edge; e.TrustedProxies != nil || e.Resolvers != nil || e.CallerRate != vps.DefaultEdgeSettings().CallerRate || !e.QUIC {
		t.Errorf("%+v", e)
	}
	for args, want := range map[string]string{
		"--edge-trusted-proxies proxy.example.org": "--edge-trusted-proxies: \"proxy.example.org\" is neither an address nor a prefix",
		"--edge-trusted-proxies 192.0.2.7/24":      "--edge-trusted-proxies: 192.0.2.7/24 has bits set behind its length",
		"--edge-resolvers dns.example.org":         "--edge-resolvers: \"dns.example.org\" is not a name server",
		"--edge-caller me":                         "--edge-caller: \"me\" is no way to learn who calls",
		"--edge-caller-rate 0":                     "--edge-caller-rate: 0 is out of range",
		"--edge-idle-timeout 1s":                   "--edge-idle-timeout: 1s is out of range; use 10s to 168h0m0s",
		"--edge-access-log apache":                 "--edge-access-log: \"apache\" is neither combined, json nor off",
	} {
		if code := w.run(t.Context(), append([]string{"host", "set"}, strings.Fields(args)...)...); code != ExitUsage || !strings.Contains(w.errors.String(), want) {
			t.Errorf("host set %s: %d, want %q in:\n%s", args, code, want, w.errors.String())
		}
	}
}
