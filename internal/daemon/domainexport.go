package daemon

import (
	"context"
	"os"

	"sublet/internal/api"
	"sublet/internal/edge/export"
)

// ExportDomains implements api.Domains. Guests that are stopped are led to as well:
// the other router is not told when they start.
func (b backend) ExportDomains(ctx context.Context, router, dir string) ([]api.RouterFile, error) {
	host, err := restrained{b.state, b.quotas}.Host(ctx)
	if err != nil {
		return nil, err
	}
	host.Settings.Edge.Disabled = false // as it is when the other router has taken over
	c := edgeConfig(&host, edgeWorld{running: func(string) bool { return true }, live: b.proofs.Live})
	_, err = os.Stat("/proc/net/if_inet6") // it is there while the kernel speaks IPv6
	files, err := export.Write(export.Router(router), &c, export.Options{Dir: dir, IPv4Only: os.IsNotExist(err)})
	if err != nil {
		return nil, err
	}
	exported := make([]api.RouterFile, len(files))
	for i, f := range files {
		exported[i] = api.RouterFile(f)
	}
	return exported, nil
}
