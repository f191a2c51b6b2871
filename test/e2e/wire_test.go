package e2e

import (
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// wire counts what passes a guest's link, by a socket of its own (packet(7)),
// as the ledger has to have it.
type wire struct {
	peers
	mu   sync.Mutex
	seen map[vps.TrafficKey]vps.TrafficCount
}

// peers are the addresses of a guest, of its host, and of other guests; all
// others are outside.
type peers struct{ own, host, guests []netip.Addr }

// watch begins to count, until the test ends. It is called inside of the
// network that the link is in.
func watch(t *testing.T, link string, who peers) *wire {
	t.Helper()
	w := &wire{peers: who, seen: map[vps.TrafficKey]vps.TrafficCount{}}
	device, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)) // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err == nil {
		// Room for all that the test sends, and an end to waiting.
		const room, pause = 32 << 20, 100_000
		err = errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: pause}))
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		frame := make([]byte, 128) // the headers
		for {
			select {
			case <-ended:
				return
			default:
			}
			// An error is of a link that goes, or that nothing came.
			if length, sender, err := unix.Recvfrom(fd, frame, unix.MSG_TRUNC); err == nil {
				w.count(frame, int64(length), sender)
			}
		}
	})
	t.Cleanup(func() {
		close(ended)
		reader.Wait()
		if s, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || s.Drops > 0 {
			t.Errorf("the test did not see all of the link: %+v, %v", s, err)
		}
		_ = unix.Close(fd)
	})
	return w
}

// count adds a frame: of IPv4 or IPv6 (RFC 791, RFC 8200) to its class, and any
// other to none.
func (w *wire) count(frame []byte, length int64, sender unix.Sockaddr) {
	var from, to netip.Addr
	key := vps.TrafficKey{}
	ip := frame[vps.FrameBytes:]
	switch binary.BigEndian.Uint16(frame[vps.FrameBytes-2:]) {
	case unix.ETH_P_IP:
		key.Family, from, to = 4, netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	case unix.ETH_P_IPV6:
		key.Family, from, to = 6, netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	default: // ARP, which the ledger does not have
	}
	link, _ := sender.(*unix.SockaddrLinklayer)
	incoming := link != nil && link.Pkttype == unix.PACKET_OUTGOING // out of the host
	c := vps.TrafficCount{OutBytes: length, OutPackets: 1}
	peer := to
	if incoming {
		peer, c = from, vps.TrafficCount{InBytes: length, InPackets: 1}
	}
	near := func(a netip.Addr) bool { return a.IsMulticast() || a.IsLinkLocalUnicast() }
	switch {
	case key.Family == 0:
	case !incoming && !slices.Contains(w.own, from) && !near(from):
		key.Class = vps.TrafficDropped
	case near(peer) || slices.Contains(w.host, peer):
		key.Class = vps.TrafficHost
	case slices.Contains(w.guests, peer):
		key.Class = vps.TrafficBetween
	default:
		key.Class = vps.TrafficInternet
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[key] = w.seen[key].Add(c)
}

// counts are what has passed since watch.
func (w *wire) counts() map[vps.TrafficKey]vps.TrafficCount {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.seen)
}
