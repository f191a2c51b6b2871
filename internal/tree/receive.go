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

// As is how the members of an archive of name are to be called, for Receive to
// place them as cp does: by the name's last part, or "." when name ends in
// "/." or means the root, for the contents of a folder and not the folder.
func As(name string) string {
	if strings.HasSuffix(name, "/.") || clean(name) == "." {
		return "."
	}
	return path.Base(clean(name))
}

// Receive unpacks an archive of one file or folder, as Pack with As makes it,
// to dst and places it as cp and its likes do. Where dst is a folder it is put
// into that under its own name, or the contents of "." are. Otherwise it
// becomes dst: in a folder that has to be there, and in the place of what is
// there, but no folder takes the place of a file.
func (r *Root) Receive(ctx context.Context, archive io.Reader, dst string, o Options) (Left, error) {
	in := tar.NewReader(archive)
	first, err := in.Next()
	if errors.Is(err, io.EOF) {
		return Left{}, errors.New("there is nothing in the archive")
	}
	if err != nil {
		return Left{}, fmt.Errorf("read the archive: %w", err)
	}
	if !local(first.Name) {
		return Left{}, fmt.Errorf("the archive's member %q would leave the folder that it is unpacked into", first.Name)
	}
	base, _, _ := strings.Cut(clean(first.Name), "/")
	target, err := r.target(dst, base, first.Typeflag == tar.TypeDir)
	if err != nil {
		return Left{}, err
	}
	u := unpacker{root: r, live: ctx.Err, o: o, place: func(name string) (string, error) {
		if base == "." {
			return path.Join(target, name), nil
		}
		// Joined with what is above it, a member that is not below the first one
		// would go beside the target.
		own, rest, _ := strings.Cut(clean(name), "/")
		if own != base {
			return "", fmt.Errorf("the archive's member %q lies beside %q, and this is to be an archive of one file or folder", name, base)
		}
		return path.Join(target, rest), nil
	}}
	if err = u.entry(first, in); err == nil {
		err = u.all(in)
	}
	return u.left, err
}

// target says where the archive's one file or folder goes.
func (r *Root) target(dst, base string, isFolder bool) (string, error) {
	fd, err := r.open(clean(dst), unix.O_PATH)
	var st unix.Stat_t
	if err == nil {
		err = errors.Join(unix.Fstat(fd, &st), unix.Close(fd))
	}
	asFolder := strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if asFolder && !isFolder {
			return "", &fs.PathError{Op: "copy to", Path: dst, Err: unix.ENOENT}
		}
		return dst, r.folder(path.Dir(clean(dst)))
	case err != nil:
		return "", err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return path.Join(dst, base), nil
	case isFolder || asFolder:
		return "", &fs.PathError{Op: "copy to", Path: dst, Err: unix.ENOTDIR}
	}
	return dst, nil
}
