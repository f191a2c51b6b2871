package edge

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"sublet/internal/edge/relay"
)

// session is one caller's connection, from when it was taken to its end.
type session struct {
	server *Server
	port   Port
	conn   *net.TCPConn
	caller caller
	key    netip.Addr    // that the caller was admitted as, the zero value before
	waited time.Duration // for the guest, in vain

	// Of connections that are passed through to a guest, guarded by sessions.mu.
	relay  *relay.Relay
	meter  meter
	client *client // of connections of HTTP

	ending ending // of what goes through by other ways than relay

	once sync.Once
}

// admit counts the session to its caller, or says why it may not be.
func (c *session) admit(t *table) (Reason, bool) {
	key := callerKey(c.caller.from.Addr())
	why, ok := c.server.callers.admit(key, time.Now(), t.settings.CallerConnections, t.settings.CallerRate)
	if ok {
		c.key = key
	}
	return why, ok
}

// end closes the connection and gives back what it held. It may be called again.
func (c *session) end() {
	c.once.Do(func() {
		if c.conn != nil {
			_ = c.conn.Close()
		}
		if c.key.IsValid() {
			c.server.callers.leave(c.key, time.Now())
		}
		c.server.sockets.give()
		c.server.sessions.end(c)
	})
}

// cut ends it from outside.
func (c *session) cut(r *relay.Relay) {
	if r != nil {
		r.Close()
		return
	}
	if c.conn != nil {
		c.ending.set(relay.Closed)
		reset(c.conn)
	}
}

// sessions are all that are open.
type sessions struct {
	mu    sync.Mutex
	all   map[*session]struct{}
	ended signal // when all is empty
}

func (s *sessions) init() { s.all = make(map[*session]struct{}) }

func (s *sessions) begin(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[c] = struct{}{}
}

// relays says that the session is passed through from now on.
func (s *sessions) relays(c *session, r *relay.Relay, m meter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.relay, c.meter = r, m
	select {
	case <-c.server.cutting: // cut did not see it
		r.Close()
	default:
	}
}

// relayed counts what was passed on, when no more will be.
func (s *sessions) relayed(c *session) (in, out uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in, out = c.relay.Bytes()
	c.meter.add(in, out)
	c.relay = nil
	return in, out
}

func (s *sessions) end(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
	if len(s.all) == 0 {
		s.ended.send()
	}
}

// drain tells callers who speak HTTP/2 to make no more requests.
func (s *sessions) drain() {
	var clients []*client
	s.mu.Lock()
	for c := range s.all {
		if c.client != nil {
			clients = append(clients, c.client)
		}
	}
	s.mu.Unlock()
	for _, c := range clients {
		go c.drain() // one may take a second to hear it
	}
}

// speaks says that HTTP is spoken in the session from now on.
func (s *sessions) speaks(c *session, client *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.client = client
}

// wait waits until there is none, or ctx ends, which is false.
func (s *sessions) wait(ctx context.Context) bool {
	return s.ended.wait(ctx, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.all) == 0
	})
}

// cut ends all.
func (s *sessions) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		c.cut(c.relay)
	}
}

// replayed is a connection some of which was read before.
type replayed struct {
	net.Conn
	first []byte
}

// replay gives what was read from conn before once more.
func replay(conn net.Conn, first []byte) net.Conn {
	if len(first) == 0 {
		return conn
	}
	return &replayed{conn, first}
}

// Read gives what was read before, and then what comes.
func (r *replayed) Read(b []byte) (int, error) {
	if len(r.first) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.first)
	if r.first = r.first[n:]; len(r.first) == 0 {
		r.first = nil
	}
	return n, nil
}
