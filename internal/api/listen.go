package api

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"sublet/internal/flock"
	"sublet/internal/vps"
)

// maxSocketPath is the longest path of a unix socket: sun_path has 108 bytes
// with the zero at its end (linux/un.h).
const maxSocketPath = 107

// Listen opens the daemon's unix socket. Its mode is 0660 with the group,
// when a group of that name exists, else 0600; no umask and no moment widens
// that, because nobody can connect before the mode is set.
//
// A socket that a dead daemon left behind is replaced; when somebody answers
// on it, Listen returns vps.CodeConflict. Anything else at that path is left
// alone. ctx bounds the opening only; the listener lives until it is closed,
// and then removes its socket.
func Listen(ctx context.Context, path, group string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, vps.Invalid("socket", "the path %s is %d bytes long, and the system allows %d; choose a shorter one", path, len(path), maxSocketPath)
	}
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	// Two daemons that start together must not take each other's new socket
	// for a stale one. The lock is the folder's, so that no file is left.
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	file, err := bindSocket(path, gid)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(file) // FileListener has its own copy
	inner, err := net.FileListener(file)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the socket %s cannot be served", path)
	}
	info, err := os.Lstat(path)
	if err != nil {
		closeQuietly(inner)
		return nil, vps.Wrap(vps.CodeInternal, err, "the socket %s vanished", path)
	}
	return &listener{Listener: inner, path: path, info: info}, nil
}

// groupID returns the number of a group, or -1 for one that does not exist.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		if _, unknown := errors.AsType[user.UnknownGroupError](err); unknown {
			return -1, nil
		}
		return -1, vps.Wrap(vps.CodeInternal, err, "the group %q cannot be looked up", name)
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return -1, vps.Wrap(vps.CodeInternal, err, "the group %q has the odd number %q", name, group.Gid)
	}
	return gid, nil
}

func lockFolder(path string) (unlock func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the folder %s for the socket cannot be opened; create it first", path)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		closeQuietly(dir)
		return nil, vps.Wrap(vps.CodeInternal, err, "the folder %s cannot be locked", path)
	}
	return func() { _ = flock.Release(dir) }, nil // nothing was written
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return vps.Wrap(vps.CodeInternal, err, "%s cannot be examined", path)
	case info.Mode().Type() != fs.ModeSocket:
		return vps.Errorf(vps.CodeConflict, "%s exists and is not a socket; move it away or choose another path", path)
	}
	// Only a refusal proves that nobody listens: a full queue is EAGAIN.
	err = knock(ctx, path)
	if ctx.Err() != nil {
		return vps.Wrap(vps.CodeTimeout, ctx.Err(), "interrupted before the socket %s was open", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return vps.Wrap(vps.CodeConflict, err, "another daemon is running: it answers on %s; stop it first, or give this one another socket and state folder", path)
	}
	if err := os.Remove(path); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the stale socket %s cannot be removed", path)
	}
	return nil
}

// knock connects to a unix socket and hangs up.
func knock(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		closeQuietly(conn)
	}
	return err
}

// bindSocket sets owner and mode between bind and listen: until listen every
// connect is refused (unix(7)).
func bindSocket(path string, gid int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "no unix socket can be made")
	}
	file := os.NewFile(uintptr(fd), path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		closeQuietly(file)
		return nil, vps.Wrap(vps.CodeInternal, err, "the socket %s cannot be made", path)
	}
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		mode = 0o660
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		_ = os.Remove(path)
		closeQuietly(file)
		return nil, vps.Wrap(vps.CodeInternal, err, "the socket %s cannot be opened to its users", path)
	}
	return file, nil
}

// listener removes its socket on Close, unless it is no longer its own.
type listener struct {
	net.Listener
	path string
	info fs.FileInfo
	once sync.Once
}

func (l *listener) Close() error {
	l.once.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.info) {
			_ = os.Remove(l.path)
		}
	})
	return l.Listener.Close()
}
