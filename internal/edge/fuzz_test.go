package edge_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// FuzzFront sends anything in any pieces to ports for TLS and HTTP, as a stranger and
// as a trusted proxy. Whatever it is, the edge hangs up in the end, says nothing of
// other guests, and has nothing left of it.
func FuzzFront(f *testing.F) {
	const victim = "only the victim's callers see this"
	stands := map[bool]*stand{}
	for _, trusted := range []bool{false, true} {
		s := newStand(f)
		s.config.Settings.CallerConnections, s.config.Settings.CallerRate = 1_000_000, 1_000_000
		if trusted {
			s.config.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		s.guest("alice", vps.Domain{Name: "*.example.org", Port: serveTLS(f, "alice"), HTTPPort: serve(f, named("alice"), true)})
		s.guest("bob", vps.Domain{Name: "b.example.org", Port: deadPort(f), HTTPPort: deadPort(f)})
		s.guest("victim", vps.Domain{Name: "victim.test", HTTPPort: serve(f, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, victim) }, false)})
		s.set()
		stands[trusted] = s
	}
	hello := clientHello(f, "a.example.org")
	const proxy, get = "PROXY TCP4 203.0.113.9 203.0.113.1 1234 443\r\n", "GET /x HTTP/1.1\r\nHost: a.example.org\r\n\r\n"
	for _, seed := range []string{
		get, get + get, "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n" + get,
		"GET / HTTP/1.0\r\n\r\n", "GET http://b.example.org/ HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x11\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x8aa.example.org",
		"GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx", string(hello), string(hello[:100]),
		string(clientHello(f, "b.example.org")), "\x80\x2e\x01\x03\x01", "\x15\x03\x01\x00\x02\x01\x00", "",
	} {
		for _, kind := range []byte{0, 1, 2, 3} {
			if kind >= 2 {
				seed = proxy + seed
			}
			f.Add([]byte(seed), []byte{3, 1, 200, 0, 9}, kind)
		}
	}
	f.Fuzz(func(t *testing.T, data, pieces []byte, kind byte) {
		s := stands[kind&2 != 0]
		port := []edge.Port{web, webTLS}[kind&1]
		ctx, cancel := context.WithTimeout(t.Context(), hang.After)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.address(port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // all that counts was read
		_ = conn.SetDeadline(time.Now().Add(hang.After))
		c := conn.(*net.TCPConn)
		said := make(chan string)
		go func() {
			b, _ := io.ReadAll(c)
			said <- string(b)
		}()
		for i, rest := 0, data; len(rest) > 0; i++ {
			n := len(rest)
			if i < len(pieces) {
				n = min(n, int(pieces[i])+1)
			}
			if _, err := c.Write(rest[:n]); err != nil {
				break
			}
			rest = rest[n:]
		}
		_ = c.CloseWrite()
		if got := <-said; strings.Contains(got, victim) && !strings.Contains(strings.ToLower(string(data)), "victim.test") {
			t.Errorf("the victim answered: %q", got)
		}
	})
}
