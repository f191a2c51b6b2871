package fsusage

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// What one look at one disk may read, whatever its content asks for. The
// largest filesystem that must fit is ext4 with 2^32 blocks of 1 KiB: 2^19
// groups with descriptors of 64 bytes, 32 MiB.
const (
	budgetBytes = 96 << 20
	budgetReads = 1 << 18
)

// errBudget says that a disk's content asked for more reads than any sound
// filesystem does.
var errBudget = errors.New("its structures ask for more to be read than a sound filesystem needs")

// Source is what a filesystem lies on: a file, a device, or a part or a
// translation of one. ReadAt may be called concurrently, and returns an error
// when it reads less than was asked for.
type Source interface {
	io.ReaderAt
	// Size is the length in bytes.
	Size() int64
}

// budget bounds what is read. It may be shared by several devices; it is not
// safe for concurrent use.
type budget struct {
	bytes int64
	reads int
}

func newBudget() *budget { return &budget{bytes: budgetBytes, reads: budgetReads} }

// device is a Source that is read within a budget and while a context lasts.
// It is not safe for concurrent use.
type device struct {
	ctx    context.Context //nolint:containedctx // one device lives for one look
	source Source
	left   *budget
	// head is the first of the device's bytes, where most is read of sound
	// filesystems; nil before the first read.
	head []byte
}

// headLength is how much of a device's begin is read at once.
const headLength = 4096

// Size is the length of the device in bytes.
func (d *device) Size() int64 { return d.source.Size() }

// ReadAt fills p from the offset off. Anything less than the whole of p is an
// error: io.ErrUnexpectedEOF at or behind the device's end, errBudget, the
// context's.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 || off > d.Size() || int64(len(p)) > d.Size()-off {
		return 0, fmt.Errorf("bytes %d to %d of %d: %w", off, off+int64(len(p)), d.Size(), io.ErrUnexpectedEOF)
	}
	if off+int64(len(p)) > headLength {
		return d.fill(p, off)
	}
	if d.head == nil {
		head := make([]byte, min(headLength, d.Size()))
		if n, err := d.fill(head, 0); err != nil {
			return min(n, len(p)), err
		}
		d.head = head
	}
	return copy(p, d.head[off:]), nil
}

// fill reads from the source.
func (d *device) fill(p []byte, off int64) (int, error) {
	if d.left.reads--; d.left.reads < 0 {
		return 0, errBudget
	}
	if d.left.bytes -= int64(len(p)); d.left.bytes < 0 {
		return 0, errBudget
	}
	n, err := d.source.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// read returns n bytes from the offset off, or an error as ReadAt does.
// Nothing is allocated for bytes that cannot be read.
func (d *device) read(off int64, n int) ([]byte, error) {
	if n < 0 || int64(n) > d.left.bytes {
		return nil, errBudget
	}
	if off < 0 || off > d.Size() || int64(n) > d.Size()-off {
		return nil, fmt.Errorf("bytes %d to %d of %d: %w", off, off+int64(n), d.Size(), io.ErrUnexpectedEOF)
	}
	p := make([]byte, n)
	_, err := d.ReadAt(p, off)
	return p, err
}
