//go:build linux

package hostnet

import (
	"net"
	"net/netip"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// The edge speaks to guests in the name of callers (vps.EdgeMark). What a guest
// answers is for the caller's address, which is not the host's; a rule leads
// what the firewall has marked to a table that takes every address for the
// host's own. The rule is also about where packets come from, a pool of guests:
// where the kernel looks a mark up for the way back (src_valid_mark, rpfilter),
// from the caller to the guest, it must not find this one.
const (
	// answersProtocol marks our rules and our routes in that table: "S". It is
	// not among those of iproute2's rt_protos.
	answersProtocol = 0x53
	// answersTable is the routing table: "SL".
	answersTable = 0x534C
	// answersPriority is the rule's: behind that of the host's own addresses (0),
	// before those by which VPNs and the like take all that is not theirs.
	answersPriority = 534
)

// answers are what of the host's rules and routes is ours, or in our table.
type answers struct {
	rules  []netlink.Rule
	routes []netlink.Route
}

// observeAnswers reads the rules of a family. The routes come with all others.
func (o *observed) observeAnswers(family int) error {
	rules, err := list(func() ([]netlink.Rule, error) { return o.handle.RuleList(family) })
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the host's routing rules could not be read")
	}
	for _, r := range rules {
		if r.Protocol == answersProtocol || r.Table == answersTable {
			o.answers.rules = append(o.answers.rules, r)
		}
	}
	return nil
}

// split keeps the routes of our table, and returns those of the main one.
func (o *observed) split(routes []netlink.Route) []netlink.Route {
	return slices.DeleteFunc(routes, func(r netlink.Route) bool {
		if r.Table == answersTable {
			o.answers.routes = append(o.answers.routes, r)
		}
		return r.Table != unix.RT_TABLE_MAIN
	})
}

// wantAnswers returns the rules and routes that guests' answers need.
func (o *observed) wantAnswers(n vps.Network) (rules []netlink.Rule, routes []netlink.Route) {
	if n.EdgeUID == 0 || len(n.Guests) == 0 {
		return nil, nil
	}
	var pools []netip.Prefix
	if n.Subnet.IsValid() {
		pools = append(pools, n.Subnet.Masked())
	}
	if wants6(n) {
		pools = append(pools, n.Subnet6.Masked())
	}
	for _, pool := range pools {
		all, family := netip.PrefixFrom(netip.IPv4Unspecified(), 0), netlink.FAMILY_V4
		if pool.Addr().Is6() {
			all, family = netip.PrefixFrom(netip.IPv6Unspecified(), 0), netlink.FAMILY_V6
		}
		mask := uint32(vps.EdgeMarkMask)
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.Protocol = family, answersPriority, answersTable, answersProtocol
		rule.Src, rule.Mark, rule.Mask = network(pool), vps.EdgeMark, &mask
		rules = append(rules, *rule)
		routes = append(routes, netlink.Route{
			LinkIndex: o.loopback, Dst: network(all), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: answersTable, Protocol: answersProtocol, Family: family,
		})
	}
	return rules, routes
}

// network writes a prefix as package net does.
func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sameRule tells whether two rules do the same, whoever made them.
func sameRule(a, b netlink.Rule) bool {
	a.Protocol, b.Protocol = 0, 0
	return reflect.DeepEqual(a, b)
}

// sameAnswer tells whether two routes of our table do the same.
func sameAnswer(a, b netlink.Route) bool {
	return a.Family == b.Family && a.Type == b.Type && a.LinkIndex == b.LinkIndex && isDefault(a) && isDefault(b)
}

// leadAnswers checks that guests' answers to the edge are led to it, and nothing
// else is.
func (o *observed) leadAnswers(n vps.Network) []problem {
	rules, routes := o.wantAnswers(n)
	var problems []problem
	for _, w := range routes {
		if !slices.ContainsFunc(o.answers.routes, func(r netlink.Route) bool { return sameAnswer(r, w) }) {
			problems = append(problems, mending(func() error { return ignore(o.handle.RouteReplace(&w), unix.EEXIST) },
				"the route by which guests' answers reach the edge (local %s in table %d) is missing", w.Dst, answersTable))
		}
	}
	for _, w := range rules {
		if !slices.ContainsFunc(o.answers.rules, func(r netlink.Rule) bool { return sameRule(r, w) }) {
			problems = append(problems, mending(func() error { return ignore(o.handle.RuleAdd(&w), unix.EEXIST) },
				"the rule by which answers of guests in %s reach the edge (priority %d, table %d) is missing", w.Src, answersPriority, answersTable))
		}
	}
	for _, r := range o.answers.rules {
		if r.Protocol == answersProtocol && !slices.ContainsFunc(rules, func(w netlink.Rule) bool { return sameRule(r, w) }) {
			problems = append(problems, mending(func() error { return ignore(o.handle.RuleDel(&r), unix.ENOENT) },
				"the routing rule with priority %d to table %d does not belong there", r.Priority, r.Table))
		}
	}
	for _, r := range o.answers.routes {
		switch {
		case slices.ContainsFunc(routes, func(w netlink.Route) bool { return sameAnswer(r, w) }):
		case r.Protocol == answersProtocol:
			problems = append(problems, mending(func() error { return ignore(o.handle.RouteDel(&r), unix.ESRCH) },
				"the route to %s in table %d does not belong there", r.Dst, answersTable))
		case len(routes) > 0:
			problems = append(problems, conflict("the routing table %d, by which guests' answers reach the edge, has a route to %s that is not ours; remove it (ip route del %s table %d)", answersTable, r.Dst, r.Dst, answersTable))
		}
	}
	return problems
}
