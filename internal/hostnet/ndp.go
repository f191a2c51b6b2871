//go:build linux

package hostnet

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Where a provider's router takes a prefix to be on the link itself, it asks
// for each address in it, and the host has to answer for its guests: the
// kernel does, for single addresses that it is told (proxy_ndp). It cannot for
// whole prefixes. An entry is ours when its address lies in the guests' pool:
// an entry carries no mark.

// proxies tells whether the host is to answer on an uplink.
func (o *observed) proxies(n vps.Network, uplink netlink.Link) bool {
	switch n.NDPProxy {
	case vps.NDPOn:
		return true
	case vps.NDPAuto:
		return !n.NAT6 && slices.ContainsFunc(o.prefixes6(uplink.Attrs().Index), func(p netip.Prefix) bool {
			return p.Bits() < n.Subnet6.Bits() && p.Contains(n.Subnet6.Addr())
		})
	case vps.NDPOff:
	}
	return false
}

// ndp checks what the host answers for on its uplinks.
func (o *observed) ndp(n vps.Network, uplinks []string) []problem {
	var problems []problem
	for _, name := range uplinks {
		l, ok := o.links[name]
		if !ok {
			continue
		}
		entries, err := list(func() ([]netlink.Neigh, error) {
			return o.handle.NeighProxyList(l.Attrs().Index, netlink.FAMILY_V6)
		})
		if err != nil {
			return []problem{conflict("the addresses that the host answers for on %s could not be read: %v", name, err)}
		}
		have := map[netip.Addr]bool{}
		for _, e := range entries {
			if a, ok := netip.AddrFromSlice(e.IP.To16()); ok && e.LinkIndex == l.Attrs().Index {
				have[a] = true
			}
		}
		wanted := map[netip.Addr]bool{}
		if wants6(n) && o.proxies(n, l) {
			for _, g := range n.Guests {
				if g.Prefix6.IsSingleIP() {
					wanted[g.Prefix6.Addr()] = true
				}
			}
		}
		problems = append(problems, o.proxyOn(n, l, have, wanted)...)
	}
	return problems
}

func (o *observed) proxyOn(n vps.Network, l netlink.Link, have, wanted map[netip.Addr]bool) []problem {
	name, index := l.Attrs().Name, l.Attrs().Index
	entry := func(a netip.Addr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V6, Flags: netlink.NTF_PROXY, IP: a.AsSlice()}
	}
	var problems []problem
	if path := conf6 + name + "/proxy_ndp"; len(wanted) > 0 && readSysctl(path) == "0" {
		problems = append(problems, mending(func() error { return writeSysctl(path, "1") },
			"the host does not answer for its guests' IPv6 addresses on %s (proxy_ndp)", name))
	}
	for _, a := range sorted(wanted) {
		if !have[a] {
			problems = append(problems, mending(func() error { return ignore(o.handle.NeighAdd(entry(a)), unix.EEXIST) },
				"the host does not answer for %s on %s", a, name))
		}
	}
	for _, a := range sorted(have) {
		if !wanted[a] && n.Subnet6.IsValid() && n.Subnet6.Contains(a) {
			problems = append(problems, mending(func() error { return ignore(o.handle.NeighDel(entry(a)), unix.ENOENT) },
				"the host answers for %s on %s, which no guest has", a, name))
		}
	}
	return problems
}

func sorted(set map[netip.Addr]bool) []netip.Addr {
	all := make([]netip.Addr, 0, len(set))
	for a := range set {
		all = append(all, a)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}
