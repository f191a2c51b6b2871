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

	"sublet/internal/durable"
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
	lvm     *lvm

	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the guest is free again
}

// New returns a Store over dir, which is made with the first volume. A nil
// log discards.
func New(dir string, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{dir: dir, log: log, reflink: ficlone, lvm: newLVM(dir), busy: map[string]chan struct{}{}}
}

// Create makes the volume of guest id from img: want.Size bytes that the guest
// may use, on a disk that belongs to want.UID. As a file it takes constant
// time, whatever the image's size, except where a full copy is needed: the size
// is above img.Size and the filesystem has no reflinks. On LVM it is a copy.
//
// A volume that exists is returned as it is, whatever img and want say; one
// that was left half-made is replaced. CodeInvalid: the size is smaller than
// the image's filesystem, or the id cannot name a folder. CodeDenied: the disk
// is full. CodeNotFound: the image's file, or LVM's group, is missing. Nothing
// is left behind after an error.
func (s *Store) Create(ctx context.Context, id string, img vps.Image, want vps.VolumeSpec) (vps.Volume, error) {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return vps.Volume{}, err
	}
	defer unlock()
	v, err := s.get(ctx, id)
	if vps.ErrorCode(err) != vps.CodeNotFound {
		return v, err
	}
	base, err := openBase(img, want)
	if err != nil {
		return vps.Volume{}, err // before anything is made
	}
	defer func() { _ = base.Close() }() // read only
	r := &record{Version: recordVersion, GuestID: id, Generation: want.Generation}
	if err := s.build(ctx, r, func(dir string) error { return s.makeRoot(ctx, dir, &r.part, base, img, want) }); err != nil {
		return vps.Volume{}, err
	}
	s.log.InfoContext(ctx, "volume made", "guest_id", id, "method", r.Method, "size", int64(want.Size), "image_id", img.ID)
	return s.get(ctx, id)
}

// openBase opens the image that a disk is to be made from, and checks that it
// fits.
func openBase(img vps.Image, want vps.VolumeSpec) (*os.File, error) {
	base, err := openImage(img)
	if err != nil {
		return nil, err
	}
	if err := checkSize(base, img, want.Size); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	return base, nil
}

// makeRoot makes the disk that a guest boots from in dir.
func (s *Store) makeRoot(ctx context.Context, dir string, p *part, base *os.File, img vps.Image, want vps.VolumeSpec) error {
	*p = part{Size: want.Size, ImageID: img.ID}
	where, err := s.place(want.Storage, p)
	if err != nil {
		return err
	}
	if err := where.make(ctx, dir, p, base, want.UID); err != nil {
		need := smallest
		if p.Method == methodCopy {
			need += img.Content
		}
		return s.explain(err, need, "a volume of %s from image %s could not be made", want.Size, img.Name)
	}
	return nil
}

// smallest is what an overlay takes: a header, a record and two folders.
const smallest = 64 * vps.KiB

// build makes a volume beside its place and moves it there. make makes its
// disks in the folder that it is given.
func (s *Store) build(ctx context.Context, r *record, make func(dir string) error) (err error) {
	explain := func(err error) error {
		if err == nil || vps.ErrorCode(err) != vps.CodeInternal {
			return err
		}
		return s.explain(err, smallest, "the volume of guest %s could not be made", r.GuestID)
	}
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return explain(err)
	}
	if err := s.sweep(newPrefix + r.GuestID + idEnd); err != nil {
		return explain(err)
	}
	tmp, err := os.MkdirTemp(s.dir, newPrefix+r.GuestID+idEnd+"*")
	if err != nil {
		return explain(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard(ctx, tmp, r.parts()...), os.RemoveAll(tmp))
		}
	}()
	if err := make(tmp); err != nil {
		return explain(err)
	}
	return explain(s.settle(tmp, r))
}

// settle gives a finished volume its name.
func (s *Store) settle(tmp string, r *record) error {
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
	return durable.SyncDir(s.dir)
}

// discard removes disks that are in no record, or are not to be any more.
// Parts that were never made are passed over.
func (s *Store) discard(ctx context.Context, dir string, parts ...part) error {
	var errs []error
	for _, p := range parts {
		if p.Method != "" && (p.Volume != "" || !p.onLVM()) {
			// Not with a context that ended: what is left is in the way.
			errs = append(errs, s.of(p).remove(context.WithoutCancel(ctx), dir, p))
		}
	}
	return errors.Join(errs...)
}

// Get describes the volume of guest id. CodeNotFound: it has none.
func (s *Store) Get(ctx context.Context, id string) (vps.Volume, error) {
	if err := checkID(id); err != nil {
		return vps.Volume{}, err
	}
	return s.get(ctx, id)
}

func (s *Store) get(ctx context.Context, id string) (vps.Volume, error) {
	v, _, err := s.load(ctx, id)
	return v, err
}

// load is get, with the record that the volume was read from.
func (s *Store) load(ctx context.Context, id string) (vps.Volume, *record, error) {
	dir := s.folder(id)
	r, err := readRecord(dir, id)
	if errors.Is(err, fs.ErrNotExist) {
		names, dirErr := os.ReadDir(dir)
		if len(names) == 0 && (dirErr == nil || errors.Is(dirErr, fs.ErrNotExist)) {
			return vps.Volume{}, nil, vps.Errorf(vps.CodeNotFound, "guest %s has no volume", id)
		}
	}
	var v vps.Volume
	if err == nil {
		v, err = s.describe(ctx, dir, r)
	}
	if code := vps.ErrorCode(err); err != nil && code != vps.CodeInternal {
		// Of LVM. Never "not found": that is for a volume which is yet to be made.
		return vps.Volume{}, nil, vps.Wrap(vps.CodeConflict, err, "the disks of guest %s cannot be used: %s", id, vps.ErrorMessage(err))
	}
	if err != nil {
		// There may be a guest's data in it, so it is not replaced.
		return vps.Volume{}, nil, vps.Wrap(vps.CodeInternal, err,
			"the volume of guest %s in %s is damaged; restore that folder from a backup, or delete the guest", id, dir)
	}
	return v, r, nil
}

// folder is where the volume of guest id lies.
func (s *Store) folder(id string) string { return filepath.Join(s.dir, id) }

// describe looks at all disks of a volume.
func (s *Store) describe(ctx context.Context, dir string, r *record) (vps.Volume, error) {
	v := vps.Volume{GuestID: r.GuestID, Size: r.Size, ImageID: r.ImageID, Generation: r.Generation, Storage: r.storage()}
	for _, p := range r.parts() {
		d, used, err := s.of(p).describe(ctx, dir, p)
		if err != nil {
			return vps.Volume{}, err
		}
		v.Used += used
		if !p.onLVM() { // a logical volume has an end of its own
			v.Limit = max(v.Limit, p.limit())
		}
		if p.Name == "" {
			v.Disk = d
			continue
		}
		v.Data = append(v.Data, vps.DataVolume{Name: p.Name, Disk: d, Size: p.Size, Used: used})
	}
	return v, nil
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
		v, err := s.get(ctx, e.Name())
		switch {
		case err == nil:
			volumes = append(volumes, v)
		case vps.ErrorCode(err) != vps.CodeNotFound:
			s.log.WarnContext(ctx, "volume left out of the list", "guest_id", e.Name(), "error", err)
		}
	}
	return volumes, nil
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
	if err := s.remove(ctx, id); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the volume of guest %s could not be removed from %s", id, s.dir)
	}
	return nil
}

// remove renames first, so that a kill leaves no half of a volume under its
// own name. What lies elsewhere, logical volumes, is found by Sweep if they are
// not removed here.
func (s *Store) remove(ctx context.Context, id string) error {
	gone := gonePrefix + id + idEnd
	if err := s.sweep(gone, newPrefix+id+idEnd); err != nil {
		return err
	}
	elsewhere, err := s.elsewhere(id)
	if err != nil {
		return err
	}
	err = os.Rename(s.folder(id), filepath.Join(s.dir, gone))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := durable.SyncDir(s.dir); err != nil {
		return err
	}
	return errors.Join(s.discard(ctx, s.folder(id), elsewhere...), s.sweep(gone))
}

// elsewhere returns the disks of a volume and its snapshots that do not lie in
// its folder. A damaged record names none; Sweep finds them.
func (s *Store) elsewhere(id string) ([]part, error) {
	var all []part
	if r, err := readRecord(s.folder(id), id); err == nil {
		all = r.parts()
	}
	snapshots, err := s.snapshots(id)
	for _, sn := range snapshots {
		all = append(all, sn.parts()...)
	}
	return slices.DeleteFunc(all, func(p part) bool { return !p.onLVM() }), err
}

// Sweep removes what interrupted calls left behind. The daemon calls it when
// it starts, before anything else uses the Store.
//
// known tells of guests: a volume that was unpacked for one that was never
// made goes as well. Nil keeps them all.
func (s *Store) Sweep(ctx context.Context, known func(id string) bool) error {
	err := errors.Join(s.sweep(newPrefix, gonePrefix), s.sweepVolumes(ctx, known))
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "left-overs in %s could not be removed", s.dir)
	}
	return nil
}

func (s *Store) sweepVolumes(ctx context.Context, known func(id string) bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	used := map[string]bool{} // logical volumes, by GROUP/VOLUME
	whole := true
	for _, e := range entries {
		id := e.Name()
		if !e.IsDir() || checkID(id) != nil {
			continue
		}
		r, err := readRecord(s.folder(id), id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			whole = false // what it names must not be taken for a left-over
			continue
		}
		switch {
		case !r.Staged || known == nil:
		case known(id):
			r.Staged = false
			errs = append(errs, r.write(s.folder(id)))
		default:
			errs = append(errs, s.remove(ctx, id))
			continue
		}
		errs = append(errs, s.files().strays(s.folder(id), r), s.sweepSnapshots(id))
		parts, err := s.elsewhere(id)
		if whole = whole && err == nil; err != nil {
			errs = append(errs, err)
		}
		for _, p := range parts {
			used[p.Group+"/"+p.Volume] = true
		}
	}
	errs = append(errs, s.SweepStages(ctx))
	staged, err := s.StagedVolumes()
	if whole = whole && err == nil; err != nil {
		errs = append(errs, err)
	}
	for _, st := range staged {
		for _, p := range st.parts {
			used[p.Group+"/"+p.Volume] = true
		}
	}
	if whole {
		// A host whose LVM does not answer may have no guest on it.
		if err := s.lvm.sweep(ctx, used); err != nil {
			s.log.WarnContext(ctx, "left-over logical volumes could not be looked for", "error", err)
		}
	}
	return errors.Join(errs...)
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
		unlock, other := s.tryLock(id)
		if unlock != nil {
			return unlock, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryLock takes what is named key, or returns what is closed when that is free
// again.
func (s *Store) tryLock(key string) (unlock func(), other <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, taken := s.busy[key]; taken {
		return nil, other
	}
	mine := make(chan struct{})
	s.busy[key] = mine
	return func() {
		s.mu.Lock()
		delete(s.busy, key)
		s.mu.Unlock()
		close(mine)
	}, nil
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
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, errHeld) {
		return vps.Wrap(vps.CodeConflict, err, format+"; the guest has its disk open: stop it first", args...)
	}
	if vps.ErrorCode(err) != vps.CodeInternal {
		return err // it says it better
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
