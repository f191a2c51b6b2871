package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/edge"
	"sublet/internal/hops"
	"sublet/internal/hostname"
	"sublet/internal/proof"
	"sublet/internal/vps"
)

// VerifyDomain implements api.DomainChecks.
func (b backend) VerifyDomain(ctx context.Context, name string) (api.DomainProof, error) {
	name, err := hostname.Canonical(name)
	if err != nil {
		return api.DomainProof{}, err
	}
	host, err := b.state.Host(ctx)
	if err != nil {
		return api.DomainProof{}, err
	}
	for i := range host.Guests {
		g := &host.Guests[i].Spec
		needed := slices.ContainsFunc(g.Domains, func(d vps.Domain) bool { return d.Name == name && d.NeedsProof(g.Tenant) })
		if !needed && !slices.ContainsFunc(g.Domains, func(d vps.Domain) bool { return d.Name == name }) {
			continue
		}
		p := b.proofs.Proof(&host, g.Tenant, name)
		if !needed {
			return api.DomainProof{Proof: p, Guest: g.Name, State: vps.DomainLive}, nil
		}
		if p, err = b.proofs.prove(ctx, &host, p); err != nil {
			return api.DomainProof{}, err
		}
		steps := b.proofs.Steps(&p)
		return api.DomainProof{Proof: p, Guest: g.Name, State: p.State(), Needed: true, Steps: &steps}, nil
	}
	return api.DomainProof{}, vps.Errorf(vps.CodeNotFound, "no guest has the domain %s; `sublet domain list` shows all", name)
}

// TestDomain implements api.DomainChecks.
func (b backend) TestDomain(ctx context.Context, name string, listen uint16) ([]vps.Hop, error) {
	name, err := hostname.Canonical(name)
	if err != nil {
		return nil, err
	}
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	f, err := b.hopFacts(ctx, &host, name, listen)
	if err != nil {
		return nil, err
	}
	const patience = 2 * time.Second // somebody waits for it
	resolver := proof.Resolver{Servers: host.Settings.Edge.Resolvers, Patience: patience}
	return hops.Test(ctx, f, hops.Probes{Lookup: func(ctx context.Context, name string) (hops.Answer, error) {
		a, err := resolver.Addresses(ctx, name)
		if none, is := errors.AsType[*proof.NotFoundError](err); is {
			err = &hops.NoNameError{Name: none.Name}
		} else if silent, is := errors.AsType[*proof.SilentError](err); is {
			err = vps.Errorf(vps.CodeUnavailable, "no name server knows about %s: %s", name, silent.Reason)
		}
		return hops.Answer{Names: a.Names, Addresses: a.Addresses}, err
	}}), nil
}

// hopFacts collects what is known of the way to a domain.
func (b backend) hopFacts(ctx context.Context, host *vps.Host, name string, listen uint16) (hops.Facts, error) {
	f := hops.Facts{Name: name}
	switch suffix, isSuffix := strings.CutPrefix(name, "*."); {
	case name == vps.DefaultDomain:
		f.Name = ""
	case isSuffix: // some name of it
		f.Name = "sublet-test." + suffix
	}
	g, d, other, err := domainFor(host, f.Name, listen)
	if err != nil {
		return f, err
	}
	own, err := addressesOf(&host.Settings)
	if err != nil {
		return f, err
	}
	uplinks, err := b.hostnet.Uplinks(ctx, host.Settings.Uplink)
	if err != nil {
		b.log.WarnContext(ctx, "cannot find the uplink", "error", err)
	}
	f.Public, f.Target = callable(&host.Settings, uplinks), b.publicAddress(ctx, host.Settings)
	if !f.Target.IsValid() || !own.onLinks(f.Target) {
		f.Target = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	f.Behind = !own.public4 && !own.public6
	f.Header = slices.ContainsFunc(host.Settings.Edge.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(f.Target) })
	if d == nil {
		for _, g := range host.Guests {
			for _, d := range g.Spec.Domains {
				if d.Name == name && listen == 0 {
					f.Remedy = fmt.Sprintf("it is served on port %d alone: test that with --listen %d", d.Listen, d.Listen)
				} else if d.Name == name && d.Web() {
					f.Remedy = "it is served for web: test that without --listen"
				}
			}
		}
		return f, nil
	}
	if other != nil {
		f.Other = map[uint16]string{vps.HTTPSPort: other.String()}
	}
	f.Domain, f.Guest, f.Address, f.Prefix6 = d, g.Spec.Name, g.Spec.Address, host.Settings.Prefix6(&g.Spec)
	if !b.proofs.Live(host, g.Spec.Tenant, d) {
		p := b.proofs.Proof(host, g.Spec.Tenant, d.Name)
		f.NotLive = fmt.Sprintf("%s is not live: it waits for a proof that it is %s's", d.Name, g.Spec.Tenant)
		if p.Message != "" {
			f.NotLive += "; when it was looked last, " + p.Message
		}
		f.Remedy = toDo(b.proofs.Steps(&p)) + "; then run `sublet domain verify " + shellName(d.Name) + "`"
	}
	f.State, f.Disabled = vps.StateStopped, host.Settings.Edge.Disabled
	if s := b.seen(ctx); s.Status[g.ID].State != "" {
		f.State = s.Status[g.ID].State
		f.Restraint = s.Status[g.ID].Restraint
	}
	b.portFacts(ctx, &f, host, g, uplinks)
	if b.edgeView != nil {
		open, closed := b.edgeView.Ports()
		f.Ports, f.Closed = []uint16{}, map[uint16]string{}
		for _, p := range open {
			if p.Kind != edge.KindQUIC {
				f.Ports = append(f.Ports, p.Number)
			}
		}
		for p, why := range closed {
			if p.Kind != edge.KindQUIC {
				f.Closed[p.Number] = why
			}
		}
		if d.Terminate {
			f.Certificate = b.certificates(ctx)[d.Name]
			b.edgeView.RetryCertificates() // it was mended, maybe
		}
	}
	return f, nil
}

// portFacts finds what keeps callers off the ports of a domain of a guest, and which
// of them are the guest's alone.
func (b backend) portFacts(ctx context.Context, f *hops.Facts, host *vps.Host, g *vps.Guest, uplinks []string) {
	f.Blocked, f.Handed, f.Direct = map[uint16]hops.Fault{}, map[uint16]bool{}, map[uint16]bool{}
	for port := range f.Domain.Ports() {
		switch to := host.HandedTo(port, vps.ProtoTCP); {
		case to == nil:
		case to.ID == g.ID:
			f.Direct[port] = true
		default:
			f.Handed[port] = true
			f.Blocked[port] = hops.Fault{
				Problem: fmt.Sprintf("TCP port %d of the host leads to the guest %s alone, past the edge", port, to.Spec.Name),
				Remedy:  fmt.Sprintf("end that with `sublet port remove %s %d/tcp`", to.Spec.Name, port),
			}
			continue
		}
		found, err := b.nft.InputConflicts(ctx, port, uplinks)
		if err != nil {
			b.log.WarnContext(ctx, "the rules of other firewalls cannot be read", "error", err)
			continue
		}
		if len(found) > 0 {
			f.Blocked[port] = hops.Fault{Problem: strings.TrimSuffix(found[0].Problem, "."), Remedy: strings.ReplaceAll(found[0].Remedy, "\n", "; ")}
		}
	}
}

// domainFor finds the domain that has the calls of a name on a listener as the edge
// does, proved or not; nil for none. other is the one that has those of port 443,
// when the listener is web and that is not the same.
func domainFor(host *vps.Host, name string, listen uint16) (g *vps.Guest, d, other *vps.Domain, err error) {
	c := edge.Config{Settings: host.Settings.Edge}
	guests := map[string]*vps.Guest{}
	for i := range host.Guests {
		if g := &host.Guests[i]; !g.Deleting {
			guests[g.ID] = g
			c.Guests = append(c.Guests, edge.Guest{ID: g.ID, Domains: g.Spec.Domains})
		}
	}
	if listen != 0 {
		id, d, err := c.Find(edge.Port{Number: listen, Kind: edge.KindTLS}, name)
		return guests[id], d, nil, err
	}
	id, d, err := c.Find(edge.Port{Number: vps.HTTPPort, Kind: edge.KindHTTP}, name)
	if err != nil || d == nil {
		return nil, nil, nil, err
	}
	_, other, err = c.Find(edge.Port{Number: vps.HTTPSPort, Kind: edge.KindTLS}, name)
	if other != nil && *other == *d {
		other = nil
	}
	return guests[id], d, other, err
}

// callable are the addresses on the uplinks, and the one of the settings: those by
// which callers reach the host.
func callable(s *vps.Settings, uplinks []string) []netip.Addr {
	var all []netip.Addr
	add := func(a netip.Addr) {
		if a = a.Unmap(); !a.IsLinkLocalUnicast() && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if s.PublicAddress.IsValid() {
		add(s.PublicAddress)
	}
	for _, name := range uplinks {
		link, err := net.InterfaceByName(name)
		if err != nil {
			continue // gone meanwhile
		}
		onLink, err := link.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addressesAmong(onLink) {
			add(a)
		}
	}
	return all
}

// shellName is a name as a shell takes it.
func shellName(name string) string {
	if strings.HasPrefix(name, "*") {
		return "'" + name + "'"
	}
	return name
}
