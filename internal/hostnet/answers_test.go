//go:build linux

package hostnet_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sublet/internal/hostnet"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// rules are the host's routing rules and the routes of the table that they lead
// answers to the edge by, IPv4 and IPv6.
func rules(ns *nstest.NS) string {
	var all strings.Builder
	for _, family := range []string{"-4", "-6"} {
		all.WriteString(ns.Exec("ip", family, "rule") + "\n")
		// A table that never was is an error, one that was is empty.
		if out, err := ns.Try("ip", family, "route", "show", "table", "21324"); err == nil && out != "" {
			all.WriteString(out + "\n")
		}
	}
	return all.String()
}

// TestAnswers: guests' answers to the edge are led to it while there is one, in
// both versions of IP, and no longer.
func TestAnswers(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	h := hostnet.New(nil, hostnet.Options{})
	n := network6()
	bare := rules(host)
	settle(t, h, n)
	if got := rules(host); got != bare {
		t.Errorf("without an edge there is %s", got)
	}
	n.EdgeUID = 721299
	settle(t, h, n)
	led := rules(host)
	for _, want := range []string{
		"534:\tfrom 10.213.0.0/16 fwmark 0x53000000/0x7f000000 lookup 21324 proto 83", "local default dev lo proto 83 scope host",
		"534:\tfrom 2001:db8:1::/48 fwmark 0x53000000/0x7f000000 lookup 21324 proto 83", "local default dev lo proto 83 metric 1024",
	} {
		if !strings.Contains(led, want) {
			t.Errorf("%q is not in\n%s", want, led)
		}
	}
	for _, c := range []struct{ from, to, want string }{
		{"10.213.0.2", "203.0.113.9", "local 203.0.113.9"},
		{"2001:db8:1::2", "2001:db8:77::9", "local 2001:db8:77::9"},
	} {
		if out := host.Exec("ip", "route", "get", c.to, "from", c.from, "iif", "sl-alice", "mark", "0x53000000"); !strings.Contains(out, c.want) {
			t.Errorf("an answer to %s is led: %s", c.to, out)
		}
		if out, err := host.Try("ip", "route", "get", c.to, "from", c.from, "iif", "sl-alice"); err == nil {
			t.Errorf("what is no answer is led: %s", out)
		}
	}
	// Other pools: the new rule is there before the old one goes.
	moved := n
	moved.Subnet6 = netip.MustParsePrefix("2001:db8::/32")
	settle(t, h, moved)
	if got := rules(host); !strings.Contains(got, "from 2001:db8::/32 ") || strings.Contains(got, "from 2001:db8:1::/48 ") {
		t.Errorf("with another pool there is\n%s", got)
	}
	moved.Subnet6 = netip.Prefix{}
	settle(t, h, moved)
	if got := rules(host); strings.Count(got, "proto 83") != 2 {
		t.Errorf("without IPv6 there is\n%s", got)
	}
	settle(t, h, n)
	if got := rules(host); got != led {
		t.Errorf("got\n%s\nwant\n%s", got, led)
	}
	n.EdgeUID = 0
	settle(t, h, n)
	if got := rules(host); got != bare {
		t.Errorf("when the edge is gone there is\n%s", got)
	}
	n.EdgeUID = 721299
	settle(t, h, n)
	if err := h.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := rules(host); got != bare {
		t.Errorf("after CleanUp there is\n%s", got)
	}
}

// TestAnswersDrift: what somebody did to the rules and routes is told, mended, and
// wakes who watches; what is another's stays.
func TestAnswersDrift(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	h := hostnet.New(nil, hostnet.Options{})
	n := network6()
	n.EdgeUID = 721299
	theirs := []string{
		"-4 rule add priority 100 fwmark 0x53000000/0x7f000000 lookup 77", "-6 rule add priority 534 from all fwmark 1 lookup 21000",
		"-4 rule add priority 9000 not fwmark 51820 lookup 51820", "-4 route add local default dev lo table 100",
	}
	for _, command := range theirs {
		host.Exec("ip", strings.Fields(command)...)
	}
	others := rules(host)
	settle(t, h, n)
	whole := rules(host)
	changed, err := h.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const mark = "fwmark 0x53000000/0x7f000000 lookup 21324"
	for _, c := range []struct {
		command, want string
		silent        bool // found by the next look: of routes of IPv4 only some wake
	}{
		{"-4 rule del priority 534", "the rule by which answers of guests in 10.213.0.0/16 reach the edge (priority 534, table 21324) is missing", false},
		{"-6 rule del priority 534 from 2001:db8:1::/48", "the rule by which answers of guests in 2001:db8:1::/48 reach the edge (priority 534, table 21324) is missing", false},
		{"-4 route flush table 21324", "the route by which guests' answers reach the edge (local 0.0.0.0/0 in table 21324) is missing", false},
		{"-6 route flush table 21324", "the route by which guests' answers reach the edge (local ::/0 in table 21324) is missing", false},
		{"-4 rule add priority 700 protocol 83 " + mark, "the routing rule with priority 700 to table 21324 does not belong there", false},
		{"-4 rule add priority 701 protocol 83 from 10.213.0.0/16 iif lo " + mark, "the routing rule with priority 701 to table 21324 does not belong there", false},
		{"-4 route add local 192.0.2.0/24 dev lo table 21324 proto 83", "the route to 192.0.2.0/24 in table 21324 does not belong there", true},
	} {
		for len(changed) > 0 {
			<-changed
		}
		host.Exec("ip", strings.Fields(c.command)...)
		if !c.silent {
			if _, ok := <-changed; !ok {
				t.Fatal("the watch ended")
			}
		}
		if drift, err := h.Diff(t.Context(), n); err != nil || !slices.Contains(drift, c.want) {
			t.Errorf("after %q: got %q (%v), want %q", c.command, drift, err, c.want)
		}
		settle(t, h, n)
		if got := rules(host); got != whole {
			t.Errorf("after %q: got\n%s\nwant\n%s", c.command, got, whole)
		}
	}
	host.Exec("ip", "route", "add", "192.0.2.0/24", "dev", "lo", "table", "21324")
	if err := h.Set(t.Context(), n); vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(vps.ErrorMessage(err), "ip route del 192.0.2.0/24 table 21324") {
		t.Errorf("another's route in our table: %v", err)
	}
	host.Exec("ip", "route", "del", "192.0.2.0/24", "table", "21324")
	if err := h.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := rules(host); got != others {
		t.Errorf("after CleanUp there is\n%s\nwant\n%s", got, others)
	}
}
