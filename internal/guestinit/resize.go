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

// growth returns the number of blocks that a filesystem of so many is to have
// in want bytes, or 0 when it stays as it is: it is never made smaller.
func growth(blocks, blockSize uint64, want vps.Bytes) uint64 {
	n := uint64(max(0, want)) / blockSize
	if n <= blocks {
		return 0
	}
	return n
}

// growMounted grows the mounted filesystem at dir, which lies on device, to want
// bytes, 0 meaning all of the device. ext4, XFS and Btrfs are grown while they
// are in use; any other filesystem is left alone, and none is made smaller. It
// may be repeated, and tells whether anything grew. The kernel writes
// descriptors only, so it is quick whatever the size.
//
// That the device is smaller than want is an error, after what there is was used.
func growMounted(dir, device string, want vps.Bytes) (grown bool, err error) {
	size, err := deviceSize(device)
	if err != nil {
		return false, err
	}
	target := want
	if want == 0 || want > size {
		target = size
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, err
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		grown, err = growExt4(dir, device, target)
	case unix.XFS_SUPER_MAGIC:
		grown, err = growXFS(dir, target)
	case unix.BTRFS_SUPER_MAGIC:
		grown, err = growBtrfs(dir, device, target)
	}
	if err == nil && size < want {
		err = fmt.Errorf("the disk has %s, not the %s it should have", size, want)
	}
	return grown, err
}

func deviceSize(device string) (vps.Bytes, error) {
	disk, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer disk.Close() //nolint:errcheck // read only
	size, err := disk.Seek(0, io.SeekEnd)
	return vps.Bytes(size), err
}

// readSuper reads a superblock of length bytes at a place on a device.
func readSuper(device string, at int64, length int) ([]byte, error) {
	disk, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer disk.Close() //nolint:errcheck // read only
	super := make([]byte, length)
	_, err = disk.ReadAt(super, at)
	return super, err
}

func growExt4(dir, device string, want vps.Bytes) (grown bool, err error) {
	super, err := readSuper(device, superblockAt, superblockSize)
	if err != nil {
		return false, err
	}
	blocks, blockSize, err := ext4Size(super)
	if err != nil {
		return false, err
	}
	target := growth(blocks, blockSize, want)
	if target == 0 {
		return false, nil
	}
	return true, control(dir, ext4ResizeFS, unsafe.Pointer(&target))
}

// xfsGeometry is struct xfs_fsop_geom_v1 of fs/xfs/libxfs/xfs_fs.h.
type xfsGeometry struct {
	blockSize, rtExtentSize, groupBlocks, groups, logBlocks, sectorSize, inodeSize, inodePercent uint32
	dataBlocks, rtBlocks, rtExtents, logStart                                                    uint64
	uuid                                                                                         [16]byte
	stripeUnit, stripeWidth, version, flags, logSectorSize, rtSectorSize, dirBlockSize           uint32
}

// xfsGrowData is struct xfs_growfs_data of the same file.
type xfsGrowData struct {
	newBlocks    uint64
	inodePercent uint32
	_            uint32
}

// Requests of ioctl(2) for XFS: XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, …), and
// XFS_IOC_FSGROWFSDATA, _IOW('X', 110, …). The first has the size of its struct
// in it, which differs between 32 and 64 bits.
const (
	xfsGetGeometry = 2<<30 | unsafe.Sizeof(xfsGeometry{})<<16 | 'X'<<8 | 100
	xfsGrow        = 1<<30 | unsafe.Sizeof(xfsGrowData{})<<16 | 'X'<<8 | 110
)

func growXFS(dir string, want vps.Bytes) (grown bool, err error) {
	var g xfsGeometry
	if err := control(dir, xfsGetGeometry, unsafe.Pointer(&g)); err != nil {
		return false, err
	}
	if g.blockSize == 0 {
		return false, errors.New("XFS tells a block size of 0")
	}
	target := growth(g.dataBlocks, uint64(g.blockSize), want)
	// The kernel makes no allocation group of fewer blocks (XFS_MIN_AG_BLOCKS),
	// so less than that is not there to be had.
	const minGroup = 64
	if target == 0 || g.groupBlocks != 0 && g.dataBlocks%uint64(g.groupBlocks) == 0 && target-g.dataBlocks < minGroup {
		return false, nil
	}
	if err := control(dir, xfsGrow, unsafe.Pointer(&xfsGrowData{newBlocks: target, inodePercent: g.inodePercent})); err != nil {
		return false, err
	}
	return true, settle(dir)
}

// settle makes what was done to a filesystem need no recovery. XFS refuses to
// be mounted when it has to recover what was written behind its old end while
// the superblock on the disk still says that old end (seen with 6.1): a guest
// that was killed soon after it grew would never boot again.
func settle(dir string) error {
	var none int
	if err := control(dir, fiFreeze, unsafe.Pointer(&none)); err != nil {
		return err
	}
	return control(dir, fiThaw, unsafe.Pointer(&none))
}

// Places in a Btrfs superblock (struct btrfs_super_block), whose dev_item tells
// of the device that it was read from.
const (
	btrfsSectorSizeAt                           = 0x90
	btrfsDeviceAt                               = 0xc9
	btrfsDeviceIDAt, btrfsDeviceSizeAt, btrfsIO = btrfsDeviceAt, btrfsDeviceAt + 8, 4096
)

// btrfsResize is BTRFS_IOC_RESIZE, _IOW(0x94, 3, struct btrfs_ioctl_vol_args).
const btrfsResize = 1<<30 | unsafe.Sizeof(btrfsArgs{})<<16 | 0x94<<8 | 3

type btrfsArgs struct {
	fd   int64
	name [4088]byte
}

func growBtrfs(dir, device string, want vps.Bytes) (grown bool, err error) {
	super, err := readSuper(device, btrfsAt, btrfsIO)
	if err != nil {
		return false, err
	}
	id := binary.LittleEndian.Uint64(super[btrfsDeviceIDAt:])
	has := binary.LittleEndian.Uint64(super[btrfsDeviceSizeAt:])
	sector := uint64(binary.LittleEndian.Uint32(super[btrfsSectorSizeAt:]))
	if sector == 0 {
		return false, errors.New("Btrfs tells a sector size of 0") //nolint:staticcheck // a name
	}
	target := growth(has/sector, sector, want)
	if target == 0 {
		return false, nil
	}
	var args btrfsArgs
	copy(args.name[:len(args.name)-1], fmt.Sprintf("%d:%d", id, target*sector))
	return true, control(dir, btrfsResize, unsafe.Pointer(&args))
}

// control makes a request of the filesystem that is mounted at dir.
func control(dir string, request uintptr, argument unsafe.Pointer) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(argument)); errno != 0 {
		return fmt.Errorf("ask the filesystem at %s to grow: %w", dir, errno)
	}
	return nil
}
