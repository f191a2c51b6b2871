package edge_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// proxied is a guest that reads a header of the PROXY protocol, and tells who calls
// whom by it in an answer of HTTP.
func proxied(t *testing.T) uint16 {
	t.Helper()
	return accept(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%v", err)
			return
		}
		for {
			if req, err := http.ReadRequest(r); err != nil || req.Body.Close() != nil {
				return
			} else if body := fmt.Sprintf("v%d %s %s %s", h.Version, h.SourceAddr, h.DestinationAddr, req.Header.Get("X-Forwarded-For")); err == nil {
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
		}
	})
}

// TestProxyHeaders: a guest is told who calls by the PROXY protocol.
func TestProxyHeaders(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	p := proxied(t)
	for version, mode := range map[int]vps.CallerMode{1: vps.CallerProxyV1, 2: vps.CallerProxyV2} {
		name := fmt.Sprintf("v%d.example.org", version)
		s.guest(fmt.Sprintf("guest%d", version), vps.Domain{Name: name, Port: p, HTTPPort: p, Caller: mode})
		s.set()
		c := s.dial(web)
		for range 2 { // the header comes once
			_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: passes\r\n\r\n", name)
			_, _, got := readAnswer(t, bufio.NewReader(c))
			if want := fmt.Sprintf("v%d %s %s passes", version, c.LocalAddr(), c.RemoteAddr()); got != want {
				t.Errorf("%s: %q, want %q", mode, got, want)
			}
		}
		// And before the bytes of TLS, which are the caller's.
		c = s.dial(webTLS)
		h := clientHello(t, name)
		_, _ = c.Write(h)
		_ = c.CloseWrite()
		_, _ = io.ReadAll(c) // the guest has read a header, and no HTTP behind it
		eventually(t, "bytes are counted", func() bool { return s.server.Stats().Guests[fmt.Sprintf("guest%d", version)].In >= uint64(len(h)) })
	}
}

// clientHello is what a client of TLS sends first.
func clientHello(tb testing.TB, name string) []byte {
	tb.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close() //nolint:errcheck // in memory
	go func() { _, _ = handshake(theirs, name) }()
	b := make([]byte, 16<<10)
	n, err := ours.Read(b)
	if err != nil {
		tb.Fatal(err)
	}
	return b[:n]
}

func v2Header(t *testing.T, h *proxyproto.Header) string {
	t.Helper()
	h.Version = 2
	if err := h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: []byte(strings.Repeat("x", 100))}}); err != nil {
		t.Fatal(err)
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestTrustedProxies: who calls is what a trusted proxy says, in whatever pieces; and
// nothing comes in without it.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s.config.Settings.Caller = vps.CallerHidden
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "caller "+r.Header.Get("X-Forwarded-For"))
	}, false)})
	s.set()
	source, destination := &net.TCPAddr{IP: net.ParseIP("203.0.113.9"), Port: 1234}, &net.TCPAddr{IP: net.ParseIP("203.0.113.1"), Port: 443}
	source6, destination6 := &net.TCPAddr{IP: net.ParseIP("2001:db8::9"), Port: 1234}, &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 443}
	const request = "GET / HTTP/1.1\r\nHost: a.example.org\r\nX-Forwarded-For: 192.0.2.66\r\nForwarded: for=192.0.2.66\r\nConnection: close\r\n\r\n"
	for name, c := range map[string]struct{ header, want string }{
		"v1":                 {"PROXY TCP4 203.0.113.9 203.0.113.1 1234 443\r\n", "caller 203.0.113.9"},
		"v1, IPv6":           {"PROXY TCP6 2001:db8::9 2001:db8::1 1234 443\r\n", "caller 2001:db8::9"},
		"v1, unknown":        {"PROXY UNKNOWN\r\n", "caller 127.0.0.1"},
		"v1, unknown, more":  {"PROXY UNKNOWN 2001:db8::9 2001:db8::1 1234 443\r\n", "caller 127.0.0.1"},
		"v2":                 {v2Header(t, proxyproto.HeaderProxyFromAddrs(2, source, destination)), "caller 203.0.113.9"},
		"v2, IPv6":           {v2Header(t, proxyproto.HeaderProxyFromAddrs(2, source6, destination6)), "caller 2001:db8::9"},
		"v2, local":          {v2Header(t, &proxyproto.Header{Command: proxyproto.LOCAL}), "caller 127.0.0.1"},
		"v2, no address":     {"\r\n\r\n\x00\r\nQUIT\n\x21\x00\x00\x00", "caller 127.0.0.1"},
		"v2, UNIX":           {v2Header(t, proxyproto.HeaderProxyFromAddrs(2, &net.UnixAddr{Net: "unix", Name: "x"}, &net.UnixAddr{Net: "unix", Name: "y"})), "caller 127.0.0.1"},
		"none":               {"", ""},
		"v1, no line end":    {"PROXY TCP4 203.0.113.9 203.0.113.1 1234 443" + strings.Repeat(" ", 100), ""},
		"v1, half":           {"PROXY TCP4 203.0.113.9\r\n", ""},
		"v1, families mixed": {"PROXY TCP4 2001:db8::9 2001:db8::1 1234 443\r\n", ""},
		"v2, too long":       {"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff", ""},
		"v2, too short":      {"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x04\x01\x02\x03\x04", ""},
		"v3":                 {"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c\x01\x02\x03\x04\x01\x02\x03\x04\x01\x02\x03\x04", ""},
	} {
		for _, pieces := range []int{1 << 20, 1, 7} {
			conn := s.dial(web)
			_ = conn.SetNoDelay(true)
			send := c.header + request
			for len(send) > 0 {
				n := min(pieces, len(send))
				if _, err := io.WriteString(conn, send[:n]); err != nil {
					break
				}
				send = send[n:]
			}
			b, _ := io.ReadAll(conn)
			got := string(b)
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("%s in pieces of %d: %q, want %q", name, pieces, got, c.want)
			}
		}
	}
	c := s.dial(webTLS)
	_, _ = io.WriteString(c, "PROXY TCP4 203.0.113.9 203.0.113.1 1234 443\r\n")
	conn, err := handshake(c, "a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, conn, "x"); got != "alice: x" {
		t.Error(got)
	}
	_ = conn.Close()
	eventually(t, "the log says who called", func() bool {
		return strings.Contains(strings.Join(s.logs.wait(t, 1), ""), `203.0.113.9 - - `)
	})
	if _, err := handshake(s.dial(webTLS), "a.example.org"); err == nil {
		t.Error("without a header")
	}
}

// TestProxyHeaderOfStrangers: nobody else's word is taken.
func TestProxyHeaderOfStrangers(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, named("alice"), false)})
	s.set()
	const header = "PROXY TCP4 203.0.113.9 203.0.113.1 1234 443\r\n"
	if got := s.raw(web, header+"GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Error(got)
	}
	c := s.dial(webTLS)
	_, _ = io.WriteString(c, header)
	if _, err := handshake(c, "a.example.org"); err == nil {
		t.Error("a stranger's header was read")
	}
	eventually(t, "counted", func() bool { return s.server.Stats().Refused["hello-garbage"] == 1 })
}

// TestWhoIsImitated: a guest sees the caller's address, but for callers whom nobody
// may be taken for, and those of another family.
func TestWhoIsImitated(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s.config.Own = []netip.Prefix{netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("10.213.0.0/16"), netip.MustParsePrefix("2001:db8:213::/48")}
	for name, mode := range map[string]vps.CallerMode{"transparent": "", "hidden": vps.CallerHidden, "v1": vps.CallerProxyV1} {
		s.guest(name, vps.Domain{Name: name + ".example.org", Caller: mode})
		s.guest(name+"6", vps.Domain{Name: name + "6.example.org", Caller: mode}).Address6 = netip.MustParseAddr("2001:db8:213::7")
	}
	s.guest("only6", vps.Domain{Name: "only6.example.org"}).Address6 = netip.MustParseAddr("2001:db8:213::8")
	s.config.Guests[len(s.config.Guests)-1].Address = netip.Addr{}
	s.set()
	const own4, own6, host = "127.0.0.1:443", "[2001:db8:213::7]:443", "as the host"
	for _, c := range []struct {
		guest, caller string
		want          []string // what is dialed, and as whom
	}{
		{"transparent", "203.0.113.9", []string{own4 + " as 203.0.113.9:1234"}},
		{"transparent", "203.0.113.1", []string{own4 + " " + host}},
		{"transparent", "10.213.4.4", []string{own4 + " " + host}},
		{"transparent", "127.0.0.1", []string{own4 + " " + host}},
		{"transparent", "0.0.0.0", []string{own4 + " " + host}},
		{"transparent", "224.0.0.1", []string{own4 + " " + host}},
		{"transparent", "255.255.255.255", []string{own4 + " " + host}},
		{"transparent", "169.254.1.1", []string{own4 + " " + host}},
		{"transparent", "2001:db8::9", []string{own4 + " " + host}},
		{"transparent6", "203.0.113.9", []string{own4 + " as 203.0.113.9:1234", own4 + " " + host, own6 + " " + host}},
		{"transparent6", "2001:db8::9", []string{own6 + " as [2001:db8::9]:1234", own6 + " " + host, own4 + " " + host}},
		{"transparent6", "2001:db8:213::9", []string{own6 + " " + host, own4 + " " + host}},
		{"transparent6", "fe80::1", []string{own6 + " " + host, own4 + " " + host}},
		{"transparent6", "::1", []string{own6 + " " + host, own4 + " " + host}},
		{"only6", "203.0.113.9", []string{"[2001:db8:213::8]:443 " + host}},
		{"hidden", "203.0.113.9", []string{own4 + " " + host}},
		{"hidden6", "2001:db8::9", []string{own4 + " " + host, own6 + " " + host}},
		{"v1", "203.0.113.9", []string{own4 + " " + host}},
		{"v16", "2001:db8::9", []string{own4 + " " + host, own6 + " " + host}},
	} {
		var got []string
		s.origin.mu.Lock()
		s.origin.dial = func(_ context.Context, from, to netip.AddrPort) (*net.TCPConn, error) {
			how := host
			if from.IsValid() {
				how = "as " + from.String()
			}
			got = append(got, to.String()+" "+how)
			return nil, io.EOF
		}
		s.origin.mu.Unlock()
		conn := s.dial(webTLS)
		version, to := 4, "192.0.2.1"
		if strings.Contains(c.caller, ":") {
			version, to = 6, "2001:db8::1"
		}
		_, _ = fmt.Fprintf(conn, "PROXY TCP%d %s %s 1234 443\r\n", version, c.caller, to)
		_, _ = handshake(conn, c.guest+".example.org")
		if strings.Join(got, ", ") != strings.Join(c.want, ", ") {
			t.Errorf("%s called by %s: %q, want %q", c.guest, c.caller, got, c.want)
		}
	}
}

// TestBannedCallers: a caller whom a guest refuses, and nobody else, does not come to
// it by its other address, from the host. Where nobody is taken he does.
func TestBannedCallers(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	port := serveTLS(t, "a.example.org")
	g := s.guest("alice", vps.Domain{Name: "a.example.org", Port: port})
	g.Address6 = netip.MustParseAddr("2001:db8:213::7")
	s.set()
	for _, bans := range []bool{true, false} {
		s.origin.mu.Lock()
		s.origin.dial = func(ctx context.Context, from, to netip.AddrPort) (*net.TCPConn, error) {
			if to.Addr() == g.Address6 && (from.IsValid() || !bans) {
				return nil, unix.ECONNREFUSED
			}
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}
		s.origin.mu.Unlock()
		conn := s.dial(webTLS)
		_, _ = fmt.Fprint(conn, "PROXY TCP6 2001:db8::9 2001:db8::1 1234 443\r\n")
		if _, err := handshake(conn, "a.example.org"); (err != nil) != bans {
			t.Errorf("banned %t: %v", bans, err)
		}
	}
}

// TestForwardedFor: a guest that sees the caller gets the request as it is; one that
// does not is told, by headers in which nothing of the caller's is left.
func TestForwardedFor(t *testing.T) {
	ns := nstest.New(t)
	ns.Exec("ip", "addr", "add", "203.0.113.9/32", "dev", "lo")
	s := newStand(t) // its listeners are in the namespace
	s.origin.dial = func(ctx context.Context, from, to netip.AddrPort) (conn *net.TCPConn, err error) {
		ns.Do(func() {
			d := net.Dialer{}
			if from.IsValid() {
				d.LocalAddr = &net.TCPAddr{IP: from.Addr().AsSlice()}
			}
			var c net.Conn
			if c, err = d.DialContext(ctx, "tcp", to.String()); err == nil {
				conn = c.(*net.TCPConn)
			}
		})
		return conn, err
	}
	h := func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "from %s for %q proto %q host %q forwarded %q", from, r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"], r.Header["X-Forwarded-Host"], r.Header["Forwarded"])
	}
	p := serve(t, h, false)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: p})
	s.guest("bob", vps.Domain{Name: "b.example.org", HTTPPort: p, Caller: vps.CallerHidden})
	s.set()
	const forged = "X-Forwarded-For: 192.0.2.66\r\nForwarded: for=192.0.2.66\r\nX-Forwarded-Proto: ftp\r\n"
	for _, c := range []struct{ host, from, want string }{
		{"a.example.org", "203.0.113.9", `from 203.0.113.9 for ["192.0.2.66"] proto ["ftp"] host [] forwarded ["for=192.0.2.66"]`},
		{"a.example.org", "127.0.0.1", `from 127.0.0.1 for ["127.0.0.1"] proto ["http"] host ["a.example.org"] forwarded []`},
		{"b.example.org", "203.0.113.9", `from 127.0.0.1 for ["203.0.113.9"] proto ["http"] host ["b.example.org"] forwarded []`},
	} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.from)}}
		conn, err := d.DialContext(t.Context(), "tcp", s.address(web))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", c.host, forged)
		b, _ := io.ReadAll(conn)
		if !strings.Contains(string(b), c.want) {
			t.Errorf("%s from %s: %s, want %s", c.host, c.from, b, c.want)
		}
	}
}

var _ edge.Origin = (*origin)(nil)
