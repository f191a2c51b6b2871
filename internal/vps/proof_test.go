package vps

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestProofState(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for want, p := range map[DomainState]Proof{
		DomainPending: {}, DomainLive: {Proved: now}, DomainFailing: {Proved: now, Failing: now}, DomainLost: {Failing: now},
	} {
		if got := p.State(); got != want || p.Live() != (want == DomainLive || want == DomainFailing) {
			t.Errorf("%+v is %s", p, got)
		}
	}
}

func TestNeedsProof(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		d      Domain
		tenant string
		want   bool
	}{
		{Domain{Name: "a.example.org"}, "bob", true},
		{Domain{Name: "*.example.org"}, "bob", true},
		{Domain{Name: "a.example.org", Vouched: true}, "bob", false},
		{Domain{Name: "*"}, "bob", false},
		{Domain{Name: "a.example.org"}, DefaultTenant, false},
	} {
		if got := c.d.NeedsProof(c.tenant); got != c.want {
			t.Errorf("%v of %s: %t", c.d, c.tenant, got)
		}
	}
}

func TestResolvers(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"9.9.9.9:53": "", "[::1]:5353": "", "[fe80::1%eth0]:53": "",
		"9.9.9.9:0": "9.9.9.9:0 is not a name server", "0.0.0.0:53": "not a name server", "[::]:53": "not", "224.0.0.1:53": "not", "[::ffff:9.9.9.9]:53": "not",
	} {
		s := DefaultEdgeSettings()
		s.Resolvers = []netip.AddrPort{netip.MustParseAddrPort(text)}
		if err := s.validate(); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
	s := DefaultEdgeSettings()
	s.Resolvers = make([]netip.AddrPort, MaxResolvers+1)
	if err := s.validate(); err == nil || !strings.Contains(err.Error(), "limit of 4") {
		t.Error(err)
	}
}
