//go:build linux

package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/edge"
)

// pair are two ends of a connection.
func pair(tb testing.TB) (a, b *net.UnixConn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			tb.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		tb.Cleanup(func() { _ = c.Close() })
	}
	return ends[0], ends[1]
}

func openFDs(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(all)
}

func TestFramesCarrySockets(t *testing.T) {
	a, b := pair(t)
	from, to := &wire{conn: a}, &wire{conn: b}
	socket, err := open(t.Context(), edge.Port{Number: 81, Kind: edge.KindHTTP})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.close()
	before := openFDs(t)
	// A configuration of 10,000 domains is some MiB.
	large := json.RawMessage(`"` + strings.Repeat("x", 4<<20) + `"`)
	port := edge.Port{Number: 81, Kind: edge.KindHTTP}
	sent := []*message{{ID: 1, Op: opHello}, {ID: 2, Op: opListen, Port: &port}, {ID: 3, Op: opConfig, Config: large}, {ID: 4, Op: opListen, Port: &port}}
	go func() {
		for _, m := range sent {
			with := none
			if m.Op == opListen {
				with = socket
			}
			if err := from.send(m, with); err != nil {
				t.Error(err)
			}
		}
		_ = a.Close()
	}()
	for _, want := range sent {
		m, got, err := to.receive(toEdge)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Config, want.Config) || m.ID != want.ID || m.Op != want.Op || m.Version != protocolVersion || (want.Port != nil && *m.Port != *want.Port) {
			t.Fatalf("the message %+v is received; %+v was sent", m, want)
		}
		if (got != none) != (m.Op == opListen) {
			t.Errorf("%s came with the socket %d", m.Op, got)
		}
		if got != none {
			if err := got.check(port); err != nil {
				t.Error(err)
			}
		}
		got.close()
	}
	if _, _, err := to.receive(toEdge); err == nil {
		t.Error("after the end there is another frame")
	}
	if after := openFDs(t); after > before {
		t.Errorf("%d descriptors are open; %d were", after, before)
	}
}

func TestFramesAreBounded(t *testing.T) {
	a, b := pair(t)
	header := binary.BigEndian.AppendUint32(nil, fromEdge+1)
	if _, err := a.Write(header); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (&wire{conn: b}).receive(fromEdge); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a frame that is too large: %v", err)
	}
}

// TestTooManySockets sends more than one with a frame, as no version does.
func TestTooManySockets(t *testing.T) {
	a, b := pair(t)
	before := openFDs(t)
	body := []byte(`{"op":"hello","id":1}`)
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var many []int
	for range 2 * maxFiles {
		many = append(many, int(os.Stderr.Fd()))
	}
	if _, _, err := a.WriteMsgUnix(frame, unix.UnixRights(many...), nil); err != nil {
		t.Fatal(err)
	}
	_, got, err := (&wire{conn: b}).receive(toEdge)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.check(edge.Port{Number: 80, Kind: edge.KindHTTP}); err == nil {
		t.Error("standard error is taken for a socket")
	}
	got.close()
	if after := openFDs(t); after > before {
		t.Errorf("%d descriptors are open; %d were", after, before)
	}
}

func FuzzReceive(f *testing.F) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	f.Add(frame(`{"version":1,"id":7,"op":"hello","hello":{"build":"x","started":"2026-01-01T00:00:00Z","uid":1,"ports":[{"number":80,"kind":"http"}]}}`))
	f.Add(frame(`{"op":"wake","guest":"id"}`))
	f.Add(append(frame(`{}`), frame(`{"op":"gone","stats":{"a":[1,2,{"b":null}]}}`)...))
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		from, to := pair(t)
		go func() {
			_, _ = from.Write(b)
			_ = from.Close()
		}()
		w := &wire{conn: to}
		for rest := b; ; {
			m, socket, err := w.receive(1 << 16)
			if err != nil {
				return
			}
			size := int(binary.BigEndian.Uint32(rest))
			body := rest[headerSize : headerSize+size]
			var again message
			if json.Unmarshal(body, &again) != nil || socket != none {
				t.Fatalf("taken for a message: %q", body)
			}
			if diff := cmp.Diff(&again, m); diff != "" {
				t.Fatal(diff)
			}
			rest = rest[headerSize+size:]
		}
	})
}
