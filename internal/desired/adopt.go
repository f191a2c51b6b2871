package desired

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"sublet/internal/hostfile"
	"sublet/internal/hostname"
	"sublet/internal/vps"
)

// Adoption is a guest from elsewhere that is to become one of this host's.
type Adoption struct {
	// ID is the guest's, under which its volume lies already. NewID makes one.
	ID string
	// File is what Describe wrote, here or elsewhere.
	File json.RawMessage
	// Domains are those of the guest elsewhere, each a vps.Domain.
	Domains []json.RawMessage
	// Quota is that of the guest elsewhere, a vps.Quota; empty or null for none.
	Quota json.RawMessage
	// Name is what it is to be called here; empty keeps its name.
	Name string
	// Storage is where its disks lie here.
	Storage string
	// ImageID is the version of the image that it was once made from, which need
	// not be on this host.
	ImageID string
	// Start asks for it to run.
	Start bool
}

// NewID returns an ID that no guest ever had.
func (s *State) NewID() string { return s.newID() }

// Describe writes a guest as Adopt reads it, with the disks that it takes along,
// and its domains, which are apart.
func Describe(g vps.Guest, disks []vps.DataDisk) (file json.RawMessage, domains []json.RawMessage, err error) {
	domains = make([]json.RawMessage, len(g.Spec.Domains))
	for i := range g.Spec.Domains {
		if domains[i], err = json.Marshal(g.Spec.Domains[i]); err != nil {
			return nil, nil, err
		}
	}
	g.Spec.Disks, g.Spec.Domains = disks, nil
	file, err = hostfile.EncodeGuest(g)
	return file, domains, err
}

// Adopt adds a guest whose volume is there already. What it had elsewhere it
// has here too where that is free; what is taken or does not fit is given out
// anew, and told, one sentence each.
func (s *State) Adopt(ctx context.Context, a Adoption, dryRun bool) (Edited, []string, error) {
	// In lines of its own each: Decode bounds their length.
	var file bytes.Buffer
	if err := json.Indent(&file, a.File, "", " "); err != nil {
		file.Reset()
	}
	f, err := hostfile.Decode(&file)
	if err == nil && len(f.Guests) != 1 {
		err = vps.Errorf(vps.CodeInvalid, "%d guests are described, and not one", len(f.Guests))
	}
	if err != nil {
		return Edited{}, nil, vps.Wrap(vps.ErrorCode(err), err, "the guest's description cannot be read: %s; it may be of a newer sublet", vps.ErrorMessage(err))
	}
	name := f.Guests[0].Name
	if a.Name != "" {
		name = a.Name
	}
	var told []string
	before, after, err := s.edit(ctx, dryRun, func(c *contents) error {
		told = nil // an edit may be made several times
		listeners, err := s.facts.Listeners(ctx)
		if err != nil {
			return err
		}
		err = s.addWith(ctx, c, a.ID, name, a.ImageID, func(spec vps.GuestSpec) (vps.GuestSpec, error) {
			spec, err := f.Guests[0].Merge(spec)
			spec.Name, spec.Storage, spec.Power = name, a.Storage, vps.PowerStopped
			if a.Start {
				spec.Power = vps.PowerRunning
			}
			spec.Domains, told = theirDomains(a.Domains)
			spec, more := settle(&c.host, spec, listeners)
			told = append(told, more...)
			spec, more = s.settleKernel(ctx, c.host.Settings, spec)
			told = append(told, more...)
			return spec, err
		})
		if err != nil {
			return err
		}
		if err := s.adoptQuota(c, name, a.Quota); err != nil {
			told = append(told, fmt.Sprintf("its quota cannot be had here: %s; set one with `sublet quota set %s`", vps.ErrorMessage(err), name))
		}
		return nil
	})
	return Edited{before, after, a.ID}, told, err
}

// theirDomains reads the domains that a guest had elsewhere. What is not one here is
// told, and left out.
func theirDomains(files []json.RawMessage) (domains []vps.Domain, told []string) {
	there := map[string]bool{}
	for _, file := range files[:min(len(files), vps.MaxGuestDomains)] {
		var d vps.Domain
		err := json.Unmarshal(file, &d)
		if err != nil {
			err = vps.Wrap(vps.CodeInvalid, err, "it cannot be read; it may be of a newer sublet")
		} else {
			d.Name, err = hostname.Canonical(d.Name)
		}
		if err == nil {
			err = d.Validate("")
		}
		switch {
		case err != nil:
			told = append(told, fmt.Sprintf("a domain of its cannot be had here: %s", vps.ErrorMessage(err)))
		case !there[d.String()]:
			there[d.String()] = true
			domains = append(domains, d)
		}
	}
	return domains, told
}

// adoptQuota gives a guest the quota that it had elsewhere. Its use begins anew,
// and what was topped up or lifted there was for that use.
func (s *State) adoptQuota(c *contents, name string, file json.RawMessage) error {
	var theirs *vps.Quota
	if len(file) > 0 {
		if err := json.Unmarshal(file, &theirs); err != nil {
			return vps.Wrap(vps.CodeInvalid, err, "it cannot be read")
		}
	}
	if theirs == nil {
		return nil
	}
	_, err := setQuota(c, vps.QuotaGuest, name, s.now(), func(vps.Quota) (vps.Quota, error) {
		q := *theirs
		q.Topup, q.TopupMonth, q.LiftedMonth = 0, "", ""
		return q, nil
	})
	return err
}

// settle makes a spec from elsewhere one that fits this host.
func settle(h *vps.Host, s vps.GuestSpec, listeners []Listener) (vps.GuestSpec, []string) {
	var told []string
	tell := func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }
	if h.Tenant(s.Tenant) == nil {
		tell("the tenant %s is not known here; the guest belongs to %s", s.Tenant, vps.DefaultTenant)
		s.Tenant = vps.DefaultTenant
	}
	if s.Address.IsValid() && !freeAddress(h, s.Address) {
		tell("the address %s is taken or not of this host; it gets another one", s.Address)
		s.Address = netip.Addr{}
	}
	if s.IPv6.IsValid() && !freePrefix(h, s.IPv6) {
		tell("the IPv6 prefix %s is taken or not of this host; it gets another one", s.IPv6)
		s.IPv6 = netip.Prefix{}
	}
	if s.Ports.First != 0 {
		pool, none := h.Settings.PortRange, s
		none.Forwards = nil
		if s.Ports.First < pool.First || s.Ports.Last() > pool.Last() || blockTaken(h, &none, s.Ports, listeners) {
			tell("the ports %s are taken or not of this host; it gets as many others", s.Ports)
			s.Ports.First = 0
		}
	}
	forwards := slices.DeleteFunc(slices.Clone(s.Forwards), func(f vps.Forward) bool {
		gone := free(listeners, f) != nil || slices.ContainsFunc(h.Guests, func(g vps.Guest) bool {
			return g.Spec.Ports.Contains(f.Host) || slices.ContainsFunc(g.Spec.Forwards, f.Collides)
		})
		if gone {
			tell("the host port %d is taken here, so %s is not forwarded; forward another one with `sublet port add %s`", f.Host, f, s.Name)
		}
		return gone
	})
	if s.Forwards = forwards; len(forwards) == 0 {
		s.Forwards = nil
	}
	s, more := settleDomains(h, s, listeners)
	return s, append(told, more...)
}

// settleDomains leaves out domains that are taken here. What the owner elsewhere
// vouched for, the owner here has not.
func settleDomains(h *vps.Host, s vps.GuestSpec, listeners []Listener) (vps.GuestSpec, []string) {
	var told []string
	domains := slices.Clone(s.Domains)
	for i := range domains {
		if d := &domains[i]; d.Vouched && s.Tenant != vps.DefaultTenant {
			d.Vouched = false
			told = append(told, fmt.Sprintf("nobody here has vouched for the domain %s; `sublet domain add --vouch` does", d))
		}
	}
	fits := func(list []vps.Domain) bool {
		with := vps.Host{Settings: h.Settings, Guests: append(slices.Clone(h.Guests), vps.Guest{Spec: s})}
		with.Guests[len(h.Guests)].Spec.Domains = list
		return with.ValidateDomains() == nil && freePorts(h, listeners, nil, list) == nil
	}
	if s.Domains = domains; fits(domains) {
		return s, told
	}
	s.Domains = nil
	for i := range domains {
		if more := append(slices.Clone(s.Domains), domains[i]); fits(more) {
			s.Domains = more
			continue
		}
		told = append(told, fmt.Sprintf("the domain %s cannot be had here: its name or its port is taken, or a suffix is over it or would be over others' names; `sublet domain add %s %s` says more", &domains[i], s.Name, domains[i].Name))
	}
	return s, told
}

// settleKernel gives a guest the host's default kernel where its own is not
// there, and what every kernel can do where that one cannot do more.
func (s *State) settleKernel(ctx context.Context, settings vps.Settings, spec vps.GuestSpec) (vps.GuestSpec, []string) {
	var told []string
	if spec.Kernel != "" && s.facts.Kernel(ctx, settings, spec) != nil {
		told = append(told, fmt.Sprintf("the kernel %s is not on this host; it boots the host's default", spec.Kernel))
		spec.Kernel = ""
	}
	if spec.Isolation != vps.IsolationStrict && s.facts.Kernel(ctx, settings, spec) != nil {
		told = append(told, fmt.Sprintf("the host's default kernel has no isolation %s; it is %s, with one processor", spec.Isolation, vps.IsolationStrict))
		spec.Isolation, spec.CPUs = vps.IsolationStrict, 1
	}
	return spec, told
}

func freeAddress(h *vps.Host, a netip.Addr) bool {
	subnet := h.Settings.Subnet
	if !subnet.Contains(a) || !subnet.Contains(a.Next()) || a == subnet.Addr() || a == h.Settings.Gateway() {
		return false
	}
	return !slices.ContainsFunc(h.Guests, func(g vps.Guest) bool { return g.Spec.Address == a })
}

func freePrefix(h *vps.Host, p netip.Prefix) bool {
	pool := h.Settings.Subnet6
	if !pool.IsValid() || p.Bits() < pool.Bits() || !pool.Contains(p.Addr()) {
		return false
	}
	return !slices.ContainsFunc(h.Guests, func(g vps.Guest) bool { return h.Settings.Prefix6(&g.Spec).Overlaps(p) })
}
