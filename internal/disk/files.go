package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// files keeps disks as sparse files in the folder of their record.
type files struct {
	// reflink is ficlone; tests replace it to choose the method.
	reflink func(dst, src *os.File) error
}

func (s *Store) files() files { return files{s.reflink} }

// make implements backend: a reflink, else an overlay, else a sparse copy.
func (b files) make(ctx context.Context, dir string, p *part, base *os.File, uid uint32) error {
	if base == nil {
		p.Method = methodEmpty
		return b.fill(dir, p, uid, func(*os.File) error { return nil })
	}
	info, err := base.Stat()
	if err != nil {
		return err
	}
	p.Method = methodReflink
	done, err := b.tryReflink(dir, p, base, uid)
	if err != nil || done {
		return err
	}
	if p.Size > vps.Bytes(info.Size()) {
		p.Method = methodCopy
		return b.fill(dir, p, uid, func(f *os.File) error { return copySparse(ctx, f, base, info.Size()) })
	}
	p.Method, p.ImageSize, p.Backing = methodOverlay, vps.Bytes(info.Size()), base.Name()
	head, err := p.header(info.ModTime().Unix()).Marshal()
	if err != nil {
		return fmt.Errorf("image %s cannot be overlaid: %w", base.Name(), err)
	}
	return b.fill(dir, p, uid, func(f *os.File) error {
		_, err := f.Write(head)
		return err
	})
}

// copy implements backend: a reflink, else a sparse copy. Of an overlay it
// copies the changed sectors alone, onto the same image.
func (b files) copy(ctx context.Context, dir string, p *part, fromDir string, from part, uid uint32) (finish func() error, err error) {
	src, err := b.open(ctx, fromDir, from, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }() // read only
	done, err := b.tryReflink(dir, p, src, uid)
	if err != nil || done {
		return nil, err
	}
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	return nil, b.fill(dir, p, uid, func(f *os.File) error { return copySparse(ctx, f, src, min(info.Size(), int64(p.limit()))) })
}

// shares tells whether two files in these folders can share extents, so that a
// copy takes neither time nor space.
func (b files) shares(dir string, src *os.File) bool {
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return false
	}
	defer func() { _, _ = probe.Close(), os.Remove(probe.Name()) }()
	return b.reflink(probe, src) == nil
}

// fill makes the data file of p in dir, under a name that is free, and writes
// the name into p: filled, as long as p's limit, owned by uid, and on the disk
// when it returns.
func (b files) fill(dir string, p *part, uid uint32, write func(*os.File) error) (err error) {
	f, err := b.create(dir, p)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = write(f)
	for _, step := range []func() error{
		func() error { return f.Truncate(int64(p.limit())) },
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

// create makes an empty file for p: disk.img, data.cow, and with a number when
// that is taken.
func (b files) create(dir string, p *part) (*os.File, error) {
	name, end := "disk", ".img"
	if p.Name != "" {
		name = "data-" + p.Name
	}
	if p.Method == methodOverlay {
		end = ".cow"
	}
	const most = 1000
	for i := 1; ; i++ {
		p.File = name + end
		if i > 1 {
			p.File = fmt.Sprintf("%s.%d%s", name, i, end)
		}
		f, err := os.OpenFile(filepath.Join(dir, p.File), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if !errors.Is(err, fs.ErrExist) || i == most {
			return f, err
		}
	}
}

// tryReflink reports false without an error where the filesystem cannot share
// extents between the two files; dir is then as it was.
func (b files) tryReflink(dir string, p *part, src *os.File, uid uint32) (bool, error) {
	err := b.fill(dir, p, uid, func(f *os.File) error { return b.reflink(f, src) })
	if err == nil {
		return true, nil
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

// grow implements backend. A file longer than the record says does no harm, so
// it goes first.
func (b files) grow(ctx context.Context, dir string, p *part, size vps.Bytes) error {
	f, err := b.open(ctx, dir, *p, os.O_RDWR)
	if err != nil {
		return err
	}
	p.Size = size
	return errors.Join(f.Truncate(int64(p.limit())), f.Sync(), f.Close())
}

func (b files) remove(_ context.Context, dir string, p part) error {
	err := os.Remove(filepath.Join(dir, p.fileName()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b files) ready(_ context.Context, dir string, p *part, uid uint32) error {
	return os.Lchown(filepath.Join(dir, p.fileName()), int(uid), int(uid))
}

func (b files) describe(_ context.Context, dir string, p part) (vps.Disk, vps.Bytes, error) {
	path := filepath.Join(dir, p.fileName())
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return vps.Disk{}, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return vps.Disk{}, 0, &fs.PathError{Op: "stat", Path: path, Err: errors.New("not a regular file")}
	}
	return vps.Disk{Path: path, Backing: p.Backing}, vps.Bytes(st.Blocks * 512), nil // st_blocks counts 512 bytes, see stat(2)
}

// open implements backend. For writing it refuses a file that a running guest
// holds, with errHeld: User Mode Linux takes a write lock on its disks
// (os_lock_file in the kernel's arch/um/os-Linux/file.c).
func (b files) open(_ context.Context, dir string, p part, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, p.fileName()), flag|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil || flag&(os.O_RDWR|os.O_WRONLY) == 0 {
		return f, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock)
	if err == nil && lock.Type != unix.F_UNLCK {
		err = fmt.Errorf("%w by process %d", errHeld, lock.Pid)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// strays removes the files in a volume's folder that the record does not name:
// what a call left that was killed.
func (b files) strays(dir string, r *record) error {
	keep := map[string]bool{recordName: true, snapshotsName: true}
	for _, p := range r.parts() {
		if !p.onLVM() {
			keep[p.fileName()] = true
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if ours := strings.HasPrefix(e.Name(), "disk.") || strings.HasPrefix(e.Name(), "data-") || strings.HasPrefix(e.Name(), "."); ours && !keep[e.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
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
		if err := copyRange(ctx, dst, src, start, min(end, size)); err != nil {
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
			n, err := io.Copy(io.NewOffsetWriter(dst, from), io.NewSectionReader(src, from, length))
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return fmt.Errorf("copy %s: %w", src.Name(), err)
			}
			from, to = from+n, to+n
		default:
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
	}
	return nil
}
