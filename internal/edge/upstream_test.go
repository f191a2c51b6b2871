package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// learner is a guest's server that answers HTTP/2 with 400 until it speaks it, and
// makes a connection for each request until then.
type learner struct {
	server string // that speaks it
	speaks atomic.Bool
	faults atomic.Int32 // lines in its log
}

func (l *learner) serve(c net.Conn) {
	if l.speaks.Load() {
		server, err := net.Dial("tcp", l.server)
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(server, c)
			_ = server.Close()
		}()
		_, _ = io.Copy(c, server)
		return
	}
	r := bufio.NewReader(c)
	if first, _ := r.Peek(3); string(first) == "PRI" {
		l.faults.Add(1)
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		return
	}
	if _, err := http.ReadRequest(r); err == nil {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nplain")
	}
}

// newLearner is a stand with one, which is not asked anything yet.
func newLearner(t *testing.T) (*stand, *edge.Guest, *learner) {
	t.Helper()
	s, l := newStand(t), &learner{server: fmt.Sprintf("127.0.0.1:%d", serve(t, named("alice"), true))}
	g := s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: accept(t, l.serve)})
	s.set()
	return s, g, l
}

// TestPlainGuest: a guest that does not speak HTTP/2 is not offered it again for each
// caller who does, but is when it was started anew.
func TestPlainGuest(t *testing.T) {
	t.Parallel()
	s, g, l := newLearner(t)
	for round := range int32(2) {
		for range 3 {
			if code, got := get(t, s.client(h2c), "http://a.example.org/"); code != http.StatusOK || got != "plain" {
				t.Fatal(code, got)
			}
		}
		if n := l.faults.Load(); n != round+1 {
			t.Errorf("after %d starts the guest was asked %d times", round+1, n)
		}
		s.restart(g)
	}
}

// restart has a guest end and begin anew, when its last connection has ended.
func (s *stand) restart(g *edge.Guest) {
	s.t.Helper()
	eventually(s.t, "the guest has no connection", func() bool { return s.server.Stats().Guests[g.ID].Open == 0 })
	g.Running = false
	s.set()
	g.Running = true
	s.set()
}

// TestGuestThatLearnsHTTP2: a connection of a caller goes on when the guest has
// another server, which speaks HTTP/2 now.
func TestGuestThatLearnsHTTP2(t *testing.T) {
	t.Parallel()
	s, g, l := newLearner(t)
	client := s.client(h2c)
	if code, got := get(t, client, "http://a.example.org/"); code != http.StatusOK || got != "plain" {
		t.Fatal(code, got)
	}
	l.speaks.Store(true)
	s.restart(g)
	if code, got := get(t, client, "http://a.example.org/"); code != http.StatusOK || !strings.HasPrefix(got, "alice HTTP/2.0") {
		t.Errorf("%d %q", code, got)
	}
}
