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
	// XFS and Btrfs mean that the guest's root filesystem may be one: they are
	// built in.
	XFS   bool `json:"xfs"`
	Btrfs bool `json:"btrfs"`
	// Modules means that the guest can load kernel modules.
	Modules bool `json:"modules"`
	// Hostfs means that the guest's root can mount the host's files, as far
	// as the guest's process can reach them.
	Hostfs bool `json:"hostfs"`
	// Fast means that the kernel knows the isolation fast; SMP that it can have
	// several processors then.
	Fast bool `json:"fast"`
	SMP  bool `json:"smp"`
	// Warning is what the kernel itself says of the isolation fast, without line
	// breaks inside of its paragraphs; empty when it does not know it.
	Warning string `json:"warning,omitempty"`
}

// Names returns the features by the names that users see.
func (f Features) Names() []string {
	names := []string{}
	for _, feature := range []struct {
		name string
		has  bool
	}{
		{"ipv6", f.IPv6},
		{"iptables", f.Iptables},
		{"nftables", f.NFTables},
		{"nftables-bridge", f.NFTablesBridge},
		{"wireguard", f.WireGuard},
		{"xfs", f.XFS},
		{"btrfs", f.Btrfs},
		{"fast", f.Fast},
		{"smp", f.SMP},
		{"modules", f.Modules},
		{"hostfs", f.Hostfs},
	} {
		if feature.has {
			names = append(names, feature.name)
		}
	}
	return names
}

// Features asks a kernel for its configuration and its options (linux.uml
// --showconfig and --help, a few milliseconds); what it said is remembered.
// What a kernel has as a module counts only when k has a modules disk.
func (c *Catalog) Features(ctx context.Context, k vps.Kernel) (Features, error) {
	said, err := c.ask(ctx, k.Path)
	if err != nil {
		return Features{}, err
	}
	return parseFeatures(said.config, said.help, k.Modules != ""), nil
}

// words are what a kernel says of itself.
type words struct {
	config, help []byte
}

// ask returns what a kernel says of itself. Kernels in the folder never
// change; others, which lie where a package manager replaces them, are told
// apart by their inode.
func (c *Catalog) ask(ctx context.Context, path string) (words, error) {
	id := path + "\n" + (&sources{binary: path, init: path}).fingerprint()
	if said, ok := c.said.Load(id); ok {
		return said.(words), nil //nolint:forcetypeassert // nothing else is stored
	}
	config, err := output(ctx, path, "--showconfig")
	if err != nil {
		return words{}, vps.Wrap(vps.CodeInternal, err, "the kernel %s does not tell its configuration", path)
	}
	help, err := output(ctx, path, "--help")
	if err != nil {
		return words{}, vps.Wrap(vps.CodeInternal, err, "the kernel %s does not tell its options", path)
	}
	said := words{config, help}
	c.said.Store(id, said)
	return said, nil
}

// describe fills in what of a kernel follows from its binary.
func (c *Catalog) describe(ctx context.Context, k vps.Kernel) (vps.Kernel, error) {
	f, err := c.Features(ctx, k)
	k.Fast, k.SMP = f.Fast, f.SMP
	return k, err
}

// parseFeatures reads a .config of Linux, and the kernel's list of options.
func parseFeatures(config, help []byte, withModules bool) Features {
	set, builtIn := map[string]bool{}, map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(config))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		name = strings.TrimPrefix(name, "CONFIG_")
		builtIn[name] = value == "y"
		set[name] = value == "y" || value == "m" && withModules
	}
	warning := optionText(help, "seccomp=")
	return Features{
		IPv6:           set["IPV6"],
		Iptables:       set["IP_NF_IPTABLES"] && set["IP_NF_FILTER"],
		NFTables:       set["NF_TABLES"] && (set["NF_TABLES_IPV4"] || set["NF_TABLES_INET"]),
		NFTablesBridge: set["NF_TABLES"] && set["NF_TABLES_BRIDGE"],
		WireGuard:      set["WIREGUARD"],
		XFS:            builtIn["XFS_FS"],
		Btrfs:          builtIn["BTRFS_FS"],
		Modules:        set["MODULES"],
		Hostfs:         set["HOSTFS"],
		Fast:           warning != "",
		SMP:            warning != "" && builtIn["SMP"],
		Warning:        warning,
	}
}

// optionText returns what a kernel's --help says of an option that begins so:
//
//	seccomp=<on/auto/off>
//	    Configure whether or not SECCOMP is used. With SECCOMP, userspace
//	    processes work collaboratively with the kernel …
//
//	    This is insecure …
//
// Lines that belong together become one; paragraphs stay apart.
func optionText(help []byte, option string) string {
	var paragraphs []string
	var current []string
	flush := func() {
		if len(current) > 0 {
			paragraphs = append(paragraphs, strings.Join(current, " "))
		}
		current = nil
	}
	inside := false
	for line := range strings.Lines(string(help)) {
		text := strings.TrimSpace(line)
		indented := text != "" && (line[0] == ' ' || line[0] == '\t')
		switch {
		case !inside:
			inside = strings.HasPrefix(line, option)
		case text == "":
			flush()
		case indented:
			current = append(current, text)
		default: // the next option
			flush()
			return strings.Join(paragraphs, "\n")
		}
	}
	flush()
	return strings.Join(paragraphs, "\n")
}
