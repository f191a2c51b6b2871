//go:build linux

// Package origin opens connections to guests in the name of their callers: the
// guest sees the caller's own address and port, and has nothing to set up for
// that. The process needs CAP_NET_RAW, and the host what internal/nft and
// internal/hostnet make for the edge's user id (vps.Network.EdgeUID): they bring
// the guest's answers, which are for the caller, to the socket.
//
// Whom to imitate is the edge's choice. Callers on the host itself and in guests'
// pools it does not: for an address of the host the kernel does nothing special,
// as the answers come to the host anyway; for an address in a pool the answers come
// to the socket as well, but the caller may have a connection of his own to the
// same port of the guest, of the same addresses and ports.
package origin

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Dialer opens connections. The zero value is ready for use, by many at a time.
type Dialer struct {
	// Patience is how long a guest may leave the first packet of a connection in
	// the caller's name unanswered before another port is tried; zero means one
	// second. It matters where the caller has a connection to the same port of the
	// guest that does not go by the edge, by a forwarded port or the guest's own
	// IPv6 address, and has the same port for both: the answers are his then.
	Patience time.Duration
}

// Dial opens a TCP connection to a guest. With a valid from the guest sees that
// caller: his address and port; when that port cannot be had (a connection of
// before is not over yet, or the port is one below 1024), his address and another
// port; when that cannot be either, the host's own address, as with a zero from.
// LocalAddr of the connection tells which. From cannot be an address that is not
// unicast, or is of the link or the loopback, or of another version of IP than to.
//
// A guest that does not answer its caller is not asked in the host's name: it may
// have shut that caller out.
//
// It blocks until the guest has answered or ctx ends, whose deadline is the only
// one when nothing answers. The connection has no keep-alive; TCP_NODELAY is on.
func (d Dialer) Dial(ctx context.Context, from, to netip.AddrPort) (*net.TCPConn, error) {
	return dial(ctx, d.patience(), from, to, func(ctx context.Context, d *net.Dialer, version string, from, to netip.AddrPort) (*net.TCPConn, error) {
		if from.IsValid() {
			return d.DialTCP(ctx, "tcp"+version, from, to)
		}
		conn, err := d.DialContext(ctx, "tcp"+version, to.String())
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	})
}

// DialUDP is Dial for UDP: it returns a socket that sends to the guest, and hears
// what the guest sends to the caller's address and port. It does not block, and
// nothing is sent by it.
func (d Dialer) DialUDP(ctx context.Context, from, to netip.AddrPort) (*net.UDPConn, error) {
	return dial(ctx, d.patience(), from, to, func(ctx context.Context, d *net.Dialer, version string, from, to netip.AddrPort) (*net.UDPConn, error) {
		if from.IsValid() {
			return d.DialUDP(ctx, "udp"+version, from, to)
		}
		conn, err := d.DialContext(ctx, "udp"+version, to.String())
		if err != nil {
			return nil, err
		}
		return conn.(*net.UDPConn), nil
	})
}

func (d Dialer) patience() time.Duration { return cmp.Or(d.Patience, time.Second) }

// Dialers of the three ways, from the caller's own port, from another port of his
// address, and from the host. Who relays a connection has limits of its own for
// silence, so that none needs keep-alive.
var (
	asCaller  = &net.Dialer{KeepAlive: -1, Control: control(false)} //nolint:gochecknoglobals // a constant
	asAddress = &net.Dialer{KeepAlive: -1, Control: control(true)}  //nolint:gochecknoglobals // a constant
	asHost    = &net.Dialer{KeepAlive: -1}                          //nolint:gochecknoglobals // a constant
)

// dial tries one way after the other, with open.
func dial[C any](ctx context.Context, patience time.Duration, from, to netip.AddrPort, open func(ctx context.Context, d *net.Dialer, version string, from, to netip.AddrPort) (C, error)) (C, error) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	version := "4"
	if to.Addr().Is6() {
		version = "6"
	}
	if !imitable(from, to) {
		return open(ctx, asHost, version, netip.AddrPort{}, to)
	}
	own, done := context.WithTimeout(ctx, patience)
	conn, err := open(own, asCaller, version, from, to)
	done()
	if err == nil || ctx.Err() != nil || !late(err) && !another(err) {
		return conn, err
	}
	if !errors.Is(err, unix.EPERM) {
		conn, err = open(ctx, asAddress, version, netip.AddrPortFrom(from.Addr(), 0), to)
		if err == nil || ctx.Err() != nil || !another(err) {
			return conn, err
		}
	}
	return open(ctx, asHost, version, netip.AddrPort{}, to)
}

// imitable tells whether a connection can come from an address and port.
func imitable(from, to netip.AddrPort) bool {
	a := from.Addr()
	return from.Port() != 0 && a.Is4() == to.Addr().Is4() && a.Zone() == "" && a.IsGlobalUnicast()
}

// late tells whether an error says that a deadline has passed.
func late(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// another tells whether an error says that it is the caller's address or port that
// cannot be had: taken, by a connection that is not over yet (EADDRNOTAVAIL) among
// others; privileged; none that a packet may come from; or no right to imitate
// anybody.
func another(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains([]syscall.Errno{unix.EADDRINUSE, unix.EADDRNOTAVAIL, unix.EACCES, unix.EINVAL, unix.EPERM}, errno)
}

// control returns what prepares a socket to be bound to somebody's address. With
// anyPort the port is chosen when it connects, so that all are free that have no
// connection to the same port of the same guest.
func control(anyPort bool) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if strings.HasSuffix(network, "6") {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		var err error
		controlled := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), level, option, 1); err != nil {
				return
			}
			if anyPort {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
				return
			}
			// A caller may have one port for several connections, to several guests.
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})
		return errors.Join(controlled, os.NewSyscallError("setsockopt", err))
	}
}
