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
	"runtime"
	"slices"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
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

// startChild starts the guest inside the anchor's namespace.
func startChild(c *Config, a *anchor) (*child, error) {
	master, slave, err := openPTY()
	if err != nil {
		return nil, fmt.Errorf("open a terminal for the guest's console: %w", err)
	}
	defer func() { _ = slave.Close() }()

	reboot, program, err := linkReboot(c)
	if err != nil {
		_ = master.Close()
		return nil, fmt.Errorf("link the program that reboots the guest: %w", err)
	}
	defer func() { _ = program.Close() }()
	cmd := exec.CommandContext(context.Background(), c.Argv[0], c.Argv[1:]...)
	cmd.Args[0] = reboot
	cmd.ExtraFiles = []*os.File{program} // programFD
	cmd.Dir = c.RunDir
	cmd.Env = append(slices.Clone(c.Env), kernelVariable+"="+c.Argv[0])
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// A session, but no controlling terminal: no key on the console
		// becomes a signal, and the guest's own window watcher may take the
		// terminal to hear of new sizes.
		Setsid: true,
		// Groups stays empty, which drops the supplementary ones.
		Credential: &syscall.Credential{Uid: c.UID, Gid: c.UID},
	}
	// The thread is changed for good and thrown away with its goroutine.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- startInside(cmd, a.ns)
	}()
	if err := <-done; err != nil {
		_ = master.Close()
		return nil, err
	}
	return &child{cmd: cmd, console: master, anchor: a}, nil
}

// startInside starts cmd as a child of this thread, after changing what a
// child inherits from the thread that forks it.
func startInside(cmd *exec.Cmd, ns *os.File) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// User Mode Linux maps its memory behind its program break. With a random
	// break it puts up to 1 GiB of nothing between, for which the guest's
	// kernel keeps page structures out of the guest's memory. Newer kernels
	// do the same as we here by themselves (arch/um/os-Linux/main.c).
	if _, _, e := unix.Syscall(unix.SYS_PERSONALITY, addrNoRandomize, 0, 0); e != 0 {
		return fmt.Errorf("set the personality: %w", e)
	}
	if err := lendTun(); err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("enter the guest's pid namespace: %w", err)
	}
	return cmd.Start()
}

// addrNoRandomize is ADDR_NO_RANDOMIZE of personality(2), linux/personality.h.
const addrNoRandomize = 0x0040000

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

// freshDirs empties the folders that belong to the guest.
func freshDirs(c *Config) error {
	for _, d := range c.OwnDirs {
		path := filepath.Join(c.RunDir, d)
		err := os.RemoveAll(path)
		if err == nil {
			err = os.Mkdir(path, 0o700)
		}
		if err == nil {
			err = os.Lchown(path, int(c.UID), int(c.UID))
		}
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "cannot make the guest's own folder %s", path)
		}
	}
	return nil
}
