package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/edge"
	"sublet/internal/vps"
)

// edgeView tells which ports the edge has, and why it has not others; and how it is
// with the certificates that it gets (edge.Stats.Certificates).
type edgeView interface {
	Ports() (open []edge.Port, closed map[edge.Port]string)
	Certificates(ctx context.Context) []vps.Certificate
	// RetryCertificates has those that were not got tried again at once
	// (edge.Config.Retry).
	RetryCertificates()
}

// edgeHas tells whether a port that is listened on is the edge's.
func (p *parts) edgeHas(l desired.Listener) bool {
	if p.edgeView == nil {
		return false
	}
	open, _ := p.edgeView.Ports()
	return slices.ContainsFunc(open, func(o edge.Port) bool {
		return o.Number == l.Port && (o.Kind == edge.KindQUIC) == (l.Protocol == vps.ProtoUDP)
	})
}

// Domains implements api.Domains.
func (b backend) Domains(ctx context.Context, guest string) ([]api.GuestDomain, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	if guest != "" && host.Guest(guest) == nil {
		return nil, desired.NoGuest(guest)
	}
	all := b.domainStates(&host, guest, b.seen(ctx).Status)
	b.addCertificates(ctx, all)
	return all, nil
}

// addCertificates says how it is with those of domains whose TLS ends at the edge.
func (b backend) addCertificates(ctx context.Context, all []api.GuestDomain) {
	certificates := b.certificates(ctx)
	for i := range all {
		c, there := certificates[all[i].Name]
		if !there || !all[i].Terminate {
			continue
		}
		all[i].Certificate = &c
		if trouble := c.Trouble(); trouble != "" && all[i].Message == "" {
			all[i].Message = trouble
		} else if trouble != "" {
			all[i].Message += "; " + trouble
		}
	}
}

// certificates are those that the edge tells of, by name.
func (p *parts) certificates(ctx context.Context) map[string]vps.Certificate {
	if p.edgeView == nil {
		return nil
	}
	all := map[string]vps.Certificate{}
	for _, c := range p.edgeView.Certificates(ctx) {
		all[c.Name] = c
	}
	return all
}

// viewDomains looks at domains when guests have these states, by ID.
func (b backend) viewDomains(host *vps.Host, status map[string]vps.GuestStatus) *domainView {
	v := &domainView{host: host, running: map[string]bool{}, restraint: map[string]*vps.Restraint{}, proof: func(tenant, name string) (vps.Proof, vps.ProofSteps) {
		p := b.proofs.Proof(host, tenant, name)
		return p, b.proofs.Steps(&p)
	}}
	if b.edgeView != nil {
		_, v.closed = b.edgeView.Ports()
	}
	for id, st := range status {
		v.running[id], v.restraint[id] = st.State == vps.StateRunning, st.Restraint
	}
	return v
}

func (b backend) domainStates(host *vps.Host, guest string, status map[string]vps.GuestStatus) []api.GuestDomain {
	v := b.viewDomains(host, status)
	all := []api.GuestDomain{}
	for i := range host.Guests {
		g := &host.Guests[i]
		if g.Deleting || guest != "" && g.Spec.Name != guest {
			continue
		}
		for j := range g.Spec.Domains {
			d := api.GuestDomain{Guest: g.Spec.Name, Tenant: g.Spec.Tenant, Domain: g.Spec.Domains[j]}
			p := v.proofOf(g, &d.Domain)
			d.State, d.Message = v.state(g, &d.Domain, p)
			if p != nil {
				d.Proved, d.Checked, d.Failing, d.Steps = p.Proved, p.Checked, p.Failing, &p.steps
			}
			all = append(all, d)
		}
	}
	return all
}

// domainView is what states of domains follow from.
type domainView struct {
	host *vps.Host
	// running are the guests that run, by ID.
	running map[string]bool
	// restraint is what quotas have in force for guests, by ID.
	restraint map[string]*vps.Restraint
	// closed are the ports that the edge cannot have, and why.
	closed map[edge.Port]string
	proof  func(tenant, name string) (vps.Proof, vps.ProofSteps)
}

// neededProof is one that a domain needs, and what its tenant has to do for it.
type neededProof struct {
	vps.Proof
	steps vps.ProofSteps
}

// proofOf is the one that a guest's domain needs, nil for none.
func (v *domainView) proofOf(g *vps.Guest, d *vps.Domain) *neededProof {
	if !d.NeedsProof(g.Spec.Tenant) {
		return nil
	}
	p, steps := v.proof(g.Spec.Tenant, d.Name)
	return &neededProof{p, steps}
}

// state tells whether calls of a domain, which needs proof p, reach its guest, and if
// not, or not all, why.
func (v *domainView) state(g *vps.Guest, d *vps.Domain, p *neededProof) (vps.DomainState, string) {
	good, said := vps.DomainLive, ""
	if p != nil {
		switch state := p.State(); state {
		case vps.DomainPending:
			return state, fmt.Sprintf("it waits for a proof that it is %s's; %s; `sublet domain verify %s` looks for it at once", g.Spec.Tenant, toDo(p.steps), shellName(d.Name))
		case vps.DomainLost:
			return state, fmt.Sprintf("the proof that it is %s's is gone: %s; %s", g.Spec.Tenant, p.Message, toDo(p.steps))
		case vps.DomainFailing:
			good, said = state, fmt.Sprintf("the proof that it is %s's is gone: %s; %s", g.Spec.Tenant, p.Message, toDo(p.steps))
		case vps.DomainLive, vps.DomainHanded, vps.DomainStopped, vps.DomainBlocked:
		}
	}
	// What is wrong with one of its ports is told, and with all of them it is the
	// state.
	var faults []string
	fault, ports := vps.DomainState(""), 0
	for port := range d.Ports() {
		ports++
		if o := v.host.HandedTo(port, vps.ProtoTCP); o != nil && o.ID != g.ID {
			fault = vps.DomainHanded
			faults = append(faults, fmt.Sprintf("port %d leads to %s alone; `sublet port remove %s %d/tcp` ends that", port, o.Spec.Name, o.Spec.Name, port))
			continue
		}
		if why := v.closed[edge.Port{Number: port, Kind: kindOf(port)}]; why != "" {
			fault = vps.DomainBlocked
			faults = append(faults, why)
		}
	}
	none, wakes := len(faults) == ports, d.Wake && !v.host.Settings.Edge.Disabled
	if v.host.Settings.Edge.Disabled {
		faults = append(faults, "the edge is disabled, so that calls are another router's; `sublet host set --edge-disabled=false` ends that")
	}
	switch {
	case none:
		return fault, strings.Join(faults, "; ")
	case v.restraint[g.ID].Suspends():
		return vps.DomainStopped, joinWords(quotaWords(v.restraint[g.ID]), faults)
	case !v.running[g.ID] && wakes:
		return vps.DomainStopped, joinWords("its guest does not run; a call starts it", faults)
	case !v.running[g.ID]:
		return vps.DomainStopped, joinWords(fmt.Sprintf("its guest does not run; `sublet start %s` starts it", g.Spec.Name), faults)
	}
	return good, joinWords(said, faults)
}

// quotaWords say that a quota keeps callers from a guest, and what to do about it.
func quotaWords(r *vps.Restraint) string {
	return fmt.Sprintf("the quota %s is used up, and keeps all from its guest until %s; `sublet quota lift` lifts it", r.Quota, r.Until.Format("2006-01-02 15:04 MST"))
}

func joinWords(first string, more []string) string {
	if first != "" {
		more = slices.Insert(more, 0, first)
	}
	return strings.Join(more, "; ")
}

// kindOf is what callers of domains speak on a TCP port: none but web has HTTPPort.
func kindOf(port uint16) edge.Kind {
	if port == vps.HTTPPort {
		return edge.KindHTTP
	}
	return edge.KindTLS
}

// domainWarnings tell what an edit means for domains whose port leads to one guest
// alone: of that guest's making, or of theirs.
func domainWarnings(before, after vps.Host) []string {
	var warnings []string
	for _, port := range []uint16{vps.HTTPSPort, vps.HTTPPort} {
		owner := after.HandedTo(port, vps.ProtoTCP)
		if owner == nil {
			continue
		}
		was := before.HandedTo(port, vps.ProtoTCP)
		anew := was == nil || was.ID != owner.ID
		unserved := unservedDomains(&before, &after, owner, port, anew)
		if len(unserved) == 0 {
			continue
		}
		names := unserved[0]
		if n := len(unserved) - 1; n > 0 {
			names += fmt.Sprintf(" and %d more", n)
		}
		are, how := "is", "over TLS"
		if len(unserved) > 1 {
			are = "are"
		}
		if port == vps.HTTPPort {
			how = "over plain HTTP, nor can certificates be had that way"
		}
		if anew {
			warnings = append(warnings, fmt.Sprintf("port %d leads to %s alone now: %s %s not served %s", port, owner.Spec.Name, names, are, how))
		} else {
			warnings = append(warnings, fmt.Sprintf("%s %s not served %s: port %d leads to %s alone, until `sublet port remove %s %d/tcp`", names, are, how, port, owner.Spec.Name, owner.Spec.Name, port))
		}
	}
	return warnings
}

// unservedDomains are those on a port which leads to somebody else, as
// "blog.example.org of bob": all of them, or those that were not there before.
func unservedDomains(before, after *vps.Host, owner *vps.Guest, port uint16, all bool) []string {
	old := map[vps.Domain]bool{}
	if !all {
		for i := range before.Guests {
			for _, d := range before.Guests[i].Spec.Domains {
				old[vps.Domain{Name: d.Name, Listen: d.Listen}] = true
			}
		}
	}
	var names []string
	for i := range after.Guests {
		g := &after.Guests[i]
		if g.ID == owner.ID || g.Deleting {
			continue
		}
		for j := range g.Spec.Domains {
			d := &g.Spec.Domains[j]
			if slices.Contains(slices.Collect(d.Ports()), port) && !old[vps.Domain{Name: d.Name, Listen: d.Listen}] {
				names = append(names, d.String()+" of "+g.Spec.Name)
			}
		}
	}
	return names
}
