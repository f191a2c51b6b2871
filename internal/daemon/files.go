package daemon

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"sublet/internal/api"
	"sublet/internal/appliance"
	"sublet/internal/appliance/inside"
	"sublet/internal/guest"
	"sublet/internal/vps"
)

// applianceDir is where appliances' run folders are, below the daemon's.
const applianceDir = "appliances"

// newAppliances makes what works on guests' filesystems. Its driver knows the
// appliances and no guest, so that neither is taken for the other.
func (p *parts) newAppliances() *appliance.Host {
	root := filepath.Join(p.config.RunDir, applianceDir)
	driver := driverIn(p.config, p.log, root, "sublet-appliance-")
	return appliance.New(appliance.Options{
		Driver: driver, Kernel: p.hostKernel, RunRoot: root, Log: p.log,
		Console: func(ctx context.Context, in vps.Instance) (io.ReadWriteCloser, error) {
			return driver.Console(ctx, in, guest.ConsoleOptions{Write: true})
		},
	})
}

// onDisk lets work have a disk of a guest that does not run, and keeps the
// guest from starting meanwhile. disk is a data disk's name, or empty or
// api.RootDisk for the one that it boots from.
func (b backend) onDisk(ctx context.Context, name, disk, instead string, work func(context.Context, appliance.Spec) error) error {
	host, g, err := b.guest(ctx, name)
	if err != nil {
		return err
	}
	held, release, err := b.loop.Hold(ctx, g.ID)
	if err != nil {
		return err
	}
	defer release()
	in, err := b.instance(held, *g)
	if err != nil {
		return err
	}
	if in != nil {
		return vps.Errorf(vps.CodeConflict, "%s runs, and its disk is its own while it does; stop it first with `sublet stop %s`%s", name, name, instead)
	}
	v, err := b.volumes.Get(held, g.ID)
	if err != nil {
		return err
	}
	var img vps.Image
	if v.Disk.Backing != "" {
		if img, err = b.images.ByID(held, v.ImageID); err != nil {
			return err
		}
	}
	uid := host.Settings.UID(g.Index)
	v, err = b.volumes.Check(held, g.ID, img, uid)
	if err != nil {
		return err
	}
	on := v.Disk
	if disk != "" && disk != api.RootDisk {
		i := slices.IndexFunc(v.Data, func(d vps.DataVolume) bool { return d.Name == disk })
		if i < 0 {
			return vps.Errorf(vps.CodeNotFound, "%s has no disk %q; `sublet show %s` lists those that it has", name, disk, name)
		}
		on = v.Data[i].Disk
	}
	return work(held, appliance.Spec{Disks: []vps.Disk{on}, UID: uid, Limit: v.Limit})
}

// instead says how to copy while a guest runs.
const instead = ", or copy with scp through the port that `sublet ssh --print` shows"

// CopyOut implements api.Files.
func (b backend) CopyOut(ctx context.Context, name string, o api.CopyOptions, w io.Writer) error {
	return b.onDisk(ctx, name, o.Disk, instead, func(ctx context.Context, s appliance.Spec) error {
		return b.appliances.CopyOut(ctx, s, o.Path, w)
	})
}

// CopyIn implements api.Files.
func (b backend) CopyIn(ctx context.Context, name string, o api.CopyOptions, archive io.Reader) error {
	return b.onDisk(ctx, name, o.Disk, instead, func(ctx context.Context, s appliance.Spec) error {
		if o.Unpack {
			return b.appliances.Unpack(ctx, s, o.Path, archive)
		}
		return b.appliances.CopyIn(ctx, s, o.Path, archive)
	})
}

// Check implements api.Files.
func (b backend) Check(ctx context.Context, name string, o api.CheckOptions, w io.Writer) (api.CheckReport, error) {
	// Broken off halfway, a repair may leave more damage than there was.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(b.lifetime, cancel)()
	var report api.CheckReport
	tools, err := b.rescueImage(ctx, w)
	if err != nil {
		return report, err
	}
	err = b.onDisk(ctx, name, o.Disk, "", func(ctx context.Context, s appliance.Spec) error {
		s.Tools = vps.Disk{Path: tools.Path, ReadOnly: true}
		found, err := b.appliances.Check(ctx, s, o.Repair, w)
		report = api.CheckReport{Filesystem: found.Filesystem, Verdict: string(found.Verdict), OK: found.Verdict != inside.Damaged}
		return err
	})
	return report, err
}

// rescueImage returns the newest rescue system, which is built when there is
// none yet. What is done for that is told to w, a line for each phase.
func (b backend) rescueImage(ctx context.Context, w io.Writer) (vps.Image, error) {
	img, err := b.images.Get(ctx, vps.RescueImage)
	if err == nil || vps.ErrorCode(err) != vps.CodeNotFound {
		return img, err
	}
	said := ""
	return b.images.Build(ctx, vps.RescueImage, func(p vps.Progress) {
		if p.Phase != said {
			said = p.Phase
			_, _ = fmt.Fprintf(w, "# building the rescue system, once: %s\n", p.Phase) // the caller may be gone
		}
	})
}
