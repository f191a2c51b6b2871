//go:build linux

package nft

import (
	"bytes"
	"maps"
	"slices"

	"sublet/internal/vps"
)

// passedSet is a set of the tables that counts what passed.
type passedSet struct {
	family string
	class  vps.TrafficClass
	way    vps.Direction
}

func passedSets() [2 * waysPassed]passedSet {
	var all [2 * waysPassed]passedSet
	i := 0
	for _, family := range trafficFamilies() {
		for _, class := range passing() {
			for _, way := range directions() {
				all[i] = passedSet{family, class, way}
				i++
			}
		}
	}
	return all
}

func (s passedSet) name() string { return string(s.class) + "-" + string(s.way) }

// waysPassed is how many sets each family has: one for each class and direction.
const waysPassed = 6

// versions are those of IP in the order in which sums have them, and 0 for frames
// of other protocols, which count only when they are dropped.
var versions = [...]int{0, 4, 6} //nolint:gochecknoglobals // a constant

// place returns the place of a version in versions.
func place(version int) int { return slices.Index(versions[:], version) }

// linkSums is the traffic of a link: what passed by class and direction, in the
// order of a family's sets, and by version of IP, and what was dropped by version.
type linkSums struct {
	passed  [waysPassed][len(versions)]amount
	dropped [len(versions)]vps.TrafficCount
}

// trafficSums is traffic by link.
type trafficSums map[linkBytes]*linkSums

func (sums trafficSums) of(link linkBytes) *linkSums {
	s := sums[link]
	if s == nil {
		s = &linkSums{}
		sums[link] = s
	}
	return s
}

// addPassed adds what passed.
func (sums trafficSums) addPassed(d *dumper) error {
	for i, s := range passedSets() {
		found, err := d.counters(s.family, trafficName, s.name())
		if err != nil {
			return err
		}
		for j := range found {
			key := &found[j].key
			at := &sums.of(key.name()).passed[i%waysPassed][place(version(s.family, key))]
			*at = at.plus(found[j].amount)
		}
	}
	return nil
}

// addDrops adds what was dropped since before.
func (sums trafficSums) addDrops(drops, before dropSums) {
	for k, sum := range drops {
		if was := before[k]; sum.packets > was.packets && sum.bytes >= was.bytes {
			at := &sums.of(k.link).dropped[place(k.version)]
			*at = at.Add(amount{sum.packets - was.packets, sum.bytes - was.bytes}.count(k.way))
		}
	}
}

// count is the amount in one direction, in frames.
func (a amount) count(way vps.Direction) vps.TrafficCount {
	frames := int64(a.bytes + vps.FrameBytes*a.packets)
	if way == vps.In {
		return vps.TrafficCount{InBytes: frames, InPackets: int64(a.packets)}
	}
	return vps.TrafficCount{OutBytes: frames, OutPackets: int64(a.packets)}
}

// rows returns the traffic in order.
func (sums trafficSums) rows() []vps.LinkTraffic {
	links := slices.SortedFunc(maps.Keys(sums), func(a, b linkBytes) int { return bytes.Compare(a[:], b[:]) })
	rows := make([]vps.LinkTraffic, 0, (waysPassed+1)*len(links))
	for _, link := range links {
		name, s := link.String(), sums[link]
		add := func(class vps.TrafficClass, family int, c vps.TrafficCount) {
			if c != (vps.TrafficCount{}) {
				rows = append(rows, vps.LinkTraffic{Link: name, TrafficKey: vps.TrafficKey{Class: class, Family: family}, TrafficCount: c})
			}
		}
		for i, class := range passing() {
			for place, family := range versions {
				in, out := s.passed[2*i][place], s.passed[2*i+1][place]
				add(class, family, in.count(vps.In).Add(out.count(vps.Out)))
			}
		}
		for place, family := range versions {
			add(vps.TrafficDropped, family, s.dropped[place])
		}
	}
	return rows
}
