package fsusage

import (
	"context"
	"errors"
	"fmt"

	"sublet/internal/vps"
)

// format is one filesystem format.
type format struct {
	name string
	// magics are where the format's mark stands; one of them is enough.
	magics []magic
	// read reads the filesystem on d, which carries a magic. others are
	// further devices that the caller handed in and that may belong to the
	// same filesystem (Btrfs, external journals); most formats ignore them.
	// The result has passed every check of its numbers. An error is
	// damaged(…) when the content cannot be right, or that of a read.
	read func(d *device, others []*device) (vps.Filesystem, error)
	// rescue finds a filesystem whose magic is gone, by copies of its
	// superblock elsewhere; nil where there are none. It is tried when nothing
	// else is on the device. An error of any kind means that there is nothing.
	rescue func(d *device, others []*device) (vps.Filesystem, error)
}

// magic is a mark of a format: bytes at an offset in the device.
type magic struct {
	offset int64
	bytes  string
}

// formats are tried in this order.
var formats = []format{xfsFormat, extFormat, btrfsFormat, swapFormat}

// errNothing says that no known filesystem is there.
var errNothing = errors.New("no filesystem that is known here")

// errDamaged is wrapped by every error about content that cannot be right.
var errDamaged = errors.New("damaged")

// damaged makes an error about content that cannot be right. The text ends a
// sentence that begins "The xfs filesystem is damaged: ".
func damaged(text string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(text, args...))
}

// probe finds the filesystem on d. An error is errNothing when there is none.
// When the marks of several are there, because one was made over another, the
// first that reads well is returned.
func probe(d *device, others []*device) (vps.Filesystem, error) {
	result := errNothing
	for _, f := range formats {
		ok, err := f.marks(d)
		if err != nil {
			return vps.Filesystem{}, err
		}
		if !ok {
			continue
		}
		fs, err := f.read(d, others)
		if err == nil {
			return fs, nil
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return vps.Filesystem{}, err
		}
		if errors.Is(result, errNothing) {
			result = fmt.Errorf("the %s filesystem cannot be read: %w", f.name, err)
			if errors.Is(err, errDamaged) {
				result = fmt.Errorf("the %s filesystem is %w", f.name, err)
			}
		}
	}
	return vps.Filesystem{}, result
}

// rescue finds a filesystem by what is left of it.
func rescue(d *device, others []*device) (vps.Filesystem, error) {
	for _, f := range formats {
		if f.rescue == nil {
			continue
		}
		if fs, err := f.rescue(d, others); err == nil {
			fs.Warnings = append(fs.Warnings, "Its start is destroyed; this is what a copy of its superblock tells.")
			return fs, nil
		}
	}
	return vps.Filesystem{}, errNothing
}

// marks tells whether one of the format's marks is on d.
func (f *format) marks(d *device) (bool, error) {
	var b [16]byte
	for _, m := range f.magics {
		if m.offset+int64(len(m.bytes)) > d.Size() {
			continue
		}
		p := b[:len(m.bytes)]
		if _, err := d.ReadAt(p, m.offset); err != nil {
			return false, err
		}
		if string(p) == m.bytes {
			return true, nil
		}
	}
	return false, nil
}
