//go:build linux

package control

import (
	"crypto/tls"
	"fmt"
	"io"
	"syscall"
	"testing"

	quicgo "github.com/quic-go/quic-go"

	"sublet/internal/hang"
)

// TestFlowsAreHandedOver has a connection of QUIC go on while processes are
// replaced: its packets all come to one socket, whoever reads that.
func TestFlowsAreHandedOver(t *testing.T) {
	s := newScene(t)
	s.guest()
	config := &quicgo.Config{HandshakeIdleTimeout: hang.After, MaxIdleTimeout: hang.After}
	l, err := quicgo.ListenAddr(fmt.Sprintf("127.0.0.2:%d", guestTLS), &tls.Config{Certificates: s.certificates, NextProtos: []string{"echo"}, MinVersion: tls.VersionTLS13}, config)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only listens
	go func() {
		for {
			c, err := l.Accept(t.Context())
			if err != nil {
				return
			}
			go func() {
				for {
					stream, err := c.AcceptStream(t.Context())
					if err != nil {
						return
					}
					_, _ = io.Copy(stream, stream)
					_ = stream.Close()
				}
			}()
		}
	}()
	d := s.daemon("0")
	dial := func() *quicgo.Conn {
		t.Helper()
		c, err := quicgo.DialAddr(t.Context(), "127.0.0.1:443", &tls.Config{RootCAs: s.pool, ServerName: domain, NextProtos: []string{"echo"}, MinVersion: tls.VersionTLS13}, config)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	echo := func(c *quicgo.Conn, text string) {
		t.Helper()
		stream, err := c.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(stream, text); err != nil {
			t.Fatal(err)
		}
		_ = stream.Close()
		if got, err := io.ReadAll(stream); err != nil || string(got) != text {
			t.Fatalf("%q comes back as %q, %v", text, got, err)
		}
	}
	conns := []*quicgo.Conn{dial()}
	for build := range 4 {
		end(t, d, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[build%2])
		d = s.daemon(fmt.Sprint(build + 1))
		conns = append(conns, dial())
		for i, c := range conns {
			echo(c, fmt.Sprintf("connection %d in build %d", i, build+1))
		}
	}
	for _, c := range conns {
		_ = c.CloseWithError(0, "")
	}
}
