//go:build linux

package nft

import (
	"bytes"
	"slices"

	"sublet/internal/vps"
)

// passedSet is a set of the tables that counts what passed.
type passedSet struct {
	family string
	class  vps.TrafficClass
	way    vps.Direction
}

// passedLen is how many of them there are: in each family one for each class and
// direction.
const passedLen = 12

func passedSets() [passedLen]passedSet {
	var all [passedLen]passedSet
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

// versions are those of IP in the order in which sums have them, and 0 for frames
// of other protocols, which count only when they are dropped.
var versions = [...]int{0, 4, 6} //nolint:gochecknoglobals // a constant

// place returns the place of a version in versions.
func place(version int) int { return slices.Index(versions[:], version) }

// linkSums is the traffic of a link: what each set has of it that passed, and what
// was dropped, by version of IP.
type linkSums struct {
	name    linkBytes
	passed  [passedLen][len(versions)]amount
	dropped [len(versions)]vps.TrafficCount
}

// trafficSums is traffic by link. It is read again and again, and remembers where
// everything went: sets tell of their elements in the same order as long as none
// are added, and to look up the names of thousands takes longer than to compare
// them with those of before.
type trafficSums struct {
	links  map[linkBytes]*linkSums
	sorted []*linkSums
	order  [passedLen][]passedCounter
}

// passedCounter is an element of a set, and where what it counted is put.
type passedCounter struct {
	key counterKey
	at  *amount
}

func (sums *trafficSums) of(link linkBytes) *linkSums {
	s := sums.links[link]
	if s != nil {
		return s
	}
	if sums.links == nil {
		sums.links = map[linkBytes]*linkSums{}
	}
	s = &linkSums{name: link}
	sums.links[link] = s
	at, _ := slices.BinarySearchFunc(sums.sorted, link, func(s *linkSums, link linkBytes) int { return bytes.Compare(s.name[:], link[:]) })
	sums.sorted = slices.Insert(sums.sorted, at, s)
	return s
}

// readPassed reads what passed.
func (sums *trafficSums) readPassed(d *dumper) error {
	for i, s := range passedSets() {
		same, err := sums.readAgain(d, i, s)
		if err == nil && !same {
			err = sums.readAnew(d, i, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readAgain reads a set of which the elements are known. It tells whether they
// are the same still, all of them.
func (sums *trafficSums) readAgain(d *dumper, i int, s passedSet) (same bool, err error) {
	order, n := sums.order[i], 0
	same = len(order) > 0
	if !same {
		return false, nil
	}
	whole, err := d.elements(s.family, trafficName, s.name(), func(element []byte) {
		c := counterOf(element)
		if same = same && n < len(order) && order[n].key == c.key; same {
			*order[n].at = c.amount
			n++
		}
	})
	return whole && same && n == len(order), err
}

// readAnew reads a set, and remembers its elements.
func (sums *trafficSums) readAnew(d *dumper, i int, s passedSet) error {
	found, err := d.counters(s.family, trafficName, s.name())
	if err != nil {
		return err
	}
	for _, l := range sums.sorted {
		l.passed[i] = [len(versions)]amount{}
	}
	sums.order[i] = sums.order[i][:0]
	for j := range found {
		key := &found[j].key
		at := &sums.of(key.name()).passed[i][place(version(s.family, key))]
		*at = found[j].amount
		sums.order[i] = append(sums.order[i], passedCounter{*key, at})
	}
	return nil
}

// setDrops sets what was dropped since before.
func (sums *trafficSums) setDrops(drops, before dropSums) {
	for _, l := range sums.sorted {
		l.dropped = [len(versions)]vps.TrafficCount{}
	}
	for k, sum := range drops {
		if was := before[k]; sum.packets > was.packets && sum.bytes >= was.bytes {
			at := &sums.of(k.link).dropped[place(k.version)]
			*at = at.Add(amount{sum.packets - was.packets, sum.bytes - was.bytes}.count(k.way))
		}
	}
}

// count is the amount in one direction, in frames.
func (a amount) count(way vps.Direction) vps.TrafficCount {
	frames := int64(a.frames())
	if way == vps.In {
		return vps.TrafficCount{InBytes: frames, InPackets: int64(a.packets)}
	}
	return vps.TrafficCount{OutBytes: frames, OutPackets: int64(a.packets)}
}

// rows returns the traffic in order.
func (sums *trafficSums) rows() []vps.LinkTraffic {
	ways := len(directions())
	classes := passing()
	rows := make([]vps.LinkTraffic, 0, (len(classes)+1)*ways*len(sums.sorted))
	for _, s := range sums.sorted {
		name := s.name.String()
		add := func(class vps.TrafficClass, family int, c vps.TrafficCount) {
			if c != (vps.TrafficCount{}) {
				rows = append(rows, vps.LinkTraffic{Link: name, TrafficKey: vps.TrafficKey{Class: class, Family: family}, TrafficCount: c})
			}
		}
		for i, class := range classes {
			for place, family := range versions {
				var c vps.TrafficCount
				for set := ways * i; set < passedLen; set += ways * len(classes) {
					c = c.Add(s.passed[set][place].count(vps.In)).Add(s.passed[set+1][place].count(vps.Out))
				}
				add(class, family, c)
			}
		}
		for place, family := range versions {
			add(vps.TrafficDropped, family, s.dropped[place])
		}
	}
	return rows
}
