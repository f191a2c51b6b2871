package daemon

import (
	"testing"
	"time"
)

func TestClockWatch(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	at := func(wall, up time.Duration, steady bool) struct {
		wall, up time.Duration
		steady   bool
	} {
		return struct {
			wall, up time.Duration
			steady   bool
		}{wall, up, steady}
	}
	const year = 365 * 24 * time.Hour
	for name, looks := range map[string][]struct {
		wall, up time.Duration
		steady   bool
	}{
		"as time goes":        {at(0, 0, true), at(time.Minute, time.Minute, true), at(12*time.Hour, 12*time.Hour, true)},
		"it is kept in step":  {at(0, 0, true), at(61*time.Second, time.Minute, true)},
		"ahead for a minute":  {at(0, 0, true), at(12*year, time.Minute, false), at(2*time.Minute, 2*time.Minute, false), at(3*time.Hour, 3*time.Hour, false), at(7*time.Hour, 7*time.Hour, true)},
		"behind for a minute": {at(0, 0, true), at(-year, time.Minute, false), at(2*time.Minute, 2*time.Minute, false)},
		"set for good":        {at(0, 0, true), at(year, time.Minute, false), at(year+7*time.Hour, 7*time.Hour, true)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c clockWatch
			for i, l := range looks {
				if got := c.steady(noon.Add(l.wall), l.up); got != l.steady {
					t.Errorf("look %d: steady is %t", i+1, got)
				}
			}
		})
	}
}
