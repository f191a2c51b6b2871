package nft

import (
	"fmt"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// Our tables, by family. Each is a wall of its own for what only that family
// sees; docs/adr/0007-wall.md says which and why.
const (
	inet   = "inet"
	netdev = "netdev"
	bridge = "bridge"
)

// families are those of our tables, in the order in which they are written.
func families() []string { return []string{inet, netdev, bridge} }

// ours names our table of a family in nft's language.
func ours(family string) string { return family + " " + wallName }

// links is the pattern of all guests' links. Rules match it by name (iifname,
// not iif), so that they may be there before a link is.
const links = `"` + vps.LinkPrefix + `*"`

// logGroup is the group of netfilter's log (NFLOG) that dropped packets go to;
// "SL". The prefix is "sublet " and the reason; snaplen bytes of a packet come
// with it, enough for the headers.
const (
	logGroup = 0x534C
	snaplen  = 128
)

// A limit of r per minute with a burst of b lets through at most r+b in any 60
// seconds. A guest's packets are logged by three limits: that of the frames
// (netdev), that of its process (socket), and that of all else (inet for a
// routed tap, bridge for a port). Their sum is 15.
const (
	logFrames  = "limit rate 1/minute burst 1 packets"
	logSockets = "limit rate 1/minute burst 1 packets"
	logRest    = "limit rate 7/minute burst 4 packets"
)

// setSize bounds what packets can put into a set: one element for each link
// or user id that ever was. When it is full, packets are still dropped, but
// no longer counted. See fit for what it costs.
const setSize = 8192

// dropper writes the sets and chains of a family that count, log and drop.
type dropper struct {
	family string
	b      strings.Builder
	log    string // the limit of the log
}

// add writes the chain "<name>-<reason>", which counts for key: iifname for
// what a guest sends, oifname for what is sent to it, meta skuid for what its
// process does. Counting and logging are rules of their own: they end early
// when a set is full or a limit is reached, and the drop stands behind them.
func (d *dropper) add(name string, reason vps.DropReason, key, logs string) {
	way := vps.Out
	if key == "oifname" {
		way = vps.In
	}
	c := reasonCount(d.family, wallName, way, reason)
	d.b.WriteString(c.declare(nil))
	fmt.Fprintf(&d.b, "\n\tchain %s-%s {\n\t\tupdate @%s { %s counter }\n", name, reason, c.set, key)
	if c.key == byLink {
		for _, rule := range sumRules(d.family, way) {
			fmt.Fprintf(&d.b, "\t\t%s\n", rule)
		}
	}
	fmt.Fprintf(&d.b, "\t\tupdate @%s { %s %s } log prefix \"sublet %s\" group %d snaplen %d\n\t\tdrop\n\t}\n", logs, key, d.log, reason, logGroup, snaplen)
}

// reasons of each family's drops.
var (
	inetReasons = []vps.DropReason{ //nolint:gochecknoglobals // a constant
		vps.DropSpoofed, vps.DropVLAN, vps.DropNeighbour, vps.DropRouter, vps.DropDHCP, vps.DropRedirect, vps.DropFragment,
		vps.DropFlood, vps.DropNewConnection, vps.DropConnections, vps.DropBetween, vps.DropToHost, vps.DropSMTP, vps.DropAstray, vps.DropRule,
	}
	inetTowards = []vps.DropReason{vps.DropNewConnection, vps.DropConnections, vps.DropUninvited, vps.DropRule} //nolint:gochecknoglobals // a constant

	netdevReasons = []vps.DropReason{vps.DropSpoofed, vps.DropEthertype, vps.DropVLAN, vps.DropARP} //nolint:gochecknoglobals // a constant

	bridgeReasons = []vps.DropReason{ //nolint:gochecknoglobals // a constant
		vps.DropSpoofed, vps.DropEthertype, vps.DropVLAN, vps.DropARP, vps.DropNeighbour, vps.DropRouter, vps.DropDHCP, vps.DropRedirect,
		vps.DropFragment, vps.DropFlood, vps.DropBetween, vps.DropSMTP,
	}
)

// reasonsOf are the reasons for which a family's table drops what guests send.
func reasonsOf(family string) []vps.DropReason {
	switch family {
	case inet:
		return append(slices.Clone(inetReasons), vps.DropSocket)
	case netdev:
		return netdevReasons
	default:
		return bridgeReasons
	}
}

// droppers returns the sets and chains of a family that count, log and drop.
func droppers(family string) string {
	d := &dropper{family: family, log: logRest}
	if family == netdev {
		d.log = logFrames
	}
	fmt.Fprintf(&d.b, "\n\tset logged {\n\t\ttype ifname\n\t\tsize %d\n\t\tflags dynamic\n\t}\n", setSize)
	for _, c := range sumsOf(family, wallName) {
		d.b.WriteString(c.declare(nil))
	}
	switch family {
	case inet:
		for _, r := range inetReasons {
			d.add("drop", r, "iifname", "logged")
		}
		for _, r := range inetTowards {
			d.add("deny", r, "oifname", "logged")
		}
		fmt.Fprintf(&d.b, "\n\tset logged-uids {\n\t\ttype uid\n\t\tsize %d\n\t\tflags dynamic\n\t}\n", setSize)
		d.log = logSockets
		d.add("drop", vps.DropSocket, "meta skuid", "logged-uids")
	default:
		for _, r := range reasonsOf(family) {
			d.add("drop", r, "iifname", "logged")
		}
	}
	return d.b.String()
}
