package hostfile

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/vps"
)

func decode(t *testing.T, text string) File {
	t.Helper()
	f, err := Decode(strings.NewReader(text))
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	return f
}

var compare = cmp.Options{
	cmpopts.IgnoreUnexported(File{}, Guest{}),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func TestDecode(t *testing.T) {
	t.Parallel()
	v6 := []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")}
	tests := []struct {
		name, text string
		want       File
	}{
		{"version only", "version: 1\n", File{}},
		{"no version, flow style", `{guests: [], "tenants": []}`, File{Guests: []Guest{}, Tenants: []Tenant{}}},
		{"byte order mark, CR LF, document markers", "\ufeff---\r\nguests:\r\n- name: a\r\n...\r\n", File{Guests: []Guest{{Name: "a"}}}},
		{"settings", "settings: {subnet: 10.9.0.0/24, ports: 1-2, uplink: '', public_address: '', dns: [9.9.9.9, \"2620:fe::fe\"], memory_overcommit: 150, first_uid: 5000}", File{Settings: Settings{
			Subnet: new(netip.MustParsePrefix("10.9.0.0/24")), PortRange: &vps.PortBlock{First: 1, Count: 2}, Uplink: new(""),
			PublicAddress: new(netip.Addr{}), DNS: &v6, MemoryOvercommit: new(150), FirstUID: new(uint32(5000)),
		}}},
		{"tenants", "tenants:\n- name: a\n- {name: b, note: ''}\n- name: c\n  note: |\n    two\n    lines\n", File{Tenants: []Tenant{
			{Name: "a"}, {Name: "b", HasNote: true}, {Name: "c", Note: "two\nlines", HasNote: true},
		}}},
		{"guest", "guests:\n  - name: a\n    memory: 512MiB\n    disk: 8589934592\n    ports: 20\n    autostart: false\n    stop_timeout: 1m30s\n    forwards: [8443:443/tcp, '7000']\n    ssh_keys: []\n", File{Guests: []Guest{{
			Name: "a", Memory: new(512 * vps.MiB), Disk: new(8 * vps.GiB), Ports: &vps.PortBlock{Count: 20}, Autostart: new(false),
			StopTimeout: new(vps.Duration(90 * time.Second)), SSHKeys: &[]string{},
			Forwards: &[]vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}, {Host: 7000, Guest: 7000, Protocol: vps.ProtoBoth}},
		}}}},
		{"walls of the host", "settings: {subnet6: \"fd00:1::/64\", guest_bits6: 80, ndp_proxy: off, services: [53/udp, 80/tcp], limits: {packets: 5}}", File{Settings: Settings{
			Subnet6: new(netip.MustParsePrefix("fd00:1::/64")), GuestBits6: new(80), NDPProxy: new(vps.NDPOff),
			Services: &[]vps.Service{{Port: 53, Protocol: vps.ProtoUDP}, {Port: 80, Protocol: vps.ProtoTCP}}, Limits: Limits{Packets: new(5)},
		}}},
		{"no IPv6, no services", "settings: {subnet6: '', services: []}", File{Settings: Settings{Subnet6: new(netip.Prefix), Services: &[]vps.Service{}}}},
		{"a tenant's peers", "tenants: [{name: a, network_peer: true}]", File{Tenants: []Tenant{{Name: "a", NetworkPeer: new(true)}}}},
		{
			"walls of guests", "guests:\n- name: a\n  ipv6: \"fd00:1::/80\"\n  network_peer: true\n  smtp: false\n  bandwidth: 20Mbit\n  limits: {new_connections: 7, connections: 0}\n" +
				"  rules:\n  - allow out host 8080/tcp\n  - \"deny in 2001:db8::1 icmp\"\n  resources:\n    cpu_weight: 50\n    cpu_quota: 150%\n    io_read: 50MiB\n- {name: b, ipv6: '', bandwidth: 0, rules: [], resources: {cpu_quota: 25, processes: 100}}\n",
			File{Guests: []Guest{
				{
					Name: "a", IPv6: new(netip.MustParsePrefix("fd00:1::/80")), NetworkPeer: new(true), SMTP: new(false), Bandwidth: new(20 * vps.Mbit),
					Limits: Limits{NewConnections: new(7), Connections: new(0)},
					Rules: &[]vps.Rule{
						{Action: vps.Allow, Direction: vps.Out, Host: true, Protocol: vps.ProtoTCP, First: 8080, Last: 8080},
						{Action: vps.Deny, Direction: vps.In, Peer: netip.MustParsePrefix("2001:db8::1/128"), Protocol: vps.ProtoICMP},
					},
					Resources: Resources{CPUWeight: new(50), CPUQuota: new(150), IORead: new(50 * vps.MiB)},
				},
				{Name: "b", IPv6: new(netip.Prefix), Bandwidth: new(vps.BitRate), Rules: &[]vps.Rule{}, Resources: Resources{CPUQuota: new(25), Processes: new(100)}},
			}},
		},
		{
			"domains", "settings: {edge: {caller: proxy-v2, trusted_proxies: [192.0.2.7, \"2001:db8::/48\"], idle_timeout: 2d, access_log: off, quic: false, disabled: true, resolvers: [9.9.9.9, \"[::1]:5353\"], allow_private: true}}\n" +
				"guests:\n- name: a\n  domains: [blog.example.org, \"*.example.org:993 wake port=5 vouched caller=hidden terminate\", \"*\", b.example http_port=8080]\n- {name: b, domains: []}\n",
			File{
				Settings: Settings{Edge: Edge{
					Caller: new(vps.CallerProxyV2), TrustedProxies: &[]netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/48")},
					IdleTimeout: new(vps.Duration(48 * time.Hour)), AccessLog: new(vps.AccessOff), QUIC: new(false), Disabled: new(true), AllowPrivate: new(true),
					Resolvers: &[]netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("[::1]:5353")},
				}},
				Guests: []Guest{{Name: "a", Domains: &[]vps.Domain{
					{Name: "blog.example.org"},
					{Name: "*.example.org", Listen: 993, Port: 5, Caller: vps.CallerHidden, Terminate: true, Wake: true, Vouched: true},
					{Name: "*"},
					{Name: "b.example", HTTPPort: 8080},
				}}, {Name: "b", Domains: &[]vps.Domain{}}},
			},
		},
		{"blocks of ports", "guests: [{name: a, ports: 0}, {name: b, ports: 100-101}, {name: c, ports: {count: 2, first: 100}}]", File{Guests: []Guest{
			{Name: "a", Ports: &vps.PortBlock{}}, {Name: "b", Ports: &vps.PortBlock{First: 100, Count: 2}}, {Name: "c", Ports: &vps.PortBlock{First: 100, Count: 2}},
		}}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, decode(t, tt.text), compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, field, says string }{
		{"empty", "", "", "empty"},
		{"only a comment", "# x\n", "", "empty"},
		{"no mapping", "5", "", "line 1, column 1: this is a number, but here belongs keys with values"},
		{"unknown key", "settings:\n  subnett: 10.0.0.0/8", "settings", "line 2, column 3: unknown key \"subnett\"; perhaps subnet was meant"},
		{"unknown key at the top", "foo: 1", "", "line 1, column 1: unknown key \"foo\"; known here are guests, quotas, settings, tenants, version"},
		{"duplicate key", "guests:\n- name: a\n  \"name\": b", "guests[0].name", "line 3, column 3: the key name is there already in line 2"},
		{"duplicate guest", "guests:\n- name: a\n- {memory: 1GiB, name: a}", "guests[1].name", "line 3, column 24: the guest \"a\" is there already in line 2"},
		{"duplicate tenant", "tenants: [{name: a}, {name: a}]", "tenants[1].name", "already in line 1"},
		{"no name", "guests:\n  - memory: 1GiB", "guests[0]", "line 2, column 5: this guest has no name"},
		{"empty name", "guests: [{name: ''}]", "guests[0]", "no name"},
		{"newer version", "version: 2", "version", "line 1, column 10: this sublet reads version 1"},
		{"version as text", "version: \"1\"", "version", "version 1"},
		{"null", "guests:\n- name: a\n  memory:\n", "guests[0].memory", "line 3, column 3: memory has no value"},
		{"null list", "guests:\n", "guests", "guests has no value"},
		{"null item", "guests:\n-\n", "guests[0]", "this item of the list is empty"},
		{"size", "guests:\n- name: a\n  memory: 512MB0\n", "guests[0].memory", "line 3, column 11: \"512MB0\" is not a size; write a number and a unit, for example 512MiB or 8GiB\n      memory: 512MB0\n              ^"},
		{"negative size", "guests: [{name: a, disk: -5}]", "guests[0].disk", "out of range"},
		{"hexadecimal size", "guests: [{name: a, disk: 0x10}]", "guests[0].disk", "not a size"},
		{"number for text", "guests: [{name: 5}]", "guests[0].name", "put the value in quotes"},
		{"boolean for text", "guests: [{name: true}]", "guests[0].name", "put the value in quotes"},
		{"list for text", "guests: [{name: [a]}]", "guests[0].name", "this is a list, but here belongs text"},
		{"text for list", "guests: a", "guests", "this is text, but here belongs a list"},
		{"yes for true", "guests: [{name: a, autostart: yes}]", "guests[0].autostart", "here belongs true or false"},
		{"address", "guests: [{name: a, address: 10.0.0.256}]", "guests[0].address", "not an IP address"},
		{"address with a zone", "guests: [{name: a, address: fe80::1%eth0}]", "guests[0].address", "not an IP address"},
		{"item of a list", "settings:\n  dns:\n    - 9.9.9.9\n    - dns.example\n", "settings.dns[1]", "line 4, column 7: \"dns.example\" is not an IP address"},
		{"subnet", "settings: {subnet: 10.0.0.0}", "settings.subnet", "not a subnet"},
		{"range", "settings: {ports: 5}", "settings.ports", "not a range of ports"},
		{"ports", "guests: [{name: a, ports: 70000}]", "guests[0].ports", "neither a number of ports nor a block"},
		{"block without a count", "guests: [{name: a, ports: {first: 5}}]", "guests[0].ports", "a first port and a count"},
		{"block too long", "guests: [{name: a, ports: {first: 65535, count: 2}}]", "guests[0].ports", "beyond 65535"},
		{"forward", "guests: [{name: a, forwards: [\"1:2/sctp\"]}]", "guests[0].forwards[0]", "not a forward"},
		{"power", "guests: [{name: a, power: on}]", "guests[0].power", "\"on\" is none of running, stopped"},
		{"restart", "guests: [{name: a, restart: sometimes}]", "guests[0].restart", "none of always, on-failure, never"},
		{"duration", "guests: [{name: a, stop_timeout: 60}]", "guests[0].stop_timeout", "\"60\" is not a duration; write for example 90s, 2m or 7d"},
		{"a long duration", "guests: [{name: a, stop_timeout: " + strings.Repeat("x", 3000) + "}]", "guests[0].stop_timeout", strings.Repeat("x", 60) + "…\" is not a duration"},
		{"percent", "settings: {memory_overcommit: 1.5}", "settings.memory_overcommit", "not a whole number"},
		{"uid", "settings: {first_uid: 4294967296}", "settings.first_uid", "not a whole number"},
		{"rule", "guests:\n- name: a\n  rules:\n  - deny everything\n", "guests[0].rules[0]", "line 4, column 5: \"deny everything\" is not a rule; write for example `deny out 192.0.2.0/24`"},
		{"rule with a bad peer", "guests: [{name: a, rules: [deny out example.org]}]", "guests[0].rules[0]", "neither any, host, an address nor a prefix"},
		{"a long rule", "guests: [{name: a, rules: [deny out " + strings.Repeat("x", 3000) + "]}]", "guests[0].rules[0]", "is not a rule"},
		{"rules as text", "guests: [{name: a, rules: deny in any}]", "guests[0].rules", "here belongs a list"},
		{"speed", "guests: [{name: a, bandwidth: 20}]", "guests[0].bandwidth", "\"20\" is not a speed; write a number and a unit, for example 20Mbit"},
		{"speed in bytes", "guests: [{name: a, bandwidth: 20MB}]", "guests[0].bandwidth", "not a speed"},
		{"prefix", "guests: [{name: a, ipv6: \"2001:db8::/129\"}]", "guests[0].ipv6", "not an IPv6 prefix"},
		{"unknown limit", "guests: [{name: a, limits: {packet: 1}}]", "guests[0].limits", "unknown key \"packet\"; perhaps packets was meant"},
		{"negative limit", "settings: {limits: {packets: -1}}", "settings.limits.packets", "not a whole number"},
		{"limits as a number", "settings: {limits: 5}", "settings.limits", "here belongs keys with values"},
		{"domain's port", "guests:\n- name: a\n  domains: [\"a.example:0\"]\n", "guests[0].domains[0]", "line 3, column 13: \"a.example:0\" is not a domain; write NAME, or NAME:PORT"},
		{"domain's option", "guests: [{name: a, domains: [a.example ports=5]}]", "guests[0].domains[0]", "\"ports=5\" in the domain \"a.example ports=5\" is not one of port=N"},
		{"domain's option twice", "guests: [{name: a, domains: [a.example port=5 port=6]}]", "guests[0].domains[0]", "\"port=6\" in the domain"},
		{"domain's caller", "guests: [{name: a, domains: [a.example caller=me]}]", "guests[0].domains[0]", "\"caller=me\" in the domain"},
		{"no domain", "guests: [{name: a, domains: [' ']}]", "guests[0].domains[0]", "a domain is needed"},
		{"a long domain", "guests: [{name: a, domains: [\"" + strings.Repeat("x", 3000) + ":x\"]}]", "guests[0].domains[0]", "is not a domain"},
		{"a star alone", "guests:\n- name: a\n  domains:\n  - *.example.org\n", "", "put it in quotes"},
		{"resolver", "settings: {edge: {resolvers: [dns.example.org]}}", "settings.edge.resolvers[0]", "not the address of a name server"},
		{"proxy", "settings: {edge: {trusted_proxies: [proxy.example.org]}}", "settings.edge.trusted_proxies[0]", "neither an address nor a prefix"},
		{"quota", "guests: [{name: a, resources: {cpu_quota: half}}]", "guests[0].resources.cpu_quota", "not a whole number"},
		{"quota of nobody", "quotas: [{limit: 1GiB}]", "quotas[0]", "line 1, column 10: this quota has no scope"},
		{"quota of somebody", "quotas: [{scope: guest, limit: 1GiB}]", "quotas[0]", "needs its name"},
		{"quota of a host with a name", "quotas: [{scope: host, name: a}]", "quotas[0]", "that of the host has none"},
		{"quota twice", "quotas:\n- {scope: guest, name: a}\n- {name: a, scope: guest}\n", "quotas[1]", "line 3, column 3: the quota \"guest/a\" is there already in line 2"},
		{"quota beyond", "quotas: [{scope: host, limit: 8388608TiB}]", "quotas[0].limit", "out of range"},
		{"quota's scope", "quotas: [{scope: everybody}]", "quotas[0].scope", "none of host, tenant, guest"},
		{"quota's count", "quotas: [{scope: host, count: both}]", "quotas[0].count", "none of in+out, in, out, max"},
		{"quota's day", "quotas: [{scope: host, reset_day: last}]", "quotas[0].reset_day", "not a whole number"},
		{"quota's step", "quotas: [{scope: host, steps: [stop]}]", "quotas[0].steps[0]", "\"stop\" is not a step of a quota"},
		{"a long step", "quotas: [{scope: host, steps: [" + strings.Repeat("x", 3000) + "]}]", "quotas[0].steps[0]", "is not a step of a quota"},
		{"proxy", "settings: {ndp_proxy: true}", "settings.ndp_proxy", "here belongs auto, on or off"},
		{"service", "settings: {services: [ssh]}", "settings.services[0]", "\"ssh\" is not a service of the host"},
		{"service of both protocols", "settings: {services: [53/tcp+udp]}", "settings.services[0]", "not a service of the host"},
		{"a probe", "guests: [{name: a, probe: victim}]", "guests[0]", "unknown key \"probe\""},
		{"anchor", "guests: &a [*a, *a]", "", "line 1, column 9: anchors and aliases"},
		{"merge key", "settings:\n  <<: {dns: []}\n", "", "anchors and aliases"},
		{"tag", "version: !!int 1", "", "tags"},
		{"directive", "%YAML 1.2\n---\nversion: 1", "", "directives"},
		{"complex key", "? version\n: 1", "", "?"},
		{"two documents", "version: 1\n---\nversion: 1\n", "", "line 3, column 1: a second document"},
		{"syntax", "guests: [", "", "line 1, column 9: this is not YAML"},
		{"tab", "guests:\n\t- name: a", "", "this is not YAML"},
		{"deep", strings.Repeat("[", 16_000), "", "nested too deeply"},
		{"deep in blocks", strings.Repeat("- ", 8_000), "", "nested too deeply"},
		{"deep by indentation", deep(300), "", "nested too deeply"},
		{"long line", strings.Repeat("x", 20_000), "", "more than 16384 characters"},
		{"many keys", strings.Repeat("k: v\n", 40_000), "", "line 65, column 1: there are more than 64 keys"},
		{"many keys in braces", "{" + strings.Repeat("k: v,\n", 40_000), "", "more than 64 keys"},
		{"many words", "guests: [" + strings.Repeat("a,", 60_000/16) + strings.Repeat("\n"+strings.Repeat("a,", 2000), 40), "", "more than 100000 words"},
		{"many lines", strings.Repeat("\n", 60_000), "", "more than 50000 lines"},
		{"large", strings.Repeat("# 3456789\n", 105_000), "", "larger than 1MiB"},
		{"binary", "version: 1\nguests: \x00", "", "line 2, column 9: there is a byte here"},
		{"escape", "a: \x1b[2J", "", "does not belong in a text file"},
		{"no UTF-8", "a: ä\xff", "", "line 1, column 5: there is a byte here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Decode(strings.NewReader(tt.text))
			e, ok := errors.AsType[*vps.Error](err)
			if !ok || e.Code != vps.CodeInvalid || e.Field != tt.field || !strings.Contains(e.Message, tt.says) {
				t.Errorf("error %v (field %q)\nwant field %q and %q", err, e.Field, tt.field, tt.says)
			}
			if ok && len(e.Message) > 500 {
				t.Errorf("a message of %d bytes", len(e.Message))
			}
		})
	}
}

func deep(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestDecodePassesOnReadErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("unplugged")
	_, err := Decode(io.MultiReader(strings.NewReader("version: 1\n"), errReader{cause}))
	if !errors.Is(err, cause) || vps.ErrorCode(err) != vps.CodeInternal {
		t.Errorf("%v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestSecretsAreNotRepeated(t *testing.T) {
	t.Parallel()
	f := decode(t, "guests:\n- name: a\n  root_password_hash: hunter2\n")
	spec, err := f.Guests[0].Merge(vps.NewGuestSpec("a"))
	if err != nil {
		t.Fatal(err)
	}
	err = f.Guests[0].Locate(spec.Validate())
	e, ok := errors.AsType[*vps.Error](err)
	if !ok || e.Field != "guests[0].root_password_hash" || !strings.Contains(e.Message, "line 3, column 23") {
		t.Errorf("%v", err)
	}
	for _, text := range []string{"guests: [{name: a, root_password_hash: [hunter2]}]", "guests:\n- root_password_hash: hunter2: x\n"} {
		_, err2 := Decode(strings.NewReader(text))
		err = errors.Join(err, err2)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a password is repeated: %v", err)
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	f := decode(t, "settings:\n  subnet: 10.0.0.0/30\nguests:\n- name: a\n- name: b\n  ssh_keys:\n  - one\n  - two\n")
	cause := errors.New("cause")
	tests := []struct {
		name        string
		err         error
		field, says string
	}{
		{"field", vps.Invalid("ssh_keys[1]", "bad"), "guests[1].ssh_keys[1]", "line 8, column 5: bad\n      - two\n        ^"},
		{"default", vps.Invalid("memory", "bad"), "guests[1].memory", "line 5, column 3: bad"},
		{"whole guest", vps.Wrap(vps.CodeConflict, cause, "taken"), "", "line 5, column 3: taken"},
	}
	for _, tt := range tests {
		got, ok := errors.AsType[*vps.Error](f.Guests[1].Locate(tt.err))
		if !ok || got.Field != tt.field || !strings.HasPrefix(got.Message, tt.says) || got.Code != vps.ErrorCode(tt.err) || !errors.Is(got.Err, errors.Unwrap(tt.err)) {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	settings, err := f.MergeSettings(vps.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Locate(settings.Validate()); !strings.Contains(err.Error(), "line 2, column 11") {
		t.Errorf("%v", err)
	}
	if err := f.Guests[0].Locate(nil); err != nil {
		t.Errorf("%v from nil", err)
	}
	if err := f.Locate(cause); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
	if err := (Guest{}).Locate(tests[0].err); !errors.Is(err, tests[0].err) {
		t.Errorf("%v", err)
	}
}

// TestLocateInMappings finds the line of what only validation refuses.
func TestLocateInMappings(t *testing.T) {
	t.Parallel()
	f := decode(t, "settings:\n  limits:\n    connections: 0\nguests:\n- name: a\n  resources:\n    io_read: 1\n- name: b\n  limits: {packets: 2000000000}\n- name: c\n  rules:\n  - deny in any\n  - deny in any\n")
	settings, err := f.MergeSettings(vps.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Locate(settings.Validate()); !strings.Contains(err.Error(), "line 3, column 18") {
		t.Errorf("%v", err)
	}
	for i, want := range []string{"line 7, column 14", "line 9, column 21", "line 13, column 5"} {
		spec, err := f.Guests[i].Merge(vps.NewGuestSpec(f.Guests[i].Name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Guests[i].Locate(spec.Validate()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

func TestMergeKeepsWhatIsUnset(t *testing.T) {
	t.Parallel()
	old := vps.NewGuestSpec("a")
	old.Ports.First, old.SSHKeys, old.Address = 20100, []string{"k"}, netip.MustParseAddr("10.0.0.9")
	old.Limits, old.Resources, old.Bandwidth = vps.NetworkLimits{Packets: 5}, vps.Resources{Processes: 99}, vps.Mbit
	old.Rules = []vps.Rule{{Action: vps.Deny, Direction: vps.In}}
	f := decode(t, "guests: [{name: a}, {name: a2, ports: 30, ssh_keys: [], locale: ''}]")
	got, err := f.Guests[0].Merge(old)
	if diff := cmp.Diff(old, got, compare); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	got.SSHKeys[0], got.Rules[0].Action = "changed", vps.Allow
	if old.SSHKeys[0] != "k" || old.Rules[0].Action != vps.Deny {
		t.Error("the merged spec shares memory with the old one")
	}
	got, err = f.Guests[1].Merge(old)
	if err != nil || got.Ports != (vps.PortBlock{First: 20100, Count: 30}) || len(got.SSHKeys) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	settings, err := f.MergeSettings(vps.DefaultSettings())
	if diff := cmp.Diff(vps.DefaultSettings(), settings, compare); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got := (Tenant{Name: "a"}).Merge(vps.Tenant{Name: "a", Note: "n"}); got.Note != "n" {
		t.Errorf("%+v", got)
	}
	if got := (Tenant{Name: "a", HasNote: true}).Merge(vps.Tenant{Name: "a", Note: "n"}); got.Note != "" {
		t.Errorf("%+v", got)
	}
}

// TestExample reads the reference file, which has to show every key and be
// valid as a whole.
func TestExample(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/host.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f := decode(t, string(text))
	host := vps.Host{}
	if host.Settings, err = f.MergeSettings(vps.DefaultSettings()); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range f.Tenants {
		host.Tenants = append(host.Tenants, tenant.Merge(vps.Tenant{}))
	}
	for i, g := range f.Guests {
		spec, err := g.Merge(vps.NewGuestSpec(g.Name))
		if err != nil {
			t.Fatal(err)
		}
		if !spec.Address.IsValid() { // as creating it would
			spec.Address, spec.Ports.First = netip.MustParseAddr("10.213.0.11"), 20020
		}
		host.Guests = append(host.Guests, vps.Guest{Spec: spec, Index: i + 1})
	}
	for _, q := range f.Quotas {
		quota, err := q.Merge(vps.NewQuota(q.Scope, q.Name, host.Settings.Timezone))
		if err != nil {
			t.Fatal(err)
		}
		host.Quotas = append(host.Quotas, quota)
	}
	if err := host.Validate(); err != nil {
		t.Error(err)
	}
	d := decoder{newSource("")}
	for under, keys := range map[string]map[string]field{
		"settings": d.settingsKeys(&Settings{}), "settings.limits": d.limitsKeys(&Limits{}), "settings.price": d.priceKeys(&Price{}),
		"settings.edge": d.edgeKeys(&Edge{}), "settings.edge.acme": d.acmeKeys(&ACME{}), "settings.notices": d.noticeKeys(&Notices{}),
		"tenants[1]": d.tenantKeys(&Tenant{}, new(*string), new(*string)),
		"guests[0]":  d.guestKeys(&Guest{}, new(*string)), "guests[0].limits": d.limitsKeys(&Limits{}), "guests[0].resources": d.resourcesKeys(&Resources{}),
		"quotas[1]": d.quotaKeys(&Quota{}, new(*vps.QuotaScope), new(*string)),
	} {
		for key := range keys {
			if _, ok := f.src.at[under+"."+key]; !ok {
				t.Errorf("the example does not show %s in %s", key, under)
			}
		}
	}
	// What is exported can be read again.
	var out bytes.Buffer
	if err := Encode(&out, host); err != nil {
		t.Fatal(err)
	}
	decode(t, out.String())
}

func FuzzDecode(f *testing.F) {
	if text, err := os.ReadFile("../../docs/host.example.yaml"); err == nil {
		f.Add(string(text))
	}
	for _, s := range []string{
		"", "version: 1", "guests: [{name: a, ports: {first: 1, count: 2}}]", "a: &x [*x]", "a: |\n  b\nc: >-\n  d\n",
		"\"\\u0000\\x41\": 'it''s'", "- - -", "{a: {b: [c, d: e]}}", "guests:\n- name: a\n  forwards: [\"1:2/tcp\"]\n", "%A\n--- !t\n...", "? a : b", "a: \"\\ud800\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Decode(strings.NewReader(text))
		if err != nil {
			if vps.ErrorCode(err) != vps.CodeInvalid {
				t.Fatalf("the code is %q: %v", vps.ErrorCode(err), err)
			}
			return
		}
		// Whatever is accepted survives being written and read again.
		var host vps.Host
		host.Settings, _ = file.MergeSettings(vps.DefaultSettings())
		for _, tenant := range file.Tenants {
			host.Tenants = append(host.Tenants, tenant.Merge(vps.Tenant{}))
		}
		for _, g := range file.Guests {
			spec, _ := g.Merge(vps.NewGuestSpec(g.Name))
			host.Guests = append(host.Guests, vps.Guest{Spec: spec})
		}
		for _, q := range file.Quotas {
			quota, _ := q.Merge(vps.NewQuota(q.Scope, q.Name, host.Settings.Timezone))
			host.Quotas = append(host.Quotas, quota)
		}
		checkRoundTrip(t, host)
	})
}
