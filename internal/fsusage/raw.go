package fsusage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// raw is a file or block device, as it is.
type raw struct {
	*os.File
	size int64
	// allocated is what a file takes on its own filesystem, in bytes; -1 for
	// a device, which does not tell.
	allocated int64
}

// Size is the file's or device's length in bytes.
func (r *raw) Size() int64 { return r.size }

// openRaw opens a regular file or a block device for reading. Anything else,
// such as a pipe, is refused without waiting for its other end.
func openRaw(path string) (*raw, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	r, err := sizeRaw(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

func sizeRaw(f *os.File) (*raw, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		r := &raw{File: f, size: info.Size(), allocated: -1}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			r.allocated = st.Blocks * 512
		}
		return r, nil
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		size, err := f.Seek(0, io.SeekEnd) // as BLKGETSIZE64 tells
		return &raw{File: f, size: size, allocated: -1}, err
	default:
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: fmt.Errorf("%w: neither a file nor a block device", unix.ENOTBLK)}
	}
}
