package guestinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/seed"
)

// setNetwork brings the loopback and the seed's card up, and gives the card
// its address and routes. What is there already is fine. It leaves names as
// they are.
func setNetwork(sysDir string, s seed.Seed) error {
	name, index, err := findCard(sysDir, s.MAC)
	if err != nil {
		return err
	}
	conn, err := dialRoute()
	if err != nil {
		return err
	}
	defer conn.close()
	lo, err := linkIndex(sysDir, "lo")
	if err != nil {
		return err
	}
	if s.Address6.IsValid() {
		// The host gives the guest its address; nobody else's word counts.
		quiet(sysctl6Dir, name)
	}
	for _, m := range networkMessages(lo, index, s) {
		if err := conn.do(m); err != nil {
			return fmt.Errorf("%s of %s: %w", m.what, name, err)
		}
	}
	return nil
}

// findCard returns the link with this hardware address, from
// /sys/class/net/*/address.
func findCard(sysDir string, mac seed.MAC) (name string, index uint32, err error) {
	files, err := filepath.Glob(filepath.Join(sysDir, "class/net/*/address"))
	if err != nil {
		return "", 0, err
	}
	var seen []string
	for _, file := range files {
		name := filepath.Base(filepath.Dir(file))
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		address := strings.TrimSpace(string(text))
		if address == mac.String() {
			index, err := linkIndex(sysDir, name)
			return name, index, err
		}
		seen = append(seen, name+" "+address)
	}
	return "", 0, fmt.Errorf("no network card has the address %s; there are: %s", mac, strings.Join(seen, ", "))
}

func linkIndex(sysDir, name string) (uint32, error) {
	text, err := os.ReadFile(filepath.Join(sysDir, "class/net", name, "ifindex"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	return uint32(n), err
}

// routeMessage is one request of rtnetlink(7), without its nlmsghdr.
type routeMessage struct {
	what  string
	kind  uint16
	flags uint16
	body  []byte
}

// networkMessages returns the requests that set a guest's network up. The
// layouts are struct ifinfomsg, ifaddrmsg and rtmsg of linux/rtnetlink.h and
// linux/if_addr.h, in the byte order of the machine.
func networkMessages(lo, card uint32, s seed.Seed) []routeMessage {
	const create = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	messages := []routeMessage{
		{"bring up the loopback", unix.RTM_NEWLINK, 0, linkUp(lo, 0)},
		{"bring up the card", unix.RTM_NEWLINK, 0, linkUp(card, s.MTU)},
		{"set the address", unix.RTM_NEWADDR, create, address(card, s.Address)},
		{"set the route to the gateway", unix.RTM_NEWROUTE, create, route(card, s.Gateway, true)},
		{"set the default route", unix.RTM_NEWROUTE, create, route(card, s.Gateway, false)},
	}
	if s.Address6.IsValid() {
		messages = append(messages,
			routeMessage{"set the IPv6 address", unix.RTM_NEWADDR, create, address(card, s.Address6)},
			routeMessage{"set the IPv6 default route", unix.RTM_NEWROUTE, create, route(card, s.Gateway6, false)})
	}
	return messages
}

// sysctl6Dir has a folder for each link (the kernel's ip-sysctl documentation).
const sysctl6Dir = "/proc/sys/net/ipv6/conf"

// quiet makes a card take no router's word for addresses and routes. A kernel
// without the setting needs none.
func quiet(dir, card string) {
	for _, name := range []string{"accept_ra", "autoconf", "accept_redirects"} {
		_ = os.WriteFile(filepath.Join(dir, card, name), []byte("0"), 0o644) //nolint:gosec // A kernel's file: the mode is the kernel's.
	}
}

func linkUp(index uint32, mtu int) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg+8)
	b = append(b, unix.AF_UNSPEC, 0, 0, 0) // family, padding, type
	b = binary.NativeEndian.AppendUint32(b, index)
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP) // flags
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP) // which flags to change
	if mtu > 0 {
		b = attribute(b, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu)))
	}
	return b
}

func linkDown(index uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, index)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return binary.NativeEndian.AppendUint32(b, unix.IFF_UP)
}

func address(index uint32, a netip.Addr) []byte {
	b := []byte{family(a), byte(a.BitLen()), 0, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, index)
	b = attribute(b, unix.IFA_LOCAL, a.AsSlice())
	b = attribute(b, unix.IFA_ADDRESS, a.AsSlice())
	if a.Is6() {
		// Nobody else is on the link, so looking for a duplicate is idle.
		b = attribute(b, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, unix.IFA_F_NODAD))
	}
	return b
}

// route makes the on-link route to the gateway itself, or the default route
// through it, which is told that the gateway is on the link.
func route(index uint32, gateway netip.Addr, direct bool) []byte {
	bits, scope, flags := byte(0), byte(unix.RT_SCOPE_UNIVERSE), uint32(unix.RTNH_F_ONLINK)
	if direct {
		bits, scope, flags = byte(gateway.BitLen()), unix.RT_SCOPE_LINK, 0
	}
	b := []byte{family(gateway), bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST}
	b = binary.NativeEndian.AppendUint32(b, flags)
	if direct {
		b = attribute(b, unix.RTA_DST, gateway.AsSlice())
	} else {
		b = attribute(b, unix.RTA_GATEWAY, gateway.AsSlice())
	}
	return attribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// attribute appends a struct rtattr with its value, padded to 4 bytes.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// routeConn is a socket of rtnetlink(7).
type routeConn struct {
	fd  int
	seq uint32
}

func dialRoute() (*routeConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// The kernel answers within the call; the limit is against surprises.
	limit := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &routeConn{fd: fd}, nil
}

func (c *routeConn) close() { _ = unix.Close(c.fd) }

// do sends one request and waits for its acknowledgement.
func (c *routeConn) do(m routeMessage) error {
	c.seq++
	b := make([]byte, 0, unix.NLMSG_HDRLEN+len(m.body))
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(m.body)))
	b = binary.NativeEndian.AppendUint16(b, m.kind)
	b = binary.NativeEndian.AppendUint16(b, m.flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.body...)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var reply [4096]byte
	for {
		n, _, err := unix.Recvfrom(c.fd, reply[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := acknowledged(reply[:n], c.seq); done {
			return err
		}
	}
}

// acknowledged looks for the answer to request seq: a struct nlmsgerr with
// zero or a negative errno behind the header.
func acknowledged(reply []byte, seq uint32) (bool, error) {
	if len(reply) < unix.NLMSG_HDRLEN+4 ||
		binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR ||
		binary.NativeEndian.Uint32(reply[8:]) != seq {
		return false, nil
	}
	code := int32(binary.NativeEndian.Uint32(reply[unix.NLMSG_HDRLEN:]))
	if code == 0 {
		return true, nil
	}
	return true, unix.Errno(-code)
}
