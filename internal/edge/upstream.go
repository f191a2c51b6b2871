package edge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"sublet/internal/vps"
)

// upstreamKey is what requests have in common that may share connections.
type upstreamKey struct {
	guest *guestState
	port  uint16
	mode  vps.CallerMode
	h2    bool // HTTP/2, if the guest can
}

// upstream is one client's connections to one port of a guest.
type upstream struct {
	key    upstreamKey
	server *Server
	many   bool // the caller makes several requests at a time
	users  int  // requests; guarded by client.mu
	// in and out are bytes to the guest and back.
	in, out atomic.Uint64

	dialing sync.Mutex // held while the first connection is made

	mu        sync.Mutex
	transport *http.Transport
	h2        bool       // what transport speaks
	as        bool       // the guest sees the caller's own address
	ready     *guestConn // the one that the transport gets next
	conns     map[*guestConn]struct{}
	route     *route // of the newest request
	visit     visit  // likewise
	closed    bool
}

// answerTimeout is how long a guest may think about a request.
const answerTimeout = time.Minute

// maxAnswerHeader bounds the headers of an answer, in bytes.
const maxAnswerHeader = 256 << 10

// maxAhead is how much of an answer by HTTP/2 is taken of a guest before the caller
// takes it, in bytes: it lies in memory here. A guest is on the same host, so that
// more makes nothing faster. With maxAheadOfAll, the most that there is, an answer
// that its caller does not read holds up none of his others.
const (
	maxAhead      = 64 << 10
	maxAheadOfAll = 4<<20 - 1
)

// spareTimeout is how long connections wait for a next request that were made for
// requests of HTTP/2 at the same time: a caller has up to maxStreams of them for one
// of his own, and all callers share what a guest may have.
const spareTimeout = 5 * time.Second

// prepare sees to it that there is a connection, so that what keeps the request
// from the guest is known before anything of it is sent.
func (u *upstream) prepare(ctx context.Context, x *exchange, v visit) error {
	if u.connected(x, v) {
		return nil
	}
	u.dialing.Lock()
	defer u.dialing.Unlock()
	if u.connected(x, v) { // another request was faster
		return nil
	}
	h2 := u.key.h2 && !u.key.guest.plain.has(u.key.port, time.Now())
	conn, err := u.connect(ctx, x.table, x.route, v)
	if err == nil && h2 {
		if h2, err = conn.offerHTTP2(); err == nil && !h2 {
			_ = conn.Close()
			conn, err = u.connect(ctx, x.table, x.route, v)
		}
	}
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return &refusal{ReasonGuestLost, net.ErrClosed}
	}
	u.ready, u.as = conn, conn.link.as
	if u.transport == nil || u.h2 != h2 { // the guest may have another server by now
		u.transport, u.h2 = u.newTransport(h2), h2
	}
	return nil
}

// connected tells whether there is a connection. The request is the newest one.
func (u *upstream) connected(x *exchange, v visit) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.route, u.visit = x.route, v
	return len(u.conns) > 0 && u.transport != nil
}

func (u *upstream) newTransport(h2 bool) *http.Transport {
	t := &http.Transport{
		DialContext:            u.dialNext,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxStreams,
		ResponseHeaderTimeout:  answerTimeout,
		ExpectContinueTimeout:  time.Second, // many servers do not know of it
		MaxResponseHeaderBytes: maxAnswerHeader,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerStream: maxAhead, MaxReceiveBufferPerConnection: maxAheadOfAll},
	}
	if u.many && !h2 {
		t.IdleConnTimeout = spareTimeout
	}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetUnencryptedHTTP2(h2)
	return t
}

// dialNext is http.Transport's DialContext.
func (u *upstream) dialNext(ctx context.Context, _, _ string) (net.Conn, error) {
	u.mu.Lock()
	conn, as, r, v, closed := u.ready, u.as, u.route, u.visit, u.closed
	u.ready = nil
	u.mu.Unlock()
	if closed {
		return nil, &refusal{ReasonGuestLost, net.ErrClosed}
	}
	if conn != nil {
		return conn, nil
	}
	conn, err := u.connect(ctx, u.server.table.Load(), r, v)
	if err != nil {
		return nil, err
	}
	if conn.link.as != as { // the request says otherwise
		_ = conn.Close()
		return nil, &refusal{reason: ReasonGuestLost}
	}
	return conn, nil
}

// connect makes a connection.
func (u *upstream) connect(ctx context.Context, t *table, r *route, v visit) (*guestConn, error) {
	l, err := u.server.reach(ctx, t, r, u.key.port, v)
	if err != nil {
		return nil, err
	}
	if len(l.header) > 0 {
		if _, err := l.Write(l.header); err != nil {
			_ = l.Close()
			return nil, &refusal{ReasonGuestLost, err}
		}
	}
	return u.add(l)
}

// add makes a link one of the upstream's connections.
func (u *upstream) add(l *link) (*guestConn, error) {
	c := &guestConn{Conn: l.TCPConn, link: l, up: u}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		_ = l.Close()
		return nil, &refusal{ReasonGuestLost, net.ErrClosed}
	}
	if u.conns == nil {
		u.conns = make(map[*guestConn]struct{})
	}
	u.conns[c] = struct{}{}
	return c, nil
}

// imitates tells whether the guest sees the caller's own address.
func (u *upstream) imitates() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.as
}

// roundTrip makes a request of the guest.
func (u *upstream) roundTrip(r *http.Request) (*http.Response, error) {
	u.mu.Lock()
	t := u.transport
	u.mu.Unlock()
	return t.RoundTrip(r)
}

// close ends all connections, and lets none begin any more: there is nobody for whom
// requests could be on them.
func (u *upstream) close() {
	u.mu.Lock()
	conns := u.conns
	u.conns, u.ready, u.closed = nil, nil, true
	u.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
}

// guestConn is a connection of an upstream. It counts what passes.
type guestConn struct {
	net.Conn
	link *link
	up   *upstream
	// sent is what of the beginning was sent already, first what was read already.
	sent  int
	first []byte
	once  sync.Once
}

func (c *guestConn) count(in, out int) {
	c.up.in.Add(uint64(in))
	c.up.out.Add(uint64(out))
	c.up.mu.Lock()
	m := c.up.route.meter()
	c.up.mu.Unlock()
	m.add(uint64(in), uint64(out))
}

// Read is net.Conn's.
func (c *guestConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	n, err := c.Conn.Read(b)
	c.count(0, n)
	return n, err
}

// Write is net.Conn's.
func (c *guestConn) Write(b []byte) (int, error) {
	skipped := min(c.sent, len(b))
	c.sent -= skipped
	if skipped == len(b) {
		return skipped, nil
	}
	n, err := c.Conn.Write(b[skipped:])
	c.count(n, 0)
	return skipped + n, err
}

// CloseWrite is *net.TCPConn's.
func (c *guestConn) CloseWrite() error { return c.link.CloseWrite() }

// Close is net.Conn's.
func (c *guestConn) Close() error {
	c.once.Do(func() {
		_ = c.link.Close()
		c.up.mu.Lock()
		defer c.up.mu.Unlock()
		delete(c.up.conns, c)
		if c.up.ready == c {
			c.up.ready = nil
		}
	})
	return nil
}

// preface is how a caller begins HTTP/2 (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// offerHTTP2 begins HTTP/2, and tells whether the guest speaks it: then its first
// frame says so. A guest that says nothing for a while may be waiting for more.
func (c *guestConn) offerHTTP2() (bool, error) {
	const patience = time.Second
	const header, settings = 9, 4
	if _, err := c.Write([]byte(preface)); err != nil {
		return false, &refusal{ReasonGuestLost, err}
	}
	c.sent = len(preface)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, header)
	n, err := io.ReadAtLeast(c, b, 4)
	_ = c.SetReadDeadline(time.Time{})
	c.first = b[:n]
	var timeout net.Error
	switch {
	case bytes.HasPrefix([]byte("HTTP/1"), b[:min(n, 6)]) && n > 0:
		c.up.key.guest.plain.add(c.up.key.port, time.Now())
		return false, nil
	case err == nil:
		return b[3] == settings, nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return true, nil
	default: // it hung up, as some do
		return false, nil
	}
}

// plainFor is how long a guest's port that answered HTTP/2 with HTTP/1.1 is not asked
// again: it writes each time into its log. Who teaches it HTTP/2 does not wait longer.
const plainFor = time.Minute

// plainPorts are a guest's ports that do not speak HTTP/2, and until when that is
// taken for granted: at most all that domains have led to. Ready when zero, for any
// goroutines at a time.
type plainPorts struct {
	mu    sync.Mutex
	until map[uint16]time.Time
}

func (p *plainPorts) has(port uint16, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.until[port]
	if ok && !now.Before(until) {
		delete(p.until, port)
	}
	return ok && now.Before(until)
}

func (p *plainPorts) add(port uint16, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.until == nil {
		p.until = make(map[uint16]time.Time)
	}
	p.until[port] = now.Add(plainFor)
}

// forget is called when the guest does not run: it may begin with another server.
func (p *plainPorts) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = nil
}
