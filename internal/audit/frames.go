package audit

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Ethernet types (IEEE, as in linux/if_ether.h).
const (
	typeIPv4  = 0x0800
	typeARP   = 0x0806
	typeIPv6  = 0x86dd
	typeVLAN  = 0x8100
	typeQinQ  = 0x88a8
	typeQinQ1 = 0x9100 // before 802.1ad
)

// Protocols inside IP (IANA protocol numbers).
const (
	protoHopByHop    = 0
	protoICMP        = 1
	protoIPIP        = 4
	protoTCP         = 6
	protoUDP         = 17
	protoIPv6        = 41
	protoRouting     = 43
	protoFragment    = 44
	protoGRE         = 47
	protoESP         = 50
	protoICMP6       = 58
	protoDestination = 60
	protoSCTP        = 132
)

// Flags of TCP (RFC 9293).
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
	tcpURG
)

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} //nolint:gochecknoglobals // a constant
	allNodes  = netip.MustParseAddr("ff02::1")                       //nolint:gochecknoglobals // a constant
)

// shortest is a frame of Ethernet without its checksum.
const shortest = 60

// ether returns a frame, filled up to what Ethernet asks for.
func ether(to, from net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	b := append(append([]byte(nil), to...), from...)
	b = binary.BigEndian.AppendUint16(b, kind)
	for _, p := range payload {
		b = append(b, p...)
	}
	if len(b) < shortest {
		b = append(b, make([]byte, shortest-len(b))...)
	}
	return b
}

// tag is what follows the type of a tagged frame (IEEE 802.1Q).
func tag(id, inner uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, id), inner)
}

// arpPacket is a message of RFC 826. What is zero is what Ethernet and IPv4
// have there.
type arpPacket struct {
	hardware, protocol uint16
	sizes              [2]byte
	operation          uint16
	mac                net.HardwareAddr
	ip                 netip.Addr
	target             netip.Addr
}

func (a arpPacket) bytes() []byte {
	if a.hardware == 0 {
		a.hardware = 1
	}
	if a.protocol == 0 {
		a.protocol = typeIPv4
	}
	if a.sizes == [2]byte{} {
		a.sizes = [2]byte{6, 4}
	}
	b := binary.BigEndian.AppendUint16(nil, a.hardware)
	b = binary.BigEndian.AppendUint16(b, a.protocol)
	b = append(b, a.sizes[:]...)
	b = binary.BigEndian.AppendUint16(b, a.operation)
	b = append(append(b, a.mac...), a.ip.AsSlice()...)
	return append(append(b, make([]byte, 6)...), a.target.AsSlice()...)
}

// sum adds the words of b for the internet checksum (RFC 1071).
func sum(acc uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		acc += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return ^uint16(acc)
}

// pseudo is the sum of the header that TCP, UDP and ICMPv6 check besides their
// own (RFC 9293, RFC 8200 section 8.1).
func pseudo(from, to netip.Addr, proto uint8, length int) uint32 {
	return sum(sum(uint32(proto)+uint32(length), from.AsSlice()), to.AsSlice())
}

// packet4 is an IPv4 packet (RFC 791).
type packet4 struct {
	from, to netip.Addr
	proto    uint8
	id       uint16
	fragment uint16 // flags and offset as in the header
	options  []byte // whole words
}

// moreFragments is the flag of IPv4 that says so.
const moreFragments = 0x2000

func (p packet4) bytes(payload []byte) []byte {
	header := 20 + len(p.options)
	b := make([]byte, header, header+len(payload))
	b[0] = 0x40 | byte(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(header+len(payload)))
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], p.fragment)
	b[8], b[9] = 64, p.proto
	copy(b[12:], p.from.AsSlice())
	copy(b[16:], p.to.AsSlice())
	copy(b[20:], p.options)
	binary.BigEndian.PutUint16(b[10:], fold(sum(0, b)))
	return append(b, payload...)
}

// cut4 returns a packet as two fragments, the second from at on, a multiple of
// 8 bytes.
func cut4(p packet4, payload []byte, at int) [][]byte {
	first, second := p, p
	first.fragment, second.fragment = moreFragments, uint16(at/8)
	return [][]byte{first.bytes(payload[:at]), second.bytes(payload[at:])}
}

// packet6 returns an IPv6 packet (RFC 8200).
func packet6(from, to netip.Addr, next uint8, payload ...[]byte) []byte {
	b := []byte{0x60, 0, 0, 0, 0, 0, next, 255}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	for _, p := range payload {
		b = append(b, p...)
	}
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// options6 is a header of hop-by-hop or destination options with nothing in
// them but room.
func options6(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// fragment6 is a fragment header; at is a multiple of 8 bytes.
func fragment6(next uint8, at int, more bool, id uint32) []byte {
	where := uint16(at)
	if more {
		where |= 1
	}
	b := []byte{next, 0}
	b = binary.BigEndian.AppendUint16(b, where)
	return binary.BigEndian.AppendUint32(b, id)
}

// cut6 returns a packet as two fragments, the second from at on.
func cut6(from, to netip.Addr, next uint8, payload []byte, at int, id uint32) [][]byte {
	return [][]byte{
		packet6(from, to, protoFragment, fragment6(next, 0, true, id), payload[:at]),
		packet6(from, to, protoFragment, fragment6(next, at, false, id), payload[at:]),
	}
}

func udp(from, to netip.Addr, sport, dport uint16, payload []byte) []byte {
	length := 8 + len(payload)
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(append(b, 0, 0), payload...)
	check := fold(sum(pseudo(from, to, protoUDP, length), b))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], check)
	return b
}

func tcp(from, to netip.Addr, sport, dport uint16, flags byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint32(b, 0x51b1e700) // any sequence number
	b = append(b, 0, 0, 0, 0, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], fold(sum(pseudo(from, to, protoTCP, len(b)), b)))
	return b
}

// icmp returns a message of RFC 792; rest is the header's second word.
func icmp(kind, code byte, rest uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], fold(sum(0, b)))
	return b
}

// icmp6 returns a message of RFC 4443 with code 0; rest is the header's second
// word.
func icmp6(from, to netip.Addr, kind byte, rest uint32, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, 0, 0, 0}, rest)
	for _, p := range payload {
		b = append(b, p...)
	}
	binary.BigEndian.PutUint16(b[2:], fold(sum(pseudo(from, to, protoICMP6, len(b)), b)))
	return b
}

// solicited returns the multicast address that neighbours of an address listen
// on (RFC 4291, section 2.7.1).
func solicited(a netip.Addr) netip.Addr {
	low, b := a.As16(), netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(b[13:], low[13:])
	return netip.AddrFrom16(b)
}

// multicast6 is the hardware address that goes with a multicast one (RFC 2464).
func multicast6(a netip.Addr) net.HardwareAddr {
	b := a.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// linkLayer is the option of neighbour messages that holds a hardware address
// (RFC 4861, section 4.6.1): 1 for the source's, 2 for the target's.
func linkLayer(kind byte, mac net.HardwareAddr) []byte {
	return append([]byte{kind, 1}, mac...)
}
