package nft

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// quotaName is the name of the tables that hold quotas and links that are cut
// off. Apply never replaces them; without either they have no chains.
const quotaName = "sublet-quota"

// quotaID is what a quota may be called: see vps.Quota.ID. With a dot for the
// slash, and behind a word of ours, it is an identifier of nft's language.
var quotaID = regexp.MustCompile(`^(host|(tenant|guest)/[a-z][a-z0-9-]{0,62})$`)

// threshold is what a quota does when a part of it is used up.
type threshold string

const (
	throttles threshold = "throttle"
	blocks    threshold = "block"
)

// thresholds are in the order in which a packet meets them: what a throttle
// drops must not count for the block.
func thresholds() []threshold { return []threshold{throttles, blocks} }

// quotaScopes are those whose links are named, in the order in which a packet
// meets them.
func quotaScopes() []vps.QuotaScope { return []vps.QuotaScope{vps.QuotaTenant, vps.QuotaGuest} }

// object is a quota of the kernel's: one threshold of a vps.NetworkQuota, in
// one table.
type object struct {
	family string
	quota  *vps.NetworkQuota
	kind   threshold
	links  []string // those in this table
	// ways are the directions that it counts.
	ways []vps.Direction
	// share of what is left is this table's, of whole.
	share, whole int
	// name is unique in the table, key among all.
	name, key string
}

// newObject names it.
func newObject(o object) object {
	o.name = string(o.kind)
	if len(o.ways) == 1 {
		o.name += "-" + string(o.ways[0])
	}
	o.name += "." + strings.ReplaceAll(o.quota.ID, "/", ".")
	o.key = o.family + " " + o.name
	return o
}

// at is the use at which it is reached.
func (o *object) at() int64 {
	if o.kind == blocks {
		return o.quota.Block
	}
	return o.quota.Throttle
}

// used is how much of it was used when the quota was counted.
func (o *object) used() int64 {
	var used int64
	for _, way := range o.ways {
		if way == vps.In {
			used = vps.SumBytes(used, o.quota.In)
		} else {
			used = vps.SumBytes(used, o.quota.Out)
		}
	}
	return used
}

// apart are the sets of directions that a quota counts apart: for the larger
// of two, each is held by itself.
func apart(c vps.QuotaCount) [][]vps.Direction {
	switch c {
	case vps.CountIn:
		return [][]vps.Direction{{vps.In}}
	case vps.CountOut:
		return [][]vps.Direction{{vps.Out}}
	case vps.CountMax:
		return [][]vps.Direction{{vps.In}, {vps.Out}}
	case vps.CountBoth:
	}
	return [][]vps.Direction{{vps.In, vps.Out}}
}

// quotaWall is what the tables should hold.
type quotaWall struct {
	objects   []object
	links     map[string]map[string]bool // by family: all that have a quota
	suspended map[string][]string        // by family
	uplinks   []string
	host      *vps.NetworkQuota
	elements  map[string][]string // by family, and name of a set or map; see lead
}

// same tells whether two are made of the same, but for what objects are at.
func (w *quotaWall) same(other *quotaWall) bool {
	return slices.Equal(w.uplinks, other.uplinks) && maps.EqualFunc(w.suspended, other.suspended, slices.Equal) &&
		slices.EqualFunc(w.objects, other.objects, func(a, b object) bool {
			return a.key == b.key && slices.Equal(a.links, b.links) && (a.kind != throttles || a.quota.Rate == b.quota.Rate)
		})
}

// empty tells whether it lets all pass and counts nothing.
func (w *quotaWall) empty() bool {
	return len(w.objects) == 0 && len(w.suspended[inet]) == 0 && len(w.suspended[bridge]) == 0
}

// collectQuotas checks quotas and turns them into what the kernel should hold.
// ports tells which links are ports of bridges.
func collectQuotas(quotas []vps.NetworkQuota, suspended, uplinks []string, ports map[string]bool) (*quotaWall, error) {
	w := &quotaWall{
		links: map[string]map[string]bool{inet: {}, bridge: {}}, suspended: map[string][]string{},
		uplinks: slices.Compact(slices.Sorted(slices.Values(uplinks))), elements: map[string][]string{},
	}
	for _, u := range w.uplinks {
		if !linkName.MatchString(u) || strings.HasPrefix(u, vps.LinkPrefix) {
			return nil, vps.Invalid("uplink", "%q cannot be an uplink; name a link of the host towards the public side", u)
		}
	}
	for _, l := range slices.Compact(slices.Sorted(slices.Values(suspended))) {
		if err := guestLink(l); err != nil {
			return nil, err
		}
		w.suspended[familyOf(l, ports)] = append(w.suspended[familyOf(l, ports)], l)
	}
	sorted := slices.SortedFunc(slices.Values(quotas), func(a, b vps.NetworkQuota) int { return strings.Compare(a.ID, b.ID) })
	taken := map[string]string{}
	for i := range sorted {
		if err := checkQuota(&sorted[i], taken); err != nil {
			return nil, err
		}
		w.addQuota(&sorted[i], ports)
	}
	return w, nil
}

func familyOf(link string, ports map[string]bool) string {
	if ports[link] {
		return bridge
	}
	return inet
}

func guestLink(l string) error {
	if !linkName.MatchString(l) || !strings.HasPrefix(l, vps.LinkPrefix) {
		return vps.Invalid("link", "%q is not the name of a guest's link", l)
	}
	return nil
}

// checkQuota refuses what must not be rendered. taken holds the quotas of a
// scope that have a link, and those that were there before.
func checkQuota(q *vps.NetworkQuota, taken map[string]string) error {
	scope, _, _ := strings.Cut(q.ID, "/")
	switch {
	case !quotaID.MatchString(q.ID) || scope != string(q.Scope):
		return vps.Invalid("id", "%q is not the name of a quota of the scope %q", q.ID, q.Scope)
	case taken[q.ID] != "":
		return vps.Errorf(vps.CodeConflict, "the quota %s is there twice", q.ID)
	case q.Throttle >= 0 && q.Rate < vps.MinBandwidth:
		return vps.Invalid("rate", "the quota %s throttles to %s; use at least %s", q.ID, q.Rate, vps.MinBandwidth)
	}
	// One that counts wrong must not let go of the others.
	q.In, q.Out = max(q.In, 0), max(q.Out, 0)
	taken[q.ID] = q.ID
	for _, l := range q.Links {
		if err := guestLink(l); err != nil {
			return err
		}
		if other := taken[scope+" "+l]; other != "" {
			return vps.Errorf(vps.CodeConflict, "the quotas %s and %s both count the link %s", other, q.ID, l)
		}
		taken[scope+" "+l] = q.ID
	}
	return nil
}

// addQuota adds the objects of a quota, and what leads to them.
func (w *quotaWall) addQuota(q *vps.NetworkQuota, ports map[string]bool) {
	if q.Block < 0 && q.Throttle < 0 {
		return
	}
	// What is left is parted among the tables by links: the sum holds, and what
	// one of them has too little is given to it when it is counted again.
	links := map[string][]string{}
	for _, l := range q.Links {
		links[familyOf(l, ports)] = append(links[familyOf(l, ports)], l)
	}
	share, whole := map[string]int{inet: len(links[inet]), bridge: len(links[bridge])}, len(q.Links)
	if q.Scope == vps.QuotaHost {
		w.host = q
		share, whole = map[string]int{inet: 1}, 1
		if len(ports) > 0 {
			share[bridge], whole = 1, 2
		}
	}
	for _, kind := range thresholds() {
		for _, family := range trafficFamilies() {
			if share[family] == 0 || kind == blocks && q.Block < 0 || kind == throttles && q.Throttle < 0 {
				continue
			}
			for _, ways := range apart(q.Count) {
				w.objects = append(w.objects, newObject(object{family: family, quota: q, kind: kind, links: links[family], ways: ways, share: share[family], whole: whole}))
			}
		}
	}
	for family, all := range links {
		for _, l := range all {
			w.links[family][l] = true
		}
	}
}

// lead adds the elements that lead from links to an object.
func (w *quotaWall) lead(o *object) {
	put := func(set, element string) {
		key := o.family + " " + set
		w.elements[key] = append(w.elements[key], element)
	}
	for _, l := range o.links {
		for _, way := range o.ways {
			put(fmt.Sprintf("%s-%s-%s", o.kind, o.quota.Scope, way), quote(l)+" : "+quote(o.name))
			if o.kind == throttles {
				put(fmt.Sprintf("rates-%s-%s", o.quota.Scope, way), quote(l)+" "+rateOver(o.quota.Rate))
			}
		}
	}
}

// rateOver is a limit that holds what is over a rate. Its bucket has to hold
// the largest packet.
func rateOver(r vps.BitRate) string {
	// The kernel multiplies with nanoseconds, and has 64 bits for that.
	const bits, most, largest, perSecond = 8, 12_500_000_000, 65536, 8
	rate := min(uint64(r)/bits, most)
	return fmt.Sprintf("limit rate over %d bytes/second burst %d bytes", rate, max(rate/perSecond, largest))
}

// text is the tables' text. limits says what each object is set to, by family
// and name, where it is more than nothing, and kept what the sets that count drops are at.
func (w *quotaWall) text(limits map[string]string, kept map[string][]string) string {
	var b strings.Builder
	clear(w.elements)
	for i := range w.objects {
		w.lead(&w.objects[i])
	}
	for _, family := range trafficFamilies() {
		fmt.Fprintf(&b, "table %s %s {\n%s", family, quotaName, byHand)
		for _, c := range quotaDrops() {
			if c.family == family {
				b.WriteString(c.declare(kept[family+" "+c.set]))
			}
		}
		if !w.empty() {
			w.body(&b, family, limits)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// body writes what a table holds besides the sets that count drops.
func (w *quotaWall) body(b *strings.Builder, family string, limits map[string]string) {
	for i := range w.objects {
		if o := &w.objects[i]; o.family == family {
			fmt.Fprintf(b, "\n\tquota %s {\n\t\t%s\n\t}\n", o.name, cmp.Or(limits[o.key], "over 0 bytes"))
		}
	}
	set := func(kind, name string, spec ...string) {
		fmt.Fprintf(b, "\n\t%s %s {\n\t\t%s\n", kind, name, strings.Join(spec, "\n\t\t"))
		writeElements(b, w.elements[family+" "+name])
	}
	for _, scope := range quotaScopes() {
		for _, way := range directions() {
			for _, kind := range thresholds() {
				set("map", fmt.Sprintf("%s-%s-%s", kind, scope, way), "type ifname : quota")
			}
			// What is declared is what an element without its own limit would have.
			set("set", fmt.Sprintf("rates-%s-%s", scope, way), "type ifname", "limit rate over 1 bytes/second")
		}
	}
	fmt.Fprintf(b, quotaDroppers, sumRule(family, vps.Out), sumRule(family, vps.In))
	for _, way := range directions() {
		fmt.Fprintf(b, "\n\tmap %s {\n\t\ttype ifname : verdict\n", way)
		var elements []string
		for _, l := range w.suspended[family] {
			elements = append(elements, quote(l)+" : goto drop_"+string(way))
		}
		for _, l := range slices.Sorted(maps.Keys(w.links[family])) {
			if _, cut := slices.BinarySearch(w.suspended[family], l); !cut {
				elements = append(elements, quote(l)+" : jump count_"+string(way))
			}
		}
		writeElements(b, elements)
	}
	if family == bridge {
		b.WriteString(bridgeQuota)
	} else {
		b.WriteString(inetQuota)
	}
	if w.host != nil {
		w.writeHost(b, family)
	}
}

// writeElements ends a set or map.
func writeElements(b *strings.Builder, elements []string) {
	if len(elements) > 0 {
		fmt.Fprintf(b, "\t\telements = {\n\t\t\t%s\n\t\t}\n", strings.Join(elements, ",\n\t\t\t"))
	}
	b.WriteString("\t}\n")
}
