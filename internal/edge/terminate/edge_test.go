package terminate_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"sublet/internal/edge/terminate/acmetest"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// guest serves a site and mail in the clear, at guestAddress.
func (w *world) guest() {
	w.t.Helper()
	site, err := net.Listen("tcp", guestAddress.String()+":8080")
	if err != nil {
		w.t.Fatal(err)
	}
	mail, err := net.Listen("tcp", guestAddress.String()+":143")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(a http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(a, "%s %s %s", r.Host, r.URL.Path, r.Header.Get("X-Forwarded-Proto"))
	})}
	w.t.Cleanup(func() { _, _ = s.Close(), mail.Close() })
	go func() { _ = s.Serve(site) }()
	go func() {
		for {
			c, err := mail.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "* OK")
			_ = c.Close()
		}
	}()
}

// TestEdge: a whole edge gets certificates for a site, for a suffix, and for a
// name that is not for web, and serves what a guest has in the clear; a guest's own
// challenges go to the guest.
func TestEdge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guest()
	w.pebble(acmetest.Options{})
	e := w.edge(edgeOptions{Dir: w.folder("certs"), Domains: []vps.Domain{
		{Name: "*.wild.example.org", HTTPPort: 8080, Terminate: true},
		{Name: "imap.example.org", Listen: 993, Port: 143, Terminate: true},
		{Name: "own.example.org", HTTPPort: 8080},
		{Name: "web.example.org", HTTPPort: 8080, Terminate: true},
	}}, w.http, w.tls, w.listen("127.0.0.1:993"))
	e.set(w.acme())
	e.await(vps.CertificateValid, "*.wild.example.org", "imap.example.org", "web.example.org")
	if s := e.status("own.example.org"); s.Name != "" {
		t.Errorf("a certificate for a domain that is passed through: %+v", s)
	}
	get := func(version, url, want string) {
		t.Helper()
		out, err := w.Try("curl", "-sSk", "--http"+version, "-w", " %{http_version} %{http_code}", "--max-time", fmt.Sprint(hang.After.Seconds()), url)
		if err != nil || out != want {
			t.Errorf("%s: %q and not %q: %v", url, out, want, err)
		}
	}
	get("2", "https://web.example.org/a", "web.example.org /a https 2 200")
	get("1.1", "https://web.example.org/a", "web.example.org /a https 1.1 200")
	get("2", "https://b.wild.example.org/", "b.wild.example.org / https 2 200")
	get("2", "http://own.example.org/.well-known/acme-challenge/x", "own.example.org /.well-known/acme-challenge/x http 1.1 200")
	// Without TLS, where all else is sent to TLS.
	get("2", "http://web.example.org/.well-known/sublet-x", "web.example.org /.well-known/sublet-x http 1.1 200")

	raw, err := net.Dial("tcp", "127.0.0.1:993")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	c := tls.Client(raw, &tls.Config{ServerName: "imap.example.org", InsecureSkipVerify: true, NextProtos: []string{"imap"}})
	got, err := io.ReadAll(c)
	if string(got) != "* OK" || c.ConnectionState().NegotiatedProtocol != "" {
		t.Errorf("mail says %q: %v", got, err)
	}
}
