//go:build linux

package hostnet

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

const forwardingPath = "/proc/sys/net/ipv4/ip_forward"

// sysctls are what every guest's link has below /proc/sys/net/; the link's
// name stands for the star. See the kernel's ip-sysctl documentation.
var sysctls = []struct{ before, after, value string }{
	{"ipv4/conf/", "/forwarding", "1"},
	// A second lock beside the firewall's: a source that is not routed to
	// this link is dropped.
	{"ipv4/conf/", "/rp_filter", "1"},
	// The host answers for its gateway address only, and for nobody else.
	{"ipv4/conf/", "/arp_ignore", "1"},
	{"ipv4/conf/", "/proxy_arp", "0"},
	{"ipv4/conf/", "/accept_redirects", "0"},
	{"ipv4/conf/", "/send_redirects", "0"},
}

// observed is the host's network as far as it matters here.
type observed struct {
	handle    *netlink.Handle
	links     map[string]netlink.Link
	names     map[int]string // of links of ours, by index
	addresses map[int][]netlink.Addr
	routes    []netlink.Route
	// The same by the link they lead to, and by their target.
	byLink   map[int][]netlink.Route
	byTarget map[string][]netlink.Route
	// Of IPv6; nil where the kernel has none.
	addresses6 map[int][]netlink.Addr
	routes6    []netlink.Route
	qdiscs     map[int]qdiscs
	loopback   int // index of lo
	answers    answers
}

func observe(handle *netlink.Handle) (*observed, error) {
	o := &observed{
		handle: handle, links: map[string]netlink.Link{}, names: map[int]string{}, addresses: map[int][]netlink.Addr{},
	}
	links, err := list(func() ([]netlink.Link, error) { return handle.LinkList() })
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the host's links could not be read")
	}
	for _, l := range links {
		o.links[l.Attrs().Name] = l
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			o.loopback = l.Attrs().Index
		}
		if ours(l) {
			o.names[l.Attrs().Index] = l.Attrs().Name
		}
	}
	addresses, err := list(func() ([]netlink.Addr, error) { return handle.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the host's addresses could not be read")
	}
	for _, a := range addresses {
		o.addresses[a.LinkIndex] = append(o.addresses[a.LinkIndex], a)
	}
	routes, err := o.allRoutes(netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	o.routes = o.split(routes)
	o.byLink, o.byTarget = map[int][]netlink.Route{}, map[string][]netlink.Route{}
	for _, r := range o.routes {
		o.byLink[r.LinkIndex] = append(o.byLink[r.LinkIndex], r)
		if r.Dst != nil {
			o.byTarget[r.Dst.String()] = append(o.byTarget[r.Dst.String()], r)
		}
	}
	return o, errors.Join(o.observeAnswers(netlink.FAMILY_V4), o.observe6(), o.observeQdiscs())
}

// allRoutes returns the routes of all tables.
func (o *observed) allRoutes(family int) ([]netlink.Route, error) {
	routes, err := list(func() ([]netlink.Route, error) {
		return o.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the host's routes could not be read")
	}
	return routes, nil
}

// inspect finds what is not as n calls for, in the order in which to mend it.
func inspect(handle *netlink.Handle, n vps.Network) ([]problem, error) {
	o, err := observe(handle)
	if err != nil {
		return nil, err
	}
	var problems []problem
	if p := forwarding(); p != nil && len(n.Guests) > 0 {
		problems = append(problems, *p)
	}
	if wants6(n) && len(n.Guests) > 0 {
		problems = append(problems, o.forward6()...)
	}
	wanted := make(map[string]bool, len(n.Guests))
	for _, g := range n.Guests {
		if g.Bridge != "" {
			continue // whoever made the bridge makes its ports
		}
		wanted[g.Link] = true
		if g.Bandwidth > 0 {
			wanted[shaperName(g.Link)] = true
		}
		problems = append(problems, o.link(n, g)...)
	}
	uplinks, err := o.uplinks(n.Uplink)
	if err != nil {
		return nil, err
	}
	problems = append(problems, o.ndp(n, uplinks)...)
	problems = append(problems, o.leadAnswers(n)...)
	for _, name := range slices.Sorted(maps.Keys(o.links)) {
		if l := o.links[name]; !wanted[name] && (ours(l) || isShaper(l)) {
			problems = append(problems, problem{
				sentence: "the link " + name + " belongs to no guest",
				mend:     func() error { return remove(handle, l) },
			})
		}
	}
	return problems, nil
}

// forwarding checks net.ipv4.ip_forward. It comes before the links' sysctls,
// because turning it on resets accept_redirects (RFC 1812).
func forwarding() *problem {
	if readSysctl(forwardingPath) == "1" {
		return nil
	}
	p := mending(func() error { return os.WriteFile(forwardingPath, []byte("1"), 0o644) }, //nolint:gosec // A kernel's file: the mode is the kernel's.
		"forwarding of IPv4 (net.ipv4.ip_forward) is off")
	return &p
}

// link checks a guest's link and what hangs on it.
func (o *observed) link(n vps.Network, g vps.NetworkGuest) []problem {
	alias := aliasPrefix + g.Name
	l, ok := o.links[g.Link]
	if !ok {
		return []problem{mending(func() error { return makeTap(o.handle, g.Link, alias, g.UID) },
			"the link %s of guest %s is missing", g.Link, g.Name)}
	}
	if !ours(l) {
		return []problem{conflict("the link %s has the name that guest %s needs, but is not ours; rename it (ip link set %s name …) or delete it", g.Link, g.Name, g.Link)}
	}
	var problems []problem
	if tap, ok := l.(*netlink.Tuntap); ok && !tapIsRight(tap, g.UID) {
		problems = append(problems, mending(func() error { return repairTap(o.handle, tap, alias, g.UID) },
			"the link %s of guest %s is not a tap that belongs to user id %d", g.Link, g.Name, g.UID))
	}
	if l.Attrs().Alias != alias {
		problems = append(problems, mending(func() error { return o.handle.LinkSetAlias(l, alias) },
			"the link %s of guest %s has the alias %q", g.Link, g.Name, l.Attrs().Alias))
	}
	ipv6 := wants6(n) && g.Prefix6.IsValid()
	problems = append(problems, linkSysctls(g)...)
	problems = append(problems, settings6(g, ipv6)...)
	problems = append(problems, o.address(l, n.Gateway, g)...)
	problems = append(problems, o.shape(l, g)...)
	if l.Attrs().RawFlags&unix.IFF_UP == 0 {
		up := mending(func() error { return o.handle.LinkSetUp(l) }, "the link %s of guest %s is down", g.Link, g.Name)
		up.raises = g.Link
		problems = append(problems, up)
	}
	problems = append(problems, o.route(l, n.Gateway, g)...)
	if ipv6 {
		problems = append(problems, o.address6(l, g)...)
		problems = append(problems, o.route6(l, g)...)
	}
	return problems
}

func linkSysctls(g vps.NetworkGuest) []problem {
	var problems []problem
	for _, s := range sysctls {
		path := "/proc/sys/net/" + s.before + g.Link + s.after
		have := readSysctl(path)
		// An empty value: the kernel lacks the protocol, or the link just went.
		if have == "" || have == s.value {
			continue
		}
		problems = append(problems, mending(func() error {
			err := os.WriteFile(path, []byte(s.value), 0o644) //nolint:gosec // A kernel's file: the mode is the kernel's.
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}, "the setting %s of the link %s of guest %s is %s instead of %s", s.after[1:], g.Link, g.Name, have, s.value))
	}
	return problems
}

// readSysctl returns the value without its newline, or "".
func readSysctl(path string) string {
	value, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(value))
}

// address checks that the link has the gateway's address and no other. The
// same address on many links is what makes a /32 with an on-link gateway work.
func (o *observed) address(l netlink.Link, gateway netip.Addr, g vps.NetworkGuest) []problem {
	want := &netlink.Addr{IPNet: host(gateway), Flags: unix.IFA_F_NOPREFIXROUTE, Scope: unix.RT_SCOPE_UNIVERSE}
	var problems []problem
	found := false
	for _, a := range o.addresses[l.Attrs().Index] {
		if a.IPNet.String() == want.IPNet.String() {
			found = true
			continue
		}
		problems = append(problems, mending(func() error { return ignore(o.handle.AddrDel(l, &a), unix.EADDRNOTAVAIL) },
			"the link %s of guest %s has the address %s, which does not belong there", g.Link, g.Name, a.IPNet))
	}
	if !found {
		// Add before delete.
		problems = slices.Insert(problems, 0, mending(func() error { return ignore(o.handle.AddrAdd(l, want), unix.EEXIST) },
			"the link %s of guest %s lacks the address %s", g.Link, g.Name, want.IPNet))
	}
	return problems
}

// route checks that the guest's address is routed to its link, and nothing
// else is.
func (o *observed) route(l netlink.Link, gateway netip.Addr, g vps.NetworkGuest) []problem {
	want := netlink.Route{
		LinkIndex: l.Attrs().Index, Dst: host(g.Address), Src: gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
		Protocol: unix.RTPROT_STATIC, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST,
	}
	target := want.Dst.String()
	found := false
	for _, r := range o.byTarget[target] {
		switch {
		case r.LinkIndex == want.LinkIndex && r.Src.Equal(want.Src) && r.Scope == want.Scope && r.Gw == nil && r.Priority == 0:
			found = true
		case o.names[r.LinkIndex] == "" && r.Priority == 0:
			return []problem{conflict("the address %s of guest %s is routed elsewhere by a route that is not ours; remove it (ip route del %s) or give the guest another address", g.Address, g.Name, target)}
		}
	}
	var problems []problem
	for _, r := range o.byLink[want.LinkIndex] {
		if r.Dst == nil || r.Dst.String() != target {
			problems = append(problems, mending(func() error { return ignore(o.handle.RouteDel(&r), unix.ESRCH) },
				"the link %s of guest %s has a route to %s, which does not belong there", g.Link, g.Name, r.Dst))
		}
	}
	if !found {
		// Replace takes over a route of ours that led to another link; others'
		// were ruled out above.
		problems = slices.Insert(problems, 0, mending(func() error { return o.handle.RouteReplace(&want) },
			"the route to guest %s (%s through %s) is missing", g.Name, target, g.Link))
	}
	return problems
}

// ignore turns an error that says "it is so already" into none.
func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// host returns the prefix that holds one address.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
