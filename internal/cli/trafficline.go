package cli

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// trafficLine is what passed in one step of time, of a guest or of several.
type trafficLine struct {
	Guest   string          `json:"guest,omitempty"`
	GuestID string          `json:"guest_id,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	Step    vps.TrafficStep `json:"step"`
	Start   time.Time       `json:"start"`
	End     time.Time       `json:"end"`
	// Class is what the line is only of, where lines are split by class.
	Class vps.TrafficClass `json:"class,omitempty"`
	// The counts are what passed: all classes but dropped.
	vps.TrafficCount
	Total   int64       `json:"total_bytes"`
	Rate    vps.BitRate `json:"average_rate"`
	Running bool        `json:"running"`
	// Estimate is what a step that still runs will have had at its end; nil
	// when it has hardly begun.
	Estimate *trafficEstimate                      `json:"estimate,omitempty"`
	Classes  map[vps.TrafficClass]vps.TrafficCount `json:"classes"`
	Families map[trafficFamily]vps.TrafficCount    `json:"families"`

	// from is when what it holds began to be counted, Start unless the zone was
	// changed.
	from time.Time
}

// trafficFamily names the version of IP; other is traffic of which it is not
// known, as it was taken over from elsewhere, and frames that were dropped and
// are no IP, or have a VLAN tag.
type trafficFamily string

func familyOf(family int) trafficFamily {
	switch family {
	case 4, 6:
		return trafficFamily("ipv" + strconv.Itoa(family))
	}
	return "other"
}

type trafficEstimate struct {
	In    int64 `json:"in_bytes"`
	Out   int64 `json:"out_bytes"`
	Total int64 `json:"total_bytes"`
}

// trafficSplit says what lines are split by, besides time.
type trafficSplit struct{ guest, class bool }

// trafficLines adds up the rows of a history into lines, sorted by time, then
// guest, then class. now is up to when they were counted.
func trafficLines(h api.TrafficHistory, split trafficSplit) []trafficLine {
	type key struct {
		start int64
		guest string
		class vps.TrafficClass
	}
	zone := trafficZone(h)
	lines := map[key]*trafficLine{}
	for _, r := range h.Rows {
		k := key{start: r.Start.Unix()}
		if split.guest {
			k.guest = r.GuestID
		}
		if split.class {
			k.class = r.Class
		}
		l := lines[k]
		if l == nil {
			l = &trafficLine{
				Step: h.Step, Start: r.Start.In(zone), End: h.Step.End(r.Start, zone), Class: k.class, from: r.Began(),
				Classes: map[vps.TrafficClass]vps.TrafficCount{}, Families: map[trafficFamily]vps.TrafficCount{},
			}
			if split.guest {
				l.Guest, l.GuestID = r.Guest, r.GuestID
			}
			lines[k] = l
		}
		l.add(r, split.class)
	}
	out := make([]trafficLine, 0, len(lines))
	for _, l := range lines {
		l.finish(h.At)
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b trafficLine) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.GuestID, b.GuestID), cmp.Compare(classRank(a.Class), classRank(b.Class)))
	})
	return out
}

// trafficZone is the host's zone. Where this machine does not know it, that of
// the rows' times does.
func trafficZone(h api.TrafficHistory) *time.Location {
	if zone, err := time.LoadLocation(h.Zone); err == nil && h.Zone != "" && h.Zone != "Local" {
		return zone
	}
	return h.At.Location()
}

func classRank(c vps.TrafficClass) int { return slices.Index(vps.TrafficClasses(), c) }

// add counts a row. Dropped traffic is in the sum of nothing but itself.
func (l *trafficLine) add(r vps.TrafficRow, byClass bool) {
	if began := r.Began(); began.Before(l.from) {
		l.from = began
	}
	l.Classes[r.Class] = l.Classes[r.Class].Add(r.TrafficCount)
	if r.Class == vps.TrafficDropped && !byClass {
		return
	}
	l.TrafficCount = l.TrafficCount.Add(r.TrafficCount)
	f := familyOf(r.Family)
	l.Families[f] = l.Families[f].Add(r.TrafficCount)
}

// finish works out what follows from the counts.
func (l *trafficLine) finish(now time.Time) {
	l.Total = l.Bytes()
	elapsed := l.End.Sub(l.Start)
	if l.Running = now.Before(l.End); l.Running {
		elapsed = max(now.Sub(l.from), 0)
		l.Estimate = estimateTraffic(l.InBytes, l.OutBytes, elapsed, l.End.Sub(l.from))
	}
	l.Rate = averageRate(l.Total, elapsed)
}

// estimateTraffic tells what a step will have had at its end when it goes on
// as in the part that has passed, as vnStat does. Before a hundredth has
// passed that would be a guess: nil.
func estimateTraffic(in, out int64, elapsed, length time.Duration) *trafficEstimate {
	const least = 100
	if elapsed < length/least || elapsed <= 0 || in == 0 && out == 0 {
		return nil
	}
	share := float64(length) / float64(elapsed)
	grown := func(n int64) int64 { return int64(min(float64(n)*share, math.MaxInt64/2)) }
	e := &trafficEstimate{In: grown(in), Out: grown(out)}
	e.Total = e.In + e.Out
	return e
}

// averageRate is the speed at which so many bytes take so long; 0 for no time.
func averageRate(bytes int64, d time.Duration) vps.BitRate {
	if d <= 0 {
		return 0
	}
	return vps.BitRate(float64(bytes) * 8 / d.Seconds())
}

// sumLines adds up lines of any time into one, without an estimate.
func sumLines(lines []trafficLine) trafficLine {
	sum := trafficLine{Classes: map[vps.TrafficClass]vps.TrafficCount{}}
	for _, l := range lines {
		for class, count := range l.Classes {
			sum.Classes[class] = sum.Classes[class].Add(count)
		}
		sum.TrafficCount = sum.TrafficCount.Add(l.TrafficCount)
	}
	sum.Total = sum.Bytes()
	return sum
}

// trafficAmount writes bytes as vnStat does, with two decimals, in project's
// units: "73.05GiB".
func trafficAmount(n int64) string {
	b := vps.Bytes(n)
	for _, u := range []struct {
		name string
		size vps.Bytes
	}{{"EiB", vps.EiB}, {"PiB", vps.PiB}, {"TiB", vps.TiB}, {"GiB", vps.GiB}, {"MiB", vps.MiB}, {"KiB", vps.KiB}} {
		// What would be rounded up to 1024.00 is told in the next unit.
		if float64(b) >= float64(u.size)*(1-0.5/102400) {
			return fmt.Sprintf("%.2f%s", float64(b)/float64(u.size), u.name)
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// trafficRate writes a speed as vnStat does: "7.06Mbit/s".
func trafficRate(r vps.BitRate) string {
	for _, u := range []struct {
		name string
		size vps.BitRate
	}{{"Gbit/s", vps.Gbit}, {"Mbit/s", vps.Mbit}, {"kbit/s", vps.Kbit}} {
		if float64(r) >= float64(u.size)*(1-0.5/100000) {
			return fmt.Sprintf("%.2f%s", float64(r)/float64(u.size), u.name)
		}
	}
	return strconv.FormatInt(int64(r), 10) + "bit/s"
}

// stepLabel names a step of time for people.
func (l *trafficLine) stepLabel() string {
	switch l.Step {
	case vps.StepMonth:
		return l.Start.Format("2006-01")
	case vps.StepDay:
		return l.Start.Format(time.DateOnly)
	case vps.StepHour, vps.StepFiveMinutes:
	}
	return l.Start.Format("2006-01-02 15:04")
}
