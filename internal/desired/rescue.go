package desired

import (
	"context"

	"sublet/internal/vps"
)

// Rescue asks for a guest to boot the rescue system. r.Boots and r.Power are
// filled in here. vps.CodeConflict: it is in rescue already.
func (s *State) Rescue(ctx context.Context, name string, r vps.Rescue, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(c *contents, g *vps.Guest) error {
		if err := r.Validate(s.now()); err != nil {
			return err
		}
		if g.Rescue != nil {
			return vps.Errorf(vps.CodeConflict, "%s is in rescue already, until %s; end that with `sublet rescue %s --end`", name, g.Rescue.Until.UTC().Format("2006-01-02 15:04 MST"), name)
		}
		rescue := r
		rescue.Boots, rescue.Power = g.Boots+1, g.Spec.Power
		g.Rescue = &rescue
		return s.powerOn(ctx, c, g)
	})
}

// EndRescue takes a guest back to what it was before. only, when it is not
// nil, tells whether this is the rescue that is meant.
func (s *State) EndRescue(ctx context.Context, name string, only func(vps.Rescue) bool, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(c *contents, g *vps.Guest) error {
		if g.Rescue == nil {
			return vps.Errorf(vps.CodeConflict, "%s is not in rescue", name)
		}
		if only != nil && !only(*g.Rescue) {
			return vps.Errorf(vps.CodeConflict, "%s is in another rescue by now", name)
		}
		power := g.Rescue.Power
		g.Rescue = nil
		if power == vps.PowerRunning {
			return s.powerOn(ctx, c, g)
		}
		g.Spec.Power, g.Abrupt, g.StopWithin = vps.PowerStopped, false, 0
		return nil
	})
}

// Reinstall asks for the disk that a guest boots from to be made anew, from the
// newest version of an image; "" is the guest's own.
func (s *State) Reinstall(ctx context.Context, name, image string, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(c *contents, g *vps.Guest) error {
		if g.Rescue != nil {
			return vps.Errorf(vps.CodeConflict, "%s is in rescue; end that first with `sublet rescue %s --end`", name, name)
		}
		if image == "" {
			image = g.Spec.Image
		}
		img, err := s.facts.Image(ctx, image)
		if err != nil {
			return err
		}
		g.Spec.Image, g.ImageID = image, img.ID
		g.Generation++
		if g.Spec.Power == vps.PowerRunning {
			if err := s.powerOn(ctx, c, g); err != nil {
				return err
			}
		}
		return s.checkDisk(ctx, name)
	})
}

// KeepOld takes a reinstallation back whose disk could not be made: was is the
// guest as it was before, and asked as it has been since. A guest that was
// edited or deleted meanwhile keeps that.
func (s *State) KeepOld(ctx context.Context, was, asked vps.Guest) error {
	_, _, err := s.edit(ctx, false, func(c *contents) error {
		for i := range c.host.Guests {
			if g := &c.host.Guests[i]; g.ID == asked.ID && g.Generation == asked.Generation {
				g.Spec.Image, g.ImageID, g.Generation = was.Spec.Image, was.ImageID, was.Generation
			}
		}
		return nil
	})
	return err
}
