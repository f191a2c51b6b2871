package export

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sublet/internal/edge"
	"sublet/internal/hostname"
	"sublet/internal/vps"
)

// plan is a Config as both routers need it.
type plan struct {
	settings vps.EdgeSettings // none is zero
	trusted  []netip.Prefix
	ports    []port    // in their order in the Config, of TCP
	targets  []*target // sorted by name
	quic     bool      // the edge leads QUIC, too
	// told are the domains whose guests are told who calls, by mode.
	told map[vps.CallerMode][]string
	wake []string // domains whose guest a call starts
}

// port is one that callers come to.
type port struct {
	edge.Port
	exact    []lead
	suffixes []lead  // by what is behind "*."
	fallback *target // nil when there is no default guest
}

// lead says where a name leads.
type lead struct {
	name string
	to   *target
}

// target is a port of a guest, and how it is called.
type target struct {
	name   string // of letters, digits, hyphens and underscores
	guest  string
	http   bool
	limits vps.NetworkLimits
	mode   vps.CallerMode // CallerHidden, CallerProxyV1 or CallerProxyV2
	// to are where it is called: the second is for when the first does not answer.
	to []netip.AddrPort
}

// depths are how many labels suffixes have, the most first.
func (p *port) depths() []int {
	var all []int
	for _, l := range p.suffixes {
		all = append(all, labels(l.name))
	}
	slices.SortFunc(all, func(a, b int) int { return b - a })
	return slices.Compact(all)
}

func labels(name string) int { return strings.Count(name, ".") + 1 }

// newPlan checks all that is going to be formatted, and finds out what leads where.
func newPlan(c *edge.Config) (*plan, error) {
	p := &plan{settings: c.UsualSettings(), told: map[vps.CallerMode][]string{}}
	for _, n := range []struct {
		field string
		value int64
	}{
		{"caller_connections", int64(p.settings.CallerConnections)},
		{"caller_rate", int64(p.settings.CallerRate)},
		{"handshake_timeout", milliseconds(p.settings.HandshakeTimeout)},
		{"idle_timeout", milliseconds(p.settings.IdleTimeout)},
	} {
		if n.value <= 0 {
			return nil, vps.Invalid("settings.edge."+n.field, "%d is too little; it is more than nothing", n.value)
		}
	}
	for _, t := range p.settings.TrustedProxies {
		if !t.IsValid() {
			return nil, vps.Invalid("settings.edge.trusted_proxies", "an address of a proxy is missing")
		}
		p.trusted = append(p.trusted, plainPrefix(t))
	}
	b := builder{plan: p, targets: map[string]*target{}, owners: map[string]string{}, listens: map[uint16][]lead{}}
	for i := range c.Guests {
		if err := b.addGuest(&c.Guests[i]); err != nil {
			return nil, err
		}
	}
	if len(b.terminated) > 0 {
		return nil, vps.Errorf(vps.CodeConflict,
			"TLS of %s ends at the edge, which gets and renews their certificates itself, and no other router does that for it; let their guests have certificates (`sublet domain add` with --terminate=false) or keep the edge",
			some(b.terminated))
	}
	for _, e := range c.Ports {
		if e.Kind == edge.KindQUIC {
			p.quic = true
			continue
		}
		if err := b.addPort(e); err != nil {
			return nil, err
		}
	}
	for _, t := range b.targets {
		p.targets = append(p.targets, t)
	}
	slices.SortFunc(p.targets, func(a, b *target) int { return cmp.Compare(a.name, b.name) })
	for _, names := range p.told {
		slices.Sort(names)
	}
	return p, nil
}

// plainPrefix is a prefix in the form that all understand.
func plainPrefix(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// builder makes a plan.
type builder struct {
	plan       *plan
	targets    map[string]*target
	owners     map[string]string // names of guests, by ID; IDs by name
	listens    map[uint16][]lead // also of HTTP, as httpListen
	terminated []string
}

// httpListen is where the domains of HTTP are in builder.listens: 0 is web by TLS.
const httpListen = vps.HTTPPort

func (b *builder) addGuest(g *edge.Guest) error {
	if err := vps.ValidName("guests.name", g.Name); err != nil {
		return err
	}
	if _, twice := b.owners[g.Name]; twice {
		return vps.Invalid("guests.name", "the guest %s is there twice", g.Name)
	}
	b.owners[g.Name] = g.ID
	if !g.Address.IsValid() && !g.Address6.IsValid() {
		return vps.Invalid("guests.address", "the guest %s has no address", g.Name)
	}
	if limits := g.Limits.Or(vps.DefaultNetworkLimits()); limits.Connections < 0 || limits.NewConnections < 0 {
		return vps.Invalid("guests.limits", "the guest %s has a limit below nothing", g.Name)
	}
	for i := range g.Domains {
		if err := b.addDomain(g, &g.Domains[i]); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) addDomain(g *edge.Guest, d *vps.Domain) error {
	if name, err := hostname.Canonical(d.Name); err != nil || name != d.Name {
		return vps.Invalid("guests.domains", "%q is not a domain in its canonical form", d.Name)
	}
	if d.Listen == vps.HTTPPort {
		return vps.Invalid("guests.domains", "port %d is for HTTP, and %s is for TLS", d.Listen, d.Name)
	}
	mode := cmp.Or(d.Caller, b.plan.settings.Caller)
	switch mode {
	case vps.CallerTransparent, vps.CallerProxyV1, vps.CallerProxyV2:
		b.plan.told[mode] = append(b.plan.told[mode], d.String())
	case vps.CallerHidden:
	default:
		return vps.Invalid("guests.domains", "%q is no way for a guest to learn who calls", mode)
	}
	if mode == vps.CallerTransparent {
		mode = vps.CallerHidden
	}
	if d.Terminate {
		b.terminated = append(b.terminated, d.String())
	}
	if d.Wake {
		b.plan.wake = append(b.plan.wake, d.String())
	}
	b.listens[d.Listen] = append(b.listens[d.Listen], lead{d.Name, b.target(g, false, d.TLSPort(), mode)})
	if d.Web() {
		b.listens[httpListen] = append(b.listens[httpListen], lead{d.Name, b.target(g, true, d.PlainPort(), mode)})
	}
	return nil
}

func (b *builder) target(g *edge.Guest, http bool, at uint16, mode vps.CallerMode) *target {
	speaks := "tls"
	if http {
		speaks = "http"
	}
	name := fmt.Sprintf("%s_%s_%d_%s", speaks, g.Name, at, mode)
	t, ok := b.targets[name]
	if !ok {
		t = &target{name: name, guest: g.Name, http: http, mode: mode, limits: g.Limits.Or(vps.DefaultNetworkLimits())}
		for _, a := range []netip.Addr{g.Address, g.Address6} {
			if a.IsValid() {
				t.to = append(t.to, netip.AddrPortFrom(a.Unmap().WithZone(""), at))
			}
		}
		b.targets[name] = t
	}
	return t
}

// addPort collects what is led on a port. On 443 the domains of that very number
// come before those for web, which they share the port with.
func (b *builder) addPort(e edge.Port) error {
	p := port{Port: e}
	if e.Number == 0 || slices.ContainsFunc(b.plan.ports, func(o port) bool { return o.Number == e.Number }) {
		return vps.Invalid("ports", "port %d is there twice, or is none", e.Number)
	}
	var from [][]lead
	switch {
	case e.Kind == edge.KindHTTP:
		from = [][]lead{b.listens[httpListen]}
	case e.Kind != edge.KindTLS:
		return vps.Invalid("ports", "there is no port for %q", e.Kind)
	case e.Number == vps.HTTPSPort:
		from = [][]lead{b.listens[e.Number], b.listens[0]}
	default:
		from = [][]lead{b.listens[e.Number]}
	}
	there := map[string]bool{}
	for _, leads := range from {
		here := map[string]bool{}
		for _, l := range leads {
			if here[l.name] {
				return vps.Invalid("guests.domains", "the domain %s is there twice; a domain leads to one guest", l.name)
			}
			here[l.name] = true
			if there[l.name] {
				continue
			}
			there[l.name] = true
			p.add(l)
		}
	}
	byName := func(a, b lead) int { return cmp.Compare(a.name, b.name) }
	slices.SortFunc(p.exact, byName)
	slices.SortFunc(p.suffixes, byName)
	b.plan.ports = append(b.plan.ports, p)
	return nil
}

func (p *port) add(l lead) {
	suffix, is := strings.CutPrefix(l.name, "*.")
	switch {
	case l.name == vps.DefaultDomain:
		p.fallback = l.to
	case is:
		p.suffixes = append(p.suffixes, lead{suffix, l.to})
	default:
		p.exact = append(p.exact, l)
	}
}

// some names a few of many.
func some(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
