package desired

import (
	"context"

	"sublet/internal/vps"
)

// StoppedByQuota notes that a quota stops a guest in the life that boots names,
// so that Resume starts it again. A guest that was ordered to do something else
// meanwhile, or is gone, is left alone.
func (s *State) StoppedByQuota(ctx context.Context, id string, boots int64) error {
	_, _, err := s.edit(ctx, false, func(c *contents) error {
		for i := range c.host.Guests {
			if g := &c.host.Guests[i]; g.ID == id && g.Boots == boots && g.Spec.Power == vps.PowerRunning {
				g.QuotaStopped = boots
			}
		}
		return nil
	})
	return err
}

// Resume orders those guests to start that a quota has stopped, and that it
// does not stop any more. One that was stopped, started or deleted meanwhile is
// not ordered again, and neither is one without autostart when the host was
// booted since. It returns their names.
func (s *State) Resume(ctx context.Context, stopped func(g *vps.Guest) bool) ([]string, error) {
	var names []string
	_, _, err := s.edit(ctx, false, func(c *contents) error {
		names = nil
		for i := range c.host.Guests {
			g := &c.host.Guests[i]
			if g.QuotaStopped == 0 || stopped(g) {
				continue
			}
			here := g.HostBoot == s.facts.HostBoot() || g.Spec.Autostart
			if g.QuotaStopped == g.Boots && g.Spec.Power == vps.PowerRunning && here {
				g.Boots++
				g.HostBoot, g.StopWithin = s.facts.HostBoot(), 0
				names = append(names, g.Spec.Name)
			}
			g.QuotaStopped = 0
		}
		return nil
	})
	return names, err
}
