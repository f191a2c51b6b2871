package meter

import (
	"fmt"
	"math"
	"sync"
	"time"

	"sublet/internal/vps"
)

// Fill keeps how full guests' filesystems were when they were last read. The
// zero value is ready. It is safe for concurrent use.
type Fill struct {
	mu     sync.Mutex
	guests map[string][]vps.DiskSample
}

// Set takes the place of all that was known, by guest's name.
func (f *Fill) Set(usage map[string][]vps.DiskUsage) {
	guests := map[string][]vps.DiskSample{}
	for name, disks := range usage {
		for i := range disks {
			guests[name] = append(guests[name], disks[i].Samples("")...)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guests = guests
}

// Of returns what is known of a guest's filesystems, not to be changed; nil for
// nothing.
func (f *Fill) Of(guest string) []vps.DiskSample {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guests[guest]
}

// What a forecast needs, and what it looks at.
const (
	// ForecastWindow is how far back samples count.
	ForecastWindow = 14 * 24 * time.Hour
	// forecastSpan and forecastSamples are the least that a forecast needs.
	forecastSpan    = 24 * time.Hour
	forecastSamples = 6
	// forecastHorizon is how far ahead a date means anything.
	forecastHorizon = 5 * 365 * 24 * time.Hour
	// forecastFall is what part of the whole has to be freed between two
	// samples to count as a clean-up: what was before says nothing about how
	// it will go on.
	forecastFall = 0.1
)

// Forecast tells when a filesystem is full by the samples of it, oldest first.
// Only the fields that do not name the filesystem are set.
func Forecast(samples []vps.DiskSample) vps.DiskForecast {
	if len(samples) == 0 {
		return vps.DiskForecast{Note: "not enough history: it was not measured yet"}
	}
	samples = sinceCleanUp(samples)
	first, last := samples[0], samples[len(samples)-1]
	f := vps.DiskForecast{
		Used: last.Used, Available: last.Available, UsedPercent: last.UsedPercent(), InodesPercent: last.InodesPercent(),
		Since: first.At, Samples: len(samples),
	}
	span := last.At.Sub(first.At)
	if span < forecastSpan || len(samples) < forecastSamples {
		f.Note = fmt.Sprintf("not enough history: %d samples of %s, and it takes %d of %s", len(samples), span.Round(time.Minute), forecastSamples, forecastSpan)
		return f
	}
	bytes := slope(samples, func(s vps.DiskSample) float64 { return float64(s.Used) })
	inodes := slope(samples, func(s vps.DiskSample) float64 { return float64(s.Inodes) - float64(s.FreeInodes) })
	f.Growth, f.InodeGrowth = int64(math.Round(bytes)), int64(math.Round(inodes))
	days := math.Inf(1)
	if bytes > 0 {
		days, f.What = float64(last.Available)/bytes, "blocks"
	}
	if inodes > 0 && last.Inodes > 0 && float64(last.FreeInodes)/inodes < days {
		days, f.What = float64(last.FreeInodes)/inodes, "inodes"
	}
	if limit := forecastHorizon.Hours() / 24; days > limit {
		f.What, f.Note = "", "it does not fill up within 5 years"
		if bytes <= 0 && inodes <= 0 {
			f.Note = "it does not fill up"
		}
		return f
	}
	f.Full = last.At.Add(time.Duration(days * 24 * float64(time.Hour))).Round(time.Minute)
	return f
}

// sinceCleanUp returns the samples since much was freed at once.
func sinceCleanUp(samples []vps.DiskSample) []vps.DiskSample {
	for i := len(samples) - 1; i > 0; i-- {
		before, after := samples[i-1], samples[i]
		if whole := float64(after.Used + after.Available); float64(before.Used-after.Used) > forecastFall*whole {
			return samples[i:]
		}
	}
	return samples
}

// slope is that of the line of least squares, per day.
func slope(samples []vps.DiskSample, value func(vps.DiskSample) float64) float64 {
	var meanX, meanY float64
	days := func(s vps.DiskSample) float64 { return s.At.Sub(samples[0].At).Hours() / 24 }
	for _, s := range samples {
		meanX += days(s) / float64(len(samples))
		meanY += value(s) / float64(len(samples))
	}
	var xy, xx float64
	for _, s := range samples {
		x := days(s) - meanX
		xy += x * (value(s) - meanY)
		xx += x * x
	}
	if xx == 0 {
		return 0
	}
	return xy / xx
}

// calm is how many points below a threshold a filesystem has to fall before
// reaching it again is news.
const calm = 5

// Level returns the threshold that a filesystem counts as having reached, 0
// for none, when it counted as having reached before until now and is percent
// full. The thresholds rise. It is news when the result is above before.
func Level(thresholds []int, percent float64, before int) int {
	level := 0
	for _, t := range thresholds {
		if percent >= float64(t) || t <= before && percent >= float64(t-calm) {
			level = t
		}
	}
	return level
}
