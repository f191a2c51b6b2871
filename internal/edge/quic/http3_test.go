package quic

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	quicgo "github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"sublet/internal/hang"
)

// world is a router with two guests that serve HTTP/3, and one that is away.
type world struct {
	router  *Router
	socket  *net.UDPConn
	stop    func() // ends serving the socket
	options Options
	address netip.AddrPort
	guests  map[string]*guest
	targets map[string]Target

	mu     sync.Mutex
	events []Event
}

type guest struct {
	server *http3.Server
	socket *net.UDPConn
	spki   [sha256.Size]byte // of its certificate's key

	mu      sync.Mutex
	callers map[string]bool
}

func loopback(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func addressOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func newGuest(t *testing.T, name string, idLen int) *guest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{socket: loopback(t), callers: map[string]bool{}, spki: sha256.Sum256(certificate.RawSubjectPublicKeyInfo)}
	g.server = &http3.Server{
		TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			g.mu.Lock()
			g.callers[q.RemoteAddr] = true
			g.mu.Unlock()
			_, _ = fmt.Fprintf(w, "%s for %s\n", name, q.Host)
			_, _ = io.Copy(w, q.Body)
		}),
	}
	transport := &quicgo.Transport{Conn: g.socket, ConnectionIDLength: idLen}
	listener, err := transport.ListenEarly(g.server.TLSConfig, &quicgo.Config{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.server.ServeListener(listener) }()
	t.Cleanup(func() { _, _ = g.server.Close(), transport.Close() })
	return g
}

// newWorld has the guests' names as their targets' IDs.
func newWorld(t *testing.T, options Options) *world {
	t.Helper()
	w := &world{guests: map[string]*guest{}, targets: map[string]Target{}}
	for name, idLen := range map[string]int{"a.example": 4, "b.example": 8} {
		w.guests[name] = newGuest(t, name, idLen)
		w.targets[name] = Target{name, addressOf(w.guests[name].socket)}
	}
	away := loopback(t)
	w.targets["away.example"] = Target{"away.example", addressOf(away)}
	_ = away.Close()
	options.Lookup = func(_ netip.AddrPort, name string) (Target, string) {
		if target, ok := w.targets[name]; ok {
			return target, ""
		}
		return Target{}, "no-route"
	}
	options.Observe = func(e Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}
	w.router, w.options = New(options), options
	w.socket = loopback(t)
	w.address = addressOf(w.socket)
	w.stop = serve(t, w.router, w.socket)
	return w
}

// serve ends the router and its socket with the test, and serving when it is told.
func serve(t *testing.T, r *Router, socket *net.UDPConn) (stop func()) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- r.Serve(socket) }()
	stop = sync.OnceFunc(func() {
		_ = socket.SetReadDeadline(time.Now())
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		r.Close()
		_ = socket.Close()
	})
	return stop
}

// led counts the connections that were led to a name, and the refusals of it.
func (w *world) led(name string) (led int, refused []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		switch {
		case e.Name != name:
		case e.Reason == "":
			led++
		default:
			refused = append(refused, e.Reason)
		}
	}
	return led, refused
}

// browser is a client whose connections all leave from the same port, as Go's do,
// and whose datagrams go to an address.
func browser(t *testing.T, to netip.AddrPort, versions ...quicgo.Version) *http.Client {
	t.Helper()
	transport := &quicgo.Transport{Conn: loopback(t)}
	h3 := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		QUICConfig:      &quicgo.Config{Versions: versions, HandshakeIdleTimeout: hang.After, MaxIdleTimeout: hang.After},
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quicgo.Config) (*quicgo.Conn, error) {
			return transport.DialEarly(ctx, net.UDPAddrFromAddrPort(to), c, q)
		},
	}
	t.Cleanup(func() { _, _ = h3.Close(), transport.Close() })
	return &http.Client{Transport: h3}
}

// post sends a body, and wants it back from the guest of that name.
func post(t *testing.T, c *http.Client, name string, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+name+"/", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(q)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	got, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if want := append([]byte(name+" for "+name+"\n"), body...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s answers %d bytes, %v, want %d", name, len(got), err, len(want))
	}
}

// refused wants a name to be refused by an answer, not by a deadline.
func refused(t *testing.T, c *http.Client, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+name+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(q)
	if err == nil {
		_ = response.Body.Close()
	}
	var closed *quicgo.TransportError
	if !errors.As(err, &closed) || !closed.Remote || closed.ErrorCode != quicgo.ConnectionRefused {
		t.Errorf("%s: %v", name, err)
	}
}

// Go's client has all of its connections on one port, so that it is the IDs that
// tell them apart.
func TestHTTP3(t *testing.T) {
	t.Parallel()
	for _, version := range []quicgo.Version{quicgo.Version1, quicgo.Version2} {
		w := newWorld(t, Options{})
		c := browser(t, w.address, version)
		const rounds, size = 5, 1 << 18
		for range rounds {
			post(t, c, "a.example", size)
			post(t, c, "b.example", size)
		}
		for name, target := range w.targets {
			if led, _ := w.led(name); w.guests[name] != nil && led != 1 {
				t.Errorf("%s was called %d times", name, led)
			}
			n := w.router.Counts()[target]
			if w.guests[name] != nil && (n.InBytes < rounds*size || n.OutBytes < rounds*size || n.InDatagrams < rounds*size/1500 || n.OutDatagrams < rounds*size/1500) {
				t.Errorf("%s: %+v", name, n)
			}
		}
	}
}

func TestManyCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	var callers sync.WaitGroup
	for range 10 {
		c := browser(t, w.address)
		for _, name := range []string{"a.example", "b.example"} {
			callers.Go(func() {
				for range 3 {
					post(t, c, name, 1<<10)
				}
			})
		}
	}
	callers.Wait()
}

func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	for _, version := range []quicgo.Version{quicgo.Version1, quicgo.Version2} {
		c := browser(t, w.address, version)
		refused(t, c, "unknown.example")
		refused(t, c, "away.example")
		post(t, c, "a.example", 1<<10)
		refused(t, c, "away.example")
	}
	if _, reasons := w.led("unknown.example"); len(reasons) == 0 || reasons[0] != "no-route" {
		t.Errorf("unknown.example is refused for %q", reasons)
	}
	led, reasons := w.led("away.example")
	if led == 0 || len(reasons) == 0 || reasons[0] != ReasonNobody {
		t.Errorf("away.example is led %d times, and refused for %q", led, reasons)
	}
}

// A guest whose server ends: who called before learns nothing, who calls then is
// refused at once.
func TestServerEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	post(t, browser(t, w.address), "a.example", 1<<10)
	_ = w.guests["a.example"].socket.Close()
	refused(t, browser(t, w.address), "a.example")
}

// nat leads datagrams between a client and the router, each time from another
// port.
type nat struct {
	inside *net.UDPConn
	router netip.AddrPort

	mu      sync.Mutex
	client  netip.AddrPort
	outside *net.UDPConn
}

func newNAT(t *testing.T, router netip.AddrPort) *nat {
	t.Helper()
	n := &nat{inside: loopback(t), router: router}
	n.rebind(t)
	go func() {
		b := make([]byte, maxDatagram)
		for {
			m, from, err := n.inside.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.client = from
			_, _ = n.outside.WriteToUDPAddrPort(b[:m], router)
			n.mu.Unlock()
		}
	}()
	return n
}

// rebind takes another port, and closes the one before.
func (n *nat) rebind(t *testing.T) {
	t.Helper()
	c := loopback(t)
	n.mu.Lock()
	before := n.outside
	n.outside = c
	n.mu.Unlock()
	if before != nil {
		_ = before.Close()
	}
	go func() {
		b := make([]byte, maxDatagram)
		for {
			m, err := c.Read(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			client := n.client
			n.mu.Unlock()
			_, _ = n.inside.WriteToUDPAddrPort(b[:m], client)
		}
	}()
}

func TestCallerMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	n := newNAT(t, w.address)
	c := browser(t, addressOf(n.inside))
	post(t, c, "b.example", 1<<10)
	for range 3 {
		post(t, c, "a.example", 1<<16)
		n.rebind(t)
	}
	post(t, c, "a.example", 1<<16)
	if led, _ := w.led("a.example"); led != 1 {
		t.Errorf("the caller began %d connections", led)
	}
	w.guests["a.example"].mu.Lock()
	defer w.guests["a.example"].mu.Unlock()
	if n := len(w.guests["a.example"].callers); n < 2 {
		t.Errorf("the guest saw %d addresses", n)
	}
}

// Another process goes on, and nobody connects anew.
func TestHandover(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	a, b := browser(t, w.address), browser(t, w.address)
	for range 3 {
		post(t, a, "a.example", 1<<12)
		post(t, b, "b.example", 1<<12)
		passed, err := w.socket.File()
		if err != nil {
			t.Fatal(err)
		}
		again, err := net.FilePacketConn(passed)
		_ = passed.Close()
		if err != nil {
			t.Fatal(err)
		}
		w.stop()
		flows, err := json.Marshal(w.router.Flows())
		if err != nil {
			t.Fatal(err)
		}
		w.router.Close()
		_ = w.socket.Close()

		w.socket = again.(*net.UDPConn)
		w.router = New(w.options)
		var restored []Flow
		if err := json.Unmarshal(flows, &restored); err != nil || len(restored) != 2 {
			t.Fatalf("%d flows are handed over: %v", len(restored), err)
		}
		w.router.Restore(w.socket, restored)
		w.stop = serve(t, w.router, w.socket)
	}
	post(t, a, "a.example", 1<<12)
	post(t, b, "b.example", 1<<12)
	for name := range w.guests {
		if led, _ := w.led(name); led != 1 {
			t.Errorf("%s was called %d times", name, led)
		}
	}
}
