package kernel

import (
	"bufio"
	"bytes"
	"context"
	"strings"

	"sublet/internal/vps"
)

// Features are what a guest can do under a kernel, built in or by modules.
type Features struct {
	// IPv6 means that the guest has IPv6 at all.
	IPv6 bool `json:"ipv6"`
	// Iptables means the tables of iptables-legacy, for IPv4.
	Iptables bool `json:"iptables"`
	// NFTables means nft's families ip or inet; NFTablesBridge its family
	// bridge. Debian's kernels have the second alone.
	NFTables       bool `json:"nftables"`
	NFTablesBridge bool `json:"nftables_bridge"`
	WireGuard      bool `json:"wireguard"`
	// Modules means that the guest can load kernel modules.
	Modules bool `json:"modules"`
	// Hostfs means that the guest's root can mount the host's files, as far
	// as the guest's process can reach them.
	Hostfs bool `json:"hostfs"`
}

// Features asks a kernel for its configuration (linux.uml --showconfig, a few
// milliseconds). What a kernel has as a module counts only when k has a
// modules disk.
func (c *Catalog) Features(ctx context.Context, k vps.Kernel) (Features, error) {
	out, err := output(ctx, k.Path, "--showconfig")
	if err != nil {
		return Features{}, vps.Wrap(vps.CodeInternal, err, "the kernel %s does not tell its configuration", k.Path)
	}
	return parseFeatures(out, k.Modules != ""), nil
}

// parseFeatures reads a .config of Linux.
func parseFeatures(config []byte, withModules bool) Features {
	set := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(config))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if value == "y" || value == "m" && withModules {
			set[strings.TrimPrefix(name, "CONFIG_")] = true
		}
	}
	return Features{
		IPv6:           set["IPV6"],
		Iptables:       set["IP_NF_IPTABLES"],
		NFTables:       set["NF_TABLES"] && (set["NF_TABLES_IPV4"] || set["NF_TABLES_INET"]),
		NFTablesBridge: set["NF_TABLES"] && set["NF_TABLES_BRIDGE"],
		WireGuard:      set["WIREGUARD"],
		Modules:        set["MODULES"],
		Hostfs:         set["HOSTFS"],
	}
}
