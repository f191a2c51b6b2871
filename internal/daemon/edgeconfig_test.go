package daemon

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// edgeHost is a host with the guests alice (10.213.0.2), who runs, and bob
// (10.213.0.3), who does not.
func edgeHost() *vps.Host {
	h := &vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: vps.DefaultTenant}, {Name: "carol"}}}
	for i, name := range []string{"alice", "bob"} {
		g := vps.Guest{ID: "id-" + name, Spec: vps.NewGuestSpec(name), Index: i + 1}
		g.Spec.Address = netip.AddrFrom4([4]byte{10, 213, 0, byte(2 + i)})
		g.Spec.Ports = vps.PortBlock{First: uint16(20000 + 20*i), Count: 20}
		h.Guests = append(h.Guests, g)
	}
	return h
}

func edgeWorldOf(own ...string) edgeWorld {
	w := edgeWorld{
		running: func(id string) bool { return id == "id-alice" },
		live: func(_ *vps.Host, tenant string, d *vps.Domain) bool {
			return !d.NeedsProof(tenant) || d.Name == "proved.example.org"
		},
	}
	for _, a := range own {
		w.own = append(w.own, netip.MustParseAddr(a))
	}
	return w
}

func TestEdgeConfig(t *testing.T) {
	t.Parallel()
	web := []edge.Port{{Number: 80, Kind: edge.KindHTTP}, {Number: 443, Kind: edge.KindQUIC}, {Number: 443, Kind: edge.KindTLS}}
	blog := vps.Domain{Name: "blog.example.org"}
	imap := vps.Domain{Name: "imap.example.org", Listen: 993}
	woken := vps.Domain{Name: "woken.example.org", Wake: true}
	tests := map[string]struct {
		change func(h *vps.Host)
		ports  []edge.Port
		guests map[string]string // what is told of a guest, by name
	}{
		"no domains":       {func(*vps.Host) {}, nil, nil},
		"web":              {func(h *vps.Host) { h.Guests[0].Spec.Domains = []vps.Domain{blog} }, web, map[string]string{"alice": "runs: blog.example.org"}},
		"web without QUIC": {func(h *vps.Host) { h.Guests[0].Spec.Domains, h.Settings.Edge.QUIC = []vps.Domain{blog}, false }, []edge.Port{web[0], web[2]}, map[string]string{"alice": "runs: blog.example.org"}},
		"another port":     {func(h *vps.Host) { h.Guests[0].Spec.Domains = []vps.Domain{imap} }, []edge.Port{{Number: 993, Kind: edge.KindTLS}}, map[string]string{"alice": "runs: imap.example.org:993"}},
		"another port, certified": {func(h *vps.Host) {
			d := imap
			d.Terminate = true
			h.Guests[0].Spec.Domains = []vps.Domain{d}
		}, []edge.Port{web[0], web[2], {Number: 993, Kind: edge.KindTLS}}, map[string]string{"alice": "runs: imap.example.org:993"}},
		"disabled":              {func(h *vps.Host) { h.Guests[0].Spec.Domains, h.Settings.Edge.Disabled = []vps.Domain{blog, imap}, true }, nil, map[string]string{"alice": "runs: blog.example.org imap.example.org:993"}},
		"both":                  {func(h *vps.Host) { h.Guests[0].Spec.Domains = []vps.Domain{blog, imap} }, append(slices.Clone(web), edge.Port{Number: 993, Kind: edge.KindTLS}), map[string]string{"alice": "runs: blog.example.org imap.example.org:993"}},
		"one that does not run": {func(h *vps.Host) { h.Guests[1].Spec.Domains = []vps.Domain{woken} }, web, map[string]string{"bob": "stopped: woken.example.org (woken)"}},
		"all ports handed over": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains = []vps.Domain{blog}
			h.Guests[1].Spec.Forwards = []vps.Forward{{Host: 80, Guest: 80, Protocol: vps.ProtoTCP}, {Host: 443, Guest: 443, Protocol: vps.ProtoBoth}}
		}, nil, map[string]string{"alice": "runs: blog.example.org"}},
		"443/tcp handed over": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains = []vps.Domain{blog}
			h.Guests[1].Spec.Forwards = []vps.Forward{{Host: 443, Guest: 8443, Protocol: vps.ProtoTCP}, {Host: 80, Guest: 80, Protocol: vps.ProtoUDP}}
		}, web[:2], map[string]string{"alice": "runs: blog.example.org"}},
		"443/udp handed over": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains = []vps.Domain{blog}
			h.Guests[0].Spec.Forwards = []vps.Forward{{Host: 443, Guest: 443, Protocol: vps.ProtoUDP}}
		}, []edge.Port{web[0], web[2]}, map[string]string{"alice": "runs: blog.example.org"}},
		"a guest that had them is being deleted": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains = []vps.Domain{blog}
			h.Guests[1].Spec.Forwards = []vps.Forward{{Host: 443, Guest: 443, Protocol: vps.ProtoBoth}}
			h.Guests[1].Spec.Domains = []vps.Domain{imap}
			h.Guests[1].Deleting = true
		}, web, map[string]string{"alice": "runs: blog.example.org"}},
		"a tenant's, without proof": {func(h *vps.Host) {
			h.Guests[0].Spec.Tenant, h.Guests[0].Spec.Domains = "carol", []vps.Domain{blog}
		}, nil, nil},
		"a tenant's, vouched for and proved": {func(h *vps.Host) {
			h.Guests[0].Spec.Tenant = "carol"
			h.Guests[0].Spec.Domains = []vps.Domain{blog, {Name: "proved.example.org"}, {Name: "vouched.example.org", Vouched: true}}
		}, web, map[string]string{"alice": "runs: proved.example.org vouched.example.org"}},
		"suspended by a quota": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains = []vps.Domain{woken}
			h.Guests[0].Restraint = &vps.Restraint{Action: vps.ActionSuspend}
		}, web, map[string]string{"alice": "stopped: woken.example.org"}},
		"stopped by a quota": {func(h *vps.Host) {
			h.Guests[1].Spec.Domains = []vps.Domain{woken}
			h.Guests[1].Restraint = &vps.Restraint{Action: vps.ActionStop}
		}, web, map[string]string{"bob": "stopped: woken.example.org"}},
		"throttled by a quota": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains = []vps.Domain{woken}
			h.Guests[0].Restraint = &vps.Restraint{Action: vps.ActionThrottle, Rate: vps.Mbit}
		}, web, map[string]string{"alice": "runs: woken.example.org (woken)"}},
		"of an audit": {func(h *vps.Host) {
			h.Guests[0].Spec.Domains, h.Guests[0].Spec.Probe = []vps.Domain{blog}, "x"
		}, nil, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := edgeHost()
			tt.change(h)
			c := edgeConfig(h, edgeWorldOf())
			if diff := cmp.Diff(tt.ports, c.Ports); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			var guests map[string]string
			for i := range c.Guests {
				g := &c.Guests[i]
				text := "stopped:"
				if g.Running {
					text = "runs:"
				}
				for _, d := range g.Domains {
					text += " " + d.String()
					if d.Wake {
						text += " (woken)"
					}
				}
				if guests == nil {
					guests = map[string]string{}
				}
				guests[g.Name] = text
			}
			if diff := cmp.Diff(tt.guests, guests); diff != "" {
				t.Errorf("guests (-want +got):\n%s", diff)
			}
			// It says nothing that the edge would not take.
			if err := edge.New(edge.Options{Log: slog.New(slog.DiscardHandler)}).Set(c); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestEdgeConfigOfGuest(t *testing.T) {
	t.Parallel()
	h := edgeHost()
	h.Settings.Edge.Caller = vps.CallerProxyV2
	h.Guests[0].Spec.Domains = []vps.Domain{{Name: "blog.example.org", Port: 8443}}
	h.Guests[0].Spec.Limits = vps.NetworkLimits{Connections: 7}
	h.Guests[1].Spec.Domains = []vps.Domain{{Name: "bob.example.org"}}
	h.Guests[1].Spec.IPv6 = netip.MustParsePrefix("2001:db8:1::/64")
	h.Guests[0], h.Guests[1] = h.Guests[1], h.Guests[0] // whatever their order
	w := edgeWorldOf("203.0.113.9", "10.213.0.1", "2001:db8::9", "::ffff:203.0.113.9")
	got := edgeConfig(h, w)
	want := edge.Config{
		Settings: h.Settings.Edge,
		Own: []netip.Prefix{
			netip.MustParsePrefix("10.213.0.0/16"), netip.MustParsePrefix("10.213.0.1/32"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("203.0.113.9/32"),
			netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("2001:db8::9/128"), netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("fd53:4c00:d5::/64"),
		},
		Ports: got.Ports,
		Guests: []edge.Guest{
			{
				ID: "id-alice", Name: "alice", Address: netip.MustParseAddr("10.213.0.2"), Address6: netip.MustParseAddr("fd53:4c00:d5::2"), Running: true,
				Limits: vps.NetworkLimits{Connections: 7}.Or(h.Settings.Limits), Domains: []vps.Domain{{Name: "blog.example.org", Port: 8443}},
			},
			{
				ID: "id-bob", Name: "bob", Address: netip.MustParseAddr("10.213.0.3"), Address6: netip.MustParseAddr("2001:db8:1::1"),
				Limits: h.Settings.Limits, Domains: []vps.Domain{{Name: "bob.example.org"}},
			},
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("the configuration (-want +got):\n%s", diff)
	}
	h.Settings.Subnet6 = netip.Prefix{}
	if got := edgeConfig(h, w); got.Guests[0].Address6.IsValid() || got.Guests[1].Address6.IsValid() {
		t.Errorf("without IPv6 for guests they have %s and %s", got.Guests[0].Address6, got.Guests[1].Address6)
	}
}

func TestLinkAddresses(t *testing.T) {
	t.Parallel()
	all, err := linkAddresses()
	if err != nil || !slices.Contains(all, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("this machine's are %v, %v", all, err)
	}
}
