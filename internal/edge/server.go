package edge

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Origin connects to guests: origin.Dialer does.
type Origin interface {
	// Dial connects to a guest's port. The guest is to see the connection come from
	// a caller's address; when that cannot be, or from is the zero value, it comes
	// from the host. LocalAddr of the connection tells.
	Dial(ctx context.Context, from, to netip.AddrPort) (*net.TCPConn, error)
	// DialUDP makes a socket for datagrams to the guest and back, likewise. It does
	// not block.
	DialUDP(ctx context.Context, from, to netip.AddrPort) (*net.UDPConn, error)
}

// Logs takes what guests' access logs are made of. It does not block, and may lose
// lines rather than that.
type Logs interface {
	// Write adds a line, which ends with a line feed, to a guest's log.
	Write(guestID string, line []byte)
}

// Options of a Server. Origin and Log are needed.
type Options struct {
	Log    *slog.Logger
	Origin Origin
	// Logs is where calls are written down, nil for nowhere.
	Logs Logs
	// Wake starts a guest, and does not wait for it. It is called once, however
	// many callers wait for the guest, and again when they waited in vain. Nil
	// wakes nobody.
	Wake func(guestID string)
	// Certificates ends TLS here; without it, domains that ask for it are refused.
	Certificates Certificates
	// MostSockets bounds the connections with callers and guests together. 0 is
	// what the process may have of file descriptors, less what else it needs, and
	// what fits into its memory, if that is bounded (GOMEMLIMIT).
	MostSockets int
}

// Server is the edge. Its methods may be called by any goroutines.
type Server struct {
	log     *slog.Logger
	options Options

	set        sync.Mutex // held by Set
	table      atomic.Pointer[table]
	remembered atomic.Pointer[remembered]
	changed    signal

	sockets  sockets
	callers  callers
	sessions sessions
	fronts   fronts
	quic     quicRouter
	accepted atomic.Uint64
	refused  refusals
	lingers  atomic.Int32
	cutting  chan struct{} // closed when Drain gives up waiting
	cut      sync.Once
	loops    served // ports that are served on them
}

// New makes a Server, which refuses everybody until Set tells it of domains.
func New(o Options) *Server {
	s := &Server{log: o.Log, options: o, sockets: sockets{most: int64(o.MostSockets)}, cutting: make(chan struct{})}
	if s.sockets.most == 0 {
		s.sockets.most = mostSockets()
	}
	s.sessions.init()
	s.remembered.Store(&remembered{other: &series{}})
	s.table.Store(&table{settings: settings(vps.EdgeSettings{})})
	s.fronts.init(s)
	s.quic.server = s
	return s
}

// mostSockets is how many connections there may be, with callers and guests together.
func mostSockets() int64 {
	files := unix.Rlimit{Cur: 1024}
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	return roomFor(files.Cur, debug.SetMemoryLimit(-1))
}

// roomFor is how many sockets there is room for in so many file descriptors, of which
// some are for relay's pipes, logs, listeners and what else there is, and in a heap of
// so many bytes. A socket takes one KiB of it when TLS goes through, and a dozen when
// HTTP is spoken on it.
func roomFor(files uint64, memory int64) int64 {
	const others, size = 2048, 4 << 10
	n := int64(min(files, 1<<30))
	return min(n-min(others, n/4), memory/size)
}

// Set makes the edge do what c says. Connections that are open go on as they are.
// A Config that is wrong changes nothing.
func (s *Server) Set(c Config) error {
	s.set.Lock()
	defer s.set.Unlock()
	next := s.remembered.Load().next(&c, c.Settings.MetricDomains)
	t, err := compile(&c, next)
	if err != nil {
		return err
	}
	s.fronts.use(t.settings)
	s.remembered.Store(next)
	s.table.Store(t)
	s.quic.set(t)
	s.changed.send()
	return nil
}

// Serve takes the calls of a listener of TCP until ctx ends, which closes it: then
// it returns nil. Connections go on until Drain.
func (s *Server) Serve(ctx context.Context, p Port, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	if tcp, ok := l.(*net.TCPListener); ok && p.Kind == KindTLS {
		return s.serveThrough(ctx, p, tcp)
	}
	calls := context.WithoutCancel(ctx)
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && ctx.Err() != nil:
			return nil
		case err != nil && !transient(err):
			return vps.Wrap(vps.CodeInternal, err, "port %d takes no calls any more", p.Number)
		case err != nil:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.WarnContext(ctx, "a call could not be taken", "port", p.Number, "err", err, "pause", pause)
			wait(ctx, pause)
			continue
		}
		pause = 0
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			_ = conn.Close()
			return vps.Errorf(vps.CodeInternal, "port %d is no listener of TCP", p.Number)
		}
		s.take(calls, p, tcp)
	}
}

// transient tells whether taking calls can go on after err: the host is out of
// something, or the caller has gone (accept(2)).
func transient(err error) bool {
	for _, e := range []error{
		unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPERM, unix.EPROTO,
		unix.ENETDOWN, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ENONET,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// take begins with a call. It does not block: who is over a limit is refused here,
// before anything is spent on him.
func (s *Server) take(ctx context.Context, p Port, conn *net.TCPConn) {
	s.accepted.Add(1)
	t := s.table.Load()
	c := callerOf(conn)
	if !s.sockets.take() {
		s.refused.add(ReasonServer)
		reset(conn)
		return
	}
	call := &session{server: s, port: p, conn: conn, caller: c}
	if !t.trusts(c.from.Addr()) {
		if why, ok := call.admit(t); !ok {
			s.refused.add(why)
			s.turnAway(call)
			return
		}
		if p.Kind == KindHTTP {
			s.sessions.begin(call)
			s.fronts.serve(newWebConn(call, conn, t))
			return
		}
	}
	s.sessions.begin(call)
	go s.front(ctx, t, call, nil)
}

// front finds out who calls, and goes on by what the port speaks. first is what was
// read of him before.
func (s *Server) front(ctx context.Context, t *table, call *session, first []byte) {
	deadline := time.Now().Add(time.Duration(t.settings.HandshakeTimeout))
	_ = call.conn.SetDeadline(deadline)
	if t.trusts(call.caller.from.Addr()) {
		read := &replayed{call.conn, first}
		c, rest, err := readProxyHeader(read)
		if err != nil {
			s.log.DebugContext(ctx, "a trusted proxy's call was refused", "proxy", call.caller.from, "err", err)
			s.refused.add(ReasonProxyHeader)
			call.end()
			return
		}
		call.caller, first = c, append(rest, read.first...)
		if why, ok := call.admit(t); !ok {
			s.refused.add(why)
			call.end()
			return
		}
	}
	if call.port.Kind == KindHTTP {
		_ = call.conn.SetDeadline(time.Time{})
		s.fronts.serve(newWebConn(call, replay(call.conn, first), t))
		return
	}
	s.serveTLS(ctx, call, first)
}

// turnAway refuses a caller who is over his limit.
func (s *Server) turnAway(call *session) {
	defer s.sockets.give()
	if call.port.Kind != KindHTTP {
		reset(call.conn)
		return
	}
	if s.lingers.Add(1) > mostLingers {
		s.lingers.Add(-1)
		_ = call.conn.Close()
		return
	}
	go func() {
		defer s.lingers.Add(-1)
		defer call.conn.Close() //nolint:errcheck // it ends a connection that all was said on
		lastWord(call.conn, rawPage(http.StatusTooManyRequests))
	}()
}

// mostLingers is how many callers beyond their limits are told so at a time. More of
// them are hung up on.
const mostLingers = 256

// lastWord sends what is to be the last on a connection. Closing that while
// something of the caller is unread would reset it, and take the word back; so what
// comes is thrown away until he hangs up, or a moment passed.
func lastWord(conn *net.TCPConn, word []byte) {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write(word); err != nil {
		return
	}
	_ = conn.CloseWrite()
	var b [2048]byte
	for range 64 {
		if _, err := conn.Read(b[:]); err != nil {
			return
		}
	}
}

// reset closes a connection without keeping its port, which costs least.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// Drain waits until all connections have ended; HTTP without a request ends at
// once, and so do those of QUIC, which need the socket. The listeners were closed
// before. When ctx ends first, the connections are
// cut and its error is returned.
func (s *Server) Drain(ctx context.Context) error {
	s.loops.wait(ctx)
	s.quic.close()
	defer s.fronts.stop()
	s.fronts.drain()
	s.sessions.drain()
	if s.sessions.wait(ctx) {
		return nil
	}
	s.cut.Do(func() { close(s.cutting) })
	s.sessions.cut()
	s.sessions.wait(context.WithoutCancel(ctx))
	return ctx.Err()
}

// wait waits for so long, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// signal wakes all who wait for it.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed when send is called the next time.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// wait waits until done is true, which it asks again at each send. It is false when
// ctx ends before.
func (s *signal) wait(ctx context.Context, done func() bool) bool {
	for {
		sent := s.next()
		if done() {
			return true
		}
		select {
		case <-sent:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *signal) send() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
