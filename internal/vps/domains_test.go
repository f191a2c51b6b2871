package vps

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// domainHost has these domains for the guests alice and carl of the owner, and for
// bob of the tenant friends, in this order.
func domainHost(tb testing.TB, alice, carl, bob []string) *Host {
	tb.Helper()
	h := &Host{Settings: DefaultSettings(), Tenants: []Tenant{{Name: "friends"}, {Name: DefaultTenant}}}
	for i, g := range []struct {
		name, tenant string
		domains      []string
	}{{"alice", DefaultTenant, alice}, {"carl", DefaultTenant, carl}, {"bob", "friends", bob}} {
		s := NewGuestSpec(g.name)
		s.Tenant, s.Address, s.Ports = g.tenant, netip.AddrFrom4([4]byte{10, 213, 0, byte(2 + i)}), PortBlock{uint16(20000 + 20*i), 20}
		for _, text := range g.domains {
			d, err := ParseDomain(text)
			if err != nil {
				tb.Fatal(err)
			}
			s.Domains = append(s.Domains, d)
		}
		h.Guests = append(h.Guests, Guest{ID: g.name, Index: i + 1, Spec: s})
	}
	return h
}

func list(names ...string) []string { return names }

func TestDomainsTogether(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		alice, carl, bob []string
		code             Code
		says             string
	}{
		{"none", nil, nil, nil, "", ""},
		{"apart", list("a.example.org", "*.a.example.org"), list("c.example.org"), list("b.example.org", "*.b.example.org"), "", ""},
		{"one name on several ports", list("a.example.org", "a.example.org:443", "a.example.org:993"), nil, nil, "", ""},
		{"one name of two guests", list("a.example.org"), nil, list("a.example.org"), CodeConflict, "a.example.org for bob belongs to the guest alice; remove it there first with `sublet domain remove alice a.example.org`"},
		{"of two guests on two ports", list("a.example.org"), list("a.example.org:993"), nil, CodeConflict, "a.example.org:993 for carl belongs to the guest alice"},
		{"one suffix of two guests", list("*.example.org"), list("*.example.org:993"), nil, CodeConflict, "`sublet domain remove alice '*.example.org'`"},
		{"more exact within a tenant", list("*.example.org"), list("c.example.org", "*.d.example.org"), nil, "", ""},
		{"a suffix over another tenant's name", list("x.b.example.org"), nil, list("*.example.org"), CodeConflict, "the suffix *.example.org for bob covers x.b.example.org of the guest alice, which is another tenant's; name the domains of bob one by one, or remove that one with `sublet domain remove alice x.b.example.org`"},
		{"a suffix over another tenant's suffix", list("*.b.example.org"), nil, list("*.example.org"), CodeConflict, "covers *.b.example.org of the guest alice"},
		{"below another tenant's suffix", list("*.example.org"), nil, list("b.example.org"), CodeConflict, "the domain b.example.org for bob is covered by *.example.org of the guest alice, which is another tenant's; remove that suffix first with `sublet domain remove alice '*.example.org'`"},
		{"below it on another port", list("*.example.org:993"), nil, list("b.example.org"), CodeConflict, "is covered by"},
		{"beside another tenant's suffix", list("*.example.org"), nil, list("example.org", "bexample.org", "example.org.example"), "", ""},
		{"all calls for the owner", list("*", "*:993"), list("*:994"), nil, "", ""},
		{"all calls twice", list("*"), list("*"), nil, CodeConflict, "the domain * for carl belongs to the guest alice"},
		{"all calls for a tenant", nil, nil, list("*"), CodeDenied, "is for guests of the tenant owner; vouch for it"},
		{"all calls, vouched", nil, nil, list("* vouched"), "", ""},
		{"a port of a block", list("a.example.org:20045"), nil, nil, CodeConflict, "the domain a.example.org:20045 of alice is served on port 20045, which belongs to the block 20040-20059 of the guest bob; use another port for one of them"},
		{"a port that is forwarded", nil, nil, list("b.example.org:8443"), CodeConflict, "b.example.org:8443 of bob is served on port 8443, which leads to the guest carl by a forward"},
		{"a port that is forwarded for UDP", nil, nil, list("b.example.org:5353"), "", ""},
		{"a port of web that is forwarded", list("a.example.org"), nil, list("b.example.org:443"), "", ""},
		{"a service of the host", list("a.example.org:53"), nil, nil, CodeConflict, "is one of the host's own services"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := domainHost(t, tt.alice, tt.carl, tt.bob)
			h.Guests[1].Spec.Forwards = []Forward{{Host: 443, Guest: 443, Protocol: ProtoBoth}, {Host: 8443, Guest: 1, Protocol: ProtoTCP}, {Host: 5353, Guest: 1, Protocol: ProtoUDP}}
			err := h.Validate()
			if ErrorCode(err) != tt.code || tt.says != "" && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("want %q: %v", tt.says, err)
			}
		})
	}
	h := domainHost(t, nil, nil, nil)
	for i := range h.Guests { // a thousand each
		for n := range MaxGuestDomains {
			h.Guests[i].Spec.Domains = append(h.Guests[i].Spec.Domains, Domain{Name: fmt.Sprintf("n%d.g%d.example.org", n, i)})
		}
	}
	if err := h.Validate(); err != nil {
		t.Error(err)
	}
	for i := range 8 {
		g := h.Guests[0]
		g.Spec.Domains = slices.Clone(g.Spec.Domains)
		for n := range g.Spec.Domains {
			g.Spec.Domains[n].Name = fmt.Sprintf("n%d.h%d.example.org", n, i)
		}
		g.Spec.Name, g.Spec.Address, g.Spec.Ports = fmt.Sprint("more-", i), netip.AddrFrom4([4]byte{10, 213, 1, byte(i)}), PortBlock{}
		h.Guests = append(h.Guests, g)
	}
	if err := h.Validate(); ErrorCode(err) != CodeDenied || !strings.Contains(err.Error(), "11000 domains are more than the limit of 10000 for a host") {
		t.Error(err)
	}
}

func TestHandedTo(t *testing.T) {
	t.Parallel()
	h := domainHost(t, list("a.example.org", "a.example.org:993"), nil, list("b.example.org:443"))
	if got := h.EdgePorts(); !slices.Equal(got, []uint16{80, 443, 993}) {
		t.Error(got)
	}
	if services := h.Network(nil).Services; !slices.Equal(services, append(DefaultServices(), Service{993, ProtoTCP})) {
		t.Error(services)
	}
	h.Guests[1].Spec.Forwards = []Forward{{Host: 443, Guest: 8443, Protocol: ProtoTCP}, {Host: 80, Guest: 80, Protocol: ProtoUDP}}
	if g := h.HandedTo(443, ProtoTCP); g != &h.Guests[1] {
		t.Error(g)
	}
	if g := h.HandedTo(80, ProtoTCP); g != nil {
		t.Error(g)
	}
	if g := h.HandedTo(80, ProtoUDP); g != &h.Guests[1] {
		t.Error(g)
	}
	h.Guests[1].Deleting = true
	if g := h.HandedTo(443, ProtoTCP); g != nil {
		t.Error(g)
	}
}

// TestGiveTo: the owner's word was about the old tenant.
func TestGiveTo(t *testing.T) {
	t.Parallel()
	s := NewGuestSpec("a")
	s.Domains = []Domain{{Name: "a.example.org", Vouched: true, Wake: true}, {Name: "b.example.org"}}
	was := s.Domains
	s.GiveTo(DefaultTenant)
	if !s.Domains[0].Vouched {
		t.Error("given to whom it belongs already, the word is gone")
	}
	s.GiveTo("friends")
	if s.Tenant != "friends" || s.Domains[0] != (Domain{Name: "a.example.org", Wake: true}) || !was[0].Vouched {
		t.Errorf("%+v, and before %+v", s.Domains, was)
	}
}

// BenchmarkValidateDomains checks a host with the most domains that it may have.
func BenchmarkValidateDomains(b *testing.B) {
	h := domainHost(b, nil, nil, nil)
	h.Guests = h.Guests[:0]
	for i := range 100 {
		s := NewGuestSpec(fmt.Sprint("guest-", i))
		s.Address, s.Ports = netip.AddrFrom4([4]byte{10, 213, 1, byte(i)}), PortBlock{uint16(20000 + 20*i), 20}
		for n := range MaxDomains / 100 {
			s.Domains = append(s.Domains, Domain{Name: fmt.Sprintf("n%d.g%d.example.org", n, i)})
		}
		s.Domains[0].Name = fmt.Sprintf("*.g%d.example.org", i)
		h.Guests = append(h.Guests, Guest{ID: s.Name, Index: i + 1, Spec: s})
	}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			if err := h.Validate(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("domains", func(b *testing.B) {
		for b.Loop() {
			if err := h.ValidateDomains(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
