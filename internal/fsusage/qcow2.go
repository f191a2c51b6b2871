package fsusage

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// The qcow2 format of versions 2 and 3, from QEMU's docs/interop/qcow2.txt;
// big-endian throughout.
const (
	qcow2Magic = "QFI\xfb"

	qcow2Dirty       = 1 << 0 // incompatible features
	qcow2Corrupt     = 1 << 1
	qcow2DataFile    = 1 << 2
	qcow2Compression = 1 << 3
	qcow2ExtendedL2  = 1 << 4

	qcow2Offset     = 0x00fffffffffffe00 // bits 9 to 55 of an entry
	qcow2Compressed = 1 << 62
	qcow2Zero       = 1 << 0

	// qcow2MaxL1 bounds the first table, in entries: QCOW_MAX_L1_SIZE.
	qcow2MaxL1 = 32 << 20 / 8
	// qcow2MaxName bounds the name of the backing file.
	qcow2MaxName = 1023
)

// qcow2 is an image, with what it lies on when that is known.
type qcow2 struct {
	file        *device
	base        Source // nil reads as zeros
	size        int64
	clusterBits uint
	l1          int64
	l1Entries   int64
	extended    bool
	hasZero     bool // version 3 has a bit for clusters of zeros
	zstd        bool
	warnings    []string
	// last is the cluster that was decompressed last.
	last      []byte
	lastEntry uint64
}

// qcow2Header reads an image's header: the name of what it lies on, "" for
// nothing, and the image still without it.
func qcow2Header(file *device) (string, *qcow2, error) {
	h, err := file.read(0, 104)
	if err != nil {
		return "", nil, err
	}
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(h[off:]) }
	u64 := func(off int) uint64 { return binary.BigEndian.Uint64(h[off:]) }
	version, clusterBits, size := u32(4), u32(20), u64(24)
	q := &qcow2{file: file, size: int64(size), clusterBits: uint(clusterBits), l1: int64(u64(40)), l1Entries: int64(u32(36)), hasZero: version == 3}
	switch {
	case version != 2 && version != 3:
		return "", nil, fmt.Errorf("%w: qcow2 of version %d", errUnsupported, version)
	case clusterBits < 9 || clusterBits > 21:
		return "", nil, damaged("its clusters would have 2 to the power of %d bytes", clusterBits)
	case u32(32) != 0:
		return "", nil, fmt.Errorf("%w: the image is encrypted", errUnsupported)
	case q.size < 0 || q.l1 < 0 || q.l1Entries > qcow2MaxL1:
		return "", nil, damaged("it would have %d bytes, in %d tables", size, q.l1Entries)
	}
	if version == 3 {
		if err := q.features(u64(72), u32(100)); err != nil {
			return "", nil, err
		}
	}
	if covered := q.l1Entries << (2*q.clusterBits - q.entryBits()); covered < q.size {
		return "", nil, damaged("its tables cover %d bytes of %d", covered, q.size)
	}
	name, length := int64(u64(8)), u32(16)
	if name == 0 || length == 0 {
		return "", q, nil
	}
	if length > qcow2MaxName {
		return "", nil, damaged("the name of what it lies on would have %d bytes", length)
	}
	b, err := file.read(name, int(length))
	return text(b), q, err
}

// features takes in the incompatible features, and those of the longer header.
func (q *qcow2) features(incompatible uint64, headerLength uint32) error {
	if unknown := incompatible &^ (qcow2Dirty | qcow2Corrupt | qcow2Compression | qcow2ExtendedL2); unknown != 0 {
		if unknown&qcow2DataFile != 0 {
			return fmt.Errorf("%w: a qcow2 image whose data lies in another file; name that file", errUnsupported)
		}
		return fmt.Errorf("%w: a qcow2 image with the features %#x", errUnsupported, unknown)
	}
	if incompatible&qcow2Corrupt != 0 {
		q.warnings = append(q.warnings, "QEMU marked the image as corrupt; repair it with qemu-img check -r all.")
	}
	q.extended = incompatible&qcow2ExtendedL2 != 0
	if q.extended && q.clusterBits < 14 {
		return damaged("its clusters of %d bytes are too small for subclusters", 1<<q.clusterBits)
	}
	if incompatible&qcow2Compression != 0 && headerLength > 104 {
		b, err := q.file.read(104, 1)
		if err != nil {
			return err
		}
		if b[0] > 1 {
			return fmt.Errorf("%w: a qcow2 image with the compression %d", errUnsupported, b[0])
		}
		q.zstd = b[0] == 1
	}
	return nil
}

// entryBits is the length of an entry of a second table, as a power of 2.
func (q *qcow2) entryBits() uint {
	if q.extended {
		return 4
	}
	return 3
}

// Size is the length of the disk in the image.
func (q *qcow2) Size() int64 { return q.size }

// ReadAt reads cluster by cluster, or subcluster by subcluster.
func (q *qcow2) ReadAt(p []byte, off int64) (int, error) {
	cluster := int64(1) << q.clusterBits
	unit := cluster
	if q.extended {
		unit /= 32
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n := int(min(unit-at%unit, int64(len(p)-done)))
		if err := q.readUnit(p[done:done+n], at); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// readUnit reads bytes that lie in one cluster or subcluster.
func (q *qcow2) readUnit(p []byte, off int64) error {
	index := off >> q.clusterBits
	perTable := q.clusterBits - q.entryBits()
	b, err := q.file.read(q.l1+index>>perTable*8, 8)
	if err != nil {
		return err
	}
	table := int64(binary.BigEndian.Uint64(b) & qcow2Offset)
	if table == 0 {
		return readPadded(q.base, p, off)
	}
	size := 1 << q.entryBits()
	if b, err = q.file.read(table+index&(1<<perTable-1)*int64(size), size); err != nil {
		return err
	}
	entry := binary.BigEndian.Uint64(b)
	within := off & (1<<q.clusterBits - 1)
	if entry&qcow2Compressed != 0 {
		data, err := q.decompress(entry)
		if err != nil {
			return err
		}
		copy(p, data[within:])
		return nil
	}
	allocated, zero := entry&qcow2Offset != 0, q.hasZero && !q.extended && entry&qcow2Zero != 0
	if q.extended {
		bitmap, sub := binary.BigEndian.Uint64(b[8:]), within>>(q.clusterBits-5)
		allocated, zero = bitmap>>sub&1 != 0, bitmap>>(sub+32)&1 != 0
	}
	switch {
	case zero:
		clear(p)
		return nil
	case allocated:
		_, err = q.file.ReadAt(p, int64(entry&qcow2Offset)+within)
		return err
	}
	return readPadded(q.base, p, off)
}

// decompress returns the cluster that a compressed entry describes.
func (q *qcow2) decompress(entry uint64) ([]byte, error) {
	if q.last != nil && q.lastEntry == entry {
		return q.last, nil
	}
	x := 62 - (q.clusterBits - 8)
	off := int64(entry & (1<<x - 1))
	sectors := int64(entry&(qcow2Compressed-1)>>x) + 1
	length := min(sectors*512-off%512, q.file.Size()-off)
	if length <= 0 {
		return nil, damaged("a compressed cluster would lie outside of it")
	}
	packed, err := q.file.read(off, int(length))
	if err != nil {
		return nil, err
	}
	cluster := 1 << q.clusterBits
	// Unpacking costs time, so it counts as reading.
	if q.file.left.bytes -= int64(cluster); q.file.left.bytes < 0 {
		return nil, errBudget
	}
	data := make([]byte, cluster)
	if err := unpack(data, packed, q.zstd); err != nil {
		return nil, damaged("a compressed cluster cannot be unpacked: %v", err)
	}
	q.last, q.lastEntry = data, entry
	return data, nil
}

// unpack fills data from packed, which may have other bytes behind its end.
func unpack(data, packed []byte, asZstd bool) error {
	var r io.Reader = flate.NewReader(bytes.NewReader(packed))
	if asZstd {
		most := uint64(1) << bits.Len(uint(len(data)))
		z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*most), zstd.WithDecoderMaxWindow(max(most, zstd.MinWindowSize)), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	}
	_, err := io.ReadFull(r, data)
	return err
}
