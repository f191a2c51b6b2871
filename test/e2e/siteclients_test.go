package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"

	"sublet/internal/vps"
	"sublet/test/lab"
)

// callers are the stranger's addresses, and the host's, by the family of IP.
func callers() map[string]struct{ from, to string } {
	return map[string]struct{ from, to string }{"4": {lab.StrangerAddress, lab.HostAddress}, "6": {strangerAddress6, hostAddress6}}
}

// fetch has curl fetch a page, by default from a site whose certificate is the
// guest's. What is printed after the page is the version of HTTP and the status.
func (s *sites) fetch(want, guest, url string, args ...string) {
	s.t.Helper()
	args = append([]string{"-sS", "--cacert", s.trust(guest), "-w", " %{http_version} %{http_code}"}, args...)
	if got, err := s.Outside.Try("curl", append(args, url)...); err != nil || got != want {
		s.t.Errorf("curl %v %s: got %q, %v; want %q", args[5:], url, got, err, want)
	}
}

func (s *sites) curl() {
	s.t.Log("curl")
	for family, c := range callers() {
		for _, site := range []struct {
			guest, name string
			tls, plain  int // the guest's ports
		}{
			{"alice", "blog.example.org", 443, 80},
			{"alice", "a.b.alice.example.org", 443, 80},
			{"bob", "bob.example.org", 8443, 8080},
			{"bob", "shop.example.org", 443, 80},
		} {
			page := site.guest + " is " + site.name
			line := func(port int, path, protocol string) {
				s.expect(site.guest, fmt.Sprintf("%s %d %s GET %s %s 200", c.from, port, site.name, path, protocol))
			}
			s.fetch(page+" 1.1 200", site.guest, "https://"+site.name+"/one-"+family, "-"+family, "--http1.1")
			line(site.tls, "/one-"+family, "HTTP/1.1")
			s.fetch(page+" 2 200", site.guest, "https://"+strings.ToUpper(site.name)+"/two-"+family, "-"+family)
			line(site.tls, "/two-"+family, "HTTP/2.0")
			s.fetch(page+" 1.1 200", site.guest, "http://"+site.name+"/plain-"+family, "-"+family)
			line(site.plain, "/plain-"+family, "HTTP/1.1")
			s.fetch(page+" 2 200", site.guest, "http://"+site.name+"/prior", "-"+family, "--http2-prior-knowledge")
			line(site.plain, "/prior", "HTTP/1.1") // nginx has HTTP/2 without TLS on ports of its own only
		}
		s.fetch("alice is imap.example.org 2 200", "alice", "https://imap.example.org:993/mail", "-"+family)
		s.expect("alice", c.from+" 993 imap.example.org GET /mail HTTP/2.0 200")
		for _, name := range []string{"unknown.example.org", "pending.example.org"} {
			got := s.Outside.Exec("curl", "-sSi", "-"+family, "http://"+name+"/")
			if !strings.HasPrefix(got, "HTTP/1.1 421 ") || strings.Contains(got, "alice") || strings.Contains(got, "blog") {
				s.t.Errorf("a caller of %s is told %s", name, got)
			}
		}
	}
}

func (s *sites) openSSL() {
	s.t.Log("openssl")
	client := func(want, name, to string, args ...string) {
		s.t.Helper()
		args = append([]string{"s_client", "-connect", to, "-verify_return_error"}, args...)
		if name == "" {
			args = append(args, "-noservername")
		} else {
			args = append(args, "-servername", name)
		}
		if out, _ := s.Outside.Try("openssl", args...); !strings.Contains(out, want) {
			s.t.Errorf("openssl %v: got\n%s\nand not %q", args, out, want)
		}
	}
	const verified = "Verify return code: 0 (ok)"
	for _, c := range callers() {
		web, imap := net.JoinHostPort(c.to, "443"), net.JoinHostPort(c.to, "993")
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			client(verified, "blog.example.org", web, version, "-CAfile", s.trust("alice"))
			client(verified, "bob.example.org", web, version, "-CAfile", s.trust("bob"))
			client("SSL alert number 112", "unknown.example.org", web, version)
			client("SSL alert number 112", "", web, version)
		}
		client(verified, "imap.example.org", imap, "-CAfile", s.trust("alice"))
		client("SSL alert number 112", "blog.example.org", imap)
		client("SSL alert number 112", "imap.example.org", web)
		client("SSL alert number 112", "pending.example.org", web)
	}
	s.Sublet("domain", "add", "alice", "*")
	s.Eventually("calls without a name are alice's", func() bool {
		out, _ := s.Outside.Try("openssl", "s_client", "-connect", lab.HostAddress+":443", "-noservername", "-CAfile", s.trust("alice"))
		return strings.Contains(out, verified)
	})
	client(verified, "unknown.example.org", lab.HostAddress+":443", "-CAfile", s.trust("alice"))
	client(verified, "shop.example.org", lab.HostAddress+":443", "-CAfile", s.trust("bob"))
	s.Sublet("domain", "remove", "alice", "*")
	s.Eventually("and then nobody's", func() bool {
		out, _ := s.Outside.Try("openssl", "s_client", "-connect", lab.HostAddress+":443", "-noservername")
		return strings.Contains(out, "SSL alert number 112")
	})
}

// slicer sends what is written in small pieces: of TCP, or, while records is set, in
// records of TLS of their own (RFC 8446, 5.1).
type slicer struct {
	net.Conn
	size    int
	records bool
	first   int // bytes of the first write
}

func (s *slicer) Write(b []byte) (int, error) {
	if s.first == 0 {
		s.first = len(b)
	}
	const handshake, header = 22, 5
	for rest := b; len(rest) > 0; {
		piece := rest[:min(s.size, len(rest))]
		rest = rest[len(piece):]
		if s.records && b[0] == handshake && len(b) == s.first {
			if len(rest)+len(piece) == len(b) {
				piece = piece[header:]
			}
			piece = append([]byte{handshake, b[1], b[2], byte(len(piece) >> 8), byte(len(piece))}, piece...)
		}
		if _, err := s.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// dial connects from outside.
func (s *sites) dial(address string) net.Conn {
	s.t.Helper()
	var conn net.Conn
	var err error
	s.Outside.Do(func() { conn, err = net.Dial("tcp", address) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *sites) goTLS() {
	s.t.Log("Go, whose keys are post-quantum, and hellos in pieces")
	for guest, names := range siteNames() {
		if guest == "" {
			continue
		}
		for _, name := range names {
			for _, c := range callers() {
				port := "443"
				if name == "imap.example.org" {
					port = "993"
				}
				for _, cut := range []slicer{{size: 1 << 20}, {size: 99}, {size: 99, records: true}} {
					cut.Conn = s.dial(net.JoinHostPort(c.to, port))
					conn := tls.Client(&cut, &tls.Config{ServerName: name, InsecureSkipVerify: true})
					if err := conn.HandshakeContext(s.t.Context()); err != nil {
						s.t.Errorf("%s, %+v: %v", name, cut, err)
						continue
					}
					if cut.first < 1184 { // bytes of a key of ML-KEM-768, FIPS 203
						s.t.Errorf("a hello has %d bytes", cut.first)
					}
					if !conn.ConnectionState().PeerCertificates[0].Equal(s.certificates[guest]) {
						s.t.Errorf("the certificate of %s is not %s's", name, guest)
					}
					_ = conn.Close()
				}
			}
		}
	}
}

func (s *sites) chromium() {
	s.t.Log("Chromium, with WebSockets")
	for _, c := range []struct{ url, by, guest, from string }{
		{"https://blog.example.org/page", "h2", "alice", "443"},
		{"http://www.alice.example.org/page", "http/1.1", "alice", "80"},
		{"https://bob.example.org/page", "h2", "bob", "8443"},
		{"http://bob.example.org/page", "http/1.1", "bob", "8080"},
	} {
		name := strings.TrimSuffix(strings.Split(c.url, "//")[1], "/page")
		want := fmt.Sprintf("by %s, %s heard hello from %s", c.by, c.guest, name)
		out, err := s.Outside.Try("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir="+s.t.TempDir(),
			"--ignore-certificate-errors", "--disable-features=HttpsUpgrades", "--host-resolver-rules=MAP *.example.org "+lab.HostAddress+", MAP * ~NOTFOUND", "--dump-dom", c.url)
		if err != nil || !strings.Contains(out, want) {
			s.t.Errorf("%s: %v\n%s", c.url, err, out)
		}
		s.expect(c.guest, fmt.Sprintf("%s %s %s GET /socket HTTP/1.1 101", lab.StrangerAddress, c.from, name))
	}
}

func (s *sites) wrk() {
	s.t.Log("wrk")
	for _, url := range []string{"https://blog.example.org/load", "http://blog.example.org/load", "https://bob.example.org/load", "http://bob.example.org/load"} {
		out := s.Outside.Exec("wrk", "-t1", "-c8", "-d1s", url)
		requests := 0
		if m := regexp.MustCompile(`(\d+) requests in `).FindStringSubmatch(out); m != nil {
			_, _ = fmt.Sscan(m[1], &requests)
		}
		if requests == 0 || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
			s.t.Errorf("%s: %s", url, out)
		}
		s.t.Logf("%s: %d requests", url, requests)
	}
}

// challenges has both guests answer an authority, which asks for the same file.
func (s *sites) challenges() {
	s.t.Log("an authority asks the guest whose name it is")
	for guest, names := range siteNames() {
		if guest == "" {
			continue
		}
		s.SSH(guest, "printf %s "+guest+"s-key >/srv/acme/.well-known/acme-challenge/token")
		for _, name := range names {
			if name != "imap.example.org" {
				s.fetch(guest+"s-key 1.1 200", guest, "http://"+name+"/.well-known/acme-challenge/token")
			}
		}
	}
}

// download has the daemon be killed amid a long one, which goes on without it, and
// is in the ledger, as is what was sent meanwhile by IPv6.
func (s *sites) download() {
	s.t.Log("a download goes on while the daemon is killed, and is counted")
	want := strings.Fields(s.SSH("alice", "sha256sum /srv/big"))[0]
	before := ledgerOf(s.Host, "traffic", "alice", "--months")
	conn := tls.Client(s.dial(lab.HostAddress+":443"), &tls.Config{ServerName: "blog.example.org", InsecureSkipVerify: true})
	if _, err := io.WriteString(conn, "GET /big HTTP/1.1\r\nHost: blog.example.org\r\nConnection: close\r\n\r\n"); err != nil {
		s.t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	sum := sha256.New()
	read := func(n int64) {
		s.t.Helper()
		if _, err := io.CopyN(sum, answer.Body, n); err != nil {
			s.t.Fatalf("the download ends: %v", err)
		}
	}
	read(1 << 20)
	s.Kill()
	read(big / 2)
	upload := filepath.Join(s.Dir, "upload")
	const size = 4 << 20
	writeFile(s.t, upload, string(bytes.Repeat([]byte("x"), size)))
	s.fetch("taken 2 200", "alice", "https://blog.example.org/take", "-6", "--data-binary", "@"+upload)
	s.Start()
	read(big/2 - 1<<20)
	if rest, err := io.Copy(sum, answer.Body); rest != 0 || err != nil {
		s.t.Errorf("after the file come %d bytes, %v", rest, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		s.t.Errorf("the file has the sum %s; want %s", got, want)
	}
	var grown map[vps.TrafficKey]vps.TrafficCount
	defer func() { s.t.Logf("the traffic has grown by %+v", grown) }()
	s.Eventually("traffic has the bytes", func() bool {
		grown = minus(ledgerOf(s.Host, "traffic", "alice", "--months"), before)
		return grown[vps.TrafficKey{Class: vps.TrafficHost, Family: 4}].OutBytes >= big && grown[vps.TrafficKey{Class: vps.TrafficHost, Family: 6}].InBytes >= size
	})
	for key, count := range grown {
		if key.Class != vps.TrafficHost && count.InBytes+count.OutBytes > 1<<20 {
			s.t.Errorf("of %+v came %+v", key, count)
		}
	}
}

// handOver gives alice port 443 alone, and takes it back.
func (s *sites) handOver() {
	s.t.Log("a port is handed over and back")
	certificateOf := func(guest string) func() bool {
		return func() bool {
			_, err := s.Outside.Try("curl", "-4sSk", "--pinnedpubkey", s.pin(guest), "https://bob.example.org/handed")
			return err == nil
		}
	}
	r := s.Try("port", "add", "alice", "443:443/tcp")
	if r.Code != 0 || !strings.Contains(r.Stderr, "bob.example.org") && !strings.Contains(r.Stderr, "shop.example.org") {
		s.t.Errorf("port add ends with %d: %s", r.Code, r.Stderr)
	}
	s.Eventually("callers of bob reach alice", certificateOf("alice"))
	if state := s.states()["bob.example.org"]; !strings.Contains(state, "443") || !strings.Contains(state, "alice") {
		s.t.Errorf("bob's domain is %q", state)
	}
	s.expect("alice", lab.StrangerAddress+" 443 bob.example.org GET /handed HTTP/2.0 200")
	s.fetch("bob is bob.example.org 1.1 200", "bob", "http://bob.example.org/handed")
	s.Sublet("port", "remove", "alice", "443:443/tcp")
	s.Eventually("callers of bob reach bob", certificateOf("bob"))
	if state := s.states()["bob.example.org"]; state != "live " {
		s.t.Errorf("bob's domain is %q", state)
	}
}

// pin is the hash of a guest's public key, as curl wants it.
func (s *sites) pin(guest string) string {
	sum := sha256.Sum256(s.certificates[guest].RawSubjectPublicKeyInfo)
	return "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
}

// wake calls a guest that is stopped.
func (s *sites) wake() {
	s.t.Log("a guest that is stopped, and woken")
	s.Sublet("stop", "bob")
	s.Eventually("bob's domains are stopped", func() bool { return strings.HasPrefix(s.states()["bob.example.org"], "stopped") })
	s.Eventually("callers are told", func() bool {
		return strings.HasPrefix(s.Outside.Exec("curl", "-sSi", "http://bob.example.org/"), "HTTP/1.1 503 ")
	})
	if got := s.Outside.Exec("curl", "-sSi", "http://bob.example.org/"); !regexp.MustCompile(`(?mi)^retry-after: [1-9]\d*\r$`).MatchString(got) {
		s.t.Errorf("callers are told %s", got)
	}
	if out, _ := s.Outside.Try("openssl", "s_client", "-connect", lab.HostAddress+":443", "-servername", "bob.example.org"); !strings.Contains(out, "SSL alert number 80") {
		s.t.Errorf("callers with TLS are told %s", out)
	}
	s.fetch("alice is blog.example.org 2 200", "alice", "https://blog.example.org/meanwhile")
	s.fetch("bob is shop.example.org 2 200", "bob", "https://shop.example.org/first", "-4")
	s.expect("bob", lab.StrangerAddress+" 443 shop.example.org GET /first HTTP/2.0 200")
	s.fetch("bob is bob.example.org 2 200", "bob", "https://bob.example.org/second")
}
