package edge_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"

	"sublet/internal/edge"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// serveQUIC runs a guest's server of QUIC, which gives back what it gets on each
// stream, and returns its port.
func serveQUIC(t *testing.T, name string) uint16 {
	t.Helper()
	l, err := quic.ListenAddr("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate(t, name)}, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept(t.Context())
			if err != nil {
				return
			}
			go func() {
				for {
					s, err := c.AcceptStream(t.Context())
					if err != nil {
						return
					}
					_, _ = io.WriteString(s, name+": ")
					_, _ = io.Copy(s, s)
					_ = s.Close()
				}
			}()
		}
	}()
	return uint16(l.Addr().(*net.UDPAddr).Port)
}

// TestQUIC: the same table leads QUIC, and what it does not lead is refused at once.
func TestQUIC(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Ports = append(s.config.Ports, edge.Port{Number: 443, Kind: edge.KindQUIC})
	s.guest("alice", vps.Domain{Name: "*.example.org", Port: serveQUIC(t, "alice")}, vps.Domain{Name: "proxied.example.org", Caller: vps.CallerProxyV2}, vps.Domain{Name: "here.example.org", Terminate: true})
	s.guest("bob", vps.Domain{Name: "stopped.example.org"}).Running = false
	s.set()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nobody uses it any more
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.server.ServeQUIC(ctx, conn) }()
	dial := func(name string) (*quic.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), hang.After)
		t.Cleanup(cancel)
		return quic.DialAddr(ctx, conn.LocalAddr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"echo"}}, nil)
	}
	c, err := dial("www.example.org")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(stream, "hello")
	_ = stream.Close()
	if b, err := io.ReadAll(stream); err != nil || string(b) != "alice: hello" {
		t.Errorf("%q %v", b, err)
	}
	for name, why := range map[string]edge.Reason{
		"nobody.test": edge.ReasonName, "proxied.example.org": edge.ReasonQUIC, "here.example.org": edge.ReasonQUIC, "stopped.example.org": edge.ReasonStopped,
	} {
		_, err := dial(name)
		if refused, ok := errors.AsType[*quic.TransportError](err); !ok || refused.ErrorCode != quic.ConnectionRefused {
			t.Errorf("%s: %v", name, err)
		}
		stats := s.server.Stats()
		if stats.Refused[why]+stats.Guests["alice"].Refused[why]+stats.Guests["bob"].Refused[why] == 0 {
			t.Errorf("%s: %s is not counted: %+v", name, why, stats)
		}
	}
	before := s.server.Stats().Guests["alice"]
	if before.Connections != 1 || before.In < 1200 || before.Out < 1200 {
		t.Errorf("%+v", before)
	}
	if line := s.logs.wait(t, 1)[0]; !strings.Contains(line, `"CONNECT www.example.org QUIC" 200 - "-" "-"`) {
		t.Error(line)
	}
	// The guest stops: its flows end, and what was counted stays.
	s.config.Guests[0].Running = false
	s.set()
	if after := s.server.Stats().Guests["alice"]; after.In < before.In || after.Out < before.Out {
		t.Errorf("%+v", after)
	}
	if froms := s.origin.dialed(); len(froms) != 1 || froms[0].IsValid() {
		t.Errorf("%v: callers on the loopback are not imitated", froms)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
