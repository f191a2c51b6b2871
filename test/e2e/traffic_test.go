package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/vps"
	"sublet/test/lab"
)

// Addresses of the router and of the host in IPv6 (RFC 3849).
const (
	routerAddress6 = "2001:db8:ffff::1"
	hostAddress6   = "2001:db8:ffff::2"
)

// traffic compares what is told of alice's traffic, in each way of telling it,
// with what the test sees on her link, to the byte.
func (n *network) traffic(t *testing.T) {
	t.Helper()
	t.Log("traffic")
	n.Sublet("price", "set", "--currency", "USD", "--month", "10", "--in", "1", "--out", "1")
	n.Sublet("update", "alice", "--network-peer")
	n.Sublet("update", "bob", "--network-peer")
	n.Eventually("the plan is empty", n.Settled)
	// What the host and the router send leaves them in packets, and not put
	// together, so that there are as many on the link as were counted before it.
	n.Outside.Exec("ip", "link", "set", "eth0", "gso_max_segs", "1")
	n.NS.Exec("ip", "link", "set", "sl-alice", "gso_max_segs", "1")
	n.serve(t)
	bob6 := n.global6("bob")
	a := &account{network: n, wire: watch(t, "sl-alice", n.peers(n.global6("alice"), bob6))}
	vnstat := n.NS.VnStat("sl-alice")
	a.begin()
	vnstatAgrees := a.vnstat(t, vnstat)
	live := n.live(t)

	least := n.exchange(t, bob6)
	a.agrees(t, "after known traffic", vps.TrafficClasses()...)
	passed := minus(a.wire.counts(), a.wireBefore)
	for key, want := range least {
		if got := passed[key]; got.InBytes < want.InBytes || got.OutBytes < want.OutBytes || got.InPackets < want.InPackets || got.OutPackets < want.OutPackets {
			t.Errorf("of %+v at least %+v was sent, and the link had %+v", key, want, got)
		}
	}
	live(a.passed(vps.TrafficInternet))
	n.adds(t)
	vnstatAgrees()

	// What the host sends to a guest that is not there yet gets lost behind the
	// counters, so that from here on only the way to the outside agrees.
	n.Sublet("restart", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	a.agrees(t, "after a restart of the guest", vps.TrafficInternet)
	n.Kill()
	n.SSHFrom(n.Outside, n.first, sendUDP(lab.StrangerAddress, 10, 900))
	n.Start()
	a.agrees(t, "after a new daemon", vps.TrafficInternet)
	before := n.ledger("--months")
	n.Sublet("delete", "alice", "--yes")
	a.agrees(t, "after the guest was deleted", vps.TrafficInternet)
	after := n.ledger("--months")
	for key, was := range before {
		if is := after[key]; is.InBytes < was.InBytes || is.OutBytes < was.OutBytes {
			t.Errorf("of %+v there was %+v, and is %+v when the guest is deleted", key, was, is)
		}
	}
}

// What is sent: bytes of each TCP connection, and port of the servers outside.
const (
	download, upload = 300_000, 200_000
	serverPort       = 9200
)

// serve sends and receives so much over TCP, and takes all UDP, outside.
func (n *network) serve(t *testing.T) {
	t.Helper()
	var listener net.Listener
	var sink net.PacketConn
	n.Outside.Do(func() {
		var err error
		address := fmt.Sprintf("[::]:%d", serverPort) // both versions of IP
		if listener, err = net.Listen("tcp", address); err != nil {
			t.Error(err)
		}
		if sink, err = net.ListenPacket("udp", address); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { _, _ = listener.Close(), sink.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = conn.Write(make([]byte, download)) }()
			go func() {
				defer conn.Close() //nolint:errcheck // the guest has gone
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
}

// sendUDP is a command that sends packets to the server.
func sendUDP(address string, packets, size int) string {
	return fmt.Sprintf("bash -c 'exec 3>/dev/udp/%s/%d; for i in {1..%d}; do printf %%0%dd 0 >&3; done'", address, serverPort, packets, size)
}

// stream is a command that sends and receives what a connection has.
func stream(address string) string {
	return fmt.Sprintf("bash -c 'exec 3<>/dev/tcp/%s/%d; head -c %d /dev/zero >&3; test $(head -c %d <&3 | wc -c) = %[4]d'", address, serverPort, upload, download)
}

// exchange has known traffic pass in each class and version of IP, and returns
// what that is at least.
func (n *network) exchange(t *testing.T, bob6 string) map[vps.TrafficKey]vps.TrafficCount {
	t.Helper()
	const udp4, udp6 = vps.FrameBytes + 20 + 8, vps.FrameBytes + 40 + 8 // headers, of UDP and of ICMP
	const packets, size, spoofed = 20, 700, 3
	ping := func(target string) string { return fmt.Sprintf("ping -q -c%d -i0.02 -s%d %s", packets, size, target) }
	n.SSH("alice", strings.Join([]string{
		sendUDP(lab.StrangerAddress, 100, 1000), sendUDP(routerAddress6, 50, 800),
		stream(lab.StrangerAddress), stream(routerAddress6),
		ping(gateway), ping("fe80::1%vec0"), ping(n.bob), ping(bob6),
		"ip addr add 192.0.2.77/32 dev vec0",
		fmt.Sprintf("! ping -q -c%d -i0.2 -W1 -s%d -I 192.0.2.77 %s", spoofed, size, lab.StrangerAddress),
		"ip addr del 192.0.2.77/32 dev vec0",
	}, " && "))
	var err error
	n.Outside.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial("udp4", net.JoinHostPort(lab.HostAddress, strconv.Itoa(n.first+2))); err != nil {
			return
		}
		for range packets {
			if _, err = conn.Write(make([]byte, size)); err != nil {
				break
			}
		}
		_ = conn.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	pings := func(header int64) vps.TrafficCount {
		return vps.TrafficCount{InBytes: packets * (size + header), InPackets: packets, OutBytes: packets * (size + header), OutPackets: packets}
	}
	return map[vps.TrafficKey]vps.TrafficCount{
		{Class: vps.TrafficInternet, Family: 4}: {InBytes: download + packets*(size+udp4), InPackets: packets, OutBytes: upload + 100*(1000+udp4), OutPackets: 100},
		{Class: vps.TrafficInternet, Family: 6}: {InBytes: download, OutBytes: upload + 50*(800+udp6), OutPackets: 50},
		{Class: vps.TrafficHost, Family: 4}:     pings(udp4),
		{Class: vps.TrafficHost, Family: 6}:     pings(udp6),
		{Class: vps.TrafficBetween, Family: 4}:  pings(udp4),
		{Class: vps.TrafficBetween, Family: 6}:  pings(udp6),
		{Class: vps.TrafficDropped, Family: 4}:  {OutBytes: spoofed * (size + udp4), OutPackets: spoofed},
	}
}

// live follows alice, and returns what waits until it tells of so much that
// went out to the internet and came from there, since it began.
func (n *network) live(t *testing.T) (tells func(vps.TrafficCount)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), lab.Sublet(t), "traffic", "alice", "--live", "--interval", "200ms", "-o", "json")
	cmd.Env = n.Env
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan() // the first rate, of the time since the first reading
	return func(want vps.TrafficCount) {
		t.Helper()
		var got vps.TrafficCount
		n.Eventually("--live tells what has passed", func() bool {
			if !lines.Scan() {
				t.Fatalf("--live has ended: %v", lines.Err())
			}
			var now struct {
				Rates []struct {
					Class vps.TrafficClass `json:"class"`
					Since vps.TrafficCount `json:"since_begin"`
				} `json:"rates"`
			}
			decode(t, lines.Text(), &now)
			for _, r := range now.Rates {
				if r.Class == vps.TrafficInternet {
					got = r.Since
				}
			}
			return got == want
		})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// adds compares sums of all guests, and the bill, with the ledger.
func (n *network) adds(t *testing.T) {
	t.Helper()
	var check vps.TrafficCheck
	decode(t, n.Sublet("traffic", "--check", "-o", "json"), &check)
	all := map[vps.TrafficClass]vps.TrafficCount{}
	for key, count := range ledgerOf(n.Host, "traffic", "--months") {
		all[key.Class] = all[key.Class].Add(count)
	}
	if got := check.Lines[1].TrafficCount; !check.OK || got != all[vps.TrafficInternet] {
		t.Errorf("--check has %+v of guests, and their sum is %+v: %+v", got, all[vps.TrafficInternet], check)
	}
	var billed vps.TrafficCount
	for key, count := range n.ledger("--months") {
		if key.Class.Billed() {
			billed = billed.Add(count)
		}
	}
	var bill vps.Bill
	decode(t, n.Sublet("bill", "-o", "json"), &bill)
	for _, tenant := range bill.Tenants {
		for _, line := range tenant.Lines {
			if line.Guest == "alice" && line.In.Bytes == billed.InBytes && line.Out.Bytes == billed.OutBytes {
				return
			}
		}
	}
	t.Errorf("the ledger has %+v of alice, and the bill %+v", billed, bill.Tenants)
}

// ledger is what a view tells of alice, and ledgerOf what any command does.
func (n *network) ledger(view string) map[vps.TrafficKey]vps.TrafficCount {
	return ledgerOf(n.Host, "traffic", "alice", view)
}

func ledgerOf(h *lab.Host, command ...string) map[vps.TrafficKey]vps.TrafficCount {
	var page struct {
		Traffic []struct {
			Class    vps.TrafficClass            `json:"class"`
			Families map[string]vps.TrafficCount `json:"families"`
		} `json:"traffic"`
	}
	text := h.Sublet(append(command, "--by", "class", "-o", "json")...)
	counts := map[vps.TrafficKey]vps.TrafficCount{}
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		return counts // which agrees with nothing
	}
	for _, line := range page.Traffic {
		for name, family := range map[string]int{"ipv4": 4, "ipv6": 6, "other": 0} {
			key := vps.TrafficKey{Class: line.Class, Family: family}
			counts[key] = counts[key].Add(line.Families[name])
		}
	}
	return counts
}

// global6 is a guest's own address in IPv6.
func (n *network) global6(guest string) string {
	return n.SSH(guest, "ip -6 -o addr show dev vec0 scope global | grep -o 'fd[0-9a-f:]*' | head -1")
}

// peers tells whom alice talks to.
func (n *network) peers(alice6, bob6 string) peers {
	parse := netip.MustParseAddr
	return peers{
		own:  []netip.Addr{parse(n.alice), parse(alice6)},
		host: []netip.Addr{parse(gateway), parse(lab.HostAddress), parse(hostAddress6)}, guests: []netip.Addr{parse(n.bob), parse(bob6)},
	}
}

// account compares views of the ledger with the wire, since it began.
type account struct {
	*network
	wire       *wire
	wireBefore map[vps.TrafficKey]vps.TrafficCount
	before     map[string]map[vps.TrafficKey]vps.TrafficCount // by view
}

// begin waits for a moment in which nothing passes.
func (a *account) begin() {
	a.before = map[string]map[vps.TrafficKey]vps.TrafficCount{}
	a.Eventually("nothing passes", func() bool {
		a.wireBefore = a.wire.counts()
		for _, view := range []string{"--5min", "--hours", "--days", "--months"} {
			a.before[view] = a.ledger(view)
		}
		return maps.Equal(a.wireBefore, a.wire.counts())
	})
}

// vnstat has vnStat begin in a moment in which nothing passes, and returns what
// waits until its days and months have grown by as many bytes as those of the
// ledger, and of what is in no class, which is ARP.
func (a *account) vnstat(t *testing.T, v *nstest.VnStat) (agrees func()) {
	t.Helper()
	t.Log(v.Version())
	now := func() (wire map[vps.TrafficKey]vps.TrafficCount, have, ledger map[string]nstest.VnStatCount) {
		wire = a.wire.counts()
		v.Look()
		_, days, months := v.Counts("sl-alice")
		have = map[string]nstest.VnStatCount{"--days": days, "--months": months}
		ledger = map[string]nstest.VnStatCount{}
		for view := range have {
			var sum vps.TrafficCount
			for _, count := range a.ledger(view) {
				sum = sum.Add(count)
			}
			ledger[view] = nstest.VnStatCount{Rx: sum.OutBytes, Tx: sum.InBytes} // the host's end of the link
		}
		return wire, have, ledger
	}
	var wireBefore map[vps.TrafficKey]vps.TrafficCount
	var haveBefore, ledgerBefore map[string]nstest.VnStatCount
	a.Eventually("nothing passes while vnStat looks", func() bool {
		wireBefore, haveBefore, ledgerBefore = now()
		return maps.Equal(wireBefore, a.wire.counts())
	})
	return func() {
		t.Helper()
		a.Eventually("vnStat agrees with the ledger", func() bool {
			wire, have, ledger := now()
			arp := minus(wire, wireBefore)[vps.TrafficKey{}]
			for view := range have {
				got := nstest.VnStatCount{Rx: have[view].Rx - haveBefore[view].Rx, Tx: have[view].Tx - haveBefore[view].Tx}
				want := nstest.VnStatCount{
					Rx: ledger[view].Rx - ledgerBefore[view].Rx + arp.OutBytes,
					Tx: ledger[view].Tx - ledgerBefore[view].Tx + arp.InBytes,
				}
				t.Logf("%s: vnStat has %+v, the ledger %+v with %d and %d bytes of ARP", view, got, want, arp.OutBytes, arp.InBytes)
				if got != want || got.Rx < upload || got.Tx < download {
					return false
				}
			}
			return true
		})
	}
}

// passed is what the wire had of a class since then.
func (a *account) passed(class vps.TrafficClass) (sum vps.TrafficCount) {
	for key, count := range minus(a.wire.counts(), a.wireBefore) {
		if key.Class == class {
			sum = sum.Add(count)
		}
	}
	return sum
}

// agrees waits until each view has of these classes what the wire has.
func (a *account) agrees(t *testing.T, when string, classes ...vps.TrafficClass) {
	t.Helper()
	of := func(counts map[vps.TrafficKey]vps.TrafficCount) map[vps.TrafficKey]vps.TrafficCount {
		maps.DeleteFunc(counts, func(key vps.TrafficKey, count vps.TrafficCount) bool {
			return !slices.Contains(classes, key.Class) || count == vps.TrafficCount{}
		})
		return counts
	}
	for view, before := range a.before {
		var got, want map[vps.TrafficKey]vps.TrafficCount
		defer func() {
			if t.Failed() {
				t.Logf("%s, %s: %+v; on the wire %+v", when, view, got, want)
			}
		}()
		a.Eventually(view+" agrees with the wire "+when, func() bool {
			want = of(minus(a.wire.counts(), a.wireBefore))
			got = of(minus(a.ledger(view), before))
			return maps.Equal(got, want)
		})
	}
}

func minus(counts, before map[vps.TrafficKey]vps.TrafficCount) map[vps.TrafficKey]vps.TrafficCount {
	out := map[vps.TrafficKey]vps.TrafficCount{}
	for key, c := range counts {
		b := before[key]
		out[key] = vps.TrafficCount{InBytes: c.InBytes - b.InBytes, InPackets: c.InPackets - b.InPackets, OutBytes: c.OutBytes - b.OutBytes, OutPackets: c.OutPackets - b.OutPackets}
	}
	return out
}
