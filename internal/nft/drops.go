//go:build linux

package nft

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Drops returns what was dropped so far, by the name of the guest's link: the
// reasons that occurred, in the order of vps.DropReasons, summed over all
// tables. Counters begin with the tables. Without tables there is nothing.
func (f *Firewall) Drops(context.Context) (map[string][]vps.Drop, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := newDumper()
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the firewall's counters cannot be read; are we root?")
	}
	defer d.close()
	byReason, err := d.drops()
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the firewall's counters could not be read")
	}
	drops := map[string][]vps.Drop{}
	for _, r := range vps.DropReasons() {
		for link, a := range byReason[r] {
			drops[link] = append(drops[link], vps.Drop{Reason: r, Packets: a.packets, Bytes: a.frames()})
		}
	}
	return drops, nil
}

// drops returns what was dropped by reason and link, without what is zero.
func (d *dumper) drops() (map[vps.DropReason]map[string]amount, error) {
	links, err := d.linksOfUIDs()
	if err != nil {
		return nil, err
	}
	byReason := map[vps.DropReason]map[string]amount{}
	for _, c := range dropCounts() {
		if c.reason == "" {
			continue
		}
		found, err := d.counted(&c)
		if err != nil {
			return nil, err
		}
		for _, e := range found {
			link := e.key.name().String()
			if c.key == byUser {
				link = links[e.key]
			}
			if link == "" || e.packets == 0 {
				continue
			}
			if byReason[c.reason] == nil {
				byReason[c.reason] = map[string]amount{}
			}
			byReason[c.reason][link] = byReason[c.reason][link].plus(e.amount)
		}
	}
	return byReason, nil
}

// counted returns what a set of drops is at, until the next call.
func (d *dumper) counted(c *dropCount) ([]counter, error) {
	return d.counters(c.family, c.table, c.set)
}

// linksOfUIDs returns the comments of the wall's set of user ids.
func (d *dumper) linksOfUIDs() (map[counterKey]string, error) {
	links := map[counterKey]string{}
	err := untilWhole(func() (bool, error) {
		clear(links)
		return d.elements(inet, wallName, "uids", func(element []byte) {
			// libnftnl's udata: pairs of a type, a length, and as many bytes; the
			// type 0 is a comment (NFTNL_UDATA_SET_ELEM_COMMENT).
			if data := attribute(element, unix.NFTA_SET_ELEM_USERDATA); len(data) > 2 && data[0] == 0 && int(data[1]) <= len(data)-2 {
				links[counterOf(element).key] = text(data[2 : 2+int(data[1])])
			}
		})
	})
	return links, err
}

// keptDrops returns the elements of the wall's counting sets with what they are at, by
// family and name, for tables that replace those that there are.
func keptDrops() (map[string][]string, error) {
	d, err := newDumper()
	if err != nil {
		return nil, err
	}
	defer d.close()
	return d.kept(wallDrops())
}

// kept returns the elements of counting sets with what they are at.
func (d *dumper) kept(sets []dropCount) (map[string][]string, error) {
	kept := map[string][]string{}
	for _, c := range sets {
		found, err := d.counted(&c)
		if err != nil {
			return nil, err
		}
		for i := range found {
			kept[c.family+" "+c.set] = append(kept[c.family+" "+c.set], found[i].text(c.element(&found[i].key)))
		}
	}
	return kept, nil
}

// frames is how many bytes it is as frames, which is what the ledger counts.
func (a amount) frames() uint64 { return a.bytes + vps.FrameBytes*a.packets }

// text writes an element for nft, with what it is at.
func (a amount) text(element string) string {
	return fmt.Sprintf("%s counter packets %d bytes %d", element, a.packets, a.bytes)
}

// dropKey is what drops are summed by here: who sent or was to get it, and the
// version of IP, 0 for other frames.
type dropKey struct {
	link    linkBytes
	way     vps.Direction
	version int
}

type dropSums map[dropKey]amount

// readDrops returns what our tables dropped so far of what was on a guest's
// link; what its process sent past it was not.
func readDrops(d *dumper) (dropSums, error) {
	sums := dropSums{}
	for _, c := range dropCounts() {
		if c.reason != "" {
			continue
		}
		found, err := d.counted(&c)
		if err != nil {
			return nil, err
		}
		for _, e := range found {
			k := dropKey{e.key.name(), c.way, version(c.family, &e.key)}
			sums[k] = sums[k].plus(e.amount)
		}
	}
	return sums, nil
}

// readBefore returns what had been dropped when the tables that count traffic
// were made.
func readBefore(d *dumper) (dropSums, error) {
	sums := dropSums{}
	for _, way := range directions() {
		found, err := d.counters(inet, trafficName, beforeSet(way))
		if err != nil {
			return nil, err
		}
		for _, e := range found {
			sums[dropKey{e.key.name(), way, version(inet, &e.key)}] = e.amount
		}
	}
	return sums, nil
}
