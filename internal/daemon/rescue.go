package daemon

import (
	"context"
	"time"

	"sublet/internal/api"
	"sublet/internal/disk"
	"sublet/internal/reconcile"
	"sublet/internal/seed"
	"sublet/internal/vps"
)

// rescues keeps the disks that rescue systems boot from: overlays on the
// rescue system's image, in a folder of their own, thrown away after use.
type rescues struct {
	*parts
	store *disk.Store
}

func (r rescues) Create(ctx context.Context, g vps.Guest, uid uint32) error {
	img, err := r.images.ByID(ctx, g.Rescue.ImageID)
	if err != nil {
		return err
	}
	_, err = r.store.Create(ctx, g.RescueID(), img, vps.VolumeSpec{Size: vps.RescueDisk, UID: uid})
	return err
}

func (r rescues) Delete(ctx context.Context, id string) error { return r.store.Delete(ctx, id) }

func (r rescues) List(ctx context.Context) ([]string, error) {
	volumes, err := r.store.List(ctx)
	ids := make([]string, 0, len(volumes))
	for _, v := range volumes {
		ids = append(ids, v.GuestID)
	}
	return ids, err
}

// machine turns the machine of a guest into that of its rescue: the same, but
// for the disk that it boots from. Its own disks come behind, with the one
// that it usually boots from first.
func (r rescues) machine(ctx context.Context, g vps.Guest, m vps.Machine) (vps.Machine, error) {
	img, err := r.images.ByID(ctx, g.Rescue.ImageID)
	if err != nil {
		return m, err
	}
	v, err := r.store.Check(ctx, g.RescueID(), img, m.UID)
	if err != nil {
		return m, err
	}
	m.Data = append([]vps.Disk{m.Root}, m.Data...)
	m.Root, m.DiskLimit = v.Disk, max(m.DiskLimit, v.Limit)
	return m, nil
}

// rescueSeed turns the seed of a guest into that of its rescue: other keys, no
// password, and the guest's disks by their names.
func rescueSeed(g vps.Guest, s seed.Seed) seed.Seed {
	s.SSHKeys, s.RootPassword = g.Rescue.Keys, ""
	s.Hostname = "rescue"
	s.DiskSize, s.Swap = vps.RescueDisk, 0
	s.Disks = []seed.Disk{{Name: api.RootDisk, Device: vps.DataDevice(g.Spec.Driver, 0), Size: g.Spec.Disk}}
	for i, d := range g.Spec.Disks {
		s.Disks = append(s.Disks, seed.Disk{Name: d.Name, Device: vps.DataDevice(g.Spec.Driver, i+1), Size: d.Size})
	}
	return s
}

// Rescue implements api.Rescuer.
func (b backend) Rescue(ctx context.Context, name string, r api.RescueGuest, dryRun bool) (api.Change, error) {
	if err := b.quotas.refuse(ctx, name); err != nil {
		return api.Change{}, err
	}
	img, err := b.images.Get(ctx, vps.RescueImage)
	if err != nil {
		return api.Change{}, err
	}
	lasts := time.Duration(r.For)
	if lasts == 0 {
		lasts = vps.DefaultRescue
	}
	e, err := b.state.Rescue(ctx, name, vps.Rescue{ImageID: img.ID, Keys: r.Keys, Until: time.Now().Add(lasts).UTC().Truncate(time.Second)}, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	return b.change(ctx, e, dryRun)
}

// EndRescue implements api.Rescuer.
func (b backend) EndRescue(ctx context.Context, name string, dryRun bool) (api.Change, error) {
	e, err := b.state.EndRescue(ctx, name, nil, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	return b.change(ctx, e, dryRun)
}

// watchRescues ends each rescue when its time is over, until ctx ends.
func (p *parts) watchRescues(ctx context.Context) error {
	const never = 24 * time.Hour
	for {
		s, changed := p.loop.Snapshot()
		next := never
		for i := range s.Host.Guests {
			g := &s.Host.Guests[i]
			if g.Rescue == nil || g.Deleting {
				continue
			}
			if left := time.Until(g.Rescue.Until); left > 0 {
				next = min(next, left)
				continue
			}
			boots := g.Rescue.Boots
			_, err := p.state.EndRescue(ctx, g.Spec.Name, func(r vps.Rescue) bool { return r.Boots == boots && !time.Now().Before(r.Until) }, false)
			switch {
			case err == nil:
				p.log.InfoContext(ctx, "the time of a rescue is over", "guest", g.Spec.Name)
				backend{p}.event(ctx, g.Spec.Name, vps.EventRescue, "the time of its rescue is over")
				p.loop.Kick()
			case vps.ErrorCode(err) != vps.CodeConflict && vps.ErrorCode(err) != vps.CodeNotFound && ctx.Err() == nil:
				p.log.ErrorContext(ctx, "a rescue could not be ended", "guest", g.Spec.Name, "error", err)
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// replacing bounds how long a reinstallation may take beyond the guest's
// shutdown: its disk is a copy of the image where the host can do no better.
const replacing = 10 * time.Minute

// Reinstall implements api.Rescuer. What was asked for is kept before anything
// is done, and so survives the daemon; a disk that cannot be made leaves the
// old one, and the guest as it was.
func (b backend) Reinstall(ctx context.Context, name, image string) (api.Operation, error) {
	asked := time.Now()
	e, err := b.state.Reinstall(ctx, name, image, false)
	if err != nil {
		return api.Operation{}, err
	}
	was, now := *e.Before.Guest(name), *e.After.Guest(name)
	b.loop.Kick()
	return b.operations.start(b.lifetime, "reinstall", name, func(ctx context.Context, progress func(vps.Progress)) error {
		progress(vps.Progress{Phase: "stopping the guest and making its disk", Fraction: -1})
		wait, cancel := context.WithTimeout(ctx, now.StopDeadline()+replacing)
		defer cancel()
		var failure error
		err := b.await(wait, func(s reconcile.Snapshot) bool {
			st, known := s.Status[now.ID]
			v := s.Observed.Guests[now.ID].Volume
			switch {
			case s.Loaded.Before(asked):
				return false
			case !known:
				failure = vps.Errorf(vps.CodeNotFound, "the guest %s was deleted meanwhile", name)
			case v != nil && v.Generation >= now.Generation:
			case st.Message != "":
				failure = &vps.Error{Code: st.Code, Message: st.Message}
			default:
				return false
			}
			return true
		})
		if err == nil {
			err = failure
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		if undo := b.state.KeepOld(context.WithoutCancel(ctx), was, now); undo != nil {
			return vps.Wrap(vps.ErrorCode(err), undo, "%s; it is tried again until it works", vps.ErrorMessage(err))
		}
		b.loop.Kick()
		return vps.Wrap(vps.ErrorCode(err), err, "%s; %s keeps the disk that it had", vps.ErrorMessage(err), name)
	}), nil
}
