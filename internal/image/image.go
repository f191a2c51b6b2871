package image

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/durable"
	"sublet/internal/flock"
	"sublet/internal/vps"
)

// Names of folders and links that are on their way in or out start with these.
const (
	buildPrefix = ".build-"
	gonePrefix  = ".gone-"
	linkPrefix  = ".latest-"
)

// DefaultCapacity is the length of an image's file: the largest disk that an
// overlay on it can offer. A guest's kernel keeps a bitmap of one bit for
// each 512 bytes of it in memory, so this costs each guest 16 MiB.
const DefaultCapacity = 64 * vps.GiB

// Options are what a Store can be made with. The zero value is fit for use.
type Options struct {
	// Log gets what happens; nil discards.
	Log *slog.Logger
	// Capacity is the length of new images' files; 0 is DefaultCapacity. A
	// multiple of 4 KiB.
	Capacity vps.Bytes
	// CacheDir keeps downloaded packages for the next build, one folder for
	// each release; empty keeps none. Only root may write to it: apt checks
	// no more than the length of a package that it finds there.
	CacheDir string
	// Disks reads images of disks, and Appliance works on filesystems that this
	// host must not mount; without them only files become images, of ext4.
	Disks     Disks
	Appliance Appliance
	// AptDir is the host's apt configuration; empty is /etc/apt.
	AptDir string
}

// Store keeps the images of one host in one folder. Its methods may be called
// concurrently, and by several processes: a lock on each image's folder is
// held while it is built or deleted.
type Store struct {
	dir  string
	opts Options
	log  *slog.Logger
}

// New returns a Store over dir, which is made with the first image.
func New(dir string, opts Options) *Store {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Capacity == 0 {
		opts.Capacity = DefaultCapacity
	}
	if opts.AptDir == "" {
		opts.AptDir = "/etc/apt"
	}
	return &Store{dir: dir, opts: opts, log: opts.Log}
}

// List returns the newest version of each image, sorted by name. Damaged
// images are left out and logged; Get of one says what is wrong with it.
func (s *Store) List(ctx context.Context) ([]vps.Image, error) {
	homes, err := s.homes()
	if err != nil {
		return nil, err
	}
	var images []vps.Image
	for _, name := range homes {
		img, err := s.Get(ctx, name)
		switch {
		case err == nil:
			images = append(images, img)
		case vps.ErrorCode(err) != vps.CodeNotFound:
			s.log.WarnContext(ctx, "image left out of the list", "image", name, "error", err)
		}
	}
	return images, nil
}

// Get returns the newest version of the image called name, "debian/12".
// CodeNotFound: it was never built, or deleted. CodeInternal: it is damaged.
func (s *Store) Get(_ context.Context, name string) (vps.Image, error) {
	m, err := s.latest(name)
	return m.Image, err
}

func (s *Store) latest(name string) (manifest, error) {
	missing := vps.Errorf(vps.CodeNotFound, "there is no image %s on this host; build it: sublet image build %s", name, name)
	if !validName(name) {
		return manifest{}, missing
	}
	home := s.home(name)
	id, err := os.Readlink(filepath.Join(home, latestName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return manifest{}, missing
	case err == nil && !validPart(id):
		err = errors.New("its latest version is called " + id)
	}
	if err != nil {
		return manifest{}, corrupt(err, name, home)
	}
	m, err := readManifest(filepath.Join(home, id), name)
	if err != nil {
		return manifest{}, corrupt(err, name, filepath.Join(home, id))
	}
	return m, nil
}

// ByID returns the version with this id, whether or not it is the newest.
// CodeNotFound: it is not here. CodeInternal: it is damaged.
func (s *Store) ByID(_ context.Context, id string) (vps.Image, error) {
	homes, err := s.homes()
	if err != nil {
		return vps.Image{}, err
	}
	for _, name := range homes {
		dir := filepath.Join(s.home(name), id)
		if !validPart(id) || id == latestName {
			break
		}
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		m, err := readManifest(dir, name)
		if err != nil {
			return vps.Image{}, corrupt(err, name, dir)
		}
		return m.Image, nil
	}
	return vps.Image{}, vps.Errorf(vps.CodeNotFound, "there is no image version %s on this host; restore it from a backup, or create the guest anew", id)
}

// Delete removes all versions of the image called name that no guest lies on.
// inUse returns the names of the guests on a version; nil means none. When
// versions remain the error names their guests: CodePartial when others were
// removed, CodeConflict when none was. CodeNotFound: there is no version.
// CodeConflict as well: it is being built.
func (s *Store) Delete(ctx context.Context, name string, inUse func(id string) []string) error {
	home := s.home(name)
	ids, err := s.versions(name)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return vps.Errorf(vps.CodeNotFound, "there is no image %s on this host", name)
	}
	unlock, err := lock(home, name)
	if err != nil {
		return err
	}
	defer unlock()
	latest, _ := os.Readlink(filepath.Join(home, latestName)) // none is like one that is kept
	var guests []string
	var errs []error
	removed := 0
	for _, id := range ids {
		if inUse != nil {
			if users := inUse(id); len(users) > 0 {
				guests = append(guests, users...)
				continue
			}
		}
		removed++
		errs = append(errs, remove(home, id, id == latest))
	}
	if err := errors.Join(errs...); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "image %s could not be removed from %s", name, home)
	}
	s.log.InfoContext(ctx, "image deleted", "image", name, "versions", removed, "kept", len(ids)-removed)
	slices.Sort(guests)
	users := strings.Join(slices.Compact(guests), ", ")
	switch {
	case len(guests) > 0 && removed > 0:
		return vps.Errorf(vps.CodePartial, "%d of %d versions of image %s are deleted; the others are in use by %s: delete those guests first", removed, len(ids), name, users)
	case len(guests) > 0:
		return vps.Errorf(vps.CodeConflict, "image %s is in use by %s; delete those guests first", name, users)
	}
	return nil
}

// remove removes one version, the pointer to it first, so that a kill leaves
// no pointer to half a version.
func remove(home, id string, latest bool) error {
	if latest {
		if err := os.Remove(filepath.Join(home, latestName)); err != nil {
			return err
		}
	}
	gone := filepath.Join(home, gonePrefix+id)
	if err := os.Rename(filepath.Join(home, id), gone); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(home), os.RemoveAll(gone))
}

// Sweep removes what interrupted builds and deletions left behind, except for
// images that are being built or deleted right now. The daemon calls it when
// it starts.
func (s *Store) Sweep(ctx context.Context) error {
	homes, err := s.homes()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range homes {
		home := s.home(name)
		unlock, err := lock(home, name)
		if vps.ErrorCode(err) == vps.CodeConflict {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		entries, err := os.ReadDir(home)
		errs = append(errs, err)
		for _, e := range entries {
			for _, prefix := range []string{buildPrefix, gonePrefix, linkPrefix} {
				if strings.HasPrefix(e.Name(), prefix) {
					s.log.InfoContext(ctx, "left-over of an interrupted build removed", "image", name, "folder", e.Name())
					errs = append(errs, os.RemoveAll(filepath.Join(home, e.Name())))
				}
			}
		}
		unlock()
	}
	if err := errors.Join(errs...); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "left-overs in %s could not be removed", s.dir)
	}
	return nil
}

// Verify reads all versions of the image called name and compares their
// SHA-256. CodeInternal: one is damaged. CodeNotFound: there is none. It takes
// about a second per GiB. progress may be nil.
func (s *Store) Verify(ctx context.Context, name string, progress func(vps.Progress)) error {
	ids, err := s.versions(name)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		ids = []string{""}
	}
	meter := newMeter(progress)
	for n, id := range ids {
		m, err := s.find(name, id)
		if err != nil {
			return err
		}
		err = verify(ctx, &m, func(part float64) { meter.at(phaseChecksum, (float64(n)+part)/float64(len(ids))) })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return corrupt(err, name, m.Path)
		}
	}
	meter.at(phaseChecksum, 1)
	return nil
}

func verify(ctx context.Context, m *manifest, progress func(float64)) error {
	f, err := os.Open(m.Path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	sum, err := checksum(ctx, io.NewSectionReader(f, 0, int64(m.FilesystemSize)), m.FilesystemSize, progress)
	if err != nil {
		return err
	}
	if sum != m.SHA256 {
		return errors.New("its SHA-256 is " + sum + ", not " + m.SHA256)
	}
	hole, err := holeFrom(f, m.FilesystemSize)
	if err == nil && !hole {
		err = errors.New("there is data behind its filesystem")
	}
	return err
}

// homes lists the names that have a folder, sorted, built or not.
func (s *Store) homes() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(globEscape(s.dir), "*", "*"))
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the images in %s cannot be listed", s.dir)
	}
	var names []string
	for _, p := range paths {
		name := filepath.Base(filepath.Dir(p)) + "/" + filepath.Base(p)
		if info, err := os.Stat(p); err == nil && info.IsDir() && validName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// versions lists the ids that the image called name has, oldest first.
func (s *Store) versions(name string) ([]string, error) {
	if !validName(name) {
		return nil, nil
	}
	entries, err := os.ReadDir(s.home(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Wrap(vps.CodeInternal, err, "image %s cannot be read", name)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && validPart(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (s *Store) home(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// validName tells whether name is like "debian/12"; others have no image and
// must not reach the filesystem.
func validName(name string) bool {
	distribution, release, ok := strings.Cut(name, "/")
	return ok && validPart(distribution) && validPart(release)
}

func validPart(s string) bool {
	return s != "" && len(s) <= 100 && s[0] != '.' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

func globEscape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// lock takes the lock of an image's folder, which lasts until unlock is called
// or the process ends. CodeConflict: somebody else has it.
func lock(home, name string) (unlock func(), err error) {
	f, err := os.Open(home)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "image %s cannot be locked", name)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, vps.Wrap(vps.CodeConflict, err, "image %s is being built or deleted right now; wait until that is done", name)
		}
		return nil, vps.Wrap(vps.CodeInternal, err, "image %s cannot be locked", name)
	}
	return func() { _ = flock.Release(f) }, nil // nothing was written
}
