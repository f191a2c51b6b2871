package vps

import (
	"strings"
	"time"
)

// TrafficSteps returns the steps of history, the shortest first.
func TrafficSteps() []TrafficStep {
	return []TrafficStep{StepFiveMinutes, StepHour, StepDay, StepMonth}
}

// Begin returns the begin of the step that holds t, in zone. Hours and five
// minutes are those of the zone's clock; days and months begin at its
// midnight, or, where the clock skips that, at the first moment after it. A
// step that is not known counts as a day.
func (s TrafficStep) Begin(t time.Time, zone *time.Location) time.Time {
	local := t.In(zone)
	switch s {
	case StepFiveMinutes:
		begin, _ := clockStep(local, 5*time.Minute)
		return begin
	case StepHour:
		begin, _ := clockStep(local, time.Hour)
		return begin
	case StepMonth:
		return dayBegin(local.Year(), local.Month(), 1, zone)
	case StepDay:
	}
	return dayBegin(local.Year(), local.Month(), local.Day(), zone)
}

// End returns the end of the step that begins at start, which is the begin of
// the next one.
func (s TrafficStep) End(start time.Time, zone *time.Location) time.Time {
	local := start.In(zone)
	switch s {
	case StepFiveMinutes:
		_, end := clockStep(local, 5*time.Minute)
		return end
	case StepHour:
		_, end := clockStep(local, time.Hour)
		return end
	case StepMonth:
		return dayBegin(local.Year(), local.Month()+1, 1, zone)
	case StepDay:
	}
	return dayBegin(local.Year(), local.Month(), local.Day()+1, zone)
}

// Named returns the begin, in zone, of the step that has the name of the one
// which began at start: days and months that began at midnight in a zone that
// the host had before keep the date that was shown there, and hours stay where
// they are. Of a step that has begun by now the name is not one of the future.
func (s TrafficStep) Named(start time.Time, zone *time.Location, now time.Time) time.Time {
	if s == StepFiveMinutes || s == StepHour || s.Begin(start, zone).Equal(start) {
		return start.In(zone)
	}
	// What begins less than this before midnight in UTC is the next day's, in a
	// zone to the east: Chatham in summer is ahead by 13:45. Hawaii, behind by
	// 10:00, is the last one to the west but for some small islands.
	const east = 13*time.Hour + 50*time.Minute
	name := start.UTC().Add(east)
	begin := s.Begin(dayBegin(name.Year(), name.Month(), name.Day(), zone), zone)
	if begin.After(now) && !start.After(now) {
		return s.Begin(now, zone)
	}
	return begin
}

// Around widens the bounds of a query to the begins of all steps whose names
// begin within them, wherever the host was. Zero stays zero, for no bound.
func (s TrafficStep) Around(since, until time.Time) (time.Time, time.Time) {
	if s == StepFiveMinutes || s == StepHour {
		return since, until
	}
	if !since.IsZero() {
		since = since.Add(-ZonesApart)
	}
	if !until.IsZero() {
		until = until.Add(ZonesApart)
	}
	return since, until
}

// ZonesApart is how long a day begins earlier in one place than in another: its
// midnight passes from UTC+14 to UTC-12.
const ZonesApart = 26 * time.Hour

// clockStep returns the bounds of the whole part of an hour that holds a local
// time. It counts by the offset that holds then, so that the hour that a clock
// shows twice is two hours; where a clock is turned by half an hour, a part ends
// there and another begins.
func clockStep(t time.Time, part time.Duration) (begin, end time.Time) {
	_, offset := t.Zone()
	seconds, step := t.Unix()+int64(offset), int64(part/time.Second)
	rest := ((seconds % step) + step) % step
	begin = time.Unix(seconds-rest-int64(offset), 0).In(t.Location())
	end = begin.Add(part)
	// The bounds of a zone's offset are also where its table ends.
	from, to := t.ZoneBounds()
	if _, o := begin.Zone(); o != offset {
		begin = from
	}
	if _, o := end.Add(-1).Zone(); o != offset {
		end = to
	}
	return begin, end
}

// dayBegin returns the first moment of a day. No zone of today turns its clock
// by less than half an hour.
func dayBegin(year int, month time.Month, day int, zone *time.Location) time.Time {
	const turn = 30 * time.Minute
	want := time.Date(year, month, day, 12, 0, 0, 0, zone).Day() // of the 32nd too
	begin := time.Date(year, month, day, 0, 0, 0, 0, zone)
	for begin.Day() != want { // midnight is skipped
		begin = begin.Add(turn)
	}
	for begin.Add(-turn).Day() == want { // midnight comes twice
		begin = begin.Add(-turn)
	}
	return begin
}

// ParseSince reads a moment of the past: a month, a day, a day with a time, or
// how long ago it is: "2026-10", "2026-10-01", "2026-10-01 15:04", RFC 3339,
// "36h", "7d", "2w". What has no zone of its own is in now's; "" is the zero
// time. It returns an Error with CodeInvalid.
func ParseSince(field, text string, now time.Time) (time.Time, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", "2006-01-02T15:04", time.DateOnly, "2006-01"} {
		t, err := time.ParseInLocation(layout, text, now.Location())
		if err != nil {
			continue
		}
		if layout == time.DateOnly || layout == "2006-01" {
			t = dayBegin(t.Year(), t.Month(), t.Day(), now.Location())
		}
		if t.After(now) {
			return time.Time{}, Invalid(field, "%s is in the future", text)
		}
		return t, nil
	}
	ago, err := ParseDuration(text)
	if err != nil || ago < 0 {
		return time.Time{}, Invalid(field, "%q is no time of the past; write for example 2026-10-01, 36h or 7d", text)
	}
	return now.Add(-ago), nil
}
