package disk

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Names of folders that are on their way in or out start with these; a guest's
// id starts with no dot.
const (
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
	idEnd      = "+" // no id has it, so no id is the start of another
)

// Store keeps the volumes of one host in one folder. Its methods may be called
// concurrently; calls for one guest wait for each other. Two Stores, or two
// processes, must not share a folder.
type Store struct {
	dir string
	log *slog.Logger
	// reflink is ficlone; tests replace it to choose the method.
	reflink func(dst, src *os.File) error

	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the guest is free again
}

// New returns a Store over dir, which is made with the first volume. A nil
// log discards.
func New(dir string, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{dir: dir, log: log, reflink: ficlone, busy: map[string]chan struct{}{}}
}

// Create makes the volume of guest id from img: size bytes that the guest may
// use, in a file that belongs to uid. It takes constant time, whatever the
// image's size, except where a full copy is needed: size is above img.Size
// and the filesystem has no reflinks.
//
// A volume that exists is returned as it is, whatever img and size say; one
// that was left half-made is replaced. CodeInvalid: size is smaller than the
// image's filesystem, or the id cannot name a folder. CodeDenied: the disk is
// full. CodeNotFound: the image's file is missing. Nothing is left behind
// after an error.
func (s *Store) Create(ctx context.Context, id string, img vps.Image, size vps.Bytes, uid uint32) (vps.Volume, error) {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return vps.Volume{}, err
	}
	defer unlock()
	v, err := s.get(id)
	if vps.ErrorCode(err) != vps.CodeNotFound {
		return v, err
	}
	base, err := openImage(img)
	if err != nil {
		return vps.Volume{}, err
	}
	defer func() { _ = base.Close() }() // read only
	if err := checkSize(base, img, size); err != nil {
		return vps.Volume{}, err
	}
	r := &record{Version: recordVersion, GuestID: id, Size: size, ImageID: img.ID}
	if err := s.build(ctx, r, base, uid); err != nil {
		need := 64 * vps.KiB // a header, a record and two folders
		if r.Method == methodCopy {
			need += img.Content
		}
		return vps.Volume{}, s.explain(err, need, "the volume of guest %s could not be made", id)
	}
	s.log.InfoContext(ctx, "volume made", "guest_id", id, "method", r.Method, "size", int64(size), "image_id", img.ID)
	return s.get(id)
}

// build makes the volume beside its place and moves it there.
func (s *Store) build(ctx context.Context, r *record, base *os.File, uid uint32) (err error) {
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return err
	}
	if err := s.sweep(newPrefix + r.GuestID + idEnd); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(s.dir, newPrefix+r.GuestID+idEnd+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := s.clone(ctx, tmp, base, r, uid); err != nil {
		return err
	}
	if err := r.write(tmp); err != nil {
		return err
	}
	// The guest's user reaches its file by name and cannot list or change
	// the folder.
	if err := os.Chmod(tmp, 0o711); err != nil {
		return err
	}
	final := filepath.Join(s.dir, r.GuestID)
	// An empty folder can be in the way; one with anything in it was found
	// by get, and the rename fails on it.
	if err := os.Remove(final); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// Get describes the volume of guest id. CodeNotFound: it has none.
func (s *Store) Get(_ context.Context, id string) (vps.Volume, error) {
	if err := checkID(id); err != nil {
		return vps.Volume{}, err
	}
	return s.get(id)
}

func (s *Store) get(id string) (vps.Volume, error) {
	v, _, err := s.load(id)
	return v, err
}

// load is get, with the record that the volume was read from.
func (s *Store) load(id string) (vps.Volume, *record, error) {
	dir := filepath.Join(s.dir, id)
	r, err := readRecord(dir, id)
	if errors.Is(err, fs.ErrNotExist) {
		names, dirErr := os.ReadDir(dir)
		if len(names) == 0 && (dirErr == nil || errors.Is(dirErr, fs.ErrNotExist)) {
			return vps.Volume{}, nil, vps.Errorf(vps.CodeNotFound, "guest %s has no volume", id)
		}
	}
	var v vps.Volume
	if err == nil {
		v, err = r.volume(dir)
	}
	if err != nil {
		// There may be a guest's data in it, so it is not replaced.
		return vps.Volume{}, nil, vps.Wrap(vps.CodeInternal, err,
			"the volume of guest %s in %s is damaged; restore that folder from a backup, or delete the guest", id, dir)
	}
	return v, r, nil
}

// List describes all volumes, sorted by guest. Damaged ones are left out and
// logged; Get of one says what is wrong with it.
func (s *Store) List(ctx context.Context) ([]vps.Volume, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Wrap(vps.CodeInternal, err, "the volumes in %s cannot be listed", s.dir)
	}
	var volumes []vps.Volume
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil {
			continue
		}
		v, err := s.get(e.Name())
		switch {
		case err == nil:
			volumes = append(volumes, v)
		case vps.ErrorCode(err) != vps.CodeNotFound:
			s.log.WarnContext(ctx, "volume left out of the list", "guest_id", e.Name(), "error", err)
		}
	}
	return volumes, nil
}

// Grow makes the volume of a stopped guest larger; the guest grows its
// filesystem when it starts. The present size is success. CodeInvalid: size is
// smaller than now, or above what an overlay's image can hold. CodeConflict:
// the guest has the disk open.
func (s *Store) Grow(ctx context.Context, id string, size vps.Bytes) error {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, r, err := s.load(id)
	if err != nil {
		return err
	}
	if err := r.growable(size); err != nil || size == r.Size {
		return err
	}
	f, err := openData(v.Disk.Path, id)
	if err != nil {
		return err
	}
	// A file longer than the record says does no harm, so it goes first.
	r.Size = size
	err = errors.Join(f.Truncate(int64(r.limit())), f.Sync(), f.Close())
	if err == nil {
		err = r.write(filepath.Join(s.dir, id))
	}
	if err != nil {
		return s.explain(err, 64*vps.KiB, "the volume of guest %s could not be grown", id)
	}
	s.log.InfoContext(ctx, "volume grown", "guest_id", id, "size", int64(size))
	return nil
}

// CanGrow tells whether Grow could give a volume this size, with the error that
// Grow would return. A volume that does not exist can: it is yet to be made.
func (s *Store) CanGrow(_ context.Context, id string, size vps.Bytes) error {
	if err := checkID(id); err != nil {
		return err
	}
	r, err := readRecord(filepath.Join(s.dir, id), id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the volume of guest %s cannot be read", id)
	}
	return r.growable(size)
}

// growable tells whether the volume can have this size.
func (r *record) growable(size vps.Bytes) error {
	switch {
	case size < r.Size:
		return vps.Invalid("disk", "a disk cannot shrink: it has %s, and %s is less; name a larger size", r.Size, size)
	case r.Method == methodOverlay && size > r.ImageSize:
		return vps.Invalid("disk", "this disk lies on an image that holds at most %s; create a new guest for a disk of %s", r.ImageSize, size)
	}
	return nil
}

// Delete removes the volume of guest id and whatever was left half-made of
// it. That there is none is success. The caller has made sure that the guest
// does not run.
func (s *Store) Delete(ctx context.Context, id string) error {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.remove(id); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the volume of guest %s could not be removed from %s", id, s.dir)
	}
	return nil
}

// remove renames first, so that a kill leaves no half of a volume under its
// own name.
func (s *Store) remove(id string) error {
	gone := gonePrefix + id + idEnd
	if err := s.sweep(gone, newPrefix+id+idEnd); err != nil {
		return err
	}
	err := os.Rename(filepath.Join(s.dir, id), filepath.Join(s.dir, gone))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	return s.sweep(gone)
}

// Sweep removes what interrupted calls left behind. The daemon calls it when
// it starts, before anything else uses the Store.
func (s *Store) Sweep(context.Context) error {
	if err := s.sweep(newPrefix, gonePrefix); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "left-overs in %s could not be removed", s.dir)
	}
	return nil
}

// sweep removes the entries whose names start with one of the prefixes.
func (s *Store) sweep(prefixes ...string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(e.Name(), p) }) {
			errs = append(errs, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Free returns the space that unprivileged users, as guests' processes are,
// can still fill on the volumes' filesystem.
func (s *Store) Free(context.Context) (vps.Bytes, error) {
	free, _, err := s.space()
	if err != nil {
		return 0, vps.Wrap(vps.CodeInternal, err, "the free space of %s cannot be read", s.dir)
	}
	return free, nil
}

// lock waits until no other call works on guest id, and checks the id.
func (s *Store) lock(ctx context.Context, id string) (unlock func(), err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	for {
		s.mu.Lock()
		other, taken := s.busy[id]
		if !taken {
			mine := make(chan struct{})
			s.busy[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// checkID keeps ids from leaving the folder or hiding in it.
func checkID(id string) error {
	ok := id != "" && len(id) <= 64 && !strings.HasPrefix(id, ".")
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return vps.Invalid("id", "%q cannot be a guest's id; letters, digits, dots, dashes and underscores are allowed, 64 at most, no dot in front", id)
	}
	return nil
}

// explain turns an error of the filesystem into a sentence. format says what
// failed; need is how much space it takes.
func (s *Store) explain(err error, need vps.Bytes, format string, args ...any) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	full := errors.Is(err, unix.ENOSPC)
	quota := errors.Is(err, unix.EDQUOT)
	if !full && !quota {
		return vps.Wrap(vps.CodeInternal, err, format, args...)
	}
	free, mount, spaceErr := s.space()
	if spaceErr != nil {
		mount = s.dir
	}
	why := "the filesystem at %s is full: %s needed, %s free; free some space or move the volumes"
	if quota {
		why = "the quota on the filesystem at %s is used up: %s needed (%s free without it); raise it"
	}
	return vps.Wrap(vps.CodeDenied, err, format+"; "+why, append(args, mount, need, free)...)
}
