//go:build linux

package nft_test

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"sublet/internal/vps"
)

// flood is what the outside hears and neighbours do not, though it is for them
// too.
func flood(what string, frames ...[]byte) scene {
	return scene{what: what, frames: frames, reason: vps.DropBetween, out: len(frames)}
}

// scenes4 are about IPv4 on a bridge.
func (s *stage) scenes4() []scene {
	a, b := s.actor, s.network.Guests[1]
	own := packet4{from: a.Address, to: outside4, proto: protoUDP}
	as := func(from netip.Addr, proto byte, where uint16, options ...byte) packet4 {
		return packet4{from: from, to: outside4, proto: proto, id: 7, where: where, options: options}
	}
	frame := func(p []byte) []byte { return ether(outsideMAC, a.MAC, typeIPv4, p) }
	said := func(sport, dport uint16, data ...[]byte) []byte {
		return udp(a.Address, outside4, sport, dport, data...)
	}
	long, room := make([]byte, 64), []byte{1, 1, 1, 0}
	whole := said(1, 9, make([]byte, 120))
	parts := own.cut(whole, 64)
	igmp := func(kind byte, to netip.Addr) []byte {
		return packet4{from: a.Address, to: to, proto: protoIGMP, options: []byte{0x94, 4, 0, 0}}.of(icmp(kind, 0, 0))
	}
	redirect := icmp(5, 1, binary.BigEndian.Uint32(a.Address.AsSlice()), as(outside4, protoUDP, 0).of(said(1, 9)))
	advert := icmp(9, 0, 1<<24|2<<16|1800, a.Address.AsSlice(), make([]byte, 4))
	scenes := []scene{
		pass("a TCP connection", frame(as(a.Address, protoTCP, 0).of(syn(a.Address, outside4, 1, 80)))),
		pass("an echo request", frame(as(a.Address, protoICMP, 0).of(icmp(8, 0, 1)))),
		pass("an ICMP error", frame(as(a.Address, protoICMP, 0).of(icmp(3, 3, 0, long)))),
		pass("options", frame(as(a.Address, protoUDP, 0, room...).of(said(1, 9)))),
		pass("a protocol of nobody", frame(as(a.Address, 253, 0).of(long))),
		pass("a DHCP client's renewal", frame(own.of(said(68, 67, long)))),
		pass("fragments of UDP", frame(parts[0]), frame(parts[1])),
		pass("fragments of UDP, the last first", frame(parts[1]), frame(parts[0])),
		pass("fragments of TCP", frame(as(a.Address, protoTCP, moreFragments).of(syn(a.Address, outside4, 1, 80, make([]byte, 60)))), frame(as(a.Address, protoTCP, 10).of(long))),
		flood("an IGMP report", ether(everybody, a.MAC, typeIPv4, igmp(0x22, netip.MustParseAddr("224.0.0.22")))),

		drop(vps.DropDHCP, "a DHCP server's answer", frame(own.of(said(67, 68, long)))),
		drop(vps.DropDHCP, "a DHCP server's answer to a relay", frame(own.of(said(67, 67, long)))),
		drop(vps.DropDHCP, "a DHCP server's answer from another port", frame(own.of(said(1067, 68, long)))),
		drop(vps.DropDHCP, "a DHCP server's answer behind options", frame(as(a.Address, protoUDP, 0, room...).of(said(67, 68, long)))),
		drop(vps.DropDHCP, "a DHCP server's answer to everybody", ether(everybody, a.MAC, typeIPv4, packet4{from: a.Address, to: limited, proto: protoUDP}.of(udp(a.Address, limited, 67, 68, long)))),
		drop(vps.DropDHCP, "the first fragment of one", frame(as(a.Address, protoUDP, moreFragments).of(said(67, 68, long)))),
		drop(vps.DropRedirect, "a redirect", frame(as(a.Address, protoICMP, 0).of(redirect))),
		drop(vps.DropRedirect, "a redirect behind options", frame(as(a.Address, protoICMP, 0, room...).of(redirect))),
		drop(vps.DropRedirect, "a redirect with the reserved flag", frame(as(a.Address, protoICMP, 0x8000).of(redirect))),
		drop(vps.DropRouter, "a router advertisement", frame(as(a.Address, protoICMP, 0).of(advert))),
		drop(vps.DropRouter, "a router advertisement behind options", frame(as(a.Address, protoICMP, 0x4000, room...).of(advert))),
		drop(vps.DropRouter, "an IGMP query", ether(everybody, a.MAC, typeIPv4, igmp(0x11, netip.MustParseAddr("224.0.0.1")))),

		drop(vps.DropFragment, "a tiny first fragment", frame(as(a.Address, protoUDP, moreFragments).of(said(67, 68)))),
		drop(vps.DropFragment, "a tiny first fragment behind options", frame(as(a.Address, protoTCP, moreFragments, slices.Repeat(room, 6)...).of(make([]byte, 16)))),
		drop(vps.DropFragment, "a second fragment over the first", frame(as(a.Address, protoUDP, moreFragments|1).of(long))),
		drop(vps.DropFragment, "a last fragment over the first", frame(as(a.Address, protoUDP, 1).of(long))),
		drop(vps.DropFragment, "the first fragment of a redirect", frame(as(a.Address, protoICMP, moreFragments).of(redirect))),
		drop(vps.DropFragment, "a later fragment of a redirect", frame(as(a.Address, protoICMP, 8).of(long))),
		drop(vps.DropFragment, "a fragment of an IGMP query", frame(as(a.Address, protoIGMP, moreFragments).of(icmp(0x11, 0, 0, long)))),

		drop(vps.DropSpoofed, "a DHCP client's request from no address", ether(everybody, a.MAC, typeIPv4, packet4{from: none4, to: limited, proto: protoUDP}.of(udp(none4, limited, 68, 67, long)))),
		drop(vps.DropSpoofed, "the neighbour's first fragment", frame(as(b.Address, protoUDP, moreFragments).of(long))),
		drop(vps.DropSpoofed, "the neighbour's later fragment", frame(as(b.Address, protoUDP, 8).of(long))),
		drop(vps.DropSpoofed, "IPv6 that says it is IPv4", frame(packet6(vps.LinkLocal6(a.MAC), outside6, protoUDP, udp(vps.LinkLocal6(a.MAC), outside6, 1, 9)))),
	}
	for _, from := range []string{b.Address.String(), gateway, outside4.String(), "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "169.254.1.1"} {
		scenes = append(scenes, drop(vps.DropSpoofed, "a packet from "+from, frame(as(netip.MustParseAddr(from), protoUDP, 0).of(said(1, 9)))))
	}
	// What the kernel cannot take apart is nothing that rules could look into.
	for what, at := range map[string]struct {
		at    int
		value byte
	}{"a length beyond its end": {2, 1}, "a length within its header": {2, 0}, "a header too short": {0, 0x44}, "another version": {0, 0x65}} {
		p := as(a.Address, protoICMP, 0).of(redirect)
		p[at.at] = at.value
		if at.value == 0 {
			p[3] = 19
		}
		scenes = append(scenes, drop(vps.DropEthertype, "a redirect with "+what, frame(p)))
	}
	return scenes
}

// upper is what a guest could hide in a packet of IPv6.
type upper struct {
	proto  byte
	to     netip.Addr
	body   []byte
	reason vps.DropReason
}

// forged6 are words that no guest may say, from one of its addresses.
func forged6(from netip.Addr) map[string]upper {
	icmp := func(kind byte, to netip.Addr, rest uint32, data ...[]byte) []byte {
		return icmp6(from, to, kind, rest, data...)
	}
	info := joined([]byte{3, 4, 64, 0xc0}, make([]byte, 12), netip.MustParseAddr("2001:db8:bad::").AsSlice())
	return map[string]upper{
		"a router advertisement":                     {protoICMP6, allNodes, icmp(routerAdvert, allNodes, 64<<24|1800, make([]byte, 8), info), vps.DropRouter},
		"a router advertisement to one":              {protoICMP6, outside6, icmp(routerAdvert, outside6, 64<<24|1800, make([]byte, 8), info), vps.DropRouter},
		"a redirect":                                 {protoICMP6, outside6, icmp(redirect6, outside6, 0, from.AsSlice(), outside6.AsSlice()), vps.DropRedirect},
		"a DHCPv6 server's answer":                   {protoUDP, outside6, udp(from, outside6, 547, 546, make([]byte, 16)), vps.DropDHCP},
		"a DHCPv6 server's answer from another port": {protoUDP, outside6, udp(from, outside6, 1547, 546, make([]byte, 16)), vps.DropDHCP},
		"a DHCPv6 server's answer to a relay":        {protoUDP, outside6, udp(from, outside6, 547, 547, make([]byte, 16)), vps.DropDHCP},
	}
}

// hidden are ways to put something behind other headers.
func hidden(u upper) map[string]func(from netip.Addr) []byte {
	far := joined([]byte{u.proto, 40}, []byte{1, 255}, make([]byte, 255), []byte{1, 63 + 4}, make([]byte, 67))
	return map[string]func(from netip.Addr) []byte{
		"":                            func(f netip.Addr) []byte { return packet6(f, u.to, u.proto, u.body) },
		" behind hop-by-hop options":  func(f netip.Addr) []byte { return packet6(f, u.to, hopByHop, options6(u.proto), u.body) },
		" behind destination options": func(f netip.Addr) []byte { return packet6(f, u.to, destination, options6(u.proto), u.body) },
		" behind a routing header":    func(f netip.Addr) []byte { return packet6(f, u.to, routing, routing6(u.proto), u.body) },
		" behind far options":         func(f netip.Addr) []byte { return packet6(f, u.to, destination, far, u.body) },
		" behind all sorts of headers": func(f netip.Addr) []byte {
			return packet6(f, u.to, hopByHop, options6(destination), options6(routing), routing6(destination), options6(u.proto), u.body)
		},
	}
}

// scenes6 are about IPv6 on a bridge.
func (s *stage) scenes6() []scene {
	a, b := s.actor, s.network.Guests[1]
	own, local := vps.Address6(a.Prefix6), vps.LinkLocal6(a.MAC)
	first, last := a.Prefix6.Addr(), netip.MustParseAddr("2001:db8:213:2:ffff:ffff:ffff:ffff")
	frame := func(p []byte) []byte {
		to := outsideMAC
		if d := netip.AddrFrom16([16]byte(p[24:40])); d.IsMulticast() {
			to = group(d)
		}
		return ether(to, a.MAC, typeIPv6, p)
	}
	say := func(from, to netip.Addr, sport, dport uint16, data ...[]byte) []byte {
		return frame(packet6(from, to, protoUDP, udp(from, to, sport, dport, data...)))
	}
	long := make([]byte, 64)
	whole := udp(own, outside6, 1, 9, make([]byte, 120))
	servers := netip.MustParseAddr("ff02::1:2")
	report := func(from netip.Addr) []byte {
		return frame(packet6(from, mldRouter, hopByHop, options6(protoICMP6), icmp6(from, mldRouter, mld2Report, 1, make([]byte, 20))))
	}
	piece := func(next byte, at int, more bool, data ...[]byte) []byte {
		return frame(packet6(local, outside6, fragmented, fragment6(next, at, more, 1), joined(data...)))
	}
	advert := icmp6(local, outside6, routerAdvert, 64<<24|1800, make([]byte, 56))
	scenes := []scene{
		pass("from its address", say(own, outside6, 1, 9)),
		pass("from its prefix's first", say(first, outside6, 1, 9)),
		pass("from its prefix's last", say(last, outside6, 1, 9)),
		pass("from its link-local address", say(local, outside6, 1, 9)),
		pass("a TCP connection", frame(packet6(own, outside6, protoTCP, syn(own, outside6, 1, 80)))),
		pass("an echo request", frame(packet6(own, outside6, protoICMP6, icmp6(own, outside6, 128, 1)))),
		pass("a packet too big", frame(packet6(own, outside6, protoICMP6, icmp6(own, outside6, 2, 1280, long)))),
		pass("a protocol of nobody", frame(packet6(own, outside6, 253, long))),
		// Nobody looks behind this header who has not agreed on a key with the guest.
		pass("a redirect with an authentication", frame(packet6(own, outside6, authentic, joined([]byte{protoICMP6, 4}, make([]byte, 22)), icmp6(own, outside6, redirect6, 0, own.AsSlice(), outside6.AsSlice())))),
		pass("nothing at all", frame(packet6(own, outside6, 59))),
		pass("fragments of UDP", each(cut6(own, outside6, protoUDP, whole, 64, 3), frame)...),
		pass("an atomic fragment of UDP", frame(packet6(own, outside6, fragmented, fragment6(protoUDP, 0, false, 4), udp(own, outside6, 1, 9)))),
		pass("fragments of TCP", each(cut6(own, outside6, protoTCP, syn(own, outside6, 1, 80, make([]byte, 60)), 40, 5), frame)...),
		flood("an MLD report", report(local)),
		flood("an MLD report from no address", report(none6)),
		flood("a router solicitation", frame(packet6(local, netip.MustParseAddr("ff02::2"), protoICMP6, icmp6(local, netip.MustParseAddr("ff02::2"), routerSolicit, 0, hardware(1, a.MAC))))),
		flood("a DHCPv6 client's request", say(local, servers, 546, 547, long)),

		drop(vps.DropRouter, "an MLD query", frame(packet6(local, allNodes, hopByHop, options6(protoICMP6), icmp6(local, allNodes, mldQuery, 10000<<16, make([]byte, 20))))),
		drop(vps.DropSpoofed, "no address, UDP", say(none6, outside6, 1, 9)),
		drop(vps.DropSpoofed, "no address, DHCPv6 client", say(none6, servers, 546, 547)),
		drop(vps.DropSpoofed, "no address, echo", frame(packet6(none6, allNodes, protoICMP6, icmp6(none6, allNodes, 128, 1)))),
		drop(vps.DropSpoofed, "no address, router advertisement", frame(packet6(none6, allNodes, protoICMP6, icmp6(none6, allNodes, routerAdvert, 0, make([]byte, 8))))),
		drop(vps.DropFragment, "no address, fragment", frame(packet6(none6, mldRouter, fragmented, fragment6(protoICMP6, 0, false, 1), icmp6(none6, mldRouter, mld2Report, 0)))),
		drop(vps.DropSpoofed, "IPv4 that says it is IPv6", frame(joined(packet4{from: a.Address, to: outside4, proto: protoUDP}.of(udp(a.Address, outside4, 1, 9)), long))),

		drop(vps.DropFragment, "the first fragment of a router advertisement", piece(protoICMP6, 0, true, advert)),
		drop(vps.DropFragment, "its later fragment", piece(protoICMP6, 64, false, long)),
		drop(vps.DropFragment, "a router advertisement in an atomic fragment", piece(protoICMP6, 0, false, advert)),
		drop(vps.DropFragment, "a fragment whose upper header comes later", piece(destination, 0, true, options6(protoICMP6))),
		drop(vps.DropFragment, "a fragment whose upper header comes with it", piece(destination, 0, true, options6(protoICMP6), advert)),
		drop(vps.DropFragment, "a later fragment behind options", piece(destination, 8, false, advert)),
		drop(vps.DropFragment, "an atomic fragment with options", piece(destination, 0, false, options6(protoICMP6), advert)),
		drop(vps.DropFragment, "a fragment of a fragment", piece(fragmented, 0, false, fragment6(protoICMP6, 0, false, 2), advert)),
		drop(vps.DropFragment, "a fragment of UDP in a fragment", piece(fragmented, 0, false, fragment6(protoUDP, 0, false, 2), udp(local, outside6, 547, 546))),
		drop(vps.DropFragment, "a fragment behind options", frame(packet6(local, outside6, hopByHop, options6(destination), options6(fragmented), fragment6(protoICMP6, 0, true, 1), advert))),
		drop(vps.DropDHCP, "the first fragment of a DHCPv6 server's answer", piece(protoUDP, 0, true, udp(local, outside6, 547, 546, long))),
		drop(vps.DropDHCP, "its tiny first fragment", piece(protoUDP, 0, true, udp(local, outside6, 547, 546))),
		drop(vps.DropDHCP, "an atomic fragment of it", piece(protoUDP, 0, false, udp(local, outside6, 547, 546, long))),
	}
	for what, from := range map[string]netip.Addr{
		"the address before its prefix": first.Prev(), "the address behind its prefix": last.Next(), "the neighbour": vps.Address6(b.Prefix6),
		"the neighbour's link": vps.LinkLocal6(b.MAC), "the gateway": vps.Gateway6, "the outside": outside6, "the loopback": netip.IPv6Loopback(),
		"an IPv4 address": netip.AddrFrom16(a.Address.As16()), "a group": allNodes, "a link-local address of its choice": netip.MustParseAddr("fe80::bad"),
	} {
		scenes = append(scenes, drop(vps.DropSpoofed, "from "+what, say(from, outside6, 1, 9)))
		scenes = append(scenes, drop(vps.DropSpoofed, "fragments from "+what, each(cut6(from, outside6, protoUDP, whole, 64, 6), frame)...))
	}
	words := forged6(local)
	for _, what := range slices.Sorted(maps.Keys(words)) {
		u := words[what]
		for how, packet := range hidden(u) {
			scenes = append(scenes, drop(u.reason, what+how, frame(packet(local))))
		}
		longer := packet6(local, u.to, u.proto, u.body)
		longer[4]++ // 256 bytes more
		cut := packet6(local, u.to, destination, []byte{u.proto, 255, 1, 4, 0, 0, 0, 0}, u.body)
		scenes = append(scenes,
			drop(vps.DropEthertype, what+" with a length beyond its end", frame(longer)),
			drop(vps.DropEthertype, what+" behind options beyond its end", frame(cut)))
	}
	return scenes
}

// each makes frames of packets.
func each(packets [][]byte, frame func([]byte) []byte) [][]byte {
	for i, p := range packets {
		packets[i] = frame(p)
	}
	return packets
}

// neighbourScenes are neighbour messages to where the actor's frames go; what
// passes is heard there.
func (s *stage) neighbourScenes() []scene {
	a, b := s.actor, s.network.Guests[1]
	own, local, other := vps.Address6(a.Prefix6), vps.LinkLocal6(a.MAC), vps.Address6(b.Prefix6)
	first, last := a.Prefix6.Addr(), netip.MustParseAddr("2001:db8:213:2:ffff:ffff:ffff:ffff")
	message := func(from netip.Addr, kind byte, target netip.Addr, options ...[]byte) []byte {
		return ether(s.next, a.MAC, typeIPv6, packet6(from, s.next6, protoICMP6, icmp6(from, s.next6, kind, 0, target.AsSlice(), joined(options...))))
	}
	behind := func(kind byte, target netip.Addr) []byte {
		return ether(s.next, a.MAC, typeIPv6, packet6(local, s.next6, hopByHop, options6(protoICMP6), icmp6(local, s.next6, kind, 0, target.AsSlice())))
	}
	solicit := func(mac []byte) []byte {
		return ether(s.next, a.MAC, typeIPv6, packet6(local, s.next6, protoICMP6, icmp6(local, s.next6, routerSolicit, 0, mac)))
	}
	scenes := []scene{
		pass("a solicitation", message(local, solicitation, s.next6, hardware(1, a.MAC))),
		pass("a solicitation from its prefix", message(own, solicitation, s.next6, hardware(1, a.MAC))),
		pass("a solicitation without its MAC", message(local, solicitation, s.next6)),
		pass("an advertisement", message(local, advertisement, local, hardware(2, a.MAC))),
		pass("an advertisement without its MAC", message(local, advertisement, own)),
		pass("an advertisement of its prefix's first", message(own, advertisement, first, hardware(2, a.MAC))),
		pass("an advertisement of its prefix's last", message(own, advertisement, last, hardware(2, a.MAC))),
		pass("looking for a double", message(none6, solicitation, own)),
		pass("looking for a double on the link", message(none6, solicitation, local)),
		pass("looking for a double, with a nonce", message(none6, solicitation, last, nonce())),
		pass("a router solicitation", solicit(hardware(1, a.MAC))),
		pass("a router solicitation without its MAC", solicit(nil)),
		drop(vps.DropNeighbour, "a router solicitation with the neighbour's MAC", solicit(hardware(1, b.MAC))),

		drop(vps.DropNeighbour, "its advertisement with the neighbour's MAC", message(local, advertisement, own, hardware(2, b.MAC))),
		drop(vps.DropNeighbour, "its advertisement with everybody's MAC", message(local, advertisement, own, hardware(2, everybody))),
		drop(vps.DropNeighbour, "its advertisement with the wrong option", message(local, advertisement, own, hardware(1, a.MAC))),
		drop(vps.DropNeighbour, "its advertisement with two options", message(local, advertisement, own, hardware(2, a.MAC), hardware(2, b.MAC))),
		drop(vps.DropNeighbour, "its advertisement with an option without length", message(local, advertisement, own, []byte{2, 0, 2, 1, 2, 3, 4, 5})),
		drop(vps.DropNeighbour, "its advertisement with half an option", message(local, advertisement, own, []byte{2, 1, 2, 1})),
		drop(vps.DropNeighbour, "its advertisement with a nonce", message(local, advertisement, own, nonce())),
		drop(vps.DropNeighbour, "a solicitation with the neighbour's MAC", message(local, solicitation, s.next6, hardware(1, b.MAC))),
		drop(vps.DropNeighbour, "a solicitation with the wrong option", message(local, solicitation, s.next6, hardware(2, a.MAC))),
		drop(vps.DropNeighbour, "a solicitation with two options", message(local, solicitation, s.next6, hardware(1, a.MAC), hardware(1, b.MAC))),
		drop(vps.DropNeighbour, "a solicitation behind options", behind(solicitation, s.next6)),
		drop(vps.DropNeighbour, "an advertisement behind options", behind(advertisement, own)),
		drop(vps.DropSpoofed, "a solicitation of the neighbour's", message(other, solicitation, s.next6, hardware(1, a.MAC))),
		drop(vps.DropSpoofed, "an advertisement from no address", message(none6, advertisement, own, hardware(2, a.MAC))),
		drop(vps.DropSpoofed, "looking for the neighbour's double", message(none6, solicitation, other)),
		drop(vps.DropSpoofed, "looking for the gateway's double", message(none6, solicitation, vps.Gateway6)),
		drop(vps.DropSpoofed, "looking for a double before its prefix", message(none6, solicitation, first.Prev())),
		drop(vps.DropSpoofed, "looking for a double behind its prefix", message(none6, solicitation, last.Next())),
		drop(vps.DropSpoofed, "looking for a double behind options", ether(s.next, a.MAC, typeIPv6, packet6(none6, s.next6, destination, options6(protoICMP6), icmp6(none6, s.next6, solicitation, 0, own.AsSlice())))),
	}
	for what, target := range map[string]netip.Addr{
		"the neighbour": other, "the neighbour's link": vps.LinkLocal6(b.MAC), "the gateway": vps.Gateway6, "the outside": s.next6,
		"the address before its prefix": first.Prev(), "the address behind its prefix": last.Next(),
	} {
		scenes = append(scenes,
			drop(vps.DropNeighbour, "an advertisement of "+what, message(local, advertisement, target, hardware(2, a.MAC))),
			drop(vps.DropNeighbour, "an advertisement of "+what+" without a MAC", message(local, advertisement, target)))
	}
	return scenes
}
