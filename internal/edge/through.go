package edge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge/hello"
	"sublet/internal/edge/relay"
	"sublet/internal/vps"
)

// through is a port for TLS on the loops of package relay, where a connection that
// goes through to a guest costs least: all that is asked of it here is answered at
// once. Guests are connected to as origin.Dialer does at first. When that does not
// work, or something takes longer, it is left to serveTLS, and that to Options.Origin.
type through struct {
	server *Server
	ctx    context.Context //nolint:containedctx // that of calls, as Serve has it
	port   Port
}

// passing is a caller on a loop.
type passing struct {
	*through
	call   *session
	relay  *relay.Relay
	reader hello.Reader
	began  time.Time // when what he said was whole
	name   string
	route  *route // that the guest was entered for, nil before
	other  netip.Addr
	as     bool // it goes in the caller's name
	there  bool // the guest was reached
}

// serveThrough serves a port until ctx ends.
func (s *Server) serveThrough(ctx context.Context, p Port, l *net.TCPListener) error {
	s.loops.add(1)
	defer s.loops.add(-1)
	t := &through{server: s, ctx: context.WithoutCancel(ctx), port: p}
	patience := func() time.Duration { return time.Duration(s.table.Load().settings.HandshakeTimeout) }
	if err := relay.Serve(ctx, l, patience, t); err != nil && !errors.Is(err, net.ErrClosed) {
		return vps.Wrap(vps.CodeInternal, err, "port %d takes no calls any more", p.Number)
	}
	return nil
}

// served counts ports.
type served struct {
	mu   sync.Mutex
	n    int
	none signal
}

func (s *served) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n += n; s.n == 0 {
		s.none.send()
	}
}

// wait waits until there is none, or ctx ends.
func (s *served) wait(ctx context.Context) {
	s.none.wait(ctx, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.n == 0
	})
}

// Call is relay.Front's: what take does.
func (f *through) Call(from netip.AddrPort, r *relay.Relay) relay.Session {
	s := f.server
	s.accepted.Add(1)
	if !s.sockets.take() {
		s.refused.add(ReasonServer)
		return nil
	}
	call := &session{server: s, port: f.port, caller: caller{from: from}, relay: r}
	t := s.table.Load()
	if !t.trusts(from.Addr()) {
		if why, ok := call.admit(t); !ok {
			s.refused.add(why)
			s.sockets.give()
			return nil
		}
	}
	s.sessions.begin(call)
	return &passing{through: f, call: call, relay: r}
}

// Heard is relay.Session's.
func (p *passing) Heard(said []byte) relay.Answer {
	s, t := p.server, p.server.table.Load()
	if t.trusts(p.call.caller.from.Addr()) {
		return relay.Answer{Take: func(conn *net.TCPConn, said []byte) {
			if p.call.taken(conn) {
				s.front(p.ctx, s.table.Load(), p.call, said)
			}
		}}
	}
	h, err := p.reader.Parse(said)
	if errors.Is(err, hello.ErrMore) {
		return relay.Answer{}
	}
	p.began = time.Now()
	if refusal, ok := errors.AsType[*hello.RefusalError](err); ok {
		s.refused.add(helloReason(refusal.Reason))
		return relay.Answer{Say: append([]byte{}, helloAnswer(refusal)...)} // to say nothing is an answer, too
	}
	p.name = h.ServerName
	r := t.ports[p.port].lookup(p.name)
	if c := s.options.Certificates; r != nil && r.domain.Terminate ||
		c != nil && p.port.Number == vps.HTTPSPort && c.Challenged(p.name, h.ALPN) {
		return p.leave()
	}
	if r == nil {
		s.refused.add(ReasonName)
		return relay.Answer{Say: hello.Alert(hello.AlertUnrecognizedName)}
	}
	if !r.guest.Running || r.wakes(t, r.domain.TLSPort(), s.options.Wake != nil) {
		return p.leave() // it may be woken
	}
	return p.lead(t, r)
}

// lead has the caller connected to his guest, as dial does at first.
func (p *passing) lead(t *table, r *route) relay.Answer {
	s, from := p.server, p.call.caller.from
	if r.caller != vps.CallerTransparent && r.caller != vps.CallerHidden {
		p.call.caller.to = p.relay.Local() // which the header tells
	}
	header, err := proxyHeader(r.caller, p.call.caller)
	if err != nil {
		return p.fail(r, ReasonServer)
	}
	if why, ok := s.enter(r.guest, from); !ok {
		return p.fail(r, why)
	}
	p.route = r
	first, second := r.addresses(from.Addr())
	a := relay.Answer{
		To: netip.AddrPortFrom(first, r.domain.TLSPort()), Patience: dialTimeout,
		Options: relay.Options{Preface: header, Idle: time.Duration(t.settings.IdleTimeout)},
	}
	p.other = second
	if a.From = t.imitated(r, from, first); a.From.IsValid() {
		// The way that serveTLS has for what keeps it from that begins soon.
		a.Patience, p.as = imitatePatience, true
	}
	return a
}

// imitatePatience is how long a guest may take to answer a caller by his own name
// before it is tried otherwise: see origin.Dialer.
const imitatePatience = 2 * time.Second

// leave gives the caller to serveTLS.
func (p *passing) leave() relay.Answer {
	return relay.Answer{Take: func(conn *net.TCPConn, said []byte) {
		if p.call.taken(conn) {
			_ = conn.SetDeadline(time.Now().Add(time.Duration(p.server.table.Load().settings.HandshakeTimeout)))
			p.server.serveTLS(p.ctx, p.call, said)
		}
	}}
}

// fail refuses who does not come to his guest.
func (p *passing) fail(r *route, why Reason) relay.Answer {
	p.server.failTLS(r, p.call, p.name, p.began, why)
	return relay.Answer{Say: hello.Alert(hello.AlertInternalError)}
}

// Unreached is relay.Session's.
func (p *passing) Unreached(err error) relay.Answer {
	r := p.route
	p.route = nil
	p.server.leave(r.guest)
	late := errors.Is(err, unix.ETIMEDOUT)
	if p.other.IsValid() && !late || r.domain.Wake || p.as && !errors.Is(err, unix.ECONNREFUSED) {
		if late && p.as {
			p.call.waited = imitatePatience
		}
		return p.leave() // there are other ways, as dial has them
	}
	return p.fail(r, dialReason(err))
}

// Reached is relay.Session's.
func (p *passing) Reached() {
	p.there = true
	m := p.route.meter()
	m.opened()
	p.server.sessions.relays(p.call, p.relay, m)
}

// Ended is relay.Session's.
func (p *passing) Ended(why relay.Reason) {
	s := p.server
	if p.route != nil {
		if p.there {
			in, out := s.sessions.relayed(p.call)
			p.call.meter.closed()
			s.logTLS(p.route, p.call, p.name, p.began, &passed{in: in, out: out, end: why.String()})
		}
		s.leave(p.route.guest)
	} else if p.began.IsZero() {
		s.refused.add(ReasonHandshake) // too slow, or gone
	}
	p.call.end()
}

// taken makes a caller who was on a loop one of a goroutine's. It is false when all
// were cut meanwhile.
func (c *session) taken(conn *net.TCPConn) bool {
	c.server.sessions.mu.Lock()
	c.conn, c.relay = conn, nil
	c.server.sessions.mu.Unlock()
	if !c.caller.to.IsValid() {
		c.caller = callerOf(conn)
	}
	select {
	case <-c.server.cutting:
		reset(conn)
		c.end()
		return false
	default:
		return true
	}
}
