//go:build linux

package export_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"sublet/internal/edge"
	"sublet/internal/edge/export"
	"sublet/internal/vps"
)

// limited is a host of which callers may have little.
func limited(change func(c *edge.Config)) func() *edge.Config {
	return func() *edge.Config {
		c := mainConfig()
		c.Guests = []edge.Guest{
			guest("alice", "10.9.0.2", "", vps.Domain{Name: "alice.example"}, vps.Domain{Name: "imap.example", Listen: 993}),
			guest("bob", "10.9.0.3", "", vps.Domain{Name: "bob.example"}),
		}
		change(c)
		return c
	}
}

func limitedGuests(w *world) {
	w.serveTLS("alice", "10.9.0.2:443", false)
	w.serveHTTP("alice", "10.9.0.2:80", false)
	w.serveTLS("bob", "10.9.0.3:443", false)
	w.serveHTTP("bob", "10.9.0.3:80", false)
}

// hold keeps connections open on which a request has been answered.
func (w *world) hold(from, host string, n int) []net.Conn {
	var all []net.Conn
	for range n {
		all = append(all, w.websocketTo(from, host))
	}
	return all
}

func hangUp(all []net.Conn) {
	for _, c := range all {
		_ = c.Close()
	}
}

// TestCallersConnections: one caller has no more of them than he may, and others have
// theirs.
func TestCallersConnections(t *testing.T) {
	t.Parallel()
	config := limited(func(c *edge.Config) { c.Settings.CallerConnections = 3 })
	with := func(from string, others ...string) func(w *world) string {
		return func(w *world) string {
			defer hangUp(w.hold(from, "alice.example", 3))
			var all []string
			for _, other := range others {
				all = append(all, w.http(other, 80, get("/", "bob.example")))
			}
			return strings.Join(all, "; ")
		}
	}
	const let = "bob:80 GET bob.example/ sees the host for the caller's address"
	table(t, config, limitedGuests, []testCase{
		{name: "IPv4", do: with(caller4, caller4, proxy4), want: "429, retry; " + let},
		{name: "a network of IPv6", do: with(caller6, caller6, near6, proxy6), want: "429, retry; 429, retry; " + let},
	})
}

// TestCallersRate: one caller begins no more of them than he may.
func TestCallersRate(t *testing.T) {
	t.Parallel()
	config := limited(func(c *edge.Config) { c.Settings.CallerRate = 2 })
	table(t, config, limitedGuests, []testCase{{name: "many at once", do: func(w *world) string {
		for range 100 {
			if w.http(caller6, 80, get("/", "alice.example")) == "429, retry" {
				return "over"
			}
		}
		return "never"
	}, want: "over"}})
}

// TestGuestsConnections: a guest has no more of them than it may.
func TestGuestsConnections(t *testing.T) {
	t.Parallel()
	config := limited(func(c *edge.Config) { c.Guests[0].Limits.Connections = 3 })
	table(t, config, limitedGuests, []testCase{{name: "one too many", do: func(w *world) string {
		defer hangUp(w.hold(caller4, "alice.example", 3))
		return w.http(caller4, 80, get("/", "alice.example")) + "; " + w.http(caller4, 80, get("/", "bob.example"))
	}, want: "503, retry; bob:80 GET bob.example/ sees the host for the caller's address"}})
}

// TestSlowCallers: who does not say whom he wants is hung up on.
func TestSlowCallers(t *testing.T) {
	t.Parallel()
	config := limited(func(c *edge.Config) { c.Settings.HandshakeTimeout = vps.Duration(100e6) })
	table(t, config, limitedGuests, []testCase{
		{name: "TLS, nothing", do: func(w *world) string { return w.raw(caller4, 443) }, want: "closed"},
		{name: "TLS, half a hello", do: func(w *world) string { return w.raw(caller4, 443, helloFor("alice.example")[:40]) }, want: "closed"},
		{
			name: "HTTP, half a head", do: func(w *world) string { return w.raw(caller4, 80, "GET / HTTP/1.1\r\nHost: al") }, want: "closed",
			differs: map[string]string{"haproxy": "408"}, because: "HAProxy says why",
		},
	})
}

// manyConfig is a host of ten thousand domains.
func manyConfig() *edge.Config {
	c := mainConfig()
	for i := range 2000 {
		name := fmt.Sprintf("g%d", i)
		g := guest(name, fmt.Sprintf("10.9.%d.%d", 1+i/200, 1+i%200), "")
		for j := range 4 {
			g.Domains = append(g.Domains, vps.Domain{Name: fmt.Sprintf("site%d.%s.example", j, name)})
		}
		g.Domains = append(g.Domains, vps.Domain{Name: fmt.Sprintf("*.more.%s.example", name), Caller: vps.CallerProxyV1})
		c.Guests = append(c.Guests, g)
	}
	return c
}

// TestManyDomains: ten thousand domains load, and lead where they should.
func TestManyDomains(t *testing.T) {
	t.Parallel()
	w := newWorld(t, append(manyConfig().Guests[:6:6], guest("g1999", "10.9.10.200", ""))...)
	w.host.Exec("ip", "route", "add", "10.9.10.200/32", "dev", "guests")
	w.serveTLS("g1999", "10.9.10.200:443", false)
	w.serveHTTP("g1999", "10.9.10.200:80", false)
	for _, r := range []export.Router{export.HAProxy, export.Nginx} {
		stop := w.startPeer(r, manyConfig(), t.TempDir())
		if got := w.tls(caller4, 443, "site3.g1999.example", ""); got != "g1999:443 sees the host" {
			t.Errorf("%s: %q", r, got)
		}
		if got := w.http(caller4, 80, get("/", "site0.g1999.example")); got != "g1999:80 GET site0.g1999.example/ sees the host for the caller's address" {
			t.Errorf("%s: %q", r, got)
		}
		if got := w.tls(caller4, 443, "more.g1999.example", ""); got != "alert 112" {
			t.Errorf("%s: %q", r, got)
		}
		stop()
	}
}
