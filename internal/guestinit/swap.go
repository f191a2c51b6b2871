package guestinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// SwapPath is the file in a guest that is its swap, when it is to have one.
const SwapPath = "/sublet.swap"

const (
	swapPage = 4096
	// swapSpare is what stays free on a disk beside a new swap file.
	swapSpare = 64 * vps.MiB
	// noCopyOnWrite is FS_NOCOW_FL of include/uapi/linux/fs.h.
	noCopyOnWrite = 0x00800000
)

// setSwap gives a guest a swap file of this size and uses it, or takes away
// what an earlier boot made. Nothing uses the file before this program does,
// so it can be made anew. It needs no line in fstab and no service: a swap
// that is in use when the image's init starts is in use for every init, and
// each turns it off when it shuts down.
func setSwap(t *Tree, size vps.Bytes) error {
	size = size / swapPage * swapPage
	if size < 10*swapPage { // the kernel takes nothing smaller
		return t.Remove(SwapPath)
	}
	had := t.fileSize(SwapPath)
	if had == int64(size) && useSwap(t) == nil {
		return nil
	}
	free, err := t.free()
	if err != nil {
		return err
	}
	if free += vps.Bytes(max(0, had)); free < size+swapSpare {
		err := fmt.Errorf("%s are free on the root filesystem, and %s of swap need %s: free some, grow the disk, or ask for less swap",
			free, size, size+swapSpare)
		if had >= 0 {
			err = errors.Join(err, useSwap(t)) // better than none
		}
		return err
	}
	if err := t.Remove(SwapPath); err != nil {
		return err
	}
	err = t.install(SwapPath, func(dir int, tmp string, _ *unix.Stat_t) error {
		fd, err := unix.Openat(dir, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), tmp)
		return errors.Join(makeSwap(f, size), f.Close())
	})
	if err != nil {
		return err
	}
	return useSwap(t)
}

// useSwap turns the swap file on. One that is on already is fine.
func useSwap(t *Tree) error {
	fd, err := t.open(SwapPath, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	path, err := unix.BytePtrFromString(procPath(fd))
	if err != nil {
		return err
	}
	if err := swapon(path); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("turn swap on: %w", err)
	}
	return nil
}

// makeSwap fills an empty file: without holes, which no filesystem swaps to;
// without copy on write, which Btrfs would not swap to; and with the header of
// mkswap(8), version 1 (union swap_header in include/linux/swap.h).
func makeSwap(f *os.File, size vps.Bytes) error {
	fd := int(f.Fd())
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type == unix.BTRFS_SUPER_MAGIC {
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, noCopyOnWrite); err != nil {
			return fmt.Errorf("turn copy on write off: %w", err)
		}
	}
	if err := fill(f, int64(size)); err != nil {
		return fmt.Errorf("allocate %s: %w", size, err)
	}
	if _, err := f.WriteAt(swapHeader(size), 0); err != nil {
		return err
	}
	return f.Sync()
}

// fill allocates a file's blocks, by writing zeros where the filesystem has no
// quicker way.
func fill(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	_, err = io.CopyN(f, zeros{}, size)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func swapHeader(size vps.Bytes) []byte {
	h := make([]byte, swapPage)
	const versionAt, lastPageAt, labelAt = 1024, 1028, swapLabelAt
	binary.NativeEndian.PutUint32(h[versionAt:], 1)
	binary.NativeEndian.PutUint32(h[lastPageAt:], uint32(size/swapPage-1))
	copy(h[labelAt:], "sublet")
	copy(h[swapMagicAt:], "SWAPSPACE2")
	return h
}

// swapon is swapon(2), which golang.org/x/sys/unix has not.
func swapon(path *byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
