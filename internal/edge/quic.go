package edge

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"sublet/internal/edge/hello"
	"sublet/internal/edge/quic"
	"sublet/internal/vps"
)

// quicRouter leads QUIC, from when the first socket is served.
type quicRouter struct {
	server *Server
	mu     sync.Mutex
	router *quic.Router // nil before, and when closed
	closed bool
}

// quicPort is the only one that QUIC is led on: there is no other that browsers ask.
var quicPort = Port{Number: vps.HTTPSPort, Kind: KindQUIC} //nolint:gochecknoglobals // a constant

// ServeQUIC leads what comes on a socket of UDP port 443 until that is closed, or ctx
// ends, or Drain begins: then it returns nil.
func (s *Server) ServeQUIC(ctx context.Context, conn net.PacketConn) error {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return vps.Errorf(vps.CodeInternal, "a socket for QUIC is none of UDP")
	}
	router := s.quic.open(context.WithoutCancel(ctx))
	if router == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = udp.SetReadDeadline(time.Now()) })()
	return router.Serve(udp)
}

// LeaveQUIC ends QUIC here, and returns its flows for a process that takes over. The
// sockets are closed after it.
func (s *Server) LeaveQUIC() []quic.Flow {
	s.quic.mu.Lock()
	var flows []quic.Flow
	if s.quic.router != nil {
		flows = s.quic.router.Flows()
	}
	s.quic.mu.Unlock()
	s.quic.close()
	return flows
}

// TakeQUIC goes on with flows of a process that left them, on a socket that is then
// served.
func (s *Server) TakeQUIC(ctx context.Context, conn net.PacketConn, flows []quic.Flow) {
	udp, ok := conn.(*net.UDPConn)
	if router := s.quic.open(context.WithoutCancel(ctx)); ok && router != nil {
		router.Restore(udp, flows)
	}
}

// open returns the router, nil when there will be none any more.
func (q *quicRouter) open(ctx context.Context) *quic.Router {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.router == nil && !q.closed {
		q.router = quic.New(quic.Options{
			Lookup: q.server.lookupQUIC, Observe: q.server.observeQUIC,
			Dial: func(caller netip.AddrPort, target quic.Target) (*net.UDPConn, error) {
				return q.server.dialQUIC(ctx, caller, target)
			},
		})
	}
	return q.router
}

// close ends all flows. What was counted stays.
func (q *quicRouter) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if q.router != nil {
		q.drop(func(quic.Target) bool { return true })
		q.router.Close()
		q.router = nil
	}
}

// set ends flows to addresses that are not those of a running guest any more.
func (q *quicRouter) set(t *table) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.router == nil {
		return
	}
	q.drop(func(target quic.Target) bool {
		g := t.guests[target.Guest]
		return g == nil || !g.Running || target.Address.Addr() != g.Address && target.Address.Addr() != g.Address6
	})
}

// drop ends the flows to targets, and counts to their guests what the router forgets
// of them. q.mu is held.
func (q *quicRouter) drop(gone func(quic.Target) bool) {
	guests := q.server.remembered.Load().guests
	for target, c := range q.router.Counts() {
		if gone(target) && guests[target.Guest] != nil {
			guests[target.Guest].add(c.InBytes, c.OutBytes)
		}
	}
	q.router.Drop(gone)
}

// counts are bytes by guest, there and back, which guests' own counters do not have.
// q.mu is held.
func (q *quicRouter) counts() map[string][2]uint64 {
	if q.router == nil {
		return nil
	}
	sums := make(map[string][2]uint64)
	for target, c := range q.router.Counts() {
		sum := sums[target.Guest]
		sums[target.Guest] = [2]uint64{sum[0] + c.InBytes, sum[1] + c.OutBytes}
	}
	return sums
}

// lookupQUIC says where a caller of a name is led. A domain whose TLS ends here is
// not; nor is one whose guest is told who calls by the PROXY protocol, as browsers
// then come by TCP, where it is.
func (s *Server) lookupQUIC(from netip.AddrPort, name string) (quic.Target, string) {
	t := s.table.Load()
	r := t.ports[quicPort].lookup(name)
	why := Reason("")
	switch {
	case r == nil:
		why = ReasonName
	case r.domain.Terminate, r.caller == vps.CallerProxyV1, r.caller == vps.CallerProxyV2:
		why = ReasonQUIC
	case !r.guest.Running:
		why = ReasonStopped
	case !r.guest.state.rate.take(callerKey(from.Addr()), time.Now(), r.guest.limits.NewConnections):
		why = ReasonGuestRate
	}
	if why != "" {
		return quic.Target{}, string(why)
	}
	first, _ := r.addresses(from.Addr())
	return quic.Target{Guest: r.guest.ID, Address: netip.AddrPortFrom(first, r.domain.TLSPort())}, ""
}

func (s *Server) dialQUIC(ctx context.Context, from netip.AddrPort, target quic.Target) (*net.UDPConn, error) {
	t := s.table.Load()
	as := netip.AddrPort{}
	if g := t.guests[target.Guest]; g != nil && !g.hidden[target.Address.Port()] && t.imitable(from) && target.Address.Addr().Is4() == from.Addr().Is4() {
		as = from
	}
	return s.options.Origin.DialUDP(ctx, as, target.Address)
}

// observeQUIC counts a connection, and writes it down: at its beginning, as its end
// is known to the caller and the guest only.
func (s *Server) observeQUIC(e quic.Event) {
	s.accepted.Add(1)
	r := s.table.Load().ports[quicPort].lookup(e.Name)
	why := quicReason(e.Reason)
	if r == nil {
		s.refused.add(why)
		return
	}
	if why == "" {
		m := r.meter()
		m.guest.connections.Add(1)
		m.domain.connections.Add(1)
	} else {
		r.meter().refuse(why)
	}
	if s.logs() {
		a := s.access(r, e.Caller, e.Name, time.Now())
		a.Kind, a.Refused = "quic", why
		s.write(r, a)
	}
}

// quicReason is the router's word as one of ours.
func quicReason(word string) Reason {
	switch why := Reason(word); {
	case word == "":
		return ""
	case isReason(why):
		return why
	case isReason("quic-" + why):
		return "quic-" + why
	default:
		return helloReason(hello.Reason(word))
	}
}
