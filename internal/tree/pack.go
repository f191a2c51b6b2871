//go:build linux

package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Pack writes an archive of the file or folder name, with all below it, to w.
// Its members are called as, or lie below it; "." makes them relative. A
// symbolic link is packed as a link, also name itself unless it ends in a
// slash. Sockets are left out. fs.ErrNotExist: there is no such file.
func (r *Root) Pack(ctx context.Context, w io.Writer, name, as string) error {
	p := packer{root: r, out: tar.NewWriter(w), seen: map[inode]string{}}
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	fd, err := r.open(clean(name), flags)
	if err != nil {
		return err
	}
	if err := p.entry(ctx, fd, as); err != nil {
		return err
	}
	return p.out.Close()
}

// inode tells files that have several names.
type inode struct{ device, number uint64 }

// packer is one run of packing.
type packer struct {
	root *Root
	out  *tar.Writer
	// seen are the first names of files that have several.
	seen map[inode]string
}

// maxDepth bounds how deep folders are followed: each takes a descriptor.
const maxDepth = 512

// entry packs one file, which is open by fd as a path only and closed here.
func (p *packer) entry(ctx context.Context, fd int, name string) error {
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	if err := ctx.Err(); err != nil {
		return err
	}
	if strings.Count(name, "/") > maxDepth {
		return &fs.PathError{Op: "pack", Path: name, Err: fmt.Errorf("more than %d folders within each other", maxDepth)}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	h, err := p.header(fd, &st, name)
	if err != nil || h == nil {
		return err
	}
	key := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // not the same type on every platform
	if first, again := p.seen[key]; again && h.Typeflag != tar.TypeDir {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	} else if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		p.seen[key] = name
	}
	if err := p.out.WriteHeader(h); err != nil {
		return &fs.PathError{Op: "pack", Path: name, Err: err}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		err = p.content(fd, h)
	case tar.TypeDir:
		err = p.folder(ctx, fd, name)
	}
	return err
}

// header describes a file; nil for one that no archive can hold.
func (p *packer) header(fd int, st *unix.Stat_t, name string) (*tar.Header, error) {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", target)
		if err != nil {
			return nil, &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		h.Linkname = string(target[:n])
		return h, nil
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev))) //nolint:unconvert // as above
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, nil //nolint:nilnil // sockets belong to a running program
	}
	var err error
	h.PAXRecords, err = attributes(fd)
	if err != nil {
		return nil, &fs.PathError{Op: "read the attributes of", Path: name, Err: err}
	}
	return h, nil
}

// maxAttributes bounds the list of one file's attributes, in bytes; it is the
// kernel's own bound (XATTR_LIST_MAX in include/uapi/linux/limits.h).
const maxAttributes = 64 << 10

// attributes returns a file's extended attributes as pax records, nil when it
// has none.
func attributes(fd int) (map[string]string, error) {
	path := procPath(fd)
	list := make([]byte, 1<<10)
	n, err := unix.Listxattr(path, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, maxAttributes)
		n, err = unix.Listxattr(path, list)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	records := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, maxAttributes)
		n, err := unix.Getxattr(path, name, value)
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			continue
		case err != nil:
			return nil, err
		case strings.Contains(name, "="):
			continue // no pax record can say that
		}
		records[xattrRecord+name] = string(value[:n])
	}
	return records, nil
}

// content writes a file's bytes. One that shrinks meanwhile is an error; one
// that grows is cut where its header says.
func (p *packer) content(fd int, h *tar.Header) error {
	// Through the descriptor: the name may mean something else by now.
	in, err := unix.Open(procPath(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		in, err = unix.Open(procPath(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: h.Name, Err: err}
	}
	f := file(in, h.Name)
	defer f.Close() //nolint:errcheck // read only
	if _, err := io.CopyN(p.out, f, h.Size); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it became shorter while it was read")
		}
		return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
	}
	return nil
}

// folder packs what is in a folder, sorted by name.
func (p *packer) folder(ctx context.Context, fd int, name string) error {
	in, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := file(in, name)
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		below, err := unix.Openat(fd, n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // it went meanwhile
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: path.Join(name, n), Err: err}
		}
		if err := p.entry(ctx, below, path.Join(name, n)); err != nil {
			return err
		}
	}
	return nil
}
