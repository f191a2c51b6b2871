package quic

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"sublet/internal/hang"
)

// page is what a browser shows of an address, or of its reason why not.
func page(t *testing.T, router netip.AddrPort, trust [sha256.Size]byte, url string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	args = append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(),
		"--ignore-certificate-errors-spki-list=" + base64.StdEncoding.EncodeToString(trust[:]),
		"--host-resolver-rules=MAP *.example " + router.String() + ", MAP * ~NOTFOUND", "--enable-quic",
	}, args...)
	out, err := exec.CommandContext(ctx, "chromium", append(args, "--dump-dom", url)...).Output()
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return string(out)
}

// A browser that may use nothing but QUIC reaches a guest, and gives up on a name
// that is nobody's.
func TestChromium(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	trust := w.guests["b.example"].spki
	if got := page(t, w.address, trust, "https://b.example/", "--origin-to-force-quic-on=*"); !strings.Contains(got, "b.example for b.example") {
		t.Errorf("the page is %q", got)
	}
	if led, _ := w.led("b.example"); led == 0 {
		t.Error("the page did not come by QUIC")
	}
	page(t, w.address, trust, "https://unknown.example/", "--origin-to-force-quic-on=*")
	if _, refused := w.led("unknown.example"); !slices.Contains(refused, "no-route") {
		t.Errorf("it was refused for %q", refused)
	}
}

// A browser that was told of HTTP/3 where there is none gets its page all the same.
func TestChromiumFallsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	g := w.guests["a.example"]
	tcp, udp := samePort(t)
	serve(t, w.router, udp)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		rw.Header().Set("Alt-Svc", `h3=":443"; ma=9999`)
		rw.Header().Set("Content-Type", "text/html")
		if q.URL.Path == "/" { // then, knowing of HTTP/3, to where it is refused
			_, _ = fmt.Fprint(rw, `<script>onload = () => { location = "/next" }</script>`)
			return
		}
		_, _ = fmt.Fprint(rw, "came by "+q.Proto)
	}))
	_ = server.Listener.Close()
	server.Listener, server.TLS, server.EnableHTTP2 = tcp, g.server.TLSConfig.Clone(), true
	server.TLS.NextProtos = []string{"h2"}
	server.TLS.GetConfigForClient = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	if got := page(t, addressOf(udp), g.spki, "https://away.example/", "--virtual-time-budget=10000"); !strings.Contains(got, "came by HTTP/2.0") {
		t.Errorf("the page is %q", got)
	}
	if _, refused := w.led("away.example"); !slices.Contains(refused, ReasonNobody) {
		t.Errorf("HTTP/3 was not tried: %q", refused)
	}
}

// samePort is a port of both TCP and UDP.
func samePort(t *testing.T) (net.Listener, *net.UDPConn) {
	t.Helper()
	for {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
		if err == nil {
			return tcp, udp
		}
		_ = tcp.Close() // somebody else has it for UDP
	}
}
