package audit

import (
	"net/netip"

	"sublet/internal/vps"
)

// source6 is the address that the attacker's packets to beyond its link have:
// its own, or its link-local one when it has none.
func (s *scene) source6() netip.Addr {
	if s.own.IsValid() {
		return s.own
	}
	return s.ownLocal
}

// victim6 is the same of the victim.
func (s *scene) victim6() netip.Addr {
	if s.other.IsValid() {
		return s.other
	}
	return s.otherLocal
}

// sourceAttacks6 are packets in the name of others.
func (s *scene) sourceAttacks6() {
	type source struct {
		name, what string
		address    netip.Addr
	}
	sources := []source{
		{"victim-local", "the victim's link-local address", s.otherLocal},
		{"gateway", "the gateway's address", vps.Gateway6},
		{"stranger", "somebody outside", forged6},
		{"mapped", "an IPv4 address written as one of IPv6", netip.AddrFrom16(s.victim.Address.As16())},
		{"unique-local", "a private address", netip.MustParseAddr("fd00:bad::1")},
		{"link-local", "a link-local address of its choice", netip.MustParseAddr("fe80::bad:1")},
	}
	if s.other.IsValid() {
		sources = append(sources, source{"victim", "the victim", s.other})
	}
	if s.public6.IsValid() {
		sources = append(sources, source{"public", "the host's public address", s.public6})
	}
	if p := s.attacker.Prefix6; p.IsValid() && p.Bits() > 0 {
		// The one before its first: a neighbour's, or nobody's.
		sources = append(sources, source{"before", "the address before its own", p.Masked().Addr().Prev()})
	}
	for _, c := range sources {
		s.add("spoof6-"+c.name, vps.DropSpoofed, "a packet of IPv6 to the outside from "+c.what, func(mark []byte) [][]byte {
			return one(s.to6(datagram(c.address, nobody6, portOfTheAttacker, portDiscard, mark)))
		})
	}
	for _, c := range []source{{"loopback", "the loopback", netip.IPv6Loopback()}, {"group", "a multicast group", allNodes}} {
		s.add("spoof6-"+c.name, byKernel, "a packet of IPv6 to the outside from "+c.what, func(mark []byte) [][]byte {
			return one(s.to6(datagram(c.address, nobody6, portOfTheAttacker, portDiscard, mark)))
		})
	}
	s.add("spoof6-unspecified", vps.DropSpoofed, "a packet of IPv6 from no address", func(mark []byte) [][]byte {
		return one(s.to6(datagram(netip.IPv6Unspecified(), s.victim6(), portOfTheAttacker, portDiscard, mark)))
	})
	s.add("spoof6-mac", vps.DropSpoofed, "its own packet of IPv6 with the victim's MAC", func(mark []byte) [][]byte {
		return one(ether(s.hostMAC, s.victim.MAC, typeIPv6, datagram(s.source6(), nobody6, portOfTheAttacker, portDiscard, mark)))
	})
	s.add("spoof6-fragments", vps.DropSpoofed, "fragments of IPv6 in the victim's name", func(mark []byte) [][]byte {
		from := s.victim6()
		return each(cut6(from, nobody6, protoUDP, udp(from, nobody6, portOfTheAttacker, portDiscard, append([]byte("12345678"), mark...)), 16, 0x5afe), s.to6)
	})
	s.add("spoof6-to-host", vps.DropSpoofed, "a packet of IPv6 to the host's own port from the victim", func(mark []byte) [][]byte {
		return one(s.to6(datagram(s.otherLocal, vps.Gateway6, portOfTheAttacker, s.port, mark)))
	})
}

// Kinds of ICMPv6 (RFC 4861, RFC 4443).
const (
	kindRouterAdvert = 134
	kindSolicitation = 135
	kindAdvert       = 136
	kindRedirect     = 137
)

// Flags of a neighbour advertisement.
const (
	solicitedFlag = 1 << 30
	overrideFlag  = 1 << 29
	routerFlag    = 1 << 31
)

// neighbour returns a message about a target.
func neighbour(kind byte, from, to, target netip.Addr, flags uint32, options ...[]byte) []byte {
	return icmp6(from, to, kind, flags, append([][]byte{target.AsSlice()}, options...)...)
}

// neighbourAttacks6 claim addresses of others.
func (s *scene) neighbourAttacks6() {
	own, gateway := s.ownLocal, vps.Gateway6
	claims := []struct {
		name, what string
		address    netip.Addr
	}{
		{"victim-local", "the victim's link-local address", s.otherLocal},
		{"gateway", "the gateway's address", gateway},
		{"stranger", "an address outside", forged6},
	}
	if s.other.IsValid() {
		claims = append(claims, struct {
			name, what string
			address    netip.Addr
		}{"victim", "the victim's address", s.other})
	}
	if s.public6.IsValid() {
		claims = append(claims, struct {
			name, what string
			address    netip.Addr
		}{"public", "the host's public address", s.public6})
	}
	mine, theirs := linkLayer(2, s.attacker.MAC), linkLayer(2, s.victim.MAC)
	send := func(to netip.Addr, packet, mark []byte) [][]byte {
		mac := s.hostMAC
		if to.IsMulticast() {
			mac = multicast6(to)
		}
		return one(ether(mac, s.attacker.MAC, typeIPv6, packet, mark))
	}
	for _, c := range claims {
		advert := s.add("neighbour-advert-"+c.name, s.reason6(vps.DropNeighbour), "a neighbour advertisement that claims "+c.what, func(mark []byte) [][]byte {
			return send(gateway, packet6(own, gateway, protoICMP6, neighbour(kindAdvert, own, gateway, c.address, solicitedFlag|overrideFlag, mine)), mark)
		})
		everyone := s.add("neighbour-unsolicited-"+c.name, s.reason6(vps.DropNeighbour), "the same, to all nodes, as a router", func(mark []byte) [][]byte {
			return send(allNodes, packet6(own, allNodes, protoICMP6, neighbour(kindAdvert, own, allNodes, c.address, routerFlag|overrideFlag, mine)), mark)
		})
		if c.address != gateway && c.address != s.public6 {
			advert.claims, everyone.claims = c.address, c.address
		}
		s.add("neighbour-detection-"+c.name, vps.DropSpoofed, "a check for duplicates that makes its owner give up "+c.what, func(mark []byte) [][]byte {
			to := solicited(c.address)
			return send(to, packet6(netip.IPv6Unspecified(), to, protoICMP6, neighbour(kindSolicitation, netip.IPv6Unspecified(), to, c.address, 0)), mark)
		})
		if c.address == gateway {
			continue
		}
		s.add("neighbour-solicit-"+c.name, vps.DropSpoofed, "a neighbour solicitation from "+c.what, func(mark []byte) [][]byte {
			to := solicited(gateway)
			return send(to, packet6(c.address, to, protoICMP6, neighbour(kindSolicitation, c.address, to, gateway, 0, linkLayer(1, s.attacker.MAC))), mark)
		}).claims = c.address
	}
	s.add("neighbour-foreign-mac", s.reason6(vps.DropNeighbour), "its own neighbour advertisement with the victim's MAC inside", func(mark []byte) [][]byte {
		return send(gateway, packet6(own, gateway, protoICMP6, neighbour(kindAdvert, own, gateway, own, solicitedFlag|overrideFlag, theirs)), mark)
	})
	s.add("neighbour-solicit-mac", s.reason6(vps.DropNeighbour), "its own neighbour solicitation with the victim's MAC inside", func(mark []byte) [][]byte {
		to := solicited(gateway)
		return send(to, packet6(own, to, protoICMP6, neighbour(kindSolicitation, own, to, gateway, 0, linkLayer(1, s.victim.MAC))), mark)
	})
	s.add("neighbour-two-macs", s.reason6(vps.DropNeighbour), "its own neighbour advertisement with a second MAC behind the first", func(mark []byte) [][]byte {
		return send(gateway, packet6(own, gateway, protoICMP6, neighbour(kindAdvert, own, gateway, own, solicitedFlag|overrideFlag, mine, theirs)), mark)
	})
	s.add("neighbour-hidden", s.reason6(vps.DropNeighbour), "a neighbour advertisement for the victim behind destination options", func(mark []byte) [][]byte {
		return send(gateway, packet6(own, gateway, protoDestination, options6(protoICMP6), neighbour(kindAdvert, own, gateway, s.otherLocal, solicitedFlag|overrideFlag, mine)), mark)
	}).claims = s.otherLocal
	s.add("neighbour-fragments", s.reason6(vps.DropNeighbour), "a neighbour advertisement for the victim in fragments", func([]byte) [][]byte {
		return each(cut6(own, gateway, protoICMP6, neighbour(kindAdvert, own, gateway, s.otherLocal, solicitedFlag|overrideFlag, mine), 8, 0x4e1), s.to6)
	}).claims = s.otherLocal
}

// speechAttacks6 are what only a router or a server may say.
func (s *scene) speechAttacks6() {
	own, victim := s.ownLocal, s.victim6()
	// RFC 4861, section 4.2: hop limit 64, managed, half an hour, and an option
	// that names a prefix as on the link.
	const routerWord = 64<<24 | 0x80<<16 | 1800
	prefix := append([]byte{3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0}, forged6.AsSlice()...)
	advert := func(from, to netip.Addr, mark []byte) []byte {
		return icmp6(from, to, kindRouterAdvert, routerWord, make([]byte, 8), prefix, mark)
	}
	group := func(packet []byte) []byte {
		return ether(multicast6(allNodes), s.attacker.MAC, typeIPv6, packet)
	}
	s.add("router-advert", s.reason6(vps.DropRouter), "a router advertisement to all nodes", func(mark []byte) [][]byte {
		return one(group(packet6(own, allNodes, protoICMP6, advert(own, allNodes, mark))))
	})
	s.add("router-advert-victim", s.reason6(vps.DropRouter), "a router advertisement to the victim", func(mark []byte) [][]byte {
		return one(s.to6(packet6(s.source6(), victim, protoICMP6, advert(s.source6(), victim, mark))))
	})
	s.add("router-advert-gateway", vps.DropSpoofed, "a router advertisement in the gateway's name that ends its life", func(mark []byte) [][]byte {
		return one(group(packet6(vps.Gateway6, allNodes, protoICMP6, icmp6(vps.Gateway6, allNodes, kindRouterAdvert, 64<<24, make([]byte, 8), mark))))
	})
	for _, c := range []struct {
		name, what string
		next       uint8
		header     []byte
	}{
		{"hop-by-hop", "hop-by-hop options", protoHopByHop, options6(protoICMP6)},
		{"destination", "destination options", protoDestination, options6(protoICMP6)},
		{"routing", "a routing header", protoRouting, []byte{protoICMP6, 0, 4, 0, 0, 0, 0, 0}},
		{"chain", "a chain of headers", protoHopByHop, append(options6(protoDestination), options6(protoICMP6)...)},
		{"atomic", "the header of a fragment that is the whole", protoFragment, fragment6(protoICMP6, 0, false, 0xa70)},
	} {
		a := s.add("router-advert-"+c.name, s.reason6(vps.DropRouter), "a router advertisement behind "+c.what, func(mark []byte) [][]byte {
			return one(group(packet6(own, allNodes, c.next, c.header, advert(own, allNodes, mark))))
		})
		if c.next == protoFragment {
			a.Reasons = append(a.Reasons, vps.DropFragment)
		}
	}
	s.add("router-advert-fragments", s.reason6(vps.DropRouter), "a router advertisement in fragments", func(mark []byte) [][]byte {
		return each(cut6(own, allNodes, protoICMP6, advert(own, allNodes, mark), 8, 0x4ad), group)
	})
	late := s.add("router-advert-late-header", s.reason6(vps.DropRouter), "a router advertisement whose kind is in the second fragment", func(mark []byte) [][]byte {
		whole := append(options6(protoICMP6), advert(own, allNodes, mark)...)
		return each(cut6(own, allNodes, protoDestination, whole, 8, 0x4ae), group)
	})
	late.Reasons = append(late.Reasons, vps.DropFragment)
	s.add("redirect6", s.reason6(vps.DropRedirect), "a redirect to the host by IPv6", func(mark []byte) [][]byte {
		return one(s.to6(packet6(own, vps.Gateway6, protoICMP6, icmp6(own, vps.Gateway6, kindRedirect, 0, own.AsSlice(), nobody6.AsSlice(), mark))))
	})
	s.add("redirect6-victim", s.reason6(vps.DropRedirect), "a redirect to the victim by IPv6", func(mark []byte) [][]byte {
		return one(s.to6(packet6(s.source6(), victim, protoICMP6, icmp6(s.source6(), victim, kindRedirect, 0, own.AsSlice(), nobody6.AsSlice(), mark))))
	})
	servers := netip.MustParseAddr("ff02::1:2")
	for _, c := range []struct {
		name, what string
		to         netip.Addr
	}{
		{"victim", "the victim", victim}, {"host", "the host", vps.Gateway6}, {"group", "everybody", allNodes}, {"servers", "all DHCP servers", servers},
	} {
		s.add("dhcp6-"+c.name, s.reason6(vps.DropDHCP), "a DHCPv6 server's answer to "+c.what, func(mark []byte) [][]byte {
			from, mac := s.source6(), s.hostMAC
			if c.to.IsMulticast() {
				from, mac = own, multicast6(c.to)
			}
			return one(ether(mac, s.attacker.MAC, typeIPv6, datagram(from, c.to, portDHCP6Server, portDHCP6Client, append([]byte{7, 1, 2, 3}, mark...))))
		})
	}
	s.add("dhcp6-fragments", s.reason6(vps.DropDHCP), "a DHCPv6 server's answer in fragments", func(mark []byte) [][]byte {
		from := s.source6()
		return each(cut6(from, victim, protoUDP, udp(from, victim, portDHCP6Server, portDHCP6Client, append([]byte{7, 1, 2, 3, 0, 0, 0, 0}, mark...)), 8, 0xd4c), s.to6)
	})
	s.add("dhcp6-hidden", s.reason6(vps.DropDHCP), "a DHCPv6 server's answer behind destination options", func(mark []byte) [][]byte {
		from := s.source6()
		return one(s.to6(packet6(from, victim, protoDestination, options6(protoUDP), udp(from, victim, portDHCP6Server, portDHCP6Client, append([]byte{7, 1, 2, 3}, mark...)))))
	})
}

// reachAttacks6 are ordinary packets to where a guest may not.
func (s *scene) reachAttacks6() {
	own := s.source6()
	if s.other.IsValid() && s.own.IsValid() {
		s.towards("victim6", "the victim by IPv6", vps.DropBetween, own, s.other, portDiscard)
		s.add("victim6-routing", vps.DropToHost, "a packet to the host by IPv6 whose routing header names the victim", func(mark []byte) [][]byte {
			route := append([]byte{protoUDP, 2, 0, 1, 0, 0, 0, 0}, s.other.AsSlice()...)
			return one(s.to6(packet6(own, vps.Gateway6, protoRouting, route, udp(own, s.other, portOfTheAttacker, portDiscard, mark))))
		})
		s.add("victim6-hidden", vps.DropBetween, "a datagram to the victim behind options", func(mark []byte) [][]byte {
			return one(s.to6(packet6(own, s.other, protoHopByHop, options6(protoDestination), options6(protoUDP), udp(own, s.other, portOfTheAttacker, portDiscard, mark))))
		})
		s.add("victim6-fragments", vps.DropBetween, "a datagram to the victim by IPv6 in fragments", func(mark []byte) [][]byte {
			return each(cut6(own, s.other, protoUDP, udp(own, s.other, portOfTheAttacker, portDiscard, append([]byte("12345678"), mark...)), 16, 0xbe7), s.to6)
		})
	}
	// The host answers that this address would be on the attacker's own link.
	s.add("victim6-local", s.reason6(vps.DropBetween), "a datagram to the victim's link-local address", func(mark []byte) [][]byte {
		return one(s.to6(datagram(s.ownLocal, s.otherLocal, portOfTheAttacker, portDiscard, mark)))
	}).answered = true
	hosts := []struct {
		name, what    string
		from, address netip.Addr
	}{{"host6", "the host by IPv6", s.ownLocal, vps.Gateway6}}
	if s.public6.IsValid() && s.own.IsValid() {
		hosts = append(hosts, struct {
			name, what    string
			from, address netip.Addr
		}{"public6", "the host's public address by IPv6", s.own, s.public6})
	}
	for _, c := range hosts {
		s.towards(c.name, c.what, s.reason6(vps.DropToHost), c.from, c.address, s.port)
	}
	s.add("host6-all-nodes", s.reason6(vps.DropToHost), "a packet to the host's port by multicast of IPv6", func(mark []byte) [][]byte {
		return one(ether(multicast6(allNodes), s.attacker.MAC, typeIPv6, datagram(s.ownLocal, allNodes, portOfTheAttacker, s.port, mark)))
	})
	s.add("host6-tunnel", s.reason6(vps.DropToHost), "a packet in the victim's name inside of one to the host by IPv6", func(mark []byte) [][]byte {
		return one(s.to6(packet6(s.ownLocal, vps.Gateway6, protoIPv6, datagram(s.victim6(), nobody6, portOfTheAttacker, portDiscard, mark))))
	})
	s.add("host6-too-big", s.reason6(vps.DropToHost), "an error that lowers the MTU of a connection of the host's by IPv6", func(mark []byte) [][]byte {
		about := segment(vps.Gateway6, nobody6, vps.SSHPort, portOfTheAttacker, tcpACK, mark)
		return one(s.to6(packet6(s.ownLocal, vps.Gateway6, protoICMP6, icmp6(s.ownLocal, vps.Gateway6, 2, 1280, about))))
	})
	if s.outside6 && !s.attacker.SMTP {
		s.add("smtp6", vps.DropSMTP, "mail to the outside by IPv6", func(mark []byte) [][]byte {
			return one(s.to6(segment(own, nobody6, portOfTheAttacker, portSMTP, tcpSYN, mark)))
		})
		s.add("smtp6-hidden", vps.DropSMTP, "mail to the outside by IPv6 behind options", func(mark []byte) [][]byte {
			return one(s.to6(packet6(own, nobody6, protoDestination, options6(protoTCP), tcp(own, nobody6, portOfTheAttacker, portSMTP, tcpSYN, mark))))
		})
	}
}
