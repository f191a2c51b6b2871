package edge

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// table is a Config made ready for lookups. It never changes; the Server swaps one
// for the next.
type table struct {
	settings vps.EdgeSettings
	own      []netip.Prefix
	ports    map[Port]*names
	guests   map[string]*guest
	// terminated are the domains whose TLS ends here, by name, of all ports.
	terminated map[string]*route
}

// guest is a Guest in a table, without its Domains: connections hold on to it, which
// is not to keep all of an old Config in memory.
type guest struct {
	Guest
	limits vps.NetworkLimits
	// hidden are its ports for QUIC to which nobody is imitated.
	hidden map[uint16]bool
	// state is what outlives the table.
	state *guestState
}

// route is a domain in a table.
type route struct {
	domain vps.Domain
	guest  *guest
	caller vps.CallerMode
	series *series
}

// addresses are where the guest is called for a caller. Over his own family first, if
// the guest has it, where it may be he who calls it; else over IPv4, where the host has
// the one address that guests know it by, and not one that its provider may change. The
// second may be the zero value.
func (r *route) addresses(caller netip.Addr) (first, second netip.Addr) {
	g := r.guest
	if !g.Address.IsValid() || g.Address6.IsValid() && caller.Is6() && r.caller == vps.CallerTransparent {
		return g.Address6, g.Address
	}
	return g.Address, g.Address6
}

// names are the domains of one port.
type names struct {
	exact    map[string]*route
	suffixes map[string]*route // by what is behind "*."
	// depths has a bit for each number of labels that some suffix has, deepest is the
	// largest: names that are made of a hundred labels cost no more than others.
	depths   [maxLabels/64 + 1]uint64
	deepest  int
	fallback *route
}

// A host name can have so many bytes, and so many labels of one letter each.
const (
	maxName   = 253
	maxLabels = 127
)

// lookup returns where calls for a name go: to the domain of that very name, else
// the one of the longest suffix, else the default. It is nil when nobody wants
// them. The name is as hello.Hello and hostname.FromHost have it, empty when the
// caller gave none.
func (n *names) lookup(name string) *route {
	if n == nil {
		return nil
	}
	if name == "" {
		return n.fallback
	}
	if r, ok := n.exact[name]; ok {
		return r
	}
	var begins [maxLabels]uint8 // of the last labels of the name, by their number
	depth := 0
	for end := len(name); depth < n.deepest; depth++ {
		dot := strings.LastIndexByte(name[:end], '.')
		if dot < 0 || dot >= maxName {
			break
		}
		begins[depth] = uint8(dot + 1)
		end = dot
	}
	for ; depth > 0; depth-- {
		if n.depths[depth/64]&(1<<(depth%64)) == 0 {
			continue
		}
		if r, ok := n.suffixes[name[begins[depth-1]:]]; ok {
			return r
		}
	}
	return n.fallback
}

// add puts a route under its name, and tells whether there was none.
func (n *names) add(r *route) bool {
	name := r.domain.Name
	if name == vps.DefaultDomain {
		if n.fallback != nil {
			return false
		}
		n.fallback = r
		return true
	}
	in := n.exact
	if suffix, ok := r.domain.Suffix(); ok {
		depth := min(strings.Count(suffix, ".")+1, maxLabels)
		n.depths[depth/64] |= 1 << (depth % 64)
		n.deepest = max(n.deepest, depth)
		name, in = suffix, n.suffixes
	}
	before := len(in)
	in[name] = r
	return len(in) > before
}

// over returns both, where what is in top comes first.
func (n *names) over(top *names) *names {
	if n == nil || top == nil {
		return cmp.Or(top, n)
	}
	both := &names{exact: maps.Clone(n.exact), suffixes: maps.Clone(n.suffixes), fallback: cmp.Or(top.fallback, n.fallback), deepest: max(n.deepest, top.deepest)}
	maps.Copy(both.exact, top.exact)
	maps.Copy(both.suffixes, top.suffixes)
	for i := range both.depths {
		both.depths[i] = n.depths[i] | top.depths[i]
	}
	return both
}

// lasting finds what outlives tables.
type lasting interface {
	guest(id string) *guestState
	series(d domainKey) *series
}

// compile makes a table, or says what is wrong with the Config. Settings that are
// zero are those of a new host.
func compile(c *Config, k lasting) (*table, error) {
	t := &table{
		settings: settings(c.Settings), own: slices.Clone(c.Own),
		ports: make(map[Port]*names, len(c.Ports)), guests: make(map[string]*guest, len(c.Guests)), terminated: make(map[string]*route),
	}
	if err := t.check(c); err != nil {
		return nil, err
	}
	listens, err := t.listens(c, k)
	if err != nil {
		return nil, err
	}
	for _, p := range c.Ports {
		t.ports[p] = namesOn(listens, p)
	}
	return t, nil
}

// namesOn are the domains that have the calls on a port, of those by their Listen.
func namesOn(listens map[uint16]*names, p Port) *names {
	web := listens[0]
	switch {
	case p.Kind == KindHTTP:
		return web
	case p.Number == vps.HTTPSPort:
		return web.over(listens[p.Number])
	default:
		return listens[p.Number]
	}
}

// Find returns the domain that has the calls of a name on a port, whether the edge
// listens there or not, and its guest's ID; nil for none. The name is in canonical
// form, empty for calls without one. It returns an error when a domain leads to two
// guests. It looks at all domains first: for one answer now and then.
func (c *Config) Find(p Port, name string) (guestID string, d *vps.Domain, err error) {
	t := &table{settings: settings(c.Settings), guests: make(map[string]*guest, len(c.Guests)), terminated: make(map[string]*route)}
	listens, err := t.listens(c, nothingLasts{})
	if err != nil {
		return "", nil, err
	}
	r := namesOn(listens, p).lookup(name)
	if r == nil {
		return "", nil, nil
	}
	return r.guest.ID, &r.domain, nil
}

// nothingLasts is for tables that no call goes by.
type nothingLasts struct{}

func (nothingLasts) guest(string) *guestState { return new(guestState) }
func (nothingLasts) series(domainKey) *series { return nil }

// listens are the domains by their Listen.
func (t *table) listens(c *Config, k lasting) (map[uint16]*names, error) {
	count := make(map[uint16]int)
	for i := range c.Guests {
		var listen uint16
		n := 0
		for j := range c.Guests[i].Domains {
			if d := &c.Guests[i].Domains[j]; d.Listen != listen {
				count[listen] += n
				listen, n = d.Listen, 0
			}
			n++
		}
		count[listen] += n
	}
	listens := make(map[uint16]*names, len(count))
	for listen, n := range count {
		listens[listen] = &names{exact: make(map[string]*route, n), suffixes: make(map[string]*route)}
	}
	for i := range c.Guests {
		config := &c.Guests[i]
		g := &guest{Guest: *config, limits: config.Limits.Or(vps.DefaultNetworkLimits()), state: k.guest(config.ID)}
		g.Domains = nil
		if !g.Running {
			g.state.plain.forget()
		}
		t.guests[g.ID] = g
		for j := range config.Domains {
			d := &config.Domains[j]
			r := &route{
				domain: *d, guest: g, caller: cmp.Or(d.Caller, t.settings.Caller),
				series: k.series(domainKey{guest: g.ID, name: d.Name, listen: d.Listen}),
			}
			if r.caller == vps.CallerHidden && d.Web() {
				if g.hidden == nil {
					g.hidden = make(map[uint16]bool)
				}
				g.hidden[d.TLSPort()] = true
			}
			if d.Terminate {
				t.terminated[d.Name] = r
			}
			if !listens[d.Listen].add(r) {
				return nil, vps.Invalid("guests", "the domain %s is there twice; a domain leads to one guest", d)
			}
		}
	}
	return listens, nil
}

// check refuses what no table can be made of. Names were checked where people gave
// them; here is checked what would do harm.
func (t *table) check(c *Config) error {
	ports := make(map[Port]bool, len(c.Ports))
	for i, p := range c.Ports {
		field := fmt.Sprintf("ports[%d]", i)
		switch {
		case p.Number == 0 || p.Kind != KindTLS && p.Kind != KindHTTP && p.Kind != KindQUIC:
			return vps.Invalid(field, "there is no port %d for %q", p.Number, p.Kind)
		case ports[p] || ports[Port{p.Number, KindTLS}] && p.Kind == KindHTTP || ports[Port{p.Number, KindHTTP}] && p.Kind == KindTLS:
			return vps.Invalid(field, "port %d is there twice", p.Number)
		}
		ports[p] = true
	}
	guests := make(map[string]bool, len(c.Guests))
	for i := range c.Guests {
		g := &c.Guests[i]
		wrong := func(what, format string, args ...any) error {
			return vps.Invalid(fmt.Sprintf("guests[%d].%s", i, what), format, args...)
		}
		switch {
		case !fileName(g.ID):
			return wrong("id", "%q is no guest's ID", g.ID)
		case guests[g.ID]:
			return wrong("id", "the guest %s is there twice", g.ID)
		case !g.Address.IsValid() && !g.Address6.IsValid():
			return wrong("address", "the guest %s has no address", g.ID)
		}
		guests[g.ID] = true
		for j := range g.Domains {
			if d := &g.Domains[j]; d.Name == "" || hasUpper(d.Name) {
				return wrong(fmt.Sprintf("domains[%d]", j), "%q is not a domain in its canonical form", d.Name)
			}
		}
	}
	return nil
}

func hasUpper(name string) bool {
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			return true
		}
	}
	return false
}

// fileName tells whether an ID can be a folder's name, too.
func fileName(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !letter && r != '-' && r != '_'
	})
}

// settings are those given, with the usual values for zero ones. No TrustedProxies
// and no QUIC are values of their own.
func settings(s vps.EdgeSettings) vps.EdgeSettings {
	usual := vps.DefaultEdgeSettings()
	s.Caller = cmp.Or(s.Caller, usual.Caller)
	s.CallerConnections = cmp.Or(s.CallerConnections, usual.CallerConnections)
	s.CallerRate = cmp.Or(s.CallerRate, usual.CallerRate)
	s.HandshakeTimeout = cmp.Or(s.HandshakeTimeout, usual.HandshakeTimeout)
	s.IdleTimeout = cmp.Or(s.IdleTimeout, usual.IdleTimeout)
	s.WakeTimeout = cmp.Or(s.WakeTimeout, usual.WakeTimeout)
	s.AccessLog = cmp.Or(s.AccessLog, usual.AccessLog)
	return s
}

func (t *table) isOwn(a netip.Addr) bool { return containedIn(t.own, a) }

func (t *table) trusts(a netip.Addr) bool { return containedIn(t.settings.TrustedProxies, a) }

func containedIn(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
