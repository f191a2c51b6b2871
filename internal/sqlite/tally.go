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
		if o[i] != (vps.TrafficCount{}) {
			t[i] = t[i].Add(o[i])
		}
	}
}

// used counts the slots that are not zero.
func (t *tally) used() (n int) {
	for i := range t {
		if t[i] != (vps.TrafficCount{}) {
			n++
		}
	}
	return n
}

// since returns what came after an earlier state of the tally.
func (t *tally) since(earlier *tally) (d tally) {
	for i := range t {
		if t[i] == earlier[i] {
			continue
		}
		e := earlier[i]
		d[i] = t[i].Add(vps.TrafficCount{InBytes: -e.InBytes, InPackets: -e.InPackets, OutBytes: -e.OutBytes, OutPackets: -e.OutPackets})
	}
	return d
}

// restart sets to nothing what counters that now stand at now have begun anew
// since they stood at t: those that fell, each direction by itself, as the
// kernel has them. What was dropped is a sum of many, of which another may have
// fallen: it goes on from where it is. It tells whether there were any.
func (t *tally) restart(now *tally) (fell bool) {
	for i := range t {
		n, c := &now[i], &t[i]
		in, out := n.InBytes < c.InBytes || n.InPackets < c.InPackets, n.OutBytes < c.OutBytes || n.OutPackets < c.OutPackets
		if !in && !out {
			continue
		}
		fell = true
		from := vps.TrafficCount{}
		if keyOf(i).Class == vps.TrafficDropped {
			from = *n
		}
		if in {
			c.InBytes, c.InPackets = from.InBytes, from.InPackets
		}
		if out {
			c.OutBytes, c.OutPackets = from.OutBytes, from.OutPackets
		}
	}
	return fell
}

// flow returns the bytes of the classes that pick wants.
func (t *tally) flow(pick func(vps.TrafficClass) bool) (f flow) {
	for i := range t {
		if t[i] != (vps.TrafficCount{}) && pick(keyOf(i).Class) {
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
	for i := range t {
		c := &t[i]
		if *c == (vps.TrafficCount{}) {
			continue
		}
		b[at]++
		b = append(b, byte(i))
		b = binary.AppendUvarint(b, uint64(c.InBytes))
		b = binary.AppendUvarint(b, uint64(c.InPackets))
		b = binary.AppendUvarint(b, uint64(c.OutBytes))
		b = binary.AppendUvarint(b, uint64(c.OutPackets))
	}
	return b
}
