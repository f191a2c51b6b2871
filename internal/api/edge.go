package api

import (
	"net/netip"

	"sublet/internal/vps"
)

// UpdateEdge changes vps.EdgeSettings but for ACME. A nil field stays as it is.
type UpdateEdge struct {
	Disabled          *bool                `json:"disabled,omitempty" doc:"Whether the edge leaves its ports to another router."`
	Caller            *vps.CallerMode      `json:"caller,omitempty" enum:"transparent,proxy-v1,proxy-v2,hidden" doc:"How guests learn who calls, for domains that say nothing else."`
	TrustedProxies    *[]netip.Prefix      `json:"trusted_proxies,omitempty" doc:"Whose connections begin with a header of the PROXY protocol, at most 64."`
	CallerConnections *int                 `json:"caller_connections,omitempty" minimum:"1" doc:"Connections of one caller at a time."`
	CallerRate        *int                 `json:"caller_rate,omitempty" minimum:"1" doc:"Connections of one caller that begin in a second."`
	HandshakeTimeout  *vps.Duration        `json:"handshake_timeout,omitempty" doc:"How long a caller may take to say whom it wants, 1s to 2m."`
	IdleTimeout       *vps.Duration        `json:"idle_timeout,omitempty" doc:"How long a connection may be silent, 10s to 168h."`
	DrainTimeout      *vps.Duration        `json:"drain_timeout,omitempty" doc:"How long open connections go on when the edge is replaced, up to 24h."`
	WakeTimeout       *vps.Duration        `json:"wake_timeout,omitempty" doc:"How long a caller waits for a guest that its call started, 1s to 10m."`
	AccessLog         *vps.AccessLogFormat `json:"access_log,omitempty" enum:"combined,json,off" doc:"How calls are written down."`
	MetricDomains     *int                 `json:"metric_domains,omitempty" minimum:"0" doc:"How many domains have metrics of their own."`
	QUIC              *bool                `json:"quic,omitempty" doc:"Whether UDP port 443 leads to guests by server name, too."`
	Resolvers         *[]netip.AddrPort    `json:"resolvers,omitempty" doc:"Name servers that are asked for proofs of domains; empty for the host's own."`
	AllowPrivate      *bool                `json:"allow_private,omitempty" doc:"Whether files that prove domains may be at addresses that are not public."`
}

// Apply puts what a request names over the settings as they are.
func (u UpdateEdge) Apply(s vps.EdgeSettings) vps.EdgeSettings {
	set(&s.Disabled, u.Disabled)
	set(&s.Caller, u.Caller)
	set(&s.CallerConnections, u.CallerConnections)
	set(&s.CallerRate, u.CallerRate)
	set(&s.HandshakeTimeout, u.HandshakeTimeout)
	set(&s.IdleTimeout, u.IdleTimeout)
	set(&s.DrainTimeout, u.DrainTimeout)
	set(&s.WakeTimeout, u.WakeTimeout)
	set(&s.AccessLog, u.AccessLog)
	set(&s.MetricDomains, u.MetricDomains)
	set(&s.QUIC, u.QUIC)
	set(&s.AllowPrivate, u.AllowPrivate)
	setNonEmpty(&s.TrustedProxies, u.TrustedProxies)
	setNonEmpty(&s.Resolvers, u.Resolvers)
	return s
}

// setNonEmpty takes an empty list for none, as where it was never set.
func setNonEmpty[T any](to, from *[]T) {
	if set(to, from); len(*to) == 0 {
		*to = nil
	}
}
