package sqlite

import (
	"testing"
	"time"

	"sublet/internal/vps"
)

// TestSize bounds what history takes on the disk: of guests that have traffic of
// all kinds all the time, for longer than anything but days and months is kept.
func TestSize(t *testing.T) {
	t.Parallel()
	db := openBench(t)
	if _, err := db.write.ExecContext(t.Context(), "PRAGMA synchronous = OFF"); err != nil {
		t.Fatal(err)
	}
	const (
		guests = pageSize
		most   = 1 << 20 // bytes for each
		days   = 100
	)
	used := func() (bytes int64) {
		t.Helper()
		const query = "SELECT (p.page_count - f.freelist_count) * s.page_size FROM pragma_page_count() AS p, pragma_freelist_count() AS f, pragma_page_size() AS s"
		if err := db.write.QueryRowContext(t.Context(), query).Scan(&bytes); err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	empty := used()
	begin := time.Date(2026, 7, 1, 0, 0, 1, 0, time.UTC)
	s := busy(guests, begin)
	end := begin.AddDate(0, 0, days)
	for s.Counters.At.Before(end) {
		if _, err := db.AddTraffic(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		step := time.Hour
		if end.Sub(s.Counters.At) <= keepFive+time.Hour {
			step = 5 * time.Minute
		}
		later(&s, step)
	}
	each := (used() - empty) / guests
	t.Logf("%d KiB for each guest", each>>10)
	if each > most {
		t.Errorf("each guest's history takes %d bytes", each)
	}
	for _, tt := range []struct {
		step vps.TrafficStep
		keep time.Duration
	}{{vps.StepFiveMinutes, keepFive}, {vps.StepHour, keepHours}} {
		rows, err := db.Traffic(t.Context(), vps.TrafficQuery{Step: tt.step, Together: true})
		if err != nil || len(rows) == 0 {
			t.Fatal(len(rows), err)
		}
		if age := s.Counters.At.Sub(rows[0].Start); age < tt.keep || age > tt.keep+2*time.Hour {
			t.Errorf("the oldest step of %s is %s old, not %s", tt.step, age, tt.keep)
		}
	}
	rows, err := db.Traffic(t.Context(), vps.TrafficQuery{Step: vps.StepDay, Together: true})
	if err != nil || len(rows) == 0 || rows[0].Start.After(begin) {
		t.Errorf("days begin with %v, %v", rows, err)
	}
}
