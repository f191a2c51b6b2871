package audit

import (
	"encoding/binary"
	"net/netip"

	"sublet/internal/vps"
)

// sourceAttacks are packets in the name of others.
func (s *scene) sourceAttacks() {
	type source struct {
		name, what string
		address    netip.Addr
	}
	sources := []source{
		{"victim", "the victim", s.victim.Address},
		{"gateway", "the gateway", s.network.Gateway},
		{"stranger", "somebody outside", forged},
		{"pool", "an address of the pool that nobody has", s.unused()},
		{"loopback", "the loopback", netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		{"zero", "no address", netip.IPv4Unspecified()},
		{"broadcast", "the broadcast address", netip.AddrFrom4([4]byte{255, 255, 255, 255})},
		{"group", "a multicast group", netip.AddrFrom4([4]byte{224, 0, 0, 1})},
		{"link-local", "a link-local address", netip.AddrFrom4([4]byte{169, 254, 1, 1})},
	}
	if s.public.IsValid() {
		sources = append(sources, source{"public", "the host's public address", s.public})
	}
	for _, c := range sources {
		s.add("spoof-"+c.name, vps.DropSpoofed, "a packet to the outside from "+c.what, func(mark []byte) [][]byte {
			return one(s.to4(datagram(c.address, nobody, portOfTheAttacker, portDiscard, mark)))
		})
	}
	s.add("spoof-to-host", vps.DropSpoofed, "a packet to the host's own port from the victim", func(mark []byte) [][]byte {
		return one(s.to4(datagram(s.victim.Address, s.network.Gateway, portOfTheAttacker, s.port, mark)))
	})
	s.add("spoof-to-victim", vps.DropSpoofed, "a packet to the victim from the gateway", func(mark []byte) [][]byte {
		return one(s.to4(datagram(s.network.Gateway, s.victim.Address, portOfTheAttacker, portDiscard, mark)))
	})
	s.add("spoof-mac-and-address", vps.DropSpoofed, "the victim's MAC and address", func(mark []byte) [][]byte {
		return one(ether(s.hostMAC, s.victim.MAC, typeIPv4, datagram(s.victim.Address, nobody, portOfTheAttacker, portDiscard, mark)))
	})
	s.add("spoof-syn", vps.DropSpoofed, "a TCP connection in the victim's name", func(mark []byte) [][]byte {
		return one(s.to4(segment(s.victim.Address, nobody, portOfTheAttacker, 80, tcpSYN, mark)))
	})
	s.add("spoof-echo", vps.DropSpoofed, "an echo request whose answers would flood somebody outside", func(mark []byte) [][]byte {
		return one(s.to4(packet4{from: forged, to: s.network.Gateway, proto: protoICMP}.bytes(icmp(8, 0, 1, mark))))
	})
	s.add("spoof-fragments", vps.DropSpoofed, "fragments in the victim's name", func(mark []byte) [][]byte {
		p := packet4{from: s.victim.Address, to: nobody, proto: protoUDP, id: 0x5afe}
		return each(cut4(p, udp(p.from, p.to, portOfTheAttacker, portDiscard, append([]byte("12345678"), mark...)), 16), s.to4)
	})
	s.add("spoof-second-fragment", vps.DropSpoofed, "a fragment that ends a packet of the victim's", func(mark []byte) [][]byte {
		p := packet4{from: s.victim.Address, to: nobody, proto: protoUDP, id: 0x5aff, fragment: 2}
		return one(s.to4(p.bytes(mark)))
	})
	s.add("spoof-dhcp-client", vps.DropSpoofed, "a DHCP client's request from no address", func(mark []byte) [][]byte {
		from, to := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
		return one(ether(everybody, s.attacker.MAC, typeIPv4, datagram(from, to, portBOOTPClient, portBOOTPServer, mark)))
	})
}

// unused returns an address of the pool that no guest has.
func (s *scene) unused() netip.Addr {
	taken := map[netip.Addr]bool{s.network.Gateway: true}
	for _, g := range s.network.Guests {
		taken[g.Address] = true
	}
	a := s.network.Gateway.Next()
	for taken[a] {
		a = a.Next()
	}
	return a
}

// dhcp is an offer of BOOTP's form (RFC 2131): all that matters is the ports.
func dhcp(mark []byte) []byte {
	return append([]byte{2, 1, 6, 0, 0x51, 0xb1, 0xe7, 0}, mark...)
}

// speechAttacks are packets in the guest's own name that say what only a
// router or a server may.
func (s *scene) speechAttacks() {
	own, gateway := s.attacker.Address, s.network.Gateway
	limited := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	for _, c := range []struct {
		name, what string
		to         netip.Addr
		port       uint16
	}{
		{"victim", "a DHCP server's answer to the victim", s.victim.Address, portBOOTPClient},
		{"broadcast", "a DHCP server's answer to everybody", limited, portBOOTPClient},
		{"relay", "a DHCP server's answer to a relay", gateway, portBOOTPServer},
	} {
		s.add("dhcp-"+c.name, vps.DropDHCP, c.what, func(mark []byte) [][]byte {
			return one(s.to4(datagram(own, c.to, portBOOTPServer, c.port, dhcp(mark))))
		})
	}
	s.add("dhcp-fragments", vps.DropDHCP, "a DHCP server's answer in two fragments", func(mark []byte) [][]byte {
		p := packet4{from: own, to: s.victim.Address, proto: protoUDP, id: 0xd4c9}
		return each(cut4(p, udp(p.from, p.to, portBOOTPServer, portBOOTPClient, dhcp(mark)), 8), s.to4)
	})
	s.add("dhcp-fragments-reversed", vps.DropDHCP, "the same, the last one first", func(mark []byte) [][]byte {
		p := packet4{from: own, to: s.victim.Address, proto: protoUDP, id: 0xd4ca}
		parts := cut4(p, udp(p.from, p.to, portBOOTPServer, portBOOTPClient, dhcp(mark)), 8)
		return each([][]byte{parts[1], parts[0]}, s.to4)
	})
	s.add("dhcp-options", vps.DropDHCP, "a DHCP server's answer behind IP options", func(mark []byte) [][]byte {
		p := packet4{from: own, to: s.victim.Address, proto: protoUDP, options: []byte{1, 1, 1, 1, 1, 1, 1, 0}}
		return one(s.to4(p.bytes(udp(p.from, p.to, portBOOTPServer, portBOOTPClient, dhcp(mark)))))
	})
	// What a redirect quotes: the head of a packet of the one it is for.
	quoted := func(mark []byte) []byte {
		return datagram(s.victim.Address, nobody, portOfTheAttacker, portDiscard, mark)
	}
	gatewayWord := binary.BigEndian.Uint32(own.AsSlice())
	for _, c := range []struct {
		name, what string
		to         netip.Addr
	}{
		{"victim", "an ICMP redirect for the victim", s.victim.Address},
		{"host", "an ICMP redirect for the host", gateway},
	} {
		s.add("redirect-"+c.name, vps.DropRedirect, c.what, func(mark []byte) [][]byte {
			return one(s.to4(packet4{from: own, to: c.to, proto: protoICMP}.bytes(icmp(5, 1, gatewayWord, quoted(mark)))))
		})
	}
	s.add("redirect-fragments", vps.DropRedirect, "an ICMP redirect in two fragments", func(mark []byte) [][]byte {
		p := packet4{from: own, to: s.victim.Address, proto: protoICMP, id: 0x4ed1}
		return each(cut4(p, icmp(5, 1, gatewayWord, quoted(mark)), 8), s.to4)
	})
	s.add("router-discovery", vps.DropRouter, "an ICMP router advertisement", func(mark []byte) [][]byte {
		// RFC 1256: one address, two words each, half an hour.
		advert := append(append([]byte(nil), own.AsSlice()...), 0x7f, 0xff, 0xff, 0xff)
		return one(s.to4(packet4{from: own, to: netip.AddrFrom4([4]byte{224, 0, 0, 1}), proto: protoICMP}.bytes(icmp(9, 0, 1<<24|2<<16|1800, append(advert, mark...)))))
	})
	s.add("first-fragment-alone", byKernel, "a fragment to the victim whose rest never comes", func(mark []byte) [][]byte {
		p := packet4{from: own, to: s.victim.Address, proto: protoTCP, id: 0xf1f1, fragment: moreFragments}
		return one(s.to4(p.bytes(tcp(p.from, p.to, portOfTheAttacker, 22, tcpSYN, mark))))
	})
	s.add("second-fragment-alone", byKernel, "a fragment to the victim whose beginning never comes", func(mark []byte) [][]byte {
		p := packet4{from: own, to: s.victim.Address, proto: protoTCP, id: 0xf1f2, fragment: 1}
		return one(s.to4(p.bytes(mark)))
	})
	s.add("overlapping-fragments", byKernel, "fragments to the host that write over one another", func(mark []byte) [][]byte {
		p := packet4{from: own, to: gateway, proto: protoUDP, id: 0xf1f3}
		parts := cut4(p, udp(p.from, p.to, portOfTheAttacker, s.port, append([]byte("12345678"), mark...)), 16)
		over := p
		over.fragment = moreFragments | 1
		return each([][]byte{parts[0], over.bytes(make([]byte, 16)), parts[1]}, s.to4)
	})
	s.add("oversize-fragments", byKernel, "fragments that make a packet longer than there is", func(mark []byte) [][]byte {
		p := packet4{from: own, to: gateway, proto: protoICMP, id: 0xf1f4}
		first, last := p, p
		first.fragment, last.fragment = moreFragments, 0x1fff
		return each([][]byte{first.bytes(icmp(8, 0, 1, mark)), last.bytes(append(mark, make([]byte, 64)...))}, s.to4)
	})
	s.add("source-route", byKernel, "a packet to the host that asks to be sent on to the victim (loose source route)", func(mark []byte) [][]byte {
		route := append([]byte{131, 7, 4}, s.victim.Address.AsSlice()...)
		p := packet4{from: own, to: gateway, proto: protoUDP, options: append(route, 0)}
		return one(s.to4(p.bytes(udp(p.from, p.to, portOfTheAttacker, s.port, mark))))
	})
}

// reachAttacks are ordinary packets to where a guest may not.
func (s *scene) reachAttacks() {
	own, victim := s.attacker.Address, s.victim.Address
	s.towards("victim", "the victim", vps.DropBetween, own, victim, portDiscard)
	s.add("victim-broadcast-mac", byKernel, "a packet to the victim in a frame to everybody", func(mark []byte) [][]byte {
		return one(ether(everybody, s.attacker.MAC, typeIPv4, datagram(own, victim, portOfTheAttacker, portDiscard, mark)))
	})
	s.add("victim-direct", byKernel, "a frame to the victim's MAC", func(mark []byte) [][]byte {
		return one(ether(s.victim.MAC, s.attacker.MAC, typeIPv4, datagram(own, victim, portOfTheAttacker, portDiscard, mark)))
	})
	for _, c := range []struct {
		name, what string
		proto      uint8
	}{
		{"gre", "GRE", protoGRE}, {"ipip", "IP in IP", protoIPIP}, {"esp", "IPsec", protoESP}, {"sctp", "SCTP", protoSCTP}, {"raw", "a protocol of nobody", 253},
	} {
		s.add("victim-"+c.name, vps.DropBetween, c.what+" to the victim", func(mark []byte) [][]byte {
			return one(s.to4(packet4{from: own, to: victim, proto: c.proto}.bytes(append(make([]byte, 12), mark...))))
		})
	}
	s.add("victim-icmp-error", vps.DropBetween, "an ICMP error about a connection of the victim's", func(mark []byte) [][]byte {
		about := datagram(victim, nobody, portOfTheAttacker, portDiscard, mark)
		return one(s.to4(packet4{from: own, to: victim, proto: protoICMP}.bytes(icmp(3, 4, 68, about))))
	})
	hosts := []struct {
		name, what string
		address    netip.Addr
	}{{"host", "the host", s.network.Gateway}}
	if s.public.IsValid() {
		hosts = append(hosts, struct {
			name, what string
			address    netip.Addr
		}{"public", "the host's public address", s.public})
	}
	for _, c := range hosts {
		s.towards(c.name, c.what, vps.DropToHost, own, c.address, s.port)
	}
	if !open(s.network, vps.SSHPort) {
		s.add("host-ssh", vps.DropToHost, "a connection to the host's SSH", func(mark []byte) [][]byte {
			return one(s.to4(segment(own, s.network.Gateway, portOfTheAttacker, vps.SSHPort, tcpSYN, mark)))
		})
	}
	s.add("host-broadcast", vps.DropToHost, "a packet to the host's port by broadcast", func(mark []byte) [][]byte {
		return one(ether(everybody, s.attacker.MAC, typeIPv4, datagram(own, netip.AddrFrom4([4]byte{255, 255, 255, 255}), portOfTheAttacker, s.port, mark)))
	})
	s.add("host-all-systems", vps.DropToHost, "a packet to the host's port by multicast", func(mark []byte) [][]byte {
		return one(s.to4(datagram(own, netip.AddrFrom4([4]byte{224, 0, 0, 1}), portOfTheAttacker, s.port, mark)))
	})
	s.add("host-tunnel", vps.DropToHost, "a packet in the victim's name inside of another to the host", func(mark []byte) [][]byte {
		return one(s.to4(packet4{from: own, to: s.network.Gateway, proto: protoIPIP}.bytes(datagram(victim, nobody, portOfTheAttacker, portDiscard, mark))))
	})
	s.add("host-tunnel6", vps.DropToHost, "a packet of IPv6 inside of one to the host", func(mark []byte) [][]byte {
		return one(s.to4(packet4{from: own, to: s.network.Gateway, proto: protoIPv6}.bytes(datagram(s.otherLocal, forged6, portOfTheAttacker, portDiscard, mark))))
	})
	s.add("host-timestamp", vps.DropToHost, "an ICMP timestamp request to the host", func(mark []byte) [][]byte {
		return one(s.to4(packet4{from: own, to: s.network.Gateway, proto: protoICMP}.bytes(icmp(13, 0, 1, append(make([]byte, 12), mark...)))))
	})
	s.add("host-mtu", vps.DropToHost, "an ICMP error that lowers the MTU of a connection of the host's", func(mark []byte) [][]byte {
		about := segment(s.network.Gateway, nobody, vps.SSHPort, portOfTheAttacker, tcpACK, mark)
		return one(s.to4(packet4{from: own, to: s.network.Gateway, proto: protoICMP}.bytes(icmp(3, 4, 68, about))))
	})
	s.add("loopback", byKernel, "a packet to the host's loopback", func(mark []byte) [][]byte {
		return one(s.to4(datagram(own, netip.AddrFrom4([4]byte{127, 0, 0, 1}), portOfTheAttacker, s.port, mark)))
	})
	if s.outside && !s.attacker.SMTP {
		s.add("smtp", vps.DropSMTP, "mail to the outside", func(mark []byte) [][]byte {
			return one(s.to4(segment(own, nobody, portOfTheAttacker, portSMTP, tcpSYN, mark)))
		})
		s.add("smtp-fragments", vps.DropSMTP, "mail to the outside in fragments", func(mark []byte) [][]byte {
			p := packet4{from: own, to: nobody, proto: protoTCP, id: 0x5317}
			return each(cut4(p, tcp(p.from, p.to, portOfTheAttacker+1, portSMTP, tcpSYN, mark), 8), s.to4)
		})
	}
}

// towards adds what is tried with every address that a guest may not reach.
func (s *scene) towards(name, what string, reason vps.DropReason, from, to netip.Addr, port uint16) {
	frame := s.to4
	if from.Is6() {
		frame = s.to6
	}
	s.add(name+"-udp", reason, "a datagram to "+what, func(mark []byte) [][]byte {
		return one(frame(datagram(from, to, portOfTheAttacker, port, mark)))
	})
	for _, c := range []struct {
		name, what string
		flags      byte
	}{
		{"syn", "a TCP connection to ", tcpSYN},
		{"ack", "a TCP segment of no connection to ", tcpACK},
		{"rst", "a TCP reset to ", tcpRST},
		{"fin", "an end of a TCP connection to ", tcpFIN},
		{"null", "a TCP segment without flags to ", 0},
		{"xmas", "a TCP segment with senseless flags to ", tcpFIN | tcpPSH | tcpURG},
	} {
		s.add(name+"-tcp-"+c.name, reason, c.what+what, func(mark []byte) [][]byte {
			return one(frame(segment(from, to, portOfTheAttacker, port, c.flags, mark)))
		})
	}
	if reason == vps.DropBetween {
		s.add(name+"-echo", reason, "an echo request to "+what, func(mark []byte) [][]byte {
			if from.Is4() {
				return one(frame(packet4{from: from, to: to, proto: protoICMP}.bytes(icmp(8, 0, 1, mark))))
			}
			return one(frame(packet6(from, to, protoICMP6, icmp6(from, to, 128, 1, mark))))
		})
	}
}
