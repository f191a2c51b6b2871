package disk

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Check makes sure that guest id can start from its volume, as uid; img is the
// image version it was made from. It is called before each start, while the
// guest does not run.
//
// An overlay must lie on the very version it was made on: another id or
// another length is CodeConflict and names both. The kernel also refuses an
// overlay whose header does not name the image's modification time. The time
// says nothing about the content here, as versions have ids of their own, so
// a header that differs in the time or in the path (the image was touched,
// restored from a backup, or moved) is repaired in place. A volume that
// stands alone needs its disks only; img is then not looked at.
//
// It returns the volume as it is now.
func (s *Store) Check(ctx context.Context, id string, img vps.Image, uid uint32) (vps.Volume, error) {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return vps.Volume{}, err
	}
	defer unlock()
	_, r, err := s.load(ctx, id)
	if err == nil {
		err = s.prepare(ctx, id, r, uid)
	}
	if err == nil && r.Method == methodOverlay {
		err = s.checkOverlay(ctx, id, r, img)
	}
	if err != nil {
		return vps.Volume{}, err
	}
	return s.get(ctx, id)
}

// prepare makes the disks ones that uid can open.
func (s *Store) prepare(ctx context.Context, id string, r *record, uid uint32) error {
	grown := false
	for _, was := range r.parts() {
		p := r.disk(was.Name)
		if err := s.of(was).ready(ctx, s.folder(id), p, uid); err != nil {
			return s.explain(err, smallest, "the disks of guest %s cannot be made ready", id)
		}
		grown = grown || p.Size != was.Size
	}
	if grown {
		if err := r.write(s.folder(id)); err != nil {
			return s.explain(err, smallest, "the disks of guest %s cannot be made ready", id)
		}
	}
	return nil
}

func (s *Store) checkOverlay(ctx context.Context, id string, r *record, img vps.Image) error {
	if r.ImageID != img.ID {
		return vps.Errorf(vps.CodeConflict, "the volume of guest %s was made from version %s of its image, not from %s; bring that version back, or create the guest anew", id, r.ImageID, img.ID)
	}
	base, err := openImage(img)
	if err != nil {
		return err
	}
	defer func() { _ = base.Close() }() // read only
	info, err := base.Stat()
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "image %s cannot be read", img.Name)
	}
	if vps.Bytes(info.Size()) != r.ImageSize {
		return vps.Errorf(vps.CodeConflict, "the file of image %s (%s) is %d bytes long, and was %d when the volume of guest %s was made; it was changed: restore it from a backup", img.Name, img.Path, info.Size(), r.ImageSize, id)
	}
	moved := r.Backing != base.Name()
	r.Backing = base.Name()
	repaired, err := s.repair(ctx, id, &r.part, r.header(info.ModTime().Unix()))
	if err != nil {
		return err
	}
	if moved {
		if err := r.write(s.folder(id)); err != nil {
			return s.explain(err, smallest, "the volume of guest %s could not be led to its moved image", id)
		}
	}
	if repaired || moved {
		s.log.WarnContext(ctx, "overlay led back to its image", "guest_id", id, "image_id", img.ID, "image", base.Name())
	}
	return nil
}

// repair makes an overlay start with the header want and reports whether it
// had to change it. Only the time and the path may differ.
func (s *Store) repair(ctx context.Context, id string, p *part, want COWHeader) (bool, error) {
	f, err := s.of(*p).open(ctx, s.folder(id), *p, os.O_RDWR)
	if err != nil {
		return false, s.explain(err, smallest, "the volume of guest %s cannot be opened", id)
	}
	defer func() { _ = f.Close() }() // after a sync
	b := make([]byte, cowLength)
	if _, err := io.ReadFull(f, b); err != nil {
		return false, vps.Wrap(vps.CodeInternal, err, "the volume of guest %s cannot be read", id)
	}
	have, err := ParseCOW(b)
	if err == nil {
		same := want
		same.Backing, same.MTime = have.Backing, have.MTime
		if have != same {
			err = errors.New("the header is for another image")
		}
	}
	if err != nil {
		return false, vps.Wrap(vps.CodeConflict, err, "the start of %s, the disk of guest %s, does not fit its image; restore it from a backup, or create the guest anew", f.Name(), id)
	}
	if have == want {
		return false, nil
	}
	head, err := want.Marshal()
	if err != nil {
		return false, vps.Wrap(vps.CodeInvalid, err, "the image's path %q does not fit into an overlay; move the images to a shorter path", want.Backing)
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return false, vps.Wrap(vps.CodeInternal, err, "the volume of guest %s cannot be written", id)
	}
	return true, f.Sync()
}

// openImage opens the image's file under its absolute path, which is the name
// of the returned file.
func openImage(img vps.Image) (*os.File, error) {
	path, err := filepath.Abs(img.Path)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the path of image %s cannot be made absolute", img.Name)
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, vps.Wrap(vps.CodeNotFound, err, "the file of image %s (version %s) is missing: %s; restore it from a backup, or build the image again and create the guest anew", img.Name, img.ID, path)
	case err != nil:
		return nil, vps.Wrap(vps.CodeInternal, err, "the file of image %s cannot be opened", img.Name)
	}
	return f, nil
}

// checkSize refuses a size that the image's filesystem does not fit into.
func checkSize(base *os.File, img vps.Image, size vps.Bytes) error {
	least := max(img.FilesystemSize, img.Content)
	if img.Filesystem == "ext4" || img.Filesystem == "" {
		var err error
		if least, err = ext4Size(base); err != nil {
			return vps.Wrap(vps.CodeConflict, err, "image %s (%s) holds no readable filesystem; build it again: sublet image build %s", img.Name, base.Name(), img.Name)
		}
	}
	if size < least || size <= 0 {
		return vps.Invalid("disk", "a disk of %s is too small for image %s, which needs %s; name a larger size", size, img.Name, least)
	}
	return nil
}

// space returns the free bytes of the volumes' filesystem and where that is
// mounted. The folder need not exist yet.
func (s *Store) space() (vps.Bytes, string, error) {
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return 0, "", err
	}
	var st unix.Stat_t
	for err = unix.Stat(dir, &st); errors.Is(err, unix.ENOENT) && dir != "/"; err = unix.Stat(dir, &st) {
		dir = filepath.Dir(dir)
	}
	if err != nil {
		return 0, "", err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, "", err
	}
	for dir != "/" && sameDevice(filepath.Dir(dir), st.Dev) {
		dir = filepath.Dir(dir)
	}
	return vps.Bytes(fs.Bavail) * vps.Bytes(fs.Bsize), dir, nil
}

// sameDevice tells whether path can be seen to lie on the device.
func sameDevice(path string, dev uint64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Dev == dev
}
