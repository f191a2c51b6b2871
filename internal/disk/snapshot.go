package disk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

const (
	snapshotsName = "snapshots" // the folder in a volume's folder
	snapshotName  = "snapshot.json"
	// MaxSnapshots bounds the snapshots of one guest.
	MaxSnapshots = 64
)

// snapshotRecord is snapshot.json: a volume's record as it was, with the names
// of the copies.
type snapshotRecord struct {
	record
	Snapshot string            `json:"snapshot"`
	Created  time.Time         `json:"created"`
	State    vps.SnapshotState `json:"state"`
}

// Quiet makes a guest write nothing for a while, and says what state its
// filesystems are in. It is called when everything is prepared; resume ends
// the while, and is called once.
type Quiet func(ctx context.Context) (state vps.SnapshotState, resume func() error, err error)

// Stopped is the Quiet of a guest that does not run.
func Stopped(context.Context) (vps.SnapshotState, func() error, error) {
	return vps.SnapshotStopped, func() error { return nil }, nil
}

func (s *Store) snapshotFolder(id, name string) string {
	return filepath.Join(s.folder(id), snapshotsName, name)
}

// Snapshot copies all disks of guest id at one instant. The guest is quiet
// for as long as that takes: no time where the filesystem shares extents and
// on LVM, else as long as copying what the disks hold takes; an overlay holds
// only what the guest changed.
//
// CodeConflict: there is a snapshot of this name already. CodeDenied: there is
// no room for it, or there are MaxSnapshots already. Nothing is left after an
// error, and the guest goes on.
func (s *Store) Snapshot(ctx context.Context, id, name string, quiet Quiet) (vps.Snapshot, error) {
	var made vps.Snapshot
	err := s.edit(ctx, id, func(dir string, r *record) (*record, []part, error) {
		if err := s.mayTake(id, name); err != nil {
			return nil, nil, err
		}
		if err := s.room(ctx, dir, r); err != nil {
			return nil, nil, err
		}
		err := s.take(ctx, dir, r, name, quiet)
		if err == nil {
			made, err = s.showSnapshot(ctx, id, name)
		}
		return nil, nil, err
	})
	if err == nil {
		s.log.InfoContext(ctx, "snapshot taken", "guest_id", id, "snapshot", name, "state", string(made.State))
	}
	return made, err
}

func (s *Store) mayTake(id, name string) error {
	if err := vps.ValidName("name", name); err != nil {
		return err
	}
	all, err := s.snapshots(id)
	switch {
	case err != nil:
		return err
	case slices.ContainsFunc(all, func(sn *snapshotRecord) bool { return sn.Snapshot == name }):
		return vps.Errorf(vps.CodeConflict, "there is a snapshot %s already; choose another name, or delete it first", name)
	case len(all) >= MaxSnapshots:
		return vps.Errorf(vps.CodeDenied, "there are %d snapshots, which is the limit; delete one first", len(all))
	}
	return nil
}

// room refuses a snapshot that would not fit, before the guest is made to
// wait for it.
func (s *Store) room(ctx context.Context, dir string, r *record) error {
	need := smallest
	for _, p := range r.parts() {
		if p.onLVM() {
			continue // LVM says it at once
		}
		f, err := s.files().open(ctx, dir, p, os.O_RDONLY)
		if err != nil {
			return s.explain(err, 0, "a disk in %s cannot be read", dir)
		}
		if !s.files().shares(dir, f) {
			_, used, err := s.files().describe(ctx, dir, p)
			if err != nil {
				return errors.Join(err, f.Close())
			}
			need += used
		}
		_ = f.Close() // read only
	}
	free, mount, err := s.space()
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the free space of %s cannot be read", s.dir)
	}
	if need > free {
		return vps.Errorf(vps.CodeDenied, "the filesystem at %s has no room for a copy of the disks: %s needed, %s free; free some space", mount, need, free)
	}
	return nil
}

// take makes the snapshot beside its place and moves it there.
func (s *Store) take(ctx context.Context, dir string, r *record, name string, quiet Quiet) (err error) {
	all := filepath.Join(dir, snapshotsName)
	tmp := filepath.Join(all, newPrefix+name)
	sn := &snapshotRecord{record: *r, Snapshot: name, Created: time.Now().UTC()}
	sn.Data = slices.Clone(r.Data)
	explain := func(err error) error {
		return s.explain(err, smallest, "the snapshot %s could not be made", name)
	}
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700)); err != nil {
		return explain(err)
	}
	var made []part
	defer func() {
		if err != nil {
			err = explain(errors.Join(err, s.discard(ctx, tmp, made...), os.RemoveAll(tmp)))
		}
	}()
	state, resume, err := quiet(ctx)
	if err != nil {
		return err
	}
	sn.State = state
	finish, err := s.copyAll(ctx, tmp, &sn.record, dir, r, 0, &made)
	if err := errors.Join(err, resume()); err != nil {
		return err
	}
	if err := finish(); err != nil {
		return err
	}
	if err := durable.WriteJSON(filepath.Join(tmp, snapshotName), sn); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(all, name)); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(all), durable.SyncDir(dir))
}

// copyAll copies all disks of a volume or snapshot to another, whose record
// names as many. What it made is added to made, also after an error.
func (s *Store) copyAll(ctx context.Context, toDir string, to *record, fromDir string, from *record, uid uint32, made *[]part) (finish func() error, err error) {
	var rest []func() error
	for _, f := range from.parts() {
		p := to.disk(f.Name)
		more, err := s.of(f).copy(ctx, toDir, p, fromDir, f, uid)
		if err != nil {
			return nil, err
		}
		*made = append(*made, *p)
		if more != nil {
			rest = append(rest, more)
		}
	}
	return func() error {
		for _, more := range rest {
			if err := more(); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// Snapshots lists the snapshots of guest id, oldest first. A guest without a
// volume has none.
func (s *Store) Snapshots(ctx context.Context, id string) ([]vps.Snapshot, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	all, err := s.snapshots(id)
	shown := make([]vps.Snapshot, 0, len(all))
	for _, sn := range all {
		one, err := s.showSnapshot(ctx, id, sn.Snapshot)
		if err != nil {
			return nil, err
		}
		shown = append(shown, one)
	}
	slices.SortStableFunc(shown, func(a, b vps.Snapshot) int { return a.Created.Compare(b.Created) })
	return shown, err
}

// snapshots reads the records of all snapshots of a guest, sorted by name.
func (s *Store) snapshots(id string) ([]*snapshotRecord, error) {
	dir := filepath.Join(s.folder(id), snapshotsName)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Wrap(vps.CodeInternal, err, "the snapshots in %s cannot be listed", dir)
	}
	var all []*snapshotRecord
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		sn, err := s.snapshot(id, e.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, sn)
	}
	return all, nil
}

// snapshot reads the record of one snapshot.
func (s *Store) snapshot(id, name string) (*snapshotRecord, error) {
	if err := vps.ValidName("name", name); err != nil {
		return nil, err
	}
	path := filepath.Join(s.snapshotFolder(id, name), snapshotName)
	sn := &snapshotRecord{}
	err := readJSON(path, sn)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Errorf(vps.CodeNotFound, "there is no snapshot %s", name)
	}
	if err == nil {
		err = sn.check(id)
	}
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the snapshot %s is damaged; delete it", name)
	}
	sn.Snapshot = name
	return sn, nil
}

func (s *Store) showSnapshot(ctx context.Context, id, name string) (vps.Snapshot, error) {
	sn, err := s.snapshot(id, name)
	if err != nil {
		return vps.Snapshot{}, err
	}
	shown := vps.Snapshot{Name: name, Created: sn.Created, State: sn.State}
	for _, p := range sn.parts() {
		_, used, err := s.of(p).describe(ctx, s.snapshotFolder(id, name), p)
		if err != nil {
			return shown, s.explain(err, 0, "the snapshot %s is damaged; delete it", name)
		}
		shown.Size += p.Size
		shown.Used += used
		if p.Name == "" {
			p.Name = rootName
		}
		shown.Disks = append(shown.Disks, p.Name)
	}
	return shown, nil
}

// rootName is what people call the disk that a guest boots from.
const rootName = "root"

// Restore makes the disks of guest id what they were in a snapshot, which
// stays. What was there goes only when all is in place. Disks that were made
// since then stay as they are, those that were deleted do not come back and
// are returned by name, and disks that have grown since then are as long as
// now. The guest does not run. CodeConflict: it does. CodeNotFound: there is
// no such snapshot.
func (s *Store) Restore(ctx context.Context, id, name string, uid uint32) (missing []string, err error) {
	err = s.edit(ctx, id, func(dir string, r *record) (*record, []part, error) {
		sn, err := s.snapshot(id, name)
		if err != nil {
			return nil, nil, err
		}
		for _, p := range r.parts() {
			if err := s.unheld(ctx, dir, p); err != nil {
				return nil, nil, err
			}
		}
		from, after := record{part: sn.part}, *r
		after.part, after.Data = sn.part, slices.Clone(r.Data)
		for _, p := range sn.Data {
			if now := after.disk(p.Name); now != nil {
				*now = p
				from.Data = append(from.Data, p)
			} else {
				missing = append(missing, p.Name)
			}
		}
		var made []part
		finish, err := s.copyAll(ctx, dir, &after, s.snapshotFolder(id, name), &from, uid, &made)
		if err == nil {
			err = finish()
		}
		for _, now := range r.parts() {
			if p := after.disk(now.Name); err == nil && p != nil && now.Size > p.Size && p.growable(now.Size) == nil {
				err = s.of(*p).grow(ctx, dir, p, now.Size)
			}
		}
		if err != nil {
			return nil, nil, s.explain(s.undo(ctx, dir, err, made), sizeOf(sn.parts()), "the snapshot %s could not be restored", name)
		}
		// The guest may have been on its way up when this began.
		for _, p := range r.parts() {
			if err := s.unheld(ctx, dir, p); err != nil {
				return nil, nil, s.undo(ctx, dir, err, made)
			}
		}
		return &after, made, nil
	})
	if err == nil {
		s.log.InfoContext(ctx, "snapshot restored", "guest_id", id, "snapshot", name, "missing", missing)
	}
	return missing, err
}

func sizeOf(parts []part) (n vps.Bytes) {
	for _, p := range parts {
		n += p.Size
	}
	return n
}

// DeleteSnapshot removes a snapshot. CodeNotFound: there is none.
func (s *Store) DeleteSnapshot(ctx context.Context, id, name string) error {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := vps.ValidName("name", name); err != nil {
		return err
	}
	sn, err := s.snapshot(id, name)
	if vps.ErrorCode(err) == vps.CodeNotFound {
		return err
	}
	all := filepath.Join(s.folder(id), snapshotsName)
	gone := filepath.Join(all, gonePrefix+name)
	err = os.RemoveAll(gone)
	if err == nil {
		err = os.Rename(filepath.Join(all, name), gone)
	}
	if err == nil && sn != nil {
		err = s.discard(ctx, gone, sn.parts()...)
	}
	if err = errors.Join(err, os.RemoveAll(gone)); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the snapshot %s could not be removed", name)
	}
	return nil
}

// sweepSnapshots removes what interrupted calls left.
func (s *Store) sweepSnapshots(id string) error {
	dir := filepath.Join(s.folder(id), snapshotsName)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Images returns which image versions the disks and snapshots of guest id lie
// on, so that none of them is deleted.
func (s *Store) Images(id string) ([]string, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	var ids []string
	r, err := readRecord(s.folder(id), id)
	if err == nil {
		ids = append(ids, r.ImageID)
	}
	all, err := s.snapshots(id)
	for _, sn := range all {
		if sn.Method == methodOverlay {
			ids = append(ids, sn.ImageID)
		}
	}
	return ids, err
}
