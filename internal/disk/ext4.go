package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"sublet/internal/vps"
)

// ext4Size returns how long the ext4 filesystem is that lies at the start of
// r: blocks times block size. The fields are those of struct
// ext4_super_block in the kernel's fs/ext4/ext4.h, little-endian, 1024 bytes
// from the start.
func ext4Size(r io.ReaderAt) (vps.Bytes, error) {
	const (
		offset      = 1024
		magic       = 0xef53
		has64Bit    = 0x80 // EXT4_FEATURE_INCOMPAT_64BIT
		maxLogBlock = 6    // 1024 << 6 = 64 KiB, EXT4_MAX_BLOCK_SIZE
	)
	var b [0x154]byte
	if _, err := r.ReadAt(b[:], offset); err != nil {
		return 0, fmt.Errorf("read the superblock: %w", err)
	}
	if binary.LittleEndian.Uint16(b[0x38:]) != magic {
		return 0, errors.New("no ext4 superblock")
	}
	blocks := uint64(binary.LittleEndian.Uint32(b[0x4:]))
	if binary.LittleEndian.Uint32(b[0x60:])&has64Bit != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(b[0x150:])) << 32
	}
	logBlock := binary.LittleEndian.Uint32(b[0x18:])
	if logBlock > maxLogBlock || blocks == 0 || blocks > math.MaxInt64>>(10+logBlock) {
		return 0, fmt.Errorf("the superblock names %d blocks of 2^%d KiB", blocks, logBlock)
	}
	return vps.Bytes(blocks << (10 + logBlock)), nil
}
