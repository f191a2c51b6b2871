//go:build linux

package nft

import (
	"context"
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
	for name, elements := range counted(present) {
		reason := vps.DropReason(name[strings.Index(name, " dropped-")+len(" dropped-"):])
		for _, e := range elements {
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
	for _, family := range families() {
		for _, r := range reasonsOf(family) {
			name := "dropped-" + string(r)
			if b := present[family]["set "+name]; b != nil && len(b.elements) > 0 {
				found[family+" "+name] = b.elements
			}
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
