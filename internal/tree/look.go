//go:build linux

package tree

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// File opens a regular file of the root for reading; links are followed as the
// root has it. fs.ErrNotExist: there is none of that name.
func (r *Root) File(name string) (*os.File, error) {
	// A pipe or a device must neither block nor be opened.
	fd, err := r.open(clean(name), unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errNoFile}
	}
	in, err := unix.Open(procPath(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return file(in, name), nil
}

var errNoFile = errors.New("it is no regular file")

// Resolve returns where a name leads, as a path below the root that starts
// with a slash and has no links. fs.ErrNotExist: nowhere.
func (r *Root) Resolve(name string) (string, error) {
	fd, err := r.open(clean(name), unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	to, err := os.Readlink(procPath(fd))
	if err != nil {
		return "", err
	}
	from, err := os.Readlink(procPath(r.fd))
	if err != nil {
		return "", err
	}
	return path.Clean("/" + strings.TrimPrefix(to, from)), nil
}

// IsDir tells whether a name leads to a folder.
func (r *Root) IsDir(name string) bool {
	fd, err := r.open(clean(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
