package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The layout of a version 3 copy-on-write file, from the Linux kernel's
// arch/um/drivers/cow_user.c: struct cow_header_v3, packed and big-endian.
// The header is followed by a bitmap with one bit per sector and then by the
// data, both aligned.
const (
	cowMagic       = 0x4f4f4f4d // COW_MAGIC: "OOOM"
	cowVersion     = 3          // COW_VERSION
	cowFormat      = 0          // COW_BITMAP, the only value there is
	cowPathLength  = 4096       // PATH_LEN_V3, the closing zero included
	cowFixedLength = 32         // everything before backing_file
	cowLength      = cowFixedLength + cowPathLength

	// cowSector is the sector size that ubd_kern.c passes to create_cow_file.
	cowSector = 512
	// cowAlignment is what ubd_kern.c passes as alignment: UM_KERN_PAGE_SIZE.
	cowAlignment = 4096
	// cowMaxOffset bounds the start of the data: cow_sizes keeps it in an int.
	cowMaxOffset = 1<<31 - 1
)

// COWHeader is the head of a User Mode Linux copy-on-write file, version 3.
// The kernel refuses the file when Size or MTime differ from those of the
// backing file. The block device that the guest sees is as long as the
// backing file, whatever the length of the overlay.
type COWHeader struct {
	// Backing is the absolute path of the backing file, 1 to 4095 bytes.
	Backing string
	// MTime is the backing file's modification time in whole seconds since
	// 1970; the field has 32 bits.
	MTime uint32
	// Size is the backing file's apparent length in bytes.
	Size uint64
	// SectorSize is the unit of the bitmap in bytes, Alignment that of the
	// bitmap's and the data's place in the file.
	SectorSize, Alignment uint32
}

// ErrNotCOW says that the bytes do not start as a version 3 copy-on-write
// file does.
var ErrNotCOW = errors.New("not a version 3 copy-on-write file")

// Marshal returns the header's bytes as they stand at the start of the file.
// It refuses a header that ParseCOW would refuse.
func (h COWHeader) Marshal() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, cowLength)
	b = binary.BigEndian.AppendUint32(b, cowMagic)
	b = binary.BigEndian.AppendUint32(b, cowVersion)
	b = binary.BigEndian.AppendUint32(b, h.MTime)
	b = binary.BigEndian.AppendUint64(b, h.Size)
	b = binary.BigEndian.AppendUint32(b, h.SectorSize)
	b = binary.BigEndian.AppendUint32(b, h.Alignment)
	b = binary.BigEndian.AppendUint32(b, cowFormat)
	b = append(b, h.Backing...)
	return b[:cowLength], nil
}

// ParseCOW reads the header at the start of b, which may be longer. It
// accepts what Marshal writes and nothing else: the older versions and the
// unpacked layout that some 64-bit programs wrote until 2005 are refused.
// The bytes may come from a hostile guest; a Backing read here must not be
// followed.
func ParseCOW(b []byte) (COWHeader, error) {
	if len(b) < cowLength {
		return COWHeader{}, fmt.Errorf("%w: %d bytes are shorter than a header", ErrNotCOW, len(b))
	}
	if magic := binary.BigEndian.Uint32(b); magic != cowMagic {
		return COWHeader{}, fmt.Errorf("%w: magic is %#x", ErrNotCOW, magic)
	}
	if version := binary.BigEndian.Uint32(b[4:]); version != cowVersion {
		return COWHeader{}, fmt.Errorf("%w: version is %d", ErrNotCOW, version)
	}
	if format := binary.BigEndian.Uint32(b[28:]); format != cowFormat {
		return COWHeader{}, fmt.Errorf("%w: bitmap format is %d", ErrNotCOW, format)
	}
	path, rest, ended := bytes.Cut(b[cowFixedLength:cowLength], []byte{0})
	if !ended || len(bytes.Trim(rest, "\x00")) > 0 {
		return COWHeader{}, fmt.Errorf("%w: the backing path has no clean end", ErrNotCOW)
	}
	h := COWHeader{
		Backing:    string(path),
		MTime:      binary.BigEndian.Uint32(b[8:]),
		Size:       binary.BigEndian.Uint64(b[12:]),
		SectorSize: binary.BigEndian.Uint32(b[20:]),
		Alignment:  binary.BigEndian.Uint32(b[24:]),
	}
	return h, h.check()
}

// check refuses values that the kernel would misread or overflow on.
func (h COWHeader) check() error {
	switch {
	case len(h.Backing) >= cowPathLength:
		return fmt.Errorf("%w: the backing path has %d bytes, at most %d fit", ErrNotCOW, len(h.Backing), cowPathLength-1)
	case !strings.HasPrefix(h.Backing, "/") || strings.ContainsRune(h.Backing, 0):
		return fmt.Errorf("%w: the backing path is not absolute", ErrNotCOW)
	case h.SectorSize != cowSector:
		return fmt.Errorf("%w: sector size is %d", ErrNotCOW, h.SectorSize)
	case h.Alignment < cowSector || h.Alignment > 1<<20 || h.Alignment&(h.Alignment-1) != 0:
		return fmt.Errorf("%w: alignment is %d", ErrNotCOW, h.Alignment)
	case h.Size == 0 || h.Size > cowMaxOffset*8*cowSector || h.DataOffset() > cowMaxOffset:
		return fmt.Errorf("%w: a backing file of %d bytes is out of range", ErrNotCOW, h.Size)
	}
	return nil
}

// BitmapOffset is where the bitmap starts in the file, in bytes.
func (h COWHeader) BitmapOffset() uint64 {
	return roundUp(cowLength, uint64(h.Alignment))
}

// BitmapLength is the bitmap's length in bytes: one bit per sector. The
// guest's kernel keeps as much in memory.
func (h COWHeader) BitmapLength() uint64 {
	return roundUp(roundUp(h.Size, uint64(h.SectorSize))/uint64(h.SectorSize), 8) / 8
}

// DataOffset is where the sectors start in the file, in bytes; sector n of
// the device lies at DataOffset + n*SectorSize.
func (h COWHeader) DataOffset() uint64 {
	return roundUp(h.BitmapOffset()+h.BitmapLength(), uint64(h.Alignment))
}

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }
