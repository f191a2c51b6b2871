package vps_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sublet/internal/vps"
)

func TestParseBitRate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]vps.BitRate{
		"20Mbit": 20 * vps.Mbit, "1Gbit": vps.Gbit, "64kbit": 64 * vps.Kbit, "5bit": 5, "0": 0, "1.5Mbit": 1500 * vps.Kbit, "0.001kbit": 1, " 20 Mbit ": 20 * vps.Mbit, "9223372036Gbit": 9223372036 * vps.Gbit,
	} {
		if got, err := vps.ParseBitRate(text); err != nil || got != want {
			t.Errorf("ParseBitRate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "20", "20MB", "20mbit", "20Mbits", "-1Mbit", "+1Mbit", "1.5bit", "0.0005kbit", "1..5Mbit", "1/2Mbit", "1e3bit", "0x10bit", "bit", "Mbit", "9223372037Gbit", "99999999999999999999bit", "1Mbit; x"} {
		if got, err := vps.ParseBitRate(text); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("ParseBitRate(%q) = %d, %v; want it refused", text, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		r := vps.BitRate(rapid.Int64Range(0, 1<<62).Draw(t, "rate"))
		if got, err := vps.ParseBitRate(r.String()); err != nil || got != r {
			t.Fatalf("ParseBitRate(%q) = %d, %v; want %d", r, got, err, r)
		}
	})
	var r vps.BitRate
	if err := r.Set("2Mbit"); err != nil || r != 2*vps.Mbit || r.Type() != "rate" {
		t.Errorf("as a flag: %d, %v", r, err)
	}
	if err := r.Set("x"); err == nil || r != 2*vps.Mbit {
		t.Errorf("a bad flag: %d, %v", r, err)
	}
}

func TestParseRule(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"deny out 192.0.2.0/24":         "",
		"allow in any 443/tcp":          "",
		"allow out host 8080/tcp":       "",
		"allow in any 6000-6010/udp":    "",
		"deny in 2001:db8::1 icmp":      "",
		"deny out 0.0.0.0/0":            "",
		"deny out any":                  "",
		"allow out 198.51.100.7 tcp":    "",
		"deny out 192.0.2.77/24":        "deny out 192.0.2.0/24", // its bits behind the length go
		"deny out 192.0.2.7/32":         "deny out 192.0.2.7",
		" deny \t out   any  25-25/tcp": "deny out any 25/tcp",
		"deny out ::ffff:192.0.2.7":     "deny out 192.0.2.7",
		"deny in fe80::1%eth0":          "deny in fe80::1", // a zone is a link of the guest's, which the host has not
	} {
		r, err := vps.ParseRule(text)
		if want == "" {
			want = text
		}
		if err != nil || r.String() != want {
			t.Errorf("ParseRule(%q) = %q, %v; want %q", text, r, err, want)
		}
	}
	for _, text := range []string{
		"", "deny", "deny out", "deny out any tcp udp", "reject out any", "Deny out any", "deny up any", "deny out everybody", "deny out example.org",
		"allow in host", "deny in host 22/tcp", "deny out any 0/tcp", "deny out any 65536/tcp", "deny out any 20-10/tcp", "deny out any 80", "deny out any 80/",
		"deny out any 80/icmp", "deny out any 80/sctp", "deny out any sctp", "deny out any tcp+udp", "deny out any 80/tcp+udp", "deny out any -80/tcp",
		"deny out any 80-/tcp", "deny out any /tcp", "deny out 10.0.0.0/33", "deny out ::ffff:10.0.0.0/104", "deny out 10.0.0.0/-1",
		"deny out any;flush 80/tcp", "deny out any 80/tcp;", "deny out any\x00",
	} {
		if r, err := vps.ParseRule(text); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("ParseRule(%q) = %q, %v; want it refused", text, r, err)
		}
	}
}

// TestRuleValidate checks what no text gives, but a program may.
func TestRuleValidate(t *testing.T) {
	t.Parallel()
	good := vps.Rule{Action: vps.Deny, Direction: vps.Out, Protocol: vps.ProtoTCP, First: 1, Last: 2}
	if err := good.Validate("r"); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*vps.Rule){
		"no action":      func(r *vps.Rule) { r.Action = "" },
		"no direction":   func(r *vps.Rule) { r.Direction = "" },
		"host and peer":  func(r *vps.Rule) { r.Host, r.Peer = true, netip.MustParsePrefix("10.0.0.0/8") },
		"bits behind":    func(r *vps.Rule) { r.Peer = netip.MustParsePrefix("10.1.0.0/8") },
		"IPv4 in IPv6":   func(r *vps.Rule) { r.Peer = netip.MustParsePrefix("::ffff:10.0.0.0/104") },
		"backwards":      func(r *vps.Rule) { r.First, r.Last = 2, 1 },
		"from port zero": func(r *vps.Rule) { r.First = 0 },
		"both protocols": func(r *vps.Rule) { r.Protocol = vps.ProtoBoth },
		"ports of any":   func(r *vps.Rule) { r.Protocol = "" },
		"protocol":       func(r *vps.Rule) { r.Protocol = "tcp; flush ruleset" },
	} {
		r := good
		spoil(&r)
		var e *vps.Error
		if err := r.Validate("r"); !errors.As(err, &e) || e.Field != "r" || e.Code != vps.CodeInvalid {
			t.Errorf("%s: %v; want it refused", name, err)
		}
	}
}

// FuzzParseRule checks that what is accepted is written with harmless
// characters only, and reads back as the same.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"deny out 192.0.2.0/24", "allow in any 1-2/tcp", "allow out host icmp", "deny in fe80::1%e udp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := vps.ParseRule(text)
		if err != nil {
			if vps.ErrorCode(err) != vps.CodeInvalid {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		out := r.String()
		if strings.Trim(out, "abcdefghijklmnopqrstuvwxyz0123456789.:/- ") != "" {
			t.Fatalf("%q is written as %q", text, out)
		}
		if again, err := vps.ParseRule(out); err != nil || again != r {
			t.Fatalf("%q gives %q, which reads as %q, %v", text, out, again, err)
		}
	})
}

func TestServices(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"53/udp", "1/tcp", "65535/udp"} {
		if s, err := vps.ParseService(text); err != nil || s.String() != text {
			t.Errorf("ParseService(%q) = %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "53", "53/", "/udp", "0/udp", "65536/tcp", "53/tcp+udp", "53/icmp", "53/udp ", "5-6/udp", "dns/udp"} {
		if s, err := vps.ParseService(text); err == nil {
			t.Errorf("ParseService(%q) = %v; want it refused", text, s)
		}
	}
}

// TestWallInJSON checks that a spec goes into the store and comes back, that
// one of before the wall reads as before, and that bad text is refused.
func TestWallInJSON(t *testing.T) {
	t.Parallel()
	rule, err := vps.ParseRule("deny out 2001:db8::/32 25/tcp")
	if err != nil {
		t.Fatal(err)
	}
	s := vps.NewGuestSpec("a")
	s.Rules, s.Bandwidth, s.IPv6 = []vps.Rule{rule}, 20*vps.Mbit, netip.MustParsePrefix("2001:db8::5/128")
	s.Limits.Packets, s.Resources.IORead = 5, vps.MiB
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"rules":["deny out 2001:db8::/32 25/tcp"]`, `"bandwidth":20000000`, `"ipv6":"2001:db8::5/128"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
	var back vps.GuestSpec
	if err := json.Unmarshal(text, &back); err != nil || !slices.Equal(back.Rules, s.Rules) || back.IPv6 != s.IPv6 || back.Limits != s.Limits || back.Resources != s.Resources {
		t.Errorf("%+v, %v", back, err)
	}
	old := vps.DefaultSettings()
	if err := json.Unmarshal([]byte(`{"subnet":"10.1.0.0/16"}`), &old); err != nil || old.Validate() != nil || len(old.Services) != len(vps.DefaultServices()) {
		t.Errorf("settings of before the wall: %+v, %v", old, err)
	}
	for _, text := range []string{`{"rules":["deny"]}`, `{"rules":[5]}`, `{"ipv6":"x"}`, `{"bandwidth":"20Mbit"}`} {
		if err := json.Unmarshal([]byte(text), &vps.GuestSpec{}); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func TestLimitsOr(t *testing.T) {
	t.Parallel()
	got := vps.NetworkLimits{NewConnections: 7}.Or(vps.NetworkLimits{Packets: 1, NewConnections: 2, Connections: 3})
	if want := (vps.NetworkLimits{Packets: 1, NewConnections: 7, Connections: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestPrefix6 checks for any pools that each address has a prefix of its own
// in the pool or none, and that no two overlap.
func TestPrefix6(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := vps.DefaultSettings()
		s.Subnet = netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), rapid.IntRange(8, 29).Draw(t, "bits")).Masked()
		var high [16]byte
		copy(high[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "pool"))
		high[0] = 0xfd
		s.Subnet6 = netip.PrefixFrom(netip.AddrFrom16(high), rapid.IntRange(16, 125).Draw(t, "pool's bits")).Masked()
		s.GuestBits6 = rapid.IntRange(max(32, s.Subnet6.Bits()+1), 128).Draw(t, "guest's bits")
		if err := s.Validate(); err != nil {
			t.Fatalf("the drawn settings are not valid: %v", err)
		}
		draw := func(label string) (netip.Addr, uint32) {
			n := rapid.Uint32Range(0, 1<<(32-s.Subnet.Bits())-1).Draw(t, label)
			return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), n
		}
		var got [2]netip.Prefix
		var address [2]netip.Addr
		for i := range got {
			a, place := draw("place")
			address[i] = a
			got[i] = s.Prefix6(&vps.GuestSpec{Address: a})
			room := s.GuestBits6 - s.Subnet6.Bits()
			switch fits := room >= 32 || uint64(place) < 1<<room; {
			case got[i].IsValid() != fits:
				t.Fatalf("%s at place %d has %s; room for 2^%d", a, place, got[i], room)
			case !fits:
				return
			case got[i].Bits() != s.GuestBits6 || got[i] != got[i].Masked() || !s.Subnet6.Contains(got[i].Addr()):
				t.Fatalf("%s has %s of the pool %s", a, got[i], s.Subnet6)
			}
		}
		if (address[0] == address[1]) != got[0].Overlaps(got[1]) {
			t.Fatalf("%s has %s and %s has %s", address[0], got[0], address[1], got[1])
		}
	})
	s := vps.DefaultSettings()
	own := netip.MustParsePrefix("fd53:4c00:d5::f00/120")
	for name, tt := range map[string]struct {
		guest vps.GuestSpec
		want  string
	}{
		"by its address": {vps.GuestSpec{Address: netip.MustParseAddr("10.213.1.2")}, "fd53:4c00:d5::102/128"},
		"its own":        {vps.GuestSpec{Address: netip.MustParseAddr("10.213.1.2"), IPv6: own}, own.String()},
		"no address yet": {vps.GuestSpec{}, "invalid Prefix"},
	} {
		if got := s.Prefix6(&tt.guest); got.String() != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	s.Subnet6 = netip.Prefix{}
	if got := s.Prefix6(&vps.GuestSpec{Address: netip.MustParseAddr("10.213.1.2"), IPv6: own}); got.IsValid() {
		t.Errorf("without a pool: %s", got)
	}
}

func TestAddress6(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"fd00::5/128": "fd00::5", "fd00::/64": "fd00::1", "fd00::10/124": "fd00::11"} {
		if got := vps.Address6(netip.MustParsePrefix(in)).String(); got != want {
			t.Errorf("of %s: %s, want %s", in, got, want)
		}
	}
	if vps.Address6(netip.Prefix{}).IsValid() {
		t.Error("no prefix has an address")
	}
	mac := vps.MACFor(netip.MustParseAddr("10.213.0.2")) // 02:53:4c:d5:00:02
	if got := vps.LinkLocal6(mac).String(); got != "fe80::53:4cff:fed5:2" {
		t.Errorf("link-local address %s", got)
	}
	if vps.LinkLocal6(nil).IsValid() {
		t.Error("no MAC has a link-local address")
	}
}

func TestNAT6(t *testing.T) {
	t.Parallel()
	for pool, want := range map[string]bool{"2001:db8::/64": false, "fd00::/64": true} {
		s := vps.Settings{Subnet6: netip.MustParsePrefix(pool)}
		if s.NAT6() != want {
			t.Errorf("%s is translated: %v", pool, s.NAT6())
		}
	}
	if (&vps.Settings{}).NAT6() {
		t.Error("without a pool there is something to translate")
	}
}

func TestWallFields(t *testing.T) {
	t.Parallel()
	rule := vps.Rule{Action: vps.Deny, Direction: vps.In}
	guest := map[string]func(*vps.GuestSpec){
		"ipv6":                      func(s *vps.GuestSpec) { s.IPv6 = netip.MustParsePrefix("10.0.0.0/8") },
		"bandwidth":                 func(s *vps.GuestSpec) { s.Bandwidth = vps.MinBandwidth - 1 },
		"rules":                     func(s *vps.GuestSpec) { s.Rules = make([]vps.Rule, vps.MaxRules+1) },
		"rules[0]":                  func(s *vps.GuestSpec) { s.Rules = []vps.Rule{{}} },
		"rules[1]":                  func(s *vps.GuestSpec) { s.Rules = []vps.Rule{rule, rule} },
		"probe":                     func(s *vps.GuestSpec) { s.Probe = "../x" },
		"limits.packets":            func(s *vps.GuestSpec) { s.Limits.Packets = -1 },
		"limits.new_connections":    func(s *vps.GuestSpec) { s.Limits.NewConnections = 1 << 30 },
		"limits.connections":        func(s *vps.GuestSpec) { s.Limits.Connections = -1 },
		"resources.cpu_weight":      func(s *vps.GuestSpec) { s.Resources.CPUWeight = 10001 },
		"resources.cpu_quota":       func(s *vps.GuestSpec) { s.Resources.CPUQuota = -1 },
		"resources.io_weight":       func(s *vps.GuestSpec) { s.Resources.IOWeight = -1 },
		"resources.io_read":         func(s *vps.GuestSpec) { s.Resources.IORead = 1 },
		"resources.io_write":        func(s *vps.GuestSpec) { s.Resources.IOWrite = -1 },
		"resources.processes":       func(s *vps.GuestSpec) { s.Resources.Processes = 1 },
		"bandwidth ":                func(s *vps.GuestSpec) { s.Bandwidth = vps.MaxBandwidth + 1 },
		"ipv6 ":                     func(s *vps.GuestSpec) { s.IPv6 = netip.MustParsePrefix("fd00::1/64") },
		"ipv6  ":                    func(s *vps.GuestSpec) { s.IPv6 = netip.MustParsePrefix("::ffff:10.0.0.0/104") },
		"resources.io_read ":        func(s *vps.GuestSpec) { s.Resources.IORead = -vps.MiB },
		"resources.processes ":      func(s *vps.GuestSpec) { s.Resources.Processes = -64 },
		"rules[0] ":                 func(s *vps.GuestSpec) { s.Rules = []vps.Rule{{Action: vps.Allow, Direction: vps.In, Host: true}} },
		"limits.packets  too many ": func(s *vps.GuestSpec) { s.Limits.Packets = 1 << 30 },
	}
	for field, spoil := range guest {
		s := vps.NewGuestSpec("alice")
		spoil(&s)
		wantField(t, s.Validate(), field)
	}
	settings := map[string]func(*vps.Settings){
		"settings.subnet6":            func(s *vps.Settings) { s.Subnet6 = netip.MustParsePrefix("10.0.0.0/8") },
		"settings.subnet6  link":      func(s *vps.Settings) { s.Subnet6 = netip.MustParsePrefix("fe80::/64") },
		"settings.subnet6  bits":      func(s *vps.Settings) { s.Subnet6 = netip.MustParsePrefix("fd00::1/64") },
		"settings.subnet6  small":     func(s *vps.Settings) { s.Subnet6 = netip.MustParsePrefix("fd00::/126") },
		"settings.guest_bits6":        func(s *vps.Settings) { s.GuestBits6 = 64 },
		"settings.guest_bits6  none":  func(s *vps.Settings) { s.GuestBits6 = 0 },
		"settings.ndp_proxy":          func(s *vps.Settings) { s.NDPProxy = "" },
		"settings.ndp_proxy  long":    func(s *vps.Settings) { s.NDPProxy, s.GuestBits6 = vps.NDPOn, 80 },
		"settings.services":           func(s *vps.Settings) { s.Services = make([]vps.Service, vps.MaxServices+1) },
		"settings.services[0]":        func(s *vps.Settings) { s.Services = []vps.Service{{53, vps.ProtoBoth}} },
		"settings.services[5]":        func(s *vps.Settings) { s.Services = append(s.Services, s.Services[0]) },
		"settings.limits.connections": func(s *vps.Settings) { s.Limits.Connections = 0 },
	}
	for field, spoil := range settings {
		s := vps.DefaultSettings()
		spoil(&s)
		wantField(t, s.Validate(), field)
	}
}

// wantField wants err to name the first word of field.
func wantField(t *testing.T, err error, field string) {
	t.Helper()
	var e *vps.Error
	if !errors.As(err, &e) || e.Field != strings.Fields(field)[0] || e.Code != vps.CodeInvalid {
		t.Errorf("got %v; want %s refused", err, field)
	}
}

func TestHostConflictsInIPv6(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		code   vps.Code
		change func(h *vps.Host, a, b *vps.GuestSpec)
	}{
		"good":            {"", func(*vps.Host, *vps.GuestSpec, *vps.GuestSpec) {}},
		"outside":         {vps.CodeInvalid, func(_ *vps.Host, a, _ *vps.GuestSpec) { a.IPv6 = netip.MustParsePrefix("fd00::1/128") }},
		"around the pool": {vps.CodeInvalid, func(_ *vps.Host, a, _ *vps.GuestSpec) { a.IPv6 = netip.MustParsePrefix("fd53:4c00::/32") }},
		"the same": {vps.CodeConflict, func(_ *vps.Host, a, b *vps.GuestSpec) {
			a.IPv6 = netip.MustParsePrefix("fd53:4c00:d5::99/128")
			b.IPv6 = a.IPv6
		}},
		"one in the other": {vps.CodeConflict, func(_ *vps.Host, _, b *vps.GuestSpec) { b.IPv6 = netip.MustParsePrefix("fd53:4c00:d5::/120") }},
		"no room in the pool": {vps.CodeInvalid, func(h *vps.Host, _, b *vps.GuestSpec) {
			h.Settings.Subnet6 = netip.MustParsePrefix("fd00::/120")
			b.Address = netip.MustParseAddr("10.213.1.0")
		}},
		"no IPv6 at all": {"", func(h *vps.Host, a, b *vps.GuestSpec) {
			h.Settings.Subnet6 = netip.Prefix{}
			a.IPv6 = netip.MustParsePrefix("fd00::/64")
			b.IPv6 = a.IPv6
		}},
	} {
		h := vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: vps.DefaultTenant}}}
		a, b := vps.NewGuestSpec("a"), vps.NewGuestSpec("b")
		a.Address, b.Address = netip.MustParseAddr("10.213.0.2"), netip.MustParseAddr("10.213.0.3")
		a.Ports, b.Ports = vps.PortBlock{}, vps.PortBlock{}
		tt.change(&h, &a, &b)
		h.Guests = []vps.Guest{{ID: "1", Spec: a}, {ID: "2", Spec: b}}
		if err := h.Validate(); vps.ErrorCode(err) != tt.code {
			t.Errorf("%s: got %v; want %q", name, err, tt.code)
		}
	}
}

// TestNetworkOfAHost checks what the wall is made from: limits filled in,
// peers by guest and by tenant, and prefixes.
func TestNetworkOfAHost(t *testing.T) {
	t.Parallel()
	h := vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: "ann", NetworkPeer: true}, {Name: "bob"}, {Name: "owner"}}}
	for i, spec := range []vps.GuestSpec{
		{Name: "a", Tenant: "ann"}, {Name: "b", Tenant: "bob"}, {Name: "c", Tenant: "bob", NetworkPeer: true, Limits: vps.NetworkLimits{Packets: 5}},
	} {
		spec.Address = netip.AddrFrom4([4]byte{10, 213, 0, byte(2 + i)})
		h.Guests = append(h.Guests, vps.Guest{ID: spec.Name, Index: i + 1, Spec: spec})
	}
	n := h.Network(nil)
	var peers []string
	for _, g := range n.Guests {
		peers = append(peers, g.Peers)
		if g.Limits.NewConnections != 500 || !g.Prefix6.IsSingleIP() {
			t.Errorf("%+v", g)
		}
	}
	if !slices.Equal(peers, []string{"ann", "", "bob"}) || n.Guests[2].Limits.Packets != 5 || n.Guests[0].Limits.Packets != 100_000 {
		t.Errorf("peers %q, guests %+v", peers, n.Guests)
	}
	if !n.NAT6 || n.NDPProxy != vps.NDPAuto || len(n.Services) != 5 {
		t.Errorf("%+v", n)
	}
	if n := h.Network(func(g *vps.Guest) bool { return g.Spec.Name == "b" }); len(n.Guests) != 1 {
		t.Errorf("kept %+v", n.Guests)
	}
}
