// Package hops finds out where calls of a domain end: it goes the way of a caller,
// from the name to the guest's certificate, and says what is found at each hop.
//
// What is known of the host arrives as Facts, and what only the network knows by
// probes: these connect to the host's own address, as nearly as that can be done
// from the host itself, and to the guest. Nothing is changed.
package hops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sublet/internal/vps"
)

// Facts are what is known of a domain and of the host.
type Facts struct {
	// Name is the host name that is called, in canonical form; empty for calls
	// without one.
	Name string
	// Domain is the one that has these calls, nil for none, and Guest its guest.
	Domain *vps.Domain
	Guest  string
	// Other are those of the domain's ports whose calls go by another domain, with
	// that one.
	Other map[uint16]string
	// NotLive says why the domain is not led to its guest, empty when it is, and
	// Remedy what is to be done about it, or about the lack of a domain.
	NotLive, Remedy string

	// Public are the host's addresses as callers use them, Behind whether callers come
	// by a translation of addresses that the host does not know.
	Public []netip.Addr
	Behind bool
	// Prefix6 are the guest's own IPv6 addresses: callers there pass the edge by.
	Prefix6 netip.Prefix
	// Blocked are the ports' faults: what keeps callers off them, with a remedy.
	Blocked map[uint16]Fault
	// Handed are those of Blocked that lead to another guest alone.
	Handed map[uint16]bool

	// Disabled tells that calls are another router's, and not the edge's.
	Disabled bool
	// EdgeFault says what is wrong with the edge as a whole, empty for nothing.
	EdgeFault string
	// Ports are the ports that the edge listens on, nil for not known, and Closed says
	// why it does not on others. Direct are those that lead to the guest past the edge.
	Ports  []uint16
	Closed map[uint16]string
	Direct map[uint16]bool
	// Target is the host's address at which the edge is called.
	Target netip.Addr
	// Header tells that the edge takes callers from Target for a proxy.
	Header bool

	// Certificate is how it is with the one that the edge gets; without a name for a
	// domain whose TLS the guest ends, and when it is not known.
	Certificate vps.Certificate

	// State is the guest's, and Address where it is.
	State   vps.State
	Address netip.Addr
	// Restraint is what quotas have in force for the guest, nil for nothing.
	Restraint *vps.Restraint
}

// Fault is something that is wrong, and what to do about it.
type Fault struct{ Problem, Remedy string }

// Answer is what a name leads to.
type Answer struct {
	Names     []string // CNAMEs on the way
	Addresses []netip.Addr
}

// NoNameError is an error of Probes.Lookup: name servers answered, and there is no
// such name, or it has no address.
type NoNameError struct{ Name string }

func (e *NoNameError) Error() string { return e.Name + " leads to no address" }

// Probes are how the network is looked at.
type Probes struct {
	// Lookup asks name servers.
	Lookup func(ctx context.Context, name string) (Answer, error)
	// Dial connects; nil means a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Verify checks certificates; nil means by the system's roots.
	Verify Verifier
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

// probeTimeout bounds one probe.
const probeTimeout = 5 * time.Second

// tester goes the way.
type tester struct {
	f     *Facts
	p     *Probes
	found []vps.Hop
}

// Test goes the way of a caller, and returns what it found, at least one finding for
// each hop in their order. It takes at most about a minute, or as long as ctx lets it.
func Test(ctx context.Context, f Facts, p Probes) []vps.Hop {
	if p.Dial == nil {
		p.Dial = new(net.Dialer).DialContext
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	t := &tester{f: &f, p: &p}
	t.spec()
	t.dns(ctx)
	if f.Domain == nil {
		for _, hop := range []vps.HopName{vps.HopFirewall, vps.HopEdge, vps.HopGuest, vps.HopCertificate, vps.HopHTTP} {
			t.add(hop, vps.HopUnknown, "", "not looked at, as there is no domain for it")
		}
		return t.found
	}
	t.firewall()
	reached := t.edge(ctx)
	serves := t.guest(ctx)
	t.certificate(ctx, reached, serves)
	t.http(ctx, reached, serves)
	return t.found
}

func (t *tester) add(hop vps.HopName, state vps.HopState, remedy, format string, args ...any) {
	t.found = append(t.found, vps.Hop{Hop: hop, State: state, Remedy: remedy, Message: fmt.Sprintf(format, args...)})
}

// within runs a probe for as long as one may take.
func within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, probeTimeout)
}

// called is what was called, for people.
func (t *tester) called() string { return cmp.Or(t.f.Name, "a caller without a name") }

func (t *tester) spec() {
	f := t.f
	switch {
	case f.Domain == nil:
		t.add(vps.HopSpec, vps.HopFailed, cmp.Or(f.Remedy, "add it with `sublet domain add GUEST "+f.Name+"`"), "no guest has the domain %s, nor one that covers it", f.Name)
		return
	case f.NotLive != "":
		t.add(vps.HopSpec, vps.HopFailed, f.Remedy, "%s", f.NotLive)
	case t.handed():
		t.add(vps.HopSpec, vps.HopFailed, "give the ports back to the edge, as the hop firewall tells", "%s is the guest %s's, and its ports lead to others alone", f.Domain, f.Guest)
	case f.Domain.Name == f.Name:
		t.add(vps.HopSpec, vps.HopOK, "", "%s leads to the guest %s, and is live", f.Domain, f.Guest)
	default:
		t.add(vps.HopSpec, vps.HopOK, "", "%s is led to the guest %s by its domain %s, which is live", t.called(), f.Guest, f.Domain)
	}
	for port := range f.Domain.Ports() {
		if f.Other[port] != "" {
			t.add(vps.HopSpec, vps.HopUnknown, fmt.Sprintf("test that with --listen %d", port), "calls on port %d go by the domain %s", port, f.Other[port])
		}
	}
}

// ports yields those of the domain, but for those of others.
func (t *tester) ports() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for port := range t.f.Domain.Ports() {
			if t.f.Other[port] == "" && !yield(port) {
				return
			}
		}
	}
}

// handed tells whether all ports of the domain lead to other guests alone.
func (t *tester) handed() bool {
	for port := range t.f.Domain.Ports() {
		if !t.f.Handed[port] {
			return false
		}
	}
	return true
}

// dns looks where the name leads.
func (t *tester) dns(ctx context.Context) {
	f := t.f
	if f.Name == "" {
		t.add(vps.HopDNS, vps.HopUnknown, "", "there is no name to look up")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 4*probeTimeout) // it asks several servers
	defer cancel()
	a, err := t.p.Lookup(ctx, f.Name)
	set := "set its A and AAAA records to this host's addresses"
	if len(f.Public) > 0 {
		set = "set its A and AAAA records to " + list(f.Public)
	}
	if err != nil {
		if none, ok := errors.AsType[*NoNameError](err); ok {
			t.add(vps.HopDNS, vps.HopFailed, set, "%s leads to no address", printable(none.Name))
		} else {
			t.add(vps.HopDNS, vps.HopUnknown, "see whether the name servers of the domain, and those that this host asks, are up", "%s", vps.ErrorMessage(err))
		}
		return
	}
	names := []string{f.Name}
	for _, n := range a.Names {
		names = append(names, printable(n))
	}
	t.leads(strings.Join(names, " → "), a.Addresses, set)
}

// leads judges the addresses that a name leads to.
func (t *tester) leads(name string, all []netip.Addr, set string) {
	f := t.f
	var here, direct, inside, elsewhere []netip.Addr
	for _, a := range all {
		switch a = a.Unmap(); {
		case slices.Contains(f.Public, a):
			here = append(here, a)
		case f.Prefix6.Contains(a):
			direct = append(direct, a)
		case a.IsLoopback() || a.IsUnspecified() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast():
			inside = append(inside, a)
		default:
			elsewhere = append(elsewhere, a)
		}
	}
	switch {
	case len(inside) > 0:
		t.add(vps.HopDNS, vps.HopFailed, set, "%s leads to %s, which nobody outside can call", name, list(inside))
	case len(elsewhere) > 0 && f.Behind:
		t.add(vps.HopDNS, vps.HopUnknown, "name the host's public address in settings.public_address", "%s leads to %s; whether that is this host cannot be told, as its own addresses are translated on the way to it", name, list(elsewhere))
	case len(elsewhere) > 0 && len(here)+len(direct) > 0:
		t.add(vps.HopDNS, vps.HopUnknown, "take it away unless something there passes calls on to this host", "%s leads to this host by %s, and elsewhere by %s", name, list(append(here, direct...)), list(elsewhere))
	case len(elsewhere) > 0:
		t.add(vps.HopDNS, vps.HopUnknown, set+", unless something in front of the host passes calls on to it", "%s leads to %s, which is not this host: that is right behind a CDN, a proxy or a translation of addresses, and wrong otherwise", name, list(elsewhere))
	case len(direct) > 0:
		t.add(vps.HopDNS, vps.HopOK, "", "%s leads to %s; callers of %s come to the guest itself, past the edge", name, list(append(here, direct...)), list(direct))
	default:
		t.add(vps.HopDNS, vps.HopOK, "", "%s leads to %s, which is this host", name, list(here))
	}
}

// firewall says what others' rules do with callers.
func (t *tester) firewall() {
	good := []string{}
	for port := range t.ports() {
		if b, blocked := t.f.Blocked[port]; blocked {
			t.add(vps.HopFirewall, vps.HopFailed, b.Remedy, "%s", b.Problem)
			continue
		}
		good = append(good, fmt.Sprint(port))
	}
	if len(good) > 0 {
		t.add(vps.HopFirewall, vps.HopOK, "", "no rule on this host keeps callers off TCP port %s; a firewall of the provider's cannot be seen from here", strings.Join(good, " and "))
	}
}

// edge looks whether the edge takes calls on each port of the domain, and returns on
// which.
func (t *tester) edge(ctx context.Context) map[uint16]bool {
	f := t.f
	reached := map[uint16]bool{}
	if f.EdgeFault != "" {
		t.add(vps.HopEdge, vps.HopFailed, "see what `sublet doctor` and the daemon's log say", "%s", f.EdgeFault)
		return reached
	}
	var good []string
	for port := range t.ports() {
		if f.Handed[port] {
			t.add(vps.HopEdge, vps.HopUnknown, "", "not looked at, as port %d leads to another guest alone", port)
			continue
		}
		if f.Ports != nil && !f.Disabled && !f.Direct[port] && !slices.Contains(f.Ports, port) {
			said := fmt.Sprintf("the edge does not listen on port %d", port)
			if why := f.Closed[port]; why != "" {
				said += ": " + why
			}
			t.add(vps.HopEdge, vps.HopFailed, "see what has the port with `ss -ltnp`, and what the daemon's log says", "%s", said)
			continue
		}
		at := netip.AddrPortFrom(f.Target, port)
		conn, err := t.dial(ctx, at)
		if err != nil && f.Disabled {
			t.add(vps.HopEdge, vps.HopFailed, "start the router that is to have its place, or enable it with `sublet host set --edge-disabled=false`",
				"the edge is disabled, and at %s nobody else takes calls: %s", at, why(err))
			continue
		} else if err != nil {
			t.add(vps.HopEdge, vps.HopFailed, "see what `sublet doctor` and the daemon's log say", "at %s nobody takes calls: %s", at, why(err))
			continue
		}
		_ = conn.Close()
		reached[port] = true
		if f.Direct[port] {
			t.add(vps.HopEdge, vps.HopOK, "", "calls at %s go to the guest past the edge, as the port was handed to it", at)
			continue
		}
		good = append(good, at.String())
	}
	if who := "the edge"; len(good) > 0 {
		if f.Disabled {
			who = "the edge is disabled, and another router"
		}
		t.add(vps.HopEdge, vps.HopOK, "", "%s takes calls at %s", who, strings.Join(good, " and "))
	}
	return reached
}

// guest looks whether the guest's ports answer, and returns which do.
func (t *tester) guest(ctx context.Context) map[uint16]bool {
	f := t.f
	serves := map[uint16]bool{}
	running := f.State == vps.StateRunning
	switch {
	case f.Restraint.Suspends():
		t.add(vps.HopGuest, vps.HopFailed, "add to the quota with `sublet quota topup`, or lift it with `sublet quota lift`",
			"nobody reaches the guest %s, because the quota %s is used up until %s", f.Guest, f.Restraint.Quota, f.Restraint.Until.Format("2006-01-02 15:04 MST"))
		return serves
	case !running && f.State == vps.StateStopped && f.Domain.Wake:
		t.add(vps.HopGuest, vps.HopUnknown, "", "the guest %s is stopped, and a call starts it; test again when it runs", f.Guest)
		return serves
	case !running:
		t.add(vps.HopGuest, vps.HopFailed, "start it with `sublet start "+f.Guest+"`", "the guest %s does not run: it is %s", f.Guest, f.State)
		return serves
	}
	var good []string
	for _, port := range f.Domain.GuestPorts() {
		if f.Other[vps.HTTPSPort] != "" && port != f.Domain.PlainPort() {
			continue
		}
		at := netip.AddrPortFrom(f.Address, port)
		conn, err := t.dial(ctx, at)
		if err != nil {
			t.add(vps.HopGuest, vps.HopFailed, guestRemedy(err, f, port), "port %d of the guest %s does not answer: %s", port, f.Guest, why(err))
			continue
		}
		_ = conn.Close()
		serves[port] = true
		good = append(good, fmt.Sprint(port))
	}
	if len(good) > 0 {
		t.add(vps.HopGuest, vps.HopOK, "", "the guest %s runs, and answers on port %s", f.Guest, strings.Join(good, " and "))
	}
	return serves
}

func guestRemedy(err error, f *Facts, port uint16) string {
	if refused(err) {
		return fmt.Sprintf("start what serves port %d in the guest, on all addresses and not on 127.0.0.1 alone", port)
	}
	return "look at the guest's own firewall, and at its console with `sublet logs " + f.Guest + "`"
}

func list(all []netip.Addr) string {
	texts := make([]string, len(all))
	for i, a := range all {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

// printable quotes a name that may hold anything: a CNAME is others' to say.
func printable(name string) string {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.*") == "" {
		return name
	}
	return fmt.Sprintf("%+q", name)
}
