//go:build linux

package control

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

const testUID = 721300

// scene is a folder for an edge, and guests.
type scene struct {
	t    *testing.T
	d    testDaemon
	pool *x509.CertPool
	// certificates are the guest's.
	certificates []tls.Certificate

	mu     sync.Mutex
	events []string
}

// guestAddress is where guests are, on ports that the edge does not have.
const (
	guestTLS, guestHTTP = 8443, 8080
	domain              = "alice.example.org"
)

// ports of the edge; a test has its own network.
var testPorts = []edge.Port{{Number: 80, Kind: edge.KindHTTP}, {Number: 443, Kind: edge.KindQUIC}, {Number: 443, Kind: edge.KindTLS}}

func newScene(t *testing.T) *scene {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	settings := vps.DefaultEdgeSettings()
	settings.Caller, settings.CallerRate, settings.CallerConnections = vps.CallerHidden, 1_000_000, 1_000_000
	s := &scene{t: t, pool: x509.NewCertPool(), d: testDaemon{
		Options: Options{Dir: filepath.Join(dir, "run"), Command: []string{self, verbEdge}, Build: "one", LogDir: filepath.Join(dir, "log"), CertDir: filepath.Join(dir, "cert")},
		Wish: Wish{UID: testUID, Config: edge.Config{Settings: settings, Ports: testPorts, Guests: []edge.Guest{{
			ID: "id-alice", Name: "alice", Address: netip.MustParseAddr("127.0.0.2"), Running: true,
			Limits:  vps.NetworkLimits{Connections: 1_000_000, NewConnections: 1_000_000},
			Domains: []vps.Domain{{Name: domain, Port: guestTLS, HTTPPort: guestHTTP}},
		}}}},
	}}
	s.d.Options.Event = func(message string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, message)
	}
	s.d.Options.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	t.Cleanup(func() {
		if err := CleanUp(context.WithoutCancel(t.Context()), s.d.Options.Dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// guest runs the web server of the guest, which answers with its name.
func (s *scene) guest() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{domain}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.pool.AddCert(cert)
	s.certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	plain, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", guestHTTP))
	if err != nil {
		s.t.Fatal(err)
	}
	secret, err := tls.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", guestTLS), &tls.Config{
		Certificates: s.certificates, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: hang.After, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "alice")
		if r.URL.Path != "/echo" {
			return
		}
		// What the caller sends comes back, line by line.
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		_ = c.Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			_, _ = fmt.Fprintln(w, lines.Text())
			_ = c.Flush()
		}
	})}
	for _, l := range []net.Listener{plain, secret} {
		go func() { _ = server.Serve(l) }()
	}
	s.t.Cleanup(func() { _ = server.Close() })
}

// client is one caller, who makes a connection for each call.
func (s *scene) client() *http.Client {
	dial := func(port string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
		}
	}
	secret := dial("443")
	return &http.Client{Timeout: hang.After, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: dial("80"),
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := secret(ctx, network, address)
			if err != nil {
				return nil, err
			}
			t := tls.Client(c, &tls.Config{RootCAs: s.pool, ServerName: domain, MinVersion: tls.VersionTLS13})
			return t, t.HandshakeContext(ctx)
		},
	}}
}

// call makes one call; nil is the guest's answer.
func call(ctx context.Context, c *http.Client, scheme string) error {
	return callName(ctx, c, scheme, domain)
}

func callName(ctx context.Context, c *http.Client, scheme, name string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+name+"/", nil)
	if err != nil {
		return err
	}
	answer, err := c.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // only read from
	text, err := io.ReadAll(answer.Body)
	if err == nil && string(text) != "alice" {
		err = fmt.Errorf("%s: %q", answer.Status, text)
	}
	return err
}

// reach calls until both ways lead to the guest.
func (s *scene) reach() {
	s.t.Helper()
	c := s.client()
	for _, scheme := range []string{"http", "https"} {
		s.eventually(scheme+" leads to the guest", func() bool { return call(s.t.Context(), c, scheme) == nil })
	}
}

// manager runs a Manager until stop is called, or the test ends.
func (s *scene) manager() (m *Manager, stop func()) {
	s.t.Helper()
	m = New(s.d.Options)
	if err := m.Set(s.d.Wish); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := m.Run(ctx); err != nil {
			s.t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-over
	})
	s.t.Cleanup(stop)
	return m, stop
}

// settled waits until an edge of a build serves all ports, and none drains.
func (s *scene) settled(m *Manager, build string) State {
	s.t.Helper()
	var state State
	s.eventually("the edge serves", func() bool {
		state = m.State()
		return state.PID > 0 && state.Build == build && len(state.Ports) == len(s.d.Wish.Config.Ports) && !state.Configured.IsZero() && state.Fault == "" && state.Draining == 0
	})
	return state
}

func (s *scene) eventually(what string, ok func() bool) {
	s.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(hang.After); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s", hang.After, what)
		}
	}
}

// told waits for an event.
func (s *scene) told(words string) {
	s.t.Helper()
	s.eventually("an event tells of "+words, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Contains(strings.Join(s.events, "\n"), words)
	})
}

// daemon starts a daemon of its own process, of a build, and returns when it
// says that all is as wished.
func (s *scene) daemon(build string) *exec.Cmd {
	s.t.Helper()
	cmd, said := s.mortal(build, "", "")
	if said != "ready\n" {
		s.t.Fatalf("the daemon says %q", said)
	}
	return cmd
}

// mortal starts a daemon that kills somebody at a step, and returns what it says,
// which is nothing when that was itself.
func (s *scene) mortal(build, kill, at string) (cmd *exec.Cmd, said string) {
	s.t.Helper()
	d := s.d
	d.Options.Build, d.Kill, d.At = build, kill, at
	text, err := json.Marshal(d)
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd = exec.Command(s.d.Options.Command[0], verbManage, path)
	cmd.Stderr = s.t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	said, _ = bufio.NewReader(out).ReadString('\n')
	return cmd, said
}

func end(t *testing.T, daemon *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	if err := daemon.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
}

// longCall is a call that goes on.
type longCall struct {
	t      *testing.T
	say    *io.PipeWriter
	answer *http.Response
	hear   *bufio.Reader
	said   int
}

func (s *scene) longCall() *longCall {
	s.t.Helper()
	body, say := io.Pipe()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "https://"+domain+"/echo", body)
	if err != nil {
		s.t.Fatal(err)
	}
	answer, err := s.client().Do(r) //nolint:bodyclose // end does
	if err != nil {
		s.t.Fatal(err)
	}
	l := &longCall{t: s.t, say: say, answer: answer, hear: bufio.NewReader(answer.Body)}
	if _, err := l.hear.Discard(len("alice")); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// still checks that it does.
func (l *longCall) still() {
	l.t.Helper()
	l.said++
	line := fmt.Sprintf("line %d\n", l.said)
	if _, err := io.WriteString(l.say, line); err != nil {
		l.t.Fatal(err)
	}
	if got, err := l.hear.ReadString('\n'); err != nil || got != line {
		l.t.Fatalf("the call that goes on says %q, %v; want %q", got, err, line)
	}
}

func (l *longCall) end() {
	l.t.Helper()
	_ = l.say.Close()
	if rest, err := io.ReadAll(l.hear); err != nil || len(rest) > 0 {
		l.t.Errorf("the call that goes on ends with %q, %v", rest, err)
	}
	_ = l.answer.Body.Close()
}
