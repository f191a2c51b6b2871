package vps

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
)

// Network is the whole network that the host should have for its guests, as
// one plain value. The firewall and the links are both made from it.
type Network struct {
	// Subnet is the pool that guests' addresses come from.
	Subnet netip.Prefix
	// Gateway is the host's own address towards the guests, first of Subnet.
	Gateway netip.Addr
	// Uplink is the link to the public side; empty means the one that the
	// default route names.
	Uplink string
	// Subnet6 is the pool of guests' IPv6 prefixes; the zero value means that
	// they have no IPv6. NAT6 says that they leave with the host's address.
	Subnet6  netip.Prefix
	NAT6     bool
	NDPProxy NDPProxy
	// Services are the ports of the host that every guest may reach.
	Services []Service
	// EdgeUID is the user id of the edge, which may connect to guests in the name
	// of their callers: what guests answer to these comes to the host. Zero means
	// that nobody may.
	EdgeUID uint32
	// Guests are sorted by name.
	Guests []NetworkGuest
}

// EdgeMark is the mark, in the bits of EdgeMarkMask, of connections that the edge
// opened to guests in the name of others (ct mark), and of guests' answers to them
// (fwmark). All other bits are other programs'.
const (
	EdgeMark     = 0x53000000
	EdgeMarkMask = 0x7f000000
)

// Gateway6 is the host's address towards every guest in IPv6; it is link-local,
// so each link has its own.
var Gateway6 = netip.MustParseAddr("fe80::1") //nolint:gochecknoglobals // a constant

// NetworkGuest is what the network knows of one guest.
type NetworkGuest struct {
	Name string
	// Link is the host's link for the guest: a routed tap, or a port of Bridge.
	Link    string
	MAC     net.HardwareAddr
	Address netip.Addr
	// Prefix6 is the guest's own, a /128 for a single address; the zero value
	// means none. Its link-local address (LinkLocal6) goes with it.
	Prefix6 netip.Prefix
	UID     uint32
	// Bridge is the bridge that Link is a port of; empty for a routed tap.
	Bridge   string
	Ports    PortBlock
	Forwards []Forward
	// Peers names the group of guests that reach each other; empty means none.
	Peers     string
	SMTP      bool
	Bandwidth BitRate
	// Limits are all set.
	Limits NetworkLimits
	Rules  []Rule
}

// Address6 returns the address that the guest uses itself: the only one of a
// /128, and the first behind the subnet-router anycast address (RFC 4291) of a
// longer prefix. It is the zero value without IPv6.
func Address6(p netip.Prefix) netip.Addr {
	if !p.IsValid() || p.IsSingleIP() {
		return p.Addr()
	}
	return p.Addr().Next()
}

// LinkLocal6 returns the link-local address that goes with a hardware address
// (modified EUI-64, RFC 4291, appendix A).
func LinkLocal6(mac net.HardwareAddr) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5],
	})
}

// SSHPort is the guest's port that the first port of its block leads to.
const SSHPort = 22

// LinkName returns the name of the host's link for a guest: the prefix and
// the name, or a shortened name with a hash when that is over the kernel's
// limit of 15 characters (IFNAMSIZ less the closing zero).
func LinkName(guest string) string {
	const limit = 15
	if len(LinkPrefix)+len(guest) <= limit {
		return LinkPrefix + guest
	}
	sum := sha256.Sum256([]byte(guest))
	return LinkPrefix + guest[:5] + "-" + hex.EncodeToString(sum[:3])
}

// MACFor returns the hardware address that goes with an IPv4 address. The
// first byte marks it as locally administered (IEEE 802), the next two spell
// "SL".
func MACFor(a netip.Addr) net.HardwareAddr {
	if !a.Is4() {
		return nil
	}
	b := a.As4()
	return net.HardwareAddr{0x02, 'S', 'L', b[1], b[2], b[3]}
}
