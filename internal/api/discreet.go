package api

import (
	"context"
	"net/netip"
	"slices"

	"sublet/internal/vps"
)

// discreet wraps whatever observes guests so that a password's hash cannot
// reach any handler, and lists are empty instead of null. NewServer puts it
// round the backend; handlers never see the backend itself.
type discreet struct {
	Observed
}

func (d discreet) Guests(ctx context.Context) ([]Guest, error) {
	guests, err := d.Observed.Guests(ctx)
	// The backend may keep what it returned: change a copy.
	guests = slices.Clone(guests)
	for i := range guests {
		guests[i] = shown(guests[i])
	}
	return guests, err
}

func (d discreet) Guest(ctx context.Context, name string) (Guest, error) {
	g, err := d.Observed.Guest(ctx, name)
	return shown(g), err
}

func (d discreet) Wait(ctx context.Context, name string, what WaitFor) (Guest, error) {
	g, err := d.Observed.Wait(ctx, name, what)
	return shown(g), err
}

func (d discreet) Host(ctx context.Context) (HostInfo, error) {
	h, err := d.Observed.Host(ctx)
	h.Schema = SchemaVersion
	h.Uplinks, h.Pending = notNil(h.Uplinks), notNil(h.Pending)
	h.Settings.DNS = notNil(h.Settings.DNS)
	return h, err
}

// shown is a guest as anybody may see it.
func shown(g Guest) Guest {
	g.Schema = SchemaVersion
	g.Spec.RootPassword, g.Spec.Probe = "", ""
	g.Spec.SSHKeys = notNil(g.Spec.SSHKeys)
	g.Spec.DNS = notNil[netip.Addr](g.Spec.DNS)
	g.Spec.Forwards = notNil(g.Spec.Forwards)
	return g
}

func shownChange(c Change) Change {
	c.Schema = SchemaVersion
	c.Edits, c.Steps = notNil(c.Edits), notNil(c.Steps)
	return c
}

func shownImage(i vps.Image) vps.Image {
	i.Packages = notNil(i.Packages)
	return i
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
