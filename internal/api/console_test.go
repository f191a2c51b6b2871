package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"sublet/internal/vps"
)

func openConsole(t *testing.T, s *started, o ConsoleOptions) (*ConsoleConn, *fakeConsole) {
	t.Helper()
	c := must[*ConsoleConn](t)(s.Console(t.Context(), "alice", o))
	t.Cleanup(func() { _ = c.Close() })
	return c, <-s.fake.consoles
}

func TestConsoleBothWays(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, guest := openConsole(t, s, ConsoleOptions{Takeover: true, Rows: 24, Columns: 80})
	same(t, guest.options, ConsoleOptions{Takeover: true, Rows: 24, Columns: 80})

	// Larger than a frame, so that chunking shows.
	long := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	go func() { _, _ = guest.outW.Write(long) }()
	got := make([]byte, len(long))
	must[int](t)(io.ReadFull(c, got))
	if !bytes.Equal(got, long) {
		t.Error("what the guest wrote arrived changed")
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(long)
		sent <- err
	}()
	must[int](t)(io.ReadFull(guest.inR, got))
	check(t, <-sent)
	if !bytes.Equal(got, long) {
		t.Error("what the caller wrote arrived changed")
	}
	check(t, c.Resize(50, 132))
	same(t, <-guest.sizes, [2]uint16{50, 132})
	check(t, c.send(77, []byte("from the future")))
	check(t, c.Resize(1, 65535))
	same(t, <-guest.sizes, [2]uint16{1, 65535})

	check(t, c.Close())
	check(t, c.Close())
	<-guest.closed
	if _, err := c.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := c.Write(got); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after close: %v", err)
	}
}

func TestConsoleEnds(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, guest := openConsole(t, s, ConsoleOptions{})
	go func() {
		_, _ = io.WriteString(guest.outW, "bye")
		_ = guest.outW.Close()
	}()
	same(t, string(must[[]byte](t)(io.ReadAll(c))), "bye")
	<-guest.closed

	c, guest = openConsole(t, s, ConsoleOptions{})
	_ = guest.outW.CloseWithError(vps.Errorf(vps.CodeConflict, "bob took the keyboard"))
	_, err := c.Read(make([]byte, 1))
	if e := wantCode(t, err, vps.CodeConflict); e.Message != "bob took the keyboard" {
		t.Error(e.Message)
	}

	ctx, cancel := context.WithCancel(t.Context())
	c = must[*ConsoleConn](t)(s.Console(ctx, "alice", ConsoleOptions{}))
	guest = <-s.fake.consoles
	cancel()
	_, err = c.Read(make([]byte, 1))
	wantCode(t, err, vps.CodeTimeout)
	<-guest.closed
}

func TestConsoleReadOnlyDropsKeys(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, guest := openConsole(t, s, ConsoleOptions{ReadOnly: true})
	must[int](t)(io.WriteString(c, "rm -rf /\n"))
	check(t, c.Resize(1, 1))
	check(t, c.Close())
	<-guest.closed
	typed, err := io.ReadAll(guest.inR)
	check(t, err)
	if len(typed) > 0 || len(guest.sizes) > 0 {
		t.Errorf("a watcher typed %q", typed)
	}
}

func TestConsoleRefusals(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, err := s.Console(t.Context(), "busy", ConsoleOptions{})
	if e := wantCode(t, err, vps.CodeConflict); !strings.Contains(e.Message, "--takeover") {
		t.Error(e.Message)
	}
	_, err = s.Console(t.Context(), "../../x", ConsoleOptions{})
	wantCode(t, err, vps.CodeInvalid)
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 1, 'x', 1, 0, 4, 0, 24, 0, 80})
	f.Add([]byte{2, 255, 255})
	f.Fuzz(func(t *testing.T, wire []byte) {
		buf := make([]byte, 1<<16)
		r := bytes.NewReader(wire)
		var again []byte
		for {
			kind, payload, err := readFrame(r, buf)
			if err != nil {
				break
			}
			again = appendFrame(again, kind, payload)
		}
		if !bytes.HasPrefix(wire, again) {
			t.Errorf("%x became %x", wire, again)
		}
	})
}
