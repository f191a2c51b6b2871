package audit

import (
	"fmt"
	"net"
	"net/netip"

	"sublet/internal/vps"
)

// Attack is frames that a guest sends, and what should become of them.
type Attack struct {
	// Name is short and stable, "arp-reply-gateway".
	Name string
	// What says what is tried, for people.
	What string
	// Reasons are the counters of which one must rise; empty when the kernel
	// itself drops the frames, without counting them by guest. There are two
	// where kernels differ in what they leave of a packet.
	Reasons []vps.DropReason

	frames [][]byte
	count  int // how often; 0 means once
	// marker is in the frames and in whatever is made of them.
	marker []byte
	// claims is an address that the host must not believe to be the attacker's.
	claims netip.Addr
	// passes is how what was heard begins when the frames, which are no attack,
	// arrived.
	passes string
	// answered: the host may tell the attacker that it did not pass.
	answered bool
	// limited: some of it passes.
	limited bool
}

// scene is who is there.
type scene struct {
	network          vps.Network
	attacker, victim vps.NetworkGuest
	// own and other are the addresses of attacker and victim in IPv6, with
	// their link-local ones; zero without IPv6.
	own, other           netip.Addr
	ownLocal, otherLocal netip.Addr
	hostMAC              net.HardwareAddr
	// public are the host's own addresses on its uplinks.
	public, public6 netip.Addr
	// Whether there is a way out.
	outside, outside6 bool
	port              uint16 // of the host, where a witness listens
	nonce             string
	list              []Attack
}

// Addresses of nobody (RFC 5737, RFC 3849): what gets out by mistake troubles
// no one.
var (
	nobody  = netip.MustParseAddr("192.0.2.1")       //nolint:gochecknoglobals // a constant
	nobody6 = netip.MustParseAddr("2001:db8::1")     //nolint:gochecknoglobals // a constant
	forged  = netip.MustParseAddr("198.51.100.7")    //nolint:gochecknoglobals // a constant
	forged6 = netip.MustParseAddr("2001:db8::bad:1") //nolint:gochecknoglobals // a constant
)

func newScene(o Options, w *witness, nonce string) (*scene, error) {
	s := &scene{network: o.Network, hostMAC: w.attacker.HardwareAddr, port: w.port, nonce: nonce}
	for name, to := range map[string]*vps.NetworkGuest{o.Attacker: &s.attacker, o.Victim: &s.victim} {
		g := guestOf(o.Network, name)
		if g == nil {
			return nil, vps.Errorf(vps.CodeInternal, "the network has no guest %s", name)
		}
		*to = *g
	}
	s.own, s.other = vps.Address6(s.attacker.Prefix6), vps.Address6(s.victim.Prefix6)
	s.ownLocal, s.otherLocal = vps.LinkLocal6(s.attacker.MAC), vps.LinkLocal6(s.victim.MAC)
	for _, name := range o.Uplinks {
		link, err := net.InterfaceByName(name)
		if err != nil {
			continue // gone since
		}
		addresses, err := link.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", name, err)
		}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				s.ownedBy(p.Addr())
			}
		}
	}
	s.outside = len(o.Uplinks) > 0 && routed(nobody)
	s.outside6 = len(o.Uplinks) > 0 && s.own.IsValid() && routed(nobody6)
	return s, nil
}

// ownedBy notes an address of the host's.
func (s *scene) ownedBy(a netip.Addr) {
	switch {
	case a.Is4() && !s.public.IsValid():
		s.public = a
	case a.Is6() && a.IsGlobalUnicast() && !s.public6.IsValid():
		s.public6 = a
	}
}

// prefix begins every marker of this audit's attacks.
func (s *scene) prefix() []byte { return []byte("sublet-audit-" + s.nonce) }

// mark is a text that is in no other frame. Its length is a multiple of 8
// bytes, so that fragments may be cut behind it.
func (s *scene) mark(name string) []byte {
	b := append(s.prefix(), ("/" + name + ".")...)
	for len(b)%8 != 0 {
		b = append(b, '.')
	}
	return b
}

// attacks returns all of them: frames, IPv4, IPv6, and at last those that
// exhaust the attacker's own limits.
func (s *scene) attacks() []Attack {
	s.list = nil
	s.controls()
	s.frameAttacks()
	s.arpAttacks()
	s.sourceAttacks()
	s.speechAttacks()
	s.reachAttacks()
	s.sourceAttacks6()
	s.neighbourAttacks6()
	s.speechAttacks6()
	s.reachAttacks6()
	s.floods()
	return s.list
}

// byKernel is the reason of what the kernel drops by itself, before or behind
// the wall.
const byKernel vps.DropReason = ""

// add adds an attack and returns it for what else there is to say about it.
// make gets the marker.
func (s *scene) add(name string, reason vps.DropReason, what string, make func(mark []byte) [][]byte) *Attack {
	a := Attack{Name: name, What: what, marker: s.mark(name)}
	if reason != byKernel {
		a.Reasons = []vps.DropReason{reason}
	}
	a.frames = make(a.marker)
	s.list = append(s.list, a)
	return &s.list[len(s.list)-1]
}

// reason6 is the reason why something of IPv6 is dropped: a guest without an
// address of IPv6 has no source that is its own.
func (s *scene) reason6(r vps.DropReason) vps.DropReason {
	if !s.own.IsValid() {
		return vps.DropSpoofed
	}
	return r
}

// to4 and to6 return a frame of the attacker's to the host that holds a packet.
func (s *scene) to4(packet []byte) []byte { return ether(s.hostMAC, s.attacker.MAC, typeIPv4, packet) }

func (s *scene) to6(packet []byte) []byte { return ether(s.hostMAC, s.attacker.MAC, typeIPv6, packet) }

// one is a single frame.
func one(frame []byte) [][]byte { return [][]byte{frame} }

// each makes frames of packets.
func each(packets [][]byte, frame func([]byte) []byte) [][]byte {
	frames := make([][]byte, 0, len(packets))
	for _, p := range packets {
		frames = append(frames, frame(p))
	}
	return frames
}

// datagram is a UDP packet of the attacker's, or of whoever is named as its
// source.
func datagram(from, to netip.Addr, sport, dport uint16, mark []byte) []byte {
	if from.Is4() {
		return packet4{from: from, to: to, proto: protoUDP}.bytes(udp(from, to, sport, dport, mark))
	}
	return packet6(from, to, protoUDP, udp(from, to, sport, dport, mark))
}

// segment is the same for TCP.
func segment(from, to netip.Addr, sport, dport uint16, flags byte, mark []byte) []byte {
	if from.Is4() {
		return packet4{from: from, to: to, proto: protoTCP}.bytes(tcp(from, to, sport, dport, flags, mark))
	}
	return packet6(from, to, protoTCP, tcp(from, to, sport, dport, flags, mark))
}
