package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"sublet/internal/hostnet"
	"sublet/internal/keeper"
	"sublet/internal/nft"
	"sublet/internal/probe"
	"sublet/internal/seed"
	"sublet/internal/vps"
)

// firewall is nft as the loop sets it: the uplinks are found at each turn,
// because a host's default route may move.
type firewall struct {
	nft *nft.Firewall
	net *hostnet.Net
}

func (f firewall) Diff(ctx context.Context, n vps.Network) ([]string, error) {
	uplinks, err := f.net.Uplinks(ctx, n.Uplink)
	if err != nil {
		return nil, err
	}
	return f.nft.Diff(ctx, n, uplinks)
}

func (f firewall) Set(ctx context.Context, n vps.Network) error {
	uplinks, err := f.net.Uplinks(ctx, n.Uplink)
	if err != nil {
		return err
	}
	return f.nft.Apply(ctx, n, uplinks)
}

func (f firewall) Watch(ctx context.Context) (<-chan struct{}, error) { return f.nft.Watch(ctx) }

// seeds keeps the disks that tell guests who they are.
type seeds struct {
	*parts
}

func (s seeds) seed(ctx context.Context, host vps.Host, g vps.Guest) seed.Seed {
	var release string
	if k, err := s.kernelOf(ctx, host.Settings, g.Spec); err == nil {
		release = k.Release
	}
	made := seed.For(host.Settings, g, release, s.resolvers())
	if g.Rescue != nil {
		made = rescueSeed(g, made)
	}
	return made
}

func (s seeds) Current(host vps.Host, g vps.Guest) (bool, error) {
	have, err := os.ReadFile(seed.Path(s.seedDir(), g.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	want, err := s.seed(context.Background(), host, g).Bytes()
	return err == nil && bytes.Equal(have, want), err
}

func (s seeds) Write(ctx context.Context, host vps.Host, g vps.Guest) error {
	_, _, err := seed.Set(ctx, s.seedDir(), g.ID, s.seed(ctx, host, g), host.Settings.UID(g.Index))
	return err
}

func (s seeds) Delete(g vps.Guest) error { return seed.Remove(s.seedDir(), g.ID) }

func (p *parts) seedDir() string { return p.config.statePath("seeds") }

// resolvers returns the name servers of guests that have none named.
func (p *parts) resolvers() []netip.Addr { return p.hostnet.Resolvers() }

// machines assembles what the driver is given.
type machines struct {
	*parts
}

func (m machines) Machine(ctx context.Context, host vps.Host, g vps.Guest, v vps.Volume) (vps.Machine, error) {
	k, err := m.kernelOf(ctx, host.Settings, g.Spec)
	if err != nil {
		return vps.Machine{}, err
	}
	if g.Spec.Probe == probe.Jail {
		// A hostile program stands in for the kernel.
		if k.Path, err = m.kernels.Init(); err != nil {
			return vps.Machine{}, err
		}
	}
	logPath := m.logPath(g)
	if err := os.MkdirAll(filepath.Dir(logPath), 0o700); err != nil {
		return vps.Machine{}, fmt.Errorf("make the folder of the console's log: %w", err)
	}
	made := vps.Machine{
		ID: g.ID, Name: g.Spec.Name, Boots: g.Boots, UID: host.Settings.UID(g.Index), Kernel: k, Memory: g.Spec.Memory,
		Isolation: g.Spec.Isolation, CPUs: g.Spec.CPUs,
		Root: v.Disk, Seed: vps.Disk{Path: seed.Path(m.seedDir(), g.ID), ReadOnly: true}, Data: dataDisks(g, v), DiskLimit: v.Limit,
		Resources: g.Spec.Resources,
		Tap:       g.Link(), MAC: g.Spec.MAC(), RunDir: m.runDir(g), LogPath: logPath,
	}
	if g.Rescue != nil {
		return m.rescues.machine(ctx, g, made)
	}
	return made, nil
}

// dataDisks are the guest's extra disks in the order of its spec, which names
// the device that each is.
func dataDisks(g vps.Guest, v vps.Volume) []vps.Disk {
	var disks []vps.Disk
	for _, want := range g.Spec.Disks {
		for _, d := range v.Data {
			if d.Name == want.Name {
				disks = append(disks, d.Disk)
			}
		}
	}
	return disks
}

func (m machines) Clear(g vps.Guest) error {
	// Without its record nobody would find a control group that is left.
	if err := keeper.Unbound(m.runDir(g)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(m.runDir(g)), os.RemoveAll(filepath.Dir(m.logPath(g))), os.RemoveAll(filepath.Join(m.edgeLogs(), g.ID)))
}

func (p *parts) runDir(g vps.Guest) string {
	return filepath.Join(p.config.RunDir, "guests", g.Spec.Name)
}

func (p *parts) logPath(g vps.Guest) string {
	return p.config.statePath(filepath.Join("logs", g.ID, "console.log"))
}

// replugger gives running guests their network again after their link was
// made anew.
type replugger struct {
	*parts
}

func (r replugger) Detached(ctx context.Context, n vps.Network, running []vps.Instance) (map[string]bool, error) {
	names, err := r.hostnet.Detached(ctx, n)
	if err != nil {
		return nil, err
	}
	detached := map[string]bool{}
	for _, i := range running {
		if slices.Contains(names, i.Name) {
			detached[i.GuestID] = true
		}
	}
	return detached, nil
}

func (r replugger) Replug(ctx context.Context, i vps.Instance, g vps.NetworkGuest) error {
	if err := r.driver.Replug(ctx, i); err != nil {
		return err
	}
	r.hostnet.Plugged(g.Link)
	return nil
}
