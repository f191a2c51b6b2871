package vps

import (
	"fmt"
	"net/netip"
)

// NewGuestSpec returns the spec of a guest that names nothing but itself.
// Address and port block are still to be given out.
func NewGuestSpec(name string) GuestSpec {
	return GuestSpec{
		Name: name, Tenant: DefaultTenant, Driver: DefaultDriver, Image: DefaultImage,
		Memory: DefaultMemory, Disk: DefaultDisk, Storage: StorageFile, Isolation: IsolationStrict, CPUs: 1,
		Power: PowerRunning, Hostname: name,
		Ports: PortBlock{Count: DefaultPorts}, Restart: RestartOnFailure, Autostart: true,
		StopTimeout: DefaultStopTimeout, BillingWeight: DefaultBillingWeight,
	}
}

// Guest returns the guest with this name, or nil.
func (h *Host) Guest(name string) *Guest {
	for i := range h.Guests {
		if h.Guests[i].Spec.Name == name {
			return &h.Guests[i]
		}
	}
	return nil
}

// Tenant returns the tenant with this name, or nil.
func (h *Host) Tenant(name string) *Tenant {
	for i := range h.Tenants {
		if h.Tenants[i].Name == name {
			return &h.Tenants[i]
		}
	}
	return nil
}

// Quota returns the quota of this scope and name, or nil.
func (h *Host) Quota(scope QuotaScope, name string) *Quota {
	for i := range h.Quotas {
		if q := &h.Quotas[i]; q.Scope == scope && q.Name == name {
			return q
		}
	}
	return nil
}

// Promised returns the memory of the guests that run or are to run.
func (h *Host) Promised() Bytes {
	var sum Bytes
	for i := range h.Guests {
		if g := &h.Guests[i]; g.Spec.Power == PowerRunning && !g.Deleting {
			sum += g.Spec.Memory
		}
	}
	return sum
}

// Validate checks every part and that no two of them want the same thing. It
// returns the first fault, or nil.
func (h *Host) Validate() error {
	if err := h.Settings.Validate(); err != nil {
		return err
	}
	tenants := map[string]bool{}
	for i, t := range h.Tenants {
		if err := ValidName(fmt.Sprintf("tenants[%d].name", i), t.Name); err != nil {
			return err
		}
		if len(t.Note) > 1000 {
			return Invalid(fmt.Sprintf("tenants[%d].note", i), "a note has at most 1000 characters")
		}
		if tenants[t.Name] {
			return Errorf(CodeConflict, "the tenant %s is there twice; remove one", t.Name)
		}
		tenants[t.Name] = true
		if err := t.validateNotices(i, h.Settings.Notices.AllowPrivate); err != nil {
			return err
		}
	}
	for i := range h.Guests {
		if err := h.validateGuest(i, tenants); err != nil {
			return err
		}
	}
	if err := h.ValidateDomains(); err != nil {
		return err
	}
	return h.validateQuotas()
}

// validateQuotas checks the quotas, and that they count somebody's traffic.
func (h *Host) validateQuotas() error {
	there := map[string]bool{}
	for i := range h.Quotas {
		q := &h.Quotas[i]
		// Edits of quotas see to it that zones are known. One that is not any more
		// must not stand in the way of all edits.
		if err := q.validate(); err != nil {
			return err
		}
		switch g := h.Guest(q.Name); {
		case there[q.ID()]:
			return Errorf(CodeConflict, "there are two quotas of %s; remove one", q.Whose())
		case q.Scope == QuotaTenant && h.Tenant(q.Name) == nil:
			return Errorf(CodeNotFound, "there is no tenant %s to have a quota; `sublet tenant list` shows all", q.Name)
		case q.Scope == QuotaGuest && (g == nil || g.Deleting):
			return Errorf(CodeNotFound, "there is no guest %s to have a quota; `sublet list` shows all", q.Name)
		}
		there[q.ID()] = true
	}
	return nil
}

// validateGuest checks one guest, and against those before it.
func (h *Host) validateGuest(i int, tenants map[string]bool) error {
	g := &h.Guests[i]
	if err := g.Spec.Validate(); err != nil {
		return err
	}
	s := &g.Spec
	if !tenants[s.Tenant] && !g.Deleting { // a tenant may go before the last guest is gone
		return Errorf(CodeNotFound, "there is no tenant %s for the guest %s; add it with `sublet tenant add %s`", s.Tenant, s.Name, s.Tenant)
	}
	if err := h.Settings.validAddress(s); err != nil {
		return err
	}
	for j := range s.Domains {
		if err := h.Settings.Edge.ACME.canTerminate(fmt.Sprintf("domains[%d].terminate", j), &s.Domains[j]); err != nil && !g.Deleting {
			return err
		}
	}
	for _, f := range s.Forwards {
		if s.Ports.Contains(f.Host) {
			return Errorf(CodeConflict, "the host port %d is already in %s's own block %s", f.Host, s.Name, s.Ports)
		}
	}
	for j := range h.Guests[:i] {
		if err := g.conflict(&h.Guests[j]); err != nil {
			return err
		}
	}
	return h.validPrefix6(i)
}

func (s *Settings) validAddress(g *GuestSpec) error {
	switch {
	case !s.Subnet.Contains(g.Address):
		return Invalid("address", "%s of the guest %s is not in the host's subnet %s", g.Address, g.Name, s.Subnet)
	case g.Address == s.Subnet.Addr() || g.Address == s.Gateway() || g.Address == lastAddress(s.Subnet):
		return Invalid("address", "%s is kept for the host itself; choose another one in %s", g.Address, s.Subnet)
	}
	return nil
}

// validPrefix6 checks the IPv6 prefix of a guest against the pool and the
// guests before it.
func (h *Host) validPrefix6(i int) error {
	set, g := &h.Settings, &h.Guests[i].Spec
	if !set.Subnet6.IsValid() {
		return nil // what it asked for waits for a pool
	}
	own := set.Prefix6(g)
	switch {
	case !own.IsValid():
		return Invalid("settings.subnet6", "%s has no /%d for the guest %s; its place there is that of its address %s in %s; use a larger pool", set.Subnet6, set.GuestBits6, g.Name, g.Address, set.Subnet)
	case own.Bits() < set.Subnet6.Bits() || !set.Subnet6.Contains(own.Addr()):
		return Invalid("ipv6", "%s of the guest %s is not in the host's pool %s", own, g.Name, set.Subnet6)
	}
	for j := range h.Guests[:i] {
		o := &h.Guests[j].Spec
		if set.Prefix6(o).Overlaps(own) {
			return Errorf(CodeConflict, "the IPv6 prefix %s for %s overlaps %s of the guest %s; choose another one", own, g.Name, set.Prefix6(o), o.Name)
		}
	}
	return nil
}

// lastAddress returns the broadcast address of an IPv4 prefix.
func lastAddress(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(a)
}

// conflict tells what two guests both want.
func (g *Guest) conflict(o *Guest) error {
	a, b := &g.Spec, &o.Spec
	switch {
	case a.Name == b.Name && o.Deleting:
		return Errorf(CodeConflict, "the old guest %s is still being deleted; try again in a moment", a.Name)
	case a.Name == b.Name:
		return Errorf(CodeConflict, "a guest named %s exists already; choose another name or delete it first", a.Name)
	case g.Link() == o.Link():
		return Errorf(CodeConflict, "the names %s and %s give the same link %s; choose another name", a.Name, b.Name, g.Link())
	case a.Address == b.Address:
		return Errorf(CodeConflict, "the address %s for %s belongs to the guest %s; choose another one", a.Address, a.Name, b.Name)
	case a.Ports.Overlaps(b.Ports):
		return Errorf(CodeConflict, "the ports %s for %s overlap %s of the guest %s; choose another block", a.Ports, a.Name, b.Ports, b.Name)
	}
	for _, pair := range [][2]*GuestSpec{{a, b}, {b, a}} {
		for _, f := range pair[0].Forwards {
			if pair[1].Ports.Contains(f.Host) {
				return Errorf(CodeConflict, "the host port %d for %s belongs to the block %s of the guest %s; choose another one", f.Host, pair[0].Name, pair[1].Ports, pair[1].Name)
			}
		}
	}
	for _, f := range a.Forwards {
		for _, p := range b.Forwards {
			if f.Collides(p) {
				return Errorf(CodeConflict, "the host port %d/%s for %s already leads to the guest %s; choose another one", f.Host, p.Protocol, a.Name, b.Name)
			}
		}
	}
	return nil
}
