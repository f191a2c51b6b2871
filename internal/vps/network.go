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
	// Guests are sorted by name.
	Guests []NetworkGuest
}

// NetworkGuest is what the network knows of one guest.
type NetworkGuest struct {
	Name     string
	Link     string
	MAC      net.HardwareAddr
	Address  netip.Addr
	UID      uint32
	Ports    PortBlock
	Forwards []Forward
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
