package vps

import (
	"fmt"
	"net/netip"
	"strings"
)

// NetworkLimits protect the host and its neighbours from a guest that floods.
// In a guest's spec zero means what the host's settings say; in the settings
// every value is set.
type NetworkLimits struct {
	// Packets is how many packets per second a guest may send. A burst of a
	// tenth of a second more passes.
	Packets int `json:"packets" doc:"Packets per second that the guest may send."`
	// NewConnections is how many connections per second may begin, in both
	// directions together; a burst of one second more passes.
	NewConnections int `json:"new_connections" doc:"New connections per second."`
	// Connections is how many entries a guest may have in the host's table of
	// connections (conntrack) at a time.
	Connections int `json:"connections" doc:"Tracked connections at a time."`
}

// DefaultNetworkLimits are the limits of guests on a host whose owner sets
// none. They are far above what a busy server needs and far below what hurts
// a small host: its table has room for 65536 connections and more.
func DefaultNetworkLimits() NetworkLimits {
	return NetworkLimits{Packets: 100_000, NewConnections: 500, Connections: 8192}
}

// Or returns the limits with what is zero taken from the others.
func (l NetworkLimits) Or(others NetworkLimits) NetworkLimits {
	return NetworkLimits{
		Packets:        first(l.Packets, others.Packets),
		NewConnections: first(l.NewConnections, others.NewConnections),
		Connections:    first(l.Connections, others.Connections),
	}
}

func first(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// Resources bound what a guest's processes take of the host. Zero values mean
// the defaults.
type Resources struct {
	// CPUWeight is the guest's share of a busy processor beside others, as in
	// cgroup v2: 1 to 10000, 100 being everybody's default.
	CPUWeight int `json:"cpu_weight" doc:"Share of a busy processor, 1 to 10000; 0 means 100."`
	// CPUQuota is the most processor time, in percent of one processor; 0
	// means no bound.
	CPUQuota int `json:"cpu_quota" doc:"Most processor time in percent of one processor; 0 means no limit."`
	// IOWeight is like CPUWeight for the disk.
	IOWeight int `json:"io_weight" doc:"Share of a busy disk, 1 to 10000; 0 means 100."`
	// IORead and IOWrite bound the disk's use in bytes per second; 0 means no
	// bound.
	IORead  Bytes `json:"io_read" doc:"Most bytes read from the disk per second; 0 means no limit."`
	IOWrite Bytes `json:"io_write" doc:"Most bytes written to the disk per second; 0 means no limit."`
	// Processes bounds the host's processes of the guest. Under User Mode Linux
	// each process of the guest is one of the host; 0 means DefaultProcesses.
	Processes int `json:"processes" doc:"Most processes; 0 means 4096."`
}

// DefaultProcesses is how many processes a guest may have.
const DefaultProcesses = 4096

// RuleAction is what a rule of the owner does.
type RuleAction string

// The actions.
const (
	Allow RuleAction = "allow"
	Deny  RuleAction = "deny"
)

// Direction is which way a connection begins, seen from the guest.
type Direction string

// The directions.
const (
	Out Direction = "out"
	In  Direction = "in"
)

// Rule is a rule of the owner for one guest. It speaks about the first packet
// of a connection; answers always pass. Rules stand behind the wall: none lets
// a packet through that the wall drops, nor one guest reach another.
//
// Its text form is what people write and what JSON holds:
//
//	allow|deny out|in any|host|ADDRESS|PREFIX [PORT[-PORT]/]tcp|udp|icmp
//
// "deny out 192.0.2.0/24", "allow in any 443/tcp", "allow out host 8080/tcp".
type Rule struct {
	Action    RuleAction
	Direction Direction
	// Peer is the other side, IPv4 or IPv6; the zero value means any.
	Peer netip.Prefix
	// Host means the host itself, by any of its addresses; only for Out.
	Host bool
	// Protocol is tcp, udp, icmp (which means ICMPv6 as well), or empty for any.
	Protocol Protocol
	// First and Last are the ports of the server's side, both 0 for all. They
	// need tcp or udp.
	First, Last uint16
}

// ProtoICMP stands for ICMP and ICMPv6 in rules.
const ProtoICMP Protocol = "icmp"

// String writes the rule in its text form.
func (r Rule) String() string {
	peer := "any"
	switch {
	case r.Host:
		peer = "host"
	case r.Peer.IsValid() && r.Peer.IsSingleIP():
		peer = r.Peer.Addr().String()
	case r.Peer.IsValid():
		peer = r.Peer.String()
	}
	text := fmt.Sprintf("%s %s %s", r.Action, r.Direction, peer)
	switch {
	case r.First == 0 && r.Protocol != "":
		text += " " + string(r.Protocol)
	case r.First != 0 && r.First == r.Last:
		text += fmt.Sprintf(" %d/%s", r.First, r.Protocol)
	case r.First != 0:
		text += fmt.Sprintf(" %d-%d/%s", r.First, r.Last, r.Protocol)
	}
	return text
}

const ruleHint = "write for example `deny out 192.0.2.0/24`, `allow in any 443/tcp` or `allow out host 8080/tcp`"

// ParseRule reads the text form. It returns an Error with CodeInvalid and no
// field. A peer's bits behind its length are dropped.
func ParseRule(text string) (Rule, error) {
	words := strings.Fields(text)
	if len(words) < 3 || len(words) > 4 {
		return Rule{}, Invalid("", "%q is not a rule; %s", text, ruleHint)
	}
	r := Rule{Action: RuleAction(words[0]), Direction: Direction(words[1])}
	switch peer := words[2]; peer {
	case "any":
	case "host":
		r.Host = true
	default:
		p, err := parsePeer(peer)
		if err != nil {
			return Rule{}, Invalid("", "%q in the rule %q is neither any, host, an address nor a prefix; %s", peer, text, ruleHint)
		}
		r.Peer = p
	}
	if len(words) == 4 {
		if err := r.parsePorts(words[3]); err != nil {
			return Rule{}, Invalid("", "%q in the rule %q is not a protocol with ports; write for example 443/tcp, 6000-6010/udp, tcp or icmp", words[3], text)
		}
	}
	return r, r.Validate("")
}

func parsePeer(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a.WithZone(""), a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

func (r *Rule) parsePorts(s string) error {
	ports, protocol, found := strings.Cut(s, "/")
	if !found {
		r.Protocol = Protocol(s)
		return nil
	}
	r.Protocol = Protocol(protocol)
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	var err error
	if r.First, err = parsePort(first); err == nil {
		r.Last, err = parsePort(last)
	}
	return err
}

// Validate finds what cannot be a rule, naming the field.
func (r Rule) Validate(field string) error {
	switch {
	case r.Action != Allow && r.Action != Deny:
		return Invalid(field, "%q is neither allow nor deny; %s", r.Action, ruleHint)
	case r.Direction != Out && r.Direction != In:
		return Invalid(field, "%q is neither out nor in; %s", r.Direction, ruleHint)
	case r.Host && r.Direction == In:
		return Invalid(field, "the host always reaches its guests; a rule with host is for out")
	case r.Host && r.Peer.IsValid():
		return Invalid(field, "a rule is about the host or about %s, not both", r.Peer)
	case r.Peer != r.Peer.Masked() || r.Peer.Addr().Is4In6():
		return Invalid(field, "%s has bits set behind its length", r.Peer)
	case r.Last < r.First:
		return Invalid(field, "the ports %d-%d run backwards", r.First, r.Last)
	case r.First == 0 && r.Last != 0:
		return Invalid(field, "ports run from 1 to 65535")
	}
	switch r.Protocol {
	case ProtoTCP, ProtoUDP:
		return nil
	case "", ProtoICMP:
		if r.First != 0 {
			return Invalid(field, "ports need a protocol that has them: tcp or udp")
		}
		return nil
	case ProtoBoth:
	}
	return Invalid(field, "%q is not a protocol of rules; use tcp, udp or icmp, or leave it out for any", r.Protocol)
}

// MarshalText writes the text form.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text form.
func (r *Rule) UnmarshalText(text []byte) error {
	v, err := ParseRule(string(text))
	if err == nil {
		*r = v
	}
	return err
}

// Service is a port of the host itself that guests may reach, as text
// "53/udp".
type Service struct {
	Port     uint16
	Protocol Protocol // tcp or udp
}

// DefaultServices are what guests may reach on a host whose owner says
// nothing else: name servers, and the edge.
func DefaultServices() []Service {
	return []Service{{53, ProtoTCP}, {53, ProtoUDP}, {80, ProtoTCP}, {443, ProtoTCP}, {443, ProtoUDP}}
}

// ParseService reads "PORT/tcp" or "PORT/udp".
func ParseService(text string) (Service, error) {
	port, protocol, _ := strings.Cut(text, "/")
	n, err := parsePort(port)
	s := Service{Port: n, Protocol: Protocol(protocol)}
	if err != nil || (s.Protocol != ProtoTCP && s.Protocol != ProtoUDP) {
		return Service{}, Invalid("", "%q is not a service of the host; write for example 53/udp", text)
	}
	return s, nil
}

// String writes "53/udp".
func (s Service) String() string { return fmt.Sprintf("%d/%s", s.Port, s.Protocol) }

// MarshalText writes what String does.
func (s Service) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseService does.
func (s *Service) UnmarshalText(text []byte) error {
	v, err := ParseService(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// NDPProxy says whether the host answers for its guests' IPv6 addresses on the
// public link (RFC 4389, in the kernel's simple form).
type NDPProxy string

// The modes. Auto answers when the guests' pool is part of what the public
// link takes to be on the link itself, so that the provider's router asks for
// each address.
const (
	NDPAuto NDPProxy = "auto"
	NDPOn   NDPProxy = "on"
	NDPOff  NDPProxy = "off"
)

// DropReason says why the wall dropped a packet of a guest, or for one. The
// names are those of the firewall's counters, of logs and of metrics.
type DropReason string

// The reasons.
const (
	DropSpoofed       DropReason = "spoofed"        // from a MAC or an address that is not the guest's
	DropEthertype     DropReason = "ethertype"      // neither IPv4, IPv6 nor ARP
	DropVLAN          DropReason = "vlan"           // tagged: 802.1Q, 802.1ad
	DropARP           DropReason = "arp"            // ARP that speaks for others
	DropNeighbour     DropReason = "neighbour"      // IPv6 neighbour messages that speak for others
	DropRouter        DropReason = "router-advert"  // router advertisements
	DropDHCP          DropReason = "dhcp-server"    // answers of a DHCP or DHCPv6 server
	DropRedirect      DropReason = "redirect"       // ICMP and ICMPv6 redirects
	DropFragment      DropReason = "fragment"       // fragments that hide what they are part of
	DropFlood         DropReason = "packets"        // over the limit of packets per second
	DropNewConnection DropReason = "new-connection" // over the limit of new connections per second
	DropConnections   DropReason = "connections"    // over the limit of connections at a time
	DropBetween       DropReason = "between-guests" // from guest to guest
	DropToHost        DropReason = "to-host"        // to a port of the host that is not open to guests
	DropSMTP          DropReason = "smtp"           // to port 25 outside
	DropAstray        DropReason = "astray"         // to networks of the host that are not public
	DropUninvited     DropReason = "uninvited"      // from outside to what is not open
	DropRule          DropReason = "rule"           // by a rule of the owner
	DropQuota         DropReason = "quota"          // over a quota, or of a network that a quota suspended
	DropSocket        DropReason = "socket"         // from the host's own network by the guest's process
)

// DropReasons are all of them, in the order in which they are shown.
func DropReasons() []DropReason {
	return []DropReason{
		DropSpoofed, DropEthertype, DropVLAN, DropARP, DropNeighbour, DropRouter, DropDHCP, DropRedirect, DropFragment,
		DropFlood, DropNewConnection, DropConnections, DropBetween, DropToHost, DropSMTP, DropAstray, DropUninvited, DropRule, DropQuota, DropSocket,
	}
}

// Drop is how much was dropped for one reason since the guest's counters
// began. Bytes are those of frames, as in TrafficCount.
type Drop struct {
	Reason  DropReason `json:"reason"`
	Packets uint64     `json:"packets"`
	Bytes   uint64     `json:"bytes"`
}
