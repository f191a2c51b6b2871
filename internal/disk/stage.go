package disk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

const (
	stagePrefix = ".stage-" // a volume that is being filled
	stageName   = "stage.json"
	// StageAge is how long a volume that is being filled is kept when nobody
	// goes on with it.
	StageAge = 24 * time.Hour
)

// Staging is a volume that is filled from outside, in as many pieces as it
// takes, before there is a guest for it. It is for one goroutine, and holds
// its name: nobody else fills the same one.
type Staging struct {
	s     *Store
	id    string
	dir   string
	rec   record
	files []*os.File
	done  func()
}

// stageRecord is stage.json.
type stageRecord struct {
	record
	// State is the caller's.
	State []byte `json:"state"`
	// Changed is when the state was last written.
	Changed time.Time `json:"changed"`
}

// StageDisk is a disk that is to be filled; the first one of a volume is what
// the guest boots from, and has no name.
type StageDisk struct {
	Name string
	Size vps.Bytes
}

// Stage begins a volume under a name of its own. Its disks read as zeros,
// so that only what is not zero is to be written. What was staged under that
// name before is removed. CodeConflict: somebody fills it just now.
func (s *Store) Stage(ctx context.Context, id, storage, imageID string, disks []StageDisk) (*Staging, error) {
	st, err := s.holdStage(id)
	if err != nil {
		return nil, err
	}
	if err := st.make(ctx, storage, imageID, disks); err != nil {
		err = s.explain(err, smallest, "the disks could not be made")
		return nil, errors.Join(err, st.Abandon(ctx))
	}
	return st, nil
}

// holdStage takes the name.
func (s *Store) holdStage(id string) (*Staging, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	key := stagePrefix + id
	done, _ := s.tryLock(key)
	if done == nil {
		return nil, vps.Errorf(vps.CodeConflict, "somebody else is unpacking this very file just now; wait for it")
	}
	return &Staging{s: s, id: id, dir: filepath.Join(s.dir, key), done: done}, nil
}

func (st *Staging) make(ctx context.Context, storage, imageID string, disks []StageDisk) error {
	if err := st.clear(ctx); err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(st.s.dir, 0o711), os.MkdirAll(st.dir, 0o700)); err != nil {
		return err
	}
	st.rec = record{Version: recordVersion, GuestID: st.id}
	for i, d := range disks {
		p := part{Name: d.Name, Size: d.Size}
		where, err := st.s.place(storage, &p)
		if err != nil {
			return err
		}
		if err := where.make(ctx, st.dir, &p, nil, 0); err != nil {
			return err
		}
		if i == 0 {
			p.ImageID = imageID
			st.rec.part = p
		} else {
			st.rec.Data = append(st.rec.Data, p)
		}
	}
	return st.open(ctx)
}

// ResumeStage goes on with a volume, and returns the state that Checkpoint was
// last given. CodeNotFound: there is none.
func (s *Store) ResumeStage(ctx context.Context, id string) (st *Staging, state []byte, err error) {
	st, err = s.holdStage(id)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.readStage(st.dir, id)
	if err == nil {
		st.rec = r.record
		err = st.open(ctx)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = vps.Errorf(vps.CodeNotFound, "there is nothing to go on with: nothing of this file was kept; unpack all of it")
	case err != nil:
		err = s.explain(err, 0, "what was unpacked before cannot be read")
	default:
		return st, r.State, nil
	}
	st.release()
	return nil, nil, err
}

func (s *Store) readStage(dir, id string) (*stageRecord, error) {
	r := &stageRecord{}
	if err := readJSON(filepath.Join(dir, stageName), r); err != nil {
		return nil, err
	}
	return r, r.check(id)
}

func (st *Staging) open(ctx context.Context) error {
	for _, p := range st.rec.parts() {
		f, err := st.s.of(p).open(ctx, st.dir, p, writeFlag)
		if err != nil {
			return err
		}
		st.files = append(st.files, f)
	}
	return nil
}

// block is the unit in which zeros are not written.
const block = 4096

// WriteAt writes to a disk, by its place among the disks. Blocks of zeros are
// left as the holes that they are.
func (st *Staging) WriteAt(disk int, b []byte, at int64) error {
	for from := 0; from < len(b); {
		if zeroBytes(b[from:min(from+block, len(b))]) {
			from += block
			continue
		}
		to := from
		for to < len(b) && !zeroBytes(b[to:min(to+block, len(b))]) {
			to += block
		}
		to = min(to, len(b))
		if _, err := st.files[disk].WriteAt(b[from:to], at+int64(from)); err != nil {
			return st.s.explain(err, vps.Bytes(to-from), "the disks could not be written")
		}
		from = to
	}
	return nil
}

func zeroBytes(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Checkpoint makes sure that what was written is on the disk, and keeps state
// for ResumeStage.
func (st *Staging) Checkpoint(state []byte) error {
	for _, f := range st.files {
		if err := f.Sync(); err != nil {
			return st.s.explain(err, smallest, "the disks could not be written")
		}
	}
	err := durable.WriteJSON(filepath.Join(st.dir, stageName), &stageRecord{st.rec, state, time.Now().UTC()})
	return st.s.explain(err, smallest, "how far it came could not be written down")
}

// Content opens a disk for reading back what was written.
func (st *Staging) Content(ctx context.Context, disk int) (*Content, error) {
	c, err := st.s.content(ctx, st.dir, st.rec.parts()[disk])
	return c, st.s.explain(err, 0, "what was written cannot be read back")
}

// Finish makes it the volume of a guest that is yet to be made: until Settle
// is called, Sweep removes it when there is no such guest.
func (st *Staging) Finish(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	for _, f := range st.files {
		if err := f.Sync(); err != nil {
			return st.s.explain(err, smallest, "the disks could not be written")
		}
	}
	st.rec.Staged, st.rec.GuestID = true, id
	err := os.Remove(filepath.Join(st.dir, stageName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = st.s.settle(st.dir, &st.rec)
	}
	if err != nil {
		return st.s.explain(err, smallest, "the volume could not be put in its place")
	}
	st.release()
	return nil
}

// Settle says that the guest of a volume was made.
func (s *Store) Settle(ctx context.Context, id string) error {
	return s.edit(ctx, id, func(_ string, r *record) (*record, []part, error) {
		r.Staged = false
		return r, nil, nil
	})
}

// Keep lets the volume go as it is, to be resumed.
func (st *Staging) Keep() { st.release() }

// Abandon removes all of it.
func (st *Staging) Abandon(ctx context.Context) error {
	defer st.release()
	return st.clear(ctx)
}

func (st *Staging) release() {
	for _, f := range st.files {
		_ = f.Close() // what was to be kept was synced
	}
	st.files = nil
	if st.done != nil {
		st.done()
		st.done = nil
	}
}

// clear removes what lies under the name.
func (st *Staging) clear(ctx context.Context) error {
	parts := st.rec.parts()
	if r, err := st.s.readStage(st.dir, st.id); err == nil {
		parts = append(parts, r.parts()...)
	}
	for _, f := range st.files {
		_ = f.Close() // it is going to be removed
	}
	st.files = nil
	return errors.Join(st.s.discard(ctx, st.dir, parts...), os.RemoveAll(st.dir))
}

// Staged is a volume that somebody began to fill.
type Staged struct {
	ID      string
	State   []byte
	Changed time.Time
	parts   []part
}

// StagedVolumes lists the volumes that can be gone on with.
func (s *Store) StagedVolumes() ([]Staged, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Wrap(vps.CodeInternal, err, "the volumes in %s cannot be listed", s.dir)
	}
	var all []Staged
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), stagePrefix)
		if !ok {
			continue
		}
		if r, err := s.readStage(filepath.Join(s.dir, e.Name()), id); err == nil {
			all = append(all, Staged{id, r.State, r.Changed, r.parts()})
		}
	}
	return all, nil
}

// SweepStages removes volumes that nobody goes on filling: those that have no
// state, and those whose state is older than StageAge. Those that are being
// filled stay.
func (s *Store) SweepStages(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), stagePrefix)
		if !ok {
			continue
		}
		st, err := s.holdStage(id)
		if err != nil {
			continue // somebody fills it
		}
		if r, err := s.readStage(st.dir, id); err == nil && time.Since(r.Changed) < StageAge {
			st.release()
			continue
		}
		errs = append(errs, st.Abandon(ctx))
	}
	return errors.Join(errs...)
}
