package vps

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Settings are what the owner sets for the whole host.
type Settings struct {
	// Subnet is the pool for guests' addresses; its first address is the
	// host's.
	Subnet netip.Prefix `json:"subnet"`
	// PortRange is the pool that port blocks come from.
	PortRange PortBlock `json:"port_range"`
	// Uplink is the public link; empty means the default route's.
	Uplink string `json:"uplink"`
	// PublicAddress is what callers use to reach the host, for display only;
	// the zero value means the uplink's first address.
	PublicAddress netip.Addr `json:"public_address"`
	// DNS is what guests use that name none themselves; empty means the
	// host's own servers.
	DNS      []netip.Addr `json:"dns"`
	Locale   string       `json:"locale"`
	Timezone string       `json:"timezone"`
	// Kernel is the name of the kernel that guests boot which name none; empty
	// means the newest that is installed as a package.
	Kernel string `json:"kernel"`
	// MemoryOvercommit is how much of the host's memory may be promised to
	// running guests, in percent.
	MemoryOvercommit int `json:"memory_overcommit"`
	// DiskThresholds are the percentages of a filesystem's blocks or inodes
	// that an event tells of when they are reached, rising; empty for none.
	DiskThresholds []int `json:"disk_thresholds"`
	// TrafficSample is how often traffic is read from the kernel and kept.
	TrafficSample Duration `json:"traffic_sample"`
	// FirstUID starts the range of user ids that guests' processes run under.
	FirstUID uint32 `json:"first_uid"`
	// Subnet6 is the pool for guests' IPv6: a part of what the provider gave
	// the host, which is routed, or unique local addresses (RFC 4193), which
	// are translated to the host's own (NAT66). The zero value means that
	// guests have no IPv6.
	Subnet6 netip.Prefix `json:"subnet6"`
	// GuestBits6 is the length of each guest's prefix in Subnet6: 128 for one
	// address, less for a prefix of its own.
	GuestBits6 int `json:"guest_bits6"`
	// NDPProxy says whether the host answers for guests' IPv6 addresses.
	NDPProxy NDPProxy `json:"ndp_proxy"`
	// Services are the ports of the host that every guest may reach.
	Services []Service `json:"services"`
	// Limits are those of guests that have none of their own.
	Limits NetworkLimits `json:"limits"`
	// Notices say where the owner is told, and how mail goes out.
	Notices NoticeSettings `json:"notices"`
	// Price is what guests are billed by.
	Price Price `json:"price"`
	// Edge is how the edge treats those who call guests' domains.
	Edge EdgeSettings `json:"edge"`
}

// DefaultSettings returns the settings of a new host.
func DefaultSettings() Settings {
	return Settings{
		Subnet:           netip.MustParsePrefix("10.213.0.0/16"),
		PortRange:        PortBlock{First: 20000, Count: 10000},
		Locale:           "C.UTF-8",
		Timezone:         "Etc/UTC",
		MemoryOvercommit: 100,
		DiskThresholds:   []int{80, 95},
		TrafficSample:    Duration(10 * time.Second),
		FirstUID:         721300,
		Subnet6:          netip.MustParsePrefix("fd53:4c00:d5::/64"),
		GuestBits6:       128,
		NDPProxy:         NDPAuto,
		Services:         DefaultServices(),
		Limits:           DefaultNetworkLimits(),
		Notices:          NoticeSettings{TLS: MailStartTLS},
		Price:            DefaultPrice(),
		Edge:             DefaultEdgeSettings(),
	}
}

// MinTrafficSample and MaxTrafficSample bound Settings.TrafficSample.
const (
	MinTrafficSample = Duration(time.Second)
	MaxTrafficSample = Duration(5 * time.Minute)
)

// Defaults of a guest that names nothing else.
const (
	DefaultMemory      = 512 * MiB
	DefaultDisk        = 8 * GiB
	DefaultPorts       = 20
	DefaultImage       = "debian/12"
	RescueImage        = "sublet/rescue"
	DefaultDriver      = "uml"
	DefaultStopTimeout = Duration(60 * time.Second)
)

// Host is the whole desired state of one host: what a host file describes.
// Slices are sorted by name, quotas by CompareQuotas.
type Host struct {
	Settings Settings
	Tenants  []Tenant
	Guests   []Guest
	Quotas   []Quota
}

// Network returns the network that the host's settings and guests call for.
// Only guests for which keep returns true take part; a nil keep means all.
func (h *Host) Network(keep func(*Guest) bool) Network {
	s := &h.Settings
	n := Network{
		Subnet: s.Subnet.Masked(), Gateway: s.Gateway(), Uplink: s.Uplink,
		Subnet6: s.Subnet6.Masked(), NAT6: s.NAT6(), NDPProxy: s.NDPProxy, Services: h.openToGuests(),
		EdgeUID: h.edgeUID(),
	}
	peers := map[string]bool{}
	for _, t := range h.Tenants {
		peers[t.Name] = t.NetworkPeer
	}
	for i := range h.Guests {
		g := &h.Guests[i]
		if keep != nil && !keep(g) {
			continue
		}
		ng := NetworkGuest{
			Name: g.Spec.Name, Link: g.Link(), MAC: g.Spec.MAC(), Address: g.Spec.Address,
			UID: s.UID(g.Index), Ports: g.Spec.Ports, Forwards: g.Spec.Forwards, Prefix6: s.Prefix6(&g.Spec),
			SMTP: g.Spec.SMTP, Bandwidth: g.Restraint.Throttle(g.Spec.Bandwidth), Limits: g.Spec.Limits.Or(s.Limits), Rules: g.Spec.Rules,
		}
		if g.Spec.NetworkPeer || peers[g.Spec.Tenant] {
			ng.Peers = g.Spec.Tenant
		}
		n.Guests = append(n.Guests, ng)
	}
	return n
}

// GuestAddress tells whether an address is one that guests have, or may get.
func (h *Host) GuestAddress(a netip.Addr) bool {
	a = a.Unmap()
	if h.Settings.Subnet.Contains(a) || h.Settings.Subnet6.Contains(a) {
		return true
	}
	for i := range h.Guests {
		if h.Settings.Prefix6(&h.Guests[i].Spec).Contains(a) {
			return true
		}
	}
	return false
}

// openToGuests are the services, and the ports that domains have besides those of
// web: who may call a guest's domain from outside may from another guest.
func (h *Host) openToGuests() []Service {
	services := slices.Clone(h.Settings.Services)
	for _, port := range h.EdgePorts() {
		if s := (Service{port, ProtoTCP}); !Shared(port) && !slices.Contains(services, s) {
			services = append(services, s)
		}
	}
	return services
}

// edgeUID is the edge's user id, zero while no guest has a domain: then there is no
// edge.
func (h *Host) edgeUID() uint32 {
	if slices.ContainsFunc(h.Guests, func(g Guest) bool { return len(g.Spec.Domains) > 0 }) {
		return h.Settings.EdgeUID()
	}
	return 0
}

// NAT6 tells whether guests' IPv6 addresses are translated to the host's: they
// are unless they are global unicast ones (RFC 4291, 2000::/3).
func (s *Settings) NAT6() bool {
	return s.Subnet6.IsValid() && !netip.MustParsePrefix("2000::/3").Contains(s.Subnet6.Addr())
}

// Prefix6 returns a guest's IPv6 prefix: its own, or the one in Subnet6 that
// has the same place there as the guest's address has in Subnet. It is the
// zero value when the host has no IPv6 for guests.
func (s *Settings) Prefix6(g *GuestSpec) netip.Prefix {
	if !s.Subnet6.IsValid() || g.IPv6.IsValid() || !s.Subnet.IsValid() || !g.Address.Is4() {
		if !s.Subnet6.IsValid() {
			return netip.Prefix{}
		}
		return g.IPv6
	}
	low, own := s.Subnet.Masked().Addr().As4(), g.Address.As4()
	place := binary.BigEndian.Uint32(own[:]) - binary.BigEndian.Uint32(low[:])
	bits := s.GuestBits6
	if bits-s.Subnet6.Bits() < 32 && place >= 1<<(bits-s.Subnet6.Bits()) {
		return netip.Prefix{}
	}
	a := s.Subnet6.Masked().Addr().As16()
	high, rest := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	switch shift := 128 - bits; {
	case shift >= 64:
		high |= uint64(place) << (shift - 64)
	case shift == 0:
		rest |= uint64(place)
	default:
		rest |= uint64(place) << shift
		high |= uint64(place) >> (64 - shift)
	}
	binary.BigEndian.PutUint64(a[:8], high)
	binary.BigEndian.PutUint64(a[8:], rest)
	return netip.PrefixFrom(netip.AddrFrom16(a), bits)
}

// Gateway returns the host's own address in the subnet: the first usable one.
func (s Settings) Gateway() netip.Addr { return s.Subnet.Masked().Addr().Next() }

// EdgeUID returns the user id that the edge runs under, and nobody else: FirstUID
// itself is that of appliances, and guests' begin behind it.
func (s *Settings) EdgeUID() uint32 { return s.FirstUID - 1 }

// UID returns the user id that the guest with this index runs under.
func (s Settings) UID(index int) uint32 { return s.FirstUID + uint32(index) }

// Event is something that happened, for people and for the log.
type Event struct {
	ID      int64     `json:"id"`
	Time    time.Time `json:"time"`
	Guest   string    `json:"guest,omitempty"`
	Kind    string    `json:"kind"`
	Message string    `json:"message"`
}

// The kinds of events.
const (
	EventCreated  = "created"
	EventSnapshot = "snapshot" // one was taken, or restored
	EventPacked   = "packed"
	EventStarted  = "started"
	EventStopped  = "stopped"
	EventCrashed  = "crashed"
	EventDeleted  = "deleted"
	EventDrift    = "drift"
	EventFailed   = "failed"
	EventOrphan   = "orphan"
	EventAttached = "attached"
	EventRescue   = "rescue"
	EventEdge     = "edge"    // the edge was started, replaced or lost, or a call started a guest
	EventDropped  = "dropped" // the wall dropped packets of a guest, or for one
	EventBilled   = "billed"  // the bill of a month was made
	EventFilling  = "filling" // a guest's filesystem has passed a threshold
	EventQuota    = "quota"   // a step of a quota was reached
	EventNotice   = "notice"  // one could not be sent and is given up
	EventDomain   = "domain"  // one went live, its proof is gone, or it is not live any more
)

// validateThresholds checks what events tell of full disks.
func (s *Settings) validateThresholds() error {
	const most = 8
	if len(s.DiskThresholds) > most {
		return Invalid("settings.disk_thresholds", "%d are too many; use at most %d", len(s.DiskThresholds), most)
	}
	before := 0
	for i, t := range s.DiskThresholds {
		if t <= before || t > 100 {
			return Invalid(fmt.Sprintf("settings.disk_thresholds[%d]", i), "%d%% is out of place; use 1 to 100, the lowest first", t)
		}
		before = t
	}
	return nil
}
