package terminate_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/edge/terminate"
	"sublet/internal/edge/terminate/acmetest"
	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/servertest"
	"sublet/internal/vps"
)

// edgeUID is whom processes of the edge belong to.
const edgeUID = 109_871

const (
	directory = "https://127.0.0.1:14000/dir"
	secret    = "c3VibGV0J3Mgb3duIHNlY3JldCBmb3IgdGVzdHMgISE="
)

// world is a network with a certificate authority (Pebble), a DNS server (Knot),
// and processes of the edge that belong to nobody else.
type world struct {
	*nstest.NS
	t         *testing.T
	dir       string
	roots     string // PEM that Pebble's own certificate is checked with
	http, tls *os.File
}

// newWorld makes a network with ports 80 and 443 and a DNS server.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{NS: nstest.New(t), t: t, dir: t.TempDir()}
	for dir := w.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) { //nolint:usetesting // it is what t.TempDir makes folders in
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.write("resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
	w.Exec("mount", "--bind", filepath.Join(w.dir, "resolv.conf"), "/etc/resolv.conf")
	w.http, w.tls = w.listen("127.0.0.1:80"), w.listen("127.0.0.1:443")
	w.knot()
	return w
}

func (w *world) write(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) listen(address string) *os.File {
	w.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = f.Close() })
	_ = l.Close()
	return f
}

// knot starts a DNS server for example.org, which takes updates, and for
// example.net, which does not. In example.org
// _acme-challenge.friend is an alias, as for a name whose own zone takes no updates.
func (w *world) knot() {
	w.t.Helper()
	head := "$TTL 1\n@ SOA ns1.example.org. hostmaster.example.org. 1 1 1 1 1\n@ NS ns1.example.org.\n"
	w.write("example.org.zone", head+"ns1 A 127.0.0.1\n* A 127.0.0.1\naway A 127.0.0.9\n_acme-challenge.friend CNAME friend.challenges\n")
	w.write("example.net.zone", head+"* A 127.0.0.1\n")
	if err := os.Mkdir(filepath.Join(w.dir, "knot"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	conf := w.write("knot.conf", fmt.Sprintf(`
server:
    rundir: %[1]s/knot
    listen: 127.0.0.1@53
    user: root
log:
  - target: stderr
    any: info
database:
    storage: %[1]s/knot
key:
  - id: sublet.example.org
    algorithm: hmac-sha256
    secret: %[2]s
  - id: other.example.org
    algorithm: hmac-sha256
    secret: %[2]s
acl:
  - id: update
    key: sublet.example.org
    action: update
template:
  - id: default
    storage: %[1]s
    zonefile-sync: -1
zone:
  - domain: example.org
    file: example.org.zone
    acl: update
  - domain: example.net
    file: example.net.zone
`, w.dir, secret))
	servertest.Start(w.t, nil, exec.Command("knotd", "-c", conf), "server started")
}

// process is a program that runs in the world.
type process struct {
	*exec.Cmd
	mu   sync.Mutex
	log  bytes.Buffer
	gone chan struct{} // closed when it has ended
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// kill ends it at once and waits until it is gone.
func (p *process) kill() {
	_ = p.Process.Kill()
	<-p.gone
}

// run starts it.
func (p *process) run() error {
	p.gone = make(chan struct{})
	if err := p.Start(); err != nil {
		return err
	}
	go func() {
		defer close(p.gone)
		_ = p.Wait()
	}()
	return nil
}

// must fails the test when the process has ended by itself.
func (p *process) must(t *testing.T) {
	t.Helper()
	select {
	case <-p.gone:
		t.Fatalf("%s ended", filepath.Base(p.Path))
	default:
	}
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// await waits for a state.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	late := time.After(hang.After)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-late:
			w.t.Fatalf("%s does not come", what)
		case <-tick.C:
		}
	}
}

// pebble starts an authority that asks for names in the world's DNS.
func (w *world) pebble(o acmetest.Options) *acmetest.Server {
	w.t.Helper()
	o.Dir, o.Address, o.DNS = w.dir, "127.0.0.1", "127.0.0.1:53"
	s := acmetest.Start(w.t, nil, o)
	w.roots = s.Roots
	return s
}

// acme are settings for the world's authority and DNS.
func (w *world) acme() edge.ACME {
	return edge.ACME{
		ACMESettings: vps.ACMESettings{Directory: directory, AgreeTerms: true, Email: "owner@example.org", DNSServer: "127.0.0.1", DNSKeyName: "sublet.example.org"},
		Roots:        w.roots, DNSKey: secret,
	}
}

// folder makes a folder that belongs to the edge.
func (w *world) folder(name string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chown(path, edgeUID, edgeUID); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// edgeProcess is a process of the edge.
type edgeProcess struct {
	*process
	w     *world
	to    *json.Encoder
	lines stateLines
	mu    sync.Mutex
	state map[string]vps.Certificate
}

// stateLines keeps the last state that a process wrote.
type stateLines struct {
	to   *edgeProcess
	rest []byte
}

func (l *stateLines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.rest = rest
		var all []vps.Certificate
		if err := json.Unmarshal(line, &all); err != nil {
			return 0, err
		}
		l.to.mu.Lock()
		clear(l.to.state)
		for _, c := range all {
			l.to.state[c.Name] = c
		}
		l.to.mu.Unlock()
	}
}

// edge starts a process of the edge under a uid of its own, with these listeners.
func (w *world) edge(o edgeOptions, listeners ...*os.File) *edgeProcess {
	w.t.Helper()
	program, err := os.Open("/proc/self/exe") // its folder is closed to others
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = program.Close() }()
	if o.Retry == 0 {
		o.Retry = time.Hour
	}
	for i, l := range listeners {
		switch l {
		case w.http:
			o.HTTP = 4 + i
		case w.tls:
			o.TLS = 4 + i
		default:
			o.IMAP = 4 + i
		}
	}
	text, err := json.Marshal(o)
	if err != nil {
		w.t.Fatal(err)
	}
	e := &edgeProcess{process: &process{Cmd: exec.Command("/proc/self/fd/3")}, w: w, state: map[string]vps.Certificate{}}
	e.Env, e.Stderr, e.ExtraFiles = []string{asEdge + "=" + string(text), "PATH=/nonexistent"}, e.process, append([]*os.File{program}, listeners...)
	e.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: edgeUID, Gid: edgeUID}}
	in, err := e.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	e.to = json.NewEncoder(in)
	e.Stdout = &e.lines
	e.lines.to = e
	if err := e.run(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		e.kill()
		if w.t.Failed() {
			w.t.Logf("an edge said:\n%s", e.text())
		}
	})
	return e
}

func (e *edgeProcess) say(o order) {
	e.w.t.Helper()
	if err := e.to.Encode(o); err != nil {
		e.w.t.Fatal(err)
	}
}

// set is Manager.Set.
func (e *edgeProcess) set(a edge.ACME, names ...string) {
	e.w.t.Helper()
	e.say(order{ACME: &a, Names: names})
}

func (e *edgeProcess) status(name string) vps.Certificate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state[name]
}

// await waits until names have a state.
func (e *edgeProcess) await(state vps.CertificateState, names ...string) {
	e.w.t.Helper()
	for _, n := range names {
		e.w.await(fmt.Sprintf("%s of %s", state, n), func() bool {
			e.must(e.w.t)
			return e.status(n).State == state
		})
	}
}

// call makes a handshake with the edge, as a browser that trusts the authority's
// certificates without looking; want is what it is to fail with, "" for nothing.
func (w *world) call(name string, change func(*tls.Config), want string) (c tls.ConnectionState) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), hang.After)
	defer cancel()
	conf := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	if change != nil {
		change(conf)
	}
	raw, err := net.Dial("tcp", "127.0.0.1:443")
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	client := tls.Client(raw, conf)
	if err = client.HandshakeContext(ctx); err == nil {
		// In TLS 1.3 a client is done before the server is.
		var n int
		if n, err = client.Read(make([]byte, 1)); n == 1 {
			err = nil // the end may come with it
		}
		c = client.ConnectionState()
	}
	switch {
	case want == "" && err != nil:
		w.t.Errorf("a call of %s: %v", name, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		w.t.Errorf("a call of %s: %v, and not %q", name, err, want)
	}
	return c
}

// serial is that of the certificate that callers get.
func (w *world) serial(name string) string {
	w.t.Helper()
	c := w.call(name, nil, "")
	if len(c.PeerCertificates) == 0 {
		w.t.Fatalf("no certificate for %s", name)
	}
	leaf := c.PeerCertificates[0]
	if err := leaf.VerifyHostname(name); err != nil {
		w.t.Error(err)
	}
	return leaf.SerialNumber.String()
}

// serveTLS greets callers with one byte.
func serveTLS(m *terminate.Manager, l net.Listener, d *vps.Domain) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			s := tls.Server(c, m.TLSConfig(d))
			if s.Handshake() == nil && s.ConnectionState().NegotiatedProtocol != edge.ChallengeProtocol {
				_, _ = s.Write([]byte("!"))
			}
			_ = s.Close()
		}()
	}
}

// files lists what is in a folder, by name, with modes.
func (w *world) files(dir string) map[string]os.FileInfo {
	w.t.Helper()
	out := map[string]os.FileInfo{}
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			out[strings.TrimPrefix(path, dir)] = fi
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// keys are the private keys of certificates in a folder.
func (w *world) keys(dir string) []string {
	w.t.Helper()
	var out []string
	for name := range w.files(dir) {
		if strings.HasPrefix(name, "/certificates/") && strings.HasSuffix(name, ".key") {
			out = append(out, filepath.Base(name))
		}
	}
	slices.Sort(out)
	return out
}
