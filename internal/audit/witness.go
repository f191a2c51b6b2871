//go:build linux

package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// witness hears what happens on the host: every frame that leaves by any of
// its links, what comes in by the attacker's, and datagrams to sockets of its
// own.
type witness struct {
	attacker net.Interface
	frames   *os.File
	names    map[int]string
	// port is where the host listens, UDP and TCP, on all addresses.
	port    uint16
	closers []func() error

	mu     sync.Mutex
	marker []byte          // of the attack
	heard  map[string]bool // of the attack, for people
	fenced chan struct{}
	mark   []byte // of the fence
}

// How it is said what was heard.
const (
	leftBy       = "left by "
	hostHeard    = "the host heard it"
	hostAnswered = "the host answered"
	victimHeard  = "the victim heard it"
)

// heardFrame is how much of a frame is looked at: every header and the marker.
const heardFrame = 256

// room is the buffer for frames that were not read yet.
const room = 8 << 20

func witnesses(ctx context.Context, o Options) (w *witness, err error) {
	g := guestOf(o.Network, o.Attacker)
	if g == nil {
		return nil, vps.Errorf(vps.CodeInternal, "the network has no guest %s", o.Attacker)
	}
	link, err := net.InterfaceByName(g.Link)
	if err != nil {
		return nil, fmt.Errorf("find the attacker's link: %w", err)
	}
	w = &witness{attacker: *link, names: map[int]string{}, heard: map[string]bool{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		w.names[l.Index] = l.Name
	}
	if err := w.listen(ctx, o.Network); err != nil {
		return nil, err
	}
	return w, w.sniff()
}

func guestOf(n vps.Network, name string) *vps.NetworkGuest {
	i := slices.IndexFunc(n.Guests, func(g vps.NetworkGuest) bool { return g.Name == name })
	if i < 0 {
		return nil
	}
	return &n.Guests[i]
}

func (w *witness) close() {
	for _, c := range w.closers {
		_ = c()
	}
}

// sniff opens a socket for all frames (packet(7)).
func (w *witness) sniff() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a socket for frames: %w", err)
	}
	w.frames = os.NewFile(uintptr(fd), "frames")
	w.closers = append(w.closers, w.frames.Close)
	// Best effort; what did not fit is counted by the kernel.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room)
	if err := w.filter(fd); err != nil {
		return fmt.Errorf("filter frames: %w", err)
	}
	// In network byte order, from now on.
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
		return fmt.Errorf("listen on all links: %w", err)
	}
	go w.hearFrames()
	return nil
}

// filter lets through what leaves, and what comes in from the attacker.
func (w *witness) filter(fd int) error {
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 2},
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(w.attacker.Index), SkipTrue: 1},
		bpf.RetConstant{Val: heardFrame},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, 0, len(program))
	for _, i := range program {
		filter = append(filter, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// hearFrames reads until the socket is closed.
func (w *witness) hearFrames() {
	raw, err := w.frames.SyscallConn()
	if err != nil {
		return
	}
	buffer := make([]byte, heardFrame)
	for {
		var n int
		var from unix.Sockaddr
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failure = unix.Recvfrom(int(fd), buffer, 0)
			return !errors.Is(failure, unix.EAGAIN)
		})
		if err != nil || (failure != nil && !errors.Is(failure, unix.EINTR) && !errors.Is(failure, unix.ENETDOWN)) {
			return
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && failure == nil {
			w.frame(a, buffer[:n])
		}
	}
}

func (w *witness) frame(from *unix.SockaddrLinklayer, frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	leaves := from.Pkttype == unix.PACKET_OUTGOING
	switch {
	case !leaves && w.mark != nil && bytes.Contains(frame, w.mark):
		close(w.fenced)
		w.mark = nil
	case !leaves || w.marker == nil || !bytes.Contains(frame, w.marker):
	case from.Ifindex == w.attacker.Index:
		w.heard[hostAnswered] = true
	case from.Hatype == unix.ARPHRD_LOOPBACK:
	default:
		name := w.names[from.Ifindex]
		if name == "" {
			name = fmt.Sprintf("link %d", from.Ifindex)
		}
		w.heard[leftBy+name] = true
	}
}

// watch forgets what was heard and listens for a marker.
func (w *witness) watch(marker []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marker = marker
	clear(w.heard)
}

// fence returns a channel that is closed when the attacker's frame with the
// mark comes in.
func (w *witness) fence(mark []byte) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mark, w.fenced = mark, make(chan struct{})
	return w.fenced
}

// seen returns what was heard since watch.
func (w *witness) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := make([]string, 0, len(w.heard))
	for s := range w.heard {
		seen = append(seen, s)
	}
	return seen
}

// missed returns how many frames there was no room for.
func (w *witness) missed() (uint32, error) {
	raw, err := w.frames.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var failure error
	err = raw.Control(func(fd uintptr) {
		stats, failure = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(err, failure); err != nil {
		return 0, fmt.Errorf("ask for frames that were missed: %w", err)
	}
	return stats.Drops, nil
}

// believes tells whether the host has learnt that an address is behind the
// attacker's link.
func (w *witness) believes(a netip.Addr) (bool, error) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := netlink.NeighList(w.attacker.Index, family)
	if err != nil {
		return false, fmt.Errorf("list the host's neighbours: %w", err)
	}
	const known = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
	return slices.ContainsFunc(neighbours, func(n netlink.Neigh) bool {
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == a && n.State&known != 0
	}), nil
}

// listen opens a port of the host, the same for UDP and TCP, that is neither
// one of its open services nor leads to a guest.
func (w *witness) listen(ctx context.Context, n vps.Network) error {
	var lc net.ListenConfig
	const tries = 100
	var last error
	for range tries {
		packets, err := lc.ListenPacket(ctx, "udp", ":0")
		if err != nil {
			return fmt.Errorf("open a port for the audit: %w", err)
		}
		address, _ := packets.LocalAddr().(*net.UDPAddr)
		port := address.AddrPort().Port()
		var listener net.Listener
		if last = errors.New("every port is in use"); !open(n, port) {
			listener, last = lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
		}
		if last != nil {
			_ = packets.Close()
			continue
		}
		w.port = port
		w.closers = append(w.closers, packets.Close, listener.Close)
		go w.hearDatagrams(packets)
		return nil
	}
	return fmt.Errorf("find a port for the audit: %w", last)
}

// open tells whether guests may reach a port of the host.
func open(n vps.Network, port uint16) bool {
	leads := func(g vps.NetworkGuest) bool {
		return slices.ContainsFunc(g.Forwards, func(f vps.Forward) bool { return f.Host == port }) ||
			(port >= g.Ports.First && int(port) < int(g.Ports.First)+int(g.Ports.Count))
	}
	return slices.ContainsFunc(n.Services, func(s vps.Service) bool { return s.Port == port }) || slices.ContainsFunc(n.Guests, leads)
}

func (w *witness) hearDatagrams(packets net.PacketConn) {
	buffer := make([]byte, heardFrame)
	for {
		n, _, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		w.mu.Lock()
		if w.marker != nil && bytes.Contains(buffer[:n], w.marker) {
			w.heard[hostHeard] = true
		}
		w.mu.Unlock()
	}
}

// greet sends a marker to the victim and to the host's own port.
func (w *witness) greet(ctx context.Context, victim netip.Addr, marker []byte) error {
	const discard = 9 // RFC 863
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(victim, discard), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), w.port)} {
		conn, err := new(net.Dialer).DialContext(ctx, "udp", to.String())
		if err != nil {
			return fmt.Errorf("speak to %s: %w", to, err)
		}
		_, err = conn.Write(marker)
		// Somebody may have answered the one before that nobody listens.
		if err = errors.Join(err, conn.Close()); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("speak to %s: %w", to, err)
		}
	}
	return nil
}

// routed tells whether the host has a way to an address.
func routed(to netip.Addr) bool {
	const discard = 9
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard)))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
