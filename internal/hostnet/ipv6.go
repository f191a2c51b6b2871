//go:build linux

package hostnet

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

const (
	conf6        = "/proc/sys/net/ipv6/conf/"
	forwarding6  = conf6 + "all/forwarding"
	ethernet6    = 64 // length of a link's own prefix, fe80::/64
	wholeAddress = 128
)

// HasIPv6 tells whether the host's kernel has IPv6 at all. Without it guests
// have IPv4 only, whatever is asked for.
func HasIPv6() bool {
	_, err := os.Stat(conf6)
	return err == nil
}

// wants6 tells whether guests have IPv6 on this host.
func wants6(n vps.Network) bool { return n.Subnet6.IsValid() && HasIPv6() }

// observe6 adds addresses and routes of IPv6 to what is known of the host.
func (o *observed) observe6() error {
	if !HasIPv6() {
		return nil
	}
	addresses, err := list(func() ([]netlink.Addr, error) { return o.handle.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the host's IPv6 addresses could not be read")
	}
	o.addresses6 = map[int][]netlink.Addr{}
	for _, a := range addresses {
		o.addresses6[a.LinkIndex] = append(o.addresses6[a.LinkIndex], a)
	}
	routes, err := o.allRoutes(netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	o.routes6 = o.split(routes)
	return o.observeAnswers(netlink.FAMILY_V6)
}

// forward6 checks net.ipv6.conf.all.forwarding. A host that forwards takes no
// router advertisements any more, and with them would lose its own default
// route, unless accept_ra is 2 (the kernel's ip-sysctl documentation); so the
// links that take them are told first.
func (o *observed) forward6() []problem {
	if readSysctl(forwarding6) == "1" {
		return nil
	}
	var problems []problem
	for name, l := range o.links {
		path := conf6 + name + "/accept_ra"
		if ours(l) || isShaper(l) || strings.Contains(name, "/") || readSysctl(path) != "1" {
			continue
		}
		problems = append(problems, mending(func() error { return writeSysctl(path, "2") },
			"the link %s would take no router advertisements once the host forwards IPv6", name))
	}
	slices.SortFunc(problems, func(a, b problem) int { return strings.Compare(a.sentence, b.sentence) })
	return append(problems, mending(func() error { return writeSysctl(forwarding6, "1") },
		"forwarding of IPv6 (net.ipv6.conf.all.forwarding) is off"))
}

// writeSysctl writes a value; a link that is gone is no error.
func writeSysctl(path, value string) error {
	err := os.WriteFile(path, []byte(value), 0o644) //nolint:gosec // A kernel's file: the mode is the kernel's.
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sysctls6 are those of a guest's link with IPv6, below conf6, in the order
// in which they are set.
var sysctls6 = []struct{ name, value string }{ //nolint:gochecknoglobals // a constant
	// No address but the ones given: the generator has to be off before IPv6 is
	// on.
	{"addr_gen_mode", "1"},
	{"autoconf", "0"},
	{"accept_ra", "0"},
	{"accept_redirects", "0"},
	{"disable_ipv6", "0"},
	{"forwarding", "1"},
	{"proxy_ndp", "0"},
}

// settings6 checks the link's settings of IPv6.
func settings6(g vps.NetworkGuest, on bool) []problem {
	wanted := sysctls6
	if !on {
		// It never sends a packet of IPv6.
		wanted = []struct{ name, value string }{{"disable_ipv6", "1"}}
	}
	var problems []problem
	for _, s := range wanted {
		path := filepath.Join(conf6, g.Link, s.name)
		// An empty value: the kernel lacks the protocol, or the link just went.
		if have := readSysctl(path); have != "" && have != s.value {
			problems = append(problems, mending(func() error { return writeSysctl(path, s.value) },
				"the setting %s of the link %s of guest %s is %s instead of %s", s.name, g.Link, g.Name, have, s.value))
		}
	}
	return problems
}

// gateway6 is what the host's end of a guest's link has.
func gateway6() *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: vps.Gateway6.AsSlice(), Mask: net.CIDRMask(ethernet6, wholeAddress)},
		Flags: unix.IFA_F_NODAD, Scope: unix.RT_SCOPE_LINK,
	}
}

// address6 checks the addresses of a guest's link that is up.
func (o *observed) address6(l netlink.Link, g vps.NetworkGuest) []problem {
	want := gateway6()
	var problems []problem
	found := false
	for _, a := range o.addresses6[l.Attrs().Index] {
		if a.IPNet.String() == want.IPNet.String() {
			found = true
			continue
		}
		problems = append(problems, mending(func() error { return ignore(o.handle.AddrDel(l, &a), unix.EADDRNOTAVAIL) },
			"the link %s of guest %s has the address %s, which does not belong there", g.Link, g.Name, a.IPNet))
	}
	if !found {
		problems = slices.Insert(problems, 0, mending(func() error { return ignore(o.handle.AddrAdd(l, want), unix.EEXIST) },
			"the link %s of guest %s lacks the address %s", g.Link, g.Name, want.IPNet))
	}
	return problems
}

// routes6For are the routes to a guest: to its address on the link itself,
// and to a prefix by the guest's link-local address, so that the host needs
// one entry of a neighbour and not one for each address of the prefix.
func routes6For(index int, g vps.NetworkGuest) []netlink.Route {
	if !g.Prefix6.IsValid() {
		return nil
	}
	own := netlink.Route{
		LinkIndex: index, Dst: host(vps.Address6(g.Prefix6)), Protocol: unix.RTPROT_STATIC, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST,
	}
	if g.Prefix6.IsSingleIP() {
		return []netlink.Route{own}
	}
	prefix := own
	prefix.Dst = &net.IPNet{IP: g.Prefix6.Addr().AsSlice(), Mask: net.CIDRMask(g.Prefix6.Bits(), wholeAddress)}
	prefix.Gw = vps.LinkLocal6(g.MAC).AsSlice()
	return []netlink.Route{own, prefix}
}

// route6 checks that the guest's prefix is routed to its link, and nothing
// else is.
func (o *observed) route6(l netlink.Link, g vps.NetworkGuest) []problem {
	index := l.Attrs().Index
	wanted := routes6For(index, g)
	var problems []problem
	for _, w := range wanted {
		found := false
		for _, r := range o.routes6 {
			switch {
			case r.Dst == nil || r.Dst.String() != w.Dst.String():
			case r.LinkIndex == index && r.Gw.Equal(w.Gw):
				found = true
			case o.names[r.LinkIndex] == "":
				return []problem{conflict("%s of guest %s is routed elsewhere by a route that is not ours; remove it (ip -6 route del %s) or give the guest another prefix", w.Dst, g.Name, w.Dst)}
			}
		}
		if !found {
			problems = append(problems, mending(func() error { return o.handle.RouteReplace(&w) },
				"the route to guest %s (%s through %s) is missing", g.Name, w.Dst, g.Link))
		}
	}
	for _, r := range o.routes6 {
		if r.LinkIndex != index || r.Dst == nil || r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		if !slices.ContainsFunc(wanted, func(w netlink.Route) bool { return w.Dst.String() == r.Dst.String() && w.Gw.Equal(r.Gw) }) {
			problems = append(problems, mending(func() error { return ignore(o.handle.RouteDel(&r), unix.ESRCH) },
				"the link %s of guest %s has a route to %s, which does not belong there", g.Link, g.Name, r.Dst))
		}
	}
	return problems
}

// prefixes6 are the prefixes of the addresses of global scope on a link.
func (o *observed) prefixes6(index int) []netip.Prefix {
	var all []netip.Prefix
	for _, a := range o.addresses6[index] {
		if p, ok := prefix6(a.IPNet); ok && a.Scope == unix.RT_SCOPE_UNIVERSE {
			all = append(all, p)
		}
	}
	return all
}

func prefix6(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP.To16())
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a, ones), ok && a.Is6() && !a.Is4In6()
}

// PublicAddress6 returns the first global IPv6 address on the first of the
// uplinks that has one; the zero Addr when none has.
func (h *Net) PublicAddress6(_ context.Context, uplinks []string) (netip.Addr, error) {
	handle, err := newHandle()
	if err != nil {
		return netip.Addr{}, err
	}
	defer handle.Close()
	o, err := observe(handle)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, u := range uplinks {
		l, ok := o.links[u]
		if !ok {
			continue
		}
		for _, p := range o.prefixes6(l.Attrs().Index) {
			if p.Addr().IsGlobalUnicast() && !p.Addr().IsPrivate() {
				return p.Addr(), nil
			}
		}
	}
	return netip.Addr{}, nil
}

// checkSubnet6 is CheckSubnet for IPv6. A part of the prefix that is on a link
// of the host's may be the guests', where the host does not use it itself.
func (o *observed) checkSubnet6(subnet netip.Prefix) error {
	const remedy = "choose another pool for guests"
	for name, l := range o.links {
		if ours(l) {
			continue
		}
		for _, p := range o.prefixes6(l.Attrs().Index) {
			if subnet.Contains(p.Addr()) {
				return vps.Errorf(vps.CodeConflict, "the pool %s holds the host's own address %s on link %s; %s, for example a smaller part of that prefix", subnet, p.Addr(), name, remedy)
			}
		}
	}
	for _, r := range o.routes6 {
		if r.Dst == nil || o.names[r.LinkIndex] != "" {
			continue
		}
		p, ok := prefix6(r.Dst)
		// A wider one holds the pool: the default route, or the link's own prefix.
		if ok && p.Bits() >= subnet.Bits() && p.Overlaps(subnet) {
			return vps.Errorf(vps.CodeConflict, "the pool %s overlaps the host's route to %s; %s", subnet, p, remedy)
		}
	}
	return nil
}
