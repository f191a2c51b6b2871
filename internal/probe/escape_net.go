//go:build linux

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func networkAttempts() []try {
	return []try{
		{"daemon-socket", "connect to the daemon's socket", dialer(func(a *attacker) string { return a.Socket })},
		{"keeper-socket", "connect to the keeper's socket", dialer(func(a *attacker) string { return a.KeeperSock })},
		{"victim-sockets", "connect to another guest's sockets", victimSockets},
		{"system-sockets", "connect to the host's well-known sockets", systemSockets},
		{"abstract-sockets", "connect to sockets of the host that have no file", abstractSockets},
		{"raw-socket", "open raw sockets", sockets(
			socket{"raw IPv4", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
			socket{"raw IPv6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
			socket{"raw IPv4 with its header", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW})},
		{"packet-socket", "open packet sockets, which hear and send all frames of the host", sockets(
			socket{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0x0300},
			socket{"packet without header", unix.AF_PACKET, unix.SOCK_DGRAM, 0x0300},
			socket{"old packet", unix.AF_INET, unix.SOCK_PACKET, 0x0300})},
		{"netlink-socket", "open netlink sockets: links, routes, the firewall, the audit log, devices", sockets(
			socket{"route", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
			socket{"netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
			socket{"audit", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT},
			socket{"socket diagnosis", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG},
			socket{"generic", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC},
			socket{"device events", unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_KOBJECT_UEVENT},
			socket{"IPsec", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM})},
		{"odd-sockets", "open sockets of kinds that few look at", sockets(oddSockets()...)},
		{"inet-socket", "open sockets of IPv4 and IPv6", sockets(inetSockets()...)},
		{"inet-connect", "connect to the host by TCP", connectHost},
		{"inet-send", "send to the host by UDP and ping", sendHost},
		{"inet-listen", "listen on ports of the host", listenHost},
		{"victim-tap", "attach to another guest's link", victimTap},
		{"new-tap", "make a link of its own", newTap},
		{"own-tap-settings", "change the owner, life and hardware address of its own link", ownTapSettings},
		{"link-settings", "change links, addresses and routes by ioctl", linkSettings},
	}
}

type socket struct {
	name                   string
	family, kind, protocol int
}

func (s socket) open() (int, error) {
	return unix.Socket(s.family, s.kind|unix.SOCK_CLOEXEC, s.protocol)
}

func sockets(kinds ...socket) func(*attacker, *trail) error {
	return func(_ *attacker, t *trail) error {
		for _, k := range kinds {
			fd, err := k.open()
			if t.worked(k.name, err) {
				closeFD(fd)
			}
		}
		return nil
	}
}

// oddSockets are families that have had many holes and that no guest needs.
func oddSockets() []socket {
	var l []socket
	for family := range unix.AF_MAX {
		switch family {
		case unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_UNSPEC:
			continue
		}
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			l = append(l, socket{fmt.Sprintf("family %d kind %d", family, kind), family, kind, 0})
		}
	}
	return l
}

func inetSockets() []socket {
	var l []socket
	for name, family := range map[string]int{"IPv4": unix.AF_INET, "IPv6": unix.AF_INET6} {
		icmp := unix.IPPROTO_ICMP
		if family == unix.AF_INET6 {
			icmp = unix.IPPROTO_ICMPV6
		}
		l = append(l,
			socket{"TCP over " + name, family, unix.SOCK_STREAM, 0},
			socket{"UDP over " + name, family, unix.SOCK_DGRAM, 0},
			socket{"MPTCP over " + name, family, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
			socket{"SCTP over " + name, family, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP},
			socket{"UDP-Lite over " + name, family, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
			socket{"ping over " + name, family, unix.SOCK_DGRAM, icmp})
	}
	return l
}

// addresses are ways to name the host's port: as given, by loopback, and the
// same in IPv6.
func (a *attacker) addresses() []netip.AddrPort {
	hosts := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), netip.AddrFrom4([4]byte{})}
	if a.Host.IsValid() {
		hosts = append([]netip.Addr{a.Host, netip.AddrFrom16(a.Host.As16())}, hosts...)
	}
	var l []netip.AddrPort
	for _, h := range hosts {
		l = append(l, netip.AddrPortFrom(h, a.HostPort))
	}
	return l
}

func sockaddr(to netip.AddrPort) (unix.Sockaddr, int) {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}, unix.AF_INET6
}

// answerTime is how long a connection may take, in milliseconds: the host is
// at the other end of no cable.
const answerTime = 1000

func connectHost(a *attacker, t *trail) error {
	for _, to := range a.addresses() {
		address, family := sockaddr(to)
		for name, protocol := range map[string]int{"TCP": unix.IPPROTO_TCP, "MPTCP": unix.IPPROTO_MPTCP} {
			way := fmt.Sprintf("%s to %s", name, to)
			fd, err := socket{way, family, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, protocol}.open()
			if err != nil {
				t.refused(way, err)
				continue
			}
			err = connected(fd, address)
			closeFD(fd)
			// A refusal comes from the other side: the packet went through.
			t.permitted("connecting by "+way, err, unix.ECONNREFUSED)
		}
	}
	return nil
}

func connected(fd int, address unix.Sockaddr) error {
	err := unix.Connect(fd, address)
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(poll, answerTime)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		break
	}
	value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && value != 0 {
		err = unix.Errno(value)
	}
	return err
}

func sendHost(a *attacker, t *trail) error {
	// An echo request; the kernel fills in the rest.
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 1}
	for _, to := range a.addresses() {
		address, family := sockaddr(to)
		kinds := []socket{{"UDP", family, unix.SOCK_DGRAM, 0}}
		if family == unix.AF_INET {
			kinds = append(kinds, socket{"ping", family, unix.SOCK_DGRAM, unix.IPPROTO_ICMP})
		}
		for _, k := range kinds {
			way := fmt.Sprintf("%s to %s", k.name, to)
			fd, err := k.open()
			if err != nil {
				t.refused(way, err)
				continue
			}
			// A firewall's refusal comes back at once, as EPERM.
			err = unix.Sendto(fd, echo, unix.MSG_DONTWAIT, address)
			closeFD(fd)
			t.worked("sending by "+way, err)
		}
	}
	return nil
}

func listenHost(_ *attacker, t *trail) error {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, port := range []uint16{0, 53, 80} {
			address, family := sockaddr(netip.AddrPortFrom(any, port))
			fd, err := socket{"", family, unix.SOCK_STREAM, 0}.open()
			if err == nil {
				if err = unix.Bind(fd, address); err == nil {
					err = unix.Listen(fd, 1)
				}
				closeFD(fd)
			}
			t.worked(fmt.Sprintf("listening on %s port %d", any, port), err)
		}
	}
	return nil
}

// unixTypes are the kinds of local sockets: connecting with a wrong one fails
// before the rights are looked at.
var unixTypes = []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM}

// dialUnix connects to a local socket and leaves at once. An abstract name
// begins with an @.
func dialUnix(t *trail, shown, path string) {
	for _, kind := range unixTypes {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.refused("a local socket", err)
			return
		}
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		closeFD(fd)
		if errors.Is(err, unix.EPROTOTYPE) {
			continue // the socket is there, and of another kind
		}
		// A queue that is full is one that may be waited in; nobody who listens
		// is a right all the same, but there is nobody.
		t.permitted("connecting to "+shown, err, unix.EAGAIN)
		return
	}
}

func (a *attacker) dial(t *trail, path string) {
	if path == "" {
		return
	}
	dialUnix(t, path, path)
	if strings.HasPrefix(path, "@") {
		return
	}
	for _, p := range a.processes() {
		dialUnix(t, "/proc/"+p+"/root"+path, "/proc/"+p+"/root"+path)
	}
	for _, w := range a.ways() {
		fd, err := w.open(path, unix.O_PATH)
		if err != nil {
			t.refused(path+" by "+w.name, err)
			continue
		}
		dialUnix(t, path+" by "+w.name, "/proc/self/fd/"+strconv.Itoa(fd))
		closeFD(fd)
	}
}

func dialer(path func(*attacker) string) func(*attacker, *trail) error {
	return func(a *attacker, t *trail) error {
		a.dial(t, path(a))
		return nil
	}
}

func victimSockets(a *attacker, t *trail) error {
	if a.VictimRun == "" {
		return nil
	}
	a.dial(t, a.VictimRun)
	_ = filepath.WalkDir(a.VictimRun, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type()&os.ModeSocket != 0 {
			a.dial(t, path)
		}
		return nil
	})
	return nil
}

func systemSockets(a *attacker, t *trail) error {
	for _, p := range []string{
		"/run/systemd/private", "/run/systemd/journal/stdout", "/run/systemd/notify", "/run/dbus/system_bus_socket", "/run/udev/control",
		"/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/libvirt/libvirt-sock", "/run/nscd/socket",
		"/dev/log", "/tmp/.X11-unix/X0", "/run/acpid.socket", "/run/rpcbind.sock",
	} {
		a.dial(t, p)
	}
	return nil
}

// mostGuesses bounds how many names are tried of those that the kernel gives
// to sockets without one: five digits of hexadecimal.
const mostGuesses = 4096

func abstractSockets(a *attacker, t *trail) error {
	names := map[string]bool{"@/tmp/.X11-unix/X0": true, "@/org/kernel/linux/storage/multipathd": true, "@ISCSIADM_ABSTRACT_NAMESPACE": true}
	for _, p := range a.processes() {
		list, err := os.ReadFile("/proc/" + p + "/net/unix")
		if err != nil {
			t.refused("/proc/"+p+"/net/unix", err)
		}
		for line := range strings.Lines(string(list)) {
			if _, name, ok := strings.Cut(line, " @"); ok {
				names["@"+strings.TrimRight(name, "\n")] = true
			}
		}
	}
	for name := range names {
		dialUnix(t, name, name)
	}
	for i := range mostGuesses {
		dialUnix(t, "a name that the kernel gives", fmt.Sprintf("@%05x", i))
	}
	return nil
}

// tunRequest is struct ifreq: a name, and what the call wants after it.
type tunRequest struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

func request(name string) *tunRequest {
	r := &tunRequest{}
	copy(r.name[:unix.IFNAMSIZ-1], name)
	return r
}

func (r *tunRequest) flags(f uint16) *tunRequest {
	*(*uint16)(unsafe.Pointer(&r.data)) = f
	return r
}

func ioctl(fd int, what uintptr, r *tunRequest) error {
	_, err := call(unix.SYS_IOCTL, fd, what, pointer(r))
	return err
}

const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI

// tunDevice opens the device that makes links, wherever it is found.
func tunDevice(t *trail) (int, bool) {
	for _, p := range []string{"/dev/net/tun", "/dev/tun", "/proc/1/root/dev/net/tun"} {
		fd, err := unix.Open(p, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			return fd, true
		}
		t.refused(p, err)
	}
	return -1, false
}

func attach(t *trail, name string, flags ...uint16) {
	for _, f := range flags {
		fd, ok := tunDevice(t)
		if !ok {
			return
		}
		err := ioctl(fd, unix.TUNSETIFF, request(name).flags(f))
		closeFD(fd)
		// Whether somebody else has it is asked after the rights were found good.
		t.permitted(fmt.Sprintf("attaching to %q with flags %#x", name, f), err, unix.EBUSY)
	}
}

func victimTap(a *attacker, t *trail) error {
	if a.VictimTap == "" {
		return nil
	}
	attach(t, a.VictimTap, tapFlags, tapFlags|unix.IFF_MULTI_QUEUE, tapFlags|unix.IFF_VNET_HDR, unix.IFF_TUN|unix.IFF_NO_PI)
	return nil
}

func newTap(_ *attacker, t *trail) error {
	// A link that is made this way is down, and gone with its descriptor.
	attach(t, "slprobe%d", tapFlags, unix.IFF_TUN|unix.IFF_NO_PI)
	return nil
}

// ownTapSettings changes its own link to what it is already.
func ownTapSettings(a *attacker, t *trail) error {
	if a.OwnTap == "" {
		return nil
	}
	fd, ok := tunDevice(t)
	if !ok {
		return nil
	}
	defer closeFD(fd)
	// With the flags that the kernel of a guest takes, else with fewer.
	err := ioctl(fd, unix.TUNSETIFF, request(a.OwnTap).flags(tapFlags|unix.IFF_VNET_HDR))
	if err != nil {
		err = ioctl(fd, unix.TUNSETIFF, request(a.OwnTap).flags(tapFlags))
	}
	if err != nil {
		t.refused("attaching to its own link", err)
		return nil
	}
	_, err = call(unix.SYS_IOCTL, fd, unix.TUNSETPERSIST, 1)
	t.worked("TUNSETPERSIST", err)
	_, err = call(unix.SYS_IOCTL, fd, unix.TUNSETOWNER, os.Getuid())
	t.worked("TUNSETOWNER", err)
	r := request(a.OwnTap)
	if err = ioctl(fd, unix.SIOCGIFHWADDR, r); err == nil {
		err = ioctl(fd, unix.SIOCSIFHWADDR, r)
	}
	t.worked("setting the hardware address on the link's own descriptor", err)
	return nil
}

// linkSettings sets what is set already. Any socket will do, a local one too.
func linkSettings(a *attacker, t *trail) error {
	for _, family := range []int{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.refused("a socket", err)
			continue
		}
		for _, link := range []string{a.OwnTap, a.VictimTap, "lo", "eth0"} {
			if link == "" {
				continue
			}
			for _, c := range []struct {
				name     string
				get, set uintptr
			}{
				{"flags", unix.SIOCGIFFLAGS, unix.SIOCSIFFLAGS},
				{"MTU", unix.SIOCGIFMTU, unix.SIOCSIFMTU},
				{"hardware address", unix.SIOCGIFHWADDR, unix.SIOCSIFHWADDR},
				{"queue length", unix.SIOCGIFTXQLEN, unix.SIOCSIFTXQLEN},
			} {
				if c.set == unix.SIOCSIFHWADDR && link == "eth0" {
					continue // some cards start anew even for the address they have
				}
				r := request(link)
				if err := ioctl(fd, c.get, r); err != nil {
					t.refused("asking for the "+c.name+" of "+link, err)
					continue
				}
				t.worked("setting the "+c.name+" of "+link, ioctl(fd, c.set, r))
			}
		}
		// No such link: what is asked after the rights.
		t.permitted("removing an address", ioctl(fd, unix.SIOCDIFADDR, request("slprobe-none")), unix.ENODEV)
		t.permitted("adding to a bridge", ioctl(fd, unix.SIOCBRADDIF, request("slprobe-none")), unix.ENODEV)
		closeFD(fd)
	}
	return nil
}
