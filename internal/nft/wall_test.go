//go:build linux

package nft_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// rule reads a rule of an owner.
func rule(t *testing.T, text string) vps.Rule {
	t.Helper()
	r, err := vps.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answers tells whether a question gets an answer.
func (w *world) answers(from, protocol, to string) bool {
	w.t.Helper()
	return w.ask(w.place(from), protocol, to, 400*time.Millisecond) != ""
}

// TestPeers: guests of one group reach each other, and nobody else does.
func TestPeers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, groups := range [][2]string{{"", ""}, {"team", ""}, {"team", "other"}, {"team", "team"}, {"", "team"}} {
		w.network.Guests[0].Peers, w.network.Guests[1].Peers = groups[0], groups[1]
		w.apply()
		want := groups[0] == "team" && groups[1] == "team"
		if got := w.answers("alice", "tcp", "10.213.0.3:22"); got != want {
			t.Errorf("peers of %q: reached is %v", groups, got)
		}
	}
}

// TestOwnersRules: they open what is closed by default and close what is open,
// the first that matches wins, and none comes before the wall.
func TestOwnersRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(w.outside, "outside", 25)
	private := w.host.Peer()
	w.host.Veth("docker0", private, "eth0")
	w.host.Exec("ip", "addr", "add", "172.17.0.1/24", "dev", "docker0")
	private.Exec("ip", "addr", "add", "172.17.0.2/24", "dev", "eth0")
	private.Exec("ip", "route", "add", "default", "via", "172.17.0.1")
	w.serve(private, "private", 80)
	for _, c := range []struct {
		rules        []string
		from, to     string
		reached      bool
		smtp, spoofs bool
	}{
		{nil, "alice", gateway + ":80", false, false, false},
		{[]string{"allow out host 80/tcp"}, "alice", gateway + ":80", true, false, false},
		{[]string{"allow out host 81/tcp"}, "alice", gateway + ":80", false, false, false},
		{[]string{"deny out host 80/tcp", "allow out host"}, "alice", gateway + ":80", false, false, false},
		{[]string{"allow out host", "deny out host 80/tcp"}, "alice", gateway + ":80", true, false, false},
		{nil, "alice", "172.17.0.2:80", false, false, false},
		{[]string{"allow out 172.17.0.0/24 tcp"}, "alice", "172.17.0.2:80", true, false, false},
		{nil, "alice", outside + ":80", true, false, false},
		{[]string{"deny out " + outside}, "alice", outside + ":80", false, false, false},
		{[]string{"allow out any 80/tcp", "deny out any"}, "alice", outside + ":80", true, false, false},
		{[]string{"deny out any 1-79/tcp", "deny out any udp"}, "alice", outside + ":80", true, false, false},
		{nil, "alice", outside + ":25", false, false, false},
		{nil, "alice", outside + ":25", true, true, false},
		{[]string{"allow out any 25/tcp"}, "alice", outside + ":25", true, false, false},
		{nil, "outside", "10.213.0.2:22", false, false, false},
		{[]string{"allow in any 22/tcp"}, "outside", "10.213.0.2:22", true, false, false},
		{[]string{"deny in " + outside}, "outside", public + ":20001", false, false, false},
		{[]string{"allow in any", "allow out any"}, "bob", "10.213.0.2:22", false, false, false},
		{[]string{"allow out any", "allow out host"}, "alice", outside + ":80", false, false, true},
	} {
		g := &w.network.Guests[0]
		g.Rules, g.SMTP = nil, c.smtp
		for _, text := range c.rules {
			g.Rules = append(g.Rules, rule(t, text))
		}
		w.apply()
		if c.spoofs {
			w.guests["alice"].Exec("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
			w.guests["alice"].Exec("ip", "route", "replace", "default", "via", gateway, "dev", "eth0", "onlink")
		}
		if got := w.answers(c.from, "tcp", c.to); got != c.reached {
			t.Errorf("with %q: from %s to %s: reached is %v, want %v", c.rules, c.from, c.to, got, c.reached)
		}
	}
	if w.count(vps.DropRule) == 0 || w.count(vps.DropSMTP) == 0 {
		t.Error("drops by rules and of mail are not counted")
	}
}

// TestServices: a guest reaches the host's open services.
func TestServices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(w.host, "host", 53)
	w.network.Services = []vps.Service{{Port: 53, Protocol: vps.ProtoUDP}}
	w.apply()
	for protocol, want := range map[string]bool{"udp": true, "tcp": false} {
		if got := w.answers("alice", protocol, gateway+":53"); got != want {
			t.Errorf("the host's port 53/%s: reached is %v", protocol, got)
		}
	}
}

// TestLimits: a guest that floods is held to its own limits, and its
// neighbour is not.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	flood := func(name string, ports int) (arrived int) {
		t.Helper()
		before := w.received()
		w.guests[name].Do(func() {
			for port := range ports {
				conn, err := net.Dial("udp4", net.JoinHostPort(outside, fmt.Sprint(10000+port)))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write([]byte("x"))
				_ = conn.Close()
			}
		})
		return w.received() - before
	}
	slow := vps.NetworkLimits{Packets: 1_000_000, NewConnections: 1_000_000, Connections: 1_000_000}
	for _, c := range []struct {
		name   string
		limits vps.NetworkLimits
		most   int
		reason vps.DropReason
	}{
		{"connections", vps.NetworkLimits{Packets: 1_000_000, NewConnections: 1_000_000, Connections: 50}, 50, vps.DropConnections},
		{"new connections", vps.NetworkLimits{Packets: 1_000_000, NewConnections: 40, Connections: 1_000_000}, 150, vps.DropNewConnection},
		{"packets", vps.NetworkLimits{Packets: 40, NewConnections: 1_000_000, Connections: 1_000_000}, 150, vps.DropFlood},
	} {
		w.network.Guests[0].Limits, w.network.Guests[1].Limits = c.limits, slow
		w.apply()
		const many = 1000
		before := w.count(c.reason)
		if got := flood("alice", many); got > c.most || got == 0 {
			t.Errorf("%s: %d packets of %d arrived, want at most %d", c.name, got, many, c.most)
		}
		if w.count(c.reason) == before {
			t.Errorf("%s: nothing was counted", c.name)
		}
		if got := flood("bob", 100); got != 100 {
			t.Errorf("%s: of the neighbour's 100 packets %d arrived", c.name, got)
		}
	}
}

// received is how many UDP datagrams the outside's kernel has got, for ports
// that nobody listens on too.
func (w *world) received() int {
	w.t.Helper()
	for line := range strings.SplitSeq(w.outside.Exec("cat", "/proc/net/snmp"), "\n") {
		var in, none int
		if n, _ := fmt.Sscanf(line, "Udp: %d %d", &in, &none); n == 2 {
			return in + none
		}
	}
	w.t.Fatal("no statistics of UDP")
	return 0
}

// raw sends frames as they are from a link of a namespace.
func raw(t *testing.T, ns *nstest.NS, link string, frames ...[]byte) {
	t.Helper()
	ns.Do(func() {
		send := opened(t, link)
		for _, f := range frames {
			send(f)
		}
	})
}

// opened returns what sends frames from a link of the network that it is
// called in.
func opened(t *testing.T, link string) (send func(frame []byte)) {
	t.Helper()
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Error(err)
		return func([]byte) {}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return func([]byte) {}
	}
	file := os.NewFile(uintptr(fd), "frames")
	t.Cleanup(func() { _ = file.Close() })
	return func(frame []byte) {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Index, Halen: 6}); err != nil {
			t.Error(err)
		}
	}
}

func frame(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	b := append(append([]byte(nil), to...), from...)
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(append(b, payload...), make([]byte, 46)...)
}

func arp(operation uint16, mac net.HardwareAddr, ip, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), ip.AsSlice()...)
	return append(append(b, make([]byte, 6)...), target.AsSlice()...)
}

// ip4 is a UDP packet without a checksum of its own.
func ip4(from, to netip.Addr, sport, dport uint16) []byte {
	b := []byte{0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	return append(b, 0, 12, 0, 0, 'h', 'i', '\n', 0)
}

// TestFrames sends frames that no guest should, and some that it may.
func TestFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.network.Guests[0], w.network.Guests[1]
	everybody := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	host := netip.MustParseAddr(gateway)
	world := netip.MustParseAddr(outside)
	tagged := func(kind, id uint16, inner uint16, payload []byte) []byte {
		return frame(everybody, a.MAC, kind, append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, id), inner), payload...))
	}
	own := ip4(a.Address, world, 1, 80)
	for _, c := range []struct {
		what   string
		frame  []byte
		reason vps.DropReason // empty: passes
	}{
		{"its own ARP request", frame(everybody, a.MAC, 0x0806, arp(1, a.MAC, a.Address, host)), ""},
		{"its own ARP reply", frame(everybody, a.MAC, 0x0806, arp(2, a.MAC, a.Address, host)), ""},
		{"an ARP probe for its address", frame(everybody, a.MAC, 0x0806, arp(1, a.MAC, netip.IPv4Unspecified(), a.Address)), ""},
		{"its own packet", frame(everybody, a.MAC, 0x0800, own), ""},
		{"ARP for the neighbour", frame(everybody, a.MAC, 0x0806, arp(2, a.MAC, b.Address, host)), vps.DropARP},
		{"ARP for the gateway", frame(everybody, a.MAC, 0x0806, arp(1, a.MAC, host, host)), vps.DropARP},
		{"ARP with a foreign MAC inside", frame(everybody, a.MAC, 0x0806, arp(2, b.MAC, a.Address, host)), vps.DropARP},
		{"an ARP probe for the neighbour's address", frame(everybody, a.MAC, 0x0806, arp(1, a.MAC, netip.IPv4Unspecified(), b.Address)), vps.DropARP},
		{"ARP from a foreign MAC", frame(everybody, b.MAC, 0x0806, arp(2, b.MAC, b.Address, host)), vps.DropSpoofed},
		{"RARP", frame(everybody, a.MAC, 0x8035, arp(3, a.MAC, a.Address, host)), vps.DropEthertype},
		{"LLDP", frame(everybody, a.MAC, 0x88cc, nil), vps.DropEthertype},
		{"spanning tree", frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, a.MAC, 38, []byte{0x42, 0x42, 3}), vps.DropEthertype},
		{"PPPoE", frame(everybody, a.MAC, 0x8863, nil), vps.DropEthertype},
		{"MPLS", frame(everybody, a.MAC, 0x8847, nil), vps.DropEthertype},
		{"an experiment", frame(everybody, a.MAC, 0x88b5, nil), vps.DropEthertype},
		{"VLAN 7", tagged(0x8100, 7, 0x0800, own), vps.DropVLAN},
		{"VLAN 0", tagged(0x8100, 0, 0x0800, own), vps.DropVLAN},
		{"VLAN 0, ARP", tagged(0x8100, 0, 0x0806, arp(1, a.MAC, a.Address, host)), vps.DropVLAN},
		{"802.1ad", tagged(0x88a8, 7, 0x0800, own), vps.DropVLAN},
		{"QinQ", tagged(0x88a8, 7, 0x8100, append([]byte{0, 9, 8, 0}, own...)), vps.DropVLAN},
		{"the neighbour's address", frame(everybody, a.MAC, 0x0800, ip4(b.Address, world, 1, 80)), vps.DropSpoofed},
		{"the gateway's address", frame(everybody, a.MAC, 0x0800, ip4(host, world, 1, 80)), vps.DropSpoofed},
		{"loopback's address", frame(everybody, a.MAC, 0x0800, ip4(netip.MustParseAddr("127.0.0.1"), world, 1, 80)), vps.DropSpoofed},
		{"no address", frame(everybody, a.MAC, 0x0800, ip4(netip.IPv4Unspecified(), world, 68, 67)), vps.DropSpoofed},
		{"a DHCP server's answer", frame(everybody, a.MAC, 0x0800, ip4(a.Address, world, 67, 68)), vps.DropDHCP},
		{"the neighbour's MAC", frame(everybody, b.MAC, 0x0800, own), vps.DropSpoofed},
		{"the neighbour, all of it", frame(everybody, b.MAC, 0x0800, ip4(b.Address, world, 1, 80)), vps.DropSpoofed},
	} {
		before := w.drops(a.Link)
		raw(t, w.guests["alice"], "eth0", c.frame)
		after := w.drops(a.Link)
		var rose []vps.DropReason
		for reason, n := range after {
			if n > before[reason] {
				rose = append(rose, reason)
			}
		}
		var want []vps.DropReason
		if c.reason != "" {
			want = []vps.DropReason{c.reason}
		}
		if !slices.Equal(rose, want) {
			t.Errorf("%s: dropped as %q, want %q", c.what, rose, want)
		}
	}
	// What its own kernel says in IPv6, which it has none of, is its own.
	for reason := range w.drops(b.Link) {
		if reason != vps.DropSpoofed {
			t.Errorf("drops of the neighbour: %v", w.drops(b.Link))
		}
	}
}

// drops are a link's drops by reason.
func (w *world) drops(link string) map[vps.DropReason]uint64 {
	w.t.Helper()
	byReason := map[vps.DropReason]uint64{}
	w.host.Do(func() {
		all, err := w.wall.Drops(w.t.Context())
		if err != nil {
			w.t.Error(err)
		}
		for _, d := range all[link] {
			byReason[d.Reason] = d.Packets
		}
	})
	return byReason
}

// TestNeverAbsent floods the outside with spoofed packets while the rules
// change all the time, in small and as a whole, and are guarded anew.
func TestNeverAbsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seen := listen(t, w.outside, "eth0")
	a := w.network.Guests[0]
	spoofed := frame(net.HardwareAddr{255, 255, 255, 255, 255, 255}, a.MAC, 0x0800, ip4(netip.MustParseAddr("192.0.2.66"), netip.MustParseAddr(outside), 1, 666))
	stop := make(chan struct{})
	flooding := w.guests["alice"].Start(func() {
		send := opened(t, "eth0")
		for {
			select {
			case <-stop:
				return
			default:
				send(spoofed)
			}
		}
	})
	before := w.drops(a.Link)[vps.DropSpoofed]
	for i := range 50 {
		switch i % 5 {
		case 0: // a whole replacement, by a daemon without memory
			w.wall = nft.New(nil, nft.Options{})
			w.network.Gateway = netip.MustParseAddr(fmt.Sprintf("10.213.0.%d", 1+100*(i%2)))
		case 1:
			w.network.Guests = append(w.network.Guests, guest(10+i, fmt.Sprintf("g%d", i)))
		case 2:
			w.network.Guests[1].SMTP = !w.network.Guests[1].SMTP
		case 3:
			if err := w.wall.Guard(t.Context(), a.Link); err != nil {
				t.Fatal(err)
			}
		case 4:
			w.network.Guests[1].Rules = []vps.Rule{rule(t, fmt.Sprintf("deny out any %d/tcp", 1000+i))}
		}
		w.apply()
	}
	close(stop)
	<-flooding
	if got := w.drops(a.Link)[vps.DropSpoofed]; got <= before+100 {
		t.Errorf("%d spoofed packets were dropped, after %d; was there a flood?", got, before)
	}
	if n := seen("192.0.2.66"); n > 0 {
		t.Errorf("%d spoofed packets got out", n)
	}
}

// listen hears all frames of a link and returns how many came from an IPv4
// address.
func listen(t *testing.T, ns *nstest.NS, link string) (seen func(from string) int) {
	t.Helper()
	var fd int
	ns.Do(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			t.Error(err)
			return
		}
		l, err := net.InterfaceByName(link)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8, Ifindex: l.Index})
		}
		if err != nil {
			t.Error(err)
		}
	})
	file := os.NewFile(uintptr(fd), "packets")
	t.Cleanup(func() { _ = file.Close() })
	return func(from string) int {
		count, buffer := 0, make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, buffer)
			if err != nil {
				return count
			}
			if n >= 34 && net.IP(buffer[26:30]).String() == from {
				count++
			}
		}
	}
}
