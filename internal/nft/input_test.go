//go:build linux

package nft_test

import (
	"strings"
	"testing"

	"sublet/internal/nft"
	"sublet/internal/nstest"
)

// TestInputConflicts has others keep a port closed, in their ways, and open.
func TestInputConflicts(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	wall := nft.New(nil, nft.Options{})
	const begin = `table inet filter { chain in { type filter hook input priority filter; policy drop; ct state established,related accept; iif "lo" accept; meta l4proto { icmp, ipv6-icmp } accept; `
	for _, c := range []struct {
		name, ruleset string
		says          string // "" for no conflict
	}{
		{"nothing", "", ""},
		{"policy drop", begin + "} }", "its policy is drop, and no rule of it lets that port pass"},
		{"the port", begin + "tcp dport 443 accept; } }", ""},
		{"another port", begin + "tcp dport 22 accept; } }", "policy is drop"},
		{"a set", begin + "tcp dport { 22, 80, 443 } accept; } }", ""},
		{"a set without it", begin + "tcp dport { 22, 80, 8000-9000 } accept; } }", "policy is drop"},
		{"a range", begin + "tcp dport 400-500 accept; } }", ""},
		{"a range in a set", begin + "tcp dport { 22, 400-500 } accept; } }", ""},
		{"UDP", begin + "udp dport 443 accept; } }", "policy is drop"},
		{"both protocols", begin + "meta l4proto { tcp, udp } th dport 443 accept; } }", ""},
		{"a named set", "table inet filter { set open { type inet_service; elements = { 443 }; }; chain in { type filter hook input priority filter; policy drop; tcp dport @open accept; } }", ""},
		{"all but it", begin + "tcp dport != 443 accept; } }", "policy is drop"},
		{"all but another", begin + "tcp dport != 22 accept; } }", ""},
		{"some callers", begin + "ip saddr 192.0.2.0/24 accept; } }", ""},
		{"the uplink", begin + "iifname \"up0\" tcp dport 443 accept; } }", ""},
		{"another link", begin + "iifname \"eth7\" accept; } }", "policy is drop"},
		{"links by pattern", begin + "iifname \"up*\" accept; } }", ""},
		{"new ones", begin + "ct state new tcp dport 443 accept; } }", ""},
		{"a map", begin + "tcp dport vmap { 22: accept, 443: accept }; } }", ""},
		{"a map without it", begin + "tcp dport vmap { 22: accept, 80: accept }; } }", "policy is drop"},
		{"a map of states", "table inet filter { chain in { type filter hook input priority filter; policy drop; ct state vmap { established: accept, related: accept, invalid: drop }; } }", "policy is drop"},
		{"a jump", "table inet filter { chain web { tcp dport 443 accept; }; chain in { type filter hook input priority filter; policy drop; jump web; } }", ""},
		{"a jump in vain", "table inet filter { chain web { tcp dport 22 accept; return; tcp dport 443 accept; }; chain in { type filter hook input priority filter; policy drop; jump web; } }", "policy is drop"},
		{"a jump for others", "table inet filter { chain web { tcp dport 443 accept; }; chain in { type filter hook input priority filter; policy drop; iifname \"eth7\" jump web; } }", "policy is drop"},
		{"going for good", "table inet filter { chain web { tcp dport 22 accept; }; chain in { type filter hook input priority filter; policy drop; goto web; accept; } }", "policy is drop"},
		{"a drop of it", "table inet filter { chain in { type filter hook input priority filter; policy accept; tcp dport 443 drop; } }", "drops what comes from outside for TCP port 443."},
		{"a reject of all", "table inet filter { chain in { type filter hook input priority filter; policy accept; tcp dport 22 accept; reject; } }", "drops what comes from outside"},
		{"a drop behind its accept", "table inet filter { chain in { type filter hook input priority filter; policy accept; tcp dport 443 accept; drop; } }", ""},
		{"too early", "table inet raw { chain pre { type filter hook prerouting priority raw; policy accept; tcp dport 443 drop; } }", "Chain pre of table inet raw"},
		{"a rate", "table inet filter { chain in { type filter hook input priority filter; policy accept; tcp dport 443 limit rate over 5/second drop; } }", ""},
		{"what passes through", "table inet filter { chain fw { type filter hook forward priority filter; policy drop; } }", ""},
		{"led away", "table ip nat { chain pre { type nat hook prerouting priority dstnat; tcp dport 443 dnat to 172.17.0.2:8443; } }", "leads what comes for TCP port 443 elsewhere"},
		{"Docker", "table ip nat { chain DOCKER { iifname \"docker0\" return; iifname != \"docker0\" tcp dport 443 dnat to 172.17.0.2:8443; }; chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local jump DOCKER; } }", "leads what comes for TCP port 443 elsewhere"},
		{"another port led away", "table ip nat { chain pre { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to 172.17.0.2:80; } }", ""},
		{"firewalld", "table inet firewalld { chain allow { tcp dport 22 accept; }; chain public { jump allow; }; chain zones { iifname \"up0\" goto public; goto public; }; chain filter_INPUT { type filter hook input priority filter + 10; policy accept; ct state { established, related } accept; iifname \"lo\" accept; jump zones; ct state { invalid } drop; reject with icmpx admin-prohibited; } }", "firewalld"},
		{"ours", "table inet sublet { chain in { type filter hook input priority filter; policy drop; } }", ""},
		{"IPv6", "table ip6 filter { chain in { type filter hook input priority filter; policy drop; } }", ""},
	} {
		if c.ruleset != "" {
			host.ExecInput(strings.ReplaceAll(c.ruleset, "} }", "}; }"), "nft", "-f", "-")
		}
		found, err := wall.InputConflicts(t.Context(), 443, []string{"up0"})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if (len(found) == 0) != (c.says == "") || len(found) > 1 || len(found) == 1 && (!strings.Contains(found[0].Problem, c.says) || found[0].Remedy == "") {
			t.Errorf("%s: %+v", c.name, found)
		}
		host.Exec("nft", "flush", "ruleset")
	}
}

// TestInputConflictsOfIPTables has iptables, the newer and the older, close and open
// a port.
func TestInputConflictsOfIPTables(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		host := nstest.New(t).Peer()
		wall := nft.New(nil, nft.Options{})
		conflict := func() bool {
			var found []nft.Conflict
			var err error
			host.Do(func() { found, err = wall.InputConflicts(t.Context(), 443, []string{"up0"}) })
			if err != nil {
				t.Fatal(err)
			}
			return len(found) > 0
		}
		if conflict() {
			t.Errorf("%s: a conflict without rules", program)
		}
		for _, rule := range []string{"-P INPUT DROP", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT", "-A INPUT -p udp --dport 443 -j ACCEPT"} {
			host.Exec(program, strings.Fields(rule)...)
			if !conflict() {
				t.Errorf("%s: no conflict after %s", program, rule)
			}
		}
		host.Exec(program, "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "80,443", "-j", "ACCEPT")
		if conflict() {
			t.Errorf("%s: a conflict although the port is open", program)
		}
	}
}
