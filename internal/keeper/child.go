//go:build linux

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// maxOpenFiles is how many descriptors a guest may have; User Mode Linux needs
// a few dozen.
const maxOpenFiles = 4096

// child is the guest's process with what belongs to it.
type child struct {
	cmd     *exec.Cmd
	console *os.File // the pty's master side
	anchor  *anchor
}

// anchor is the first process of the guest's pid namespace. It only waits for
// the end of a pipe; with it the kernel ends every process of the namespace
// (pid_namespaces(7)).
type anchor struct {
	cmd  *exec.Cmd
	pipe io.Closer
	ns   *os.File
	// nsName is the namespace as record.PIDNamespace has it.
	nsName string
}

// startAnchor starts this very program as the anchor. It inherits the lock, so
// that the run folder is held for as long as anything of the guest may run.
func startAnchor(c *Config, lock *os.File) (*anchor, error) {
	args := append(append([]string(nil), c.Command[1:]...), anchorFlag)
	// Not tied to a context: its life is the pipe's.
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", args...)
	cmd.Args[0] = c.Command[0]
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guest's anchor: %w", err)
	}
	a := &anchor{cmd: cmd, pipe: pipe}
	link := filepath.Join("/proc", itoa(cmd.Process.Pid), "ns/pid")
	a.ns, err = os.Open(link)
	if err == nil {
		a.nsName, err = os.Readlink(link)
	}
	if err != nil {
		a.end()
		return nil, err
	}
	return a, nil
}

// end kills everything in the namespace and returns when it is gone: the
// kernel lets nobody reap the first process before the others are dead.
func (a *anchor) end() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	_ = a.pipe.Close()
	if a.ns != nil {
		_ = a.ns.Close()
	}
}

// limits sets, for this process and so for the guest that it starts, what a
// guest may use. They bind the keeper too, which writes only small files.
func limits(c *Config) error {
	// A write beyond RLIMIT_FSIZE sends this signal first, and kills who does
	// not ignore it. Ignoring is inherited through execve.
	signal.Ignore(syscall.SIGXFSZ)
	// Whatever the daemon was started with, and so this process, is not for
	// the guest.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files from the guest: %w", err)
	}
	set := []struct {
		what  string
		which int
		limit uint64
	}{
		{"core files", unix.RLIMIT_CORE, 0},
		{"open files", unix.RLIMIT_NOFILE, maxOpenFiles},
	}
	if c.FileLimit > 0 {
		set = append(set, struct {
			what  string
			which int
			limit uint64
		}{"file sizes", unix.RLIMIT_FSIZE, uint64(c.FileLimit)})
	}
	for _, l := range set {
		// Through package syscall: it remembers that the limit on open files
		// is a wish, and does not put the old one back at the next execve.
		if err := syscall.Setrlimit(l.which, &syscall.Rlimit{Cur: l.limit, Max: l.limit}); err != nil {
			return fmt.Errorf("limit %s to %d: %w", l.what, l.limit, err)
		}
	}
	return nil
}

// startChild starts the guest inside the anchor's namespace, and in its jail.
func startChild(c *Config, a *anchor) (*child, error) {
	master, slave, err := openPTY()
	if err != nil {
		return nil, fmt.Errorf("open a terminal for the guest's console: %w", err)
	}
	defer func() { _ = slave.Close() }()
	cmd, err := startJailed(c, a, slave)
	if err != nil {
		_ = master.Close()
		return nil, err
	}
	return &child{cmd: cmd, console: master, anchor: a}, nil
}

// openPTY opens a terminal whose master side can be waited for without a
// thread, and whose slave side does not echo or interpret what is typed before
// the guest has set it up.
func openPTY() (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = blocking.Close() }()
	defer func() {
		if err != nil {
			_ = slave.Close()
		}
	}()
	t, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		return nil, nil, err
	}
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Iflag &^= unix.ICRNL | unix.IXON
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, t); err != nil {
		return nil, nil, err
	}
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), "console"), slave, nil
}

// setSize tells the guest the size of the window.
func (c *child) setSize(rows, cols uint16) {
	raw, err := c.console.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// wait returns when the guest's main process has ended and all others of it
// have been killed.
func (c *child) wait() syscall.WaitStatus {
	err := c.cmd.Wait()
	c.anchor.end()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok {
			return ws
		}
	}
	return 0
}
