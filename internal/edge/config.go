// Package edge is the router on the host's ports 80 and 443: it leads callers of
// guests' domains to these guests, by the server name of TLS and by the Host of
// HTTP.
package edge

import (
	"net/netip"
	"time"

	"sublet/internal/vps"
)

// Config is all that the edge is to do, as one plain value. It is made anew for
// each change, and goes to the edge's process as JSON.
type Config struct {
	Settings vps.EdgeSettings `json:"settings"`
	// Own are the host's own addresses and the pools of its guests: who calls from
	// there is never imitated.
	Own []netip.Prefix `json:"own,omitempty"`
	// Ports are those that the edge listens on, each once.
	Ports []Port `json:"ports,omitempty"`
	// Guests are those that have domains, sorted by ID.
	Guests []Guest `json:"guests,omitempty"`
	// ACME is where certificates come from, with what the files that
	// Settings.ACME names hold: a secret.
	ACME ACME `json:"acme,omitzero"`
	// Retry has certificates that were not got until then tried again at once; the
	// zero value is never.
	Retry time.Time `json:"retry,omitzero"`
}

// Kind is what callers speak on a port.
type Kind string

// The kinds.
const (
	KindTLS  Kind = "tls"  // TCP, led by the server name of TLS
	KindHTTP Kind = "http" // TCP, led by the Host of HTTP
	KindQUIC Kind = "quic" // UDP, led by the server name in Initial packets
)

// Port is a port that the edge listens on.
type Port struct {
	Number uint16 `json:"number"`
	Kind   Kind   `json:"kind"`
}

// Guest is a guest as the edge sees it.
type Guest struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Address and Address6 are where it is reached; Address6 is the zero value for
	// a guest without IPv6.
	Address  netip.Addr `json:"address"`
	Address6 netip.Addr `json:"address6,omitzero"`
	// Running tells whether it runs.
	Running bool `json:"running,omitempty"`
	// Limits are those of connections through the edge too.
	Limits vps.NetworkLimits `json:"limits"`
	// Domains are those that are live: none waits for a proof.
	Domains []vps.Domain `json:"domains"`
}

// UsualSettings are the settings, with the usual values for those that are zero.
func (c *Config) UsualSettings() vps.EdgeSettings { return settings(c.Settings) }
