package nft

import (
	"fmt"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// trafficName is the name of the tables that count what passed, and of nothing
// else: Apply never replaces them. docs/adr/0022-counting-and-quotas.md says how.
const trafficName = "sublet-traffic"

// latest is the priority of the chains that count: what gets there has passed
// the wall, the quotas, and what others have.
const latest = 1000

// trafficSize bounds a set that counts what passed: two elements, for IPv4 and
// IPv6, for each link that ever was and is not forgotten. When it is full, new
// links are not counted.
const trafficSize = 2 * setSize

// byHand is the comment of tables that are made by us alone.
const byHand = "\tcomment \"made by sublet; changes by hand are undone\"\n"

// passing are the classes that the tables count, in each direction.
func passing() []vps.TrafficClass {
	return []vps.TrafficClass{vps.TrafficInternet, vps.TrafficHost, vps.TrafficBetween}
}

// directions are those of a guest's traffic.
func directions() []vps.Direction { return []vps.Direction{vps.In, vps.Out} }

// trafficFamilies are those of the tables: routed taps, and ports of bridges.
func trafficFamilies() []string { return []string{inet, bridge} }

// inetTraffic are the chains for routed taps. What the host itself sends is
// looked at behind its routing, where the link is known in which an address
// that was translated ends; it came in by no link (iif 0).
const inetTraffic = `
	chain forward {
		type filter hook forward priority %[1]d; policy accept;
		iifname ` + links + ` jump leave
		oifname ` + links + ` update @internet-in { oifname . meta nfproto counter }
	}

	chain leave {
		oifname ` + links + ` goto between
		update @internet-out { iifname . meta nfproto counter }
	}

	chain between {
		update @between-out { iifname . meta nfproto counter }
		update @between-in { oifname . meta nfproto counter }
		accept
	}

	chain input {
		type filter hook input priority %[1]d; policy accept;
		iifname ` + links + ` update @host-out { iifname . meta nfproto counter }
	}

	chain postrouting {
		type filter hook postrouting priority %[1]d; policy accept;
		oifname ` + links + ` meta iif 0 update @host-in { oifname . meta nfproto counter }
	}
`

// group is what a frame for everybody or for many is. A bridge makes copies of
// it, one for each port and one for the host, so that who sent it once is looked at
// before that, and who gets it at each copy.
const group = "meta pkttype { broadcast, multicast }"

// alone is what all other frames are.
const alone = "meta pkttype != { broadcast, multicast }"

// bridgeTraffic are the chains for ports of bridges. A frame for a group counts
// as sent to the outside.
const bridgeTraffic = `
	chain prerouting {
		type filter hook prerouting priority %[1]d; policy accept;
		iifname ` + links + ` meta protocol { ip, ip6 } ` + group + ` update @internet-out { iifname . meta protocol counter }
	}

	chain forward {
		type filter hook forward priority %[1]d; policy accept;
		meta protocol != { ip, ip6 } accept
		iifname ` + links + ` jump leave
		oifname ` + links + ` update @internet-in { oifname . meta protocol counter }
	}

	chain leave {
		oifname ` + links + ` goto between
		` + alone + ` update @internet-out { iifname . meta protocol counter }
	}

	chain between {
		` + alone + ` update @between-out { iifname . meta protocol counter }
		update @between-in { oifname . meta protocol counter }
		accept
	}

	chain input {
		type filter hook input priority %[1]d; policy accept;
		iifname ` + links + ` meta protocol { ip, ip6 } meta pkttype host update @host-out { iifname . meta protocol counter }
	}

	chain output {
		type filter hook output priority %[1]d; policy accept;
		oifname ` + links + ` meta protocol { ip, ip6 } update @host-in { oifname . meta protocol counter }
	}
`

// trafficTable is the text of a family's table. before is what the walls had
// dropped when it was made, which it does not count.
func trafficTable(family string, before dropSums) string {
	chains := inetTraffic
	if family == bridge {
		chains = bridgeTraffic
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n%s", family, trafficName, byHand)
	for _, class := range passing() {
		for _, direction := range directions() {
			b.WriteString(countingSet(passedSet{family, class, direction}.name(), "typeof iifname . "+versionKey(family), trafficSize, nil))
		}
	}
	if family == inet {
		for _, direction := range directions() {
			writeBefore(&b, direction, before)
		}
	}
	fmt.Fprintf(&b, chains, latest)
	b.WriteString("}\n")
	return b.String()
}

// beforeSet names the set that holds what had been dropped in a direction.
func beforeSet(way vps.Direction) string { return "before-" + string(way) }

// writeBefore writes it.
func writeBefore(b *strings.Builder, direction vps.Direction, before dropSums) {
	fmt.Fprintf(b, "\n\tset %s {\n\t\ttypeof iifname . %s\n\t\tcounter\n", beforeSet(direction), versionKey(inet))
	var elements []string
	for key, was := range before {
		if key.way == direction {
			elements = append(elements, was.text(versionText(inet, key.link, key.version)))
		}
	}
	slices.Sort(elements)
	writeElements(b, elements)
}

// removal are the commands that remove the tables of a name; add before delete
// makes the delete succeed where there are none.
func removal(name string) string {
	var b strings.Builder
	for _, family := range trafficFamilies() {
		fmt.Fprintf(&b, "add table %[1]s %[2]s\ndelete table %[1]s %[2]s\n", family, name)
	}
	return b.String()
}
