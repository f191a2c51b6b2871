package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// keyKind is what the keys of a set are that counts drops.
type keyKind int

const (
	byLink keyKind = iota
	byVersion
	byUser
)

// dropCount is a set that counts drops.
type dropCount struct {
	family, table, set string
	key                keyKind
	way                vps.Direction
	// reason is empty for a sum over all reasons.
	reason vps.DropReason
}

// wallName is the name of the tables that are the wall.
const wallName = "sublet"

// dropSet names the set that counts what was dropped for a reason: what a guest
// sent, or what was sent to it.
func dropSet(way vps.Direction, reason vps.DropReason) string {
	if way == vps.In {
		return "denied-" + string(reason)
	}
	return "dropped-" + string(reason)
}

// reasonCount is the set of a table that counts what was dropped for a reason.
func reasonCount(family, table string, way vps.Direction, reason vps.DropReason) dropCount {
	key := byLink
	if reason == vps.DropSocket {
		key = byUser
	}
	return dropCount{family, table, dropSet(way, reason), key, way, reason}
}

// sumSet names the set that counts all that was dropped in a direction and was on
// a guest's link, by that and the version of IP. It is what the ledger reads.
func sumSet(way vps.Direction) string { return "sum-" + string(way) }

// sumFrames counts what was dropped and is no IP, which has no version that does
// not let the sender choose among thousands of keys.
const sumFrames = "sum-frames"

// sumsOf are the sums of a table.
func sumsOf(family, table string) []dropCount {
	out := dropCount{family, table, sumSet(vps.Out), byVersion, vps.Out, ""}
	in := dropCount{family, table, sumSet(vps.In), byVersion, vps.In, ""}
	frames := dropCount{family, table, sumFrames, byLink, vps.Out, ""}
	switch {
	case family == netdev:
		return []dropCount{frames}
	case family == bridge && table == wallName:
		return []dropCount{out, frames}
	default:
		return []dropCount{out, in}
	}
}

// versionKey is the version of IP of a packet in the rules of a family.
func versionKey(family string) string {
	if family == bridge {
		return "meta protocol"
	}
	return "meta nfproto"
}

// sumRules are the rules that add what is dropped to a sum of the wall.
func sumRules(family string, way vps.Direction) []string {
	const frames = "update @" + sumFrames + " { iifname counter }"
	switch family {
	case netdev:
		return []string{frames}
	case bridge: // by what a frame is on the wire, with its tag
		return []string{"@ll,96,16 { 0x0800, 0x86dd } " + sumRule(family, way), "@ll,96,16 != { 0x0800, 0x86dd } " + frames}
	default:
		return []string{sumRule(family, way)}
	}
}

// sumRule is the rule that adds an IP packet to the sum of its direction.
func sumRule(family string, way vps.Direction) string {
	link := "iifname"
	if way == vps.In {
		link = "oifname"
	}
	return fmt.Sprintf("update @%s { %s . %s counter }", sumSet(way), link, versionKey(family))
}

// quotaDrops are the sets of the tables that hold quotas.
func quotaDrops() []dropCount {
	var all []dropCount
	for _, family := range trafficFamilies() {
		for _, way := range directions() {
			all = append(all, reasonCount(family, quotaName, way, vps.DropQuota))
		}
		all = append(all, sumsOf(family, quotaName)...)
	}
	return all
}

// wallDrops are those of the wall.
func wallDrops() []dropCount {
	var all []dropCount
	for _, family := range families() {
		for _, r := range reasonsOf(family) {
			all = append(all, reasonCount(family, wallName, vps.Out, r))
		}
		all = append(all, sumsOf(family, wallName)...)
	}
	for _, r := range inetTowards {
		all = append(all, reasonCount(inet, wallName, vps.In, r))
	}
	return all
}

// dropCounts are all sets of our tables that count drops.
func dropCounts() []dropCount { return append(wallDrops(), quotaDrops()...) }

// declare declares the set, with elements.
func (c *dropCount) declare(elements []string) string {
	switch c.key {
	case byUser:
		return countingSet(c.set, "type uid", setSize, elements)
	case byVersion:
		return countingSet(c.set, "typeof iifname . "+versionKey(c.family), trafficSize, elements)
	case byLink:
	}
	return countingSet(c.set, "type ifname", setSize, elements)
}

// countingSet declares a set that counts what packets put into it.
func countingSet(name, key string, size int, elements []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n\tset %s {\n\t\t%s\n\t\tsize %d\n\t\tflags dynamic\n\t\tcounter\n", name, key, size)
	writeElements(&b, elements)
	return b.String()
}

// element writes a key of the set for nft.
func (c *dropCount) element(key *counterKey) string {
	switch c.key {
	case byUser:
		return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(key[:])), 10)
	case byVersion:
		return versionElement(c.family, key)
	case byLink:
	}
	return quote(key.name().String())
}

// version is the version of IP in a key of a family's set, 0 without one.
func version(family string, key *counterKey) int {
	rest := key.rest()
	number := int(rest[0])
	if family == bridge {
		number = int(binary.BigEndian.Uint16(rest[:]))
	}
	switch number {
	case unix.NFPROTO_IPV4, unix.ETH_P_IP:
		return 4
	case unix.NFPROTO_IPV6, unix.ETH_P_IPV6:
		return 6
	default:
		return 0
	}
}

// versionElement writes a key of a link and a version of IP for nft.
func versionElement(family string, key *counterKey) string {
	return versionText(family, key.name(), version(family, key))
}

func versionText(family string, link linkBytes, version int) string {
	word := map[string]map[int]string{inet: {4: "ipv4", 6: "ipv6"}, bridge: {4: "ip", 6: "ip6"}}[family][version]
	return quote(link.String()) + " . " + cmp.Or(word, "0")
}
