package edge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// refusal is why a caller does not come to a guest.
type refusal struct {
	reason Reason
	cause  error // may be nil
}

func (r *refusal) Error() string {
	if r.cause == nil {
		return string(r.reason)
	}
	return string(r.reason) + ": " + r.cause.Error()
}

func (r *refusal) Unwrap() error { return r.cause }

// reasonOf is why err is, ReasonGuestLost for what is no refusal.
func reasonOf(err error) Reason {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	return ReasonGuestLost
}

// visit is one connection to a guest that a caller asks for.
type visit struct {
	// find looks up in a table where it goes, and to which port there. It is asked
	// again when the table changes while the guest is being started.
	find   func(*table) (*route, uint16)
	caller caller
	// waited is how long the guest has left the caller without an answer before.
	waited time.Duration
	// gone tells whether the caller has hung up; nil when ctx does.
	gone func() bool
}

// link is an open connection to a guest.
type link struct {
	*net.TCPConn
	route *route
	meter meter
	// header is of the PROXY protocol and goes first, nil when there is none.
	header []byte
	// as is set if the guest sees it come from the caller's own address.
	as bool
	// other is set if it took the guest's address of the second choice.
	other bool

	server *Server
	closed atomic.Bool
}

// Close closes the connection and gives back the guest's slot. It may be called
// again.
func (l *link) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	err := l.TCPConn.Close()
	l.meter.closed()
	l.server.leave(l.route.guest)
	return err
}

// reach connects to the guest, within its limits. A guest that does not run is
// started if the domain says so, and waited for. Errors are *refusal.
func (s *Server) reach(ctx context.Context, t *table, r *route, port uint16, v visit) (*link, error) {
	if why, ok := s.enter(r.guest, v.caller.from); !ok {
		return nil, &refusal{reason: why}
	}
	l, err := s.connect(ctx, t, r, port, v)
	if err != nil {
		s.leave(r.guest)
		return nil, err
	}
	l.meter.opened()
	return l, nil
}

func (s *Server) connect(ctx context.Context, t *table, r *route, port uint16, v visit) (*link, error) {
	held := r.guest
	var l *link
	var err error
	switch {
	case r.wakes(t, port, s.options.Wake != nil):
		l, err = s.awaken(ctx, t, r, v)
	case r.guest.Running:
		l, err = s.dial(ctx, t, r, port, &v)
	default:
		err = &refusal{reason: ReasonStopped}
	}
	if err != nil {
		return nil, err
	}
	if l.route.guest.state != held.state { // the name became another guest's meanwhile
		if why, ok := s.enter(l.route.guest, v.caller.from); !ok {
			_ = l.TCPConn.Close()
			return nil, &refusal{reason: why}
		}
		s.leave(held)
	}
	return l, nil
}

// wakes tells whether a call of one of the guest's ports starts it, if anybody can, or
// waits for it to have started.
func (r *route) wakes(t *table, port uint16, can bool) bool {
	return r.domain.Wake && can && (!r.guest.Running || r.guest.state.waker.woken(time.Now(), t, port))
}

// enter takes a slot of a guest for a caller, and a socket, or says why there is none.
func (s *Server) enter(g *guest, caller netip.AddrPort) (Reason, bool) {
	switch {
	case g.state.slots.Add(1) > int64(g.limits.Connections):
		g.state.slots.Add(-1)
		return ReasonGuestConnections, false
	case !g.state.rate.take(callerKey(caller.Addr()), time.Now(), g.limits.NewConnections):
		g.state.slots.Add(-1)
		return ReasonGuestRate, false
	case !s.sockets.take():
		g.state.slots.Add(-1)
		return ReasonServer, false
	}
	return "", true
}

func (s *Server) leave(g *guest) {
	g.state.slots.Add(-1)
	s.sockets.give()
}

// dialTimeout is how long a guest may take to answer. It is on the same host; its
// kernel takes connections at once or not at all.
const dialTimeout = 5 * time.Second

// dial connects to a guest as the domain says. Over the caller's own family it may be
// the caller who connects; a guest that takes nothing there, as it has no IPv6 or
// its server does not listen to it, is called by the host over the other.
func (s *Server) dial(ctx context.Context, t *table, r *route, port uint16, v *visit) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout-v.waited)
	defer cancel()
	c := v.caller
	header, err := proxyHeader(r.caller, c)
	if err != nil {
		return nil, &refusal{ReasonServer, err}
	}
	first, second := r.addresses(c.from.Addr())
	as := t.imitated(r, c.from, first)
	conn, err := s.options.Origin.Dial(ctx, as, netip.AddrPortFrom(first, port))
	other := err != nil && second.IsValid() && ctx.Err() == nil && !s.bans(ctx, as, netip.AddrPortFrom(first, port))
	if other {
		conn, err = s.options.Origin.Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(second, port))
	}
	if err != nil {
		return nil, &refusal{dialReason(err), err}
	}
	seen := as.IsValid() && addrPort(conn.LocalAddr()).Addr() == as.Addr()
	return &link{TCPConn: conn, route: r, meter: r.meter(), header: header, as: seen, other: other, server: s}, nil
}

// bans tells whether a guest that refused a caller takes others at the same place: it
// is this caller whom it does not want, and he does not come by another way.
func (s *Server) bans(ctx context.Context, caller, to netip.AddrPort) bool {
	if !caller.IsValid() {
		return false
	}
	conn, err := s.options.Origin.Dial(ctx, netip.AddrPort{}, to)
	if err != nil {
		return false
	}
	reset(conn)
	return true
}

// imitated is whom a connection to a guest's address comes from: the caller, or the
// zero value for the host.
func (t *table) imitated(r *route, from netip.AddrPort, to netip.Addr) netip.AddrPort {
	if r.caller == vps.CallerTransparent && t.imitable(from) && to.Is4() == from.Addr().Is4() {
		return from
	}
	return netip.AddrPort{}
}

// imitable tells whether a connection may come from this address. A proxy may have
// said that any address calls, also one that means something on this host.
func (t *table) imitable(a netip.AddrPort) bool {
	return a.Port() != 0 && a.Addr().IsGlobalUnicast() && !t.isOwn(a.Addr())
}

func dialReason(err error) Reason {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return ReasonGuestRefused
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout():
		return ReasonGuestTimeout
	case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENOBUFS):
		return ReasonServer
	}
	return ReasonGuestLost
}
