package daemon

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"sublet/internal/proof"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// proofData is what notices about domains tell programs.
type proofData struct {
	vps.Proof
	State vps.DomainState `json:"state"`
	Steps vps.ProofSteps  `json:"steps"`
}

// tell words what is new about a proof: for the owner and for the tenant. It is nil
// for nothing.
func (v *prover) tell(host *vps.Host, p *vps.Proof, news proof.News) *sqlite.ProofNews {
	steps := v.Steps(p)
	var text string
	switch news {
	case proof.NewsLive:
		text = fmt.Sprintf("the domain %s is proved to be %s's, and live", p.Name, p.Tenant)
	case proof.NewsGone:
		until := p.Failing.Add(proof.LostAfter).Format(time.DateOnly)
		text = fmt.Sprintf("the proof that the domain %s is %s's is gone: %s; unless it is there again by %s the domain will not be live any more; %s", p.Name, p.Tenant, p.Message, until, toDo(steps))
	case proof.NewsBack:
		text = fmt.Sprintf("the proof that the domain %s is %s's is there again", p.Name, p.Tenant)
	case proof.NewsLost:
		text = fmt.Sprintf("the domain %s is not live any more: for %d days there was no proof that it is %s's: %s; it will be live again when there is; %s", p.Name, int(proof.LostAfter.Hours()/24), p.Tenant, p.Message, toDo(steps))
	case proof.NewsNone:
		return nil
	}
	data, err := json.Marshal(proofData{*p, p.State(), steps})
	if err != nil {
		data = nil // which it never is
	}
	guest := ""
	for i := range host.Guests {
		g := &host.Guests[i].Spec
		for j := range g.Domains {
			if g.Tenant == p.Tenant && g.Domains[j].Name == p.Name {
				guest = g.Name
			}
		}
	}
	return &sqlite.ProofNews{
		Event:   vps.Event{Kind: vps.EventDomain, Guest: guest, Message: text, Time: p.Checked},
		Notices: []sqlite.AddressedNotice{{Notice: vps.Notice{Kind: vps.EventDomain, Time: p.Checked, Guest: guest, Tenant: p.Tenant, Message: text, Data: data}, To: host.NoticeTo(p.Tenant)}},
	}
}

// toDo says what proves a name.
func toDo(s vps.ProofSteps) string {
	var ways []string
	if s.Record != "" {
		ways = append(ways, fmt.Sprintf("the TXT record %s with %q", s.Record, s.Value))
	}
	if s.URL != "" {
		ways = append(ways, fmt.Sprintf("the file %s with %q", s.URL, s.Content))
	}
	return "what proves it is " + strings.Join(ways, ", or ")
}

// ownAddresses are those that lead to this host: all of them, with whether they are
// on its links.
type ownAddresses struct {
	all map[netip.Addr]bool
	// public4 and public6 tell that public ones of these families are known. A host
	// behind a translation of addresses knows none of its own.
	public4, public6 bool
}

// addressesOf returns the addresses on the host's links, and the public one of its
// settings.
func addressesOf(s *vps.Settings) (ownAddresses, error) {
	own := ownAddresses{all: map[netip.Addr]bool{}}
	onLinks, err := net.InterfaceAddrs()
	if err != nil {
		return own, fmt.Errorf("read the host's addresses: %w", err)
	}
	for _, a := range addressesAmong(onLinks) {
		own.add(a, true, vps.PublicAddress(a))
	}
	if s.PublicAddress.IsValid() {
		own.add(s.PublicAddress, false, true)
	}
	return own, nil
}

func (o *ownAddresses) add(a netip.Addr, onLink, public bool) {
	a = a.Unmap().WithZone("")
	o.all[a] = o.all[a] || onLink
	o.public4 = o.public4 || public && a.Is4()
	o.public6 = o.public6 || public && a.Is6()
}

// has tells whether an address is one of the host's.
func (o *ownAddresses) has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	_, there := o.all[a]
	return there || a.IsLoopback() || a.IsUnspecified()
}

// onLinks tells whether an address is on one of the host's links.
func (o *ownAddresses) onLinks(a netip.Addr) bool { return o.all[a.Unmap().WithZone("")] }

// mayHave tells whether an address could be the host's without it knowing.
func (o *ownAddresses) mayHave(a netip.Addr) bool {
	if a.Unmap().Is4() {
		return !o.public4
	}
	return !o.public6
}
