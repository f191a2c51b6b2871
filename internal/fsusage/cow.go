package fsusage

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// The head of a User Mode Linux copy-on-write file of version 3, from the
// kernel's arch/um/drivers/cow_user.c: packed and big-endian, then a bitmap
// with one bit per sector, then the sectors. internal/disk writes such files
// and has its own description: rooms do not see each other.
const (
	cowMagic   = "OOOM"
	cowVersion = 3
	cowPath    = 32
	cowLength  = cowPath + 4096
	// cowMaxOffset bounds where the data starts: the kernel keeps it in an int.
	cowMaxOffset = math.MaxInt32
)

// cow is an overlay together with what it lies on.
type cow struct {
	over         *device
	base         Source
	size         int64
	sector       int64
	bitmap, data int64
}

// cowHeader reads an overlay's header: what it lies on according to it, and
// the overlay still without a base.
func cowHeader(over *device) (string, *cow, error) {
	b, err := over.read(0, cowLength)
	if err != nil {
		return "", nil, err
	}
	u32 := func(off int) int64 { return int64(binary.BigEndian.Uint32(b[off:])) }
	if v := u32(4); v != cowVersion {
		return "", nil, fmt.Errorf("%w: overlays of version %d are not known, only of version %d", errUnsupported, v, cowVersion)
	}
	size, sector, align := binary.BigEndian.Uint64(b[12:]), u32(20), u32(24)
	switch {
	case u32(28) != 0:
		return "", nil, fmt.Errorf("%w: an overlay whose bitmap has the format %d", errUnsupported, u32(28))
	case sector < 512 || sector > 1<<16 || sector&(sector-1) != 0:
		return "", nil, damaged("the overlay's sectors would have %d bytes", sector)
	case align < 512 || align > 1<<20 || align&(align-1) != 0:
		return "", nil, damaged("the overlay would be aligned to %d bytes", align)
	case size == 0 || size > cowMaxOffset*8*uint64(sector):
		return "", nil, damaged("the overlay would lie on %d bytes", size)
	}
	up := func(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
	c := &cow{over: over, size: int64(size), sector: sector}
	c.bitmap = up(cowLength, align)
	c.data = up(c.bitmap+up(up(c.size, sector)/sector, 8)/8, align)
	return text(b[cowPath:]), c, nil
}

// Size is the length of what the overlay lies on.
func (c *cow) Size() int64 { return c.size }

// ReadAt reads each sector from the overlay where its bit is set, and from
// the base otherwise.
func (c *cow) ReadAt(p []byte, off int64) (int, error) {
	first, last := off/c.sector, (off+int64(len(p))-1)/c.sector
	if len(p) == 0 {
		return 0, nil
	}
	bits, err := c.over.read(c.bitmap+first/8, int(last/8-first/8+1))
	if err != nil {
		return 0, err
	}
	set := func(sector int64) bool {
		sector -= first / 8 * 8
		return bits[sector/8]>>(sector%8)&1 != 0
	}
	done := 0
	for s := first; s <= last; {
		end := s + 1
		for end <= last && set(end) == set(s) {
			end++
		}
		n := min(int(end*c.sector-off)-done, len(p)-done)
		at := off + int64(done)
		if set(s) {
			_, err = c.over.ReadAt(p[done:done+n], c.data+at)
		} else {
			err = readPadded(c.base, p[done:done+n], at)
		}
		if err != nil {
			return done, err
		}
		done += n
		s = end
	}
	return done, nil
}

// readPadded reads from a source that may be shorter than what lies on it;
// zeros follow its end.
func readPadded(s Source, p []byte, off int64) error {
	n := int64(0)
	if s != nil && off < s.Size() {
		n = min(int64(len(p)), s.Size()-off)
		if got, err := s.ReadAt(p[:n], off); int64(got) < n {
			if err == nil || err == io.EOF { //nolint:errorlint // as io.ReaderAt promises it
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	clear(p[n:])
	return nil
}
