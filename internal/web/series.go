package web

import (
	"slices"
	"sort"
	"time"

	"sublet/internal/vps"
)

// amount is traffic in both directions, in bytes of frames.
type amount struct{ In, Out int64 }

// Total is what went both ways.
func (a amount) Total() int64 { return vps.SumBytes(a.In, a.Out) }

func (a amount) plus(b amount) amount {
	return amount{vps.SumBytes(a.In, b.In), vps.SumBytes(a.Out, b.Out)}
}

// The periods that pages show.
const (
	lastDay   = "day"
	lastMonth = "month"
	lastYear  = "year"
)

// How far back they look.
const (
	hoursShown  = 24
	daysShown   = 30
	monthsShown = 12
	// inHour are the five minutes of an hour.
	inHour = 12
)

// period is a part of the past, divided into steps of the ledger.
type period struct {
	Name string
	step vps.TrafficStep
	// starts are the begins of its steps, rising; the last one still runs. end is
	// when that one ends.
	starts []time.Time
	end    time.Time
	now    time.Time
	placed placed
}

// placed is where the last row was: those of many guests begin alike, and follow
// each other.
type placed struct {
	start time.Time
	at    int
	ok    bool
}

// periodsTo returns the last day, month and year. The day is in steps of five
// minutes when fine, else in hours.
func periodsTo(now time.Time, zone *time.Location, fine bool) []period {
	day := newPeriod(lastDay, vps.StepHour, hoursShown, now, zone)
	if fine {
		day = newPeriod(lastDay, vps.StepFiveMinutes, hoursShown*inHour, now, zone)
	}
	return []period{day, newPeriod(lastMonth, vps.StepDay, daysShown, now, zone), newPeriod(lastYear, vps.StepMonth, monthsShown, now, zone)}
}

func newPeriod(name string, step vps.TrafficStep, count int, now time.Time, zone *time.Location) period {
	start := step.Begin(now, zone)
	p := period{Name: name, step: step, end: step.End(start, zone), now: now}
	for range count {
		p.starts = append(p.starts, start)
		start = step.Begin(start.Add(-time.Second), zone)
	}
	slices.Reverse(p.starts)
	return p
}

// query asks for the rows of the period, and for some that may be named as they
// are.
func (p *period) query() vps.TrafficQuery {
	since, _ := p.step.Around(p.starts[0], time.Time{})
	return vps.TrafficQuery{Step: p.step, Since: since}
}

// place tells in which step of the period a row is, or that it is in none. Rows
// of a time when the host had another zone are where their names are.
func (p *period) place(start time.Time) (int, bool) {
	if !p.placed.start.Equal(start) {
		name := p.step.Named(start, p.now.Location(), p.now)
		p.placed = placed{start: start}
		if p.placed.ok = !name.Before(p.starts[0]) && name.Before(p.end); p.placed.ok {
			p.placed.at = sort.Search(len(p.starts), func(i int) bool { return p.starts[i].After(name) }) - 1
		}
	}
	return p.placed.at, p.placed.ok
}

// series is what went in each step of a period.
type series []amount

// Sum returns what went in all of it.
func (s series) Sum() amount {
	var all amount
	for _, a := range s {
		all = all.plus(a)
	}
	return all
}

// peak returns the most that went in one step.
func (s series) peak() int64 {
	var most int64
	for _, a := range s {
		most = max(most, a.Total())
	}
	return most
}

// coarser joins each n steps to one.
func coarser(s series, n int) series {
	var out series
	for at := 0; at < len(s); at += n {
		out = append(out, s[at:min(at+n, len(s))].Sum())
	}
	return out
}

// byGuest sorts rows that count into series, by guest. Those are rows of billed
// classes, and the host's own counter.
func (p *period) byGuest(rows []vps.TrafficRow) map[string]series {
	all := map[string]series{}
	for i := range rows {
		r := &rows[i]
		at, ok := p.place(r.Start)
		if !ok || !r.Class.Billed() && r.Class != vps.TrafficUplink {
			continue
		}
		s := all[r.GuestID]
		if s == nil {
			s = make(series, len(p.starts))
			all[r.GuestID] = s
		}
		s[at] = s[at].plus(amount{r.InBytes, r.OutBytes})
	}
	return all
}

// whole returns a series, of zeros for nil: nothing went.
func (p *period) whole(s series) series {
	if s == nil {
		return make(series, len(p.starts))
	}
	return s
}

// together adds up series of one period.
func together(length int, all map[string]series) series {
	sum := make(series, length)
	for _, s := range all {
		for i, a := range s {
			sum[i] = sum[i].plus(a)
		}
	}
	return sum
}
