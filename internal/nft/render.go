package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// Render returns the nft text that replaces our tables, whatever they held
// before, by those that n calls for, in one transaction. Guests may leave by
// the links named in uplinks only. The names in links are those of guests'
// links that exist now; others there are ignored. Equal arguments give equal
// text; no order matters. It is a pure function.
//
// Only typed values and link names of a strict pattern are formatted. A value
// that is missing or malformed, or that two guests have, is a vps.Error and no
// text.
func Render(n vps.Network, uplinks, links []string) (string, error) {
	w, err := collect(n, uplinks)
	if err != nil {
		return "", err
	}
	return w.replacement(w.routed(links), nil), nil
}

// set is a set or map whose elements are made from the network.
type set struct {
	family, kind, name string
	spec               []string // its declaration, a line each
	elements           []element
}

// element is one of them: its key, and what follows it (a value with its
// colon, a limit, a comment).
type element struct{ key, rest string }

func (e element) String() string { return e.key + e.rest }

// chain holds the rules that an owner gave one guest.
type chain struct {
	name  string
	rules []string
}

// wall is what our tables should hold besides what they always do.
type wall struct {
	gateway string
	// structure is a digest of what the tables have in common with those of
	// every other network; they can be changed into one another by elements
	// alone.
	structure string
	sets      []*set
	byName    map[string]*set
	owner     []chain // in the table inet, sorted by name
	taps      map[string]bool
	ports     map[string]bool // links of guests that are ports of a bridge
}

// newWall declares all sets. Before it adds an element to any set, nft reads
// all of those that hold intervals of a single value; so what grows with the
// guests is a concatenation.
func newWall(gateway string) *wall {
	w := &wall{gateway: gateway, byName: map[string]*set{}, taps: map[string]bool{}, ports: map[string]bool{}}
	add := func(family, kind, name string, spec ...string) {
		s := &set{family: family, kind: kind, name: name, spec: spec}
		w.sets = append(w.sets, s)
		w.byName[family+" "+name] = s
	}
	for _, family := range []string{inet, bridge} {
		add(family, "set", "guests", "type ifname . ether_addr . ipv4_addr")
		add(family, "set", "guests6", "type ifname . ether_addr . ipv6_addr")
		add(family, "set", "prefixes6", "type ifname . ether_addr . ipv6_addr", "flags interval")
		add(family, "set", "targets", "typeof iifname . @th,64,128")
		add(family, "set", "targets6", "typeof iifname . @th,64,128", "flags interval")
		add(family, "set", "linklayers", "typeof iifname . @th,208,48")
		add(family, "set", "macs", "type ifname . ether_addr")
		// What is declared is what an element without its own limit would
		// have; each has its own.
		add(family, "set", "packets", "type ifname", "limit rate over 1/second")
		add(family, "set", "smtp", "type ifname")
		add(family, "map", "peers", "typeof iifname : meta mark")
		add(family, "set", "members", "typeof meta mark . oifname")
	}
	for _, family := range []string{netdev, bridge} {
		if family == netdev {
			add(family, "set", "macs", "type ifname . ether_addr")
		}
		add(family, "set", "speakers", "type ifname . ether_addr . ipv4_addr")
	}
	add(inet, "set", "newcomers", "type ifname", "limit rate over 1/second")
	add(inet, "set", "connections", "type ifname", "ct count over 1")
	add(inet, "set", "addresses", "type ipv4_addr")
	add(inet, "set", "masqueraded6", "type ipv6_addr", "flags interval")
	add(inet, "set", "self", "type ipv4_addr . ipv4_addr")
	add(inet, "set", "self6", "type ipv6_addr . ipv6_addr")
	add(inet, "set", "uids", "type uid")
	add(inet, "set", "edge", "type uid")
	add(inet, "set", "uplinks", "type ifname")
	add(inet, "set", "services", "type inet_proto . inet_service")
	add(inet, "map", "forwards", "type inet_proto . inet_service : ipv4_addr . inet_service")
	add(inet, "map", "blocks", "type inet_proto . inet_service : ipv4_addr", "flags interval")
	add(inet, "map", "forwards6", "type inet_proto . inet_service : ipv6_addr . inet_service")
	add(inet, "map", "blocks6", "type inet_proto . inet_service : ipv6_addr", "flags interval")
	add(inet, "map", "rules-out", "type ifname : verdict")
	add(inet, "map", "rules-in", "type ifname : verdict")
	add(inet, "map", "rules-host", "type ifname : verdict")
	w.structure = w.digest()
	return w
}

// grow makes room for the elements of so many guests.
func (w *wall) grow(guests int) {
	for _, s := range w.sets {
		s.elements = slices.Grow(s.elements, guests)
	}
}

// put adds an element to a set.
func (w *wall) put(family, name, key, rest string) {
	s := w.byName[family+" "+name]
	s.elements = append(s.elements, element{key, rest})
}

// routed returns those of links that are taps of the wall's guests, sorted.
func (w *wall) routed(links []string) []string {
	var taps []string
	for _, l := range links {
		if w.taps[l] {
			taps = append(taps, l)
		}
	}
	slices.Sort(taps)
	return slices.Compact(taps)
}

// same tells whether two walls are made of the same.
func (w *wall) same(other *wall) bool {
	return w.structure == other.structure &&
		slices.EqualFunc(w.sets, other.sets, func(a, b *set) bool { return slices.Equal(a.elements, b.elements) }) &&
		slices.EqualFunc(w.owner, other.owner, func(a, b chain) bool { return a.name == b.name && slices.Equal(a.rules, b.rules) })
}

// mark is the comment of the table inet.
func (w *wall) mark() string {
	return fmt.Sprintf("made by sublet (%s); changes by hand are undone", w.structure)
}

// digest returns the structure of a wall that is still empty.
func (w *wall) digest() string {
	sum := sha256.Sum256([]byte(w.body(nil, nil)))
	return hex.EncodeToString(sum[:8])
}

// replacement is the whole text. add before delete makes the delete succeed on
// the first run; nft 1.0.6 has no destroy. It is one transaction: packets see
// the old tables or the new ones, and connection tracking keeps what it knows.
// kept are elements of counting sets, by family and name.
func (w *wall) replacement(taps []string, kept map[string][]string) string {
	var b strings.Builder
	for _, f := range families() {
		fmt.Fprintf(&b, "add table %s\ndelete table %s\n", ours(f), ours(f))
	}
	return b.String() + w.tables(taps, kept)
}

// tables is the text of our tables.
func (w *wall) tables(taps []string, kept map[string][]string) string {
	return fmt.Sprintf("table inet sublet {\n\tcomment %q\n}\n", w.mark()) + w.body(taps, kept)
}

func (w *wall) body(taps []string, kept map[string][]string) string {
	var b strings.Builder
	for _, family := range families() {
		fmt.Fprintf(&b, "table %s {", ours(family))
		for _, s := range w.sets {
			if s.family == family {
				s.write(&b)
			}
		}
		b.WriteString(droppers(family))
		switch family {
		case inet:
			for _, c := range w.owner {
				fmt.Fprintf(&b, "\n\tchain %s {\n\t\t%s\n\t}\n", c.name, strings.Join(c.rules, "\n\t\t"))
			}
			fmt.Fprintf(&b, inetChains, w.gateway)
		case netdev:
			b.WriteString(netdevChains)
			for _, l := range taps {
				b.WriteString("\n" + linkChain(l))
			}
		case bridge:
			b.WriteString(bridgeChains)
		}
		b.WriteString("}\n")
	}
	for _, c := range wallDrops() {
		if elements := kept[c.family+" "+c.set]; len(elements) > 0 {
			fmt.Fprintf(&b, "add element %s %s { %s }\n", ours(c.family), c.set, strings.Join(elements, ", "))
		}
	}
	return b.String()
}

// write adds the set's declaration and elements to a table's text.
func (s *set) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n\t%s %s {\n\t\t%s\n", s.kind, s.name, strings.Join(s.spec, "\n\t\t"))
	if len(s.elements) > 0 {
		b.WriteString("\t\telements = {\n\t\t\t")
		for i, e := range s.elements {
			if i > 0 {
				b.WriteString(",\n\t\t\t")
			}
			b.WriteString(e.key)
			b.WriteString(e.rest)
		}
		b.WriteString("\n\t\t}\n")
	}
	b.WriteString("\t}\n")
}

// change returns the commands that turn the tables of the wall old, which has
// the same structure, into those of w, without touching what both have.
func (w *wall) change(old *wall) string {
	var first, last strings.Builder
	for i, s := range w.sets {
		// The same guests give the same elements in the same order, so what
		// differs is one piece, and short.
		now, was := trim(s.elements, old.sets[i].elements)
		left := make(map[element]bool, len(was))
		for _, e := range was {
			left[e] = true
		}
		var added, gone []string
		for _, e := range now {
			if !left[e] {
				added = append(added, e.String())
			}
			delete(left, e)
		}
		for _, e := range was {
			if left[e] {
				gone = append(gone, e.key)
			}
		}
		if len(gone) > 0 {
			fmt.Fprintf(&first, "delete element %s %s { %s }\n", ours(s.family), s.name, strings.Join(gone, ", "))
		}
		if len(added) > 0 {
			fmt.Fprintf(&last, "add element %s %s { %s }\n", ours(s.family), s.name, strings.Join(added, ", "))
		}
	}
	had := make(map[string]chain, len(old.owner))
	for _, c := range old.owner {
		had[c.name] = c
	}
	for _, c := range w.owner {
		h, ok := had[c.name]
		delete(had, c.name)
		where := ours(inet) + " " + c.name
		switch {
		case ok && slices.Equal(h.rules, c.rules):
			continue
		case ok:
			fmt.Fprintf(&first, "flush chain %s\n", where)
		default:
			fmt.Fprintf(&first, "add chain %s\n", where)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&first, "add rule %s %s\n", where, r)
		}
	}
	for _, c := range old.owner {
		if _, gone := had[c.name]; gone {
			fmt.Fprintf(&last, "delete chain %s %s\n", ours(inet), c.name)
		}
	}
	return first.String() + last.String()
}

// trim takes what is the same at both ends away from a and b.
func trim(a, b []element) (restOfA, restOfB []element) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}
