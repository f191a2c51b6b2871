package edge_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// stand is an edge with its callers and guests, all on the loopback.
type stand struct {
	t      testing.TB
	server *edge.Server
	config edge.Config
	origin *origin
	logs   *logs
	wake   func(id string)

	listens map[edge.Port]net.Listener
	stop    context.CancelFunc
	serving sync.WaitGroup
}

var (
	web    = edge.Port{Number: 80, Kind: edge.KindHTTP}
	webTLS = edge.Port{Number: 443, Kind: edge.KindTLS}
	imaps  = edge.Port{Number: 993, Kind: edge.KindTLS}
)

// newStand makes an edge on ports 80, 443 and 993, which are others in fact.
func newStand(tb testing.TB, change ...func(*edge.Options)) *stand {
	tb.Helper()
	s := &stand{t: tb, origin: &origin{}, logs: &logs{}, listens: map[edge.Port]net.Listener{}}
	o := edge.Options{
		Log: slog.New(slog.NewTextHandler(output{tb}, &slog.HandlerOptions{Level: slog.LevelDebug})), Origin: s.origin, Logs: s.logs,
		Wake: func(id string) { s.wake(id) },
	}
	for _, c := range change {
		c(&o)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(tb.Context()))
	s.stop = stop
	s.server = edge.New(o)
	s.config.Ports = []edge.Port{web, webTLS, imaps}
	s.config.Settings = vps.DefaultEdgeSettings()
	for _, p := range s.config.Ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		s.listens[p] = l
		s.serving.Go(func() {
			if err := s.server.Serve(ctx, p, l); err != nil {
				tb.Error(err)
			}
		})
	}
	tb.Cleanup(s.close)
	return s
}

// output is a test's log, in which nothing may have panicked.
type output struct{ t testing.TB }

func (o output) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "panic") {
		o.t.Errorf("%s", b)
	}
	return len(b), nil
}

func (s *stand) close() {
	s.stop()
	s.serving.Wait()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	cancel()
	_ = s.server.Drain(ctx)
}

// address is where a port of the edge is in fact.
func (s *stand) address(p edge.Port) string { return s.listens[p].Addr().String() }

// guest adds a guest with domains, which runs.
func (s *stand) guest(id string, domains ...vps.Domain) *edge.Guest {
	s.t.Helper()
	s.config.Guests = append(s.config.Guests, edge.Guest{
		ID: id, Name: id, Address: netip.MustParseAddr("127.0.0.1"), Running: true,
		Limits: vps.NetworkLimits{Connections: 10_000, NewConnections: 100_000}, Domains: domains,
	})
	return &s.config.Guests[len(s.config.Guests)-1]
}

// set makes the edge do what the config says.
func (s *stand) set() {
	s.t.Helper()
	if err := s.server.Set(s.config); err != nil {
		s.t.Fatal(err)
	}
}

// dial connects to a port of the edge, for as long as a test may last.
func (s *stand) dial(p edge.Port) *net.TCPConn { return s.dialFrom(p, netip.Addr{}) }

// dialFrom does so from an address of the loopback, when it is valid.
func (s *stand) dialFrom(p edge.Port, from netip.Addr) *net.TCPConn {
	s.t.Helper()
	var d net.Dialer
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	c, err := d.Dial("tcp", s.address(p))
	if err != nil {
		s.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(hang.After))
	s.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// comesIn tells whether a guest answers by TLS.
func (s *stand) comesIn(name string) bool {
	s.t.Helper()
	c, err := net.Dial("tcp", s.address(webTLS))
	if err != nil { // reset at once
		return false
	}
	defer c.Close() //nolint:errcheck // all is said
	_ = c.SetDeadline(time.Now().Add(hang.After))
	_, err = handshake(c, name)
	return err == nil
}

// raw sends bytes and returns all that comes back.
func (s *stand) raw(p edge.Port, send string) string {
	s.t.Helper()
	c := s.dial(p)
	if _, err := io.WriteString(c, send); err != nil {
		s.t.Fatal(err)
	}
	_ = c.CloseWrite()
	got, _ := io.ReadAll(c)
	return string(got)
}

// readAnswer reads one answer, to the end of its body.
func readAnswer(t *testing.T, r *bufio.Reader) (int, http.Header, string) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header, string(b)
}

// client is one of HTTP that takes all names to be the edge's.
func (s *stand) client(change ...func(*http.Transport)) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			to := map[string]edge.Port{"80": web, "443": webTLS}[port]
			var d net.Dialer
			return d.DialContext(ctx, network, s.address(to))
		},
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		DisableCompression: true,
		ForceAttemptHTTP2:  true,
	}
	for _, c := range change {
		c(tr)
	}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func h2c(t *http.Transport) {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
}

// get asks for a URL, and returns status and content.
func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read from
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return resp.StatusCode, string(b)
}

// origin connects to guests on the loopback, and remembers as whom it was to.
type origin struct {
	mu    sync.Mutex
	froms []netip.AddrPort
	dial  func(ctx context.Context, from, to netip.AddrPort) (*net.TCPConn, error) // nil for the usual
}

func (o *origin) Dial(ctx context.Context, from, to netip.AddrPort) (*net.TCPConn, error) {
	o.mu.Lock()
	o.froms = append(o.froms, from)
	dial := o.dial
	o.mu.Unlock()
	if dial != nil {
		return dial(ctx, from, to)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (o *origin) DialUDP(_ context.Context, from, to netip.AddrPort) (*net.UDPConn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.froms = append(o.froms, from)
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
}

func (o *origin) dialed() []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.froms
}

// logs keeps lines.
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) Write(id string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, id+" "+string(line))
}

// wait waits for so many lines.
func (l *logs) wait(t *testing.T, n int) []string {
	t.Helper()
	var lines []string
	eventually(t, fmt.Sprintf("%d lines of logs", n), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		lines = append([]string(nil), l.lines...)
		return len(lines) >= n
	})
	return lines
}

// eventually waits until something is so.
func eventually(tb testing.TB, what string, so func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(hang.After)
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("%s: it did not happen", what)
		}
	}
}

// port is that of an address.
func port(a net.Addr) uint16 { return uint16(a.(*net.TCPAddr).Port) }

// serve runs a server of HTTP, with HTTP/2 too if it is to, and returns its port.
func serve(tb testing.TB, h http.HandlerFunc, withH2 bool) uint16 {
	tb.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.DisableGeneralOptionsHandler = true
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(withH2)
	s.Start()
	tb.Cleanup(s.Close)
	return port(s.Listener.Addr())
}

// named answers with a name, and what is seen of the request.
func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s %s %s %s", name, r.Proto, r.Method, r.Host, r.RequestURI)
	}
}

// certificate is one for names, which nobody vouches for.
func certificate(tb testing.TB, names ...string) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// accept serves the connections of a guest's port, each on its own, and closes them.
func accept(tb testing.TB, serve func(net.Conn)) uint16 {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // the caller has gone
				serve(c)
			}()
		}
	}()
	return port(l.Addr())
}

// serveTLS runs a guest's server of TLS, which answers each line with a name and the
// line.
func serveTLS(tb testing.TB, name string) uint16 {
	tb.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{certificate(tb, name)}}
	return accept(tb, func(c net.Conn) {
		s := tls.Server(c, config)
		defer s.Close() //nolint:errcheck // the caller has gone
		for lines := bufio.NewScanner(s); lines.Scan(); {
			_, _ = fmt.Fprintf(s, "%s: %s\n", name, lines.Text())
		}
	})
}

// deadPort is one that nothing listens on.
func deadPort(tb testing.TB) uint16 {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only listens
	return port(l.Addr())
}

// handshake speaks TLS on a connection.
func handshake(c net.Conn, name string) (*tls.Conn, error) {
	tc := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	return tc, tc.Handshake()
}

// ask sends a line and returns the answer.
func ask(t *testing.T, c net.Conn, line string) string {
	t.Helper()
	if _, err := fmt.Fprintln(c, line); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

// goroutines waits until there are not more than before.
func goroutines(t *testing.T, before int) {
	t.Helper()
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}
