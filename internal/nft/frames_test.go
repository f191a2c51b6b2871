//go:build linux

package nft_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// Ethernet's types and IP's protocols (IEEE, IANA).
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100
	typeQinQ = 0x88a8

	hopByHop    = 0
	protoICMP   = 1
	protoIGMP   = 2
	protoTCP    = 6
	protoUDP    = 17
	routing     = 43
	fragmented  = 44
	authentic   = 51
	protoICMP6  = 58
	destination = 60

	routerSolicit = 133
	routerAdvert  = 134
	solicitation  = 135
	advertisement = 136
	redirect6     = 137
	mldQuery      = 130
	mldReport     = 131
	mld2Report    = 143

	moreFragments = 0x2000
)

var (
	everybody = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	limited   = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	none4     = netip.IPv4Unspecified()
	none6     = netip.IPv6Unspecified()
	allNodes  = netip.MustParseAddr("ff02::1")
	mldRouter = netip.MustParseAddr("ff02::16")
)

func joined(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func word16(b []byte, v ...uint16) []byte {
	for _, v := range v {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// ether is a frame, filled up to the shortest that Ethernet knows.
func ether(to, from net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	b := append(word16(joined(to, from), kind), joined(payload...)...)
	return append(b, make([]byte, max(0, 60-len(b)))...)
}

// checksum is that of RFC 1071, over all parts; only the last may be odd.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// packet4 is an IPv4 packet (RFC 791).
type packet4 struct {
	from, to  netip.Addr
	proto     byte
	id, where uint16 // where: flags and offset as in the header
	options   []byte // whole words
}

func (p packet4) of(payload ...[]byte) []byte {
	body := joined(payload...)
	b := []byte{0x40 | byte(5+len(p.options)/4), 0}
	b = word16(b, uint16(20+len(p.options)+len(body)), p.id, p.where)
	b = joined(b, []byte{64, p.proto, 0, 0}, p.from.AsSlice(), p.to.AsSlice(), p.options)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, body...)
}

// cut returns the packet in two fragments, the second from at on.
func (p packet4) cut(payload []byte, at int) [][]byte {
	first, second := p, p
	first.where, second.where = moreFragments, uint16(at/8)
	return [][]byte{first.of(payload[:at]), second.of(payload[at:])}
}

// packet6 is an IPv6 packet (RFC 8200).
func packet6(from, to netip.Addr, next byte, payload ...[]byte) []byte {
	body := joined(payload...)
	b := word16([]byte{0x60, 0, 0, 0}, uint16(len(body)))
	return joined(b, []byte{next, 255}, from.AsSlice(), to.AsSlice(), body)
}

// options6 is a header of hop-by-hop or destination options with only room in it.
func options6(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// routing6 is a routing header of a kind that nobody knows and with no way left,
// which receivers skip (RFC 8200, section 4.4).
func routing6(next byte) []byte { return []byte{next, 0, 253, 0, 0, 0, 0, 0} }

// fragment6 is a fragment header; at is a multiple of 8 bytes.
func fragment6(next byte, at int, more bool, id uint16) []byte {
	where := uint16(at)
	if more {
		where |= 1
	}
	return word16([]byte{next, 0}, where, 0, id)
}

// cut6 returns a packet in two fragments, the second from at on.
func cut6(from, to netip.Addr, next byte, payload []byte, at int, id uint16) [][]byte {
	return [][]byte{
		packet6(from, to, fragmented, fragment6(next, 0, true, id), payload[:at]),
		packet6(from, to, fragmented, fragment6(next, at, false, id), payload[at:]),
	}
}

// pseudo is the header that upper layers of both versions sum up with theirs.
func pseudo(from, to netip.Addr, proto byte, length int) []byte {
	return word16(joined(from.AsSlice(), to.AsSlice()), uint16(proto), uint16(length))
}

func udp(from, to netip.Addr, sport, dport uint16, data ...[]byte) []byte {
	body := joined(data...)
	b := append(word16(nil, sport, dport, uint16(8+len(body)), 0), body...)
	binary.BigEndian.PutUint16(b[6:], checksum(pseudo(from, to, protoUDP, len(b)), b))
	return b
}

// syn begins a TCP connection; what follows its header is data.
func syn(from, to netip.Addr, sport, dport uint16, data ...[]byte) []byte {
	b := append(word16(nil, sport, dport, 1, 1, 0, 0, 5<<12|2, 0xffff, 0, 0), joined(data...)...)
	binary.BigEndian.PutUint16(b[16:], checksum(pseudo(from, to, protoTCP, len(b)), b))
	return b
}

// icmp is a message of RFC 792; rest is its header's second word.
func icmp(kind, code byte, rest uint32, data ...[]byte) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest), joined(data...)...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

func icmp6(from, to netip.Addr, kind byte, rest uint32, data ...[]byte) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{kind, 0, 0, 0}, rest), joined(data...)...)
	binary.BigEndian.PutUint16(b[2:], checksum(pseudo(from, to, protoICMP6, len(b)), b))
	return b
}

// hardware is the option of neighbour messages with a hardware address (RFC
// 4861, section 4.6.1): 1 for the source's, 2 for the target's.
func hardware(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

// nonce is the option of a solicitation that looks for a double (RFC 7527).
func nonce() []byte { return []byte{14, 1, 1, 2, 3, 4, 5, 6} }

// group is the hardware address of a multicast address (RFC 2464).
func group(a netip.Addr) net.HardwareAddr {
	b := a.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicited is the address that neighbours of an address listen on.
func solicited(a netip.Addr) netip.Addr {
	b, low := netip.MustParseAddr("ff02::1:ff00:0").As16(), a.As16()
	copy(b[13:], low[13:])
	return netip.AddrFrom16(b)
}

// aim returns what sends frames from a link of a namespace. All frames, of
// whatever sender, start from one processor, whose backlog is a queue: what was
// sent later arrives later, through cables and bridges too.
func aim(t *testing.T, ns *nstest.NS, link string) (shoot func(frames ...[]byte)) {
	t.Helper()
	var send func(frame []byte)
	ns.Do(func() { send = opened(t, link) })
	return func(frames ...[]byte) {
		t.Helper()
		var allowed, one unix.CPUSet
		if err := unix.SchedGetaffinity(os.Getpid(), &allowed); err != nil {
			t.Fatal(err)
		}
		for cpu := 0; one.Count() == 0; cpu++ {
			if allowed.IsSet(cpu) {
				one.Set(cpu)
			}
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // Never unlocked: the thread ends with the function.
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				done <- err
				return
			}
			for _, f := range frames {
				send(f)
			}
			done <- nil
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// ear hears what arrives at a link.
type ear struct {
	t    *testing.T
	file *os.File
	fd   int
	// deaf tells which frames are not heard; nil means none.
	deaf func(frame []byte) bool
}

func hear(t *testing.T, ns *nstest.NS, link string) *ear {
	t.Helper()
	e := &ear{t: t}
	ns.Do(func() {
		l, err := net.InterfaceByName(link)
		if err == nil {
			e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		}
		if err == nil {
			err = unix.Bind(e.fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8, Ifindex: l.Index})
		}
		if err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	e.file = os.NewFile(uintptr(e.fd), "ear")
	t.Cleanup(func() { _ = e.file.Close() })
	return e
}

// until returns the frames that came in before the one that holds the mark.
func (e *ear) until(mark []byte) [][]byte {
	e.t.Helper()
	var frames [][]byte
	buffer := make([]byte, 1<<16)
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, int(hang.After.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || ready == 0 {
			e.t.Fatalf("%q was not heard (%v); before it came %x", mark, err, frames)
		}
		n, from, err := unix.Recvfrom(e.fd, buffer, unix.MSG_DONTWAIT)
		if err != nil {
			continue
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if bytes.Contains(buffer[:n], mark) {
			return frames
		}
		if e.deaf != nil && e.deaf(buffer[:n]) {
			continue
		}
		frames = append(frames, slices.Clone(buffer[:n]))
	}
}

// stage is a world where one guest sends frames, and it is known what comes of
// them. No kernel says anything by itself there.
type stage struct {
	*world
	actor vps.NetworkGuest
	// act and answer send frames from the actor and from outside.
	act, answer func(frames ...[]byte)
	// call is a frame from the actor that the outside must hear.
	call   func(mark []byte) []byte
	public *ear
	// next is who the actor's frames are for, with an address of it.
	next       net.HardwareAddr
	next6      netip.Addr
	neighbours []neighbour
	calls      int
}

// neighbour is another guest, and a frame from outside that it must hear. That
// has as far to go as what the actor sends, so it cannot come first.
type neighbour struct {
	*ear
	call func(mark []byte) []byte
}

// scene is something that the actor does.
type scene struct {
	what   string
	frames [][]byte
	// reason is what is counted, empty when nothing is.
	reason vps.DropReason
	// out and over are how many frames the outside and all neighbours hear.
	out, over int
	// counted is how many packets the frames come to, 0 for one each.
	counted int
}

func drop(reason vps.DropReason, what string, frames ...[]byte) scene {
	return scene{what: what, frames: frames, reason: reason}
}

func pass(what string, frames ...[]byte) scene {
	return scene{what: what, frames: frames, out: len(frames)}
}

// play sends the frames of a scene and returns what the outside and the
// neighbours heard of them.
func (s *stage) play(frames ...[]byte) (out, over [][]byte) {
	s.t.Helper()
	s.calls++
	mark := fmt.Appendf(nil, "mark %06d.", s.calls)
	s.act(append(slices.Clip(frames), s.call(mark))...)
	for _, n := range s.neighbours {
		s.answer(n.call(mark))
		over = append(over, n.until(mark)...)
	}
	return s.public.until(mark), over
}

// run plays scenes and compares what was heard and counted. Counters are read
// once for all scenes of a reason, and for each only when that does not fit.
func (s *stage) run(scenes []scene) {
	s.t.Helper()
	byReason := map[vps.DropReason][]scene{}
	for _, c := range scenes {
		byReason[c.reason] = append(byReason[c.reason], c)
	}
	for _, reason := range slices.Sorted(maps.Keys(byReason)) {
		all := byReason[reason]
		if s.counts(reason, all) {
			continue
		}
		for _, c := range all {
			s.counts(reason, []scene{c})
		}
	}
}

// counts plays scenes of one reason, tells whether nothing else was counted, and
// of several only that.
func (s *stage) counts(reason vps.DropReason, scenes []scene) bool {
	s.t.Helper()
	before, want := s.drops(s.actor.Link), 0
	for _, c := range scenes {
		out, over := s.play(c.frames...)
		if len(out) != c.out {
			s.t.Errorf("%s: outside heard %d frames, want %d: %x", c.what, len(out), c.out, out)
		}
		if len(over) != c.over {
			s.t.Errorf("%s: neighbours heard %d frames, want %d: %x", c.what, len(over), c.over, over)
		}
		want += cmp.Or(c.counted, len(c.frames))
	}
	rose := map[vps.DropReason]int{}
	for r, n := range s.drops(s.actor.Link) {
		if n > before[r] {
			rose[r] = int(n - before[r])
		}
	}
	good := len(rose) == 0
	if reason != "" {
		// What is flooded is counted for each neighbour that did not get it.
		good = len(rose) == 1 && (rose[reason] == want || reason == vps.DropBetween && rose[reason] > want)
	}
	if !good && len(scenes) == 1 {
		s.t.Errorf("%s: dropped as %v, want %d as %q", scenes[0].what, rose, want, reason)
	}
	return good
}
