package daemon

import (
	"net/netip"
	"slices"
	"testing"

	"sublet/internal/nstest"
	"sublet/internal/vps"
)

func TestDomainFor(t *testing.T) {
	t.Parallel()
	host := vps.Host{Guests: []vps.Guest{
		{ID: "1", Spec: vps.GuestSpec{Name: "alice", Domains: []vps.Domain{{Name: "*.example.org"}, {Name: "mail.example.org", Listen: 993}}}},
		{ID: "2", Spec: vps.GuestSpec{Name: "bob", Domains: []vps.Domain{{Name: "blog.example.org"}, {Name: "*.x.example.org"}, {Name: "*", Listen: 993}}}},
		{ID: "3", Spec: vps.GuestSpec{Name: "carl", Domains: []vps.Domain{{Name: "tls.example.org", Listen: 443}, {Name: "alone.example.net", Listen: 443}}}},
		{ID: "4", Deleting: true, Spec: vps.GuestSpec{Name: "dora", Domains: []vps.Domain{{Name: "gone.example.net"}, {Name: "blog.example.org"}}}},
	}}
	for _, c := range []struct {
		name   string
		listen uint16
		want   string // guest and domain
	}{
		{"blog.example.org", 0, "bob blog.example.org"},
		{"other.example.org", 0, "alice *.example.org"},
		{"a.b.example.org", 0, "alice *.example.org"},
		{"a.x.example.org", 0, "bob *.x.example.org"},
		{"x.example.org", 0, "alice *.example.org"},
		{"example.org", 0, ""},
		{"example.net", 0, ""},
		{"", 0, ""},
		{"gone.example.net", 0, ""},
		// A domain of port 443 has the calls there, and those of web the others.
		{"tls.example.org", 443, "carl tls.example.org:443"},
		{"tls.example.org", 0, "alice *.example.org, 443 by tls.example.org:443"},
		{"blog.example.org", 443, "bob blog.example.org"},
		{"alone.example.net", 443, "carl alone.example.net:443"},
		{"alone.example.net", 0, ""},
		{"blog.example.org", 80, ""},
		{"mail.example.org", 993, "alice mail.example.org:993"},
		{"other.example.org", 993, "bob *:993"},
		{"", 993, "bob *:993"},
		{"nas", 993, "bob *:993"},
	} {
		got := ""
		g, d, other, err := domainFor(&host, c.name, c.listen)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			got = g.Spec.Name + " " + d.String()
		}
		if other != nil {
			got += ", 443 by " + other.String()
		}
		if got != c.want {
			t.Errorf("%s on %d: %q, want %q", c.name, c.listen, got, c.want)
		}
	}
}

// TestCallable reads the addresses of links.
func TestCallable(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	host.Veth("up0", host.Peer(), "eth0")
	host.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	host.Exec("ip", "addr", "add", "2001:db8::1/64", "dev", "up0")
	host.Exec("ip", "addr", "add", "10.213.0.1/24", "dev", "lo")
	s := vps.DefaultSettings()
	s.PublicAddress = netip.MustParseAddr("203.0.113.9")
	got := callable(&s, []string{"up0", "gone"})
	if want := []netip.Addr{s.PublicAddress, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
