package hello_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/internal/edge/hello"
	"sublet/internal/hang"
)

// read is what a caller sent, with how many pieces it came in.
type read struct {
	hello hello.Hello
	err   error
}

// listen reads the ClientHello of each caller. Those with a name that begins with
// "refused" are refused; others get an answer from crypto/tls, to which all that
// was read is given, so that it is known that the bytes were whole.
func listen(t *testing.T) (string, <-chan read) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"http/1.1"}}
	out := make(chan read, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c, config, out)
		}
	}()
	return l.Addr().String(), out
}

func serve(c net.Conn, config *tls.Config, out chan<- read) {
	defer func() { _ = c.Close() }()
	var (
		r   hello.Reader
		buf = make([]byte, hello.MaxBytes)
		n   int
	)
	for {
		m, err := c.Read(buf[n:min(n+100, len(buf))])
		if n += m; err != nil {
			out <- read{err: err}
			return
		}
		h, err := r.Parse(buf[:n])
		if errors.Is(err, hello.ErrMore) {
			continue
		}
		out <- read{h, err}
		if err != nil || strings.HasPrefix(h.ServerName, "refused") {
			_, _ = c.Write(hello.Alert(hello.AlertUnrecognizedName))
			return
		}
		break
	}
	server := tls.Server(&replayed{c, buf[:n]}, config)
	request := make([]byte, 1<<10)
	if _, err := server.Read(request); err == nil {
		_, _ = server.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"))
	}
	_ = server.Close()
}

// replayed is a connection of which b was read already.
type replayed struct {
	net.Conn
	b []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.b) > 0 {
		n := copy(p, r.b)
		r.b = r.b[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"www.example.org"}, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// got is the next hello that came with a name.
func got(t *testing.T, in <-chan read, name string) hello.Hello {
	t.Helper()
	deadline := time.After(hang.After)
	for {
		select {
		case r := <-in:
			if r.err == nil && r.hello.ServerName == name {
				return r.hello
			}
			t.Logf("another caller: %+v, %v", r.hello, r.err)
		case <-deadline:
			t.Fatalf("no caller asked for %q", name)
		}
	}
}

// run is the output of a program, which must be in it whether it fails or not.
func run(t *testing.T, stdin, want, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	c := exec.CommandContext(ctx, program, args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if !strings.Contains(string(out), want) {
		t.Fatalf("%s says (%v)\n%s\nand not %q", program, err, out, want)
	}
}

func TestGo(t *testing.T) {
	t.Parallel()
	address, in := listen(t)
	c, err := tls.Dial("tcp", address, &tls.Config{ServerName: "WWW.example.org", InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	state := c.ConnectionState()
	_ = c.Close()
	h := got(t, in, "www.example.org")
	if state.CurveID != tls.X25519MLKEM768 || h.Size < 1184 { // the size of such a key, FIPS 203
		t.Errorf("the key is %v, and the hello has %d bytes: it is to be post-quantum", state.CurveID, h.Size)
	}
	if !slices.Equal(h.ALPN, []string{"http/1.1"}) {
		t.Errorf("protocols: %q", h.ALPN)
	}
	_, err = tls.Dial("tcp", address, &tls.Config{ServerName: "refused.example.org"})
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: unrecognized name") {
		t.Errorf("refused: %v", err)
	}
}

func TestOpenSSL(t *testing.T) {
	t.Parallel()
	address, in := listen(t)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		run(t, "GET /\r\n", "hello", "openssl", "s_client", "-connect", address, "-servername", "www.example.org", version, "-alpn", "http/1.1,x", "-ign_eof")
		if h := got(t, in, "www.example.org"); !slices.Equal(h.ALPN, []string{"http/1.1", "x"}) {
			t.Errorf("protocols: %q", h.ALPN)
		}
		// Segments of the smallest size that it makes, and no name.
		run(t, "GET /\r\n", "hello", "openssl", "s_client", "-connect", address, "-noservername", version, "-split_send_frag", "512", "-ign_eof")
		got(t, in, "")
		run(t, "", "unrecognized name", "openssl", "s_client", "-connect", address, "-servername", "refused.example.org", version)
		got(t, in, "refused.example.org")
	}
}

func TestCurl(t *testing.T) {
	t.Parallel()
	address, in := listen(t)
	_, port, _ := net.SplitHostPort(address)
	for _, version := range []string{"1.2", "1.3"} {
		run(t, "", "hello", "curl", "-sSk", "--tls-max", version, "--resolve", "www.example.org:"+port+":127.0.0.1", "https://www.example.org:"+port)
		if h := got(t, in, "www.example.org"); !slices.Contains(h.ALPN, "h2") {
			t.Errorf("protocols: %q", h.ALPN)
		}
		run(t, "", "unrecognized name", "curl", "-sSk", "--tls-max", version, "--resolve", "refused.example.org:"+port+":127.0.0.1", "https://refused.example.org:"+port)
		run(t, "", "hello", "curl", "-sSk", "https://"+address)
		got(t, in, "")
	}
}

func TestChromium(t *testing.T) {
	t.Parallel()
	address, in := listen(t)
	for _, c := range []struct{ host, want string }{
		{"www.example.org", "hello"}, {"refused.example.org", "ERR_SSL_UNRECOGNIZED_NAME_ALERT"},
	} {
		run(t, "", c.want, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
			"--user-data-dir="+t.TempDir(), "--ignore-certificate-errors",
			"--host-resolver-rules=MAP *.example.org "+address+", MAP * ~NOTFOUND", "--dump-dom", "https://"+c.host+"/")
		h := got(t, in, c.host)
		if !h.ECH || h.Size < 1184 || !slices.Contains(h.ALPN, "h2") {
			t.Errorf("a browser's hello is read as %+v", h)
		}
	}
}
