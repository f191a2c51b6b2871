package fsusage

import (
	"context"
	"math"

	"sublet/internal/vps"
)

// Disk is the disk that a file holds, as a guest would see it. It is for one
// goroutine at a time.
type Disk struct {
	stack *stack
	*device
}

// OpenDisk opens the disk in the file path for reading all of it: raw, or a
// qcow2 image that stands alone. Nothing else is opened, whatever the file
// says. CodeInvalid: it is damaged, encrypted, or lies on another file. Reading
// ends with ctx.
func OpenDisk(ctx context.Context, path string) (*Disk, error) {
	s := &stack{ctx: ctx, left: &budget{bytes: math.MaxInt64, reads: math.MaxInt}}
	l, err := s.open(path, "", nil)
	if err != nil {
		s.close()
		return nil, explain(path, err)
	}
	if l.format == vps.DiskCOW {
		s.close()
		return nil, vps.Errorf(vps.CodeInvalid, "%s is an overlay, which holds only what differs from another file", path)
	}
	return &Disk{s, l.device}, nil
}

// Close gives the file back.
func (d *Disk) Close() error { d.stack.close(); return nil }
