package disk

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"sublet/internal/vps"
)

// writeFlag opens a disk that no running guest may have open.
const writeFlag = os.O_RDWR

// Grow makes a disk of a stopped guest larger: the one with this name, or with
// "" the one that it boots from. The guest grows its filesystem when it
// starts. The present size is success. CodeInvalid: size is smaller than now,
// or above what an overlay's image can hold. CodeConflict: the guest has the
// disk open. CodeNotFound: there is no such disk.
func (s *Store) Grow(ctx context.Context, id, name string, size vps.Bytes) error {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	_, r, err := s.load(ctx, id)
	if err != nil {
		return err
	}
	p := r.disk(name)
	if p == nil {
		return noDisk(id, name)
	}
	if err := p.growable(size); err != nil || size == p.Size {
		return err
	}
	if err = s.of(*p).grow(ctx, s.folder(id), p, size); err == nil {
		err = r.write(s.folder(id))
	}
	if err != nil {
		return s.explain(err, smallest, "the volume of guest %s could not be grown", id)
	}
	s.log.InfoContext(ctx, "volume grown", "guest_id", id, "disk", name, "size", int64(size))
	return nil
}

// CanGrow tells whether Grow could give a disk this size, with the error that
// Grow would return. A volume or disk that does not exist can: it is yet to be
// made.
func (s *Store) CanGrow(_ context.Context, id, name string, size vps.Bytes) error {
	if err := checkID(id); err != nil {
		return err
	}
	r, err := readRecord(s.folder(id), id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the volume of guest %s cannot be read", id)
	}
	if p := r.disk(name); p != nil {
		return p.growable(size)
	}
	return nil
}

// growable tells whether the disk can have this size.
func (p *part) growable(size vps.Bytes) error {
	switch {
	case size < p.Size:
		return vps.Invalid("disk", "a disk cannot shrink: it has %s, and %s is less; name a larger size", p.Size, size)
	case p.Method == methodOverlay && size > p.ImageSize:
		return vps.Invalid("disk", "this disk lies on an image that holds at most %s; create a new guest for a disk of %s", p.ImageSize, size)
	}
	return nil
}

func noDisk(id, name string) error {
	if name == "" {
		name = "root"
	}
	return vps.Errorf(vps.CodeNotFound, "guest %s has no disk %s", id, name)
}
