package nft

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// checkNetwork refuses what is wrong with the network as a whole.
func checkNetwork(n vps.Network, uplinks []string) error {
	if !n.Gateway.Is4() || n.Gateway.IsUnspecified() {
		return vps.Invalid("gateway", "%q is not an IPv4 address; the firewall needs the host's address towards the guests", n.Gateway)
	}
	for _, u := range uplinks {
		if !linkName.MatchString(u) || strings.HasPrefix(u, vps.LinkPrefix) {
			return vps.Invalid("uplink", "%q cannot be an uplink; name a link of the host towards the public side", u)
		}
	}
	for _, s := range n.Services {
		if s.Port == 0 || s.Protocol != vps.ProtoTCP && s.Protocol != vps.ProtoUDP {
			return vps.Invalid("services", "%q is not a service of the host; write for example 53/udp", s)
		}
	}
	return nil
}

// checkGuests refuses what must not be rendered, and what two guests have.
func checkGuests(n vps.Network, guests []vps.NetworkGuest) error {
	links := make(map[string]*vps.NetworkGuest, len(guests))
	addresses := make(map[netip.Addr]*vps.NetworkGuest, len(guests))
	macs := make(map[[6]byte]*vps.NetworkGuest, len(guests))
	uids := make(map[uint32]*vps.NetworkGuest, len(guests))
	var prefixes []*vps.NetworkGuest
	for i := range guests {
		g := &guests[i]
		if err := checkGuest(n, g); err != nil {
			return err
		}
		if err := cmp.Or(take(links, g.Link, g), take(addresses, g.Address, g), take(macs, [6]byte(g.MAC), g), take(uids, g.UID, g)); err != nil {
			return err
		}
		if g.UID == n.EdgeUID {
			return vps.Errorf(vps.CodeConflict, "guest %q has the user id %d, which is the edge's; give it another", g.Name, g.UID)
		}
		if g.Prefix6.IsValid() {
			prefixes = append(prefixes, g)
		}
	}
	// Of two prefixes that overlap one holds the other, so the shorter comes
	// first and nothing but parts of it stands between them.
	slices.SortFunc(prefixes, func(a, b *vps.NetworkGuest) int {
		if c := a.Prefix6.Addr().Compare(b.Prefix6.Addr()); c != 0 {
			return c
		}
		return a.Prefix6.Bits() - b.Prefix6.Bits()
	})
	for i := 1; i < len(prefixes); i++ {
		if a, b := prefixes[i-1], prefixes[i]; a.Prefix6.Overlaps(b.Prefix6) {
			return vps.Errorf(vps.CodeConflict, "the prefixes %s of guest %q and %s of guest %q overlap; give one of them another", a.Prefix6, a.Name, b.Prefix6, b.Name)
		}
	}
	return nil
}

// take notes that a guest has a key, and refuses one that another has.
func take[K comparable](taken map[K]*vps.NetworkGuest, key K, g *vps.NetworkGuest) error {
	if other, ok := taken[key]; ok {
		var shown any = key
		if mac, ok := shown.([6]byte); ok {
			shown = net.HardwareAddr(mac[:])
		}
		return vps.Errorf(vps.CodeConflict, "guests %q and %q both have %v; give one of them another", other.Name, g.Name, shown)
	}
	taken[key] = g
	return nil
}

// checkGuest refuses a guest that is wrong by itself.
func checkGuest(n vps.Network, g *vps.NetworkGuest) error {
	p := g.Prefix6
	switch {
	case !linkName.MatchString(g.Link) || !strings.HasPrefix(g.Link, vps.LinkPrefix):
		return vps.Invalid("link", "guest %q: %q is not the name of a guest's link", g.Name, g.Link)
	case g.Bridge != "" && (!linkName.MatchString(g.Bridge) || strings.HasPrefix(g.Bridge, vps.LinkPrefix)):
		return vps.Invalid("bridge", "guest %q: %q cannot be a bridge; its name must not begin as guests' links do", g.Name, g.Bridge)
	case !g.Address.Is4() || g.Address.IsUnspecified() || g.Address == n.Gateway:
		return vps.Invalid("address", "guest %q: %q is not an IPv4 address for a guest", g.Name, g.Address)
	case n.Subnet.IsValid() && !n.Subnet.Contains(g.Address):
		return vps.Invalid("address", "guest %q: %s is not in the pool %s; give it an address of the pool", g.Name, g.Address, n.Subnet)
	case len(g.MAC) != 6 || g.MAC[0]&1 != 0:
		return vps.Invalid("mac", "guest %q: %q is not the hardware address of one machine", g.Name, g.MAC)
	case g.UID == 0:
		return vps.Invalid("uid", "guest %q has the user id 0; a guest's process must not be root", g.Name)
	case p != netip.Prefix{} && (!p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() || p != p.Masked() || !p.Addr().IsGlobalUnicast()):
		return vps.Invalid("prefix6", "guest %q: %q is not an IPv6 prefix for a guest", g.Name, p)
	case p.IsValid() && n.Subnet6.IsValid() && (p.Bits() < n.Subnet6.Bits() || !n.Subnet6.Contains(p.Addr())):
		return vps.Invalid("prefix6", "guest %q: %s is not in the pool %s; give it a prefix of the pool", g.Name, p, n.Subnet6)
	}
	for _, l := range [...]struct {
		name  string
		value int
	}{{"packets", g.Limits.Packets}, {"new_connections", g.Limits.NewConnections}, {"connections", g.Limits.Connections}} {
		if l.value < 1 || l.value > math.MaxInt32 {
			return vps.Invalid("limits."+l.name, "guest %q: a limit of %d is none; limits run from 1 to %d", g.Name, l.value, math.MaxInt32)
		}
	}
	for i, r := range g.Rules {
		if err := r.Validate(fmt.Sprintf("rules[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}
