package daemon

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/internal/desired"
	"sublet/internal/edge"
	"sublet/internal/vps"
)

// webHost has alice of the owner, and bob and carl of the tenant friends, each with
// these domains.
func webHost(t *testing.T, domains map[string][]string) vps.Host {
	t.Helper()
	h := vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: "friends"}, {Name: vps.DefaultTenant}}}
	for i, name := range []string{"alice", "bob", "carl"} {
		s := vps.NewGuestSpec(name)
		s.Address, s.Ports = netip.AddrFrom4([4]byte{10, 213, 0, byte(2 + i)}), vps.PortBlock{}
		if name != "alice" {
			s.Tenant = "friends"
		}
		for _, text := range domains[name] {
			d, err := vps.ParseDomain(text)
			if err != nil {
				t.Fatal(err)
			}
			s.Domains = append(s.Domains, d)
		}
		h.Guests = append(h.Guests, vps.Guest{ID: "id-" + name, Index: i + 1, Spec: s})
	}
	return h
}

func hand(h *vps.Host, guest string, forwards ...string) {
	for _, text := range forwards {
		if f, err := vps.ParseForward(text); err == nil {
			h.Guest(guest).Spec.Forwards = append(h.Guest(guest).Spec.Forwards, f)
		}
	}
}

func TestDomainStates(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name, guest, domain string
		forwards            []string // of carl, or of the guest that is named first
		proof               vps.Proof
		closed              map[edge.Port]string
		stopped             bool
		state               vps.DomainState
		says                string
		quota               vps.QuotaAction // in force for the guest
	}{
		{"the owner's", "alice", "a.example.org", nil, vps.Proof{}, nil, false, vps.DomainLive, "", ""},
		{"not proved", "bob", "b.example.org", nil, vps.Proof{}, nil, false, vps.DomainPending, `it waits for a proof that it is friends's; what proves it is the TXT record _sublet.b.example.org with "sublet=token"`, ""},
		{"proved", "bob", "b.example.org", nil, vps.Proof{Proved: now}, nil, false, vps.DomainLive, "", ""},
		{"vouched for", "bob", "b.example.org vouched", nil, vps.Proof{}, nil, false, vps.DomainLive, "", ""},
		{"failing", "bob", "b.example.org", nil, vps.Proof{Proved: now, Failing: now, Message: "no record"}, nil, false, vps.DomainFailing, "is gone: no record; what proves", ""},
		{"failing and stopped", "bob", "b.example.org", nil, vps.Proof{Proved: now, Failing: now, Message: "no record"}, nil, true, vps.DomainStopped, "its guest does not run", ""},
		{"lost", "bob", "b.example.org", nil, vps.Proof{Failing: now, Message: "no record"}, nil, false, vps.DomainLost, "is gone: no record; what proves", ""},
		{"one port of two handed over", "alice", "a.example.org", []string{"443:443/tcp"}, vps.Proof{}, nil, false, vps.DomainLive, "port 443 leads to carl alone; `sublet port remove carl 443/tcp` ends that", ""},
		{"both handed over", "alice", "a.example.org", []string{"443:443/tcp", "80:80"}, vps.Proof{}, nil, false, vps.DomainHanded, "port 443 leads to carl alone; `sublet port remove carl 443/tcp` ends that; port 80", ""},
		{"for TLS alone, handed over", "alice", "a.example.org:443", []string{"443:8443/tcp"}, vps.Proof{}, nil, false, vps.DomainHanded, "port 443 leads to carl alone", ""},
		{"UDP handed over", "alice", "a.example.org", []string{"443:443/udp"}, vps.Proof{}, nil, false, vps.DomainLive, "", ""},
		{"to itself", "carl", "c.example.org vouched", []string{"443:443/tcp", "80:80"}, vps.Proof{}, nil, false, vps.DomainLive, "", ""},
		{"a port that the edge cannot have", "alice", "a.example.org:993", nil, vps.Proof{}, map[edge.Port]string{{Number: 993, Kind: edge.KindTLS}: "dovecot has 993"}, false, vps.DomainBlocked, "dovecot has 993", ""},
		{"one of two that it cannot have", "alice", "a.example.org", nil, vps.Proof{}, map[edge.Port]string{{Number: 80, Kind: edge.KindHTTP}: "apache has 80"}, true, vps.DomainStopped, "`sublet start alice` starts it; apache has 80", ""},
		{"stopped, to be woken", "alice", "a.example.org wake", nil, vps.Proof{}, nil, true, vps.DomainStopped, "a call starts it", ""},
		{"stopped by a quota", "alice", "a.example.org wake", nil, vps.Proof{}, nil, true, vps.DomainStopped, "the quota guest/alice is used up", vps.ActionStop},
		{"suspended by a quota", "alice", "a.example.org", nil, vps.Proof{}, nil, false, vps.DomainStopped, "until 2026-12-01 00:00 UTC; `sublet quota lift` lifts it", vps.ActionSuspend},
		{"throttled by a quota", "alice", "a.example.org", nil, vps.Proof{}, nil, false, vps.DomainLive, "", vps.ActionThrottle},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := webHost(t, map[string][]string{tt.guest: {tt.domain}})
			hand(&h, "carl", tt.forwards...)
			g := h.Guest(tt.guest)
			v := domainView{host: &h, running: map[string]bool{g.ID: !tt.stopped}, closed: tt.closed, proof: func(tenant, name string) (vps.Proof, vps.ProofSteps) {
				if tenant != g.Spec.Tenant || name != g.Spec.Domains[0].Name {
					t.Errorf("a proof for %s of %s is looked up", name, tenant)
				}
				return tt.proof, vps.ProofSteps{Record: "_sublet." + name, Value: "sublet=token"}
			}}
			if tt.quota != "" {
				until := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
				v.restraint = map[string]*vps.Restraint{g.ID: {Quota: "guest/alice", Action: tt.quota, Until: until}}
			}
			state, message := v.state(g, &g.Spec.Domains[0], v.proofOf(g, &g.Spec.Domains[0]))
			if state != tt.state || !strings.Contains(message, tt.says) || tt.says == "" && message != "" {
				t.Errorf("%s: %q; want %s: %q", state, message, tt.state, tt.says)
			}
		})
	}
}

// TestDomainStatesOfOthers: where another router has the edge's ports it is told.
func TestDomainStatesOfOthers(t *testing.T) {
	t.Parallel()
	h := webHost(t, map[string][]string{"alice": {"a.example.org wake"}})
	h.Settings.Edge.Disabled = true
	hand(&h, "carl", "443:443/tcp")
	g := h.Guest("alice")
	v := domainView{host: &h, running: map[string]bool{g.ID: true}}
	if state, message := v.state(g, &g.Spec.Domains[0], v.proofOf(g, &g.Spec.Domains[0])); state != vps.DomainLive || !strings.Contains(message, "the edge is disabled") || !strings.Contains(message, "port 443 leads to carl") {
		t.Errorf("%s: %q", state, message)
	}
	v.running = nil
	if state, message := v.state(g, &g.Spec.Domains[0], v.proofOf(g, &g.Spec.Domains[0])); state != vps.DomainStopped || !strings.Contains(message, "`sublet start alice`") {
		t.Errorf("%s: %q", state, message)
	}
	hand(&h, "carl", "80:80/tcp")
	if state, _ := v.state(g, &g.Spec.Domains[0], v.proofOf(g, &g.Spec.Domains[0])); state != vps.DomainHanded {
		t.Errorf("%s", state)
	}
}

func TestDomainWarnings(t *testing.T) {
	t.Parallel()
	there := map[string][]string{
		"alice": {"a.example.org", "a.example.org:993"}, "bob": {"b.example.org"}, "carl": {"c.example.org:443", "*.c.example.org"},
	}
	apart := webHost(t, there)
	handed, both := webHost(t, there), webHost(t, there)
	hand(&handed, "alice", "443:443/tcp")
	hand(&both, "alice", "443:443/tcp", "80:8080/tcp", "993:993/udp")
	more := webHost(t, map[string][]string{"alice": {"a.example.org", "new.example.org"}, "bob": {"b.example.org", "b2.example.org"}, "carl": {"c.example.org:443", "*.c.example.org"}})
	hand(&more, "alice", "443:443/tcp")
	other := webHost(t, there)
	hand(&other, "carl", "443:443/tcp")
	alone := webHost(t, map[string][]string{"alice": {"a.example.org"}})
	handedAlone := webHost(t, map[string][]string{"alice": {"a.example.org"}})
	hand(&handedAlone, "alice", "443:443/tcp")
	for name, tt := range map[string]struct {
		before, after vps.Host
		want          []string
	}{
		"nothing":       {apart, apart, nil},
		"was so before": {handed, handed, nil},
		"ends":          {handed, apart, nil},
		"nobody else":   {alone, handedAlone, nil},
		"handed over":   {apart, handed, []string{"port 443 leads to alice alone now: b.example.org of bob and 2 more are not served over TLS"}},
		"handed over to another one": {handed, other, []string{
			"port 443 leads to carl alone now: a.example.org of alice and 1 more are not served over TLS",
		}},
		"the other port too": {handed, both, []string{
			"port 80 leads to alice alone now: b.example.org of bob and 1 more are not served over plain HTTP, nor can certificates be had that way",
		}},
		"a domain where it is handed over": {handed, more, []string{
			"b2.example.org of bob is not served over TLS: port 443 leads to alice alone, until `sublet port remove alice 443/tcp`",
		}},
	} {
		if got := domainWarnings(tt.before, tt.after); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

type openPorts []edge.Port

func (o openPorts) Ports() ([]edge.Port, map[edge.Port]string)     { return o, nil }
func (o openPorts) Certificates(context.Context) []vps.Certificate { return nil }
func (o openPorts) RetryCertificates()                             {}

// TestEdgesOwnPorts: what the edge listens on is nobody else's program.
func TestEdgesOwnPorts(t *testing.T) {
	t.Parallel()
	p := &parts{edgeView: openPorts{{Number: 443, Kind: edge.KindTLS}, {Number: 443, Kind: edge.KindQUIC}, {Number: 80, Kind: edge.KindHTTP}, {Number: 993, Kind: edge.KindTLS}}}
	for l, want := range map[desired.Listener]bool{
		{Port: 443, Protocol: vps.ProtoTCP}: true, {Port: 443, Protocol: vps.ProtoUDP}: true, {Port: 80, Protocol: vps.ProtoTCP}: true, {Port: 80, Protocol: vps.ProtoUDP}: false,
		{Port: 993, Protocol: vps.ProtoTCP}: true, {Port: 993, Protocol: vps.ProtoUDP}: false, {Port: 22, Protocol: vps.ProtoTCP}: false,
	} {
		if got := p.edgeHas(l); got != want {
			t.Errorf("%+v: %v", l, got)
		}
	}
	if (&parts{}).edgeHas(desired.Listener{Port: 443, Protocol: vps.ProtoTCP}) {
		t.Error("without an edge, it has a port")
	}
}
