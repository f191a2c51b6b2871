package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sublet/internal/api"
	"sublet/internal/fsusage"
	"sublet/internal/meter"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// usageEvery is how often guests' disks are looked at: a look takes well under
// a millisecond for each. The first comes soon after the start, once the loop
// knows what runs.
const usageEvery = 5 * time.Minute

// look reads the disk in a file or device for the command line.
func look(ctx context.Context, path string, backing, devices []string) (vps.DiskUsage, error) {
	return fsusage.Look(ctx, path, fsusage.Options{Backing: backing, Devices: devices})
}

// watchUsage looks at all disks from time to time until ctx ends, keeps what
// it saw, and tells of thresholds that were passed.
func (p *parts) watchUsage(ctx context.Context) error {
	b := backend{p}
	b.seen(ctx)
	timer := time.NewTicker(usageEvery)
	defer timer.Stop()
	for {
		if err := b.sampleDisks(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "the disks' usage cannot be kept", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
}

// sampleDisks looks at all disks once.
func (b backend) sampleDisks(ctx context.Context) error {
	host, err := b.state.Host(ctx)
	if err != nil {
		return err
	}
	var samples []vps.DiskSample
	known := map[string]string{} // IDs to names
	usage := map[string][]vps.DiskUsage{}
	for i := range host.Guests {
		g := &host.Guests[i]
		known[g.ID] = g.Spec.Name
		disks, err := b.disksOf(ctx, g)
		if err != nil {
			return err
		}
		usage[g.Spec.Name] = disks
		for _, u := range disks {
			samples = append(samples, u.Samples(g.ID)...)
		}
	}
	b.fill.Set(usage)
	err = b.db.AddDiskSamples(ctx, samples, func(id string) bool { _, ok := known[id]; return ok })
	return errors.Join(err, b.tellLevels(ctx, host.Settings.DiskThresholds, samples, known))
}

// tellLevels makes an event of each threshold that was passed since the last
// look, by whichever daemon.
func (b backend) tellLevels(ctx context.Context, thresholds []int, samples []vps.DiskSample, names map[string]string) error {
	levels, err := b.db.DiskLevels(ctx)
	if err != nil {
		return err
	}
	before := map[sqlite.DiskLevel]int{}
	for _, l := range levels {
		level := l.Level
		l.Level = 0
		before[l] = level
	}
	for _, s := range samples {
		for _, x := range []struct {
			what    string
			percent float64
			left    string
		}{
			{"blocks", s.UsedPercent(), s.Available.String() + " are free"},
			{"inodes", s.InodesPercent(), fmt.Sprintf("%d inodes are free, so only so many more files can be made", s.FreeInodes)},
		} {
			l := sqlite.DiskLevel{GuestID: s.GuestID, Disk: s.Disk, Part: s.Part, What: x.what}
			was := before[l]
			if l.Level = meter.Level(thresholds, x.percent, was); l.Level == was {
				continue
			}
			var ev *vps.Event
			if l.Level > was {
				ev = &vps.Event{
					Guest: names[s.GuestID], Kind: vps.EventFilling, Time: s.At,
					Message: fmt.Sprintf("%s is %.0f %% full (%s): %s", diskName(s.Disk, s.Part), x.percent, x.what, x.left),
				}
			}
			if err := b.db.SetDiskLevel(ctx, l, ev); err != nil {
				return err
			}
		}
	}
	return nil
}

// diskName is a filesystem's name for people: "the disk data", "partition 2 of
// the disk root".
func diskName(disk string, part int) string {
	if part == 0 {
		return "the disk " + disk
	}
	return fmt.Sprintf("partition %d of the disk %s", part, disk)
}

// disksOf looks at all disks of one guest. What is wrong with a disk stands in
// its report; the error is ctx's only.
func (b backend) disksOf(ctx context.Context, g *vps.Guest) ([]vps.DiskUsage, error) {
	v, err := b.volumes.Get(ctx, g.ID)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		u := vps.DiskUsage{Guest: g.Spec.Name, Disk: api.RootDisk, At: time.Now().UTC(), Parts: []vps.DiskPart{}, Error: vps.ErrorMessage(err)}
		return []vps.DiskUsage{u}, nil
	}
	s, _ := b.loop.Snapshot()
	running := s.Observed.Guests[g.ID].Running()
	disks := append([]vps.DataVolume{rootOf(v)}, v.Data...)
	var all []vps.DiskUsage
	for i, d := range disks {
		o := fsusage.Options{Format: vps.DiskRaw, Live: running}
		if d.Disk.Backing != "" {
			o.Format, o.Backing = vps.DiskCOW, []string{d.Disk.Backing}
		}
		for j, other := range disks {
			if i != j && other.Disk.Backing == "" {
				o.Devices = append(o.Devices, other.Disk.Path)
			}
		}
		u, err := fsusage.Look(ctx, d.Disk.Path, o)
		if err != nil && len(o.Devices) > 0 && ctx.Err() == nil {
			// It may be one of the others that cannot be read.
			o.Devices = nil
			u, err = fsusage.Look(ctx, d.Disk.Path, o)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			b.log.DebugContext(ctx, "a disk cannot be read", "guest_id", g.ID, "disk", d.Name, "error", err)
			u = vps.DiskUsage{Path: d.Disk.Path, At: time.Now().UTC(), Parts: []vps.DiskPart{}, Error: vps.ErrorMessage(err)}
		}
		// A thin logical volume takes less than its size, and an overlay is as
		// long as its image.
		u.Size = d.Size
		u.Guest, u.Disk, u.Running, u.Allocated = g.Spec.Name, d.Name, running, d.Used
		all = append(all, u)
	}
	return all, nil
}

// guestsNamed returns the guest of this name, or all of them for "".
func (b backend) guestsNamed(ctx context.Context, name string) ([]vps.Guest, error) {
	if name == "" {
		host, err := b.state.Host(ctx)
		return host.Guests, err
	}
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return nil, err
	}
	return []vps.Guest{*g}, nil
}

// DiskUsage looks at the disks of a guest, or of all for "".
func (b backend) DiskUsage(ctx context.Context, guest string) ([]vps.DiskUsage, error) {
	guests, err := b.guestsNamed(ctx, guest)
	if err != nil {
		return nil, err
	}
	b.seen(ctx)
	var all []vps.DiskUsage
	for i := range guests {
		disks, err := b.disksOf(ctx, &guests[i])
		if err != nil {
			return nil, err
		}
		all = append(all, disks...)
	}
	return all, nil
}

// DiskForecast tells when the disks of a guest, or of all for "", fill up.
func (b backend) DiskForecast(ctx context.Context, guest string) ([]vps.DiskForecast, error) {
	guests, err := b.guestsNamed(ctx, guest)
	if err != nil {
		return nil, err
	}
	var all []vps.DiskForecast
	for _, g := range guests {
		samples, err := b.db.DiskSamples(ctx, g.ID, time.Now().Add(-meter.ForecastWindow))
		if err != nil {
			return nil, err
		}
		if len(samples) == 0 {
			f := meter.Forecast(nil)
			f.Guest, f.Disk = g.Spec.Name, api.RootDisk
			all = append(all, f)
		}
		for len(samples) > 0 {
			n := 1 // of one filesystem; they follow each other
			for n < len(samples) && samples[n].Disk == samples[0].Disk && samples[n].Part == samples[0].Part {
				n++
			}
			f := meter.Forecast(samples[:n])
			f.Guest, f.Disk, f.Part = g.Spec.Name, samples[0].Disk, samples[0].Part
			all = append(all, f)
			samples = samples[n:]
		}
	}
	return all, nil
}

// DiskHistory returns what is kept of a guest's disks since a time.
func (b backend) DiskHistory(ctx context.Context, guest string, since time.Time) ([]vps.DiskSample, error) {
	_, g, err := b.guest(ctx, guest)
	if err != nil {
		return nil, err
	}
	return b.db.DiskSamples(ctx, g.ID, since)
}
