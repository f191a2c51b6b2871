package nft

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sublet/internal/vps"
)

// linkName is what may stand as a link's name between quotes in nft's
// language, and as a chain's name without: a proper subset of what the
// kernel's dev_valid_name takes, without the quote, the wildcard, the escape
// and the colon.
var linkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)

// quote writes a name that matched linkName for nft.
func quote(name string) string { return `"` + name + `"` }

// collect checks n and turns it into elements.
func collect(n vps.Network, uplinks []string) (*wall, error) {
	if err := checkNetwork(n, uplinks); err != nil {
		return nil, err
	}
	w := newWall(n.Gateway.String())
	up := slices.Clone(uplinks)
	slices.Sort(up)
	for _, u := range slices.Compact(up) {
		w.put(inet, "uplinks", quote(u), "")
	}
	if n.EdgeUID != 0 {
		w.put(inet, "edge", strconv.FormatUint(uint64(n.EdgeUID), 10), "")
	}
	services := make([]string, 0, len(n.Services))
	for _, s := range n.Services {
		services = append(services, fmt.Sprintf("%s . %d", s.Protocol, s.Port))
	}
	slices.Sort(services)
	for _, s := range slices.Compact(services) {
		w.put(inet, "services", s, "")
	}
	guests := slices.Clone(n.Guests)
	slices.SortFunc(guests, func(a, b vps.NetworkGuest) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Link, b.Link))
	})
	if err := checkGuests(n, guests); err != nil {
		return nil, err
	}
	marks := groupMarks(guests)
	if n.NAT6 && n.Subnet6.IsValid() {
		w.put(inet, "masqueraded6", prefixText(n.Subnet6.Masked()), "")
	}
	w.grow(len(guests))
	for i := range guests {
		w.addGuest(&guests[i], marks[guests[i].Peers])
		w.addRules(&guests[i])
	}
	slices.SortFunc(w.owner, func(a, b chain) int { return cmp.Compare(a.name, b.name) })
	if err := w.addPorts(guests); err != nil {
		return nil, err
	}
	return w, nil
}

// addGuest adds what is about one guest alone.
func (w *wall) addGuest(g *vps.NetworkGuest, mark uint32) {
	link, mac, address := quote(g.Link), g.MAC.String(), g.Address.String()
	own := link + " . " + mac
	family, frames := inet, netdev
	if g.Bridge != "" {
		family, frames = bridge, bridge
		w.ports[g.Link] = true
	} else {
		w.taps[g.Link] = true
		w.put(netdev, "macs", own, "")
	}
	w.put(frames, "speakers", own+" . "+address, "")
	w.put(family, "macs", own, "")
	w.put(family, "linklayers", link+" . 0x"+hex.EncodeToString(g.MAC), "")
	w.put(family, "guests", own+" . "+address, "")
	w.put(family, "packets", link, limitOver(g.Limits.Packets, max(1, g.Limits.Packets/10)))
	if g.SMTP {
		w.put(family, "smtp", link, "")
	}
	if g.Peers != "" {
		w.put(family, "peers", link, fmt.Sprintf(" : 0x%08x", mark))
		w.put(family, "members", fmt.Sprintf("0x%08x . %s", mark, link), "")
	}
	if g.Bridge == "" {
		w.put(inet, "newcomers", link, limitOver(g.Limits.NewConnections, g.Limits.NewConnections))
		w.put(inet, "connections", link, fmt.Sprintf(" ct count over %d", g.Limits.Connections))
	}
	w.put(inet, "addresses", address, "")
	w.put(inet, "self", address+" . "+address, "")
	w.put(inet, "uids", strconv.FormatUint(uint64(g.UID), 10), " comment "+link)
	if !g.Prefix6.IsValid() {
		return
	}
	a := vps.Address6(g.Prefix6)
	w.put(inet, "self6", fmt.Sprintf("%s . %s", a, a), "")
	addresses := []netip.Addr{vps.LinkLocal6(g.MAC)}
	if g.Prefix6.IsSingleIP() {
		addresses = append(addresses, a)
	} else {
		w.put(family, "prefixes6", own+" . "+g.Prefix6.String(), "")
		w.put(family, "targets6", fmt.Sprintf("%s . %s-%s", link, hexOf(g.Prefix6.Addr()), hexOf(lastOf(g.Prefix6))), "")
	}
	for _, a := range addresses {
		w.put(family, "guests6", own+" . "+a.String(), "")
		w.put(family, "targets", link+" . "+hexOf(a), "")
	}
}

func limitOver(rate, burst int) string {
	return " limit rate over " + strconv.Itoa(rate) + "/second burst " + strconv.Itoa(burst) + " packets"
}

// prefixText writes a prefix as nft does.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func hexOf(a netip.Addr) string {
	b := a.As16()
	return "0x" + hex.EncodeToString(b[:])
}

// lastOf returns the last address of a prefix of IPv6.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	for i := p.Bits(); i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom16(b)
}

// groupMarks gives each group of peers a number that depends on its name, so
// that a new group leaves the others' elements alone.
func groupMarks(guests []vps.NetworkGuest) map[string]uint32 {
	var names []string
	for _, g := range guests {
		if g.Peers != "" {
			names = append(names, g.Peers)
		}
	}
	slices.Sort(names)
	marks, taken := map[string]uint32{}, map[uint32]bool{0: true}
	for _, name := range slices.Compact(names) {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name))
		mark := binary.BigEndian.Uint32(h.Sum(nil))
		for taken[mark] {
			mark++
		}
		marks[name], taken[mark] = mark, true
	}
	return marks
}

// addRules adds the chains of an owner's rules for a guest.
func (w *wall) addRules(g *vps.NetworkGuest) {
	if g.Bridge != "" || len(g.Rules) == 0 {
		return
	}
	rules := map[string][]string{}
	for _, r := range g.Rules {
		where := string(r.Direction)
		if r.Host {
			where = "host"
		}
		rules[where] = append(rules[where], ruleText(r))
	}
	for _, where := range []string{"out", "in", "host"} {
		if len(rules[where]) == 0 {
			continue
		}
		name := where + "-" + g.Link
		w.owner = append(w.owner, chain{name, rules[where]})
		w.put(inet, "rules-"+where, quote(g.Link), " : jump "+name)
	}
}

// ruleText writes a valid rule of the owner for nft.
func ruleText(r vps.Rule) string {
	var words []string
	side, deny := "daddr", "goto drop-rule"
	if r.Direction == vps.In {
		side, deny = "saddr", "goto deny-rule"
	}
	icmp := "{ icmp, ipv6-icmp }"
	if r.Peer.IsValid() {
		family := "ip6"
		icmp = "ipv6-icmp"
		if r.Peer.Addr().Is4() {
			family, icmp = "ip", "icmp"
		}
		words = append(words, family, side, prefixText(r.Peer))
	}
	switch {
	case r.Protocol == vps.ProtoICMP:
		words = append(words, "meta l4proto", icmp)
	case r.Protocol != "" && r.First == 0:
		words = append(words, "meta l4proto", string(r.Protocol))
	case r.First == r.Last && r.First != 0:
		words = append(words, string(r.Protocol), "dport", fmt.Sprint(r.First))
	case r.First != 0:
		words = append(words, string(r.Protocol), "dport", fmt.Sprintf("%d-%d", r.First, r.Last))
	}
	if r.Action == vps.Allow {
		return strings.Join(append(words, "accept"), " ")
	}
	return strings.Join(append(words, deny), " ")
}
