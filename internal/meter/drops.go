// Package meter counts what guests use and what is kept from them, for people
// and for Prometheus. So far that is what the wall dropped.
package meter

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

// quiet is how long a guest has to send nothing that is dropped before a
// new drop is news at once; while it goes on there is a notice as often.
const quiet = 10 * time.Minute

// Dropped is how much of a guest's traffic was dropped for one reason.
type Dropped struct {
	vps.Drop
	// Last is when the number was last seen to grow, to within the time between
	// two observations; zero when it has not since the daemon started.
	Last time.Time
}

// Notice is something to tell people: what a guest was denied since the last
// notice about it.
type Notice struct {
	Guest   string
	Message string
}

// Drops follows the firewall's counters. The zero value is ready. It is safe
// for concurrent use.
type Drops struct {
	mu     sync.Mutex
	guests map[string]*dropState
}

type dropState struct {
	reasons map[vps.DropReason]*reasonState
	// told is when the last notice was made, grown what came since then.
	told, grew time.Time
	grown      map[vps.DropReason]uint64
}

type reasonState struct {
	// total goes on when the kernel's counter begins anew; seen is the
	// counter's last value.
	total, seen vps.Drop
	last        time.Time
}

// Observe takes the counters of all guests, by name, as they are now, and
// returns what is worth telling. Guests that are not in it are forgotten.
func (d *Drops) Observe(now time.Time, counters map[string][]vps.Drop) []Notice {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := d.guests == nil
	if first {
		d.guests = map[string]*dropState{}
	}
	maps.DeleteFunc(d.guests, func(name string, _ *dropState) bool { _, there := counters[name]; return !there })
	var notices []Notice
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		g := d.guests[name]
		if g == nil {
			g = &dropState{reasons: map[vps.DropReason]*reasonState{}, grown: map[vps.DropReason]uint64{}}
			d.guests[name] = g
		}
		g.observe(now, counters[name], first)
		if message := g.notice(now); message != "" {
			notices = append(notices, Notice{name, message})
		}
	}
	return notices
}

// observe adds what the counters grew by. The first observation of all only
// says where they stand.
func (g *dropState) observe(now time.Time, counters []vps.Drop, first bool) {
	for _, c := range counters {
		r := g.reasons[c.Reason]
		if r == nil {
			r = &reasonState{total: vps.Drop{Reason: c.Reason}}
			g.reasons[c.Reason] = r
		}
		grown := c
		if c.Packets >= r.seen.Packets && c.Bytes >= r.seen.Bytes {
			grown.Packets, grown.Bytes = c.Packets-r.seen.Packets, c.Bytes-r.seen.Bytes
		} // else it began anew, and all of it is new
		r.seen = c
		r.total.Packets += grown.Packets
		r.total.Bytes += grown.Bytes
		if grown.Packets > 0 && !first {
			r.last, g.grew = now, now
			g.grown[c.Reason] += grown.Packets
		}
	}
}

// notice returns what to tell of a guest now, or "".
func (g *dropState) notice(now time.Time) string {
	if len(g.grown) == 0 || (!g.told.IsZero() && now.Sub(g.told) < quiet) {
		return ""
	}
	reasons := slices.SortedFunc(maps.Keys(g.grown), func(a, b vps.DropReason) int {
		return cmp.Or(cmp.Compare(g.grown[b], g.grown[a]), cmp.Compare(a, b))
	})
	var parts []string
	var sum uint64
	for _, r := range reasons {
		sum += g.grown[r]
		parts = append(parts, fmt.Sprintf("%s %d", r, g.grown[r]))
	}
	clear(g.grown)
	g.told = now
	packets := "packets"
	if sum == 1 {
		packets = "packet"
	}
	return fmt.Sprintf("%d %s dropped: %s", sum, packets, strings.Join(parts, ", "))
}

// Of returns what was dropped of one guest's traffic, in the order of
// vps.DropReasons; nil for none.
func (d *Drops) Of(guest string) []Dropped {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.guests[guest]
	if g == nil {
		return nil
	}
	var all []Dropped
	for _, reason := range vps.DropReasons() {
		if r := g.reasons[reason]; r != nil && r.total.Packets > 0 {
			all = append(all, Dropped{r.total, r.last})
		}
	}
	return all
}

// Guests returns the names of all guests observed last, sorted.
func (d *Drops) Guests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.guests))
}
