package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sublet/internal/edge/relay"
	"sublet/internal/vps"
)

// webConn is a caller's connection on which HTTP is spoken, maybe within TLS that
// ends here.
type webConn struct {
	net.Conn
	call   *session
	client *client
	front  *front

	// It ends when it is silent for too long, as those that are passed through do.
	moved atomic.Uint64
	idle  time.Duration
	seen  uint64
	quiet time.Duration
	mu    sync.Mutex
	watch *time.Timer
	once  sync.Once
}

// newWebConn makes one of a session that was taken on.
func newWebConn(call *session, conn net.Conn, t *table) *webConn {
	c := &webConn{Conn: conn, call: call, idle: time.Duration(t.settings.IdleTimeout)}
	c.client = &client{server: call.server, call: call}
	call.server.sessions.speaks(call, c.client)
	c.mu.Lock()
	c.watch = time.AfterFunc(c.idle/4, c.look)
	c.mu.Unlock()
	return c
}

func (c *webConn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watch == nil { // it was closed just now
		return
	}
	if now := c.moved.Load(); now != c.seen {
		c.seen, c.quiet = now, 0
	} else if c.quiet += c.idle / 4; c.quiet >= c.idle {
		c.call.ending.set(relay.Idle)
		_ = c.call.conn.Close()
		return
	}
	c.watch.Reset(c.idle / 4)
}

// Read is net.Conn's.
func (c *webConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.moved.Add(uint64(n))
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.client.lost.Store(true)
	}
	return n, err
}

// Write is net.Conn's.
func (c *webConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.moved.Add(uint64(n))
	return n, err
}

// CloseWrite is *net.TCPConn's, so that what was said last can be read.
func (c *webConn) CloseWrite() error { return c.call.conn.CloseWrite() }

// RemoteAddr is who calls, as a proxy may have said.
func (c *webConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.call.caller.from) }

// Close ends the session, and its connections to guests.
func (c *webConn) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		c.watch.Stop()
		c.watch = nil
		c.mu.Unlock()
		c.client.close()
		c.call.end()
		if c.front != nil {
			c.front.leave()
		}
	})
	return nil
}

// webConnOf is the one under a connection that is served.
func webConnOf(c net.Conn) *webConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	w, _ := c.(*webConn)
	return w
}

// fronts are the servers of HTTP: one, and those from before the deadlines changed,
// until their last connection has ended.
type fronts struct {
	server  *Server
	mu      sync.Mutex
	now     *front
	all     map[*front]struct{}
	drains  bool
	stopped bool
}

// front is an http.Server that takes its connections from a channel.
type front struct {
	fronts          *fronts
	handshake, idle time.Duration
	http            *http.Server
	calls           chan net.Conn
	retired         chan struct{} // closed when it takes no more
	open            int           // guarded by fronts.mu
}

// maxKeepAlive is how long a caller may keep a connection for requests that he does
// not make.
const maxKeepAlive = 3 * time.Minute

// maxHeader bounds the headers of a request, in bytes.
const maxHeader = 64 << 10

// maxStreams is how many requests one connection of HTTP/2 makes at a time.
const maxStreams = 100

// maxAheadOfGuest is how much of a request by HTTP/2 is taken of its caller before the
// guest takes it, in bytes. It is a part of what a connection may have ahead, so that
// a guest that does not read holds up no requests for others.
const maxAheadOfGuest = 256 << 10

func (f *fronts) init(s *Server) {
	f.server, f.all = s, make(map[*front]struct{})
	f.use(s.table.Load().settings)
}

// use makes connections from now on have the deadlines of these settings.
func (f *fronts) use(settings vps.EdgeSettings) {
	f.mu.Lock()
	defer f.mu.Unlock()
	handshake, idle := time.Duration(settings.HandshakeTimeout), min(time.Duration(settings.IdleTimeout), maxKeepAlive)
	if f.stopped {
		return
	}
	if f.now != nil {
		if f.now.handshake == handshake && f.now.idle == idle {
			return
		}
		close(f.now.retired)
		if f.now.open == 0 {
			delete(f.all, f.now)
		}
	}
	n := &front{fronts: f, handshake: handshake, idle: idle, calls: make(chan net.Conn), retired: make(chan struct{})}
	n.http = &http.Server{
		Handler:           f.server,
		ReadHeaderTimeout: handshake,
		IdleTimeout:       idle,
		MaxHeaderBytes:    maxHeader,
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: maxAheadOfGuest},
		ErrorLog:          slog.NewLogLogger(f.server.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			w := webConnOf(c)
			w.client.serves(c)
			return context.WithValue(ctx, clientKey{}, w.client)
		},
		DisableGeneralOptionsHandler: true,
	}
	n.http.Protocols.SetHTTP1(true)
	n.http.Protocols.SetHTTP2(true)
	n.http.Protocols.SetUnencryptedHTTP2(true)
	if f.drains {
		n.http.SetKeepAlivesEnabled(false)
	}
	f.now = n
	f.all[n] = struct{}{}
	go func() { _ = n.http.Serve(n) }()
}

// serve has the requests of a connection served. It does not wait for them.
func (f *fronts) serve(c *webConn) { f.serveAs(c, c) }

// serveAs serves what is spoken on conn, which is c or TLS on it.
func (f *fronts) serveAs(c *webConn, conn net.Conn) {
	for {
		f.mu.Lock()
		n := f.now
		if n == nil {
			f.mu.Unlock()
			_ = c.Close()
			return
		}
		n.open++
		f.mu.Unlock()
		c.front = n
		select {
		case n.calls <- conn:
			return
		case <-n.retired:
			c.front = nil
			n.leave()
		}
	}
}

// drain ends connections as soon as no request is on its way.
func (f *fronts) drain() {
	f.mu.Lock()
	f.drains = true
	all := slices.Collect(maps.Keys(f.all))
	f.mu.Unlock()
	for _, n := range all {
		n.http.SetKeepAlivesEnabled(false) // closes some, which takes the lock
	}
}

// stop is called when nothing will be served any more.
func (f *fronts) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != nil {
		close(f.now.retired)
		f.now, f.stopped = nil, true
	}
}

func (n *front) leave() {
	n.fronts.mu.Lock()
	defer n.fronts.mu.Unlock()
	if n.open--; n.open == 0 && n != n.fronts.now {
		delete(n.fronts.all, n)
	}
}

// Accept is net.Listener's, for http.Server.
func (n *front) Accept() (net.Conn, error) {
	select {
	case c := <-n.calls:
		return c, nil
	case <-n.retired:
		return nil, net.ErrClosed
	}
}

// Close is net.Listener's. Nothing has to be closed.
func (n *front) Close() error { return nil }

// Addr is net.Listener's; nobody asks for it.
func (n *front) Addr() net.Addr { return &net.TCPAddr{} }
