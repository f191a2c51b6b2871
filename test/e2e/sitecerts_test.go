package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	quicgo "github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"sublet/internal/edge/terminate/acmetest"
	"sublet/internal/hang"
	"sublet/internal/proof/prooftest"
	"sublet/internal/vps"
	"sublet/test/lab"
)

// authority is whose certificates all the world trusts, in names of files.
const authority = "authority"

// authority starts, outside, a certificate authority and the name server that it
// asks. The host knows both, and trusts certificates as its system does.
func (s *sites) authority() {
	run := func(c *exec.Cmd) (err error) {
		s.Outside.Do(func() { err = c.Start() })
		return err
	}
	both := "," + lab.HostAddress + "," + hostAddress6
	prooftest.Start(s.t, run, lab.StrangerAddress, 53,
		"--host-record=ended.example.org"+both, "--host-record=shop.example.org"+both, "--host-record=caddy.example.org,"+lab.HostAddress)
	s.acme = acmetest.Start(s.t, run, acmetest.Options{Dir: s.Dir, Address: lab.StrangerAddress, DNS: lab.StrangerAddress + ":53", Mild: true})
	own := filepath.Join(s.Dir, "own.crt")
	if err := os.WriteFile(own, []byte(s.acme.Roots), 0o600); err != nil {
		s.t.Fatal(err)
	}
	root := s.Outside.Exec("curl", "-sSf", "--cacert", own, s.acme.RootURL)
	writeFile(s.t, s.trust(authority), root+"\n")
	s.roots = x509.NewCertPool()
	if !s.roots.AppendCertsFromPEM([]byte(root)) {
		s.t.Fatalf("the authority's root is %s", root)
	}
	s.NS.Exec("mount", "--bind", s.trust(authority), "/etc/ssl/certs/ca-certificates.crt")
	s.Sublet("host", "set", "--acme-directory", s.acme.Directory, "--acme-ca-file", own, "--acme-agree-terms", "--edge-resolvers", lab.StrangerAddress)
}

// certificate is the one that callers of a name get, which the authority gave.
func (s *sites) certificate(name string) (*x509.Certificate, error) {
	var raw net.Conn
	var err error
	s.Outside.Do(func() { raw, err = net.Dial("tcp", net.JoinHostPort(lab.HostAddress, "443")) })
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: s.roots})
	if err := errors.Join(conn.HandshakeContext(s.t.Context()), conn.Close()); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

// ended has a domain of alice's whose TLS ends on the host.
func (s *sites) ended() {
	s.t.Log("TLS ends at the edge, by a certificate that it gets")
	const name = "ended.example.org"
	s.Sublet("domain", "add", "alice", name, "--terminate")
	var list struct {
		Domains []struct {
			Name        string
			State       vps.DomainState
			Certificate *vps.Certificate
		}
	}
	var told *vps.Certificate
	s.Eventually("domain list tells of the certificate", func() bool {
		decode(s.t, s.Sublet("domain", "list", "-o", "json"), &list)
		for _, d := range list.Domains {
			if d.Name == name {
				told = d.Certificate
			}
		}
		return told != nil && told.State == vps.CertificateValid
	})
	first, err := s.certificate(name)
	if err != nil {
		s.t.Fatal(err)
	}
	if !told.Expires.Equal(first.NotAfter) || !strings.Contains(told.Issuer, "Pebble") || told.Trouble() != "" {
		s.t.Errorf("domain list says %+v, and not until %s", told, first.NotAfter)
	}

	for family, c := range callers() {
		s.fetch("alice is "+name+" 1.1 200", authority, "https://"+name+"/ended-"+family, "-"+family, "--http1.1")
		s.fetch("alice is "+name+" 2 200", authority, "https://"+name+"/ended-"+family, "-"+family)
		s.expect("alice", c.from+" 80 "+name+" GET /ended-"+family+" HTTP/1.1 200")
		s.redirected(name, family)
	}
	if r := s.Try("domain", "test", name); r.Code != 0 || !strings.Contains(r.Stdout, "Pebble") {
		s.t.Errorf("domain test ends with %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	s.kept(name)

	s.t.Log("a daemon and an edge that start again have the same one")
	pid := (&edge{s.Host, s.t}).pid()
	s.Kill()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
	var second *x509.Certificate
	s.Eventually("the edge serves again", func() bool {
		second, err = s.certificate(name)
		return err == nil
	})
	if !second.Equal(first) {
		s.t.Errorf("after a restart the certificate has the number %s, not %s", second.SerialNumber, first.SerialNumber)
	}
}

// redirected wants callers of a name to be sent from port 80 to TLS.
func (s *sites) redirected(name, family string) {
	s.t.Helper()
	got := s.Outside.Exec("curl", "-sS", "-"+family, "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://"+name+"/plain?a=b")
	if want := "308 https://" + name + "/plain?a=b"; got != want {
		s.t.Errorf("a caller without TLS gets %q, not %q", got, want)
	}
}

// kept looks at the edge's folder: all of it is the edge's alone, and a key is in it.
func (s *sites) kept(name string) {
	s.t.Helper()
	keys := 0
	err := filepath.WalkDir(filepath.Join(s.StateDir, "edge", "certificates"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = os.ModeDir | 0o700
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; info.Mode() != want || uid != uint32(s.Show("alice").UID-2) {
			s.t.Errorf("%s has %s and is of user %d; want %s, and the one below first_uid", path, info.Mode(), uid, want)
		}
		if d.Name() == name+".key" {
			keys++
		}
		return nil
	})
	if err != nil || keys != 1 {
		s.t.Errorf("the edge's folder has %d keys of %s, %v", keys, name, err)
	}
}

// caddyConfig is that of Caddy. The authority asks for the one name on port 80, by IPv6,
// and for the other on port 443, by IPv4, which is all that its DNS has.
const caddyConfig = `(site) {
	tls {
		issuer acme {
			dir DIRECTORY
			trusted_roots /etc/caddy/authority.crt
			disable_{args.0}_challenge
		}
	}
	handle /big {
		root * /srv
		file_server
	}
	respond "{host} by {http.request.proto} for {remote_host}"
}
shop.example.org {
	import site tlsalpn
}
caddy.example.org {
	import site http
}
`

// caddy has bob change to a web server that gets certificates itself, and speaks
// HTTP/3.
func (s *sites) caddy() {
	s.t.Log("Caddy gets its own certificates through the edge, and is called by HTTP/1.1, 2 and 3")
	s.Sublet("domain", "add", "bob", "caddy.example.org", "--vouch")
	s.Eventually("the new domain is live", func() bool {
		out, err := s.Outside.Try("curl", "-sS", "http://caddy.example.org/")
		return err == nil && out == "bob is caddy.example.org"
	})
	s.SSH("bob", "set -e\ncat >/etc/caddy/authority.crt <<'END'\n"+s.acme.Roots+"END\ncat >/etc/caddy/Caddyfile <<'END'\n"+
		strings.ReplaceAll(caddyConfig, "DIRECTORY", s.acme.Directory)+"END\nsystemctl disable --now nginx\nsystemctl start caddy")
	defer func() {
		if s.t.Failed() {
			s.t.Logf("Caddy said:\n%s", s.TrySSH("bob", "journalctl -u caddy -o cat --no-pager").Stdout)
		}
	}()
	sum := strings.Fields(s.SSH("bob", fmt.Sprint("head -c ", part, " /srv/big | sha256sum")))[0]
	for _, name := range []string{"shop.example.org", "caddy.example.org"} {
		s.Eventually("Caddy has a certificate for "+name, func() bool {
			_, err := s.certificate(name)
			return err == nil
		})
		for family, c := range callers() {
			page := func(protocol string) string { return name + " by " + protocol + " for " + c.from }
			s.fetch(page("HTTP/1.1")+" 1.1 200", authority, "https://"+name+"/", "-"+family, "--http1.1")
			s.fetch(page("HTTP/2.0")+" 2 200", authority, "https://"+name+"/", "-"+family)
			s.redirected(name, family)
			if told := s.Outside.Exec("curl", "-sS", "-"+family, "--cacert", s.trust(authority), "-o", "/dev/null", "-w", "%header{alt-svc}", "https://"+name+"/"); !strings.Contains(told, `h3=":443"`) {
				s.t.Errorf("callers are told of %q", told)
			}
			client := s.http3(c.from, c.to)
			if got, err := s.get3(client, "https://"+name+"/", ""); err != nil || got != page("HTTP/3.0") {
				s.t.Errorf("by HTTP/3 a caller gets %q, %v", got, err)
			}
			got, err := s.get3(client, "https://"+name+"/big", fmt.Sprint("bytes=0-", part-1))
			if hash := sha256.Sum256([]byte(got)); err != nil || hex.EncodeToString(hash[:]) != sum {
				s.t.Errorf("by HTTP/3 come %d bytes that are not the file's, %v", len(got), err)
			}
		}
	}
	s.Eventually("domain log has them", func() bool {
		log := s.Sublet("domain", "log", "bob", "-n", "1000")
		return strings.Contains(log, `"CONNECT shop.example.org QUIC" 200`) && strings.Contains(log, `"CONNECT caddy.example.org QUIC" 200`)
	})
	client := s.http3(lab.StrangerAddress, lab.HostAddress)
	for _, name := range []string{"ended.example.org", "bob.example.org", "unknown.example.org"} {
		_, err := s.get3(client, "https://"+name+"/", "")
		if closed, ok := errors.AsType[*quicgo.TransportError](err); !ok || !closed.Remote || closed.ErrorCode != quicgo.ConnectionRefused {
			s.t.Errorf("by HTTP/3 a caller of %s gets %v", name, err)
		}
	}
}

// part is how many bytes of the guests' large file are fetched by HTTP/3.
const part = 2 << 20

// http3 is a client that calls from an address outside, whatever the name is.
func (s *sites) http3(from, to string) *http.Client {
	s.t.Helper()
	var socket net.PacketConn
	var err error
	s.Outside.Do(func() { socket, err = net.ListenPacket("udp", net.JoinHostPort(from, "0")) })
	if err != nil {
		s.t.Fatal(err)
	}
	transport := &quicgo.Transport{Conn: socket}
	h3 := &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.roots}, QUICConfig: &quicgo.Config{HandshakeIdleTimeout: hang.After, MaxIdleTimeout: hang.After},
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quicgo.Config) (*quicgo.Conn, error) {
			return transport.DialEarly(ctx, &net.UDPAddr{IP: net.ParseIP(to), Port: vps.HTTPSPort}, c, q)
		},
	}
	s.t.Cleanup(func() { _ = errors.Join(h3.Close(), transport.Close(), socket.Close()) })
	return &http.Client{Timeout: hang.After, Transport: h3}
}

// get3 is a page, or a range of its bytes.
func (s *sites) get3(client *http.Client, url, span string) (string, error) {
	q, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	if span != "" {
		q.Header.Set("Range", span)
	}
	answer, err := client.Do(q)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close() //nolint:errcheck // only read from
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}
