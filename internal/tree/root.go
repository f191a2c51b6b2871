//go:build linux

package tree

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a folder that no path leads out of. It is for one goroutine at a
// time.
type Root struct {
	fd      int
	resolve uint64
}

// Open opens the folder dir as the root filesystem that it is: symbolic links
// in it are followed, absolute ones as if dir were /, as a process would that
// lives in there.
func Open(dir string) (*Root, error) {
	return open(dir, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// OpenClosed opens the folder dir as one that somebody else's files are to be
// put into: no symbolic link below it is followed.
func OpenClosed(dir string) (*Root, error) {
	return open(dir, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

// OpenBeneath opens the folder dir as one that a whole system is unpacked
// into: symbolic links in it are followed as long as they stay below it by
// their own words. Absolute ones, and ones that lead above dir, are refused.
func OpenBeneath(dir string) (*Root, error) {
	return open(dir, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
}

func open(dir string, resolve uint64) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Root{fd: fd, resolve: resolve}, nil
}

// Close gives the folder back.
func (r *Root) Close() error { return unix.Close(r.fd) }

// open opens name below the root.
func (r *Root) open(name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: r.resolve}
	for {
		fd, err := unix.Openat2(r.fd, name, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue // something was renamed meanwhile
		case errors.Is(err, unix.ELOOP) && r.resolve&unix.RESOLVE_NO_SYMLINKS != 0:
			return -1, &fs.PathError{Op: "open", Path: name, Err: errThroughLink}
		case errors.Is(err, unix.EXDEV):
			return -1, &fs.PathError{Op: "open", Path: name, Err: errLeaves}
		case err != nil:
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// errLeaves is for paths that a symbolic link leads out of the root.
var errLeaves = errors.New("the path leads out of the folder, through a symbolic link")

// errThroughLink is for paths that lead through a symbolic link where none is
// followed.
var errThroughLink = errors.New("the path leads through a symbolic link, which might lead anywhere")

// errDeep is for folders whose path has no room for the name of a file, see
// PATH_MAX in include/uapi/linux/limits.h.
var errDeep = errors.New("its path is too long for the system, with the links on the way")

// parent opens the folder that holds name, and returns name's last part. With
// create, folders that are missing are made.
func (r *Root) parent(name string, create bool) (fd int, base string, err error) {
	dir, base := path.Split(name)
	dir = clean(dir)
	if !create {
		fd, err = r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
		return fd, base, err
	}
	fd, err = r.makeAll(dir)
	return fd, base, err
}

// makeAll opens the folder dir and makes it, and all on the way to it, when
// missing.
func (r *Root) makeAll(dir string) (int, error) {
	fd, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == "." {
		return fd, err
	}
	if fd, err = r.open(".", unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return -1, err
	}
	// Each from the one above: a path from the root leads through links that
	// may be made to take long, and a member has thousands of them.
	for at := 0; at < len(dir); {
		end := len(dir)
		if n := strings.IndexByte(dir[at:], '/'); n >= 0 {
			end = at + n
		}
		below, err := r.makeBelow(fd, dir[:end], dir[at:end])
		_ = unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd, at = below, end+1
	}
	return fd, nil
}

// makeBelow opens the folder dir, whose last part is base, in the open folder
// above, and makes it when missing.
func (r *Root) makeBelow(above int, dir, base string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(above, base, &how)
	if err == nil {
		return fd, nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return r.open(dir, unix.O_PATH|unix.O_DIRECTORY) // a link, or nothing that can be opened
	}
	if err := unix.Mkdirat(above, base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	if fd, err = unix.Openat2(above, base, &how); err != nil {
		return r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	}
	// With links that lead to ever deeper folders, short names make paths that
	// nobody can use, and trees that nobody can remove.
	const file = 256 // for the name of one in it, with a slash
	n, err := unix.Readlink(procPath(fd), make([]byte, unix.PathMax))
	if errors.Is(err, unix.ENAMETOOLONG) || err == nil && n > unix.PathMax-file {
		_ = unix.Close(fd)
		return -1, &fs.PathError{Op: "mkdir", Path: dir, Err: errDeep}
	}
	return fd, nil
}

// clean makes any path one that is relative to the root, "." for the root
// itself. It must not lead upwards; see local.
func clean(name string) string {
	name = strings.TrimLeft(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}

// local tells whether a name of an archive stays below the root by its own
// words: absolute ones do, ".." does not, wherever it stands.
func local(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return false
		}
	}
	return name != "" && !strings.Contains(name, "\x00")
}

// procPath returns a path that means the open file fd to system calls that
// take none.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func file(fd int, name string) *os.File { return os.NewFile(uintptr(fd), name) }
