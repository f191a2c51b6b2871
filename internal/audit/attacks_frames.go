package audit

import (
	"net"
	"net/netip"

	"sublet/internal/vps"
)

// Ports of well-known services (IANA).
const (
	portDiscard       = 9
	portSMTP          = 25
	portBOOTPServer   = 67
	portBOOTPClient   = 68
	portDHCP6Client   = 546
	portDHCP6Server   = 547
	portMulticastDNS  = 5353
	portOfTheAttacker = 40000
)

// controls are no attacks: a guest that is let do nothing would pass every
// other check.
func (s *scene) controls() {
	s.add("own-echo", byKernel, "its own echo request to the gateway (no attack: it must pass)", func(mark []byte) [][]byte {
		return one(s.to4(packet4{from: s.attacker.Address, to: s.network.Gateway, proto: protoICMP}.bytes(icmp(8, 0, 1<<16|1, mark))))
	}).passes = hostAnswered
	if s.outside {
		s.add("own-packet", byKernel, "its own packet to the outside (no attack: it must pass)", func(mark []byte) [][]byte {
			return one(s.to4(datagram(s.attacker.Address, nobody, portOfTheAttacker, portDiscard, mark)))
		}).passes = leftBy
		s.add("own-fragments", byKernel, "its own packet to the outside in fragments (no attack: it must pass)", func(mark []byte) [][]byte {
			p := packet4{from: s.attacker.Address, to: nobody, proto: protoUDP, id: 1}
			return each(cut4(p, udp(p.from, p.to, portOfTheAttacker, portDiscard, append([]byte("12345678"), mark...)), 16), s.to4)
		}).passes = leftBy
	}
	if s.own.IsValid() {
		s.add("own-echo6", byKernel, "its own echo request to the gateway by IPv6 (no attack: it must pass)", func(mark []byte) [][]byte {
			return one(s.to6(packet6(s.ownLocal, vps.Gateway6, protoICMP6, icmp6(s.ownLocal, vps.Gateway6, 128, 1<<16|1, mark))))
		}).passes = hostAnswered
	}
	if s.outside6 {
		s.add("own-packet6", byKernel, "its own packet to the outside by IPv6 (no attack: it must pass)", func(mark []byte) [][]byte {
			return one(s.to6(datagram(s.own, nobody6, portOfTheAttacker, portDiscard, mark)))
		}).passes = leftBy
	}
}

// frameAttacks are about what stands in front of a packet.
func (s *scene) frameAttacks() {
	own := func(mark []byte) []byte {
		return datagram(s.attacker.Address, s.victim.Address, portOfTheAttacker, portDiscard, mark)
	}
	outside := func(mark []byte) []byte {
		return datagram(s.attacker.Address, nobody, portOfTheAttacker, portDiscard, mark)
	}
	random := net.HardwareAddr{0x02, 0xba, 0xd0, 0xba, 0xd0, 0x01}
	for _, c := range []struct {
		name, what string
		mac        net.HardwareAddr
	}{
		{"mac-victim", "its own packet with the victim's MAC", s.victim.MAC},
		{"mac-host", "its own packet with the host's MAC", s.hostMAC},
		{"mac-unknown", "its own packet with a MAC of nobody", random},
		{"mac-group", "its own packet with a group's MAC as its source", net.HardwareAddr{0x01, 0, 0x5e, 0, 0, 1}},
		{"mac-zero", "its own packet with no MAC", make(net.HardwareAddr, 6)},
	} {
		s.add(c.name, vps.DropSpoofed, c.what, func(mark []byte) [][]byte {
			return one(ether(s.hostMAC, c.mac, typeIPv4, outside(mark)))
		})
	}
	for _, c := range []struct {
		name, what string
		kind       uint16
		inner      []byte
	}{
		{"vlan", "a packet in VLAN 7", typeVLAN, tag(7, typeIPv4)},
		{"vlan-0", "a packet with a priority tag, VLAN 0", typeVLAN, tag(5<<13, typeIPv4)},
		{"vlan-4095", "a packet in the reserved VLAN 4095", typeVLAN, tag(4095, typeIPv4)},
		{"vlan-802.1ad", "a packet with a provider's tag", typeQinQ, tag(7, typeIPv4)},
		{"vlan-qinq", "a packet with two tags", typeQinQ, append(tag(7, typeVLAN), tag(9, typeIPv4)...)},
		{"vlan-double", "a packet with two ordinary tags", typeVLAN, append(tag(1, typeVLAN), tag(7, typeIPv4)...)},
		{"vlan-9100", "a packet with a tag of the old kind", typeQinQ1, tag(7, typeIPv4)},
	} {
		s.add(c.name, vps.DropVLAN, c.what, func(mark []byte) [][]byte {
			return one(ether(s.hostMAC, s.attacker.MAC, c.kind, c.inner, own(mark)))
		})
	}
	s.add("vlan-arp", vps.DropVLAN, "ARP for the gateway with a priority tag", func(mark []byte) [][]byte {
		return one(ether(everybody, s.attacker.MAC, typeVLAN, tag(0, typeARP),
			arpPacket{operation: 2, mac: s.attacker.MAC, ip: s.network.Gateway, target: s.victim.Address}.bytes(), mark))
	})
	for _, c := range []struct {
		name, what string
		kind       uint16
	}{
		{"ethertype-rarp", "reverse ARP", 0x8035},
		{"ethertype-lldp", "LLDP, which would name a false neighbour", 0x88cc},
		{"ethertype-pppoe-discovery", "PPPoE discovery", 0x8863},
		{"ethertype-pppoe", "a packet in PPPoE", 0x8864},
		{"ethertype-mpls", "a packet in MPLS", 0x8847},
		{"ethertype-eapol", "EAP over LAN", 0x888e},
		{"ethertype-macsec", "MACsec", 0x88e5},
		{"ethertype-aoe", "ATA over Ethernet", 0x88a2},
		{"ethertype-fcoe", "Fibre Channel over Ethernet", 0x8906},
		{"ethertype-ipx", "IPX", 0x8137},
		{"ethertype-ptp", "the Precision Time Protocol", 0x88f7},
		{"ethertype-loopback", "a loopback test", 0x9000},
		{"ethertype-trill", "TRILL", 0x22f3},
		{"ethertype-nsh", "a Network Service Header", 0x894f},
		{"ethertype-local", "a local experiment's type", 0x88b5},
		{"ethertype-zero", "a frame of type 0", 0},
		{"ethertype-last", "a frame of type 0xffff", 0xffff},
	} {
		s.add(c.name, vps.DropEthertype, c.what, func(mark []byte) [][]byte {
			return one(ether(everybody, s.attacker.MAC, c.kind, own(mark)))
		})
	}
	s.add("ethertype-stp", vps.DropEthertype, "a spanning tree's message that claims to be the root", func(mark []byte) [][]byte {
		bpdu := append([]byte{0x42, 0x42, 3, 0, 0, 0, 0, 0}, make([]byte, 32)...)
		return one(ether(net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0}, s.attacker.MAC, uint16(len(bpdu)), bpdu, mark))
	})
	s.add("ethertype-snap", vps.DropEthertype, "a packet of IPv4 wrapped in LLC and SNAP", func(mark []byte) [][]byte {
		wrapped := append([]byte{0xaa, 0xaa, 3, 0, 0, 0, typeIPv4 >> 8, typeIPv4 & 0xff}, own(mark)...)
		return one(ether(s.hostMAC, s.attacker.MAC, uint16(len(wrapped)), wrapped))
	})
	s.add("type-and-version", byKernel, "a packet of IPv6 that says it is IPv4", func(mark []byte) [][]byte {
		return one(s.to4(datagram(s.ownLocal, s.otherLocal, portOfTheAttacker, portDiscard, mark)))
	})
}

// arpAttacks claim addresses of others.
func (s *scene) arpAttacks() {
	own, victim, gateway := s.attacker.Address, s.victim.Address, s.network.Gateway
	claims := []struct {
		name, what string
		address    netip.Addr
	}{
		{"victim", "the victim's address", victim},
		{"gateway", "the gateway's address", gateway},
		{"stranger", "an address outside", forged},
	}
	if s.public.IsValid() {
		claims = append(claims, struct {
			name, what string
			address    netip.Addr
		}{"public", "the host's public address", s.public})
	}
	for _, c := range claims {
		for _, kind := range []struct {
			name, what string
			operation  uint16
			target     netip.Addr
		}{
			{"reply", "an ARP reply that claims ", 2, gateway},
			{"request", "an ARP request in the name of ", 1, gateway},
			{"gratuitous", "a gratuitous ARP for ", 1, c.address},
		} {
			if kind.target == gateway && c.address == gateway && kind.operation == 1 && kind.name == "request" {
				continue // that is the gratuitous one
			}
			a := s.add("arp-"+kind.name+"-"+c.name, vps.DropARP, kind.what+c.what, func(mark []byte) [][]byte {
				return one(ether(everybody, s.attacker.MAC, typeARP, arpPacket{operation: kind.operation, mac: s.attacker.MAC, ip: c.address, target: kind.target}.bytes(), mark))
			})
			if c.address == victim || c.address == forged {
				a.claims = c.address
			}
		}
	}
	none := netip.IPv4Unspecified()
	for _, c := range []struct {
		name, what string
		arp        arpPacket
	}{
		{"probe-victim", "an ARP probe that makes the victim give up its address", arpPacket{operation: 1, mac: s.attacker.MAC, ip: none, target: victim}},
		{"reply-nobody", "an ARP reply from no address", arpPacket{operation: 2, mac: s.attacker.MAC, ip: none, target: own}},
		{"mac-inside", "ARP with the victim's MAC inside", arpPacket{operation: 2, mac: s.victim.MAC, ip: own, target: gateway}},
		{"mac-group-inside", "ARP with everybody's MAC inside", arpPacket{operation: 2, mac: everybody, ip: own, target: gateway}},
		{"inverse", "inverse ARP", arpPacket{operation: 8, mac: s.attacker.MAC, ip: own, target: gateway}},
		{"operation", "ARP of an operation that nobody knows", arpPacket{operation: 0x4242, mac: s.attacker.MAC, ip: own, target: gateway}},
		{"hardware", "ARP for another hardware", arpPacket{hardware: 6, operation: 1, mac: s.attacker.MAC, ip: own, target: gateway}},
		{"protocol", "ARP for another protocol", arpPacket{protocol: 0x8137, operation: 1, mac: s.attacker.MAC, ip: own, target: gateway}},
		{"sizes", "ARP with sizes that shift what is in it", arpPacket{sizes: [2]byte{4, 6}, operation: 1, mac: s.attacker.MAC, ip: own, target: gateway}},
	} {
		s.add("arp-"+c.name, vps.DropARP, c.what, func(mark []byte) [][]byte {
			return one(ether(everybody, s.attacker.MAC, typeARP, c.arp.bytes(), mark))
		})
	}
	s.add("arp-mac", vps.DropSpoofed, "the victim's ARP from the victim's MAC", func(mark []byte) [][]byte {
		return one(ether(everybody, s.victim.MAC, typeARP, arpPacket{operation: 1, mac: s.victim.MAC, ip: victim, target: gateway}.bytes(), mark))
	}).claims = victim
}

// floods go over the attacker's own limits.
func (s *scene) floods() {
	if !s.outside {
		return
	}
	limits := s.attacker.Limits
	from := func(first, n int, mark []byte) [][]byte {
		frames := make([][]byte, 0, n)
		for i := range n {
			frames = append(frames, s.to4(datagram(s.attacker.Address, nobody, uint16(first+i), portDiscard, mark)))
		}
		return frames
	}
	const first = 10000
	s.add("flood-connections", vps.DropConnections, "more connections at a time than it may have", func(mark []byte) [][]byte {
		return from(first, limits.Connections+limits.Connections/4, mark)
	}).limited = true
	s.add("flood-new-connections", vps.DropNewConnection, "more new connections a second than it may make", func(mark []byte) [][]byte {
		return from(first+2*limits.Connections, 3*limits.NewConnections, mark)
	}).limited = true
	packets := s.add("flood-packets", vps.DropFlood, "more packets a second than it may send", func(mark []byte) [][]byte {
		return from(portOfTheAttacker, 1, mark)
	})
	packets.limited, packets.count = true, 3*limits.Packets
}
