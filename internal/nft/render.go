package nft

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// linkName is what may stand as a link's name between quotes in nft's
// language: a proper subset of what the kernel's dev_valid_name takes, without
// the quote, the wildcard and the escape.
var linkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}$`)

// ruleset collects the elements of all sets and maps.
type ruleset struct {
	gateway   netip.Addr
	guests    []string // link . MAC . address: who may send what from where
	addresses []string // addresses of guests
	self      []string // address . address: a guest that calls itself
	uids      []string // user ids of guests' processes
	uplinks   []string
	forwards  []string // protocol . port : address . port
	blocks    []string // ports : address
}

// Render returns the nft text that replaces the table inet sublet, whatever it
// held before, by the one that n calls for, in one transaction. Guests may
// leave by the links named in uplinks only. Equal arguments give equal text;
// the order of guests does not matter. It is a pure function.
//
// Only typed values and link names of a strict pattern are formatted. A value
// that is missing or malformed, and a port or an address that is given out
// twice, is a vps.Error and no text.
func Render(n vps.Network, uplinks []string) (string, error) {
	r, err := collect(n, uplinks)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, s := range []struct {
		kind, name, typ, flags string
		elements               []string
	}{
		{"set", "guests", "ifname . ether_addr . ipv4_addr", "", r.guests},
		{"set", "addresses", "ipv4_addr", "", r.addresses},
		{"set", "self", "ipv4_addr . ipv4_addr", "", r.self},
		{"set", "uids", "uid", "", r.uids},
		{"set", "uplinks", "ifname", "", r.uplinks},
		{"map", "forwards", "inet_proto . inet_service : ipv4_addr . inet_service", "", r.forwards},
		{"map", "blocks", "inet_service : ipv4_addr", "interval", r.blocks},
	} {
		fmt.Fprintf(&b, "\n\t%s %s {\n\t\ttype %s\n", s.kind, s.name, s.typ)
		if s.flags != "" {
			fmt.Fprintf(&b, "\t\tflags %s\n", s.flags)
		}
		if len(s.elements) > 0 {
			fmt.Fprintf(&b, "\t\telements = {\n\t\t\t%s\n\t\t}\n", strings.Join(s.elements, ",\n\t\t\t"))
		}
		b.WriteString("\t}\n")
	}
	fmt.Fprintf(&b, chains, r.gateway)
	return fmt.Sprintf(head, markOf(b.String())) + b.String(), nil
}

// markOf returns the mark of a table whose text has this body.
func markOf(body string) string {
	sum := sha256.Sum256([]byte(head + body))
	return fmt.Sprintf(mark, hex.EncodeToString(sum[:8]))
}

// markIn returns the mark that stands first in a text or a listing, or "".
func markIn(text string) string {
	_, rest, _ := strings.Cut(text, "\tcomment \"")
	found, _, _ := strings.Cut(rest, "\"")
	return found
}

// collect checks n and turns it into elements.
func collect(n vps.Network, uplinks []string) (*ruleset, error) {
	if !n.Gateway.Is4() || n.Gateway.IsUnspecified() {
		return nil, vps.Invalid("gateway", "%q is not an IPv4 address; the firewall needs the host's address towards the guests", n.Gateway)
	}
	r := &ruleset{gateway: n.Gateway}
	for _, u := range uplinks {
		if !linkName.MatchString(u) || strings.HasPrefix(u, vps.LinkPrefix) {
			return nil, vps.Invalid("uplink", "%q cannot be an uplink; name a link of the host towards the public side", u)
		}
		r.uplinks = append(r.uplinks, quote(u))
	}
	slices.Sort(r.uplinks)
	r.uplinks = slices.Compact(r.uplinks)

	guests := slices.Clone(n.Guests)
	slices.SortFunc(guests, func(a, b vps.NetworkGuest) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Link, b.Link))
	})
	taken := make(map[any]string, 4*len(guests))
	for _, g := range guests {
		if err := checkGuest(g, taken); err != nil {
			return nil, err
		}
		r.guests = append(r.guests, fmt.Sprintf("%s . %s . %s", quote(g.Link), g.MAC, g.Address))
		r.addresses = append(r.addresses, g.Address.String())
		r.self = append(r.self, fmt.Sprintf("%s . %s", g.Address, g.Address))
		r.uids = append(r.uids, fmt.Sprint(g.UID))
	}
	return r, r.addPorts(guests)
}

// checkGuest refuses what must not be rendered, and what another guest has:
// taken maps link names, addresses, MACs and uids to the guest that has them.
func checkGuest(g vps.NetworkGuest, taken map[any]string) error {
	switch {
	case !linkName.MatchString(g.Link) || !strings.HasPrefix(g.Link, vps.LinkPrefix):
		return vps.Invalid("link", "guest %q: %q is not the name of a guest's link", g.Name, g.Link)
	case !g.Address.Is4() || g.Address.IsUnspecified():
		return vps.Invalid("address", "guest %q: %q is not an IPv4 address", g.Name, g.Address)
	case len(g.MAC) != 6 || g.MAC[0]&1 != 0:
		return vps.Invalid("mac", "guest %q: %q is not the hardware address of one machine", g.Name, g.MAC)
	case g.UID == 0:
		return vps.Invalid("uid", "guest %q has the user id 0; a guest's process must not be root", g.Name)
	}
	for _, key := range []any{g.Link, g.Address, g.MAC.String(), g.UID} {
		if other, ok := taken[key]; ok {
			return vps.Errorf(vps.CodeConflict, "guests %q and %q both have %v; give one of them another", other, g.Name, key)
		}
		taken[key] = g.Name
	}
	return nil
}

// endpoint is one port of the host.
type endpoint struct {
	protocol vps.Protocol
	port     uint16
}

// addPorts fills the maps of blocks and forwards. What somebody asked for by a
// forward wins over what the block says about that port, in the same guest.
func (r *ruleset) addPorts(guests []vps.NetworkGuest) error {
	byPort, err := r.addBlocks(guests)
	if err != nil {
		return err
	}
	type target struct {
		endpoint
		guest string
		to    netip.AddrPort
	}
	targets := make(map[endpoint]target)
	for _, g := range guests {
		for _, f := range g.Forwards {
			protocols, err := expand(f)
			if err != nil {
				return err
			}
			if owner := blockOwner(byPort, f.Host); owner != "" && owner != g.Name {
				return vps.Errorf(vps.CodeConflict, "port %d, forwarded to guest %q, is in the port block of guest %q; forward another port", f.Host, g.Name, owner)
			}
			for _, p := range protocols {
				e := endpoint{p, f.Host}
				if other, ok := targets[e]; ok {
					return vps.Errorf(vps.CodeConflict, "port %d/%s is forwarded twice, to guests %q and %q; remove one of the two", f.Host, p, other.guest, g.Name)
				}
				targets[e] = target{e, g.Name, netip.AddrPortFrom(g.Address, f.Guest)}
			}
		}
	}
	for _, g := range byPort {
		e := endpoint{vps.ProtoTCP, g.Ports.First}
		if _, ok := targets[e]; !ok {
			targets[e] = target{e, g.Name, netip.AddrPortFrom(g.Address, vps.SSHPort)}
		}
	}
	for _, t := range slices.SortedFunc(maps.Values(targets), func(a, b target) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
	}) {
		r.forwards = append(r.forwards, fmt.Sprintf("%s . %d : %s . %d", t.protocol, t.port, t.to.Addr(), t.to.Port()))
	}
	return nil
}

// blockOwner names the guest whose block has the port; byPort is sorted.
func blockOwner(byPort []vps.NetworkGuest, port uint16) string {
	i, _ := slices.BinarySearchFunc(byPort, port, func(g vps.NetworkGuest, port uint16) int {
		return cmp.Compare(g.Ports.Last(), port)
	})
	if i < len(byPort) && byPort[i].Ports.Contains(port) {
		return byPort[i].Name
	}
	return ""
}

// addBlocks fills the map of blocks and returns the guests that have one, in
// the order of their ports.
func (r *ruleset) addBlocks(guests []vps.NetworkGuest) ([]vps.NetworkGuest, error) {
	var byPort []vps.NetworkGuest
	for _, g := range guests {
		if g.Ports.Count > 0 {
			byPort = append(byPort, g)
		}
	}
	slices.SortFunc(byPort, func(a, b vps.NetworkGuest) int { return cmp.Compare(a.Ports.First, b.Ports.First) })
	for i, g := range byPort {
		p := g.Ports
		if p.First == 0 || p.Last() < p.First {
			return nil, vps.Invalid("ports", "guest %q: %d ports from %d on do not exist; ports run from 1 to 65535", g.Name, p.Count, p.First)
		}
		if i > 0 && byPort[i-1].Ports.Overlaps(p) {
			return nil, vps.Errorf(vps.CodeConflict, "the port blocks of guests %q and %q overlap at port %d; give one of them other ports", byPort[i-1].Name, g.Name, p.First)
		}
		key := fmt.Sprint(p.First)
		if p.Count > 1 {
			key = fmt.Sprintf("%d-%d", p.First, p.Last())
		}
		r.blocks = append(r.blocks, fmt.Sprintf("%s : %s", key, g.Address))
	}
	return byPort, nil
}

// expand returns the protocols of a forward.
func expand(f vps.Forward) ([]vps.Protocol, error) {
	if f.Host == 0 || f.Guest == 0 {
		return nil, vps.Invalid("forwards", "%d:%d/%s is not a forward; ports run from 1 to 65535", f.Host, f.Guest, f.Protocol)
	}
	switch f.Protocol {
	case vps.ProtoTCP, vps.ProtoUDP:
		return []vps.Protocol{f.Protocol}, nil
	case vps.ProtoBoth:
		return []vps.Protocol{vps.ProtoTCP, vps.ProtoUDP}, nil
	default:
		return nil, vps.Invalid("forwards", "%q is not a protocol; write tcp, udp or tcp+udp", f.Protocol)
	}
}

// quote writes a name that matched linkName for nft.
func quote(name string) string { return `"` + name + `"` }
