package guestinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// ext4ResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64), from
// include/uapi/linux/ext4.h (fs/ext4/ext4.h before 6.2).
const ext4ResizeFS = 0x40086610

// Places in an ext4 superblock (struct ext4_super_block in fs/ext4/ext4.h),
// which lies 1024 bytes into the disk.
const (
	superblockAt    = 1024
	superblockSize  = 1024
	superBlocksLow  = 0x4
	superLogBlock   = 0x18
	superMagicAt    = 0x38
	superIncompat   = 0x60
	superBlocksHigh = 0x150
	superMagic      = 0xef53
	incompat64Bit   = 0x80
)

// ext4Size returns the size of the filesystem that a superblock describes, in
// blocks, and the size of a block in bytes.
func ext4Size(super []byte) (blocks uint64, blockSize uint64, err error) {
	if len(super) < superblockSize || binary.LittleEndian.Uint16(super[superMagicAt:]) != superMagic {
		return 0, 0, errors.New("no ext4 superblock")
	}
	shift := binary.LittleEndian.Uint32(super[superLogBlock:])
	if shift > 6 {
		return 0, 0, fmt.Errorf("a block size of 2^%d KiB", shift)
	}
	blocks = uint64(binary.LittleEndian.Uint32(super[superBlocksLow:]))
	if binary.LittleEndian.Uint32(super[superIncompat:])&incompat64Bit != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(super[superBlocksHigh:])) << 32
	}
	return blocks, 1024 << shift, nil
}

// growth returns the number of blocks that a filesystem is to have on a disk
// of this size, or 0 when it stays as it is: it is never made smaller.
func growth(blocks, blockSize uint64, want, disk vps.Bytes) uint64 {
	n := uint64(max(0, min(want, disk))) / blockSize
	if n <= blocks {
		return 0
	}
	return n
}

// growExt4 grows the mounted ext4 filesystem at dir, on device, to want bytes.
// The kernel writes descriptors only, and leaves the inode tables of new
// groups for later, so it is quick whatever the size.
func growExt4(dir, device string, want vps.Bytes) (grown bool, err error) {
	disk, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer disk.Close() //nolint:errcheck // read only
	size, err := disk.Seek(0, 2)
	if err != nil {
		return false, err
	}
	var super [superblockSize]byte
	if _, err := disk.ReadAt(super[:], superblockAt); err != nil {
		return false, err
	}
	blocks, blockSize, err := ext4Size(super[:])
	if err != nil {
		return false, err
	}
	target := growth(blocks, blockSize, want, vps.Bytes(size))
	if target != 0 {
		if err := resizeExt4(dir, target); err != nil {
			return false, err
		}
	}
	if vps.Bytes(size) < want {
		return target != 0, fmt.Errorf("the disk has %s, not the %s it should have", vps.Bytes(size), want)
	}
	return target != 0, nil
}

func resizeExt4(dir string, blocks uint64) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow to %d blocks: %w", blocks, errno)
	}
	return nil
}
