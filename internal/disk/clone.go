package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// clone makes the data file of r in dir from the image and sets r's method.
func (s *Store) clone(ctx context.Context, dir string, img *os.File, r *record, uid uint32) error {
	info, err := img.Stat()
	if err != nil {
		return err
	}
	done, err := s.tryReflink(dir, img, r, uid)
	if err != nil || done {
		return err
	}
	if r.Size > vps.Bytes(info.Size()) {
		r.Method = methodCopy
		return makeFile(dir, r, uid, func(f *os.File) error { return copySparse(ctx, f, img, info.Size()) })
	}
	r.Method, r.ImageSize, r.Backing = methodOverlay, vps.Bytes(info.Size()), img.Name()
	head, err := r.header(info.ModTime().Unix()).Marshal()
	if err != nil {
		return fmt.Errorf("image %s cannot be overlaid: %w", img.Name(), err)
	}
	return makeFile(dir, r, uid, func(f *os.File) error {
		_, err := f.Write(head)
		return err
	})
}

// tryReflink reports false without an error where the filesystem cannot share
// extents between the two files; dir is then as it was.
func (s *Store) tryReflink(dir string, img *os.File, r *record, uid uint32) (bool, error) {
	r.Method = methodReflink
	err := makeFile(dir, r, uid, func(f *os.File) error { return s.reflink(f, img) })
	if err == nil {
		return true, nil
	}
	if rm := os.Remove(filepath.Join(dir, r.fileName())); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		return false, errors.Join(err, rm)
	}
	// ioctl_ficlone(2): EOPNOTSUPP and ENOTTY for filesystems without it,
	// EXDEV for two of them, EINVAL and EPERM for files that exclude it.
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.EPERM, unix.ENOSYS} {
		if errors.Is(err, no) {
			return false, nil
		}
	}
	return false, err
}

// ficlone shares the extents of src with dst.
func ficlone(dst, src *os.File) error {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("clone %s: %w", src.Name(), err)
	}
	return nil
}

// makeFile makes the data file of r in dir: filled, as long as r's limit,
// owned by uid, and on the disk when it returns.
func makeFile(dir string, r *record, uid uint32, fill func(*os.File) error) error {
	path := filepath.Join(dir, r.fileName())
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	for _, step := range []func() error{
		func() error { return f.Truncate(int64(r.limit())) },
		func() error { return f.Chown(int(uid), int(uid)) },
		func() error { return f.Chmod(0o600) },
		f.Sync,
	} {
		if err == nil {
			err = step()
		}
	}
	return errors.Join(err, f.Close())
}

// copySparse copies the data of src to the same places of dst and leaves the
// holes out.
func copySparse(ctx context.Context, dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole up to the end
		}
		if err != nil {
			return fmt.Errorf("find data in %s: %w", src.Name(), err)
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find a hole in %s: %w", src.Name(), err)
		}
		if err := copyRange(ctx, dst, src, start, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// copyRange copies one run of data in pieces, so that ctx is heard. The
// kernel copies where it can (copy_file_range), else the bytes pass through
// this process.
func copyRange(ctx context.Context, dst, src *os.File, start, end int64) error {
	const piece = 16 << 20
	from, to := start, start
	for from < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(end-from, piece)), 0)
		switch {
		case err == nil && n > 0, errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.EXDEV), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
			length := min(end-from, piece)
			if _, err := io.Copy(io.NewOffsetWriter(dst, from), io.NewSectionReader(src, from, length)); err != nil {
				return fmt.Errorf("copy %s: %w", src.Name(), err)
			}
			from, to = from+length, to+length
		default:
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
	}
	return nil
}
