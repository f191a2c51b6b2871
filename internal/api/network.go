package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"sublet/internal/vps"
)

// SetLimits changes some of a guest's network limits. A nil field stays as it
// is, and 0 means what the host's settings say.
type SetLimits struct {
	Packets        *int `json:"packets,omitempty" minimum:"0" doc:"Packets per second that the guest may send; 0 for the host's setting."`
	NewConnections *int `json:"new_connections,omitempty" minimum:"0" doc:"New connections per second; 0 for the host's setting."`
	Connections    *int `json:"connections,omitempty" minimum:"0" doc:"Tracked connections at a time; 0 for the host's setting."`
}

// SetResources changes some of what a guest's processes may take of the host.
// A nil field stays as it is, and 0 means the default.
type SetResources struct {
	CPUWeight *int       `json:"cpu_weight,omitempty" minimum:"0" doc:"Share of a busy processor, 1 to 10000; 0 means 100."`
	CPUQuota  *int       `json:"cpu_quota,omitempty" minimum:"0" doc:"Most processor time in percent of one processor; 0 means no limit."`
	IOWeight  *int       `json:"io_weight,omitempty" minimum:"0" doc:"Share of a busy disk, 1 to 10000; 0 means 100."`
	IORead    *vps.Bytes `json:"io_read,omitempty" doc:"Most bytes read from the disk per second; 0 means no limit."`
	IOWrite   *vps.Bytes `json:"io_write,omitempty" doc:"Most bytes written to the disk per second; 0 means no limit."`
	Processes *int       `json:"processes,omitempty" minimum:"0" doc:"Most processes; 0 means 4096."`
}

// Expect is what a caller last saw of a guest. A change that carries it is
// made only if all of it still holds, and otherwise refused with
// vps.CodeConflict and a field for which [Changed] is true, so that lists can
// be read, edited and written back without losing what somebody else wrote in
// between. Nil fields are not looked at.
type Expect struct {
	SSHKeys  *[]string      `json:"ssh_keys,omitempty" doc:"The keys that it has."`
	Forwards *[]vps.Forward `json:"forwards,omitempty" doc:"The forwards that it has."`
	Domains  *[]vps.Domain  `json:"domains,omitempty" doc:"The domains that it has, sorted by name and then by listen."`
	Rules    *[]vps.Rule    `json:"rules,omitempty" doc:"The rules that it has, in their order."`
}

// Check compares what was expected with what a guest has. A nil Expect always
// holds.
func (e *Expect) Check(s vps.GuestSpec) error {
	switch {
	case e == nil:
	case differs(e.SSHKeys, s.SSHKeys):
		return notAsExpected(s.Name, "ssh_keys", "SSH keys")
	case differs(e.Forwards, s.Forwards):
		return notAsExpected(s.Name, "forwards", "forwards")
	case differs(e.Domains, s.Domains):
		return notAsExpected(s.Name, "domains", "domains")
	case differs(e.Rules, s.Rules):
		return notAsExpected(s.Name, "rules", "rules")
	}
	return nil
}

func differs[T comparable](want *[]T, have []T) bool {
	if want == nil {
		return false
	}
	if len(*want) != len(have) {
		return true
	}
	for i := range have {
		if have[i] != (*want)[i] {
			return true
		}
	}
	return false
}

// expectField begins the field of errors about what was expected.
const expectField = "expect."

func notAsExpected(guest, field, what string) error {
	return &vps.Error{
		Code: vps.CodeConflict, Field: expectField + field,
		Message: "the " + what + " of the guest " + guest + " were changed meanwhile; look at them and try again",
	}
}

// Changed tells whether err refused a change because the guest was not as the
// caller expected it: reading it anew and trying again may help.
func Changed(err error) bool {
	e, ok := errors.AsType[*vps.Error](err)
	return ok && e.Code == vps.CodeConflict && strings.HasPrefix(e.Field, expectField)
}

// Apply lays the change over the limits that a guest has; a nil change changes
// nothing.
func (c *SetLimits) Apply(l vps.NetworkLimits) vps.NetworkLimits {
	if c != nil {
		set(&l.Packets, c.Packets)
		set(&l.NewConnections, c.NewConnections)
		set(&l.Connections, c.Connections)
	}
	return l
}

// Apply lays the change over the resources that a guest has; a nil change
// changes nothing.
func (c *SetResources) Apply(r vps.Resources) vps.Resources {
	if c != nil {
		set(&r.CPUWeight, c.CPUWeight)
		set(&r.CPUQuota, c.CPUQuota)
		set(&r.IOWeight, c.IOWeight)
		set(&r.IORead, c.IORead)
		set(&r.IOWrite, c.IOWrite)
		set(&r.Processes, c.Processes)
	}
	return r
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// UpdateTenant creates a tenant or changes one. A nil field stays as it is.
type UpdateTenant struct {
	Note        *string `json:"note,omitempty" maxLength:"1000" doc:"Free text for the owner."`
	NetworkPeer *bool   `json:"network_peer,omitempty" doc:"Whether the guests of the tenant reach each other."`
	Email       *string `json:"email,omitempty" doc:"Where the tenant gets mail about what concerns it; empty for none."`
	Webhook     *string `json:"webhook,omitempty" doc:"An http or https URL that gets a signed POST; empty for none."`
}

// GuestNetwork is the network of one guest as it holds now: what its spec
// leaves open is filled in from the host's settings.
type GuestNetwork struct {
	Schema    int          `json:"schema_version"`
	Name      string       `json:"name"`
	Link      string       `json:"link" doc:"Name of its tap on the host."`
	MAC       string       `json:"mac" doc:"Its hardware address."`
	Address   netip.Addr   `json:"address" doc:"Its IPv4 address."`
	Gateway   netip.Addr   `json:"gateway" doc:"The host's address towards it in IPv4."`
	IPv6      netip.Prefix `json:"ipv6" doc:"Its IPv6 prefix; empty when it has none."`
	Address6  netip.Addr   `json:"address6" doc:"The address in its prefix that it uses itself; empty without IPv6."`
	Gateway6  netip.Addr   `json:"gateway6" doc:"The host's address towards it in IPv6; empty without IPv6."`
	Bandwidth vps.BitRate  `json:"bandwidth" doc:"Most bits per second, each way; 0 means no limit."`
	Limits    GuestLimits  `json:"limits"`
	// NetworkPeer tells whether the guest takes part, by its own wish or its
	// tenant's; Peers are the guests that it reaches, by name.
	NetworkPeer bool       `json:"network_peer" doc:"Whether it reaches other guests of its tenant."`
	Peers       []string   `json:"peers" doc:"The guests that it reaches."`
	SMTP        bool       `json:"smtp" doc:"Whether port 25 outside is open to it."`
	Rules       []vps.Rule `json:"rules" doc:"The owner's rules; the first that matches wins."`
	Drops       []Drop     `json:"drops" doc:"What the wall dropped, by reason."`
}

// GuestLimits are a guest's limits, and where each comes from.
type GuestLimits struct {
	vps.NetworkLimits
	// Inherited names those that are the host's setting and not the guest's.
	Inherited []string `json:"inherited" doc:"Names of those limits that are the host's settings."`
}

// LimitsOf returns the limits that hold for a guest on a host with these
// settings.
func LimitsOf(own, host vps.NetworkLimits) GuestLimits {
	l := GuestLimits{NetworkLimits: own.Or(host), Inherited: []string{}}
	for _, f := range []struct {
		name string
		own  int
	}{{"packets", own.Packets}, {"new_connections", own.NewConnections}, {"connections", own.Connections}} {
		if f.own == 0 {
			l.Inherited = append(l.Inherited, f.name)
		}
	}
	return l
}

// Drop is how much of a guest's traffic the wall dropped for one reason.
type Drop struct {
	vps.Drop
	// Last is when the number was last seen to grow, zero when it has not since
	// the daemon started.
	Last time.Time `json:"last,omitzero" doc:"When it was last seen to grow; left out when it has not since the daemon started."`
}

// Networks observes the networks of guests.
type Networks interface {
	// GuestNetwork returns the network of one guest, or vps.CodeNotFound.
	GuestNetwork(ctx context.Context, name string) (GuestNetwork, error)
}

func (s *Server) registerNetwork() {
	register(s, operation("show-guest-network", http.MethodGet, "/v1/guests/{name}/network", "guests", "Show a guest's network"),
		func(ctx context.Context, in *guestInput) (*reply[GuestNetwork], error) {
			o, err := s.observed()
			if err != nil {
				return nil, err
			}
			n, err := o.GuestNetwork(ctx, in.Name)
			n.Schema = SchemaVersion
			n.Limits.Inherited, n.Peers = notNil(n.Limits.Inherited), notNil(n.Peers)
			n.Rules, n.Drops = notNil(n.Rules), notNil(n.Drops)
			return bodyOf(n, err)
		})
}

// GuestNetwork returns the network of one guest as it holds now, or
// vps.CodeNotFound.
func (c *Client) GuestNetwork(ctx context.Context, name string) (GuestNetwork, error) {
	path, err := guestPath(name, "/network")
	if err != nil {
		return GuestNetwork{}, err
	}
	return get[GuestNetwork](ctx, c, path, nil)
}
