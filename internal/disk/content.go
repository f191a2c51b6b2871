package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Content is a disk as its guest sees it, for reading: of an overlay the
// changed sectors and the image behind them. It may be read by many at a time.
//
// What a guest can write is read as bytes and bits only: where things lie
// follows from the record, never from an overlay's own header.
type Content struct {
	size int64
	disk *os.File
	base *os.File // nil for a disk that stands alone
	head COWHeader
}

// Open opens a disk of guest id for reading: the one with this name, "" being
// the one that it boots from, as it is now or, with a snapshot's name, as it
// was then. The disk of a running guest changes while it is read.
// CodeNotFound: there is no such disk or snapshot.
func (s *Store) Open(ctx context.Context, id, snapshot, name string) (*Content, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	dir := s.folder(id)
	r, err := readRecord(dir, id)
	if err == nil && snapshot != "" {
		var sn *snapshotRecord
		if sn, err = s.snapshot(id, snapshot); err == nil {
			dir, r = s.snapshotFolder(id, snapshot), &sn.record
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, vps.Errorf(vps.CodeNotFound, "guest %s has no volume", id)
	case err != nil:
		return nil, err
	}
	p := r.disk(name)
	if p == nil {
		return nil, noDisk(id, name)
	}
	c, err := s.content(ctx, dir, *p)
	if err != nil {
		return nil, s.explain(err, 0, "a disk of guest %s cannot be read", id)
	}
	return c, nil
}

func (s *Store) content(ctx context.Context, dir string, p part) (*Content, error) {
	disk, err := s.of(p).open(ctx, dir, p, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	c := &Content{size: int64(p.Size), disk: disk}
	if p.onLVM() {
		// A logical volume is a whole number of extents, and the guest sees all
		// of it.
		if c.size, err = disk.Seek(0, io.SeekEnd); err != nil {
			return nil, errors.Join(err, disk.Close())
		}
	}
	if p.Method != methodOverlay {
		return c, nil
	}
	c.head = p.header(0)
	if c.base, err = os.Open(p.Backing); err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	info, err := c.base.Stat()
	if err == nil && info.Size() != int64(p.ImageSize) {
		err = fmt.Errorf("the image %s is %d bytes long, and was %d", p.Backing, info.Size(), p.ImageSize)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Sparse tells whether NextData knows where there is nothing.
func (c *Content) Sparse() bool {
	info, err := c.disk.Stat()
	return err == nil && info.Mode().IsRegular()
}

// Size is the disk's length in bytes.
func (c *Content) Size() int64 { return c.size }

// Close lets the files go.
func (c *Content) Close() error {
	err := c.disk.Close()
	if c.base != nil {
		err = errors.Join(err, c.base.Close())
	}
	return err
}

// ReadAt implements io.ReaderAt.
func (c *Content) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at >= c.size {
		return 0, io.EOF
	}
	var end error
	if rest := c.size - at; int64(len(b)) > rest {
		b, end = b[:rest], io.EOF
	}
	var err error
	if c.base == nil {
		err = readFull(c.disk, b, at)
	} else {
		err = c.readOverlay(b, at)
	}
	if err != nil {
		return 0, err
	}
	return len(b), end
}

// readFull reads b; what lies behind the end of the file reads as zeros.
func readFull(f io.ReaderAt, b []byte, at int64) error {
	n, err := f.ReadAt(b, at)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return nil
	}
	return err
}

// readOverlay reads each run of sectors from where it lies.
func (c *Content) readOverlay(b []byte, at int64) error {
	first, last := at/cowSector, (at+int64(len(b))-1)/cowSector
	bitmap := make([]byte, last/8-first/8+1)
	if err := readFull(c.disk, bitmap, int64(c.head.BitmapOffset())+first/8); err != nil {
		return err
	}
	changed := func(sector int64) bool {
		bit := sector - first/8*8
		return bitmap[bit/8]>>(bit%8)&1 != 0
	}
	for len(b) > 0 {
		sector := at / cowSector
		end := sector + 1
		for end <= last && changed(end) == changed(sector) {
			end++
		}
		run := b[:min(int64(len(b)), end*cowSector-at)]
		var err error
		if changed(sector) {
			err = readFull(c.disk, run, int64(c.head.DataOffset())+at)
		} else {
			err = readFull(c.base, run, at)
		}
		if err != nil {
			return err
		}
		b, at = b[len(run):], at+int64(len(run))
	}
	return nil
}

// NextData returns the first place at or behind at that may hold something
// else than zeros; all before it reads as zeros. io.EOF says that there is
// none.
func (c *Content) NextData(at int64) (int64, error) {
	var next int64
	var err error
	if c.base == nil {
		next, err = seekData(c.disk, at)
	} else {
		next, err = c.nextChanged(at)
		if base, baseErr := seekData(c.base, at); baseErr == nil && (base < next || errors.Is(err, io.EOF)) {
			next, err = base, nil
		} else if baseErr != nil && !errors.Is(baseErr, io.EOF) {
			return 0, baseErr
		}
	}
	switch {
	case err != nil:
		return 0, err
	case next >= c.size:
		return 0, io.EOF
	}
	return max(next, at), nil
}

// nextChanged returns the place of the first changed sector that ends behind
// at.
func (c *Content) nextChanged(at int64) (int64, error) {
	start, length := int64(c.head.BitmapOffset()), int64(c.head.BitmapLength())
	buf := make([]byte, 64<<10)
	for pos := at / cowSector / 8; pos < length; {
		// Holes of the file are holes of the bitmap.
		data, err := seekData(c.disk, start+pos)
		if err != nil {
			return 0, err
		}
		if pos = max(pos, data-start); pos >= length {
			break
		}
		b := buf[:min(int64(len(buf)), length-pos)]
		if err := readFull(c.disk, b, start+pos); err != nil {
			return 0, err
		}
		for i, v := range b {
			if from := (pos + int64(i)) * 8; from < at/cowSector {
				v &= 0xff << (at/cowSector - from)
			}
			if v != 0 {
				return ((pos+int64(i))*8 + int64(bits.TrailingZeros8(v))) * cowSector, nil
			}
		}
		pos += int64(len(b))
	}
	return 0, io.EOF
}

// seekData is SEEK_DATA of lseek(2), with io.EOF for nothing but a hole. A
// block device has no holes that it knows of.
func seekData(f *os.File, at int64) (int64, error) {
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case errors.Is(err, unix.EINVAL):
		return at, nil
	case err != nil:
		return 0, fmt.Errorf("find data in %s: %w", f.Name(), err)
	}
	return next, nil
}
