package desired

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"sublet/internal/hostfile"
	"sublet/internal/vps"
)

// Edited is what an edit did, or with a dry run would do.
type Edited struct {
	Before, After vps.Host
	// Guest is the ID of the guest that was edited; empty for edits of more.
	Guest string
}

// Lines says what changed, one line each.
func (e Edited) Lines() []string { return describe(e.Before, e.After) }

// newID returns an ID that was never used: 80 random bits, in letters that
// may stand in a file name.
func newID() string {
	return strings.ToLower(rand.Text()[:16])
}

// Create adds a guest. What shape returns is its spec; address and ports that
// it leaves open are given out.
func (s *State) Create(ctx context.Context, name string, shape func(spec vps.GuestSpec) (vps.GuestSpec, error), dryRun bool) (Edited, error) {
	id := s.newID()
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		return s.add(ctx, c, id, name, shape)
	})
	return Edited{before, after, id}, err
}

// Update changes the spec of a guest. Name, address and port block stay.
func (s *State) Update(ctx context.Context, name string, shape func(spec vps.GuestSpec) (vps.GuestSpec, error), dryRun bool) (Edited, error) {
	var id string
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		g, err := find(c, name)
		if err != nil {
			return err
		}
		id = g.ID
		return s.reshape(ctx, c, g, shape)
	})
	return Edited{before, after, id}, err
}

// Start asks for a guest to run. One that is asked to run already is left
// alone, unless it ended by itself: running says what is observed.
func (s *State) Start(ctx context.Context, name string, running, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(c *contents, g *vps.Guest) error {
		if g.Spec.Power == vps.PowerRunning && running {
			return nil
		}
		return s.powerOn(ctx, c, g)
	})
}

// Restart asks for a new boot: of a running guest after an orderly shutdown.
func (s *State) Restart(ctx context.Context, name string, within time.Duration, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(c *contents, g *vps.Guest) error {
		if err := s.powerOn(ctx, c, g); err != nil {
			return err
		}
		g.StopWithin = vps.Duration(within)
		return nil
	})
}

func (s *State) powerOn(ctx context.Context, c *contents, g *vps.Guest) error {
	g.Spec.Power, g.Abrupt, g.StopWithin = vps.PowerRunning, false, 0
	g.Boots++
	g.HostBoot = s.facts.HostBoot()
	if err := s.facts.Kernel(ctx, c.host.Settings, g.Spec); err != nil {
		return err
	}
	return s.checkMemory(ctx, c)
}

// Stop asks for an orderly shutdown; abrupt for the power switch. A deadline
// of zero means the guest's own.
func (s *State) Stop(ctx context.Context, name string, within time.Duration, abrupt, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(_ *contents, g *vps.Guest) error {
		g.Spec.Power, g.Abrupt, g.StopWithin = vps.PowerStopped, abrupt, vps.Duration(within)
		return nil
	})
}

// RemoveDisk takes a data disk away from a guest, with what lies on it.
func (s *State) RemoveDisk(ctx context.Context, name, disk string, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(_ *contents, g *vps.Guest) error {
		left := slices.DeleteFunc(slices.Clone(g.Spec.Disks), func(d vps.DataDisk) bool { return d.Name == disk })
		if len(left) == len(g.Spec.Disks) {
			return vps.Errorf(vps.CodeNotFound, "%s has no data disk %s; `sublet disk list %s` shows all", name, disk, name)
		}
		if g.Spec.Disks = left; len(left) == 0 {
			g.Spec.Disks = nil
		}
		return nil
	})
}

// Delete marks a guest for removal, with its volume and its quota.
func (s *State) Delete(ctx context.Context, name string, dryRun bool) (Edited, error) {
	return s.order(ctx, name, dryRun, func(c *contents, g *vps.Guest) error {
		remove(c, g)
		return nil
	})
}

// remove marks a guest for removal. Its domains are free at once, and its quota is
// gone; its address and block are free only when it is gone.
func remove(c *contents, g *vps.Guest) {
	dropQuota(c, vps.QuotaGuest, g.Spec.Name)
	g.Deleting, g.Abrupt, g.Spec.Power, g.Spec.Domains = true, true, vps.PowerStopped, nil
}

func (s *State) order(ctx context.Context, name string, dryRun bool, change func(*contents, *vps.Guest) error) (Edited, error) {
	var id string
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		g, err := find(c, name)
		if err != nil {
			return err
		}
		id = g.ID
		return change(c, g)
	})
	return Edited{before, after, id}, err
}

// Undo marks a guest for removal by its ID: the way back for a guest whose
// making failed. Absent is success.
func (s *State) Undo(ctx context.Context, id string) error {
	_, _, err := s.edit(ctx, false, func(c *contents) error {
		for i := range c.host.Guests {
			if c.host.Guests[i].ID == id {
				remove(c, &c.host.Guests[i])
			}
		}
		return nil
	})
	return err
}

// Forget removes the record of a guest whose parts are all gone. Absent is
// success.
func (s *State) Forget(ctx context.Context, id string) error {
	_, _, err := s.edit(ctx, false, func(c *contents) error {
		c.host.Guests = slices.DeleteFunc(c.host.Guests, func(g vps.Guest) bool { return g.ID == id })
		return nil
	})
	return err
}

// PutTenant adds a tenant, or changes one. shape gets the tenant as it is, or
// for a new one with nothing but its name; what it does to name and time of
// creation is not kept.
func (s *State) PutTenant(ctx context.Context, name string, shape func(t vps.Tenant) vps.Tenant) (Edited, error) {
	before, after, err := s.edit(ctx, false, func(c *contents) error {
		old := c.host.Tenant(name)
		if old == nil {
			if err := checkNewTenant(c, name); err != nil {
				return err
			}
			c.host.Tenants = append(c.host.Tenants, vps.Tenant{Name: name, Created: s.now().UTC()})
			old = &c.host.Tenants[len(c.host.Tenants)-1]
		}
		t := shape(*old)
		t.Name, t.Created = old.Name, old.Created
		*old = t
		return nil
	})
	return Edited{Before: before, After: after}, err
}

// checkNewTenant refuses a tenant while there are guests of one of that name who
// is gone: they would become the new one's, with what is counted of them.
func checkNewTenant(c *contents, name string) error {
	for i := range c.host.Guests {
		if g := &c.host.Guests[i]; g.Spec.Tenant == name {
			return vps.Errorf(vps.CodeConflict, "the guest %s of the old tenant %s is still being deleted; try again in a moment", g.Spec.Name, name)
		}
	}
	return nil
}

// DeleteTenant removes a tenant who has no guests but such as are being deleted,
// with its quota.
func (s *State) DeleteTenant(ctx context.Context, name string) (Edited, error) {
	before, after, err := s.edit(ctx, false, func(c *contents) error {
		if c.host.Tenant(name) == nil {
			return vps.NoTenant(name)
		}
		return removeTenant(c, name)
	})
	return Edited{Before: before, After: after}, err
}

func removeTenant(c *contents, name string) error {
	if name == vps.DefaultTenant {
		return vps.Errorf(vps.CodeDenied, "the tenant %s is the host's owner and stays", name)
	}
	for i := range c.host.Guests {
		if g := &c.host.Guests[i]; g.Spec.Tenant == name && !g.Deleting {
			return vps.Errorf(vps.CodeConflict, "the tenant %s still has the guest %s; delete it or give it to another tenant first", name, g.Spec.Name)
		}
	}
	dropQuota(c, vps.QuotaTenant, name)
	c.host.Tenants = slices.DeleteFunc(c.host.Tenants, func(t vps.Tenant) bool { return t.Name == name })
	return nil
}

// Apply makes the host what a host file says. Guests, tenants and quotas that it
// does not name stay, unless prune asks for their removal.
func (s *State) Apply(ctx context.Context, file io.Reader, prune, dryRun bool) (Edited, error) {
	f, err := hostfile.Decode(file)
	if err != nil {
		return Edited{}, err
	}
	ids := map[string]string{} // kept for every try, so that a dry run and a retry agree
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		return s.applyFile(ctx, c, f, prune, ids)
	})
	return Edited{Before: before, After: after}, f.Locate(err)
}

func (s *State) applyFile(ctx context.Context, c *contents, f hostfile.File, prune bool, ids map[string]string) error {
	settings, err := f.MergeSettings(c.host.Settings)
	if err != nil {
		return err
	}
	if len(settings.DNS) == 0 {
		settings.DNS = nil // as where it was never set, or an export would differ
	}
	if len(settings.Services) == 0 {
		settings.Services = nil
	}
	if len(settings.Edge.TrustedProxies) == 0 {
		settings.Edge.TrustedProxies = nil
	}
	if len(settings.Edge.Resolvers) == 0 {
		settings.Edge.Resolvers = nil
	}
	if err := s.checkSettings(ctx, c, settings); err != nil {
		return err
	}
	c.host.Settings = settings
	for _, t := range f.Tenants {
		if old := c.host.Tenant(t.Name); old != nil {
			*old = t.Merge(*old)
		} else if err := checkNewTenant(c, t.Name); err != nil {
			return err
		} else {
			c.host.Tenants = append(c.host.Tenants, t.Merge(vps.Tenant{Name: t.Name, Created: s.now().UTC()}))
		}
	}
	named := map[string]bool{}
	for _, gf := range f.Guests {
		named[gf.Name] = true
		if err := s.applyGuest(ctx, c, gf, ids); err != nil {
			return gf.Locate(err)
		}
	}
	if prune {
		if err := pruneFile(c, f, named); err != nil {
			return err
		}
	}
	for _, q := range f.Quotas {
		if _, err := setQuota(c, q.Scope, q.Name, s.now(), q.Merge); err != nil {
			return q.Locate(err)
		}
	}
	return nil
}

// checkSettings checks new settings against the host and what is on it.
func (s *State) checkSettings(ctx context.Context, c *contents, settings vps.Settings) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	was := c.host.Settings
	// One that was known once must not stand in the way of other edits.
	if settings.Timezone != was.Timezone {
		if err := vps.ValidZone("settings.timezone", settings.Timezone); err != nil {
			return err
		}
		if err := sameMonth(c, settings.Timezone, s.now()); err != nil {
			return err
		}
	}
	if err := s.facts.Network(ctx, was, settings); err != nil {
		return err
	}
	if settings.Kernel != was.Kernel {
		if err := s.checkDefaultKernel(ctx, c, settings); err != nil {
			return err
		}
	}
	if settings.FirstUID != was.FirstUID && len(c.host.Guests) > 0 {
		return vps.Errorf(vps.CodeConflict, "settings.first_uid cannot change from %d to %d while there are guests: their files belong to uids that follow from it", was.FirstUID, settings.FirstUID)
	}
	return nil
}

// sameMonth refuses another time zone while the month there is not that of the
// host: a month's bill is made for good when the month ends. A host without
// guests and without a price has nothing to bill.
func sameMonth(c *contents, zone string, now time.Time) error {
	was := c.host.Settings.Timezone
	before, after := vps.MonthOf(now.In(vps.Zone(was))), vps.MonthOf(now.In(vps.Zone(zone)))
	if before == after || len(c.host.Guests) == 0 && !c.host.Settings.Price.Set() {
		return nil
	}
	why, behind, month := "end early, and its bill be made for good", was, before
	if after.Compare(before) < 0 {
		why, behind, month = "go on after its bill was made", zone, after
	}
	return vps.Errorf(vps.CodeConflict, "settings.timezone cannot change from %s to %s now: it is %s in one and %s in the other, so %s would %s; change it after %s, when it is %s in both",
		was, zone, before.Title(), after.Title(), month.Title(), why, month.Next().Start(vps.Zone(behind)).Format("2006-01-02 15:04 MST"), month.Next().Title())
}

// checkDefaultKernel refuses a default kernel that is not there, or that a
// guest which follows the default could not boot.
func (s *State) checkDefaultKernel(ctx context.Context, c *contents, settings vps.Settings) error {
	if err := s.facts.Kernel(ctx, settings, vps.NewGuestSpec("")); err != nil {
		return err
	}
	for i := range c.host.Guests {
		g := &c.host.Guests[i]
		if g.Spec.Kernel != "" || g.Deleting {
			continue
		}
		if err := s.facts.Kernel(ctx, settings, g.Spec); err != nil {
			return vps.Wrap(vps.ErrorCode(err), err, "guest %s follows the default kernel and could not boot with it: %s", g.Spec.Name, vps.ErrorMessage(err))
		}
	}
	return nil
}

// UseKernel makes a kernel the host's default, by its name; "" means the one
// that is installed. Guests which follow the default boot it at their next
// start.
func (s *State) UseKernel(ctx context.Context, name string, dryRun bool) (Edited, error) {
	return s.SetSettings(ctx, func(settings *vps.Settings) { settings.Kernel = name }, dryRun)
}

// SetSettings changes the host's settings. shape must not keep them, nor change
// what is behind a pointer or in a slice.
func (s *State) SetSettings(ctx context.Context, shape func(*vps.Settings), dryRun bool) (Edited, error) {
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		settings := c.host.Settings
		shape(&settings)
		if err := s.checkSettings(ctx, c, settings); err != nil {
			return err
		}
		c.host.Settings = settings
		return nil
	})
	return Edited{Before: before, After: after}, err
}

// SetPrice changes what guests are billed by. What shape returns is the price.
func (s *State) SetPrice(ctx context.Context, shape func(vps.Price) vps.Price, dryRun bool) (Edited, error) {
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		c.host.Settings.Price = shape(c.host.Settings.Price)
		return c.host.Settings.Price.Validate("settings.price")
	})
	return Edited{Before: before, After: after}, err
}

// pruneFile removes what the file does not name. A file without a list of
// guests, of tenants or of quotas says nothing about them, and none is removed.
// Guests of an audit are the audit's own.
func pruneFile(c *contents, f hostfile.File, named map[string]bool) error {
	for i := range c.host.Guests {
		if g := &c.host.Guests[i]; f.Guests != nil && !named[g.Spec.Name] && g.Spec.Probe == "" {
			remove(c, g)
		}
	}
	for _, t := range slices.Clone(c.host.Tenants) {
		listed := slices.ContainsFunc(f.Tenants, func(o hostfile.Tenant) bool { return o.Name == t.Name })
		if f.Tenants != nil && !listed && t.Name != vps.DefaultTenant {
			if err := removeTenant(c, t.Name); err != nil {
				return err
			}
		}
	}
	if f.Quotas != nil {
		c.host.Quotas = slices.DeleteFunc(c.host.Quotas, func(q vps.Quota) bool { return f.Quota(q.Scope, q.Name) == nil })
	}
	return nil
}

func (s *State) applyGuest(ctx context.Context, c *contents, gf hostfile.Guest, ids map[string]string) error {
	g := c.host.Guest(gf.Name)
	if g == nil {
		if ids[gf.Name] == "" {
			ids[gf.Name] = s.newID()
		}
		return s.add(ctx, c, ids[gf.Name], gf.Name, gf.Merge)
	}
	if g.Deleting {
		return vps.Errorf(vps.CodeConflict, "the old guest %s is still being deleted; try again in a moment", gf.Name)
	}
	if g.Spec.Probe != "" {
		return vps.Errorf(vps.CodeConflict, "the name %s belongs to a guest of `sublet net audit`, which goes with it; wait for the end of the audit, or delete it", gf.Name)
	}
	was := g.Spec.Power
	if err := s.reshape(ctx, c, g, gf.Merge); err != nil {
		return err
	}
	switch {
	case was == g.Spec.Power:
		return nil
	case g.Spec.Power == vps.PowerRunning:
		return s.powerOn(ctx, c, g)
	}
	g.Abrupt, g.StopWithin = false, 0
	return nil
}

// Export writes the host as a host file that Apply reads. Guests that are on
// their way out, and those of an audit, are not part of it.
func (s *State) Export(ctx context.Context, w io.Writer) error {
	host, err := s.Host(ctx)
	if err != nil {
		return err
	}
	host.Guests = slices.DeleteFunc(host.Guests, func(g vps.Guest) bool { return g.Deleting || g.Spec.Probe != "" })
	host.Quotas = slices.DeleteFunc(host.Quotas, func(q vps.Quota) bool {
		return q.Scope == vps.QuotaGuest && host.Guest(q.Name) == nil
	})
	return hostfile.Encode(w, host)
}

func find(c *contents, name string) (*vps.Guest, error) {
	g := c.host.Guest(name)
	switch {
	case g == nil:
		return nil, NoGuest(name)
	case g.Deleting:
		return nil, vps.Errorf(vps.CodeConflict, "the guest %s is being deleted", name)
	}
	return g, nil
}

// NoGuest is the error for a guest that does not exist.
func NoGuest(name string) error {
	if err := vps.ValidName("", name); err != nil {
		return errors.Join(vps.Errorf(vps.CodeNotFound, "there is no guest %q; `sublet list` shows all", name), err)
	}
	return vps.Errorf(vps.CodeNotFound, "there is no guest %s; `sublet list` shows all", name)
}
