package vps

import (
	"net/netip"
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
	// MemoryOvercommit is how much of the host's memory may be promised to
	// running guests, in percent.
	MemoryOvercommit int `json:"memory_overcommit"`
	// FirstUID starts the range of user ids that guests' processes run under.
	FirstUID uint32 `json:"first_uid"`
}

// DefaultSettings returns the settings of a new host.
func DefaultSettings() Settings {
	return Settings{
		Subnet:           netip.MustParsePrefix("10.213.0.0/16"),
		PortRange:        PortBlock{First: 20000, Count: 10000},
		Locale:           "C.UTF-8",
		Timezone:         "Etc/UTC",
		MemoryOvercommit: 100,
		FirstUID:         721300,
	}
}

// Defaults of a guest that names nothing else.
const (
	DefaultMemory      = 512 * MiB
	DefaultDisk        = 8 * GiB
	DefaultPorts       = 20
	DefaultImage       = "debian/12"
	DefaultDriver      = "uml"
	DefaultStopTimeout = Duration(60 * time.Second)
)

// Host is the whole desired state of one host: what a host file describes.
// Slices are sorted by name.
type Host struct {
	Settings Settings
	Tenants  []Tenant
	Guests   []Guest
}

// Network returns the network that the host's settings and guests call for.
// Only guests for which keep returns true take part; a nil keep means all.
func (h *Host) Network(keep func(*Guest) bool) Network {
	n := Network{
		Subnet:  h.Settings.Subnet.Masked(),
		Gateway: h.Settings.Gateway(),
		Uplink:  h.Settings.Uplink,
	}
	for i := range h.Guests {
		g := &h.Guests[i]
		if keep != nil && !keep(g) {
			continue
		}
		n.Guests = append(n.Guests, NetworkGuest{
			Name: g.Spec.Name, Link: g.Link(), MAC: g.Spec.MAC(), Address: g.Spec.Address,
			UID: h.Settings.UID(g.Index), Ports: g.Spec.Ports, Forwards: g.Spec.Forwards,
		})
	}
	return n
}

// Gateway returns the host's own address in the subnet: the first usable one.
func (s Settings) Gateway() netip.Addr { return s.Subnet.Masked().Addr().Next() }

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
	EventStarted  = "started"
	EventStopped  = "stopped"
	EventCrashed  = "crashed"
	EventDeleted  = "deleted"
	EventDrift    = "drift"
	EventFailed   = "failed"
	EventOrphan   = "orphan"
	EventAttached = "attached"
)
