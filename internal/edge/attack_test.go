package edge_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// h2Caller speaks HTTP/2 with prior knowledge, frame by frame.
type h2Caller struct {
	*http2.Framer
	conn net.Conn
}

func newH2Caller(t *testing.T, s *stand) *h2Caller {
	t.Helper()
	conn := s.dial(web)
	c := &h2Caller{http2.NewFramer(conn, bufio.NewReader(conn)), conn}
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

// get asks a.example.org for a path.
func (c *h2Caller) get(t *testing.T, stream uint32, path string) {
	t.Helper()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a.example.org"}, {":path", path}} {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		t.Fatal(err)
	}
}

// status is that of the next answer, or how its stream was reset.
func (c *h2Caller) status(t *testing.T) string {
	t.Helper()
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return f.ErrCode.String()
		}
	}
}

// settings are those that the other side of a connection of HTTP/2 says first.
func settings(t *testing.T, f *http2.Framer) *http2.SettingsFrame {
	t.Helper()
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	s, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("%v is no SETTINGS", frame)
	}
	return s
}

// TestCallersWhoLeave: who asks by HTTP/2 and hangs up leaves no connection to the
// guest behind.
func TestCallersWhoLeave(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{true, false} {
		s := newStand(t)
		var asked atomic.Int32
		s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, func(_ http.ResponseWriter, r *http.Request) {
			if r.Method == "PRI" {
				return
			}
			asked.Add(1)
			<-r.Context().Done()
		}, h2)})
		s.set()
		for i := range 5 {
			c := newH2Caller(t, s)
			c.get(t, 1, "/")
			c.get(t, 3, "/")
			eventually(t, "the guest is asked", func() bool { return asked.Load() == int32(2*i+2) })
			_ = c.conn.Close()
		}
		eventually(t, "nothing is left", func() bool { return s.server.Stats().Guests["alice"].Open == 0 })
	}
}

// TestAheadOfReaders: of what one side sends by HTTP/2 and the other one does not
// read, little is kept; and there is room for other streams.
func TestAheadOfReaders(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	heard := make(chan uint32, 1)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: accept(t, func(c net.Conn) {
		_, _ = io.CopyN(io.Discard, c, int64(len(http2.ClientPreface)))
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings()
		v, _ := settings(t, f).Value(http2.SettingInitialWindowSize)
		heard <- v
	})})
	s.set()
	c := newH2Caller(t, s)
	c.get(t, 1, "/")
	if v := <-heard; v == 0 || v > 64<<10 {
		t.Errorf("a guest may be %d bytes ahead in a stream", v)
	}
	if v, ok := settings(t, c.Framer).Value(http2.SettingInitialWindowSize); !ok || v > 256<<10 {
		t.Errorf("a caller may be %d bytes ahead in a stream", v)
	}
}

// TestPathsOfHTTP2: a path of HTTP/2 that HTTP/1.1 cannot say is refused.
func TestPathsOfHTTP2(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var got atomic.Value
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: accept(t, func(c net.Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		if strings.HasPrefix(line, "PRI") {
			return
		}
		got.Store(line)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
	})})
	s.set()
	for path, want := range map[string]string{"/a b": "400", "/a HTTP/1.1": "400", "/ü": "200", "/a\tb": "PROTOCOL_ERROR", "*": "200", "//x/y": "200"} {
		c := newH2Caller(t, s)
		c.get(t, 1, path)
		if status := c.status(t); status != want || want == "200" && got.Load() != "GET "+path+" HTTP/1.1\r\n" {
			t.Errorf("%q: %s, the guest was asked %q", path, status, got.Load())
		}
	}
}

// TestEarlyHints: after an answer of 1xx, too, nothing is made up.
func TestEarlyHints(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: accept(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
	})})
	s.set()
	got := s.raw(web, "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: close\r\n\r\n")
	if !strings.Contains(got, "Link: </x>") || !strings.Contains(got, "<html>") || strings.Contains(got, "Content-Type") {
		t.Error(got)
	}
}

// TestNamesAlmostForwarded: gateways make one variable of X-Forwarded-For and
// X_Forwarded_For, so that both are taken out where the guest may believe them.
func TestNamesAlmostForwarded(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	g := newRawGuest(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: g.port, Caller: vps.CallerHidden})
	s.set()
	s.raw(web, "GET / HTTP/1.1\r\nHost: a.example.org\r\nX_Forwarded_For: 6.6.6.6\r\nx_forwarded-proto: https\r\nX_Other: 1\r\nConnection: close\r\n\r\n")
	got := g.all()
	if strings.Contains(got, "6.6.6.6") || strings.Contains(got, "https") || !strings.Contains(got, "X-Forwarded-For: 127.0.0.1") || !strings.Contains(got, "X_other: 1") {
		t.Error(got)
	}
}

// TestLongMethod: no line of a log is longer than its fields may be.
func TestLongMethod(t *testing.T) {
	t.Parallel()
	for _, format := range []vps.AccessLogFormat{vps.AccessCombined, vps.AccessJSON} {
		s := newStand(t)
		s.config.Settings.AccessLog = format
		s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, named("alice"), false)})
		s.set()
		s.raw(web, fmt.Sprintf("%s / HTTP/1.1\r\nHost: a.example.org\r\n\r\n", strings.Repeat("M", 30_000)))
		if line := s.logs.wait(t, 1)[0]; len(line) > 5000 || !strings.Contains(line, "MMM") {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

// TestSpareConnections: of the many connections to a guest that one of HTTP/2 makes,
// none is left a little later, when it makes no requests.
func TestSpareConnections(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var asked sync.WaitGroup
	const streams = 50
	asked.Add(streams)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Method != "PRI" {
			asked.Done()
			asked.Wait()
		}
	}, false)})
	s.set()
	c := newH2Caller(t, s)
	for i := range streams {
		c.get(t, uint32(2*i+1), "/")
	}
	for range streams {
		if status := c.status(t); status != "200" {
			t.Fatal(status)
		}
	}
	if n := s.server.Stats().Guests["alice"].Connections; n < streams {
		t.Errorf("%d connections", n)
	}
	eventually(t, "the guest has none", func() bool { return s.server.Stats().Guests["alice"].Open == 0 })
	asked.Add(1)
	c.get(t, 2*streams+1, "/")
	if status := c.status(t); status != "200" {
		t.Error(status)
	}
}

// TestSilentGuest: a guest that does not answer is waited for once, though it has
// another address.
func TestSilentGuest(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	silent := uint16(name.(*unix.SockaddrInet4).Port)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", silent)) // all that has room
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: silent}).Address6 = netip.MustParseAddr("::1")
	s.set()
	if _, err := handshake(s.dial(webTLS), "a.example.org"); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Error(err)
	}
	if n := len(s.origin.dialed()); n > 0 || s.server.Stats().Guests["alice"].Refused[edge.ReasonGuestTimeout] != 1 {
		t.Errorf("it was called %d times more, %v", n, s.server.Stats().Guests["alice"].Refused)
	}
}
