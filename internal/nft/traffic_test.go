//go:build linux

package nft_test

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/vps"
)

// ledger is traffic by link and class, "sl-alice internet/4".
type ledger map[string]vps.TrafficCount

// traffic reads the counters and returns their epoch as well.
func (w *world) traffic() (ledger, string) {
	w.t.Helper()
	var c vps.TrafficCounters
	w.host.Do(func() {
		var err error
		if c, err = w.wall.Traffic(w.t.Context()); err != nil {
			w.t.Error(err)
		}
	})
	if w.t.Failed() {
		w.t.FailNow()
	}
	l := ledger{}
	for _, row := range c.Links {
		l[fmt.Sprintf("%s %s/%d", row.Link, row.Class, row.Family)] = row.TrafficCount
	}
	return l, c.Epoch
}

// since returns what was added after before, without what is zero.
func (l ledger) since(before ledger) ledger {
	added := ledger{}
	for key, c := range l {
		b := before[key]
		if d := (vps.TrafficCount{
			InBytes: c.InBytes - b.InBytes, InPackets: c.InPackets - b.InPackets,
			OutBytes: c.OutBytes - b.OutBytes, OutPackets: c.OutPackets - b.OutPackets,
		}); d != (vps.TrafficCount{}) {
			added[key] = d
		}
	}
	return added
}

// added tells what do adds to the traffic.
func (w *world) added(do func()) ledger {
	w.t.Helper()
	before, _ := w.traffic()
	do()
	after, _ := w.traffic()
	return after.since(before)
}

func in(bytes, packets int64) vps.TrafficCount {
	return vps.TrafficCount{InBytes: bytes, InPackets: packets}
}

func out(bytes, packets int64) vps.TrafficCount {
	return vps.TrafficCount{OutBytes: bytes, OutPackets: packets}
}

func check(t *testing.T, what string, got, want ledger) {
	t.Helper()
	if maps.Equal(got, want) {
		return
	}
	var lines []string
	for key, c := range got {
		lines = append(lines, fmt.Sprintf("got  %s %+v", key, c))
	}
	for key, c := range want {
		lines = append(lines, fmt.Sprintf("want %s %+v", key, c))
	}
	slices.Sort(lines)
	t.Errorf("%s:\n%s", what, strings.Join(lines, "\n"))
}

// datagram is the length of a frame with so many bytes in UDP over IPv4.
func datagram(payload string) int64 { return int64(14 + 20 + 8 + len(payload)) }

// TestTrafficClasses: what is sent is counted once, in its class, to the byte.
func TestTrafficClasses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, ns := range w.guests {
		silent(ns)
	}
	w.traffic() // begins to count
	const question = "hello\n"
	for _, c := range []struct {
		what, from, to, answer string
		want                   func(q, a int64) ledger
	}{
		{"a guest asks the world", "alice", outside + ":80", "outside:80 sees " + public, func(q, a int64) ledger {
			return ledger{"sl-alice internet/4": out(q, 1).Add(in(a, 1))}
		}},
		{"the world asks a guest", "outside", public + ":20001", "alice:20001 sees " + outside, func(q, a int64) ledger {
			return ledger{"sl-alice internet/4": in(q, 1).Add(out(a, 1))}
		}},
		{"the host asks a guest", "host", "10.213.0.2:20001", "alice:20001 sees " + gateway, func(q, a int64) ledger {
			return ledger{"sl-alice host/4": in(q, 1).Add(out(a, 1))}
		}},
		{"the host asks a guest by its public port", "host", public + ":20001", "alice:20001 sees " + public, func(q, a int64) ledger {
			return ledger{"sl-alice host/4": in(q, 1).Add(out(a, 1))}
		}},
		{"a guest asks another", "bob", public + ":20001", "alice:20001 sees 10.213.0.3", func(q, a int64) ledger {
			return ledger{"sl-bob between/4": out(q, 1).Add(in(a, 1)), "sl-alice between/4": in(q, 1).Add(out(a, 1))}
		}},
		{"a guest asks itself by its public port", "alice", public + ":20001", "alice:20001 sees " + gateway, func(q, a int64) ledger {
			return ledger{"sl-alice between/4": out(q+a, 2).Add(in(q+a, 2))}
		}},
		{"a guest asks another by its own address", "bob", "10.213.0.2:20001", "", func(q, _ int64) ledger {
			return ledger{"sl-bob dropped/4": out(q, 1)}
		}},
		{"the world asks a closed port", "outside", "10.213.0.2:20001", "", func(q, _ int64) ledger {
			return ledger{"sl-alice dropped/4": in(q, 1)}
		}},
		{"a guest asks the host", "alice", gateway + ":80", "", func(q, _ int64) ledger {
			return ledger{"sl-alice dropped/4": out(q, 1)}
		}},
	} {
		patience := hang.After
		if c.answer == "" {
			patience = 200 * time.Millisecond
		}
		got := w.added(func() {
			if answer := w.ask(w.place(c.from), "udp", c.to, patience); answer != c.answer {
				t.Errorf("%s: the answer is %q, want %q", c.what, answer, c.answer)
			}
		})
		// The host's kernel speaks IPv6 by itself.
		maps.DeleteFunc(got, func(key string, _ vps.TrafficCount) bool { return strings.HasSuffix(key, "/6") })
		check(t, c.what, got, c.want(datagram(question), datagram(c.answer+"\n")))
	}
}

// dropped is what the ledger has of a link that was dropped.
func (l ledger) dropped(link string) (sum vps.TrafficCount) {
	for key, c := range l {
		if strings.HasPrefix(key, link+" "+string(vps.TrafficDropped)+"/") {
			sum = sum.Add(c)
		}
	}
	return sum
}

// droppedBytes is what was dropped of a link for all reasons.
func (w *world) droppedBytes(link string) (sum int64) {
	w.t.Helper()
	drops, err := w.wall.Drops(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range drops[link] {
		sum += int64(d.Bytes)
	}
	return sum
}

// framed is what a frame comes to.
func framed(way vps.Direction, routed bool, frames ...[]byte) vps.TrafficCount {
	var sum vps.TrafficCount
	for _, f := range frames {
		size := int64(len(f))
		if routed && (f[12] == 0x08 && f[13] == 0 || f[12] == 0x86 && f[13] == 0xdd) {
			// Routing takes off what fills a frame up to the shortest.
			size = 14 + int64(f[16])<<8 + int64(f[17])
			if f[14]>>4 == 6 {
				size = 14 + 40 + int64(f[18])<<8 + int64(f[19])
			}
		}
		if way == vps.In {
			sum = sum.Add(in(size, 1))
		} else {
			sum = sum.Add(out(size, 1))
		}
	}
	return sum
}

// TestTrafficFrames sends frames of all kinds from a routed tap and from a
// bridge's port, and compares with what the link itself counted.
func TestTrafficFrames(t *testing.T) {
	t.Parallel()
	for _, routed := range []bool{true, false} {
		t.Run(fmt.Sprintf("routed=%v", routed), func(t *testing.T) {
			t.Parallel()
			var s *stage
			if routed {
				s = newRouted(t, nil)
			} else {
				s = newBridge(t, nil)
				s.bridgeCalls("0")
			}
			s.traffic()
			a := s.actor
			far4, own6 := outside4, vps.Address6(a.Prefix6)
			if routed {
				far4 = netip.MustParseAddr(outside)
			}
			own4 := ether(s.next, a.MAC, typeIPv4, packet4{from: a.Address, to: far4, proto: protoUDP}.of(udp(a.Address, far4, 1, 9, make([]byte, 1000))))
			own := ether(s.next, a.MAC, typeIPv6, packet6(own6, outside6, protoUDP, udp(own6, outside6, 1, 9, make([]byte, 700))))
			forged := ether(s.next, a.MAC, typeIPv4, packet4{from: netip.MustParseAddr("10.213.9.9"), to: far4, proto: protoUDP}.of(udp(a.Address, far4, 1, 9, make([]byte, 50))))
			forged6 := ether(s.next, a.MAC, typeIPv6, packet6(outside6, outside6, protoUDP, udp(outside6, outside6, 1, 9, make([]byte, 90))))
			odd := ether(s.next, a.MAC, 0x88b5, make([]byte, 60))
			tagged := slices.Concat(own4[:12], []byte{0x81, 0, 0, 7}, own4[12:])
			beacon := s.added(func() { s.play() })
			for _, c := range []struct {
				what   string
				frames [][]byte
				want   ledger
			}{
				{"nothing", nil, ledger{}},
				{"IPv4", [][]byte{own4, own4}, ledger{"sl-alice internet/4": framed(vps.Out, routed, own4, own4)}},
				{"IPv6", [][]byte{own, own, own}, ledger{"sl-alice internet/6": framed(vps.Out, routed, own, own, own)}},
				{"forged", [][]byte{forged}, ledger{"sl-alice dropped/4": framed(vps.Out, routed, forged)}},
				{"forged, of both versions", [][]byte{forged, forged6, forged6}, ledger{
					"sl-alice dropped/4": framed(vps.Out, routed, forged), "sl-alice dropped/6": framed(vps.Out, routed, forged6, forged6),
				}},
				{"no IP", [][]byte{odd, odd}, ledger{"sl-alice dropped/0": framed(vps.Out, routed, odd, odd)}},
			} {
				received, dropped := s.rxBytes("sl-alice"), s.droppedBytes("sl-alice")
				got := s.added(func() { s.play(c.frames...) })
				check(t, c.what, got.since(beacon), c.want)
				if sum, seen := got.sum("sl-alice").OutBytes, s.rxBytes("sl-alice")-received; sum > seen || !routed && sum != seen {
					t.Errorf("%s: counted %d bytes, and the link %d", c.what, sum, seen)
				}
				if sum, seen := got.dropped("sl-alice").OutBytes, s.droppedBytes("sl-alice")-dropped; sum != seen {
					t.Errorf("%s: counted %d bytes that were dropped, and by reason %d", c.what, sum, seen)
				}
			}
			// The kernel has taken the tag off when it is counted.
			got := s.added(func() { s.play(tagged) }).since(beacon)
			check(t, "IP behind a tag", got, ledger{"sl-alice dropped/0": framed(vps.Out, routed, own4)})

			s.host.Exec("nft", "delete", "table", "inet", "sublet-traffic")
			if l, _ := s.traffic(); l.sum("sl-alice").OutPackets > beacon.sum("sl-alice").OutPackets {
				t.Errorf("what was dropped before is counted again: %v", l)
			}
			again := s.added(func() { s.play(forged, forged6, odd) })
			check(t, "forged, with tables made anew", again.since(beacon), ledger{
				"sl-alice dropped/0": framed(vps.Out, routed, odd), "sl-alice dropped/4": framed(vps.Out, routed, forged), "sl-alice dropped/6": framed(vps.Out, routed, forged6),
			})
			if err := s.wall.ForgetTraffic(t.Context(), "sl-alice"); err != nil {
				t.Fatal(err)
			}
			if l, _ := s.traffic(); l.sum("sl-alice") != (vps.TrafficCount{}) {
				t.Errorf("of a link that is gone there is still %v", l)
			}
		})
	}
}

// sum is all traffic of a link.
func (l ledger) sum(link string) vps.TrafficCount {
	var sum vps.TrafficCount
	for key, c := range l {
		if strings.HasPrefix(key, link+" ") {
			sum = sum.Add(c)
		}
	}
	return sum
}

// rxBytes is how many bytes a link counts itself.
func (w *world) rxBytes(link string) int64 {
	w.t.Helper()
	var bytes int64
	if _, err := fmt.Sscan(w.host.Exec("cat", "/sys/class/net/"+link+"/statistics/rx_bytes"), &bytes); err != nil {
		w.t.Fatal(err)
	}
	return bytes
}

// TestTrafficBridge: classes of a bridge's ports that frames alone show.
func TestTrafficBridge(t *testing.T) {
	t.Parallel()
	s := newBridge(t, func(n *vps.Network) { n.Guests[0].Peers, n.Guests[2].Peers = "team", "team" })
	s.bridgeCalls("0")
	a, c := s.actor, s.network.Guests[2]
	var host []byte
	bridgeMAC := parseMAC(t, s.host.Exec("cat", "/sys/class/net/br0/address"))
	gatewayAddr := netip.MustParseAddr(gateway)
	host = ether(bridgeMAC, a.MAC, typeIPv4, packet4{from: a.Address, to: gatewayAddr, proto: protoUDP}.of(udp(a.Address, gatewayAddr, 1, 9, make([]byte, 300))))
	peer := ether(c.MAC, a.MAC, typeIPv4, packet4{from: a.Address, to: c.Address, proto: protoUDP}.of(udp(a.Address, c.Address, 1, 9, make([]byte, 200))))
	s.traffic()
	beacon := s.added(func() { s.play() })
	got := s.added(func() { s.play(peer) }).since(beacon)
	check(t, "to a peer", got, ledger{"sl-alice between/4": framed(vps.Out, false, peer), "sl-carol between/4": framed(vps.In, false, peer)})
	s.host.Exec("ip", "neigh", "replace", a.Address.String(), "lladdr", a.MAC.String(), "dev", "br0", "nud", "permanent")
	got = s.added(func() { s.play(host) }).since(beacon)
	answer := got["sl-alice host/4"]
	answer.OutBytes, answer.OutPackets = 0, 0
	if answer.InPackets != 1 {
		t.Errorf("the host answered with %+v, want one packet", answer)
	}
	check(t, "to the host", got, ledger{"sl-alice host/4": framed(vps.Out, false, host).Add(answer)})
}

// TestTrafficGroups: what a bridge sends to many counts once for who sent it,
// and for each that gets it, with quotas too.
func TestTrafficGroups(t *testing.T) {
	t.Parallel()
	for _, on := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+on, func(t *testing.T) {
			t.Parallel()
			s := newBridge(t, func(n *vps.Network) {
				for i := range n.Guests {
					n.Guests[i].Peers = "team"
				}
			})
			s.bridgeCalls(on)
			// Another way out than the outside's: each of them gets a copy.
			other := s.host.Peer()
			silent(other)
			s.host.Veth("up1", other, "eth0")
			s.host.Exec("ip", "link", "set", "up1", "master", "br0")
			s.traffic()
			const limit = 1 << 30
			s.setQuotas(nil, quota("guest/alice", limit, "sl-alice"), quota("guest/bob", limit, "sl-bob"))
			a := s.actor
			all := netip.MustParseAddr("255.255.255.255")
			group4, group6 := netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")
			frames := [][]byte{
				ether(everybody, a.MAC, typeIPv4, packet4{from: a.Address, to: all, proto: protoUDP}.of(udp(a.Address, all, 1, 9, make([]byte, 400)))),
				ether(net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb}, a.MAC, typeIPv4, packet4{from: a.Address, to: group4, proto: protoUDP}.of(udp(a.Address, group4, 1, 9, make([]byte, 500)))),
			}
			own6 := vps.Address6(a.Prefix6)
			six := ether(group(group6), a.MAC, typeIPv6, packet6(own6, group6, protoUDP, udp(own6, group6, 1, 9, make([]byte, 600))))
			beacon := s.added(func() { s.play() })
			var out, over [][]byte
			got := s.added(func() { out, over = s.play(append(frames, six)...) }).since(beacon)
			if len(out) != 3 || len(over) != 6 {
				t.Errorf("the outside heard %d frames, and the neighbours %d; want 3 and 6", len(out), len(over))
			}
			in4, in6 := framed(vps.In, false, frames...), framed(vps.In, false, six)
			check(t, "to all", got, ledger{
				"sl-alice internet/4": framed(vps.Out, false, frames...), "sl-alice internet/6": framed(vps.Out, false, six),
				"sl-bob between/4": in4, "sl-bob between/6": in6, "sl-carol between/4": in4, "sl-carol between/6": in6,
			})

			from := ether(everybody, outsideMAC, typeIPv4, packet4{from: outside4, to: all, proto: protoUDP}.of(udp(outside4, all, 1, 9, []byte(strings.Repeat("from outside ", 20)))))
			got = s.added(func() {
				s.answer(from)
				s.play()
			}).since(beacon)
			in := framed(vps.In, false, from)
			check(t, "from outside", got, ledger{"sl-alice internet/4": in, "sl-bob internet/4": in, "sl-carol internet/4": in})

			s.setQuotas([]string{"sl-alice"})
			before := s.drops("sl-alice")[vps.DropQuota]
			s.act(frames...)
			s.answer(from)
			for _, n := range s.neighbours {
				if heard := n.until([]byte("from outside")); len(heard) > 0 {
					t.Errorf("of one that is cut off %d frames were heard", len(heard))
				}
			}
			if n := s.drops("sl-alice")[vps.DropQuota] - before; n != uint64(len(frames))+1 {
				t.Errorf("%d frames were dropped, want %d, and the one from outside", n, len(frames))
			}
		})
	}
}

// TestTrafficEpochs: counters go on through all that we do, and begin anew,
// with another epoch, when somebody else takes them away or brings old ones
// back.
func TestTrafficEpochs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ask := func() {
		t.Helper()
		if w.ask(w.guests["alice"], "udp", outside+":80", hang.After) == "" {
			t.Fatal("no answer")
		}
		w.ask(w.guests["alice"], "udp", gateway+":80", 10*time.Millisecond) // is dropped
	}
	one := ledger{"sl-alice internet/4": out(datagram("hello\n"), 1).Add(in(datagram("outside:80 sees "+public+"\n"), 1)), "sl-alice dropped/4": out(datagram("hello\n"), 1)}
	only := func(l ledger) ledger {
		got := ledger{}
		for key := range one {
			if c, ok := l[key]; ok {
				got[key] = c
			}
		}
		return got
	}
	silent(w.guests["alice"]) // drops of IPv6 are none of this test's
	_, epoch := w.traffic()
	same := func(what string, do func()) {
		t.Helper()
		before, _ := w.traffic()
		ask()
		do()
		after, now := w.traffic()
		if now != epoch {
			t.Errorf("%s: the epoch is %s after %s", what, now, epoch)
		}
		check(t, what, only(after.since(before)), one)
	}
	anew := func(what string, do func()) {
		t.Helper()
		ask()
		do()
		l, now := w.traffic()
		if now == epoch {
			t.Errorf("%s: the epoch is still %s", what, now)
		}
		check(t, what+", at once", only(l), ledger{})
		epoch = now
		ask()
		l, now = w.traffic()
		if now != epoch {
			t.Errorf("%s: the epoch is %s after %s", what, now, epoch)
		}
		check(t, what, only(l), one)
	}
	// left is anew, of tables that can still be read: what they counted is told first.
	left := func(what string, do func()) {
		t.Helper()
		before, _ := w.traffic()
		anew(what, func() {
			do()
			last, now := w.traffic()
			if now != epoch {
				t.Errorf("%s: the last epoch is %s after %s", what, now, epoch)
			}
			check(t, what+", at last", only(last.since(before)), one)
		})
	}
	same("nothing", func() {})
	same("a new process", func() { w.wall = nft.New(nil, nft.Options{}) })
	same("another guest", func() { w.network.Guests = append(w.network.Guests, guest(3, "carol")); w.apply() })
	same("another gateway, so that the wall is replaced", func() {
		n := w.network
		w.network.Gateway = netip.MustParseAddr("10.213.0.9")
		w.apply()
		w.network = n
		w.apply()
	})
	same("socket's drops", func() {
		w.sendsAs(w.network.Guests[0].UID)
		w.wall = nft.New(nil, nft.Options{})
		w.network.Guests = w.network.Guests[:2]
		w.apply() // replaces the wall, and its counters
		if w.count(vps.DropSocket) == 0 {
			t.Error("the drops of a process were not carried over")
		}
	})
	same("another's table", func() { w.host.ExecInput("add table ip other\n", "nft", "-f", "-") })
	anew("all rules flushed", func() { w.host.Exec("nft", "flush", "ruleset"); w.apply() })
	anew("one table deleted", func() { w.host.Exec("nft", "delete", "table", "bridge", "sublet-traffic") })
	left("an upgrade that counts in another way", func() {
		w.host.Exec("nft", "insert", "rule", "inet", "sublet-traffic", "between", "accept")
		w.wall = nft.New(nil, nft.Options{})
	})
	left("an upgrade that counts more", func() {
		w.host.ExecInput("flush chain bridge sublet-traffic between\ndelete set bridge sublet-traffic between-in\n", "nft", "-f", "-")
		w.wall = nft.New(nil, nft.Options{})
	})
	left("a chain flushed", func() { w.host.Exec("nft", "flush", "chain", "inet", "sublet-traffic", "input") })
	left("a table made dormant", func() { w.host.ExecInput("add table inet sublet-traffic { flags dormant; }\n", "nft", "-f", "-") })
	anew("saved and loaded again", func() {
		saved := w.host.Exec("nft", "list", "ruleset")
		w.host.ExecInput("flush ruleset\n"+saved+"\n", "nft", "-f", "-")
	})
	anew("cleaned up", func() {
		if err := w.wall.CleanUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := w.host.Exec("nft", "list", "tables"); strings.Contains(left, "sublet") {
			t.Errorf("tables are left: %s", left)
		}
		w.apply()
	})
}

// TestForgetTraffic takes away the counters of one link.
func TestForgetTraffic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	silent(w.guests["alice"])
	dropped := func() {
		t.Helper()
		for _, name := range []string{"alice", "bob"} {
			w.ask(w.guests[name], "udp", outside+":80", hang.After)
			w.ask(w.guests[name], "udp", gateway+":80", 10*time.Millisecond) // is dropped
		}
	}
	dropped() // which the tables that count traffic are to leave out
	w.traffic()
	dropped()
	w.sendsAs(w.network.Guests[0].UID)
	w.network.Guests = w.network.Guests[1:]
	w.apply()
	if err := w.wall.ForgetTraffic(t.Context(), "sl-alice", "sl-nobody"); err != nil {
		t.Fatal(err)
	}
	l, _ := w.traffic()
	if sum := l.sum("sl-alice"); sum != (vps.TrafficCount{}) {
		t.Errorf("there is still %+v", sum)
	}
	w.network.Guests = append(w.network.Guests, guest(1, "alice"))
	w.apply()
	if drops := w.drops("sl-alice"); len(drops) > 0 {
		t.Errorf("there are still the drops %v", drops)
	}
	if drops := w.drops("sl-bob"); drops[vps.DropToHost] == 0 {
		t.Errorf("another link's drops are gone as well; there are %v", drops)
	}
	got := w.added(func() { w.ask(w.guests["alice"], "udp", gateway+":80", 10*time.Millisecond) })
	if n := got["sl-alice dropped/4"]; n.OutPackets == 0 {
		t.Errorf("what is dropped from now on is not counted; there is %v", got)
	}
	if _, ok := l["sl-bob internet/4"]; !ok {
		t.Error("another link's counters are gone as well")
	}
	if err := w.wall.ForgetTraffic(t.Context(), `x" }; flush ruleset`); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("got %v", err)
	}
}

func parseMAC(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}
