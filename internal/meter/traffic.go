package meter

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"sublet/internal/vps"
)

// NameTraffic begins each row where the step of its name does in zone
// (vps.TrafficStep.Named), and adds up those of one guest that then agree: the
// host has had another zone since. Rows that all begin there are returned as
// they are; others are sorted by begin, then guest, class and family. It works in
// rows itself.
func NameTraffic(rows []vps.TrafficRow, zone *time.Location, now time.Time) []vps.TrafficRow {
	type key struct {
		guest string
		start int64
		vps.TrafficKey
	}
	var was, start time.Time
	moved := false
	for i := range rows {
		r := &rows[i]
		if i == 0 || !r.Start.Equal(was) { // many have the same
			was, start = r.Start, r.Step.Named(r.Start, zone, now)
		}
		if !start.Equal(r.Start) {
			moved, r.From = true, r.Start.In(zone)
		}
		r.Start = start
	}
	if !moved {
		return rows
	}
	at := map[key]int{}
	sums := rows[:0]
	for _, r := range rows {
		k := key{r.GuestID, r.Start.Unix(), r.TrafficKey}
		if i, there := at[k]; there {
			sums[i].Join(&r)
			continue
		}
		at[k] = len(sums)
		sums = append(sums, r)
	}
	slices.SortStableFunc(sums, func(a, b vps.TrafficRow) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.GuestID, b.GuestID), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Family, b.Family))
	})
	return sums
}

// SumTraffic adds up the rows of all guests that agree in begin, class and
// family. The result is sorted by these, and has no guest.
func SumTraffic(rows []vps.TrafficRow) []vps.TrafficRow {
	type key struct {
		start int64
		vps.TrafficKey
	}
	at := map[key]int{}
	var out []vps.TrafficRow
	for _, r := range rows {
		k := key{r.Start.Unix(), r.TrafficKey}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, vps.TrafficRow{Start: r.Start, Step: r.Step, From: r.From, TrafficKey: r.TrafficKey})
		}
		out[i].Join(&r)
	}
	slices.SortFunc(out, func(a, b vps.TrafficRow) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Family, b.Family))
	})
	return out
}

// NewestTraffic keeps the rows of the newest n steps that there are; 0 keeps
// all.
func NewestTraffic(rows []vps.TrafficRow, n int) []vps.TrafficRow {
	return ofSteps(rows, n, func(a, b stepTotal) int { return cmp.Compare(b.start, a.start) })
}

// TopTraffic keeps the rows of the n steps with the most traffic of a guest,
// without what was dropped; 0 keeps all. Of steps with the same the older ones
// count as more.
func TopTraffic(rows []vps.TrafficRow, n int) []vps.TrafficRow {
	return ofSteps(rows, n, func(a, b stepTotal) int { return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.start, b.start)) })
}

type stepTotal struct{ start, bytes int64 }

// ofSteps keeps the rows of the first n steps by an order.
func ofSteps(rows []vps.TrafficRow, n int, order func(a, b stepTotal) int) []vps.TrafficRow {
	if n <= 0 {
		return rows
	}
	totals := map[int64]int64{}
	for _, r := range rows {
		bytes := r.Bytes()
		if r.Class == vps.TrafficDropped {
			bytes = 0
		}
		totals[r.Start.Unix()] = vps.SumBytes(totals[r.Start.Unix()], bytes)
	}
	steps := make([]stepTotal, 0, len(totals))
	for start, bytes := range totals {
		steps = append(steps, stepTotal{start, bytes})
	}
	slices.SortFunc(steps, order)
	keep := map[int64]bool{}
	for _, s := range steps[:min(n, len(steps))] {
		keep[s.start] = true
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r vps.TrafficRow) bool { return !keep[r.Start.Unix()] })
}

// UplinkTraffic is what is known for a check of guests against public links.
type UplinkTraffic struct {
	// Since and Until bound the rows.
	Since, Until time.Time
	// Links are the public links. Headerless are those of them that have no
	// Ethernet header, and Wireless those whose driver may count one of its own.
	Links, Headerless, Wireless []string
	// Host are the links' rows, Guests those of all guests.
	Host, Guests []vps.TrafficRow
}

const (
	// toleranceBytes and a hundredth are by how much the guests' sum may be
	// larger: the counters are not read in the same instant, and a packet that
	// was counted as a guest's may still be lost in the link's queue.
	toleranceBytes = 1 << 20
	tolerancePart  = 100
	// mergedHeader is what a packet adds that the kernel merged with another:
	// the headers of Ethernet, IPv4, and TCP with time stamps.
	mergedHeader = vps.FrameBytes + 20 + 32
	// mergedMost is how many packets one of 64 KiB saves that were as large as
	// Ethernet's usual ones.
	mergedMost = 44
)

// CheckTraffic compares guests with the public links. The parts of the
// difference add up to it.
func CheckTraffic(u UplinkTraffic) vps.TrafficCheck {
	var host, internet, relayed, dropped vps.TrafficCount
	for _, r := range u.Host {
		host = host.Add(r.TrafficCount)
	}
	for _, r := range u.Guests {
		switch r.Class {
		case vps.TrafficInternet:
			internet = internet.Add(r.TrafficCount)
		case vps.TrafficHost:
			relayed = relayed.Add(r.TrafficCount)
		case vps.TrafficDropped:
			dropped = dropped.Add(r.TrafficCount)
		case vps.TrafficBetween, vps.TrafficUplink: // pass no public link, or are one
		}
	}
	rest := minus(host, internet)
	c := vps.TrafficCheck{Since: u.Since, Until: u.Until, Links: u.Links, Tolerance: tolerance(host)}
	c.Lines = []vps.TrafficCheckLine{
		{What: "public links", How: vps.EvidenceMeasured, TrafficCount: host, Note: "their own counters, as the kernel keeps them for each link"},
		{What: "guests, internet", How: vps.EvidenceMeasured, TrafficCount: internet, Note: "the sum over all guests, also deleted ones, of what went between them and the outside"},
		{What: "difference", How: vps.EvidenceMeasured, TrafficCount: rest, Note: "the first line less the second; the lines below add up to it"},
	}
	part := func(what string, how vps.TrafficEvidence, n vps.TrafficCount, note string) {
		if n == (vps.TrafficCount{}) && how != vps.EvidenceInferred {
			return
		}
		rest = minus(rest, n)
		c.Lines = append(c.Lines, vps.TrafficCheckLine{What: what, How: how, TrafficCount: n, Part: true, Note: note})
	}
	if len(u.Headerless) > 0 {
		n := vps.TrafficCount{InBytes: -vps.FrameBytes * internet.InPackets, OutBytes: -vps.FrameBytes * internet.OutPackets}
		part("Ethernet headers", vps.EvidenceMeasured, n, "14 bytes of each of the guests' packets, which these links do not have: "+strings.Join(u.Headerless, ", "))
	}
	part("dropped on the way", vps.EvidenceAtMost, within(vps.TrafficCount{InBytes: dropped.InBytes, InPackets: dropped.InPackets}, rest),
		"came for guests and was dropped by the wall or a quota; what other guests or this host sent is in it too")
	part("for guests, by this host", vps.EvidenceAtMost, within(relayed, rest),
		"what this host's programs had with guests, and may have passed on to the outside, as for guests' domains")
	merged := vps.TrafficCount{
		InBytes:  mergedHeader * max(min(rest.InPackets, mergedMost*internet.InPackets), 0),
		OutBytes: mergedHeader * max(min(rest.OutPackets, mergedMost*internet.OutPackets), 0),
	}
	part("headers of merged packets", vps.EvidenceAtMost, within(merged, rest),
		"the kernel merges packets before it counts them as a guest's, and each one saves its headers")
	c.OK = rest.InBytes >= -c.Tolerance.InBytes && rest.OutBytes >= -c.Tolerance.OutBytes
	part("this host itself", vps.EvidenceInferred, rest, restNote(rest))
	c.Notes = checkNotes(u)
	return c
}

func restNote(rest vps.TrafficCount) string {
	if rest.InBytes < 0 || rest.OutBytes < 0 {
		return "what remains; below zero guests had more than the links, as with networks of this host that pass no public link (containers, VPNs), or with packets lost in a link's queue behind the counter"
	}
	return "what remains: SSH, updates and names of this host's own, ARP and all that is not IP"
}

func checkNotes(u UplinkTraffic) []string {
	var notes []string
	if len(u.Links) == 0 {
		notes = append(notes, "This host has no public link, so there is nothing to compare with.")
	}
	if len(u.Wireless) > 0 {
		notes = append(notes, "The driver of a wireless link may count headers of its own: "+strings.Join(u.Wireless, ", ")+".")
	}
	switch {
	case u.Since.After(u.Until):
		notes = append(notes, "Guests and public links are both counted from "+u.Since.Format("15:04")+" on; until then there is nothing to compare.")
	case len(u.Host) == 0 && len(u.Links) > 0:
		notes = append(notes, "Nothing is counted of the public links in this time.")
	}
	return notes
}

func tolerance(host vps.TrafficCount) vps.TrafficCount {
	return vps.TrafficCount{InBytes: toleranceBytes + host.InBytes/tolerancePart, OutBytes: toleranceBytes + host.OutBytes/tolerancePart}
}

func minus(a, b vps.TrafficCount) vps.TrafficCount {
	return vps.TrafficCount{InBytes: a.InBytes - b.InBytes, InPackets: a.InPackets - b.InPackets, OutBytes: a.OutBytes - b.OutBytes, OutPackets: a.OutPackets - b.OutPackets}
}

// within cuts an amount down to what there is to explain.
func within(n, rest vps.TrafficCount) vps.TrafficCount {
	cut := func(n, rest int64) int64 { return max(min(n, rest), 0) }
	return vps.TrafficCount{
		InBytes: cut(n.InBytes, rest.InBytes), InPackets: cut(n.InPackets, rest.InPackets),
		OutBytes: cut(n.OutBytes, rest.OutBytes), OutPackets: cut(n.OutPackets, rest.OutPackets),
	}
}
