package edge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// certificates ends TLS with one certificate, which no authority gave.
type certificates struct{ config *tls.Config }

func (c certificates) TLSConfig(*vps.Domain) *tls.Config { return c.config }

func (certificates) Challenged(string, []string) bool { return false }

func (certificates) HTTPChallenge(http.ResponseWriter, *http.Request) bool { return false }

// obey does as its caller says: it resets the connection, or sends everything back.
func obey(c net.Conn, r *bufio.Reader) {
	_, _ = io.WriteString(c, "ready\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if line == "reset\n" {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		_, _ = io.WriteString(c, line)
	}
}

// TestEnds: the log tells how connections ended that were upgraded, and those in whose
// TLS, which ended at the edge, something else than HTTP was spoken.
func TestEnds(t *testing.T) {
	t.Parallel()
	upgrades := func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close() //nolint:errcheck // all is said
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		obey(c, rw.Reader)
	}
	for want, end := range map[string]func(*stand, net.Conn, *net.TCPConn){
		"done": func(_ *stand, c net.Conn, _ *net.TCPConn) {
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		},
		"caller-reset": func(_ *stand, _ net.Conn, tcp *net.TCPConn) {
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
		},
		"guest-reset": func(_ *stand, c net.Conn, _ *net.TCPConn) { _, _ = io.WriteString(c, "reset\n") },
		"idle":        func(_ *stand, c net.Conn, _ *net.TCPConn) { _, _ = io.Copy(io.Discard, c) },
		"closed": func(s *stand, _ net.Conn, _ *net.TCPConn) {
			s.stop()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_ = s.server.Drain(ctx)
		},
	} {
		for _, kind := range []string{"http", "tls"} {
			t.Run(want+"/"+kind, func(t *testing.T) {
				t.Parallel()
				s := newStand(t, func(o *edge.Options) {
					o.Certificates = certificates{&tls.Config{Certificates: []tls.Certificate{certificate(t, "a.example.org")}}}
				})
				s.config.Settings.AccessLog = vps.AccessJSON
				if want == "idle" {
					s.config.Settings.IdleTimeout = vps.Duration(100 * time.Millisecond)
				}
				s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, upgrades, false)},
					vps.Domain{Name: "a.example.org", Listen: imaps.Number, Port: accept(t, func(c net.Conn) { obey(c, bufio.NewReader(c)) }), Terminate: true})
				s.set()
				var c net.Conn
				var tcp *net.TCPConn
				if kind == "http" {
					tcp = s.dial(web)
					c = tcp
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
				} else {
					tcp = s.dial(imaps)
					secure, err := handshake(tcp, "a.example.org")
					if err != nil {
						t.Fatal(err)
					}
					c = secure
				}
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					if line == "ready\n" {
						break
					}
				}
				end(s, c, tcp)
				_, line, _ := strings.Cut(s.logs.wait(t, 1)[0], " ")
				var a edge.Access
				if err := json.Unmarshal([]byte(line), &a); err != nil || a.End != want || a.Kind != kind {
					t.Errorf("%v: %s", err, line)
				}
			})
		}
	}
}
