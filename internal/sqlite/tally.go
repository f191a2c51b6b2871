package sqlite

import (
	"encoding/binary"
	"slices"

	"sublet/internal/vps"
)

// The classes and families in the order in which tallies have them. New ones
// go to the end of classes: what is on the disk counts on the order.
var (
	tallyClasses  = [...]vps.TrafficClass{vps.TrafficInternet, vps.TrafficHost, vps.TrafficBetween, vps.TrafficDropped, vps.TrafficUplink}
	tallyFamilies = [...]int{4, 6, 0}
)

// tally is an amount of traffic of every class and family.
type tally [len(tallyClasses) * len(tallyFamilies)]vps.TrafficCount

// slot is the place of a class and family in a tally.
func slot(k vps.TrafficKey) (int, error) {
	class := slices.Index(tallyClasses[:], k.Class)
	family := slices.Index(tallyFamilies[:], k.Family)
	if class < 0 || family < 0 {
		return 0, vps.Errorf(vps.CodeInternal, "traffic of the class %q and the family %d is unknown to the ledger", k.Class, k.Family)
	}
	return class*len(tallyFamilies) + family, nil
}

// keyOf is the class and family at a place in a tally.
func keyOf(slot int) vps.TrafficKey {
	return vps.TrafficKey{Class: tallyClasses[slot/len(tallyFamilies)], Family: tallyFamilies[slot%len(tallyFamilies)]}
}

func (t *tally) add(o *tally) {
	for i := range t {
		t[i] = t[i].Add(o[i])
	}
}

// since returns what came after an earlier state of the tally.
func (t *tally) since(earlier *tally) tally {
	d := *t
	for i := range d {
		e := earlier[i]
		d[i] = d[i].Add(vps.TrafficCount{InBytes: -e.InBytes, InPackets: -e.InPackets, OutBytes: -e.OutBytes, OutPackets: -e.OutPackets})
	}
	return d
}

// restart sets to nothing what counters that now stand at now have begun anew
// since they stood at t: those that fell, each direction by itself, as the
// kernel has them. What was dropped is a sum of many, of which another may have
// fallen: it goes on from where it is. It tells whether there were any.
func (t *tally) restart(now *tally) (fell bool) {
	for i := range t {
		n, c := now[i], &t[i]
		from := vps.TrafficCount{}
		if keyOf(i).Class == vps.TrafficDropped {
			from = n
		}
		if n.InBytes < c.InBytes || n.InPackets < c.InPackets {
			c.InBytes, c.InPackets, fell = from.InBytes, from.InPackets, true
		}
		if n.OutBytes < c.OutBytes || n.OutPackets < c.OutPackets {
			c.OutBytes, c.OutPackets, fell = from.OutBytes, from.OutPackets, true
		}
	}
	return fell
}

// flow returns the bytes of the classes that pick wants.
func (t *tally) flow(pick func(vps.TrafficClass) bool) (f flow) {
	for i := range t {
		if pick(keyOf(i).Class) {
			f = f.plus(flow{t[i].InBytes, t[i].OutBytes})
		}
	}
	return f
}

// flow is bytes in both directions.
type flow struct{ in, out int64 }

func (f flow) plus(o flow) flow { return flow{vps.SumBytes(f.in, o.in), vps.SumBytes(f.out, o.out)} }

// append writes the slots that are not zero: how many, then of each the slot,
// bytes and packets in and out, all as uvarints (encoding/binary).
func (t *tally) append(b []byte) []byte {
	at := len(b)
	b = append(b, 0)
	for i, c := range t {
		if c == (vps.TrafficCount{}) {
			continue
		}
		b[at]++
		b = append(b, byte(i))
		for _, v := range [...]int64{c.InBytes, c.InPackets, c.OutBytes, c.OutPackets} {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	return b
}
