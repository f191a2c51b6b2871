package daemon

import (
	"context"

	"sublet/internal/api"
	"sublet/internal/doctor"
	"sublet/internal/kernel"
	"sublet/internal/nft"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

func (b backend) Doctor(ctx context.Context) ([]api.Finding, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	e := doctor.System(b.config.StateDir)
	e.Promised, e.Overcommit = host.Promised(), host.Settings.MemoryOvercommit
	if e.Growth, err = b.growth(ctx); err != nil {
		return nil, err
	}
	e.Kernel = b.hostKernel
	e.Firewalls = b.foreignFirewalls
	all := findings(doctor.Run(ctx, e))
	all = append(all, b.edgeFindings(host.Settings.Edge.Disabled)...)
	s := b.seen(ctx)
	for _, orphan := range s.Orphans {
		all = append(all, api.Finding{
			Check: "orphans", Level: string(doctor.Warning), Message: orphan,
			Remedy: "if it is not needed, end its process or remove its folder by hand; sublet never does",
		})
	}
	return all, nil
}

// examine checks a host without a daemon, as far as that goes.
func examine(ctx context.Context) []api.Finding {
	e := doctor.System(env("SUBLET_STATE_DIR", DefaultStateDir))
	c := Config{StateDir: e.StateDir}
	e.Kernel = kernel.New(c.statePath("kernels"), kernel.Options{InitPath: env("SUBLET_INIT", "")}).Default
	p := parts{nft: nft.New(nil, nft.Options{})}
	e.Firewalls = p.foreignFirewalls
	return findings(doctor.Run(ctx, e))
}

func findings(found []doctor.Finding) []api.Finding {
	all := make([]api.Finding, 0, len(found))
	for _, f := range found {
		all = append(all, api.Finding{Check: f.Check, Level: string(f.Level), Message: f.Message, Remedy: f.Remedy})
	}
	return all
}

// growth returns what the volumes may still take of the disk.
func (p *parts) growth(ctx context.Context) (vps.Bytes, error) {
	volumes, err := p.volumes.List(ctx)
	var sum vps.Bytes
	for _, v := range volumes {
		size := v.Size
		for _, d := range v.Data {
			size += d.Size
		}
		sum += max(0, size-v.Used)
	}
	return sum, err
}

func (p *parts) foreignFirewalls(ctx context.Context) ([]doctor.Finding, error) {
	conflicts, err := p.nft.Conflicts(ctx)
	if err != nil {
		return nil, err
	}
	var found []doctor.Finding
	for _, c := range conflicts {
		found = append(found, doctor.Finding{Check: "firewall", Level: doctor.Warning, Message: c.Problem, Remedy: c.Remedy})
	}
	return found, nil
}

func (b backend) Events(ctx context.Context, guest string, after int64, limit int) ([]vps.Event, error) {
	return b.db.Events(ctx, sqlite.EventQuery{Guest: guest, After: after, Limit: limit})
}
