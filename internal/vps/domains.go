package vps

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// The states of domains besides those of their proofs.
const (
	// DomainHanded is a domain whose port leads to another guest alone.
	DomainHanded DomainState = "handed"
	// DomainStopped is one whose guest does not run.
	DomainStopped DomainState = "stopped"
	// DomainBlocked is one whose port the edge cannot have.
	DomainBlocked DomainState = "blocked"
)

// Shared tells whether a port of the host is the edge's, and may nevertheless be
// forwarded to one guest: the forward has all calls then.
func Shared(port uint16) bool { return port == HTTPPort || port == HTTPSPort }

// Ports yields the host's TCP ports that the domain is served on.
func (d *Domain) Ports() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		if !d.Web() {
			yield(d.Listen)
			return
		}
		_ = yield(HTTPSPort) && yield(HTTPPort)
	}
}

// Listens yields the host's TCP ports that the edge needs for the domain: Ports, and
// those of web where an authority asks for a name that it is to get a certificate
// for.
func (d *Domain) Listens() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for p := range d.Ports() {
			if !yield(p) {
				return
			}
		}
		if _, suffix := d.Suffix(); d.Terminate && !d.Web() && !suffix {
			_ = (d.Listen == HTTPSPort || yield(HTTPSPort)) && yield(HTTPPort)
		}
	}
}

// Takes tells whether the forward has a port of the host for tcp or udp.
func (f Forward) Takes(port uint16, protocol Protocol) bool {
	return f.Host == port && (f.Protocol == protocol || f.Protocol == ProtoBoth)
}

// HandedTo returns the guest that a TCP or UDP port of the host leads to by a
// forward of its own, so that the edge gets no calls there; nil for none.
func (h *Host) HandedTo(port uint16, protocol Protocol) *Guest {
	for i := range h.Guests {
		g := &h.Guests[i]
		if !g.Deleting && slices.ContainsFunc(g.Spec.Forwards, func(f Forward) bool { return f.Takes(port, protocol) }) {
			return g
		}
	}
	return nil
}

// EdgePorts returns the host's TCP ports that domains are served on, sorted, each
// once.
func (h *Host) EdgePorts() []uint16 {
	var ports []uint16
	for i := range h.Guests {
		if h.Guests[i].Deleting {
			continue
		}
		for j := range h.Guests[i].Spec.Domains {
			for p := range h.Guests[i].Spec.Domains[j].Listens() {
				if !slices.Contains(ports, p) {
					ports = append(ports, p)
				}
			}
		}
	}
	slices.Sort(ports)
	return ports
}

// GiveTo makes the guest another tenant's. Its domains go with it, and the owner's
// word for them, which was about the old tenant, does not.
func (s *GuestSpec) GiveTo(tenant string) {
	if s.Tenant == tenant {
		return
	}
	s.Tenant, s.Domains = tenant, slices.Clone(s.Domains)
	for i := range s.Domains {
		s.Domains[i].Vouched = false
	}
}

// parents yields what a name is below: "example.org" and "org" of
// "www.example.org".
func parents(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			_, parent, below := strings.Cut(name, ".")
			if !below || !yield(parent) {
				return
			}
			name = parent
		}
	}
}

// ValidateDomains checks the domains of all guests against each other, and
// against what else has ports. Its time grows with the number of domains alone.
func (h *Host) ValidateDomains() error {
	count := 0
	for i := range h.Guests {
		count += len(h.Guests[i].Spec.Domains)
	}
	if count == 0 {
		return nil
	}
	if count > MaxDomains {
		return Errorf(CodeDenied, "%d domains are more than the limit of %d for a host; a suffix such as *.example.org stands for many", count, MaxDomains)
	}
	names := make(map[string]int, count) // by name, and for DefaultDomain by listener: whose
	suffixes := map[string]int{}         // by what follows "*."
	ports := map[uint16]int{}
	for i := range h.Guests {
		s := &h.Guests[i].Spec
		for j := range s.Domains {
			d := &s.Domains[j]
			key := d.Name
			if d.Name == DefaultDomain {
				key = d.String()
				if s.Tenant != DefaultTenant && !d.Vouched {
					return Errorf(CodeDenied, "the domain %s for %s would have all calls that no other domain has, and is for guests of the tenant %s; vouch for it, or name the domains of %s one by one", d, s.Name, DefaultTenant, s.Name)
				}
			}
			if o, taken := names[key]; taken && o != i {
				other := &h.Guests[o].Spec
				return Errorf(CodeConflict, "the domain %s for %s belongs to the guest %s; remove it there first with `sublet domain remove %s %s`", d, s.Name, other.Name, other.Name, inQuotes(d.Name))
			}
			names[key] = i
			if base, is := d.Suffix(); is {
				suffixes[base] = i
			}
			if _, seen := ports[d.Listen]; !seen && d.Listen != 0 {
				ports[d.Listen] = i
			}
		}
	}
	if len(suffixes) > 0 {
		for i := range h.Guests {
			if err := h.belowSuffix(i, suffixes); err != nil {
				return err
			}
		}
	}
	return h.freePorts(ports)
}

// belowSuffix refuses names of one tenant that a suffix of another one covers.
func (h *Host) belowSuffix(i int, suffixes map[string]int) error {
	s := &h.Guests[i].Spec
	for j := range s.Domains {
		d := &s.Domains[j]
		for parent := range parents(strings.TrimPrefix(d.Name, "*.")) {
			o, is := suffixes[parent]
			if !is || h.Guests[o].Spec.Tenant == s.Tenant {
				continue
			}
			other := &h.Guests[o].Spec
			if o > i { // the suffix is what comes anew
				return Errorf(CodeConflict, "the suffix *.%s for %s covers %s of the guest %s, which is another tenant's; name the domains of %s one by one, or remove that one with `sublet domain remove %s %s`",
					parent, other.Name, d.Name, s.Name, other.Name, s.Name, inQuotes(d.Name))
			}
			return Errorf(CodeConflict, "the domain %s for %s is covered by *.%s of the guest %s, which is another tenant's; remove that suffix first with `sublet domain remove %s %s`",
				d, s.Name, parent, other.Name, other.Name, inQuotes("*."+parent))
		}
	}
	return nil
}

// freePorts refuses listeners of the edge where something else has the port.
func (h *Host) freePorts(listeners map[uint16]int) error {
	// One of those that are on the port stands for all.
	taken := func(port uint16, i int, by string) error {
		g := &h.Guests[i].Spec
		k := slices.IndexFunc(g.Domains, func(d Domain) bool { return d.Listen == port })
		return Errorf(CodeConflict, "the domain %s of %s is served on port %d, which %s; use another port for one of them", &g.Domains[k], g.Name, port, by)
	}
	for _, port := range slices.Sorted(maps.Keys(listeners)) {
		i := listeners[port]
		for j := range h.Guests {
			s := &h.Guests[j].Spec
			if s.Ports.Contains(port) {
				return taken(port, i, "belongs to the block "+s.Ports.String()+" of the guest "+s.Name)
			}
			if !Shared(port) && slices.ContainsFunc(s.Forwards, func(f Forward) bool { return f.Takes(port, ProtoTCP) }) {
				return taken(port, i, "leads to the guest "+s.Name+" by a forward")
			}
		}
		if !Shared(port) && slices.Contains(h.Settings.Services, Service{port, ProtoTCP}) {
			return taken(port, i, "is one of the host's own services")
		}
	}
	return nil
}

// inQuotes is a name as a shell takes it.
func inQuotes(name string) string {
	if strings.HasPrefix(name, "*") {
		return "'" + name + "'"
	}
	return name
}
