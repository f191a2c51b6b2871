package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// TestWake: the first caller starts a stopped guest, all wait for it, and are led to
// it when its port takes calls.
func TestWake(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var asked atomic.Int32
	s.wake = func(id string) {
		if id != "alice" {
			t.Errorf("%s was woken", id)
		}
		asked.Add(1)
	}
	dead := deadPort(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: dead, HTTPPort: dead, Wake: true}).Running = false
	s.set()
	const callers = 20
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			if c, err := handshake(s.dial(webTLS), "a.example.org"); err != nil {
				t.Error(err)
			} else if got := ask(t, c, "x"); got != "alice: x" {
				t.Error(got)
			}
		})
		wg.Go(func() {
			if code, got := get(t, s.client(), "http://a.example.org/"); code != 200 || !strings.HasPrefix(got, "alice") {
				t.Error(code, got)
			}
		})
	}
	eventually(t, "the guest is asked to start", func() bool { return asked.Load() > 0 && s.server.Stats().Open == 2*callers })
	// It runs, and takes no calls yet.
	s.config.Guests[0].Running = true
	s.set()
	eventually(t, "it is called", func() bool { return len(s.origin.dialed()) >= callers })
	s.config.Guests[0].Domains = []vps.Domain{{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: dead, Wake: true}}
	s.set()
	eventually(t, "those of TLS are there", func() bool { return s.server.Stats().Guests["alice"].Connections == callers })
	s.config.Guests[0].Domains[0].HTTPPort = serve(t, named("alice"), false)
	s.set()
	wg.Wait()
	if asked.Load() != 1 {
		t.Errorf("the guest was asked to start %d times", asked.Load())
	}
	// When it is stopped again, it is started again.
	s.config.Guests[0].Running = false
	s.set()
	go func() {
		if resp, err := s.client().Get("http://a.example.org/"); err == nil {
			_ = resp.Body.Close()
		}
	}()
	eventually(t, "it is asked once more", func() bool { return asked.Load() == 2 })
}

// TestWakeTrial: a server that opens its sockets, ends, and is then started in earnest,
// as nginx does on Debian, is waited for; so is one that opens one socket after another.
func TestWakeTrial(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	asked := make(chan struct{}, 1)
	s.wake = func(string) { asked <- struct{}{} }
	trial, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trial.Close() })
	called := make(chan struct{}) // before, the reset would be the call's own error
	go func() {
		if c, err := trial.Accept(); err == nil {
			<-called
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}()
	four, six := serveTLS(t, "four"), serveTLS(t, "six")
	s.guest("alice", vps.Domain{Name: "a.example.org", Wake: true})
	s.config.Guests[0].Running, s.config.Guests[0].Address6 = false, netip.MustParseAddr("2001:db8:213::7")
	var calls atomic.Int32
	s.origin.dial = func(ctx context.Context, _, to netip.AddrPort) (*net.TCPConn, error) {
		// It tries, and ends; then it opens its socket of IPv6 first.
		at := trial.Addr().String()
		switch n := calls.Add(1); {
		case n == 1:
			defer close(called)
		case to.Addr().Is6():
			at = fmt.Sprint("127.0.0.1:", six)
		case n == 2:
			return nil, unix.ECONNREFUSED
		case n > 2:
			at = fmt.Sprint("127.0.0.1:", four)
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
	s.set()
	answer := make(chan string)
	go func() {
		c, err := handshake(s.dial(webTLS), "a.example.org")
		if err != nil {
			answer <- err.Error()
			return
		}
		answer <- ask(t, c, "x")
	}()
	<-asked
	s.config.Guests[0].Running = true
	s.set()
	if got := <-answer; got != "four: x" {
		t.Errorf("the first caller hears %q", got)
	}
	if got := calls.Load(); got != 4 {
		t.Errorf("the guest was called %d times", got)
	}
	// From then on callers do not wait for more.
	if c, err := handshake(s.dial(webTLS), "a.example.org"); err != nil {
		t.Error(err)
	} else if got := ask(t, c, "y"); got != "four: y" || calls.Load() != 5 {
		t.Errorf("the next caller hears %q, and the guest was called %d times", got, calls.Load())
	}
}

// TestWakeInVain: who waits for a guest that does not come is told so, and the next
// one has it started again.
func TestWakeInVain(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var asked atomic.Int32
	s.wake = func(string) { asked.Add(1) }
	s.config.Settings.WakeTimeout = vps.Duration(50 * time.Millisecond)
	s.guest("alice", vps.Domain{Name: "a.example.org", Wake: true}, vps.Domain{Name: "b.example.org"}).Running = false
	s.set()
	if code, _ := get(t, s.client(), "http://b.example.org/"); code != 503 || asked.Load() != 0 {
		t.Error(code)
	}
	for i := range 2 {
		resp, err := s.client().Get("http://a.example.org/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || asked.Load() != int32(i+1) {
			t.Errorf("%s, asked %d", resp.Status, asked.Load())
		}
	}
	if _, err := handshake(s.dial(webTLS), "a.example.org"); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Error(err)
	}
	// Who hangs up does not wait, nor does one more than may: of one caller's, and of
	// all.
	s.config.Settings.WakeTimeout = vps.Duration(time.Hour)
	s.set()
	var conns []*net.TCPConn
	var answered sync.WaitGroup
	var refused atomic.Int32
	call := func(from byte) {
		c := s.dialFrom(webTLS, netip.AddrFrom4([4]byte{127, 0, 0, from}))
		_, _ = c.Write(clientHello(t, "a.example.org"))
		answered.Go(func() {
			if b, _ := io.ReadAll(c); len(b) > 0 {
				refused.Add(1)
			}
		})
		conns = append(conns, c)
	}
	for range 64 + 3 {
		call(2)
	}
	eventually(t, "some of a caller's are too many", func() bool { return refused.Load() == 3 })
	for i := range 64 + 2 {
		call(byte(3 + i/30))
	}
	eventually(t, "some are too many", func() bool { return refused.Load() == 5 })
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "nobody waits", func() bool { return s.server.Stats().Guests["alice"].Refused[edge.ReasonWake] == 3+128+5 })
	answered.Wait()
}

// TestSwaps: connections live through any change of the table, and calls come in
// while it changes.
func TestSwaps(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	p := serveTLS(t, "alice")
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: p, HTTPPort: serve(t, named("alice"), false)})
	s.guest("bob")
	s.set()
	old, err := handshake(s.dial(webTLS), "a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			c := s.config
			c.Settings.IdleTimeout = vps.Duration(time.Hour + time.Duration(i%2)*time.Minute)
			c.Settings.HandshakeTimeout = vps.Duration(time.Minute + time.Duration(i%2)*time.Minute)
			c.Guests = append([]edge.Guest(nil), c.Guests...)
			c.Guests[1].Domains = []vps.Domain{{Name: fmt.Sprintf("b%d.example.org", i)}}
			if err := s.server.Set(c); err != nil {
				t.Error(err)
			}
		}
	})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			client := s.client(func(tr *http.Transport) { tr.DisableKeepAlives = true })
			for range 100 {
				if code, got := get(t, client, "http://a.example.org/"); code != 200 {
					t.Errorf("%d %s", code, got)
				}
				c, err := handshake(s.dial(webTLS), "a.example.org")
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.Close()
			}
		})
	}
	callers.Wait()
	stop()
	swaps.Wait()
	s.config.Guests[0].Domains, s.config.Guests[0].Running = nil, false
	s.set()
	if got := ask(t, old, "still there?"); got != "alice: still there?" {
		t.Error(got)
	}
	if err := s.server.Set(edge.Config{Guests: []edge.Guest{{ID: "../x", Address: netip.MustParseAddr("127.0.0.1")}}}); err == nil {
		t.Error("a bad config was taken")
	}
}

// TestDrain: calls that are on their way end well, those that only wait end at once,
// and nothing is left.
func TestDrain(t *testing.T) {
	before := runtime.NumGoroutine()
	s := newStand(t)
	asked, answer := make(chan bool), make(chan bool)
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked <- true
			<-answer
		}
		_, _ = io.WriteString(w, "done")
	}
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, h, true)})
	s.set()
	tlsConn, err := handshake(s.dial(webTLS), "a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	one, two, idleOne, idleTwo := s.client(), s.client(h2c), s.dial(web), s.client(h2c)
	_, _ = io.WriteString(idleOne, "GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n")
	readAnswer(t, bufio.NewReader(idleOne))
	get(t, idleTwo, "http://a.example.org/")
	silent := s.dial(web) // and sends its request when the edge drains already
	eventually(t, "all are taken", func() bool { return s.server.Stats().Open == 4 })
	var wg sync.WaitGroup
	for _, c := range []*http.Client{one, two} {
		wg.Go(func() {
			if code, got := get(t, c, "http://a.example.org/slow"); code != 200 || got != "done" {
				t.Error(code, got)
			}
		})
		<-asked
	}
	s.stop()
	s.serving.Wait()
	drained := make(chan error)
	go func() { drained <- s.server.Drain(t.Context()) }()
	if rest, err := io.ReadAll(idleOne); err != nil || !bytes.Contains(rest, nil) {
		t.Error(err)
	}
	eventually(t, "idle ones have ended", func() bool { return s.server.Stats().Open == 4 })
	_, _ = io.WriteString(silent, "GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n")
	if b, err := io.ReadAll(silent); err != nil || !strings.HasSuffix(string(b), "done") || !strings.Contains(string(b), "Connection: close") {
		t.Errorf("%q %v", b, err)
	}
	close(answer)
	wg.Wait()
	if got := ask(t, tlsConn, "x"); got != "alice: x" {
		t.Error(got)
	}
	eventually(t, "one is left", func() bool { return s.server.Stats().Open == 1 })
	select {
	case err := <-drained:
		t.Fatal("drained, with a connection open:", err)
	default:
	}
	_ = tlsConn.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	for _, c := range []*http.Client{one, two, idleTwo} {
		c.CloseIdleConnections()
	}
	_ = before
}

// TestCut: what has not ended in time is cut, whatever it is doing.
func TestCut(t *testing.T) {
	s := newStand(t)
	s.wake = func(string) {}
	asked := make(chan bool)
	h := func(_ http.ResponseWriter, r *http.Request) {
		asked <- true
		<-r.Context().Done()
	}
	p := serve(t, h, true)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: p}, vps.Domain{Name: "up.example.org", HTTPPort: serve(t, echoUpgrade, false)})
	s.guest("bob", vps.Domain{Name: "b.example.org", Wake: true}).Running = false
	s.set()
	tlsConn, err := handshake(s.dial(webTLS), "a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	conns := []net.Conn{tlsConn, s.dial(web), s.dial(web), s.dial(webTLS), s.dial(web)}
	for i, begin := range []string{1: "GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n", 2: "GET / HTTP/1.1\r\nHost: up.example.org\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 3: string(clientHello(t, "b.example.org")), 4: "GET / HTTP/1.1\r\nHost: b.example.org\r\n\r\n"} {
		_, _ = io.WriteString(conns[i], begin)
	}
	<-asked
	eventually(t, "all are on their way", func() bool { return s.server.Stats().Open == 5 && s.server.Stats().Guests["alice"].Open == 3 })
	s.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.server.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for i, c := range conns {
		if b, _ := io.ReadAll(c); bytes.Contains(b, []byte(" 200 OK")) {
			t.Errorf("%d: %q", i, b)
		}
	}
	eventually(t, "nothing is left", func() bool { st := s.server.Stats(); return st.Open == 0 && st.Guests["alice"].Open == 0 })
}

// TestNothingIsLeft: no goroutine outlives its connection.
func TestNothingIsLeft(t *testing.T) {
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, echoUpgrade, false)})
	s.guest("bob", vps.Domain{Name: "b.example.org", HTTPPort: serve(t, named("bob"), true)})
	s.set()
	before := runtime.NumGoroutine()
	for range 10 {
		c, err := handshake(s.dial(webTLS), "a.example.org")
		if err != nil {
			t.Fatal(err)
		}
		ask(t, c, "x")
		_ = c.Close()
		for _, change := range [][]func(*http.Transport){nil, {h2c}} {
			client := s.client(change...)
			get(t, client, "http://b.example.org/")
			get(t, client, "http://none.example.org/")
			client.CloseIdleConnections()
		}
		u := s.dial(web)
		_, _ = io.WriteString(u, "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		readAnswer(t, bufio.NewReader(u))
		_ = u.Close()
		s.raw(web, "nonsense\r\n\r\n")
	}
	eventually(t, "connections end", func() bool { return s.server.Stats().Open == 0 })
	goroutines(t, before)
}

// TestGuestLimits: a guest has so many connections at a time, and so many new ones.
func TestGuestLimits(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, named("alice"), true)}).Limits.Connections = 3
	s.guest("bob", vps.Domain{Name: "b.example.org", Port: serveTLS(t, "bob"), HTTPPort: serve(t, named("bob"), true)}).Limits.NewConnections = 3
	s.set()
	var conns []net.Conn
	for range 3 {
		c, err := handshake(s.dial(webTLS), "a.example.org")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if _, err := handshake(s.dial(webTLS), "a.example.org"); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Error(err)
	}
	for _, change := range [][]func(*http.Transport){nil, {h2c}} {
		resp, err := s.client(change...).Get("http://a.example.org/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
			t.Error(resp)
		}
	}
	if got := s.server.Stats().Guests["alice"].Refused[edge.ReasonGuestConnections]; got != 3 {
		t.Errorf("%d were refused", got)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "there is room again", func() bool {
		code, _ := get(t, s.client(), "http://a.example.org/")
		return code == 200
	})
	eventually(t, "new ones are refused", func() bool {
		code, _ := get(t, s.client(), "http://b.example.org/")
		return code == 503 && s.server.Stats().Guests["bob"].Refused[edge.ReasonGuestRate] > 0
	})
}

// TestCallerLimits: so does a caller, who is told so by HTTP and hung up on by TLS.
func TestCallerLimits(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.CallerConnections = 5
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, named("alice"), true)})
	s.set()
	var conns []net.Conn
	for range 5 {
		c, err := handshake(s.dial(webTLS), "a.example.org")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if s.comesIn("a.example.org") {
		t.Error("one more was let in")
	}
	if got := s.raw(web, "GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 429 ") || !strings.Contains(got, "Retry-After: 1\r\n") {
		t.Error(got)
	}
	_ = conns[0].Close()
	eventually(t, "there is room for one, and none for a stream on it", func() bool {
		resp, err := s.client(h2c).Get("http://a.example.org/")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") == "1"
	})
	for _, c := range conns {
		_ = c.Close()
	}
	s.config.Settings.CallerRate = 2
	s.set()
	eventually(t, "new ones are refused", func() bool {
		s.raw(web, "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: close\r\n\r\n")
		return s.server.Stats().Refused[edge.ReasonCallerRate] > 0
	})
}

// TestNoRoom: when the edge has no file descriptors left, callers are hung up on and
// those that are there go on.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(o *edge.Options) { o.MostSockets = 4 })
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice")})
	s.set()
	for range 2 {
		if _, err := handshake(s.dial(webTLS), "a.example.org"); err != nil {
			t.Fatal(err)
		}
	}
	if s.comesIn("a.example.org") {
		t.Error("there was room")
	}
	if s.server.Stats().Refused[edge.ReasonServer] != 1 {
		t.Error(s.server.Stats())
	}
}

// faultyListener fails a few times before it takes calls.
type faultyListener struct {
	net.Listener
	faults atomic.Int32
}

func (l *faultyListener) Accept() (net.Conn, error) {
	if l.faults.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: unix.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptFails(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, named("alice"), true)})
	s.set()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &faultyListener{Listener: l}
	f.faults.Store(3)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.server.Serve(ctx, web, f) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: close\r\n\r\n")
	if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "alice") {
		t.Errorf("%q %v", b, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
