package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/disk"
	"sublet/internal/pack"
	"sublet/internal/vps"
)

// Pack writes a whole guest. What is read is a snapshot, or the disks of a
// guest that does not run, also at the end.
func (b backend) Pack(ctx context.Context, name string, o api.PackOptions, w io.Writer) (err error) {
	host, g, err := b.guest(ctx, name)
	if err != nil {
		return err
	}
	in, err := b.instance(ctx, *g)
	if err != nil {
		return err
	}
	state, snapshot := vps.SnapshotStopped, o.Snapshot
	switch {
	case snapshot != "":
	case in == nil:
	case !o.Live:
		return vps.Errorf(vps.CodeConflict, "%s runs; stop it first, pack a snapshot of it with --snapshot NAME, or take one for this with --live", name)
	default:
		snapshot = "pack-" + strings.ToLower(rand.Text()[:8])
		if _, err := b.volumes.Snapshot(ctx, g.ID, snapshot, b.quiet(*g)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.volumes.DeleteSnapshot(context.WithoutCancel(ctx), g.ID, snapshot)) }()
	}
	names := []string{""}
	if snapshot == "" {
		for _, d := range g.Spec.Disks {
			names = append(names, d.Name)
		}
	} else {
		sn, err := b.findSnapshot(ctx, g, snapshot)
		if err != nil {
			return err
		}
		state, names = sn.State, append(names, sn.Disks[1:]...)
	}
	quota, err := json.Marshal(host.Quota(vps.QuotaGuest, name))
	if err != nil {
		return err
	}
	return b.packDisks(ctx, *g, quota, snapshot, state, names, w)
}

func (b backend) findSnapshot(ctx context.Context, g *vps.Guest, name string) (vps.Snapshot, error) {
	all, err := b.volumes.Snapshots(ctx, g.ID)
	if err != nil {
		return vps.Snapshot{}, err
	}
	i := slices.IndexFunc(all, func(s vps.Snapshot) bool { return s.Name == name })
	if i < 0 {
		return vps.Snapshot{}, vps.Errorf(vps.CodeNotFound, "%s has no snapshot %s; `sublet snapshot list %s` shows those that it has", g.Spec.Name, name, g.Spec.Name)
	}
	return all[i], nil
}

func (b backend) packDisks(ctx context.Context, g vps.Guest, quota json.RawMessage, snapshot string, state vps.SnapshotState, names []string, w io.Writer) error {
	m := pack.Manifest{
		Created: time.Now().UTC(), Name: g.Spec.Name, Image: g.Spec.Image, ImageID: g.ImageID, State: state,
		Quota: quota,
	}
	var sources []pack.Source
	var data []vps.DataDisk
	for _, name := range names {
		c, err := b.volumes.Open(ctx, g.ID, snapshot, name)
		if vps.ErrorCode(err) == vps.CodeNotFound && name != "" && snapshot == "" {
			err = vps.Wrap(vps.CodeConflict, err, "the disk %s of %s is not made yet; start the guest once, or remove the disk", name, g.Spec.Name)
		}
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }() // read only
		d := pack.Disk{Name: name}
		if name == "" {
			d.Name = api.RootDisk
		} else {
			data = append(data, vps.DataDisk{Name: name, Size: vps.Bytes(c.Size()) / vps.MiB * vps.MiB})
		}
		if c.Sparse() {
			if d.Used, err = pack.Estimate(c); err != nil {
				return vps.Wrap(vps.CodeInternal, err, "a disk of %s cannot be read", g.Spec.Name)
			}
		}
		m.Disks, sources = append(m.Disks, d), append(sources, c)
	}
	var err error
	if m.Guest, m.Domains, err = desired.Describe(g, data); err != nil {
		return err
	}
	// What was read of a guest that was started meanwhile is of no use.
	unchanged := func() error { return nil }
	if snapshot == "" {
		unchanged = func() error { return b.stillStopped(g) }
	}
	if err := pack.Write(ctx, w, m, sources, nil, unchanged); err != nil {
		if vps.ErrorCode(err) != vps.CodeInternal {
			return err
		}
		return vps.Wrap(vps.CodeInternal, err, "the guest %s could not be packed", g.Spec.Name)
	}
	b.event(ctx, g.Spec.Name, vps.EventPacked, "the guest was packed")
	return nil
}

// unpacking is what is kept of one that can be gone on with.
type unpacking struct {
	Pack pack.State `json:"pack"`
	// Storage is where the disks are being made.
	Storage string `json:"storage"`
}

// checkpointEvery is after how much of a stream what was unpacked is made to
// last.
const checkpointEvery = 64 << 20

// Unpack makes a guest of what r holds.
func (b backend) Unpack(ctx context.Context, r io.Reader, o api.UnpackOptions) (api.Unpacked, error) {
	if err := b.volumes.SweepStages(ctx); err != nil {
		b.log.WarnContext(ctx, "volumes that nobody went on unpacking could not be removed", "error", err)
	}
	u, err := b.beginUnpack(ctx, r, o)
	if err != nil {
		return api.Unpacked{}, err
	}
	if err := u.fill(ctx); err != nil {
		return api.Unpacked{}, err
	}
	id := b.state.NewID()
	if err := u.staging.Finish(id); err != nil {
		return api.Unpacked{}, errors.Join(err, u.staging.Abandon(context.WithoutCancel(ctx)))
	}
	return b.adopt(context.WithoutCancel(ctx), id, u, o)
}

// adopt makes the guest, now that its volume is whole. Nothing is left when
// that fails.
func (b backend) adopt(ctx context.Context, id string, u *unpack, o api.UnpackOptions) (api.Unpacked, error) {
	m := u.reader.Manifest()
	e, told, err := b.state.Adopt(ctx, u.adoption(id, o), false)
	if err != nil {
		return api.Unpacked{}, errors.Join(err, b.volumes.Delete(ctx, id))
	}
	if err := b.volumes.Settle(ctx, id); err != nil {
		b.log.WarnContext(ctx, "a volume is still marked as new", "guest_id", id, "error", err)
	}
	name := newGuest(e).Spec.Name
	b.event(ctx, name, vps.EventCreated, fmt.Sprintf("unpacked: %s as of %s (%s)", m.Name, m.Created.Format(time.RFC3339), m.State))
	b.loop.Kick()
	b.quotas.touch()
	return api.Unpacked{Schema: api.SchemaVersion, Guest: name, Notes: told}, nil
}

// unpack is one that is going on.
type unpack struct {
	b       backend
	reader  *pack.Reader
	staging *disk.Staging
	storage string
}

func (u *unpack) adoption(id string, o api.UnpackOptions) desired.Adoption {
	m := u.reader.Manifest()
	return desired.Adoption{ID: id, File: m.Guest, Domains: m.Domains, Quota: m.Quota, Name: o.Name, Storage: u.storage, ImageID: m.ImageID, Start: o.Start}
}

// beginUnpack reads what is to be made, and refuses what cannot be before
// anything is.
func (b backend) beginUnpack(ctx context.Context, r io.Reader, o api.UnpackOptions) (*unpack, error) {
	if o.Resume != "" {
		return b.resumeUnpack(ctx, r, o)
	}
	reader, err := pack.NewReader(r)
	if err != nil {
		return nil, cutOff(err, 0)
	}
	m := reader.Manifest()
	u := &unpack{b: b, reader: reader, storage: o.Storage}
	if u.storage == "" {
		u.storage = vps.StorageFile
	}
	if m.ImageID == "" {
		return nil, vps.Errorf(vps.CodeInvalid, "the .sublet file does not say what image the guest was made from")
	}
	e, _, err := b.state.Adopt(ctx, u.adoption(b.state.NewID(), o), true)
	if err != nil {
		return nil, err
	}
	disks, err := stageDisks(m, newGuest(e))
	if err != nil {
		return nil, err
	}
	if err := b.fits(ctx, m, u.storage); err != nil {
		return nil, err
	}
	u.staging, err = b.volumes.Stage(ctx, reader.ID(), u.storage, m.ImageID, disks)
	return u, err
}

// newGuest finds the guest that an edit would add.
func newGuest(e desired.Edited) *vps.Guest {
	for i := range e.After.Guests {
		if e.After.Guests[i].ID == e.Guest {
			return &e.After.Guests[i]
		}
	}
	return nil
}

// stageDisks are the disks that the file holds, if they are those that the
// guest is to have. They may be shorter, when the guest was to grow at its next
// start, and longer by what a logical volume is rounded up by.
func stageDisks(m pack.Manifest, g *vps.Guest) ([]disk.StageDisk, error) {
	const rounding = vps.GiB
	if g == nil || len(m.Disks) != 1+len(g.Spec.Disks) {
		return nil, vps.Errorf(vps.CodeInvalid, "the .sublet file has %d disks, and not those that its guest has", len(m.Disks))
	}
	staged := []disk.StageDisk{{Size: m.Disks[0].Size}}
	if m.Disks[0].Size > g.Spec.Disk+rounding {
		return nil, vps.Errorf(vps.CodeInvalid, "the disk in the .sublet file has %s, and its guest is to have %s", m.Disks[0].Size, g.Spec.Disk)
	}
	for i, d := range m.Disks[1:] {
		if want := g.Spec.Disks[i]; want.Name != d.Name || d.Size > want.Size+rounding {
			return nil, vps.Errorf(vps.CodeInvalid, "the disk %s of %s in the .sublet file is not the disk %s that its guest has", d.Name, d.Size, want)
		}
		staged = append(staged, disk.StageDisk{Name: d.Name, Size: d.Size})
	}
	return staged, nil
}

// fits refuses what the host has no room for, as far as that is known.
func (b backend) fits(ctx context.Context, m pack.Manifest, storage string) error {
	if storage != vps.StorageFile {
		return nil // LVM says it at once
	}
	free, err := b.volumes.Free(ctx)
	if err != nil {
		return err
	}
	var need vps.Bytes
	for _, d := range m.Disks {
		need += d.Used
	}
	if need > free {
		return vps.Errorf(vps.CodeDenied, "the disks of %s hold about %s, and %s are free for volumes; free some space", m.Name, need, free)
	}
	return nil
}

func (b backend) resumeUnpack(ctx context.Context, r io.Reader, o api.UnpackOptions) (*unpack, error) {
	if _, err := pack.ParseID(o.Resume); err != nil {
		return nil, err
	}
	staging, kept, err := b.volumes.ResumeStage(ctx, o.Resume)
	if err != nil {
		return nil, err
	}
	var s unpacking
	if err := json.Unmarshal(kept, &s); err != nil {
		return nil, errors.Join(vps.Wrap(vps.CodeInternal, err, "how far it came cannot be read; unpack all of it"), staging.Abandon(ctx))
	}
	if s.Pack.Offset != o.Offset {
		staging.Keep()
		return nil, vps.Errorf(vps.CodeConflict, "what was unpacked ends at byte %d of the file, and %d was given", s.Pack.Offset, o.Offset)
	}
	reader, err := pack.Resume(r, s.Pack)
	if err != nil {
		return nil, errors.Join(err, staging.Abandon(ctx))
	}
	u := &unpack{b: b, reader: reader, staging: staging, storage: s.Storage}
	if _, _, err := b.state.Adopt(ctx, u.adoption(b.state.NewID(), o), true); err != nil {
		staging.Keep() // another name will do
		return nil, err
	}
	return u, nil
}

// fill writes what the stream holds, and checks that it is there. A stream that
// is cut off leaves what came; everything else that goes wrong leaves nothing.
func (u *unpack) fill(ctx context.Context) error {
	err := u.copy(ctx)
	switch {
	case err == nil:
		return u.verify(ctx)
	case errors.Is(err, pack.ErrCut) || ctx.Err() != nil:
		if kept := u.checkpoint(); kept != nil {
			return errors.Join(kept, u.staging.Abandon(context.WithoutCancel(ctx)))
		}
		u.staging.Keep()
		return cutOff(err, u.reader.State().Offset)
	}
	return errors.Join(err, u.staging.Abandon(context.WithoutCancel(ctx)))
}

func cutOff(err error, at int64) error {
	switch {
	case !errors.Is(err, pack.ErrCut):
		return err
	case at == 0:
		return vps.Wrap(vps.CodeInvalid, err, "the .sublet file is cut off before it says what it holds")
	}
	return vps.Wrap(vps.CodePartial, err, "the .sublet file is cut off behind %d bytes; they are kept for %s, and `sublet unpack --resume` goes on with the whole file", at, disk.StageAge)
}

func (u *unpack) copy(ctx context.Context) error {
	if err := u.checkpoint(); err != nil {
		return err
	}
	next := u.reader.State().Offset + checkpointEvery
	for {
		c, err := u.reader.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, pack.ErrCut) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.staging.WriteAt(c.Disk, c.Content, c.Offset); err != nil {
			return err
		}
		if at := u.reader.State().Offset; at >= next {
			if err := u.checkpoint(); err != nil {
				return err
			}
			next = at + checkpointEvery
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (u *unpack) checkpoint() error {
	b, err := json.Marshal(unpacking{u.reader.State(), u.storage})
	if err != nil {
		return err
	}
	return u.staging.Checkpoint(b)
}

// verify reads the disks back.
func (u *unpack) verify(ctx context.Context) error {
	for i, want := range u.reader.Digests() {
		got, err := u.digest(ctx, i)
		if err == nil && got != want {
			err = vps.Errorf(vps.CodeInternal, "the disk %s reads back as something else than was packed; the host's disk may be failing", u.reader.Manifest().Disks[i].Name)
		}
		if err != nil {
			return errors.Join(err, u.staging.Abandon(context.WithoutCancel(ctx)))
		}
	}
	return nil
}

func (u *unpack) digest(ctx context.Context, i int) (string, error) {
	c, err := u.staging.Content(ctx, i)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }() // read only
	return pack.Digest(c)
}

// Unpacks lists what can be gone on with.
func (b backend) Unpacks(ctx context.Context) ([]api.Unpacking, error) {
	staged, err := b.volumes.StagedVolumes()
	if err != nil {
		return nil, err
	}
	var all []api.Unpacking
	for _, st := range staged {
		var s unpacking
		if err := json.Unmarshal(st.State, &s); err != nil {
			b.log.WarnContext(ctx, "how far an unpacking came cannot be read", "id", st.ID, "error", err)
			continue
		}
		all = append(all, api.Unpacking{ID: st.ID, Guest: s.Pack.Manifest.Name, Offset: s.Pack.Offset, Changed: st.Changed})
	}
	return all, nil
}
