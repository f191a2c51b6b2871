//go:build linux

package nft_test

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

const (
	public6 = "2001:db8:9::1"
	local6  = "fe80::99" // the host's on its uplink
)

// hostMAC is that of all the host's links.
var hostMAC = net.HardwareAddr{0x02, 0, 0x5e, 0, 0, 1}

// world6 is a world whose guests have IPv6 as well, alice a prefix and bob a
// single address; the kernels of guests and outside speak it when they are not
// kept from it by quiet.
func newWorld6(t *testing.T, quiet bool, change func(n *vps.Network)) *world {
	t.Helper()
	w := &world{t: t, host: nstest.New(t), guests: map[string]*nstest.NS{}, wall: nft.New(nil, nft.Options{})}
	w.network = network(guest(1, "alice"), guest(2, "bob"))
	w.network.Subnet6 = pool6
	w.network.Guests[0].Prefix6 = netip.MustParsePrefix("2001:db8:213:2::/64")
	w.network.Guests[1].Prefix6 = netip.MustParsePrefix("2001:db8:213:3::7/128")
	if change != nil {
		change(&w.network)
	}
	w.apply()
	// Addresses are those given below, and (nodad) there at once: without it the
	// kernel clears them for use a little later, also when it checks nothing.
	plain := []string{"-q", "-w", "net.ipv6.conf.default.addr_gen_mode=1", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0"}
	w.host.Exec("sysctl", append(plain, "net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_forward=1")...)
	cable := func(link string) *nstest.NS {
		ns := w.host.Peer()
		ns.Exec("sysctl", plain...)
		if quiet {
			silent(ns)
		}
		w.host.Veth(link, ns, "eth0")
		w.host.Exec("ip", "link", "set", link, "address", hostMAC.String())
		return ns
	}
	w.outside = cable("up0")
	w.host.Exec("ip", "addr", "add", public+"/24", "dev", "up0")
	for _, a := range []string{public6 + "/64", local6 + "/64"} {
		w.host.Exec("ip", "addr", "add", a, "dev", "up0", "nodad")
	}
	w.outside.Exec("ip", "link", "set", "eth0", "address", outsideMAC.String())
	known := func(link string, mac net.HardwareAddr, addresses ...string) {
		for _, a := range addresses {
			w.host.Exec("ip", "neigh", "replace", a, "lladdr", mac.String(), "dev", link, "nud", "permanent")
		}
	}
	if quiet {
		known("up0", outsideMAC, outside, outside6.String())
	} else {
		w.outside.Exec("ip", "addr", "add", outside+"/24", "dev", "eth0")
		w.outside.Exec("ip", "addr", "add", outside6.String()+"/64", "dev", "eth0", "nodad")
		w.outside.Exec("ip", "route", "add", pool6.String(), "via", public6)
	}
	for _, g := range w.network.Guests {
		ns, own := cable(g.Link), vps.Address6(g.Prefix6)
		w.guests[g.Name] = ns
		if err := w.wall.Guard(t.Context(), g.Link); err != nil {
			t.Fatal(err)
		}
		w.host.Exec("ip", "addr", "add", gateway+"/32", "dev", g.Link)
		w.host.Exec("ip", "addr", "add", vps.Gateway6.String()+"/64", "dev", g.Link, "nodad")
		w.host.Exec("ip", "route", "add", g.Address.String(), "dev", g.Link, "src", gateway)
		local := vps.LinkLocal6(g.MAC).String()
		if g.Prefix6.IsSingleIP() {
			w.host.Exec("ip", "route", "add", g.Prefix6.String(), "dev", g.Link)
		} else {
			w.host.Exec("ip", "route", "add", g.Prefix6.String(), "via", local, "dev", g.Link)
		}
		if quiet {
			known(g.Link, g.MAC, g.Address.String(), own.String(), local)
			continue
		}
		ns.Exec("ip", "link", "set", "eth0", "address", g.MAC.String())
		ns.Exec("ip", "addr", "add", local+"/64", "dev", "eth0", "nodad")
		ns.Exec("ip", "addr", "add", own.String()+"/128", "dev", "eth0", "nodad")
		ns.Exec("ip", "-6", "route", "add", "default", "via", vps.Gateway6.String(), "dev", "eth0", "src", own.String())
	}
	return w
}

// newRouted is a stage of routed taps.
func newRouted(t *testing.T, change func(n *vps.Network)) *stage {
	t.Helper()
	w := newWorld6(t, true, func(n *vps.Network) {
		n.Guests[1].Rules = []vps.Rule{rule(t, "allow in any 9/udp")}
		if change != nil {
			change(n)
		}
	})
	s := &stage{
		world: w, actor: w.network.Guests[0], public: hear(t, w.outside, "eth0"), answer: aim(t, w.outside, "eth0"),
		act: aim(t, w.guests["alice"], "eth0"), next: hostMAC, next6: vps.Gateway6,
	}
	s.public.deaf = reports
	own, b := vps.Address6(s.actor.Prefix6), w.network.Guests[1]
	s.call = func(mark []byte) []byte {
		return ether(hostMAC, s.actor.MAC, typeIPv6, packet6(own, outside6, protoUDP, udp(own, outside6, 4, 9, mark)))
	}
	e := hear(t, w.guests["bob"], "eth0")
	e.deaf = reports
	other := vps.Address6(b.Prefix6)
	s.neighbours = []neighbour{{e, func(mark []byte) []byte {
		return ether(hostMAC, outsideMAC, typeIPv6, packet6(outside6, other, protoUDP, udp(outside6, other, 4, 9, mark)))
	}}}
	s.play()
	return s
}

// reports tells whether a frame is the host's own word on the groups that it
// listens to.
func reports(frame []byte) bool {
	for _, from := range []netip.Addr{vps.Gateway6, netip.MustParseAddr(local6), none6} {
		if bytes.HasPrefix(frame[14+8:], joined(from.AsSlice(), mldRouter.AsSlice())) {
			return true
		}
	}
	return false
}

// TestRouted6 sends all that a guest on a routed tap should not say by IPv6,
// and what it may.
func TestRouted6(t *testing.T) {
	t.Parallel()
	for what, prefix := range map[string]string{"prefix": "2001:db8:213:2::/64", "address": "2001:db8:213:2::5/128"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newRouted(t, func(n *vps.Network) { n.Guests[0].Prefix6 = netip.MustParsePrefix(prefix) })
			s.run(slices.Concat(s.routed6(), s.reach6(), s.fragments6()))
			if what == "prefix" {
				// The host keeps what it is told.
				told := s.neighbourScenes()
				for i := range told {
					told[i].out = 0
				}
				s.run(told)
			}
		})
	}
}

// to frames a packet of IPv6 for the host, or for a group.
func (s *stage) to(p []byte) []byte {
	mac := s.next
	if to := netip.AddrFrom16([16]byte(p[24:40])); to.IsMulticast() {
		mac = group(to)
	}
	return ether(mac, s.actor.MAC, typeIPv6, p)
}

// routed6 are sources, and words that only a router or a server may say.
func (s *stage) routed6() []scene {
	a, b := s.actor, s.network.Guests[1]
	own, local := vps.Address6(a.Prefix6), vps.LinkLocal6(a.MAC)
	say := func(from, to netip.Addr, sport, dport uint16) []byte {
		return s.to(packet6(from, to, protoUDP, udp(from, to, sport, dport, []byte("hello"))))
	}
	report := func(from netip.Addr) []byte {
		return s.to(packet6(from, mldRouter, hopByHop, options6(protoICMP6), icmp6(from, mldRouter, mld2Report, 1, make([]byte, 20))))
	}
	double := func(target netip.Addr, options ...[]byte) []byte {
		to := solicited(target)
		return s.to(packet6(none6, to, protoICMP6, icmp6(none6, to, solicitation, 0, target.AsSlice(), joined(options...))))
	}
	first, before, behind := a.Prefix6.Addr(), a.Prefix6.Addr().Prev(), own.Next()
	last := first
	if !a.Prefix6.IsSingleIP() {
		last = netip.MustParseAddr("2001:db8:213:2:ffff:ffff:ffff:ffff")
		behind = last.Next()
	}
	scenes := []scene{
		pass("its own packet", say(own, outside6, 1, 9)),
		pass("from the first address", say(first, outside6, 1, 9)),
		pass("from the last address", say(last, outside6, 1, 9)),
		pass("a TCP connection", s.to(packet6(own, outside6, protoTCP, syn(own, outside6, 1, 80)))),
		pass("an echo request", s.to(packet6(own, outside6, protoICMP6, icmp6(own, outside6, 128, 1)))),
		pass("behind hop-by-hop options", s.to(packet6(own, outside6, hopByHop, options6(protoUDP), udp(own, outside6, 1, 9)))),
		pass("behind destination options", s.to(packet6(own, outside6, destination, options6(protoUDP), udp(own, outside6, 1, 9)))),
		pass("behind a routing header", s.to(packet6(own, outside6, routing, routing6(protoUDP), udp(own, outside6, 1, 9)))),
		drop("", "an MLD report", report(local)),
		drop("", "an MLD report from no address", report(none6)),
		drop("", "looking for its double", double(own)),
		drop("", "looking for its double, with a nonce", double(own, nonce())),
		drop("", "looking for its link-local double", double(local)),
		drop("", "looking for its last address's double", double(last)),
		drop("", "a packet beyond the scope of its link", say(local, outside6, 1, 9)),

		drop(vps.DropSpoofed, "looking for the neighbour's double", double(vps.Address6(b.Prefix6))),
		drop(vps.DropSpoofed, "looking for the gateway's double", double(vps.Gateway6)),
		drop(vps.DropSpoofed, "looking for a double behind its last address", double(behind)),
		drop(vps.DropSpoofed, "looking for a double before its first address", double(before)),
		drop(vps.DropSpoofed, "no address, UDP", say(none6, outside6, 1, 9)),
		drop(vps.DropSpoofed, "no address, DHCPv6", say(none6, netip.MustParseAddr("ff02::1:2"), 546, 547)),
		drop(vps.DropSpoofed, "no address, echo", s.to(packet6(none6, vps.Gateway6, protoICMP6, icmp6(none6, vps.Gateway6, 128, 1)))),
		drop(vps.DropSpoofed, "no address, advertisement", s.to(packet6(none6, allNodes, protoICMP6, icmp6(none6, allNodes, advertisement, 0, own.AsSlice())))),
		drop(vps.DropSpoofed, "no address, router advertisement", s.to(packet6(none6, allNodes, protoICMP6, icmp6(none6, allNodes, routerAdvert, 0, make([]byte, 8))))),
		drop(vps.DropFragment, "no address, a fragment", s.to(packet6(none6, mldRouter, fragmented, fragment6(protoICMP6, 0, false, 1), icmp6(none6, mldRouter, mld2Report, 0)))),
		drop(vps.DropSpoofed, "another MAC", ether(hostMAC, b.MAC, typeIPv6, packet6(own, outside6, protoUDP, udp(own, outside6, 1, 9)))),
		drop(vps.DropSpoofed, "another MAC, no address", ether(group(mldRouter), b.MAC, typeIPv6, packet6(none6, mldRouter, hopByHop, options6(protoICMP6), icmp6(none6, mldRouter, mld2Report, 1, make([]byte, 20))))),
		drop(vps.DropVLAN, "VID 0", ether(hostMAC, a.MAC, typeVLAN, word16(nil, 0, typeIPv6), packet6(own, outside6, protoUDP, udp(own, outside6, 1, 9)))),
	}
	for what, from := range map[string]netip.Addr{
		"the address before its prefix": before, "the address behind its prefix": behind, "the neighbour": vps.Address6(b.Prefix6),
		"the neighbour's link": vps.LinkLocal6(b.MAC), "the gateway": vps.Gateway6, "the host": netip.MustParseAddr(public6), "the outside": outside6,
		"an IPv4 address": netip.AddrFrom16(a.Address.As16()), "a private address": netip.MustParseAddr("fd00::1"), "a link-local address of its choice": netip.MustParseAddr("fe80::bad"),
	} {
		scenes = append(scenes,
			drop(vps.DropSpoofed, "from "+what, say(from, outside6, 1, 9)),
			drop(vps.DropSpoofed, "to the host from "+what, say(from, vps.Gateway6, 1, 9)),
			drop(vps.DropSpoofed, "fragments from "+what, each(cut6(from, outside6, protoUDP, udp(from, outside6, 1, 9, make([]byte, 40)), 16, 6), s.to)...))
	}
	for what, u := range forged6(local) {
		for how, packet := range hidden(u) {
			scenes = append(scenes, drop(u.reason, what+how, s.to(packet(local))))
		}
	}
	return scenes
}

// reach6 are ordinary packets to where a guest may not.
func (s *stage) reach6() []scene {
	own, local, other := vps.Address6(s.actor.Prefix6), vps.LinkLocal6(s.actor.MAC), vps.Address6(s.network.Guests[1].Prefix6)
	host := netip.MustParseAddr(public6)
	var scenes []scene
	for _, c := range []struct {
		what     string
		from, to netip.Addr
		port     uint16
		reason   vps.DropReason
	}{
		{"the neighbour", own, other, 9, vps.DropBetween},
		{"the host's gateway", local, vps.Gateway6, 9, vps.DropToHost},
		{"the host's gateway, from its prefix", own, vps.Gateway6, 9, vps.DropToHost},
		{"the host's public address", own, host, 9, vps.DropToHost},
		{"mail outside", own, outside6, 25, vps.DropSMTP},
	} {
		tcp, dgram := syn(c.from, c.to, 1, c.port, make([]byte, 12)), udp(c.from, c.to, 1, c.port)
		scenes = append(scenes,
			drop(c.reason, "TCP to "+c.what, s.to(packet6(c.from, c.to, protoTCP, tcp))),
			drop(c.reason, "TCP behind options to "+c.what, s.to(packet6(c.from, c.to, hopByHop, options6(destination), options6(protoTCP), tcp))),
			scene{what: "TCP in fragments to " + c.what, frames: each(cut6(c.from, c.to, protoTCP, tcp, 24, 21), s.to), reason: c.reason, counted: 1})
		if c.reason != vps.DropSMTP {
			scenes = append(scenes, drop(c.reason, "UDP to "+c.what, s.to(packet6(c.from, c.to, protoUDP, dgram))))
		}
	}
	return append(scenes,
		drop(vps.DropBetween, "an echo request to the neighbour", s.to(packet6(own, other, protoICMP6, icmp6(own, other, 128, 1)))),
		drop(vps.DropBetween, "an error to the neighbour", s.to(packet6(own, other, protoICMP6, icmp6(own, other, 1, 0, packet6(other, outside6, protoUDP, udp(other, outside6, 1, 9)))))),
		drop(vps.DropToHost, "UDP to everybody on the link", s.to(packet6(local, allNodes, protoUDP, udp(local, allNodes, 1, 9)))),
		drop(vps.DropToHost, "a routing header that names the neighbour", s.to(packet6(own, host, routing, joined([]byte{protoUDP, 2, 0, 1, 0, 0, 0, 0}, other.AsSlice()), udp(own, other, 1, 9)))),
		drop(vps.DropToHost, "a packet in a packet", s.to(packet6(own, host, 41, packet6(other, outside6, protoUDP, udp(other, outside6, 1, 9))))),
		drop("", "an echo request to the host", s.to(packet6(local, vps.Gateway6, protoICMP6, icmp6(local, vps.Gateway6, 128, 1)))),
		drop("", "a solicitation of the host's", s.to(packet6(local, vps.Gateway6, protoICMP6, icmp6(local, vps.Gateway6, solicitation, 0, vps.Gateway6.AsSlice(), hardware(1, s.actor.MAC))))),
	)
}

// fragments6 are fragments of both versions, which the host puts together
// before anybody looks at what they say.
func (s *stage) fragments6() []scene {
	a := s.actor
	own, local := vps.Address6(a.Prefix6), vps.LinkLocal6(a.MAC)
	to4 := netip.MustParseAddr(outside)
	frame4 := func(p []byte) []byte { return ether(hostMAC, a.MAC, typeIPv4, p) }
	as4 := func(proto byte, id uint16) packet4 {
		return packet4{from: a.Address, to: to4, proto: proto, id: id}
	}
	piece := func(next byte, at int, more bool, id uint16, data ...[]byte) []byte {
		return s.to(packet6(local, outside6, fragmented, fragment6(next, at, more, id), joined(data...)))
	}
	together := func(reason vps.DropReason, what string, frames ...[]byte) scene {
		return scene{what: what, frames: frames, reason: reason, counted: 1}
	}
	reversed := func(frames [][]byte) [][]byte { slices.Reverse(frames); return frames }
	advert := icmp6(local, outside6, routerAdvert, 64<<24|1800, make([]byte, 56))
	answer := udp(a.Address, to4, 67, 68, make([]byte, 60))
	redirect := icmp(5, 1, 1, make([]byte, 60))
	scenes := []scene{
		pass("its own fragments", each(cut6(own, outside6, protoUDP, udp(own, outside6, 1, 9, make([]byte, 60)), 16, 31), s.to)...),
		pass("its own fragments, IPv4", each(as4(protoUDP, 31).cut(udp(a.Address, to4, 1, 9, make([]byte, 60)), 16), frame4)...),

		together(vps.DropDHCP, "IPv4: a DHCP server's answer", each(as4(protoUDP, 41).cut(answer, 8), frame4)...),
		together(vps.DropDHCP, "IPv4: the same, the last first", reversed(each(as4(protoUDP, 42).cut(answer, 8), frame4))...),
		together(vps.DropRedirect, "IPv4: a redirect", each(as4(protoICMP, 43).cut(redirect, 8), frame4)...),
		together(vps.DropRouter, "IPv4: a router advertisement", each(as4(protoICMP, 44).cut(icmp(9, 0, 1, make([]byte, 60)), 8), frame4)...),
		together(vps.DropSMTP, "IPv4: mail", each(as4(protoTCP, 45).cut(syn(a.Address, to4, 1, 25), 8), frame4)...),
		drop("", "IPv4: a first fragment alone", frame4(packet4{from: a.Address, to: to4, proto: protoUDP, id: 46, where: moreFragments}.of(answer[:16]))),
		drop("", "IPv4: a later fragment alone", frame4(packet4{from: a.Address, to: to4, proto: protoICMP, id: 47, where: 8}.of(answer))),

		drop("", "a first fragment alone", piece(protoICMP6, 0, true, 51, advert)),
		drop("", "a later fragment alone", piece(protoICMP6, 64, false, 52, advert)),
		drop(vps.DropRouter, "a router advertisement in an atomic fragment", piece(protoICMP6, 0, false, 53, advert)),
		drop(vps.DropRouter, "behind options in an atomic fragment", piece(destination, 0, false, 54, options6(protoICMP6), advert)),
		drop(vps.DropFragment, "a fragment in a fragment", piece(fragmented, 0, false, 55, fragment6(protoICMP6, 0, false, 2), advert)),
		// The kernel puts nothing together whose upper header is not in the first
		// fragment (RFC 8200, section 5).
		together(vps.DropFragment, "a router advertisement whose header comes later", piece(destination, 0, true, 56, options6(protoICMP6)), piece(destination, 8, false, 56, advert)),
		drop("", "fragments that overlap", piece(protoICMP6, 0, true, 57, advert[:32]), piece(protoICMP6, 24, true, 57, advert[24:48]), piece(protoICMP6, 48, false, 57, advert[48:])),
		together(vps.DropNeighbour, "an advertisement of the gateway", piece(protoICMP6, 0, true, 58, icmp6(local, outside6, advertisement, 0, vps.Gateway6.AsSlice(), hardware(2, a.MAC))[:16]),
			piece(protoICMP6, 16, false, 58, vps.Gateway6.AsSlice()[8:], hardware(2, a.MAC))),
	}
	for i, what := range slices.Sorted(maps.Keys(forged6(local))) {
		u := forged6(local)[what]
		id := uint16(100 + 10*i)
		scenes = append(scenes,
			together(u.reason, what+" in fragments", each(cut6(local, u.to, u.proto, u.body, 8, id), s.to)...),
			together(u.reason, what+" in fragments, the last first", reversed(each(cut6(local, u.to, u.proto, u.body, 8, id+1), s.to))...),
			together(vps.DropFragment, what+" behind options in fragments", each(cut6(local, u.to, destination, joined(options6(u.proto), u.body), 8, id+2), s.to)...))
	}
	return scenes
}

// serve6 greets who connects to a port of TCP with who it is and whom it sees.
func (w *world) serve6(ns *nstest.NS, name string, port int) {
	w.t.Helper()
	ns.Do(func() {
		w.accept("tcp6", fmt.Sprintf("[::]:%d", port), func(conn net.Conn) {
			_, _ = fmt.Fprintf(conn, "%s:%d sees %s\n", name, port, conn.RemoteAddr().(*net.TCPAddr).IP)
		})
	})
}

// ask6 connects and returns what it is told, or "" when nothing comes.
func (w *world) ask6(from, to string, patience time.Duration) (answer string) {
	w.place(from).Do(func() {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(w.t.Context(), "tcp6", to)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		answer, _ = bufio.NewReader(conn).ReadString('\n')
	})
	return answer
}

// TestConnections6: who reaches whom by IPv6, with whose address, and how
// owners change it.
func TestConnections6(t *testing.T) {
	t.Parallel()
	w := newWorld6(t, false, nil)
	for _, port := range []int{22, 25, 80, 443, 20001, 20025} {
		for _, name := range []string{"host", "outside", "alice", "bob"} {
			w.serve6(w.place(name), name, port)
		}
	}
	alice, bob := vps.Address6(w.network.Guests[0].Prefix6).String(), vps.Address6(w.network.Guests[1].Prefix6).String()
	at := func(address string, port int) string { return net.JoinHostPort(address, fmt.Sprint(port)) }
	far := outside6.String()
	var none []string
	for _, c := range []struct {
		what     string
		change   func(n *vps.Network)
		rules    []string
		from, to string
		want     string
		reason   vps.DropReason
	}{
		{"out", nil, none, "alice", at(far, 80), "outside:80 sees " + alice, ""},
		{"out from a single address", nil, none, "bob", at(far, 80), "outside:80 sees " + bob, ""},
		{"NAT66", func(n *vps.Network) { n.NAT6 = true }, none, "alice", at(far, 80), "outside:80 sees " + public6, ""},
		{"NAT66 of a single address", func(n *vps.Network) { n.NAT6 = true }, none, "bob", at(far, 80), "outside:80 sees " + public6, ""},
		{"mail", nil, none, "alice", at(far, 25), "", vps.DropSMTP},
		{"mail that is let", func(n *vps.Network) { n.Guests[0].SMTP = true }, none, "alice", at(far, 25), "outside:25 sees " + alice, ""},
		{"its block", nil, none, "outside", at(public6, 20001), "alice:20001 sees " + far, ""},
		{"SSH", nil, none, "outside", at(public6, 20000), "alice:22 sees " + far, ""},
		{"a forward", func(n *vps.Network) {
			n.Guests[1].Forwards = []vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}}
		}, none, "outside", at(public6, 8443), "bob:443 sees " + far, ""},
		{"the neighbour's block", nil, none, "alice", at(public6, 20025), "bob:20025 sees " + alice, ""},
		{"its own block", nil, none, "bob", at(public6, 20025), "bob:20025 sees fe80::1", ""},
		{"uninvited", nil, none, "outside", at(alice, 22), "", vps.DropUninvited},
		{"invited", nil, []string{"allow in any 22/tcp"}, "outside", at(alice, 22), "alice:22 sees " + far, ""},
		{"invited by address", nil, []string{"allow in " + far + " 22/tcp"}, "outside", at(alice, 22), "alice:22 sees " + far, ""},
		{"others are invited", nil, []string{"allow in 2001:db8:8::/48"}, "outside", at(alice, 22), "", vps.DropUninvited},
		{"IPv4 is invited", nil, []string{"allow in 0.0.0.0/0"}, "outside", at(alice, 22), "", vps.DropUninvited},
		{"denied in", nil, []string{"deny in " + far, "allow in any"}, "outside", at(public6, 20001), "", vps.DropRule},
		{"denied out", nil, []string{"deny out 2001:db8:9::/64 80/tcp"}, "alice", at(far, 80), "", vps.DropRule},
		{"another port denied", nil, []string{"deny out 2001:db8:9::/64 1-79/tcp"}, "alice", at(far, 80), "outside:80 sees " + alice, ""},
		{"IPv4 denied", nil, []string{"deny out 0.0.0.0/0"}, "alice", at(far, 80), "outside:80 sees " + alice, ""},
		{"all denied", nil, []string{"allow out any udp", "deny out any"}, "alice", at(far, 80), "", vps.DropRule},
		{"between guests", nil, none, "alice", at(bob, 22), "", vps.DropBetween},
		{"between guests, with rules", nil, []string{"allow out any", "allow in any"}, "alice", at(bob, 22), "", vps.DropBetween},
		{"between peers", func(n *vps.Network) { n.Guests[0].Peers, n.Guests[1].Peers = "team", "team" }, none, "alice", at(bob, 22), "bob:22 sees " + alice, ""},
		{"between groups", func(n *vps.Network) { n.Guests[0].Peers, n.Guests[1].Peers = "team", "other" }, none, "alice", at(bob, 22), "", vps.DropBetween},
		{"to the host", nil, none, "alice", at(public6, 80), "", vps.DropToHost},
		{"to the host by its gateway", nil, none, "alice", at("fe80::1%"+w.zone("alice"), 80), "", vps.DropToHost},
		{"a service", func(n *vps.Network) { n.Services = []vps.Service{{Port: 80, Protocol: vps.ProtoTCP}} }, none, "alice", at(public6, 80), "host:80 sees " + alice, ""},
		{"another service", func(n *vps.Network) { n.Services = []vps.Service{{Port: 80, Protocol: vps.ProtoUDP}} }, none, "alice", at(public6, 80), "", vps.DropToHost},
		{"the host by rule", nil, []string{"allow out host 80/tcp"}, "alice", at(public6, 80), "host:80 sees " + alice, ""},
	} {
		original := w.network
		w.network.Guests = slices.Clone(w.network.Guests)
		if c.change != nil {
			c.change(&w.network)
		}
		for _, text := range c.rules {
			w.network.Guests[0].Rules = append(w.network.Guests[0].Rules, rule(t, text))
		}
		w.apply()
		before := 0
		if c.reason != "" {
			before = w.count(c.reason)
		}
		patience := 150 * time.Millisecond
		if c.want != "" {
			c.want += "\n"
			patience = hang.After
		}
		if got := w.ask6(c.from, c.to, patience); got != c.want {
			t.Errorf("%s: from %s to %s: got %q, want %q", c.what, c.from, c.to, got, c.want)
		}
		if c.reason != "" && w.count(c.reason) == before {
			t.Errorf("%s: nothing was counted as %s", c.what, c.reason)
		}
		w.network = original
	}
}
