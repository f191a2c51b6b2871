package vps

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// CallerMode is how a guest learns who calls it through the edge.
type CallerMode string

// The modes. The empty one means the host's setting.
const (
	// CallerTransparent connects to the guest as the caller: the guest sees the
	// caller's own address and port, and has nothing to set up. Where that cannot
	// be (a caller by IPv6 of a guest without it) the guest sees the host.
	CallerTransparent CallerMode = "transparent"
	// CallerProxyV1 and CallerProxyV2 begin each connection to the guest with the
	// header of the PROXY protocol in that version.
	CallerProxyV1 CallerMode = "proxy-v1"
	CallerProxyV2 CallerMode = "proxy-v2"
	// CallerHidden shows the guest the host and nobody else.
	CallerHidden CallerMode = "hidden"
)

// CallerModes are all of them.
func CallerModes() []CallerMode {
	return []CallerMode{CallerTransparent, CallerProxyV1, CallerProxyV2, CallerHidden}
}

// Ports that the edge listens on for domains that name no other, and those of
// guests that these lead to.
const (
	HTTPPort  = 80
	HTTPSPort = 443
)

// DefaultDomain is the name of the domain that has all calls of its listener
// that no other domain has.
const DefaultDomain = "*"

// Domain is a host name, or a suffix, that the edge leads to a guest. It is part
// of the guest's spec. No two domains of a host have the same name and Listen, and
// a name is one guest's alone.
type Domain struct {
	// Name is in its canonical form: "blog.example.org" for that host,
	// "*.example.org" for all with one label or more before it, DefaultDomain for
	// all calls. Letters are lower-case ASCII, other alphabets in their A-labels
	// (RFC 5890), without a final dot.
	Name string `json:"name" doc:"Host name, *.SUFFIX, or * for all calls that no other domain has."`
	// Listen is the host's TCP port, 0 for web: HTTPSPort by the server name of
	// TLS, and HTTPPort by the Host of HTTP.
	Listen uint16 `json:"listen,omitempty" doc:"TCP port of the host; 0 for web, 443 and 80."`
	// Port is the guest's port that TLS connections lead to, 0 for the one that
	// was called. HTTPPort is the one for HTTP, 0 for 80; it is for web alone.
	// With Terminate what was TLS goes to HTTPPort, or on another listener to Port.
	Port     uint16 `json:"port,omitempty" doc:"Guest's port for TLS connections; 0 for the one that was called."`
	HTTPPort uint16 `json:"http_port,omitempty" doc:"Guest's port for HTTP; 0 for 80."`
	// Caller is how the guest learns who calls.
	Caller CallerMode `json:"caller,omitempty" doc:"How the guest learns who calls: transparent, proxy-v1, proxy-v2 or hidden; empty for the host's setting."`
	// Terminate ends TLS at the edge, with a certificate that the edge gets.
	Terminate bool `json:"terminate,omitempty" doc:"TLS ends at the edge, with a certificate that it gets by ACME."`
	// Wake starts the guest when somebody calls while it is stopped.
	Wake bool `json:"wake,omitempty" doc:"A call starts the guest when it is stopped."`
	// Vouched is the owner's word that the domain is its tenant's: no proof is
	// asked for.
	Vouched bool `json:"vouched,omitempty" doc:"The owner vouches for it: no proof of ownership is asked for."`
}

// Suffix returns "example.org" of "*.example.org", and whether it is one.
func (d *Domain) Suffix() (string, bool) { return strings.CutPrefix(d.Name, "*.") }

// Web tells whether it is for ports 443 and 80.
func (d *Domain) Web() bool { return d.Listen == 0 }

// TLSPort is the guest's port that TLS connections lead to.
func (d *Domain) TLSPort() uint16 { return cmp.Or(d.Port, d.Listen, HTTPSPort) }

// PlainPort is the guest's port that HTTP leads to.
func (d *Domain) PlainPort() uint16 { return cmp.Or(d.HTTPPort, HTTPPort) }

// GuestPorts are the guest's ports that calls of the domain lead to: the one for
// TLS, and the one for plain HTTP, as far as it has them.
func (d *Domain) GuestPorts() []uint16 {
	switch {
	case !d.Web():
		return []uint16{d.TLSPort()}
	case d.Terminate:
		return []uint16{d.PlainPort()}
	default:
		return []uint16{d.TLSPort(), d.PlainPort()}
	}
}

// String writes the name, and the port when it is not for web: "imap.example.org:993".
func (d *Domain) String() string {
	if d.Web() {
		return d.Name
	}
	return fmt.Sprintf("%s:%d", d.Name, d.Listen)
}

// CompareDomains brings domains into the order in which a guest has them.
func CompareDomains(a, b Domain) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Listen, b.Listen))
}

// AccessLogFormat is how the edge writes down who called.
type AccessLogFormat string

// The formats.
const (
	// AccessCombined is the Combined Log Format of Apache's HTTP server.
	AccessCombined AccessLogFormat = "combined"
	// AccessJSON is one JSON object on each line.
	AccessJSON AccessLogFormat = "json"
	AccessOff  AccessLogFormat = "off"
)

// EdgeSettings are the owner's for the edge.
type EdgeSettings struct {
	// Disabled leaves the edge's ports to another router: see internal/edge/export.
	Disabled bool `json:"disabled,omitempty"`
	// Caller is how guests learn who calls, for domains that say nothing else.
	Caller CallerMode `json:"caller"`
	// TrustedProxies are whose connections begin with a header of the PROXY
	// protocol, v1 or v2, which says who really calls. Nobody else's is believed.
	TrustedProxies []netip.Prefix `json:"trusted_proxies,omitempty"`
	// CallerConnections and CallerRate bound the connections of one caller at a
	// time, and those that begin in a second: of one IPv4 address, or one /64 of
	// IPv6. Those of a guest are bound by its NetworkLimits.
	CallerConnections int `json:"caller_connections"`
	CallerRate        int `json:"caller_rate"`
	// HandshakeTimeout is how long a caller may take to say whom he wants,
	// IdleTimeout how long a connection may be silent, DrainTimeout how long open
	// connections may go on when the edge is replaced.
	HandshakeTimeout Duration `json:"handshake_timeout"`
	IdleTimeout      Duration `json:"idle_timeout"`
	DrainTimeout     Duration `json:"drain_timeout"`
	// WakeTimeout is how long a caller waits for a guest that his call started.
	WakeTimeout Duration `json:"wake_timeout"`
	// AccessLog is how calls are written down.
	AccessLog AccessLogFormat `json:"access_log"`
	// MetricDomains is how many domains have metrics of their own; all others
	// are counted together.
	MetricDomains int `json:"metric_domains"`
	// QUIC leads UDP port 443 to guests by server name, too.
	QUIC bool `json:"quic"`
	// Resolvers are the name servers that are asked for proofs of domains; empty
	// means the host's own. AllowPrivate lets files that prove domains be at
	// addresses that are not public: see PublicAddress.
	Resolvers    []netip.AddrPort `json:"resolvers,omitempty"`
	AllowPrivate bool             `json:"allow_private,omitempty"`
	// ACME says where certificates of domains with Terminate come from.
	ACME ACMESettings `json:"acme,omitzero"`
}

// DefaultEdgeSettings are those of a new host.
func DefaultEdgeSettings() EdgeSettings {
	return EdgeSettings{
		Caller: CallerTransparent, CallerConnections: 1024, CallerRate: 1000,
		HandshakeTimeout: Duration(10 * time.Second), IdleTimeout: Duration(time.Hour), DrainTimeout: Duration(5 * time.Minute), WakeTimeout: Duration(time.Minute),
		AccessLog: AccessCombined, MetricDomains: 200, QUIC: true,
	}
}
