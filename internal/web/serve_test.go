package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are in memory, so that their time is
// the test's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (*pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	near, far := net.Pipe()
	p.conns <- far
	return near
}

// served runs a server and calls do with how it is reached.
func served(t *testing.T, log io.Writer, do func(t *testing.T, p *pipes)) {
	t.Helper()
	servedBy(t, func(*host) {}, log, do)
}

// servedBy is served, by a host that is shaped first.
func servedBy(t *testing.T, shape func(h *host), log io.Writer, do func(t *testing.T, p *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		shape(h)
		s := New(h, Options{Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		busy := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Busy") != "" {
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
		go func() { ended <- s.Serve(ctx, p, busy) }()
		do(t, p)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// ask sends a request for a path with more lines.
func ask(t *testing.T, conn net.Conn, path string, lines ...string) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, strings.Join(append(lines, ""), "\r\n")); err != nil {
		t.Fatal(err)
	}
}

// TestSlowCallers checks that nobody holds a connection for long who asks
// slowly, reads slowly, or says nothing any more.
func TestSlowCallers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		do   func(t *testing.T, conn net.Conn)
		most time.Duration
	}{
		"asks slowly": {func(t *testing.T, conn net.Conn) {
			t.Helper()
			if _, err := io.WriteString(conn, "GET /t/bobs HTTP/1.1\r\nHost: x\r\n"); err != nil {
				t.Fatal(err)
			}
		}, headerTimeout},
		"says nothing": {func(*testing.T, net.Conn) {}, headerTimeout},
		"reads slowly": {func(t *testing.T, conn net.Conn) {
			t.Helper()
			ask(t, conn, "/t/bobs", "Accept: text/html")
			<-time.After(replyTimeout + time.Second)
		}, replyTimeout + time.Second},
		"stays": {func(t *testing.T, conn net.Conn) {
			t.Helper()
			ask(t, conn, "/t/bobs")
			r, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, r.Body)
			if err := errors.Join(err, r.Body.Close()); err != nil {
				t.Fatal(err)
			}
		}, idleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			served(t, io.Discard, func(t *testing.T, p *pipes) {
				t.Helper()
				conn, began := p.dial(), time.Now()
				tt.do(t, conn)
				rest, err := io.ReadAll(conn)
				if took := time.Since(began); err != nil || took > tt.most || bytes.Contains(rest, []byte("</html>")) {
					t.Errorf("after %s the connection ends with %d bytes (%v)", took, len(rest), err)
				}
			})
		})
	}
}

// TestHugeHeaders refuses headers that no browser sends, and goes on.
func TestHugeHeaders(t *testing.T) {
	t.Parallel()
	served(t, io.Discard, func(t *testing.T, p *pipes) {
		t.Helper()
		conn := p.dial()
		go func() {
			for range 64 { // until the server has enough
				if _, err := io.WriteString(conn, "GET /t/bobs HTTP/1.1\r\nX: "+strings.Repeat("x", 1<<10)); err != nil {
					return
				}
			}
		}()
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%+v, %v", r, err)
		} else {
			_ = r.Body.Close()
		}
		_ = conn.Close()
		conn = p.dial()
		ask(t, conn, "/t/bobs", "Connection: close", "Cookie: "+strings.Repeat("c", 8<<10))
		if all, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(all, []byte("HTTP/1.1 200 ")) {
			t.Errorf("%v, %.80s", err, all)
		}
	})
}

// TestNothingIsLogged looks for keys in all that the server logs, and at answers
// that gates give.
func TestNothingIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	served(t, &log, func(t *testing.T, p *pipes) {
		t.Helper()
		for _, path := range []string{"/t/bobs", "/t/bobs?guest=alice", "/t/bobs;x=%zz", "/t/bobs%zz", "//t/bobs", "/t/bobs/..//", "/t/nobodys", "/t/bobs?a;b"} {
			conn := p.dial()
			ask(t, conn, path, "Connection: close")
			all, err := io.ReadAll(conn)
			if err != nil && !errors.Is(err, io.EOF) || len(all) == 0 {
				t.Errorf("%s: %v", path, err)
			}
		}
		conn := p.dial()
		ask(t, conn, "/t/bobs", "Busy: 1", "Connection: close")
		if all, err := io.ReadAll(conn); err != nil || !bytes.Contains(all, []byte(" 429 ")) || !bytes.Contains(all, []byte("Cache-Control: private, no-store")) {
			t.Errorf("a gate answers %s (%v)", all, err)
		}
	})
	if text := log.String(); strings.Contains(text, "bobs") || strings.Contains(text, "nobodys") {
		t.Errorf("the log says %s", text)
	}
}
