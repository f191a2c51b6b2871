package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// screen is a program on a terminal of its own, or with its output in a pipe.
type screen struct {
	t    *testing.T
	h    *lab.Host
	cmd  *exec.Cmd
	tty  *os.File
	done chan struct{} // closed when the program has ended

	mu   sync.Mutex
	text strings.Builder
}

// Write keeps what the program says.
func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// open runs the command line on a terminal.
func open(t *testing.T, h *lab.Host, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, h: h, cmd: exec.CommandContext(context.WithoutCancel(t.Context()), lab.Sublet(t), args...), done: make(chan struct{})}
	s.cmd.Env = append(append([]string{}, h.Env...), "TERM=xterm")
	var err error
	if s.tty, err = pty.StartWithSize(s.cmd, &pty.Winsize{Rows: 24, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		buf := make([]byte, 4096)
		for {
			n, err := s.tty.Read(buf) // EIO when the last program has closed it
			_, _ = s.Write(buf[:n])
			if err != nil {
				break
			}
		}
		_ = s.cmd.Wait()
	}()
	t.Cleanup(s.close)
	return s
}

// follow runs the command line with its output in a pipe.
func follow(t *testing.T, h *lab.Host, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, h: h, cmd: exec.CommandContext(context.WithoutCancel(t.Context()), lab.Sublet(t), args...), done: make(chan struct{})}
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = h.Env, s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait()
	}()
	t.Cleanup(s.close)
	return s
}

func (s *screen) close() {
	_ = s.cmd.Process.Kill()
	<-s.done
	if s.tty != nil {
		_ = s.tty.Close()
	}
}

func (s *screen) enter(keys string) {
	s.t.Helper()
	if _, err := s.tty.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// shows waits until the program has said something.
func (s *screen) shows(text string) {
	s.t.Helper()
	for end := time.Now().Add(hang.After); !strings.Contains(s.String(), text); <-time.After(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s never shows %q, but\n%s", strings.Join(s.cmd.Args[1:], " "), text, s)
		}
	}
}

// ends waits for the program's end and checks its exit code.
func (s *screen) ends(code int) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(hang.After):
		s.t.Fatalf("%s does not end; it shows\n%s", strings.Join(s.cmd.Args[1:], " "), s)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("%s ends with %d; want %d\n%s", strings.Join(s.cmd.Args[1:], " "), got, code, s)
	}
}

// TestConsole sits down at a guest's console.
func TestConsole(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "192MiB", "--ssh-key", h.Key+".pub",
		"--root-password-file", passwordFile(t, "correct horse"), "--wait", "ssh", "--timeout", hang.After.String())
	h.Eventually("the console asks who is there", func() bool { return strings.Contains(h.Sublet("logs", "alice"), "alice login:") })

	t.Log("it says how to leave, replays what was said, and takes a login")
	first := open(t, h, "console", "alice")
	first.shows("leave with ^] or Ctrl-a q")
	first.shows("alice login:")
	first.enter("root\r")
	first.shows("Password: ")
	first.enter("correct horse\r")
	first.shows("root@alice:~#")
	first.enter("echo sum-$((40+2)) from $(tty)\r")
	first.shows("sum-42 from /dev/console")
	if strings.Contains(first.String(), "correct horse") {
		t.Error("the console shows the password")
	}

	t.Log("another one watches, and does not type")
	log := follow(t, h, "logs", "-f", "alice", "-n", "2")
	log.shows("sum-42") // so it is there by now, and the last line is the prompt
	second := open(t, h, "console", "alice")
	second.shows("somebody else writes")
	second.shows("sum-42")
	watcher := open(t, h, "console", "alice", "--read-only")
	watcher.shows("sum-42")
	second.enter("echo not-$((40+3))\r")
	watcher.enter("echo nor-$((40+4))\r")
	first.enter("echo both-$((40+5))\r")
	for _, s := range []*screen{first, second, watcher, log} {
		s.shows("both-45")
		if strings.Contains(s.String(), "not-43") || strings.Contains(s.String(), "nor-44") {
			t.Errorf("a reader typed:\n%s", s)
		}
	}

	t.Log("the keyboard can be taken over")
	third := open(t, h, "console", "alice", "--takeover")
	third.shows("both-45")
	third.enter("echo taken-$((40+6)); stty size\r")
	third.shows("taken-46")
	third.shows("24 100")
	first.shows("somebody else writes now")

	t.Log("all ways out")
	first.enter("\x1d")
	first.ends(0)
	first.shows("alice runs on")
	second.enter("\x01q")
	second.ends(0)
	watcher.enter("\x1d")
	watcher.ends(0)
	if err := log.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	log.ends(0)

	t.Log("it stays with its guest when the daemon goes")
	third.enter("echo still-$((40+7))\r")
	third.shows("still-47")
	h.Stop()
	third.ends(exitUnavailable)
	h.Start()
	fourth := open(t, h, "console", "alice")
	fourth.shows("still-47") // its last lines outlive the daemon
	fourth.enter("echo again-$((40+8))\r")
	fourth.shows("again-48")

	t.Log("the guest's end is the console's")
	h.Sublet("kill", "alice")
	fourth.ends(0)
	fourth.shows("alice has ended")
	if r := h.Try("console", "alice"); r.Code != exitConflict {
		t.Errorf("the console of a stopped guest ends with %d; want %d", r.Code, exitConflict)
	}

	t.Log("from power-on it has the kernel's first line, and the kernel is quiet later")
	fresh := open(t, h, "start", "alice", "--console")
	fresh.shows("Linux version")
	fresh.shows("alice login:")
	if _, after, _ := strings.Cut(fresh.String(), "Linux version"); strings.Contains(after, "EXT4-fs (ubda): mounted") {
		t.Errorf("the console shows\n%s", fresh)
	}
	fresh.enter("\x1d")
	fresh.ends(0)
}
