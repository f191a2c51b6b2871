//go:build linux

package export_test

import (
	"io"
	"strings"
	"testing"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// testCase is what a caller does, and how it ends. Routers that differ by nature are
// named, with the reason.
type testCase struct {
	name    string
	do      func(w *world) string
	want    string
	differs map[string]string // what a router says instead, by its name up to a space
	because string            // why it differs
}

// table runs cases against all routers.
func table(t *testing.T, config func() *edge.Config, guests func(w *world), cases []testCase) {
	t.Helper()
	for _, r := range routers() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := config()
			w := newWorld(t, c.Guests...)
			guests(w)
			r.start(w, c)
			kind, _, _ := strings.Cut(r.name, " ")
			for _, tc := range cases {
				want := tc.want
				if other, ok := tc.differs[kind]; ok {
					if tc.because == "" || other == tc.want {
						t.Errorf("%s: nothing differs, or nobody says why", tc.name)
					}
					want = other
				}
				if got := tc.do(w); got != want {
					t.Errorf("%s: got %q, want %q", tc.name, got, want)
				}
			}
		})
	}
}

// web asks for the root of a host, on a connection of its own.
func web(host string) func(*world) string {
	return func(w *world) string { return w.http(caller4, 80, get("/", host)) }
}

func get(path, host string) string { return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

func secure(port int, name string) func(*world) string {
	return func(w *world) string { return w.tls(caller4, port, name, "") }
}

func mainConfig() *edge.Config {
	c := &edge.Config{Settings: vps.DefaultEdgeSettings(), Ports: []edge.Port{
		{Number: 80, Kind: edge.KindHTTP}, {Number: 443, Kind: edge.KindTLS}, {Number: 443, Kind: edge.KindQUIC}, {Number: 993, Kind: edge.KindTLS},
	}}
	c.Settings.Caller = vps.CallerHidden
	stopped := guest("erin", "10.9.0.6", "", vps.Domain{Name: "erin.example"})
	stopped.Running = false
	c.Guests = []edge.Guest{
		guest("alice", "10.9.0.2", "", vps.Domain{Name: "alice.example"}, vps.Domain{Name: "*.alice.example"}, vps.Domain{Name: "alt.example", Port: 8443, HTTPPort: 8080},
			vps.Domain{Name: "*", Listen: 993}, vps.Domain{Name: "default"}, vps.Domain{Name: "hostnames"}, vps.Domain{Name: "own.example"}, vps.Domain{Name: "own.example", Listen: 443, Port: 8443}),
		guest("bob", "10.9.0.3", "", vps.Domain{Name: "bob.example", Caller: vps.CallerProxyV1}, vps.Domain{Name: "*.deep.alice.example", Caller: vps.CallerProxyV1},
			vps.Domain{Name: "plain.bob.example", HTTPPort: 8080}),
		guest("carol", "10.9.0.4", "2001:db8:9::4", vps.Domain{Name: "carol.example", Caller: vps.CallerTransparent}),
		guest("dave", "10.9.0.5", "", vps.Domain{Name: "dave.example", Caller: vps.CallerProxyV2}, vps.Domain{Name: "imap.dave.example", Listen: 993, Caller: vps.CallerProxyV2}),
		stopped,
		guest("frank", "10.9.0.7", "", vps.Domain{Name: "frank.example"}),
	}
	return c
}

func mainGuests(w *world) {
	for _, at := range []string{"10.9.0.2:443", "10.9.0.2:8443", "10.9.0.2:993"} {
		w.serveTLS("alice", at, false)
	}
	w.serveHTTP("alice", "10.9.0.2:80", false)
	w.serveHTTP("alice", "10.9.0.2:8080", false)
	w.serveTLS("bob", "10.9.0.3:443", true)
	w.serveHTTP("bob", "10.9.0.3:80", true)
	w.serveHTTP("bob", "10.9.0.3:8080", false)
	// carol's servers listen to IPv6 alone.
	w.serveTLS("carol", "[2001:db8:9::4]:443", false)
	w.serveHTTP("carol", "[2001:db8:9::4]:80", false)
	w.serveTLS("dave", "10.9.0.5:443", true)
	w.serveTLS("dave", "10.9.0.5:993", true)
	w.serveHTTP("dave", "10.9.0.5:80", true)
}

// TestRouters: one configuration means the same to the edge, to HAProxy and to nginx.
func TestRouters(t *testing.T) {
	t.Parallel()
	const told = " sees the caller to " + host4
	asked := func(path string) string {
		return "alice:80 GET alice.example" + path + " sees the host for the caller's address"
	}
	cases := []testCase{
		// Names of TLS.
		{name: "exact", do: secure(443, "alice.example"), want: "alice:443 sees the host"},
		{name: "upper case", do: secure(443, "ALICE.Example"), want: "alice:443 sees the host"},
		{name: "suffix, one label", do: secure(443, "x.alice.example"), want: "alice:443 sees the host"},
		{name: "suffix, many labels", do: secure(443, "a.b.c.d.alice.example"), want: "alice:443 sees the host"},
		{name: "the longer suffix", do: secure(443, "x.deep.alice.example"), want: "bob:443" + told + ":443 by v1"},
		{name: "many labels of the longer suffix", do: secure(443, "x.y.deep.alice.example"), want: "bob:443" + told + ":443 by v1"},
		{name: "the longer suffix itself is below the shorter one", do: secure(443, "deep.alice.example"), want: "alice:443 sees the host"},
		{name: "suffix as the end of a label", do: secure(443, "xalice.example"), want: "alert 112"},
		{name: "unknown", do: secure(443, "nobody.example"), want: "alert 112"},
		{name: "the name above", do: secure(443, "example"), want: "alert 112"},
		{name: "no name", do: secure(443, ""), want: "alert 112"},
		{name: "other port of the guest", do: secure(443, "alt.example"), want: "alice:8443 sees the host"},
		{name: "the port's own domain before the one for web", do: secure(443, "own.example"), want: "alice:8443 sees the host"},
		{name: "a name that is a word of nginx", do: secure(443, "default"), want: "alice:443 sees the host"},
		{name: "another one", do: secure(443, "hostnames"), want: "alice:443 sees the host"},
		{name: "final dot", do: func(w *world) string { return w.raw(caller4, 443, helloFor("nobody.example.")) }, want: "alert 112"},
		{name: "final dot of a guest, who takes none", do: func(w *world) string { return w.raw(caller4, 443, helloFor("alice.example.")) }, want: "alert 50"},
		{name: "a name with a space", do: func(w *world) string { return w.raw(caller4, 443, helloFor("x y.alice.example")) }, want: "alert 112"},
		// Further ports.
		{
			name: "port 993, exact", do: secure(993, "imap.dave.example"), want: "dave:993" + told + ":993 by v2",
			differs: map[string]string{"nginx": "dave:993" + told + ":993 by v1"}, because: "nginx has no version 2",
		},
		{name: "port 993, default guest", do: secure(993, "nobody.example"), want: "alice:993 sees the host"},
		{name: "port 993, no name", do: secure(993, ""), want: "alice:993 sees the host"},
		{name: "port 993, a name with a space", do: func(w *world) string { return w.raw(caller4, 993, helloFor("x y")) }, want: "alert 112"},
		{
			name: "port 993, garbage", do: func(w *world) string { return w.raw(caller4, 993, "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c") }, want: "closed",
			differs: map[string]string{"nginx": "400"}, because: "nginx takes it for HTTP",
		},
		// Callers.
		{name: "PROXY v1", do: secure(443, "bob.example"), want: "bob:443" + told + ":443 by v1"},
		{
			name: "PROXY v2", do: secure(443, "dave.example"), want: "dave:443" + told + ":443 by v2",
			differs: map[string]string{"nginx": "dave:443" + told + ":443 by v1"}, because: "nginx has no version 2",
		},
		{name: "PROXY v1, IPv6", do: func(w *world) string { return w.tls(caller6, 443, "bob.example", "") }, want: "bob:443 sees the caller to [" + host6 + "]:443 by v1"},
		{name: "the guest takes IPv6 alone", do: secure(443, "carol.example"), want: "carol:443 sees the host"},
		{name: "a header that nobody asked for", do: func(w *world) string { return w.tls(caller4, 443, "alice.example", proxyV1(443)) }, want: "closed"},
		// Hellos in pieces.
		{name: "hello byte by byte", do: func(w *world) string { return w.slow("alice.example") }, want: "alice:443 sees the host"},
		{name: "hello of almost 16 KiB", do: func(w *world) string { return w.large("alice.example", 16<<10-5) }, want: "handshake"},
		{
			name: "hello in two records", do: func(w *world) string { return w.records("alice.example") }, want: "handshake",
			differs: map[string]string{"haproxy": "alert"}, because: "HAProxy reads one record",
		},
		// Guests that do not answer.
		{
			name: "a stopped guest", do: secure(443, "erin.example"), want: "alert 80",
			differs: map[string]string{"haproxy": "closed", "nginx": "closed"}, because: "no router has an alert for it",
		},
		{
			name: "a guest that refuses", do: secure(443, "frank.example"), want: "alert 80",
			differs: map[string]string{"haproxy": "closed", "nginx": "closed"}, because: "no router has an alert for it",
		},
		{name: "HTTP, a stopped guest", do: web("erin.example"), want: "503, retry"},
		{name: "HTTP, a guest that refuses", do: web("frank.example"), want: "503, retry"},
		{name: "HTTP, a guest that hangs up", do: func(w *world) string { return w.http(caller4, 80, get("/broken", "alice.example")) }, want: "502, retry"},
		// Hosts.
		{name: "HTTP, exact", do: web("alice.example"), want: asked("/")},
		{name: "HTTP, upper case", do: web("Alice.EXAMPLE"), want: "alice:80 GET Alice.EXAMPLE/ sees the host for the caller's address"},
		{name: "HTTP, port", do: web("alice.example:80"), want: "alice:80 GET alice.example:80/ sees the host for the caller's address"},
		{name: "HTTP, final dot", do: web("alice.example."), want: "alice:80 GET alice.example./ sees the host for the caller's address"},
		{name: "HTTP, suffix", do: web("x.y.alice.example"), want: "alice:80 GET x.y.alice.example/ sees the host for the caller's address"},
		{name: "HTTP, the longer suffix", do: web("x.deep.alice.example"), want: "bob:80 GET x.deep.alice.example/" + told + ":80 by v1"},
		{name: "HTTP, other port", do: web("alt.example"), want: "alice:8080 GET alt.example/ sees the host for the caller's address"},
		{name: "HTTP, unknown", do: web("nobody.example"), want: "421"},
		{name: "HTTP, suffix as the end of a label", do: web("xalice.example"), want: "421"},
		{name: "HTTP, IPv6 literal", do: web("[2001:db8::1]"), want: "421"},
		{name: "HTTP, IPv6 literal with port", do: web("[2001:db8::1]:80"), want: "421"},
		{name: "HTTP, IPv4 address", do: web("192.0.2.1"), want: "421"},
		{name: "HTTP, no host for a name", do: web("a..alice.example"), want: "400"},
		{name: "HTTP, a Host with strange letters", do: web("a!b.alice.example"), want: "400"},
		{name: "HTTP/1.1 without Host", do: func(w *world) string { return w.http(caller4, 80, "GET / HTTP/1.1\r\n\r\n") }, want: "400"},
		{name: "two Hosts", do: func(w *world) string {
			return w.http(caller4, 80, "GET / HTTP/1.1\r\nHost: alice.example\r\nHost: bob.example\r\n\r\n")
		}, want: "400"},
		{name: "HTTP/1.0 with Host", do: func(w *world) string { return w.http(caller4, 80, "GET /a HTTP/1.0\r\nHost: alice.example\r\n\r\n") }, want: asked("/a")},
		{name: "HTTP/1.0 without Host", do: func(w *world) string { return w.http(caller4, 80, "GET / HTTP/1.0\r\n\r\n") }, want: "421"},
		{name: "absolute form", do: func(w *world) string {
			return w.http(caller4, 80, "GET http://alice.example/a?b HTTP/1.1\r\nHost: alice.example\r\n\r\n")
		}, want: asked("/a?b")},
		{name: "CONNECT", do: func(w *world) string {
			return w.http(caller4, 80, "CONNECT alice.example:443 HTTP/1.1\r\nHost: alice.example:443\r\n\r\n")
		}, want: "405", differs: map[string]string{"nginx": "400"}, because: "nginx takes no such request"},
		{name: "path of ACME", do: func(w *world) string {
			return w.http(caller4, 80, get("/.well-known/acme-challenge/x", "alice.example"))
		}, want: asked("/.well-known/acme-challenge/x")},
		{name: "escaped path and query", do: func(w *world) string { return w.http(caller4, 80, get("/a%2fb//c?x=%20&y", "alice.example")) }, want: asked("/a%2fb//c?x=%20&y")},
		{name: "a body", do: func(w *world) string {
			return w.http(caller4, 80, "POST / HTTP/1.1\r\nHost: alice.example\r\nContent-Length: 5\r\n\r\nhello")
		}, want: "alice:80 POST alice.example/hello sees the host for the caller's address"},
		{name: "a body in chunks", do: func(w *world) string {
			return w.http(caller4, 80, "POST / HTTP/1.1\r\nHost: bob.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
		}, want: "bob:80 POST bob.example/hello" + told + ":80 by v1"},
		{name: "other Hosts on one connection", do: func(w *world) string {
			return w.http(caller4, 80, get("/1", "alice.example"), get("/2", "bob.example"), get("/3", "plain.bob.example:80"), get("/4", "alice.example"))
		}, want: asked("/1") + "; bob:80 GET bob.example/2" + told + ":80 by v1; bob:8080 GET plain.bob.example:80/3 sees the host for the caller's address; " + asked("/4")},
		{name: "HTTP, PROXY v1", do: web("bob.example"), want: "bob:80 GET bob.example/" + told + ":80 by v1"},
		{name: "HTTP, PROXY v1, IPv6", do: func(w *world) string { return w.http(caller6, 80, get("/", "bob.example")) }, want: "bob:80 GET bob.example/ sees the caller to [" + host6 + "]:80 by v1"},
		{
			name: "HTTP, PROXY v2", do: web("dave.example"), want: "dave:80 GET dave.example/" + told + ":80 by v2",
			differs: map[string]string{"nginx": "dave:80 GET dave.example/" + told + ":80 by v1"}, because: "nginx has no version 2",
		},
		{name: "HTTP, PROXY v1, HEAD and GET", do: func(w *world) string {
			return w.http(caller4, 80, "HEAD / HTTP/1.1\r\nHost: bob.example\r\n\r\n", get("/", "bob.example"))
		}, want: "; bob:80 GET bob.example/" + told + ":80 by v1"},
		{name: "a caller who says he is another", do: func(w *world) string {
			return w.http(caller4, 80, "GET / HTTP/1.1\r\nHost: alice.example\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
		}, want: asked("/")},
		{name: "what a guest that is told does not need to hear", do: func(w *world) string {
			return w.http(caller4, 80, "GET / HTTP/1.1\r\nHost: bob.example\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
		}, want: "bob:80 GET bob.example/" + told + ":80 by v1 for 1.2.3.4"},
		{name: "HTTP, the guest takes IPv6 alone", do: web("carol.example"), want: "carol:80 GET carol.example/ sees the host for the caller's address"},
		{name: "WebSocket", do: func(w *world) string { return w.websocket("alice.example") }, want: "ping pong"},
		{name: "WebSocket, PROXY v1", do: func(w *world) string { return w.websocket("bob.example") }, want: "ping pong"},
		{
			name: "HTTP/2 without TLS", do: func(w *world) string { return w.h2c("alice.example") }, want: asked("/"),
			differs: map[string]string{"nginx": "closed"}, because: "nginx 1.22 takes HTTP/2 or HTTP/1.1 on a port, not both",
		},
		{
			name: "HTTP on a port for TLS", do: func(w *world) string { return w.raw(caller4, 443, get("/", "alice.example")) }, want: "400",
			differs: map[string]string{"haproxy": "closed"}, because: "HAProxy hangs up",
		},
	}
	table(t, mainConfig, mainGuests, cases)
}

// trustedConfig is a host behind a proxy, with a default guest.
func trustedConfig() *edge.Config {
	c := mainConfig()
	c.Settings.TrustedProxies = prefixes(proxy4+"/32", proxy6+"/64")
	c.Guests = []edge.Guest{
		guest("alice", "10.9.0.2", "", vps.Domain{Name: "alice.example"}),
		guest("frank", "10.9.0.7", "", vps.Domain{Name: "*"}),
	}
	return c
}

// TestTrustedProxies: whom proxies speak for is believed, and nobody else is.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	guests := func(w *world) {
		w.serveTLS("alice", "10.9.0.2:443", false)
		w.serveHTTP("alice", "10.9.0.2:80", false)
		w.serveTLS("frank", "10.9.0.7:443", false)
		w.serveHTTP("frank", "10.9.0.7:80", false)
	}
	from := func(from, header string) func(w *world) string {
		return func(w *world) string { return w.http(from, 80, header+get("/", "alice.example")) }
	}
	cases := []testCase{
		{name: "no proxy", do: secure(443, "alice.example"), want: "alice:443 sees the host"},
		{name: "default guest", do: secure(443, "nobody.example"), want: "frank:443 sees the host"},
		{name: "default guest, no name", do: secure(443, ""), want: "frank:443 sees the host"},
		{name: "proxy, v1", do: func(w *world) string { return w.tls(proxy4, 443, "alice.example", proxyV1(443)) }, want: "alice:443 sees the host"},
		{name: "proxy, v2", do: func(w *world) string { return w.tls(proxy4, 443, "alice.example", proxyV2()) }, want: "alice:443 sees the host"},
		{name: "proxy without a header", do: func(w *world) string { return w.tls(proxy4, 443, "alice.example", "") }, want: "closed"},
		{name: "no proxy with a header", do: func(w *world) string { return w.tls(caller4, 443, "alice.example", proxyV1(443)) }, want: "closed"},
		{name: "HTTP, no proxy", do: from(caller4, ""), want: "alice:80 GET alice.example/ sees the host for the caller's address"},
		{name: "HTTP, default guest", do: web("nobody.example"), want: "frank:80 GET nobody.example/ sees the host for the caller's address"},
		{
			name: "HTTP/1.0 without Host", do: func(w *world) string { return w.http(caller4, 80, "GET / HTTP/1.0\r\n\r\n") }, want: "frank:80 GET 10.9.0.7:80/ sees the host for the caller's address",
			differs: map[string]string{"haproxy": "frank:80 GET / sees the host for the caller's address", "nginx": "frank:80 GET localhost/ sees the host for the caller's address"},
			because: "a Host that was not said is made up, or is not",
		},
		{name: "HTTP, proxy, v1", do: from(proxy4, proxyV1(80)), want: "alice:80 GET alice.example/ sees the host for 203.0.113.99"},
		{name: "HTTP, proxy, v2", do: from(proxy4, proxyV2()), want: "alice:80 GET alice.example/ sees the host for 203.0.113.99"},
		{name: "HTTP, proxy, IPv6", do: from(proxy6, "PROXY TCP6 2001:db8:88::9 2001:db8::1 1234 80\r\n"), want: "alice:80 GET alice.example/ sees the host for 2001:db8:88::9"},
		{
			name: "HTTP, proxy, unknown", do: from(proxy4, "PROXY UNKNOWN\r\n"), want: "alice:80 GET alice.example/ sees the host for the caller's address",
			differs: map[string]string{"nginx": "alice:80 GET alice.example/ sees the host for unknown"}, because: "nginx has lost the proxy's own address by then",
		},
		{name: "HTTP, proxy without a header", do: from(proxy4, ""), want: "closed"},
		{name: "HTTP, no proxy with a header", do: from(caller4, proxyV1(80)), want: "400"},
	}
	table(t, trustedConfig, guests, cases)
}

// answered sends a hello and tells whether a guest shakes hands.
func answered(w *world, hello ...string) string {
	c := w.dial(caller4, 443)
	for _, p := range hello {
		if _, err := io.WriteString(c, p); err != nil {
			return "closed"
		}
	}
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return "closed"
	}
	if first[0] == 22 {
		return "handshake"
	}
	return "alert"
}
