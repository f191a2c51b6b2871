package daemon

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// edgeWorld is what an edge.Config is made of besides the desired state.
type edgeWorld struct {
	// running tells whether a guest, by ID, was seen to run.
	running func(id string) bool
	// live tells whether a domain of a tenant's guest may be led there.
	live func(host *vps.Host, tenant string, d *vps.Domain) bool
	// own are the host's addresses.
	own []netip.Addr
}

// edgeConfig says what the edge is to do. It is the same value for the same
// arguments, whatever their order.
func edgeConfig(host *vps.Host, w edgeWorld) edge.Config {
	s := &host.Settings
	c := edge.Config{Settings: s.Edge, Own: ownPrefixes(host, w.own)}
	for i := range host.Guests {
		g := &host.Guests[i]
		if g.Deleting || g.Spec.Probe != "" {
			continue
		}
		if e := edgeGuest(host, g, w); len(e.Domains) > 0 {
			c.Guests = append(c.Guests, e)
		}
	}
	slices.SortFunc(c.Guests, func(a, b edge.Guest) int { return cmp.Compare(a.ID, b.ID) })
	if !s.Edge.Disabled {
		c.Ports = edgePorts(host, c.Guests)
	}
	return c
}

// edgeGuest is a guest with its domains that are live.
func edgeGuest(host *vps.Host, g *vps.Guest, w edgeWorld) edge.Guest {
	e := edge.Guest{
		ID: g.ID, Name: g.Spec.Name, Address: g.Spec.Address, Address6: vps.Address6(host.Settings.Prefix6(&g.Spec)),
		// One whose network a quota suspends answers nobody.
		Running: w.running(g.ID) && !g.Restraint.Suspends(),
		Limits:  g.Spec.Limits.Or(host.Settings.Limits),
	}
	for _, d := range g.Spec.Domains {
		if !w.live(host, g.Spec.Tenant, &d) {
			continue
		}
		// Nobody waits for a guest that a quota keeps from starting, or from being
		// reached.
		d.Wake = d.Wake && !g.Restraint.Suspends()
		e.Domains = append(e.Domains, d)
	}
	return e
}

// edgePorts are those that some domain needs and that are not handed to a guest.
func edgePorts(host *vps.Host, guests []edge.Guest) []edge.Port {
	needed := map[edge.Port]bool{}
	for i := range guests {
		for j := range guests[i].Domains {
			d := &guests[i].Domains[j]
			for port := range d.Listens() {
				needed[edge.Port{Number: port, Kind: kindOf(port)}] = true
			}
			if d.Web() && host.Settings.Edge.QUIC {
				// Also where all domains end TLS here: callers are told at once, then.
				needed[edge.Port{Number: vps.HTTPSPort, Kind: edge.KindQUIC}] = true
			}
		}
	}
	var ports []edge.Port
	for port := range needed {
		protocol := vps.ProtoTCP
		if port.Kind == edge.KindQUIC {
			protocol = vps.ProtoUDP
		}
		if host.HandedTo(port.Number, protocol) == nil {
			ports = append(ports, port)
		}
	}
	slices.SortFunc(ports, func(a, b edge.Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Kind, b.Kind))
	})
	return ports
}

// ownPrefixes are the host's addresses and all that guests have, sorted, each
// once.
func ownPrefixes(host *vps.Host, addresses []netip.Addr) []netip.Prefix {
	s := &host.Settings
	all := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), s.Subnet.Masked()}
	if s.Subnet6.IsValid() {
		all = append(all, s.Subnet6.Masked())
	}
	for _, a := range addresses {
		a = a.Unmap().WithZone("")
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	for i := range host.Guests {
		if p := s.Prefix6(&host.Guests[i].Spec); p.IsValid() && !s.Subnet6.Overlaps(p) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(all)
}

// linkAddresses are those on the host's links, but for what a link has for itself
// alone (fe80::/10).
func linkAddresses() ([]netip.Addr, error) {
	onLinks, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(addressesAmong(onLinks), netip.Addr.IsLinkLocalUnicast), nil
}

// addressesAmong are the addresses that links have.
func addressesAmong(onLinks []net.Addr) []netip.Addr {
	var all []netip.Addr
	for _, o := range onLinks {
		if p, err := netip.ParsePrefix(o.String()); err == nil {
			all = append(all, p.Addr())
		}
	}
	return all
}
