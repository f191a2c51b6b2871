//go:build linux

package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Marks of what a layer removes from those below it, from the image
// specification of the Open Container Initiative, layer.md: a name for one
// file, and one for all that a folder holds.
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	// whiteoutOther starts names that belong to one implementation and mean
	// nothing to others.
	whiteoutOther = ".wh..wh."
)

// isWhiteout tells whether a member is a mark and no file.
func isWhiteout(name string) bool { return strings.HasPrefix(path.Base(name), whiteout) }

// Mask removes what a layer says is no longer there. It reads the layer's
// marks only; the layer is unpacked after that, since its marks are about what
// lies below it, wherever they stand in it.
func (r *Root) Mask(ctx context.Context, layer io.Reader) error {
	for in := tar.NewReader(layer); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if !isWhiteout(h.Name) {
			continue
		}
		if !local(h.Name) {
			return leaves(h.Name)
		}
		if err := r.mask(h.Name); err != nil {
			return err
		}
	}
}

func (r *Root) mask(name string) error {
	dir, base, err := r.parent(clean(name), false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil // nothing to remove
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	switch {
	case base == whiteoutOpaque:
		err = emptyFolder(dir)
	case strings.HasPrefix(base, whiteoutOther):
		return nil
	default:
		gone := strings.TrimPrefix(base, whiteout)
		if gone == "" || gone == "." || gone == ".." {
			return leaves(name)
		}
		err = removeAll(dir, gone)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// leaves is the error about a member that leads out.
func leaves(name string) error {
	return fmt.Errorf("the archive's member %q would leave the folder that it is unpacked into", name)
}

// passOver looks whether a mark lies in the root at all.
func (u *unpacker) passOver(name string) error {
	dir, _, err := u.root.parent(name, false)
	if errors.Is(err, errLeaves) {
		return err
	}
	if err == nil {
		_ = unix.Close(dir) // O_PATH
	}
	return nil
}

// clear makes room for a member.
func (u *unpacker) clear(dir int, base string) error {
	if u.o.Layer {
		return removeAll(dir, base)
	}
	return unix.Unlinkat(dir, base, 0)
}

// clearForFolder makes room for a folder where something else is, a link to a
// folder too.
func (u *unpacker) clearForFolder(name string) error {
	dir, base, err := u.root.parent(name, true)
	if err != nil {
		return err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, 0)
}

// removeAll removes a file or folder with all below it, and follows no link.
func removeAll(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = emptyFolder(fd)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

// emptyFolder removes what is in an open folder.
func emptyFolder(dir int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := file(fd, ".")
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAll(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// count keeps an archive within its bounds.
func (u *unpacker) count(h *tar.Header) error {
	u.members++
	if u.o.MaxMembers > 0 && u.members > u.o.MaxMembers {
		return fmt.Errorf("the archive has more than %d members", u.o.MaxMembers)
	}
	if h.Size < 0 || u.o.MaxSize > 0 && h.Size > u.o.MaxSize-u.size {
		return fmt.Errorf("the archive's files are longer than %d bytes together", u.o.MaxSize)
	}
	u.size += h.Size
	return nil
}
