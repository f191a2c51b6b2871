//go:build linux

package export_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"sublet/internal/edge"
	"sublet/internal/edge/export"
	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// Addresses in the world. Callers and proxies are at the host itself, where routers
// cannot tell.
const (
	host4, host6     = "192.0.2.1", "2001:db8::1"
	caller4, caller6 = "198.51.100.7", "2001:db8:77::7"
	near6            = "2001:db8:77::8" // of caller6's network
	proxy4, proxy6   = "203.0.113.5", "2001:db8:5::5"
)

// world is a host with its guests and callers.
type world struct {
	t      *testing.T
	host   *nstest.NS
	guests *nstest.NS // all of them
	cert   tls.Certificate
}

func newWorld(t *testing.T, guests ...edge.Guest) *world {
	t.Helper()
	w := &world{t: t, host: nstest.New(t), cert: certificate(t)}
	w.guests = w.host.Peer()
	w.host.Veth("guests", w.guests, "host")
	var at strings.Builder
	for _, a := range []string{host4, host6, caller4, caller6, near6, proxy4, proxy6} {
		p := netip.MustParseAddr(a)
		fmt.Fprintf(&at, "addr add %s/%d dev lo%s\n", p, p.BitLen(), map[bool]string{true: " nodad"}[p.Is6()])
	}
	at.WriteString("addr add 10.9.0.1/24 dev guests\naddr add 2001:db8:9::1/64 dev guests nodad\n")
	var in strings.Builder
	for _, g := range guests {
		if !g.Running {
			fmt.Fprintf(&at, "route add unreachable %s\n", g.Address)
			continue
		}
		fmt.Fprintf(&in, "addr add %s/24 dev host\n", g.Address)
		if g.Address6.IsValid() {
			fmt.Fprintf(&in, "addr add %s/64 dev host nodad\n", g.Address6)
		}
	}
	w.host.ExecInput(at.String(), "ip", "-batch", "-")
	w.guests.ExecInput(in.String(), "ip", "-batch", "-")
	for _, from := range []string{caller6, near6, proxy6} { // which the kernel takes on in its own time
		w.await(from)
	}
	w.host.Exec("mount", "-t", "tmpfs", "tmpfs", "/run") // nginx has its sockets there
	return w
}

// await waits until there is a way to the host from an address of IPv6.
func (w *world) await(from string) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(hang.After)
	for {
		var err error
		w.host.Do(func() {
			var c *net.UDPConn
			if c, err = net.DialUDP("udp6", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(host6), Port: 9}); err == nil {
				_ = c.Close()
			}
		})
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			w.t.Fatal(err)
		}
	}
}

// certificate is what all guests have.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "guest"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: secret}
}

// listen opens a guest's port. told is set if callers are told of by the PROXY
// protocol: then each connection has to begin with its header.
func (w *world) listen(at string, told bool) net.Listener {
	w.t.Helper()
	var l net.Listener
	var err error
	w.guests.Do(func() { l, err = net.Listen("tcp", at) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	policy := proxyproto.REJECT
	if told {
		policy = proxyproto.REQUIRE
	}
	return &proxyproto.Listener{Listener: l, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return policy, nil }}
}

// seen says whom a guest sees.
func seen(c net.Conn) string {
	p, ok := c.(*proxyproto.Conn)
	if !ok || p.ProxyHeader() == nil {
		return "the host"
	}
	h := p.ProxyHeader()
	return fmt.Sprintf("%s to %s by v%d", h.SourceAddr, h.DestinationAddr, h.Version)
}

// serveTLS runs a guest's server of TLS. It says who it is.
func (w *world) serveTLS(name, at string, told bool) {
	l := w.listen(at, told)
	_, port, _ := net.SplitHostPort(at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // the caller has gone
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{w.cert}})
				if s.Handshake() == nil {
					_, _ = fmt.Fprintf(s, "%s:%s sees %s", name, port, seen(c))
					_ = s.Close()
				}
			}()
		}
	}()
}

type connKey struct{}

// serveHTTP runs a guest's server of HTTP. It says who it is and what it was asked.
func (w *world) serveHTTP(name, at string, told bool) {
	l := w.listen(at, told)
	_, port, _ := net.SplitHostPort(at)
	s := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") == "websocket" && strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
				echo(rw)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if r.URL.Path == "/broken" {
				c, _, _ := http.NewResponseController(rw).Hijack()
				_ = c.Close()
				return
			}
			c, _ := r.Context().Value(connKey{}).(net.Conn)
			who := seen(c)
			if f := r.Header["X-Forwarded-For"]; len(f) > 0 {
				who += " for " + strings.Join(f, ",")
			}
			_, _ = fmt.Fprintf(rw, "%s:%s %s %s%s%s sees %s", name, port, r.Method, r.Host, r.RequestURI, body, who)
		}),
		ReadHeaderTimeout: hang.After,
	}
	go func() { _ = s.Serve(l) }()
	w.t.Cleanup(func() { _ = s.Close() })
}

// echo takes the request for another protocol, in which the guest says what it
// hears.
func echo(rw http.ResponseWriter) {
	c, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	defer c.Close() //nolint:errcheck // the caller has gone
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	_, _ = io.Copy(c, buffered)
}

// router is one of the three.
type router struct {
	name  string
	start func(w *world, c *edge.Config)
}

func routers() []router {
	return []router{
		{"edge", (*world).startEdge},
		{"haproxy", func(w *world, c *edge.Config) { w.startPeer(export.HAProxy, c, "") }},
		{"haproxy with maps", func(w *world, c *edge.Config) { w.startPeer(export.HAProxy, c, w.t.TempDir()) }},
		{"nginx", func(w *world, c *edge.Config) { w.startPeer(export.Nginx, c, "") }},
	}
}

// edgeConfig is the environment variable with the file that has the configuration of
// the edge which the process is to be.
const edgeConfig = "SUBLET_TEST_EDGE"

// TestMain is the edge itself when it is told so: in a process of its own, all of its
// connections are the host's.
func TestMain(m *testing.M) {
	if file := os.Getenv(edgeConfig); file != "" {
		fmt.Fprintln(os.Stderr, runEdge(file))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// fromHost dials as the host does. Nobody is imitated: what is tested is what the
// guest is told.
type fromHost struct{}

func (fromHost) Dial(ctx context.Context, _, to netip.AddrPort) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to.String())
	tcp, _ := c.(*net.TCPConn)
	return tcp, err
}

func (fromHost) DialUDP(context.Context, netip.AddrPort, netip.AddrPort) (*net.UDPConn, error) {
	return nil, errors.ErrUnsupported
}

func runEdge(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var c edge.Config
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	s := edge.New(edge.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Origin: fromHost{}})
	if err := s.Set(c); err != nil {
		return err
	}
	failed := make(chan error)
	for _, p := range c.Ports {
		if p.Kind == edge.KindQUIC {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", p.Number))
		if err != nil {
			return err
		}
		go func() { failed <- s.Serve(context.Background(), p, l) }()
	}
	return <-failed
}

// startEdge runs sublet's own.
func (w *world) startEdge(c *edge.Config) {
	w.t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		w.t.Fatal(err)
	}
	file := filepath.Join(w.t.TempDir(), "edge.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), edgeConfig+"="+file)
	w.run(cmd, c)
}

// write exports to a folder.
func write(t *testing.T, r export.Router, c *edge.Config, dir string) string {
	t.Helper()
	files, err := export.Write(r, c, export.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if dir == "" {
		dir = t.TempDir()
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), []byte(f.Text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, files[0].Name)
}

// commands are how a router checks a configuration, and how it runs by it.
func commands(r export.Router, file string) (check, run []string) {
	if r == export.HAProxy {
		return []string{"haproxy", "-c", "-f", file}, []string{"haproxy", "-db", "-f", file}
	}
	return []string{"nginx", "-t", "-c", file}, []string{"nginx", "-c", file, "-g", "daemon off; error_log stderr;"}
}

// startPeer runs another router. What it returns ends that before the test does.
func (w *world) startPeer(r export.Router, c *edge.Config, dir string) (stop func()) {
	w.t.Helper()
	check, run := commands(r, write(w.t, r, c, dir))
	w.host.Exec(check[0], check[1:]...)
	return w.run(exec.Command(run[0], run[1:]...), c)
}

// run starts a router at the host, and returns when it takes calls.
func (w *world) run(cmd *exec.Cmd, c *edge.Config) (stop func()) {
	w.t.Helper()
	cmd.Stdout, cmd.Stderr = w.t.Output(), w.t.Output()
	var err error
	w.host.Do(func() { err = cmd.Start() })
	if err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt) // ends all three at once
		<-ended
	}
	w.t.Cleanup(stop)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, p := range c.Ports {
		for p.Kind != edge.KindQUIC {
			conn, err := w.try(caller4, int(p.Number))
			if err == nil {
				_ = conn.Close()
				break
			}
			select {
			case <-ended:
				w.t.Fatalf("%s has ended", cmd.Path)
			case <-tick.C:
			}
		}
	}
	return stop
}

// try calls a port of the host from an address.
func (w *world) try(from string, port int) (c *net.TCPConn, err error) {
	source := netip.MustParseAddr(from)
	to := host4
	if source.Is6() {
		to = host6
	}
	w.host.Do(func() {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), Timeout: hang.After}
		conn, failed := d.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(port)))
		c, _ = conn.(*net.TCPConn)
		err = failed
	})
	return c, err
}

func (w *world) dial(from string, port int) *net.TCPConn {
	w.t.Helper()
	c, err := w.try(from, port)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(hang.After))
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// masked writes what is the caller's own as such, so that cases can say it.
func masked(answer string, c net.Conn) string {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return answer
	}
	answer = strings.ReplaceAll(answer, local.String(), "the caller")
	return strings.ReplaceAll(answer, local.IP.String(), "the caller's address")
}

// tls speaks TLS and returns what the guest says, or how it ends. The header goes
// first.
func (w *world) tls(from string, port int, name, header string) string {
	c := w.dial(from, port)
	if _, err := io.WriteString(c, header); err != nil {
		return ending(err)
	}
	return masked(speakTLS(c, name), c)
}

func speakTLS(c net.Conn, name string) string {
	s := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := s.Handshake(); err != nil {
		return ending(err)
	}
	b, err := io.ReadAll(s)
	if err != nil {
		return ending(err)
	}
	return string(b)
}

// ending is how a connection ended that came to no guest.
func ending(err error) string {
	for _, alert := range []tls.AlertError{80, 112} { // what comes from the other side is of a type of its own
		if strings.Contains(err.Error(), alert.Error()) {
			return fmt.Sprintf("alert %d", uint8(alert))
		}
	}
	return "closed"
}

// raw sends bytes, in pieces, to a port and returns what comes back: an alert of TLS
// as such, a page of HTTP by its status.
func (w *world) raw(from string, port int, pieces ...string) string {
	c := w.dial(from, port)
	for _, p := range pieces {
		if _, err := io.WriteString(c, p); err != nil {
			return "closed"
		}
	}
	b, _ := io.ReadAll(c)
	switch {
	case len(b) >= 7 && b[0] == 21:
		return fmt.Sprintf("alert %d", b[6])
	case bytes.HasPrefix(b, []byte("HTTP/1.1 ")):
		return string(b[9:12])
	case len(b) == 0:
		return "closed"
	}
	return fmt.Sprintf("%d bytes", len(b))
}

// http makes requests on one connection, and returns the answers.
func (w *world) http(from string, port int, requests ...string) string {
	c := w.dial(from, port)
	reader := bufio.NewReader(c)
	var all []string
	for _, r := range requests {
		if _, err := io.WriteString(c, r); err != nil {
			return strings.Join(append(all, "closed"), "; ")
		}
		method, _, _ := strings.Cut(r[strings.LastIndex(r, "PROXY ")+1:], " ")
		answer, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			return strings.Join(append(all, "closed"), "; ")
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			return strings.Join(append(all, "half an answer"), "; ")
		}
		said := strconv.Itoa(answer.StatusCode)
		if answer.StatusCode == http.StatusOK {
			said = string(body)
		}
		if retry := answer.Header.Get("Retry-After"); retry != "" {
			said += ", retry"
		}
		all = append(all, masked(said, c))
	}
	return strings.Join(all, "; ")
}

// guest is one for tests: hidden unless its domains say otherwise.
func guest(name, address, address6 string, domains ...vps.Domain) edge.Guest {
	g := edge.Guest{
		ID: "id-" + name, Name: name, Running: true, Domains: domains,
		Limits: vps.NetworkLimits{Connections: 1000, NewConnections: 100_000, Packets: 1},
	}
	if address != "" {
		g.Address = netip.MustParseAddr(address)
	}
	if address6 != "" {
		g.Address6 = netip.MustParseAddr(address6)
	}
	return g
}
