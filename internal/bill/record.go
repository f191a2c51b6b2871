package bill

import (
	"context"
	"time"

	"sublet/internal/vps"
)

// Record keeps that the guests of this moment are there today, and on the days
// since each was last seen or made: while no daemon ran, nothing changed. It is
// idempotent, and writes only what is new. Guests of an audit are nobody's.
func (b *Book) Record(ctx context.Context) error {
	at, err := b.moment(ctx)
	if err != nil {
		return err
	}
	_, err = b.record(ctx, at)
	return err
}

// record is Record at a moment. While the clock is not sure it keeps what is new
// as spans; once it is, they become days. It returns the days that wait for that.
func (b *Book) record(ctx context.Context, at moment) ([]vps.GuestDay, error) {
	last, err := b.Days.LastGuestDays(ctx)
	if err != nil {
		return nil, err
	}
	spans, err := b.Days.GuestSpans(ctx)
	if err != nil {
		return nil, err
	}
	seen, end := map[string]vps.GuestDay{}, ""
	for _, d := range last {
		seen[d.GuestID] = d
		end = max(end, d.Day)
	}
	today := at.now.Format(time.DateOnly)
	if !at.sure && today < end {
		return nil, nil // the clock is behind what was sure
	}
	days := expand(spans, end, at.now)
	for _, d := range days {
		if d.Day >= seen[d.GuestID].Day {
			seen[d.GuestID] = d
		}
	}
	more := unseen(at, seen)
	days = append(days, expand(more, "", at.now)...)
	switch {
	case !at.sure && len(more) > 0:
		return days, b.Days.KeepGuestSpans(ctx, more)
	case !at.sure || len(days) == 0 && len(spans) == 0 && end <= today:
		return days, nil
	}
	return nil, b.Days.KeepGuestDays(ctx, today, days)
}

// unseen are the days until today on which guests are there, beyond those on
// which each was seen last.
func unseen(at moment, seen map[string]vps.GuestDay) (more []vps.GuestSpan) {
	today := at.now.Format(time.DateOnly)
	for i := range at.host.Guests {
		g := &at.host.Guests[i]
		first := g.Created.In(at.zone).Format(time.DateOnly)
		if g.Spec.Probe != "" || first > today {
			continue // not of anybody, or the clock is behind
		}
		d := vps.GuestDay{Day: today, GuestID: g.ID, Guest: g.Spec.Name, Tenant: g.Spec.Tenant, Memory: g.Spec.Memory, Weight: g.Spec.BillingWeight}
		was, found := seen[g.ID]
		if found { // by a clock that was behind it may have been before it was made
			first = max(first, nextDay(was.Day))
		}
		if g.Created.IsZero() {
			first = today
		}
		if was != d {
			more = append(more, vps.GuestSpan{First: min(first, today), GuestDay: d})
		}
	}
	return more
}

// expand returns the days of spans from one on and until today, at most two
// years of each. Days before the last one that is on record for sure come from a
// clock that was behind, and days after today from one that was ahead.
func expand(spans []vps.GuestSpan, from string, now time.Time) (days []vps.GuestDay) {
	const most = 2 * 366
	today := now.Format(time.DateOnly)
	from = max(from, now.AddDate(0, 0, -most).Format(time.DateOnly))
	for _, s := range spans {
		d := s.GuestDay
		for d.Day = max(s.First, from); d.Day <= min(s.Day, today); d.Day = nextDay(d.Day) {
			days = append(days, d)
		}
	}
	return days
}

// within lays days of a month over those that are kept of it, and
// later ones over earlier ones.
func within(m vps.Month, kept, more []vps.GuestDay) []vps.GuestDay {
	type key struct{ day, guest string }
	there := map[key]int{}
	for i, d := range kept {
		there[key{d.Day, d.GuestID}] = i
	}
	for _, d := range more {
		i, found := there[key{d.Day, d.GuestID}]
		switch {
		case found:
			kept[i] = d
		case d.Day >= m.Day(1) && d.Day <= m.Day(m.Days()):
			there[key{d.Day, d.GuestID}] = len(kept)
			kept = append(kept, d)
		}
	}
	return kept
}
