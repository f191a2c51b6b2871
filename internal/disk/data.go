package disk

import (
	"context"
	"slices"

	"sublet/internal/vps"
)

// CreateDisk makes another, empty disk of guest id. One that exists is success,
// whatever want says. CodeNotFound: the guest has no volume. CodeDenied: the
// disk is full.
func (s *Store) CreateDisk(ctx context.Context, id, name string, want vps.VolumeSpec) error {
	return s.edit(ctx, id, func(dir string, r *record) (*record, []part, error) {
		if err := vps.ValidName("name", name); err != nil || r.disk(name) != nil {
			return nil, nil, err
		}
		p := part{Name: name, Size: want.Size}
		where, err := s.place(want.Storage, &p)
		if err == nil && want.Size <= 0 {
			err = vps.Invalid("size", "a disk of %s is too small", want.Size)
		}
		if err != nil {
			return nil, nil, err
		}
		if err := where.make(ctx, dir, &p, nil, want.UID); err != nil {
			return nil, nil, s.explain(err, smallest, "the disk %s of %s could not be made", name, want.Size)
		}
		r.Data = append(slices.Clip(r.Data), p)
		return r, []part{p}, nil
	})
}

// DeleteDisk removes a disk that CreateDisk made. That there is none is
// success. CodeConflict: a running guest has it open.
func (s *Store) DeleteDisk(ctx context.Context, id, name string) error {
	return s.edit(ctx, id, func(dir string, r *record) (*record, []part, error) {
		p := r.disk(name)
		if name == "" || p == nil {
			return nil, nil, nil
		}
		if err := s.unheld(ctx, dir, *p); err != nil {
			return nil, nil, err
		}
		r.Data = slices.DeleteFunc(slices.Clone(r.Data), func(p part) bool { return p.Name == name })
		return r, nil, nil
	})
}

// Reset makes the disk that a guest boots from anew, from img, and deletes the
// old one when the new one is in its place. The other disks and the snapshots
// stay. A volume of want's generation, or a later one, is returned as it is.
// CodeConflict: the guest has its disk open. After an error the disk is what it
// was.
func (s *Store) Reset(ctx context.Context, id string, img vps.Image, want vps.VolumeSpec) (vps.Volume, error) {
	err := s.edit(ctx, id, func(dir string, r *record) (*record, []part, error) {
		if r.Generation >= want.Generation {
			return nil, nil, nil
		}
		base, err := openBase(img, want)
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = base.Close() }() // read only
		if err := s.unheld(ctx, dir, r.part); err != nil {
			return nil, nil, err
		}
		if want.Storage == "" {
			want.Storage = r.storage()
		}
		if err := s.makeRoot(ctx, dir, &r.part, base, img, want); err != nil {
			return nil, nil, err
		}
		r.Generation = want.Generation
		s.log.InfoContext(ctx, "volume made anew", "guest_id", id, "size", int64(want.Size), "image_id", img.ID, "generation", want.Generation)
		return r, []part{r.part}, nil
	})
	if err != nil {
		return vps.Volume{}, err
	}
	return s.Get(ctx, id)
}

// unheld refuses a disk that a running guest has open.
func (s *Store) unheld(ctx context.Context, dir string, p part) error {
	f, err := s.of(p).open(ctx, dir, p, writeFlag)
	if err != nil {
		return s.explain(err, smallest, "a disk in %s cannot be changed", dir)
	}
	return f.Close()
}

// edit changes which disks a volume has, at one instant. change gets the
// record, changes it and returns it with the disks that it made; a nil record
// changes nothing. Disks that the new record does not name are removed after
// it is in place, and the made ones when it could not be put there.
func (s *Store) edit(ctx context.Context, id string, change func(dir string, r *record) (*record, []part, error)) error {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	_, r, err := s.load(ctx, id)
	if err != nil {
		return err
	}
	dir, before := s.folder(id), r.parts()
	after, made, err := change(dir, r)
	if err != nil || after == nil {
		return err
	}
	if err := after.write(dir); err != nil {
		return s.explain(s.undo(ctx, dir, err, made), smallest, "the volume of guest %s could not be changed", id)
	}
	kept := after.parts()
	gone := slices.DeleteFunc(before, func(p part) bool {
		return slices.ContainsFunc(kept, func(k part) bool { return sameBytes(k, p) })
	})
	// The change is made; what is left of the old is swept at the next start.
	if err := s.discard(ctx, dir, gone...); err != nil {
		s.log.WarnContext(ctx, "a disk that is not used any more could not be removed", "guest_id", id, "error", err)
	}
	return nil
}

// undo removes disks that were made in vain and returns why.
func (s *Store) undo(ctx context.Context, dir string, why error, made []part) error {
	if err := s.discard(ctx, dir, made...); err != nil {
		s.log.WarnContext(ctx, "a disk that was made in vain could not be removed", "folder", dir, "error", err)
	}
	return why
}

// sameBytes tells whether two parts name the same file or logical volume.
func sameBytes(a, b part) bool {
	return a.onLVM() == b.onLVM() && a.Group == b.Group && a.Volume == b.Volume && (a.onLVM() || a.fileName() == b.fileName())
}
