package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/term"

	"sublet/internal/api"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

func TestEscapes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		reads []string
		want  string
		leave bool
	}{
		{"plain", []string{"ls\r"}, "ls\r", false},
		{"ctrl-c is the guest's", []string{"\x03\x1b[A"}, "\x03\x1b[A", false},
		{"detach", []string{"\x1d"}, "", true},
		{"before and behind", []string{"ab\x1dcd"}, "ab", true},
		{"prefix q", []string{"\x01q"}, "", true},
		{"prefix Q", []string{"x\x01Q"}, "x", true},
		{"prefix across reads", []string{"x\x01", "q"}, "x", true},
		{"prefix detach", []string{"\x01\x1d"}, "", true},
		{"literal", []string{"\x01a"}, "\x01", false},
		{"literal across reads", []string{"\x01", "a"}, "\x01", false},
		{"twice", []string{"\x01\x01"}, "\x01", false},
		{"literal, then q", []string{"\x01aq"}, "\x01q", false},
		{"literal detach", []string{"\x01]"}, "\x1d", false},
		{"other key", []string{"\x01x"}, "\x01x", false},
		{"q alone", []string{"q"}, "q", false},
		{"nothing", []string{""}, "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var e escapes
			var got []byte
			left := false
			for _, read := range test.reads {
				send, leave := e.feed([]byte(read))
				got, left = append(got, send...), left || leave
			}
			if string(got) != test.want || left != test.leave {
				t.Errorf("sent %q, left %v; want %q, %v", got, left, test.want, test.leave)
			}
		})
	}
}

// FuzzEscapes checks that how input is cut into reads makes no difference.
func FuzzEscapes(f *testing.F) {
	f.Add([]byte("ab\x01acd\x01qef"), 3)
	f.Add([]byte("\x01\x01\x01]\x1d"), 1)
	f.Fuzz(func(t *testing.T, typed []byte, cut int) {
		if cut < 0 || cut > len(typed) {
			return
		}
		var whole, parts escapes
		want, wantLeave := whole.feed(typed)
		got, leave := parts.feed(typed[:cut])
		if !leave {
			var more []byte
			more, leave = parts.feed(typed[cut:])
			got = append(got, more...)
		}
		if !bytes.Equal(got, want) || leave != wantLeave {
			t.Errorf("cut at %d: %q, %v; want %q, %v", cut, got, leave, want, wantLeave)
		}
	})
}

func TestPlainWriter(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"hello\n\tworld\r\n":                  "hello\n\tworld\n",
		"\x1b[1;32mok\x1b[0m \x1b[m":          "\x1b[1;32mok\x1b[0m \x1b[m",
		"\x1b[38:2:1:2:3mx":                   "\x1b[38:2:1:2:3mx",
		"a\x1b[2J\x1b[Hb\x1b[?1049hc":         "abc",
		"a\x1b[>4;1mb":                        "ab",
		"a\x1b]0;title\ab\x1b]52;c;eA\x1b\\c": "abc",
		"a\x1bP1$r\x1b\\b\x1b(0c\x1bcd":       "abcd",
		"a\x9cb\u009b2Jc\u00e9":               "a\x9cb2Jc\u00e9",
		"密码 \u00a0ü":                          "密码 \u00a0ü",
		"never ended \x1b]0;x\nnext\a":        "never ended \nnext",
	}
	for in, want := range tests {
		for _, size := range []int{len(in), 1} {
			var b bytes.Buffer
			p := &plainWriter{w: &b}
			for text := []byte(in); len(text) > 0; text = text[min(size, len(text)):] {
				if _, err := p.Write(text[:min(size, len(text))]); err != nil {
					t.Fatal(err)
				}
			}
			if b.String() != want {
				t.Errorf("%q in pieces of %d became %q, want %q", in, size, b.String(), want)
			}
		}
	}
}

// FuzzPlainWriter checks that nothing but text, line feeds, tabs and colours
// comes through.
func FuzzPlainWriter(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\x1b]0;t\a\x1b[2Jc"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var b bytes.Buffer
		if _, err := (&plainWriter{w: &b}).Write(text); err != nil {
			t.Fatal(err)
		}
		out := b.Bytes()
		for i, c := range out {
			if c == 0x1b {
				end := bytes.IndexByte(out[i:], 'm')
				if end < 2 || out[i+1] != '[' || len(bytes.Trim(out[i+2:i+end], "0123456789;:")) > 0 {
					t.Fatalf("%q lets %q through", text, out[i:])
				}
			} else if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
				t.Fatalf("%q lets %q through", text, c)
			}
		}
	})
}

// fakeStream is a guest's end of a console.
type fakeStream struct {
	fromGuest *io.PipeReader
	guest     *io.PipeWriter // the guest writes here
	mu        sync.Mutex
	typed     bytes.Buffer
	got       chan struct{} // something was typed or resized
	rows      uint16
	columns   uint16
}

func newStream() *fakeStream {
	s := &fakeStream{got: make(chan struct{}, 100)}
	s.fromGuest, s.guest = io.Pipe()
	return s
}

func (s *fakeStream) Read(p []byte) (int, error) { return s.fromGuest.Read(p) }

func (s *fakeStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got <- struct{}{}
	return s.typed.Write(p)
}

func (s *fakeStream) Resize(rows, columns uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows, s.columns = rows, columns
	s.got <- struct{}{}
	return nil
}

func (s *fakeStream) Close() error { return s.fromGuest.Close() }

func (s *fakeStream) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.typed.String()
}

// screen collects what arrives at the user's side of a terminal.
type screen struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

// terminal gives w a real terminal on all three streams, and returns the
// user's side: the keyboard, and the screen.
func terminal(t *testing.T, w *world) (keyboard, tty *os.File, s *screen) {
	t.Helper()
	keyboard, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close(); _ = tty.Close() })
	w.options.Stdin, w.options.Stdout, w.options.Stderr = tty, tty, tty
	w.options.IsTerminal = nil
	s = &screen{changed: make(chan struct{}, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := keyboard.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			select {
			case s.changed <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	return keyboard, tty, s
}

// see waits until the screen shows text.
func (s *screen) see(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(hang.After)
	for {
		s.mu.Lock()
		all := s.text.String()
		s.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-s.changed:
		case <-deadline:
			t.Fatalf("the screen does not show %q:\n%q", text, all)
		}
	}
}

// exportAll lets two states of a terminal be compared, which keep their parts
// to themselves.
func exportAll(reflect.Type) bool { return true }

// awaitChan waits for a value.
func awaitChan[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(hang.After):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func start(ctx context.Context, w *world, args ...string) <-chan int {
	done := make(chan int, 1)
	go func() { done <- w.run(ctx, args...) }()
	return done
}

func TestConsole(t *testing.T) {
	t.Parallel()
	w := populate(t)
	stream := newStream()
	w.console = stream
	keyboard, tty, screen := terminal(t, w)
	if err := pty.Setsize(keyboard, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	done := start(t.Context(), w, "console", "alice", "--takeover")
	screen.see(t, "the console of alice; leave with ^] or Ctrl-a q")
	if _, err := stream.guest.Write([]byte("alice login: ")); err != nil {
		t.Fatal(err)
	}
	screen.see(t, "alice login: ")
	if d := cmp.Diff(api.ConsoleOptions{Takeover: true, Rows: 30, Columns: 100}, w.opened); d != "" {
		t.Errorf("opened with (-want +got):\n%s", d)
	}
	// Raw: a Ctrl-C is the guest's, and Enter is a carriage return.
	if _, err := keyboard.WriteString("\x03root\r\x01a"); err != nil {
		t.Fatal(err)
	}
	for stream.text() != "\x03root\r\x01" {
		awaitChan(t, stream.got, "key for the guest")
	}
	if _, err := keyboard.WriteString("\x01q"); err != nil {
		t.Fatal(err)
	}
	if code := awaitChan(t, done, "end of the console"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	screen.see(t, "alice runs on")
	if after, err := term.GetState(int(tty.Fd())); err != nil || !cmp.Equal(before, after, cmp.Exporter(exportAll)) {
		t.Errorf("the terminal is not what it was before: %v", err)
	}
}

func TestConsoleEnds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		args   []string
		finish func(w *world, s *fakeStream, cancel func())
		code   int
		says   string
	}{
		{"guest ends", nil, func(w *world, s *fakeStream, _ func()) {
			w.mu.Lock()
			w.guests["alice"].Status = vps.GuestStatus{State: vps.StateStopped, Exit: &vps.Exit{Reason: vps.ExitPowerOff, At: now}}
			w.mu.Unlock()
			_ = s.guest.Close()
		}, 0, "alice has ended: power-off, 2026-01-02T15:04:05Z"},
		{"taken over", nil, func(_ *world, s *fakeStream, _ func()) {
			_ = s.guest.CloseWithError(vps.Errorf(vps.CodeConflict, "somebody took the console over"))
		}, 4, "sublet: alice: somebody took the console over"},
		{"interrupted", []string{"--read-only"}, func(_ *world, _ *fakeStream, cancel func()) { cancel() }, 0, "alice runs on"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := populate(t)
			stream := newStream()
			w.console = stream
			_, tty, screen := terminal(t, w)
			before, err := term.GetState(int(tty.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := start(ctx, w, append([]string{"console", "alice"}, test.args...)...)
			screen.see(t, "the console of alice")
			test.finish(w, stream, cancel)
			if code := awaitChan(t, done, "end of the console"); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			screen.see(t, test.says)
			if after, err := term.GetState(int(tty.Fd())); err != nil || !cmp.Equal(before, after, cmp.Exporter(exportAll)) {
				t.Errorf("the terminal is not what it was before: %v", err)
			}
		})
	}
}

func TestConsoleWithoutTerminal(t *testing.T) {
	t.Parallel()
	w := populate(t)
	stream := newStream()
	w.console = stream
	w.options.Stdin = strings.NewReader("poweroff\n\x01q\x1d")
	if code := w.run(t.Context(), "console", "alice", "-q"); code != 0 {
		t.Fatalf("exit code %d: %s", code, w.errors.String())
	}
	if got := stream.text(); got != "poweroff\n\x01q\x1d" {
		t.Errorf("the guest got %q: without a terminal nothing is an escape", got)
	}
	// Only watching ends when the guest does, not when there is no input.
	stream = newStream()
	w.console = stream
	done := start(t.Context(), w, "console", "alice", "--read-only")
	if _, err := stream.guest.Write([]byte("booting")); err != nil {
		t.Fatal(err)
	}
	_ = stream.guest.Close()
	if code := awaitChan(t, done, "end of the console"); code != 0 || w.out.String() != "booting" || stream.text() != "" {
		t.Errorf("exit code %d, printed %q, typed %q", code, w.out.String(), stream.text())
	}
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	for answer, gone := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false} {
		t.Run(strings.TrimSpace(answer), func(t *testing.T) {
			t.Parallel()
			w := populate(t)
			keyboard, _, screen := terminal(t, w)
			done := start(t.Context(), w, "delete", "alice", "bob")
			screen.see(t, "Delete alice (running, disk of 8GiB), bob (stopped, disk of 8GiB)? Nothing of it can be brought back. Type y to go on: ")
			if _, err := keyboard.WriteString(answer); err != nil {
				t.Fatal(err)
			}
			if code := awaitChan(t, done, "end of delete"); (code == 0) != gone {
				t.Errorf("exit code %d", code)
			}
			if _, err := w.Guest(t.Context(), "alice"); (err != nil) != gone {
				t.Errorf("after %q: %v", answer, err)
			}
		})
	}
	t.Run("nobody is asked about what is not there", func(t *testing.T) {
		t.Parallel()
		w := populate(t)
		terminal(t, w)
		if code := w.run(t.Context(), "delete", "alice", "zoe"); code != 3 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		w := populate(t)
		_, _, screen := terminal(t, w)
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, w, "delete", "--all")
		screen.see(t, "Type y to go on: ")
		cancel()
		if code := awaitChan(t, done, "end of delete"); code != 1 || len(w.guests) != 4 {
			t.Errorf("exit code %d, %d guests", code, len(w.guests))
		}
	})
}

func TestAskPassword(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, first, second string
		code                int
		says                string
	}{
		{"right", "geheim\n", "geheim\n", 0, "answers SSH"},
		{"differ", "geheim\n", "gehiem\n", 2, "the two passwords differ"},
		{"empty", "\n", "", 2, "an empty password is refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := populate(t)
			keyboard, _, screen := terminal(t, w)
			done := start(t.Context(), w, "create", "dora", "--root-password", "--wait", "ssh")
			screen.see(t, "Root password: ")
			if _, err := keyboard.WriteString(test.first); err != nil {
				t.Fatal(err)
			}
			if test.second != "" {
				screen.see(t, "The same again: ")
				if _, err := keyboard.WriteString(test.second); err != nil {
					t.Fatal(err)
				}
			}
			if code := awaitChan(t, done, "end of create"); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			screen.see(t, test.says)
			if _, err := w.Guest(t.Context(), "dora"); (err == nil) != (test.code == 0) {
				t.Errorf("dora: %v", err)
			}
		})
	}
}
