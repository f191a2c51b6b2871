package fsusage

import (
	"errors"
	"io"
	"io/fs"
	"math"

	"golang.org/x/sys/unix"
)

// raw is a file or block device, as it is. It is read by plain system calls:
// what package os does for each file that is opened costs as much as all that
// is read of one.
type raw struct {
	fd   int
	path string
	size int64
	// allocated is what a file takes on its own filesystem, in bytes, and for
	// a device its size.
	allocated int64
}

// Size is the file's or device's length in bytes.
func (r *raw) Size() int64 { return r.size }

// ReadAt fills p, or returns an error: io.EOF behind the end.
func (r *raw) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(r.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return done, &fs.PathError{Op: "read", Path: r.path, Err: err}
		case n == 0:
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// Close gives the file back.
func (r *raw) Close() error { return unix.Close(r.fd) }

// openRaw opens a regular file or a block device for reading. Anything else,
// such as a pipe, is refused without waiting for its other end.
func openRaw(path string) (*raw, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	r := &raw{fd: fd, path: path}
	if err := r.measure(); err != nil {
		_ = r.Close() // nothing was written
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return r, nil
}

func (r *raw) measure() error {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		r.size, r.allocated = st.Size, min(st.Blocks, math.MaxInt64/512)*512
		return nil
	case unix.S_IFBLK:
		var err error
		r.size, err = unix.Seek(r.fd, 0, io.SeekEnd) // as BLKGETSIZE64 tells
		r.allocated = r.size
		return err
	}
	return errNotADisk
}

// errNotADisk is for what is neither a file nor a block device.
var errNotADisk = errors.New("it is neither a file nor a block device")
