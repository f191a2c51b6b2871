package meter_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sublet/internal/meter"
	"sublet/internal/vps"
)

// growing makes hourly samples of a filesystem of 100 GiB.
func growing(hours int, used func(hour int) float64, inodes func(hour int) float64) []vps.DiskSample {
	var all []vps.DiskSample
	for h := range hours {
		u := vps.Bytes(used(h) * float64(vps.GiB))
		s := vps.DiskSample{At: time.Unix(0, 0).UTC().Add(time.Duration(h) * time.Hour), Used: u, Available: 100*vps.GiB - u, Inodes: 1000}
		s.FreeInodes = 1000 - uint64(inodes(h))
		all = append(all, s)
	}
	return all
}

func TestForecast(t *testing.T) {
	t.Parallel()
	none := func(int) float64 { return 10 }
	noise := rand.New(rand.NewPCG(1, 1))
	for name, tt := range map[string]struct {
		samples []vps.DiskSample
		days    float64 // from the last sample; 0 for no date
		what    string
		note    string
	}{
		"nothing":          {nil, 0, "", "not enough history"},
		"three hours":      {growing(4, func(h int) float64 { return float64(h) }, none), 0, "", "4 samples of 3h0m0s"},
		"a GiB each hour":  {growing(49, func(h int) float64 { return 10 + float64(h) }, none), 42. / 24, "blocks", ""},
		"with noise":       {growing(14*24, func(h int) float64 { return 10 + float64(h)/24 + noise.Float64() }, none), 76, "blocks", ""},
		"inodes first":     {growing(49, func(h int) float64 { return 10 + float64(h)/24 }, func(h int) float64 { return float64(h) * 10 }), 520. / 240, "inodes", ""},
		"standing still":   {growing(49, none, none), 0, "", "it does not fill up"},
		"shrinking":        {growing(49, func(h int) float64 { return 60 - float64(h) }, none), 0, "", "it does not fill up"},
		"hardly":           {growing(49, func(h int) float64 { return 10 + float64(h)/1000 }, none), 0, "", "within 5 years"},
		"after a clean-up": {growing(100, func(h int) float64 { return 10 + float64(h%60) }, none), 51. / 24, "blocks", ""},
	} {
		f := meter.Forecast(tt.samples)
		if !strings.Contains(f.Note, tt.note) || f.What != tt.what || f.Full.IsZero() != (tt.days == 0) || (f.Note == "") == (tt.days == 0) {
			t.Errorf("%s: %+v", name, f)
			continue
		}
		if tt.days > 0 {
			last := tt.samples[len(tt.samples)-1].At
			if got := f.Full.Sub(last).Hours() / 24; math.Abs(got-tt.days) > 0.03*tt.days {
				t.Errorf("%s: full in %.2f days, want %.2f", name, got, tt.days)
			}
		}
	}
}

func TestLevel(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		percent      float64
		before, want int
	}{
		{79.9, 0, 0},
		{80, 0, 80},
		{94.9, 80, 80},
		{95, 80, 95},
		{99, 95, 95},
		{96, 0, 95},
		{91, 95, 95},
		{89, 95, 80},
		{76, 80, 80},
		{74.9, 80, 0},
		{50, 95, 0},
	} {
		if got := meter.Level([]int{80, 95}, tt.percent, tt.before); got != tt.want {
			t.Errorf("%.1f %% after %d: %d, want %d", tt.percent, tt.before, got, tt.want)
		}
	}
	if got := meter.Level(nil, 100, 95); got != 0 {
		t.Errorf("without thresholds: %d", got)
	}
	// However it wavers by less than what counts as calm, there is one notice of each threshold.
	rapid.Check(t, func(t *rapid.T) {
		level, news := 0, map[int]int{}
		middle := rapid.Float64Range(60, 100).Draw(t, "middle")
		for range 50 {
			next := meter.Level([]int{80, 95}, middle+rapid.Float64Range(-2.4, 2.4).Draw(t, "noise"), level)
			if next > level {
				news[next]++
			}
			level = next
		}
		if news[80] > 1 || news[95] > 1 {
			t.Fatalf("notices %v around %.1f %%", news, middle)
		}
	})
}
