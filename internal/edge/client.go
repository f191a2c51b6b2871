package edge

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sublet/internal/hostname"
)

// client is what belongs to one caller's connection of HTTP: above all connections
// to guests, which no other caller's requests ever use. Guests may see them come
// from this caller.
type client struct {
	server *Server
	call   *session
	served net.Conn // what requests come on: call's, or TLS on it

	lost atomic.Bool // the connection is broken

	mu        sync.Mutex
	upstreams map[upstreamKey]*upstream
	requests  int // on their way
	newest    int // major version of HTTP that the newest has
	closed    bool
}

// maxUpstreams is how many guests' ports one connection's requests may be for before
// those that nothing is asked of are hung up on.
const maxUpstreams = 8

// serves says what requests come on.
func (c *client) serves(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served = conn
}

// begin and end are around each request.
func (c *client) begin(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	c.newest = r.ProtoMajor
}

func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests--
}

// goAway is a frame of HTTP/2 which says that no new requests are welcome, and all
// that were made will be answered (RFC 9113, 6.8).
var goAway = []byte{ //nolint:gochecknoglobals // a constant
	0, 0, 8, 7, 0, 0, 0, 0, 0, // length, type, flags, stream
	0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, // last stream, NO_ERROR
}

// drain tells the caller to make no more requests, when he speaks HTTP/2 and makes
// none now: others are told with the answer. He is hung up on a little later, as
// net/http does it: requests may be on their way.
func (c *client) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.newest != 2 || c.requests > 0 || c.closed {
		return
	}
	_ = c.served.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.served.Write(goAway)
	time.AfterFunc(time.Second, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.requests == 0 {
			_ = c.call.conn.Close() // of which its server finds out
		}
	})
}

// admitStream counts a request of HTTP/2 as what it would be in HTTP/1.1 when made
// at the same time as others: a connection of the caller, and one of the guest. It
// returns what counts it out.
func (c *client) admitStream(x *exchange) (func(), Reason, bool) {
	callers, key, limits := &c.server.callers, callerKey(c.call.caller.from.Addr()), &x.table.settings
	if why, ok := callers.admit(key, time.Now(), limits.CallerConnections, limits.CallerRate); !ok {
		return nil, why, false
	}
	slots := &x.route.guest.state.slots
	if slots.Add(1) > int64(x.route.guest.limits.Connections) {
		slots.Add(-1)
		callers.leave(key, time.Now())
		return nil, ReasonGuestConnections, false
	}
	return func() {
		slots.Add(-1)
		callers.leave(key, time.Now())
	}, "", true
}

// close ends all connections to guests.
func (c *client) close() {
	c.mu.Lock()
	ups := c.upstreams
	c.upstreams, c.closed = nil, true
	c.mu.Unlock()
	for _, u := range ups {
		u.close()
	}
}

// reach finds or makes the connections that a request can use, of which at least
// one is open. done gives them back, also after an error.
func (c *client) reach(ctx context.Context, x *exchange, r *http.Request) error {
	// What is HTTP/2 without TLS here is so for the guest, too; with TLS, what needs
	// it is.
	h2 := r.ProtoMajor == 2 && (c.call.port.Kind == KindHTTP || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"))
	key := upstreamKey{guest: x.route.guest.state, port: plainPort(x.route), mode: x.route.caller, h2: h2}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return &refusal{ReasonGuestLost, net.ErrClosed}
	}
	u, ok := c.upstreams[key]
	if !ok {
		u = c.add(key)
	}
	u.users++
	x.upstream = u
	c.mu.Unlock()

	name := hostname.FromHost(r.Host)
	return u.prepare(ctx, x, visit{caller: c.call.caller, find: func(t *table) (*route, uint16) {
		again := t.ports[c.call.port].lookup(name)
		if again == nil || again.guest.state != key.guest || again.caller != key.mode || again.domain.Terminate != x.route.domain.Terminate {
			return nil, 0 // it is not any more what this connection is for
		}
		return again, plainPort(again)
	}})
}

// add makes an upstream. c.mu is held.
func (c *client) add(key upstreamKey) *upstream {
	if c.upstreams == nil {
		c.upstreams = make(map[upstreamKey]*upstream)
	}
	for other, u := range c.upstreams {
		if len(c.upstreams) >= maxUpstreams && u.users == 0 {
			delete(c.upstreams, other)
			u.close()
		}
	}
	u := &upstream{key: key, server: c.server, many: c.newest == 2}
	c.upstreams[key] = u
	return u
}

// done is called when a request does not use its upstream any more.
func (c *client) done(x *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.upstream != nil {
		x.upstream.users--
	}
}
