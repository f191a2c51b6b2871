package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/vps"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

func rule(t *testing.T, text string) vps.Rule {
	t.Helper()
	return must[vps.Rule](t)(vps.ParseRule(text))
}

// TestWallRoundTrip sends everything that the wall is made from, and reads it
// back.
func TestWallRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	rules := []vps.Rule{rule(t, "deny out 2001:db8::/32"), rule(t, "allow in any 6000-6010/udp"), rule(t, "allow out host 8080/tcp")}
	prefix := netip.MustParsePrefix("fd53:4c00:d5::5/128")
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{
		Name: "alice", IPv6: &prefix, NetworkPeer: new(true), SMTP: new(true), Bandwidth: new(20 * vps.Mbit), Rules: rules,
		Limits: &SetLimits{Packets: new(5000)}, Resources: &SetResources{CPUQuota: new(150), IORead: new(50 * vps.MiB)},
	}, false))
	check := func(want vps.GuestSpec) {
		t.Helper()
		got := must[Guest](t)(s.Guest(ctx, "alice")).Spec
		got = vps.GuestSpec{
			IPv6: got.IPv6, NetworkPeer: got.NetworkPeer, SMTP: got.SMTP, Bandwidth: got.Bandwidth,
			Limits: got.Limits, Rules: got.Rules, Resources: got.Resources,
		}
		if diff := cmp.Diff(want, got, comparePrefixes, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	want := vps.GuestSpec{
		IPv6: prefix, NetworkPeer: true, SMTP: true, Bandwidth: 20 * vps.Mbit, Rules: rules,
		Limits: vps.NetworkLimits{Packets: 5000}, Resources: vps.Resources{CPUQuota: 150, IORead: 50 * vps.MiB},
	}
	check(want)
	// What is left out of a mapping stays, what is zero goes back to the
	// default, and an empty list empties.
	must[Change](t)(s.UpdateGuest(ctx, "alice", UpdateGuest{
		IPv6: new(netip.Prefix), Bandwidth: new(vps.BitRate), Rules: new([]vps.Rule),
		Limits: &SetLimits{Packets: new(0), Connections: new(9)}, Resources: &SetResources{CPUWeight: new(50)},
	}, false))
	want.IPv6, want.Bandwidth, want.Rules = netip.Prefix{}, 0, nil
	want.Limits, want.Resources.CPUWeight = vps.NetworkLimits{Connections: 9}, 50
	check(want)
}

// TestExpect checks that of two who edit a list, the second is told.
func TestExpect(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{Name: "alice"}, false))
	first, second := []vps.Rule{rule(t, "deny in any tcp")}, []vps.Rule{rule(t, "deny in any udp")}
	put := func(from, to []vps.Rule) error {
		_, err := s.UpdateGuest(ctx, "alice", UpdateGuest{Rules: &to, Expect: &Expect{Rules: &from}}, false)
		return err
	}
	check(t, put(nil, first))
	err := put(nil, second)
	if e := wantCode(t, err, vps.CodeConflict); !Changed(err) || e.Field != "expect.rules" || !strings.Contains(e.Message, "the rules of the guest alice were changed meanwhile") {
		t.Errorf("%+v", e)
	}
	check(t, put(first, second))
	for name, e := range map[string]*Expect{
		"forwards": {Forwards: &[]vps.Forward{{Host: 1, Guest: 1, Protocol: vps.ProtoTCP}}},
		"ssh_keys": {SSHKeys: &[]string{"x"}},
		"rules":    {Rules: &[]vps.Rule{second[0], first[0]}},
	} {
		_, err := s.UpdateGuest(ctx, "alice", UpdateGuest{Memory: new(vps.GiB), Expect: e}, false)
		if e := wantCode(t, err, vps.CodeConflict); e.Field != "expect."+name {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if g := must[Guest](t)(s.Guest(ctx, "alice")); g.Spec.Memory == vps.GiB {
		t.Error("a change was made although the guest was not as expected")
	}
	if Changed(vps.Errorf(vps.CodeConflict, "the port is taken")) || Changed(nil) {
		t.Error("other conflicts are taken for this one")
	}
}

func TestGuestNetwork(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	_, err := s.GuestNetwork(ctx, "alice")
	wantCode(t, err, vps.CodeNotFound)
	_, err = s.GuestNetwork(ctx, "../alice")
	wantCode(t, err, vps.CodeInvalid)
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{Name: "alice", Limits: &SetLimits{Connections: new(10)}}, false))
	_, body := s.raw(t, "GET", "/v1/guests/alice/network", "", "")
	if strings.Contains(body, "null") {
		t.Errorf("a list is null: %s", body)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.fake.drops = []Drop{{vps.Drop{Reason: vps.DropSpoofed, Packets: 1 << 60, Bytes: 7}, at}, {Drop: vps.Drop{Reason: vps.DropSMTP}}}
	n := must[GuestNetwork](t)(s.GuestNetwork(ctx, "alice"))
	want := GuestNetwork{
		Schema: SchemaVersion, Name: "alice", Address: netip.MustParseAddr("10.213.0.2"), Peers: []string{}, Rules: []vps.Rule{}, Drops: s.fake.drops,
		Limits: GuestLimits{vps.NetworkLimits{Packets: 100_000, NewConnections: 500, Connections: 10}, []string{"packets", "new_connections"}},
	}
	if diff := cmp.Diff(want, n, comparePrefixes); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestBadWalls(t *testing.T) {
	t.Parallel()
	s := start(t)
	must[Change](t)(s.CreateGuest(t.Context(), CreateGuest{Name: "alice"}, false))
	for _, tt := range []struct{ name, body, field, says string }{
		{"no rule", `{"rules":["deny everything"]}`, "rules[0]", "rule such as"},
		{"a rule that the pattern lets through", `{"rules":["allow in host"]}`, "", "the host always reaches"},
		{"ports without a protocol that has them", `{"rules":["allow in any 1-2/icmp"]}`, "", "ports need a protocol"},
		{"hostile", `{"rules":["deny out any\n; flush ruleset"]}`, "rules[0]", "rule such as"},
		{"speed as text", `{"bandwidth":"20Mbit"}`, "bandwidth", "integer"},
		{"negative speed", `{"bandwidth":-1}`, "bandwidth", ">="},
		{"negative limit", `{"limits":{"packets":-1}}`, "limits.packets", ">="},
		{"unknown limit", `{"limits":{"packet":1}}`, "limits.packet", "not known"},
		{"unknown resource", `{"resources":{"cpu":1}}`, "resources.cpu", "not known"},
		{"bad prefix", `{"ipv6":"2001:db8::/129"}`, "", "2001:db8::/129"},
		{"a probe", `{"probe":"victim"}`, "probe", "not known"},
		{"a password in what is expected", `{"expect":{"root_password":"x"}}`, "expect.root_password", "not known"},
	} {
		resp, body := s.raw(t, "PATCH", "/v1/guests/alice", typeJSON, tt.body)
		var p Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode < 400 || resp.StatusCode >= 500 || p.Code != vps.CodeInvalid || p.Field != tt.field || !strings.Contains(p.Detail, tt.says) {
			t.Errorf("%s: %d, want field %q and %q: %s", tt.name, resp.StatusCode, tt.field, tt.says, body)
		}
	}
}

func TestTenantMembersLeftOutStay(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	check(t, s.PutTenant(ctx, "zoe", UpdateTenant{Note: new("n"), NetworkPeer: new(true)}))
	check(t, s.PutTenant(ctx, "zoe", UpdateTenant{}))
	same(t, must[[]vps.Tenant](t)(s.Tenants(ctx))[1], vps.Tenant{Name: "zoe", Note: "n", NetworkPeer: true})
	check(t, s.PutTenant(ctx, "zoe", UpdateTenant{NetworkPeer: new(false)}))
	same(t, must[[]vps.Tenant](t)(s.Tenants(ctx))[1], vps.Tenant{Name: "zoe", Note: "n"})
}

var testAttacks = []AuditResult{
	{Kind: AttackNetwork, Attack: "foreign-mac", What: "a frame from a foreign MAC", Expected: "dropped", Seen: "dropped", Counter: "spoofed", OK: true},
	{Kind: AttackJail, Attack: "shadow", What: "read /etc/shadow", Expected: "refused", Seen: "read", OK: false},
}

// TestAudit checks that each result arrives when it is there, and not at the
// end: the second attack waits until the first result was seen.
func TestAudit(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	s.fake.attacks = testAttacks
	seen := make(chan AuditResult, len(testAttacks))
	type end struct {
		report AuditReport
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		report, err := s.Audit(ctx, func(r AuditResult) { seen <- r })
		ended <- end{report, err}
	}()
	for _, want := range testAttacks {
		s.fake.attack <- struct{}{}
		same(t, <-seen, want)
	}
	got := <-ended
	check(t, got.err)
	same(t, got.report, AuditReport{Schema: SchemaVersion, Results: testAttacks})
}

func TestAuditFails(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	s.fake.setErr(vps.Errorf(vps.CodeConflict, "another audit runs"))
	_, err := s.Audit(ctx, nil)
	wantCode(t, err, vps.CodeConflict)
	// After the first result the failure comes behind it.
	s.fake.attacks = testAttacks[:1]
	close(s.fake.attack)
	_, err = s.Audit(ctx, nil)
	if e := wantCode(t, err, vps.CodeConflict); e.Message != "another audit runs" {
		t.Error(e)
	}
	_, err = startWith(t, newFake(), &Backend{}).Audit(ctx, nil)
	wantCode(t, err, vps.CodeUnavailable)
	if resp, body := s.raw(t, "POST", "/v1/audit?fast=1", "", ""); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func TestAuditEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.fake.attacks = testAttacks
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Audit(ctx, func(AuditResult) { cancel() })
		ended <- err
	}()
	s.fake.attack <- struct{}{}
	wantCode(t, <-ended, vps.CodeTimeout)
	<-s.fake.audited // the backend was told
}

func TestAuditEndsWithTheDaemon(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.fake.attacks = testAttacks
	ended := make(chan error, 1)
	first := make(chan struct{})
	go func() {
		_, err := s.Audit(t.Context(), func(AuditResult) { close(first) })
		ended <- err
	}()
	s.fake.attack <- struct{}{}
	<-first
	s.stop()
	wantCode(t, <-ended, vps.CodeUnavailable)
}
