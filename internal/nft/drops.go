//go:build linux

package nft

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"sublet/internal/vps"
)

// Drops returns what was dropped so far, by the name of the guest's link: the
// reasons that occurred, in the order of vps.DropReasons, summed over all
// tables. Counters begin with the tables. Without tables there is nothing.
func (f *Firewall) Drops(ctx context.Context) (map[string][]vps.Drop, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	present, err := f.list(ctx, true)
	if err != nil {
		return nil, err
	}
	type key struct {
		link   string
		reason vps.DropReason
	}
	sums := map[key]vps.Drop{}
	seen := map[string]bool{}
	byUID := linksOfUIDs(present[inet])
	elements := counted(present)
	for _, c := range dropCounts() {
		reason := c.reason
		for _, e := range elements[c.family+" "+c.set] {
			who, packets, bytes, ok := counter(e)
			if !ok {
				continue
			}
			if reason == vps.DropSocket {
				who = byUID[who]
			}
			if who == "" || packets == 0 {
				continue
			}
			s := sums[key{who, reason}]
			sums[key{who, reason}] = vps.Drop{Reason: reason, Packets: s.Packets + packets, Bytes: s.Bytes + bytes}
			seen[who] = true
		}
	}
	drops := make(map[string][]vps.Drop, len(seen))
	for link := range seen {
		for _, r := range vps.DropReasons() {
			if d, ok := sums[key{link, r}]; ok {
				drops[link] = append(drops[link], d)
			}
		}
	}
	return drops, nil
}

// counted returns the elements of our counting sets, by family and name.
func counted(present map[string]map[string]*block) map[string][]string {
	found := map[string][]string{}
	for _, c := range dropCounts() {
		if b := present[c.family]["set "+c.set]; b != nil && len(b.elements) > 0 {
			found[c.family+" "+c.set] = b.elements
		}
	}
	return found
}

// counter reads `"sl-alice" counter packets 3 bytes 180`.
func counter(element string) (who string, packets, bytes uint64, ok bool) {
	words := strings.Fields(element)
	if len(words) != 6 || words[1] != "counter" || words[2] != "packets" || words[4] != "bytes" {
		return "", 0, 0, false
	}
	packets, err := strconv.ParseUint(words[3], 10, 64)
	if err != nil {
		return "", 0, 0, false
	}
	bytes, err = strconv.ParseUint(words[5], 10, 64)
	return strings.Trim(words[0], `"`), packets, bytes, err == nil
}

// linksOfUIDs reads the comments of the set of user ids.
func linksOfUIDs(t map[string]*block) map[string]string {
	byUID := map[string]string{}
	if b := t["set uids"]; b != nil {
		for _, e := range b.elements {
			if uid, link, ok := strings.Cut(e, " comment "); ok {
				byUID[uid] = strings.Trim(link, `"`)
			}
		}
	}
	return byUID
}

// keptDrops returns the elements of our counting sets with what they are at, by
// family and name, for tables that replace those that there are.
func keptDrops() (map[string][]string, error) {
	d, err := newDumper()
	if err != nil {
		return nil, err
	}
	defer d.close()
	kept := map[string][]string{}
	for _, c := range dropCounts() {
		found := map[counterKey]amount{}
		if err := d.counters(c.family, c.table, c.set, func(key counterKey, a amount) { found[key] = a }); err != nil {
			return nil, err
		}
		for key, a := range found {
			who := quote(key.name().String())
			if c.reason == vps.DropSocket {
				who = strconv.FormatUint(uint64(binary.NativeEndian.Uint32(key[:])), 10)
			}
			kept[c.family+" "+c.set] = append(kept[c.family+" "+c.set], fmt.Sprintf("%s counter packets %d bytes %d", who, a.packets, a.bytes))
		}
	}
	return kept, nil
}

// dropKey is what drops are summed by here: who sent or was to get it.
type dropKey struct {
	link linkBytes
	way  vps.Direction
}

type dropSums map[dropKey]amount

// readDrops returns what our tables dropped so far of what was on a guest's
// link; what its process sent past it was not.
func readDrops(d *dumper) (dropSums, error) {
	sums := dropSums{}
	for _, c := range dropCounts() {
		if c.reason == vps.DropSocket {
			continue
		}
		found := map[counterKey]amount{}
		if err := d.counters(c.family, c.table, c.set, func(key counterKey, a amount) { found[key] = a }); err != nil {
			return nil, err
		}
		for key, a := range found {
			k := dropKey{key.name(), c.way}
			sums[k] = sums[k].plus(a)
		}
	}
	return sums, nil
}

// readBefore returns what had been dropped when the tables that count traffic
// were made.
func readBefore(d *dumper) (dropSums, error) {
	sums := dropSums{}
	for _, way := range directions() {
		err := d.counters(inet, trafficName, beforeSet(way), func(key counterKey, a amount) { sums[dropKey{key.name(), way}] = a })
		if err != nil {
			return nil, err
		}
	}
	return sums, nil
}
