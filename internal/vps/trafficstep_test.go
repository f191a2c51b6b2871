package vps

import (
	"math"
	"testing"
	"testing/quick"
	"time"
	_ "time/tzdata"
)

// The zones of the tests: whole and half hours, clocks that skip midnight
// (Beirut) or show it twice (Havana), and a turn of half an hour (Lord Howe).
func testZones(t *testing.T) []*time.Location {
	t.Helper()
	var zones []*time.Location
	for _, name := range []string{"UTC", "Asia/Shanghai", "Asia/Kolkata", "Europe/Berlin", "Asia/Beirut", "America/Havana", "Australia/Lord_Howe", "Pacific/Chatham"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		zones = append(zones, zone)
	}
	return zones
}

// Every moment is in exactly one step, and steps follow each other without a
// gap.
func TestStepsCoverTime(t *testing.T) {
	t.Parallel()
	zones := testZones(t)
	holds := func(seconds uint32, pick uint8) bool {
		zone := zones[int(pick)%len(zones)]
		at := time.Unix(1_500_000_000+int64(seconds%800_000_000), 0)
		for _, step := range TrafficSteps() {
			begin := step.Begin(at, zone)
			end := step.End(begin, zone)
			if begin.After(at) || !end.After(at) {
				t.Logf("%s %s: %s is not in %s to %s", zone, step, at.In(zone), begin, end)
				return false
			}
			if next := step.Begin(end, zone); !next.Equal(end) {
				t.Logf("%s %s: the step after %s begins at %s, not %s", zone, step, begin, next, end)
				return false
			}
			if last := step.Begin(end.Add(-time.Second), zone); !last.Equal(begin) {
				t.Logf("%s %s: the last second before %s is in the step of %s, not %s", zone, step, end, last, begin)
				return false
			}
		}
		return true
	}
	if err := quick.Check(holds, &quick.Config{MaxCount: 20000}); err != nil {
		t.Error(err)
	}
}

func TestStepsWhereClocksTurn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		zone       string
		step       TrafficStep
		at         string
		begin, end string
	}{
		{"Asia/Beirut", StepDay, "2022-03-27T09:00:00Z", "2022-03-26T22:00:00Z", "2022-03-27T21:00:00Z"},     // 00:00 is 01:00
		{"America/Havana", StepDay, "2023-11-05T12:00:00Z", "2023-11-05T04:00:00Z", "2023-11-06T05:00:00Z"},  // 00:00 comes twice
		{"Europe/Berlin", StepHour, "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"},  // the second 02:30
		{"Asia/Kolkata", StepHour, "2026-10-25T01:35:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"},   // +05:30
		{"Asia/Shanghai", StepMonth, "2026-09-30T16:00:00Z", "2026-09-30T16:00:00Z", "2026-10-31T16:00:00Z"}, // the 1st there
		{"Asia/Shanghai", StepFiveMinutes, "2026-09-30T16:04:59Z", "2026-09-30T16:00:00Z", "2026-09-30T16:05:00Z"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		begin := c.step.Begin(at, zone)
		end := c.step.End(begin, zone)
		if b, e := begin.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339); b != c.begin || e != c.end {
			t.Errorf("%s %s of %s is %s to %s, want %s to %s", c.zone, c.step, c.at, b, e, c.begin, c.end)
		}
	}
}

// A day or month that began in one zone keeps its name in every other.
func TestStepsKeepTheirNames(t *testing.T) {
	t.Parallel()
	zones := testZones(t)
	for _, name := range []string{"America/New_York", "Asia/Tokyo", "Europe/London", "Pacific/Auckland", "Pacific/Honolulu", "Pacific/Tongatapu"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		zones = append(zones, zone)
	}
	later := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, was := range zones {
		for _, is := range zones {
			for at := time.Date(2025, 12, 1, 12, 0, 0, 0, was); at.Year() < 2027; at = at.AddDate(0, 0, 1) {
				for step, layout := range map[TrafficStep]string{StepDay: time.DateOnly, StepMonth: "2006-01"} {
					start := step.Begin(at, was)
					got := step.Named(start, is, later)
					if got.Format(layout) != start.Format(layout) || !step.Begin(got, is).Equal(got) {
						t.Fatalf("the %s of %s is %s in %s", step, start, got, is)
					}
					if since, until := step.Around(got, got); start.Before(since) || start.After(until) {
						t.Fatalf("the %s of %s is not found by its name in %s", step, start, is)
					}
				}
				if hour := StepHour.Begin(at, was); !StepHour.Named(hour, is, later).Equal(hour) {
					t.Fatalf("the hour of %s has moved", hour)
				}
			}
		}
	}
}

// What runs is today's, also where today is the day before.
func TestStepsAreNotOfTomorrow(t *testing.T) {
	t.Parallel()
	zones := testZones(t)
	utc, shanghai := zones[0], zones[1]
	now := time.Date(2026, 10, 19, 20, 0, 0, 0, utc)
	running := StepDay.Begin(now, shanghai) // the 20th
	if got := StepDay.Named(running, utc, now); got.Format(time.DateOnly) != "2026-10-19" {
		t.Errorf("the day that runs is %s", got)
	}
	if got := StepDay.Named(running, utc, now.Add(4*time.Hour)); got.Format(time.DateOnly) != "2026-10-20" {
		t.Errorf("after midnight it is %s", got)
	}
	// What a clock counted that was ahead stays there.
	ahead := StepDay.Begin(now.AddDate(1, 0, 0), shanghai)
	if got := StepDay.Named(ahead, utc, now); got.Format(time.DateOnly) != "2027-10-20" {
		t.Errorf("the day of next year is %s", got)
	}
}

func TestParseSince(t *testing.T) {
	t.Parallel()
	zone, err := time.LoadLocation("Asia/Shanghai")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 10, 20, 12, 0, 0, 0, zone)
	for text, want := range map[string]string{
		"2026-10":              "2026-10-01T00:00:00+08:00",
		"2026-10-01":           "2026-10-01T00:00:00+08:00",
		"2026-10-01 15:04":     "2026-10-01T15:04:00+08:00",
		"2026-10-01T15:04:05Z": "2026-10-01T23:04:05+08:00",
		"36h":                  "2026-10-19T00:00:00+08:00",
		"90m":                  "2026-10-20T10:30:00+08:00",
		"7d":                   "2026-10-13T12:00:00+08:00",
		" 2w ":                 "2026-10-06T12:00:00+08:00",
	} {
		got, err := ParseSince("since", text, now)
		if err != nil || got.In(zone).Format(time.RFC3339) != want {
			t.Errorf("%q is %s, %v, want %s", text, got, err, want)
		}
	}
	if got, err := ParseSince("since", "", now); err != nil || !got.IsZero() {
		t.Errorf("nothing is %s, %v", got, err)
	}
	for _, text := range []string{"tomorrow", "2026-10-21", "2026-13-01", "2026-02-30", "-7d", "-1h", "7", "d", "1.5d", "65000d", "9999999999d", "10-01", "2026"} {
		if got, err := ParseSince("since", text, now); ErrorCode(err) != CodeInvalid {
			t.Errorf("%q is %s, %v", text, got, err)
		}
	}
}

func FuzzParseSince(f *testing.F) {
	for _, text := range []string{"2026-10-01", "36h", "7d", "2w", "2026-10-01T15:04:05+08:00"} {
		f.Add(text)
	}
	now := time.Date(2026, 10, 20, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseSince("since", text, now)
		if err == nil && got.After(now) {
			t.Errorf("%q is %s, in the future", text, got)
		}
	})
}

func TestSumBytes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ a, b, want int64 }{
		{1, 2, 3},
		{math.MaxInt64, 1, math.MaxInt64},
		{1 << 62, 1 << 62, math.MaxInt64},
		{math.MaxInt64, math.MinInt64, -1},
		{math.MinInt64, -1, math.MinInt64},
		{-5, 3, -2},
		{math.MaxInt64, -1, math.MaxInt64 - 1},
	} {
		if got := SumBytes(c.a, c.b); got != c.want {
			t.Errorf("%d and %d are %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
