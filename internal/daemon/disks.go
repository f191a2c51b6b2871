package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/disk"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

// quietWithin bounds how long a guest may take to become quiet.
const quietWithin = 30 * time.Second

func (b backend) guest(ctx context.Context, name string) (vps.Host, *vps.Guest, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return host, nil, err
	}
	g := host.Guest(name)
	if g == nil {
		return host, nil, desired.NoGuest(name)
	}
	return host, g, nil
}

// GuestDisks puts what was asked for beside what there is.
func (b backend) GuestDisks(ctx context.Context, name string) ([]api.GuestDisk, error) {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return nil, err
	}
	v, err := b.volumes.Get(ctx, g.ID)
	if err != nil && vps.ErrorCode(err) != vps.CodeNotFound {
		return nil, err
	}
	storage := cmp.Or(v.Storage, g.Spec.Storage)
	disks := []api.GuestDisk{showDisk(g, storage, vps.RootDevice(g.Spec.Driver), g.Spec.Disk, rootOf(v))}
	for i, want := range g.Spec.Disks {
		found := vps.DataVolume{Name: want.Name}
		if at := slices.IndexFunc(v.Data, func(d vps.DataVolume) bool { return d.Name == want.Name }); at >= 0 {
			found = v.Data[at]
		}
		disks = append(disks, showDisk(g, storage, vps.DataDevice(g.Spec.Driver, i), want.Size, found))
	}
	for _, d := range v.Data {
		if !slices.ContainsFunc(g.Spec.Disks, func(want vps.DataDisk) bool { return want.Name == d.Name }) {
			disks = append(disks, showDisk(g, storage, "", 0, d))
		}
	}
	return disks, nil
}

// rootOf is the disk that a guest boots from, as one among its disks.
func rootOf(v vps.Volume) vps.DataVolume {
	root := vps.DataVolume{Name: api.RootDisk, Disk: v.Disk, Size: v.Size, Used: v.Used}
	for _, d := range v.Data {
		root.Used -= d.Used
	}
	return root
}

func showDisk(g *vps.Guest, storage, device string, asked vps.Bytes, d vps.DataVolume) api.GuestDisk {
	shown := api.GuestDisk{Guest: g.Spec.Name, Name: d.Name, Device: device, Asked: asked, Size: d.Size, Used: d.Used, Path: d.Disk.Path, Storage: storage}
	switch {
	case asked == 0:
		shown.Pending = "is removed when the guest has stopped"
	case d.Size == 0:
		shown.Pending = "is made before the guest's next start"
	case d.Size < asked:
		shown.Pending = fmt.Sprintf("grows to %s before the guest's next start", asked)
	}
	return shown
}

func (b backend) RemoveDisk(ctx context.Context, name, disk string, dryRun bool) (api.Change, error) {
	e, err := b.state.RemoveDisk(ctx, name, disk, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	return b.change(ctx, e, dryRun)
}

func (b backend) Snapshots(ctx context.Context, name string) ([]vps.Snapshot, error) {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return nil, err
	}
	return b.volumes.Snapshots(ctx, g.ID)
}

func (b backend) TakeSnapshot(ctx context.Context, name, snapshot string) (api.Operation, error) {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	return b.operations.start(b.lifetime, "snapshot", name, func(ctx context.Context, progress func(vps.Progress)) error {
		progress(vps.Progress{Phase: "copying the disks", Fraction: -1})
		taken, err := b.volumes.Snapshot(ctx, g.ID, snapshot, b.quiet(*g))
		if err != nil {
			return err
		}
		b.event(ctx, name, vps.EventSnapshot, fmt.Sprintf("the snapshot %s was taken (%s)", snapshot, taken.State))
		return nil
	}), nil
}

// quiet makes a guest write nothing for a while: one that runs freezes its
// filesystems, or at least writes out what it holds, and then stands still.
func (b backend) quiet(g vps.Guest) disk.Quiet {
	return func(ctx context.Context) (vps.SnapshotState, func() error, error) {
		in, err := b.instance(ctx, g)
		if err != nil {
			return "", nil, err
		}
		if in == nil {
			return vps.SnapshotStopped, func() error { return b.stillStopped(g) }, nil
		}
		ctx, cancel := context.WithTimeout(ctx, quietWithin)
		defer cancel()
		thaw, err := b.driver.Freeze(ctx, *in)
		state := vps.SnapshotFrozen
		if err != nil {
			// It is as after a power cut then, which has to do.
			b.log.InfoContext(ctx, "a guest could not freeze its filesystems", "guest", g.Spec.Name, "error", err)
			state, thaw = vps.SnapshotRunning, func() {}
			if err := b.driver.Sync(ctx, *in); err != nil {
				b.log.InfoContext(ctx, "a guest could not be asked to write out its disks", "guest", g.Spec.Name, "error", err)
			}
		}
		resume, err := b.driver.Pause(ctx, *in)
		if err != nil {
			thaw()
			return "", nil, err
		}
		return state, func() error {
			defer thaw()
			return resume()
		}, nil
	}
}

// stillStopped refuses what was copied while a guest was being started.
func (b backend) stillStopped(g vps.Guest) error {
	in, err := b.instance(context.WithoutCancel(b.lifetime), g)
	if err == nil && in != nil {
		err = vps.Errorf(vps.CodeConflict, "the guest %s was started meanwhile; try again", g.Spec.Name)
	}
	return err
}

// instance returns the running instance of a guest as the driver knows it now,
// or nil.
func (b backend) instance(ctx context.Context, g vps.Guest) (*vps.Instance, error) {
	all, err := b.driver.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, in := range all {
		if in.GuestID == g.ID && in.Exit == nil {
			return &in, nil
		}
	}
	return nil, nil //nolint:nilnil // it does not run, which is no error
}

func (b backend) RestoreSnapshot(ctx context.Context, name, snapshot string, stop bool) (api.Operation, error) {
	host, g, err := b.guest(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	if _, err := b.findSnapshot(ctx, g, snapshot); err != nil {
		return api.Operation{}, err
	}
	wasUp := g.Spec.Power == vps.PowerRunning
	if wasUp && !stop {
		return api.Operation{}, vps.Errorf(vps.CodeConflict, "%s runs, or is to run; stop it first, or add --stop", name)
	}
	return b.operations.start(b.lifetime, "snapshot-restore", name, func(ctx context.Context, progress func(vps.Progress)) error {
		if wasUp {
			progress(vps.Progress{Phase: "stopping the guest", Fraction: -1})
			if err := b.stopAndWait(ctx, g); err != nil {
				return err
			}
		}
		progress(vps.Progress{Phase: "copying the disks", Fraction: -1})
		missing, err := b.volumes.Restore(ctx, g.ID, snapshot, host.Settings.UID(g.Index))
		if err == nil {
			text := "the disks are what they were in the snapshot " + snapshot
			if len(missing) > 0 {
				text += "; it also has " + strings.Join(missing, ", ") + ", which the guest has no more"
			}
			b.event(ctx, name, vps.EventSnapshot, text)
		}
		if wasUp {
			_, startErr := b.state.Start(context.WithoutCancel(ctx), name, false, false)
			err = errors.Join(err, startErr)
		}
		b.loop.Kick()
		return err
	}), nil
}

// stopAndWait stops a guest in an orderly way and returns when nothing of it
// runs.
func (b backend) stopAndWait(ctx context.Context, g *vps.Guest) error {
	ctx, cancel := context.WithTimeout(ctx, g.StopDeadline()+made)
	defer cancel()
	asked := time.Now()
	if _, err := b.state.Stop(ctx, g.Spec.Name, 0, false, false); err != nil {
		return err
	}
	b.loop.Kick()
	err := b.await(ctx, func(s reconcile.Snapshot) bool {
		return s.Loaded.After(asked) && !s.Observed.Guests[g.ID].Running()
	})
	if err != nil {
		return vps.Wrap(vps.CodeTimeout, err, "the guest %s did not stop", g.Spec.Name)
	}
	return nil
}

func (b backend) DeleteSnapshot(ctx context.Context, name, snapshot string) error {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return err
	}
	return b.volumes.DeleteSnapshot(ctx, g.ID, snapshot)
}

// event keeps what happened, for people.
func (b backend) event(ctx context.Context, guest string, kind, message string) {
	if _, err := b.db.AddEvent(ctx, vps.Event{Time: time.Now(), Guest: guest, Kind: kind, Message: message}); err != nil {
		b.log.WarnContext(ctx, "an event could not be kept", "guest", guest, "error", err)
	}
}
