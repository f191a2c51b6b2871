package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/test/lab"
)

// background runs a program in a network until stop is called.
func background(t *testing.T, in *nstest.NS, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...)
	var err error
	in.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// TestNetwork sends real packets every way there is to and from two guests.
func TestNetwork(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	for _, name := range []string{"alice", "bob"} {
		h.Sublet("create", name, "--memory", "192MiB", "--ports", "5", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
	}
	alice, bob := h.Show("alice"), h.Show("bob")
	first := alice.Spec.Ports.First
	block := []int{first, first + 1, first + 2, first + 3, first + 4}
	listenInGuest(t, h, "alice", append(block, 443)...)
	n := &network{h, first, alice.Spec.Address, bob.Spec.Address}

	// No subtests: another goroutine would be outside of the host's network.
	n.callers(t)
	n.forwards(t)
	n.outwards(t)
	n.hairpin(t)
	n.walls(t)
	n.spoofing(t)
	n.told(t)
	n.rules(t)
	n.ipv6(t)
	n.traffic(t)
}

type network struct {
	*lab.Host
	first      int // of alice's ports
	alice, bob string
}

// answers checks that a call is answered as it should be. Packets may get
// lost, so it is made more than once.
func (n *network) answers(t *testing.T, what string, call caller, protocol, address string, port int, want string) {
	t.Helper()
	var got string
	for range 3 {
		if got = call(protocol, address, port); got == want {
			return
		}
	}
	t.Errorf("%s to %s:%d/%s: the answer is %q; want %q", what, address, port, protocol, got, want)
}

// silent checks that nobody answers a call.
func (n *network) silent(t *testing.T, what string, call caller, protocol, address string, port int) {
	t.Helper()
	if got := call(protocol, address, port); got != "" {
		t.Errorf("%s to %s:%d/%s: the answer is %q; want none", what, address, port, protocol, got)
	}
}

// callers reach every port of the block under its own number, TCP and UDP,
// and the guest sees who they are. The stranger is behind the router.
func (n *network) callers(t *testing.T) {
	t.Helper()
	t.Log("callers")
	for port := n.first; port < n.first+5; port++ {
		for _, protocol := range []string{"tcp", "udp"} {
			if protocol == "tcp" && port == n.first {
				continue // leads to SSH
			}
			n.answers(t, "from the router", from(n.Outside), protocol, lab.HostAddress, port, fmt.Sprintf("%s %s %d", protocol, lab.RouterAddress, port))
		}
	}
	n.Outside.Exec("ip", "route", "add", lab.HostAddress+"/32", "dev", "eth0", "src", lab.StrangerAddress)
	defer n.Outside.Exec("ip", "route", "del", lab.HostAddress+"/32", "dev", "eth0")
	for _, protocol := range []string{"tcp", "udp"} {
		n.answers(t, "from a stranger", from(n.Outside), protocol, lab.HostAddress, n.first+4, fmt.Sprintf("%s %s %d", protocol, lab.StrangerAddress, n.first+4))
	}
	if seen := n.SSHFrom(n.Outside, n.first, "echo $SSH_CLIENT"); !strings.HasPrefix(seen, lab.StrangerAddress+" ") {
		t.Errorf("the first port leads to SSH as %q; want a call from %s", seen, lab.StrangerAddress)
	}
	n.silent(t, "behind the blocks", from(n.Outside), "tcp", lab.HostAddress, n.first+12)
}

// forwards come and go while the guest runs.
func (n *network) forwards(t *testing.T) {
	t.Helper()
	t.Log("forwards")
	outside := from(n.Outside)
	n.silent(t, "before port add", outside, "tcp", lab.HostAddress, 8443)
	n.Sublet("port", "add", "alice", "8443:443/tcp")
	n.Eventually("the forward works", func() bool {
		return outside("tcp", lab.HostAddress, 8443) == "tcp "+lab.RouterAddress+" 443"
	})
	n.silent(t, "the other protocol", outside, "udp", lab.HostAddress, 8443)
	n.answers(t, "from bob", fromGuest(n.Host, "bob"), "tcp", lab.HostAddress, 8443, "tcp "+n.bob+" 443")
	n.Sublet("port", "remove", "alice", "8443")
	n.Eventually("the forward is gone", func() bool { return outside("tcp", lab.HostAddress, 8443) == "" })
	if r := n.Try("port", "remove", "alice", "8443"); r.Code != 3 {
		t.Errorf("removing a forward twice ends with %d; want 3", r.Code)
	}
}

// outwards a guest is seen under the host's address.
func (n *network) outwards(t *testing.T) {
	t.Helper()
	t.Log("outwards")
	listen(t, n.Host, n.Outside, 9000)
	n.answers(t, "outwards", fromGuest(n.Host, "alice"), "tcp", lab.StrangerAddress, 9000, "tcp "+lab.HostAddress+" 9000")
	n.answers(t, "outwards", fromGuest(n.Host, "alice"), "udp", lab.RouterAddress, 9000, "udp "+lab.HostAddress+" 9000")
	n.SSH("bob", "ping -q -c1 -W5 "+lab.StrangerAddress)
}

// hairpin: the host's public address works from the inside too.
func (n *network) hairpin(t *testing.T) {
	t.Helper()
	t.Log("hairpin")
	for _, protocol := range []string{"tcp", "udp"} {
		port := n.first + 2
		says := func(who string) string { return fmt.Sprintf("%s %s %d", protocol, who, port) }
		n.answers(t, "from the host", from(n.NS), protocol, lab.HostAddress, port, says(lab.HostAddress))
		n.answers(t, "from bob", fromGuest(n.Host, "bob"), protocol, lab.HostAddress, port, says(n.bob))
		n.answers(t, "from herself", fromGuest(n.Host, "alice"), protocol, lab.HostAddress, port, says(gateway))
	}
}

// gateway is the host's address towards its guests.
const gateway = "10.213.0.1"

// walls: what no port was opened for is not reached.
func (n *network) walls(t *testing.T) {
	t.Helper()
	t.Log("walls")
	port := n.first + 2
	n.silent(t, "from bob", fromGuest(n.Host, "bob"), "tcp", n.alice, port)
	n.silent(t, "from bob", fromGuest(n.Host, "bob"), "udp", n.alice, port)
	if r := n.TrySSH("bob", "ping -q -c1 -W1 "+n.alice); r.Code != 1 {
		t.Errorf("bob's ping of alice ends with %d; want 1", r.Code)
	}
	n.Outside.Exec("ip", "route", "add", n.alice+"/32", "via", lab.HostAddress)
	defer n.Outside.Exec("ip", "route", "del", n.alice+"/32")
	n.silent(t, "from outside", from(n.Outside), "tcp", n.alice, port)

	// A service of the host is open to the world, and not to guests.
	listen(t, n.Host, n.NS, 9100)
	n.answers(t, "from outside", from(n.Outside), "tcp", lab.HostAddress, 9100, "tcp "+lab.RouterAddress+" 9100")
	for _, address := range []string{gateway, lab.HostAddress} {
		n.silent(t, "from alice to a service of the host", fromGuest(n.Host, "alice"), "tcp", address, 9100)
	}
	n.SSH("alice", "ping -q -c1 -W5 "+gateway) // is it there at all?
}

// spoofing: a guest sends from no address but its own.
func (n *network) spoofing(t *testing.T) {
	t.Helper()
	t.Log("spoofing")
	n.Outside.ExecInput(`table inet seen {
		counter own {}
		counter any {}
		chain prerouting {
			type filter hook prerouting priority raw;
			icmp type echo-request ip daddr `+lab.StrangerAddress+` ip saddr `+lab.HostAddress+` counter name own
			icmp type echo-request ip daddr `+lab.StrangerAddress+` counter name any
		}
	}`, "nft", "-f", "-")
	defer n.Outside.Exec("nft", "delete", "table", "inet", "seen")
	n.SSH("alice", "ping -q -c1 -W5 "+lab.StrangerAddress)
	spoofed := n.dropped(t, "alice", "spoofed")
	for i, address := range []string{n.bob, "192.0.2.77", lab.HostAddress} {
		r := n.TrySSH("alice", fmt.Sprintf("ip addr add %[1]s/32 dev vec0 && ping -q -c2 -i0.2 -W1 -I %[1]s %[2]s; code=$?; ip addr del %[1]s/32 dev vec0; exit $code", address, lab.StrangerAddress))
		if r.Code != 1 { // ping(8): nothing came back
			t.Errorf("a ping from %s ends with %d; want 1\n%s%s", address, r.Code, r.Stdout, r.Stderr)
		}
		if now := n.dropped(t, "alice", "spoofed"); now < spoofed+2*int64(i+1) {
			t.Errorf("after pings from %s there are %d spoofed packets; there were %d", address, now, spoofed)
		}
	}
	own, all := counter(t, n.Outside, "inet", "seen", "own"), counter(t, n.Outside, "inet", "seen", "any")
	if own != 1 || all != 1 {
		t.Errorf("outside, %d pings from the host's address and %d in all were seen; want 1 and 1", own, all)
	}
	n.SSH("alice", "ping -q -c1 -W5 "+lab.StrangerAddress)
}

// dropped returns how many packets of a guest were dropped for a reason.
func (n *network) dropped(t *testing.T, name, reason string) int64 {
	t.Helper()
	var shown struct {
		Drops []struct {
			Reason  string `json:"reason"`
			Packets int64  `json:"packets"`
		} `json:"drops"`
	}
	decode(t, n.Sublet("net", "show", name, "-o", "json"), &shown)
	for _, d := range shown.Drops {
		if d.Reason == reason {
			return d.Packets
		}
	}
	return 0
}

// told: drops are seen by people, in the log and by Prometheus.
func (n *network) told(t *testing.T) {
	t.Helper()
	t.Log("told")
	n.Eventually("an event tells of drops", func() bool {
		return strings.Contains(n.Sublet("events", "alice"), "dropped: ")
	})
	if out := n.Sublet("net", "show", "alice"); !strings.Contains(out, "spoofed") {
		t.Errorf("net show says nothing of drops:\n%s", out)
	}
	log, err := os.ReadFile(filepath.Join(n.Dir, "daemon.log"))
	if lines := strings.Count(string(log), `msg="packet dropped" guest=alice`); err != nil || lines == 0 || lines > 15 {
		t.Errorf("the log has %d lines of alice's packets, %v; want 1 to 15", lines, err)
	}
	metrics := scrape(t, n.Host)
	if want := `sublet_guest_dropped_packets_total{guest="alice",reason="spoofed"} `; !strings.Contains(metrics, want) {
		t.Errorf("no %s in the metrics:\n%s", want, metrics)
	}
}

// rules of the owner open and close, and peers find each other.
func (n *network) rules(t *testing.T) {
	t.Helper()
	t.Log("rules")
	alice := fromGuest(n.Host, "alice")
	n.Sublet("net", "allow", "alice", "out", "host", "9100/tcp")
	n.Eventually("the host's service is open", func() bool { return alice("tcp", gateway, 9100) == "tcp "+n.alice+" 9100" })
	n.Sublet("net", "remove", "alice", "1")
	n.Eventually("it is closed", func() bool { return alice("tcp", gateway, 9100) == "" })
	n.Sublet("net", "deny", "alice", "out", lab.StrangerAddress)
	n.Eventually("a stranger is out of reach", func() bool { return alice("tcp", lab.StrangerAddress, 9000) == "" })
	n.Sublet("net", "remove", "alice", "1")
	n.Eventually("the stranger is back", func() bool { return alice("tcp", lab.StrangerAddress, 9000) != "" })
	bob := fromGuest(n.Host, "bob")
	n.Sublet("update", "alice", "--network-peer")
	n.silent(t, "one peer is none", bob, "tcp", n.alice, n.first+2)
	n.Sublet("update", "bob", "--network-peer")
	n.Eventually("peers reach each other", func() bool { return bob("tcp", n.alice, n.first+2) != "" })
	n.Sublet("update", "bob", "--network-peer=false")
	n.Eventually("and no more", func() bool { return bob("tcp", n.alice, n.first+2) == "" })
}

// ipv6: guests have addresses of their own, translated to the host's.
func (n *network) ipv6(t *testing.T) {
	t.Helper()
	t.Log("ipv6")
	n.Outside.Exec("ip", "-6", "addr", "add", routerAddress6+"/64", "dev", "eth0", "nodad")
	n.NS.Exec("ip", "-6", "addr", "add", hostAddress6+"/64", "dev", "pub0", "nodad")
	n.NS.Exec("ip", "-6", "route", "add", "default", "via", routerAddress6)
	n.Outside.ExecInput(`table inet seen {
		counter own {}
		chain prerouting {
			type filter hook prerouting priority raw;
			icmpv6 type echo-request ip6 saddr `+hostAddress6+` counter name own
		}
	}`, "nft", "-f", "-")
	defer n.Outside.Exec("nft", "delete", "table", "inet", "seen")
	n.Eventually("alice reaches the world by IPv6", func() bool { return n.TrySSH("alice", "ping -6 -q -c1 -W1 "+routerAddress6).Code == 0 })
	if counter(t, n.Outside, "inet", "seen", "own") == 0 {
		t.Error("the router did not see alice under the host's address")
	}
	bob := n.global6("bob")
	if r := n.TrySSH("alice", "ping -6 -q -c1 -W1 "+bob); r.Code == 0 || !strings.HasPrefix(bob, "fd") {
		t.Errorf("alice's ping of bob's %q ends with %d", bob, r.Code)
	}
	if r := n.TrySSH("alice", "ping -6 -q -c1 -W5 fe80::1%vec0"); r.Code != 0 {
		t.Errorf("alice's gateway does not answer: %s%s", r.Stdout, r.Stderr)
	}
}

// counter returns the packets of a named counter.
func counter(t *testing.T, in *nstest.NS, family, table, name string) int64 {
	t.Helper()
	var list struct {
		Nftables []struct {
			Counter *struct {
				Packets int64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	decode(t, in.Exec("nft", "-j", "list", "counter", family, table, name), &list)
	for _, o := range list.Nftables {
		if o.Counter != nil {
			return o.Counter.Packets
		}
	}
	t.Fatalf("there is no counter %s in %s %s", name, family, table)
	return 0
}
