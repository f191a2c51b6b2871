//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/keeper/jail"
	"sublet/internal/vps"
)

// The arguments that Main reads.
const (
	orderFlag  = "--order"
	insideFlag = "--inside"
)

// Order says what a process is started as. The daemon writes it to
// RUN/edge/NUMBER.json.
type Order struct {
	// Dir is RUN/edge, and Number tells this process from all others there.
	Dir    string `json:"dir"`
	Number int    `json:"number"`
	// Build is the daemon's.
	Build string `json:"build"`
	// Command is the argv that leads to Main; its first is the program's path.
	Command []string `json:"command"`
	// UID is the process's user and group.
	UID uint32 `json:"uid"`
	// LogDir and CertDir are the folders that it may write to. They exist, and
	// are its user's.
	LogDir  string `json:"log_dir"`
	CertDir string `json:"cert_dir"`
	// Memory is what it should get along with; 0 for no bound.
	Memory vps.Bytes `json:"memory"`
	// Control is the descriptor of the socket that it is controlled by, inside.
	Control int `json:"control,omitempty"`
}

// path returns the file or the socket of the process with an extension.
func (o *Order) path(extension string) string {
	return filepath.Join(o.Dir, strconv.Itoa(o.Number)+extension)
}

const (
	socketExt   = ".sock"
	orderExt    = ".json"
	messagesExt = ".log"
	rootName    = "root"
)

// quitTime is how long open connections may go on when the process is asked to
// end by a signal, as when the host shuts down.
const quitTime = 5 * time.Second

// maxMessages bounds what the process writes to its standard error, in bytes.
const maxMessages = 1 << 20

// Main is the edge's process: what the program does for its hidden verb. It
// takes the arguments that follow the verb and logs to stderr. It returns when
// the process was replaced, or ctx ended. newServer makes what it runs.
//
// Main changes limits, signals and the root of the whole process and is meant
// to be the only thing that the process does.
func Main(ctx context.Context, args []string, stderr io.Writer, newServer func(Environment, *slog.Logger) (Server, error)) error {
	if len(args) == 2 {
		switch args[0] {
		case orderFlag:
			return enter(args[1])
		case insideFlag:
			// First of all, before anything is read.
			if err := jail.FilterServer(); err != nil {
				return err
			}
			return inside(ctx, args[1], &limited{w: stderr, left: maxMessages}, newServer)
		}
	}
	return vps.Invalid("", "the edge is started by sublet itself, with %s FILE", orderFlag)
}

// enter is the process while it is root: it opens the socket that it is
// controlled by, and turns itself into the process in the jail.
func enter(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	var o Order
	if err := json.Unmarshal(text, &o); err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	if len(o.Command) == 0 {
		return vps.Invalid("command", "the command that leads to the edge is missing")
	}
	if o.Control, err = openControl(&o); err != nil {
		return err
	}
	if err := errors.Join(limits(), keepOnly(o.Control)); err != nil {
		return err
	}
	if text, err = json.Marshal(o); err != nil {
		return err
	}
	root := filepath.Join(o.Dir, rootName)
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	server := jail.Server{
		Root: root, Files: readable(), Folders: []string{o.LogDir, o.CertDir}, Program: o.Command[0], UID: o.UID,
		Argv: append(append([]string(nil), o.Command...), insideFlag, string(text)),
	}
	return server.Enter()
}

// readable are files of the host that a client of TLS and DNS reads
// (crypto/x509/root_linux.go and package net), as far as they are there.
func readable() []string {
	var files []string
	for _, path := range []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
		"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf",
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
	}
	return files
}

// openControl opens the socket that the process is controlled by. Nobody but
// root gets to it: neither its folder nor itself lets others in.
func openControl(o *Order) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	path := o.path(socketExt)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	short, done, err := shortPath(path)
	if err != nil {
		return 0, err
	}
	defer done()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short}); err != nil {
		return 0, fmt.Errorf("make the socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return 0, err
	}
	return fd, os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN))
}

// shortPath returns a name of a path that fits into a socket's address, until
// done is called.
func shortPath(path string) (short string, done func(), err error) {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

// maxOpenFiles is that limit where the kernel allows more.
const maxOpenFiles = 1 << 20

// limits raises the number of open files to what the kernel allows: each
// connection has two, and four in a pipe while it is busy.
func limits() error {
	most := uint64(maxOpenFiles)
	if text, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.ParseUint(string(text[:len(text)-1]), 10, 64); err == nil {
			most = min(most, n)
		}
	}
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		return fmt.Errorf("get the limit of open files: %w", err)
	}
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: most, Max: max(most, now.Max)})
	if errors.Is(err, syscall.EPERM) { // in a container; then what there is
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: now.Max, Max: now.Max})
	}
	if err != nil {
		return fmt.Errorf("set the limit of open files: %w", err)
	}
	return nil
}

// keepOnly has all descriptors but one and the standard ones be closed by exec.
func keepOnly(fd int) error {
	const standard = 2
	if err := unix.CloseRange(standard+1, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files from the edge: %w", err)
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	return os.NewSyscallError("fcntl", err)
}

// inside is the process in its jail.
func inside(ctx context.Context, text string, stderr io.Writer, newServer func(Environment, *slog.Logger) (Server, error)) error {
	signal.Ignore(syscall.SIGHUP)
	var o Order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	if o.Memory > 0 {
		// Not what the kernel has for sockets, which is bounded with the rest.
		debug.SetMemoryLimit(int64(o.Memory) / 2)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	file := os.NewFile(uintptr(o.Control), "control")
	l, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("serve the socket that the edge is controlled by: %w", err)
	}
	_ = file.Close()
	control, ok := l.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("the edge cannot be controlled by a %T", l)
	}
	control.SetUnlinkOnClose(false)
	p := newProcess(o, log)
	if p.server, err = newServer(Environment{LogDir: o.LogDir, CertDir: o.CertDir, Wake: p.wake}, log); err != nil {
		return err
	}
	return p.run(ctx, control, quitTime)
}

// limited is a writer that has had enough after some bytes: a process that runs
// for months must not fill the memory that its messages lie in.
type limited struct {
	mu   sync.Mutex
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left <= 0 {
		return len(b), nil
	}
	if l.left -= len(b); l.left <= 0 {
		_, err := io.WriteString(l.w, "nothing more is written here\n")
		return len(b), err
	}
	return l.w.Write(b)
}
