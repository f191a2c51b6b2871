package quic

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener is a socket on which callers are heard and answered.
type listener struct{ conn *net.UDPConn }

// source is a caller, with the way to answer it.
type source struct {
	address  netip.AddrPort
	listener listener
	// control makes the answer leave from the address that was called, on hosts
	// with several: ip(7), IP_PKTINFO, and ipv6(7), IPV6_PKTINFO.
	control [maxControl]byte
	size    int
}

// maxControl holds a header and an in6_pktinfo, the larger one.
const maxControl = unix.SizeofCmsghdr + 24

// reply sends a datagram to the caller, who may never get it.
func (s *source) reply(b []byte) {
	_, _, _ = s.listener.conn.WriteMsgUDPAddrPort(b, s.control[:s.size], s.address)
}

// setControl keeps of what came with a datagram what an answer needs.
func (s *source) setControl(oob []byte) {
	s.size = 0
	for len(oob) >= unix.SizeofCmsghdr {
		h, info, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(info) == unix.SizeofInet4Pktinfo
		v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(info) == unix.SizeofInet6Pktinfo
		if v4 || v6 {
			s.size = copy(s.control[:], oob[:min(unix.CmsgSpace(len(info)), len(oob))])
			// The route to the caller decides on the link, except for addresses
			// that mean something on their link only.
			kept := s.control[unix.CmsgLen(0):]
			if v4 {
				clear(kept[:4])
				copy(kept[4:8], kept[8:12]) // the address that was called is to answer
			} else if !netip.AddrFrom16([16]byte(kept[:16])).IsLinkLocalUnicast() {
				clear(kept[16:20])
			}
			return
		}
		oob = rest
	}
}

// prepare sets what a listening socket needs.
func (l listener) prepare() error {
	_ = l.conn.SetReadBuffer(socketBuffer) // as much as the host allows
	_ = l.conn.SetWriteBuffer(socketBuffer)
	return control(l.conn, func(fd int) error {
		v4 := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		v6 := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		if v4 != nil && v6 != nil {
			return errors.Join(v4, v6)
		}
		return neverFragment(fd)
	})
}

// neverFragment: datagrams of QUIC are not to be fragmented, and its ends find out
// by themselves how large they may be (RFC 9000, 14).
func neverFragment(fd int) error {
	v4 := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	v6 := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	if v4 != nil && v6 != nil {
		return errors.Join(v4, v6)
	}
	return nil
}

func control(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// unreachable tells whether an error of a connected socket says that nobody is
// there: ICMP told so, or a rule, or there is no way.
func unreachable(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}
