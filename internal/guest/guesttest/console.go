package guesttest

import (
	"io"
	"strings"
	"testing"
	"time"

	"sublet/internal/guest"
	"sublet/internal/vps"
)

// Screen is a joined console that is read all the time, for tests.
type Screen struct {
	io.WriteCloser
	chunks chan string // closed at the end
	seen   strings.Builder
}

// Join joins the console of an instance and starts reading it. It is left
// when the test ends.
func Join(t *testing.T, d guest.Driver, in vps.Instance, o guest.ConsoleOptions) *Screen {
	t.Helper()
	c, ok := d.(guest.Console)
	if !ok {
		t.Fatal("this driver has no console")
	}
	conn, err := c.Console(t.Context(), in, o)
	if err != nil {
		t.Fatalf("join the console: %v", err)
	}
	s := &Screen{WriteCloser: conn, chunks: make(chan string)}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = conn.Close()
		close(done)
	})
	go s.read(conn, done)
	return s
}

func (s *Screen) read(r io.Reader, done <-chan struct{}) {
	defer close(s.chunks)
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			select {
			case s.chunks <- string(buf[:n]):
			case <-done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Until reads on until the text has been shown since the last Until, and
// forgets everything up to it.
func (s *Screen) Until(t *testing.T, text string) {
	t.Helper()
	late := time.After(patience)
	for {
		if _, after, ok := strings.Cut(s.seen.String(), text); ok {
			s.seen.Reset()
			s.seen.WriteString(after)
			return
		}
		select {
		case c, ok := <-s.chunks:
			if !ok {
				t.Fatalf("the console ended without %q; the last was %q", text, last(s.seen.String()))
			}
			s.seen.WriteString(c)
		case <-late:
			t.Fatalf("no %q on the console; the last was %q", text, last(s.seen.String()))
		}
	}
}

// Ended reads on until the console ends.
func (s *Screen) Ended() {
	for range s.chunks {
	}
}

// Type types a text.
func (s *Screen) Type(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatalf("type %q: %v", text, err)
	}
}

func last(s string) string { return s[max(0, len(s)-300):] }

func testConsoleReplay(l *life) {
	t := l.t
	in := l.boot(t)
	typed, printed := l.rig.Typed("first")
	writer := Join(t, l.d, in, guest.ConsoleOptions{Write: true, Rows: 40, Cols: 120})
	writer.Type(t, typed)
	writer.Until(t, printed)

	// Who comes later sees what was before, and what comes.
	reader := Join(t, l.rig.Driver(t), in, guest.ConsoleOptions{})
	reader.Until(t, printed)
	typed, printed = l.rig.Typed("second")
	writer.Type(t, typed)
	writer.Until(t, printed)
	reader.Until(t, printed)
	if _, err := reader.Write([]byte("x")); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("writing as a reader gave %v", err)
	}
}

func testConsoleTakeover(l *life) {
	t := l.t
	in := l.boot(t)
	first := Join(t, l.d, in, guest.ConsoleOptions{Write: true})
	typed, printed := l.rig.Typed("mine")
	first.Type(t, typed)
	first.Until(t, printed)

	refused := Join(t, l.d, in, guest.ConsoleOptions{Write: true})
	refused.Until(t, "somebody else writes")
	second := Join(t, l.d, in, guest.ConsoleOptions{Takeover: true})
	typed, printed = l.rig.Typed("taken")
	second.Type(t, typed)
	second.Until(t, printed)
	first.Until(t, printed)
	if _, err := first.Write([]byte("x")); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("writing after a take-over gave %v", err)
	}
}

func testConsoleEnd(l *life) {
	t := l.t
	in := l.boot(t)
	s := Join(t, l.d, in, guest.ConsoleOptions{})
	if err := l.d.Kill(l.ctx, in); err != nil {
		t.Fatalf("kill: %v", err)
	}
	s.Ended()
	if _, err := l.d.(guest.Console).Console(l.ctx, in, guest.ConsoleOptions{}); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("joining the console of an ended guest gave %v", err)
	}
}
