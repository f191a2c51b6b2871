package guestinit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

const (
	// maxFile bounds what is read from one file of the root disk.
	maxFile = 4 << 20
	// maxLinks is how many symbolic links are followed at a path's end, the
	// kernel's own limit being 40.
	maxLinks = 16
)

// errNotRegular is returned for devices, sockets, pipes and folders where a
// file was expected.
var errNotRegular = errors.New("not a regular file")

// Tree is a root filesystem below a folder. All paths are absolute within it:
// "/etc/hostname", and so are the symbolic links in it; none leads out. It is
// for one goroutine at a time.
type Tree struct {
	fd int
	// changed tells whether anything was written since it was opened.
	changed bool
}

// OpenTree opens the root filesystem at dir.
func OpenTree(dir string) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Tree{fd: fd}, nil
}

// Close gives the folder back.
func (t *Tree) Close() error { return unix.Close(t.fd) }

// Changed tells whether anything was written through this Tree.
func (t *Tree) Changed() bool { return t.changed }

// open opens name inside the tree. Symbolic links are followed inside of it.
func (t *Tree) open(name string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(t.fd, name, &how)
		// EAGAIN: something was renamed meanwhile; openat2(2) says try again.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// Read returns the content of a regular file of at most 4 MiB.
func (t *Tree) Read(name string) ([]byte, error) {
	// O_NONBLOCK, so that a pipe in the place of a file does not stop a boot.
	fd, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errNotRegular}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, &fs.PathError{Op: "read", Path: name, Err: unix.EFBIG}
	}
	return data, nil
}

// Text is Read for a file that may be missing: it is empty then.
func (t *Tree) Text(name string) (string, error) {
	data, err := t.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

// Exists tells whether name leads to anything, through symbolic links.
func (t *Tree) Exists(name string) bool {
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// IsDir tells whether name leads to a folder, through symbolic links.
func (t *Tree) IsDir(name string) bool {
	fd, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// List returns the names in a folder, and none when there is no folder.
func (t *Tree) List(dir string) []string {
	fd, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close() //nolint:errcheck // read only
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil
	}
	return names
}

// Readlink returns where the symbolic link name points to, "" when it is no
// symbolic link.
func (t *Tree) Readlink(name string) string {
	fd, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return ""
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// MkdirAll makes a folder and those above it with this mode, as far as they
// are missing. Symbolic links on the way are followed inside the tree; the
// missing target of one is made.
func (t *Tree) MkdirAll(name string, mode uint32) error {
	return t.mkdirAll(name, mode, 0)
}

func (t *Tree) mkdirAll(name string, mode uint32, depth int) error {
	if t.IsDir(name) {
		return nil
	}
	if depth > maxLinks || name == "/" || name == "." {
		return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ELOOP}
	}
	parent, base := path.Split(strings.TrimRight(name, "/"))
	if err := t.mkdirAll(parentPath(parent), mode, depth+1); err != nil {
		return err
	}
	if target := t.Readlink(name); target != "" {
		return t.mkdirAll(follow(parent, target), mode, depth+1)
	}
	fd, err := t.open(parentPath(parent), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	if err := unix.Mkdirat(fd, base, mode); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	t.changed = true
	return nil
}

// follow returns where a link in the folder dir leads to. It does not clean
// the path: ".." after a symbolic link is the kernel's to resolve.
func follow(dir, target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	return dir + target
}

func parentPath(dir string) string {
	if p := strings.TrimRight(dir, "/"); p != "" {
		return p
	}
	return "/"
}

// target returns the path at the end of the symbolic links that name is the
// start of; that path may not exist.
func (t *Tree) target(name string) (string, error) {
	for range maxLinks {
		link := t.Readlink(name)
		if link == "" {
			return name, nil
		}
		dir, _ := path.Split(name)
		name = follow(dir, link)
	}
	return "", &fs.PathError{Op: "open", Path: name, Err: unix.ELOOP}
}

// Write makes name a file with this content, in one step: a crash leaves the
// old content or the new. A file that exists keeps its owner and mode, a new
// one gets mode; a file that has the content already is left alone. A
// symbolic link is followed, inside the tree. Missing folders are made.
func (t *Tree) Write(name string, data []byte, mode uint32) error {
	name, err := t.target(name)
	if err != nil {
		return err
	}
	if old, err := t.Read(name); err == nil && string(old) == string(data) {
		return nil
	}
	return t.Replace(name, data, mode)
}

// Replace is Write for a name that may itself be a symbolic link, or
// anything but a folder: that is replaced, not what it points to.
func (t *Tree) Replace(name string, data []byte, mode uint32) error {
	return t.install(name, func(dir int, tmp string, old *unix.Stat_t) error {
		fd, err := unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), tmp)
		_, err = f.Write(data)
		if err == nil && old != nil {
			err = unix.Fchown(fd, int(old.Uid), int(old.Gid))
			mode = old.Mode & 0o7777
		}
		if err == nil {
			err = unix.Fchmod(fd, mode)
		}
		if err == nil {
			copyLabel(dir, path.Base(name), fd)
		}
		return errors.Join(err, f.Close())
	})
}

// copyLabel gives a new file the SELinux label of the one that it replaces, or
// of its folder: where SELinux is enforced, services cannot read a file without
// one. Where there are no labels, there is nothing to do.
func copyLabel(dir int, old string, fd int) {
	const label = "security.selinux"
	var value [256]byte
	for _, from := range []string{procPath(dir) + "/" + old, procPath(dir) + "/."} {
		// A symbolic link's label is its own, not that of a file outside.
		if n, err := unix.Lgetxattr(from, label, value[:]); err == nil && n > 0 {
			_ = unix.Fsetxattr(fd, label, value[:n], 0)
			return
		}
	}
}

// Symlink makes name a symbolic link to target, in one step, whatever name
// was before, but for a folder.
func (t *Tree) Symlink(target, name string) error {
	if t.Readlink(name) == target {
		return nil
	}
	return t.install(name, func(dir int, tmp string, _ *unix.Stat_t) error {
		return unix.Symlinkat(target, dir, tmp)
	})
}

// Remove removes a file or a symbolic link, not what that points to. One that
// is missing is fine.
func (t *Tree) Remove(name string) error {
	parent, base := path.Split(name)
	dir, err := t.open(parentPath(parent), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return notMissing(err)
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	if err := unix.Unlinkat(dir, base, 0); err != nil {
		return notMissing(&fs.PathError{Op: "remove", Path: name, Err: err})
	}
	t.changed = true
	return nil
}

// Rename moves a file or a symbolic link. The folder of the new name is there.
func (t *Tree) Rename(from, to string) error {
	fromDir, fromBase := path.Split(from)
	toDir, toBase := path.Split(to)
	a, err := t.open(parentPath(fromDir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(a) //nolint:errcheck // O_PATH
	b, err := t.open(parentPath(toDir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(b) //nolint:errcheck // O_PATH
	if err := unix.Renameat(a, fromBase, b, toBase); err != nil {
		return &fs.PathError{Op: "rename", Path: from, Err: err}
	}
	t.changed = true
	return nil
}

// fileSize returns the size of a regular file in bytes, -1 when there is none
// of that name. A symbolic link at its end is none.
func (t *Tree) fileSize(name string) int64 {
	fd, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1
	}
	return st.Size
}

// free returns how much can still be written.
func (t *Tree) free() (vps.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(t.fd, &st); err != nil {
		return 0, err
	}
	return vps.Bytes(st.Bavail) * vps.Bytes(st.Bsize), nil
}

// install lets create put something under a temporary name beside name, and
// renames it to name. old is the regular file that it replaces, if any.
func (t *Tree) install(name string, create func(dir int, tmp string, old *unix.Stat_t) error) error {
	parent, base := path.Split(name)
	if err := t.MkdirAll(parentPath(parent), 0o755); err != nil {
		return err
	}
	dir, err := t.open(parentPath(parent), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	var old *unix.Stat_t
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		old = &st
	}
	// A fixed name: what a power cut leaves is swept away by the next try.
	tmp := ".sublet-" + base
	_ = unix.Unlinkat(dir, tmp, 0)
	if err = create(dir, tmp, old); err == nil {
		err = unix.Renameat(dir, tmp, dir, base)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, tmp, 0)
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	t.changed = true
	return nil
}

// Secure gives a file or folder to root with this mode. Symbolic links are
// followed inside the tree.
func (t *Tree) Secure(name string, mode uint32) error {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&0o7777 == mode && st.Uid == uint32(os.Geteuid()) {
		return nil
	}
	t.changed = true
	if err := errors.Join(unix.Fchown(fd, os.Geteuid(), -1), unix.Fchmod(fd, mode)); err != nil {
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

// Sync makes everything written so far survive a power cut.
func (t *Tree) Sync() error {
	fd, err := t.open("/", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("sync the root filesystem: %w", err)
	}
	return nil
}

// procPath returns a path that means the open file fd to system calls that
// take none.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
