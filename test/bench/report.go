// Package bench measures the figures that the project promises, on real
// daemons with real guests. `make bench` runs it; docs/performance.md tells
// what it said, and where.
//
// Each benchmark prints one line per figure, with median, least and most, and
// reports the median as a metric. None fails for being slow: another machine
// gives other figures.
package bench

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// figure is one measured quantity with all its samples.
type figure struct {
	name string
	// unit is that of the samples, and metric the name under which the median
	// is reported ("ssh-ms"); empty reports none.
	unit, metric string
	samples      []float64
	// atMost and atLeast are the goal; 0 means none.
	atMost, atLeast float64
}

func (f *figure) add(v float64) { f.samples = append(f.samples, v) }

// median of an even number of samples is the mean of the two in the middle.
func (f *figure) median() float64 {
	s := slices.Sorted(slices.Values(f.samples))
	n := len(s)
	if n == 0 {
		return 0
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}

func (f *figure) verdict() string {
	m := f.median()
	switch {
	case f.atMost > 0 && m <= f.atMost:
		return fmt.Sprintf("goal ≤ %g: met", f.atMost)
	case f.atMost > 0:
		return fmt.Sprintf("goal ≤ %g: MISSED", f.atMost)
	case f.atLeast > 0 && m >= f.atLeast:
		return fmt.Sprintf("goal ≥ %g: met", f.atLeast)
	case f.atLeast > 0:
		return fmt.Sprintf("goal ≥ %g: MISSED", f.atLeast)
	}
	return "no goal"
}

// ratioInterval tells how far the noise of the samples alone may move the
// ratio of the medians of a and b, in percent: 95 of 100 ratios lie between
// low and high when the samples are drawn anew from themselves (a bootstrap).
func ratioInterval(a, b *figure) (low, high float64) {
	const draws = 4000
	random := rand.New(rand.NewPCG(1, 2))
	again := func(f *figure) float64 {
		g := figure{samples: make([]float64, len(f.samples))}
		for i := range g.samples {
			g.samples[i] = f.samples[random.IntN(len(f.samples))]
		}
		return g.median()
	}
	ratios := make([]float64, draws)
	for i := range ratios {
		ratios[i] = 100 * again(a) / again(b)
	}
	slices.Sort(ratios)
	return ratios[draws*25/1000], ratios[draws*975/1000]
}

// report prints the figures, 10 at most (package testing drops more lines), and hands their medians to the benchmark.
func report(b *testing.B, figures ...*figure) {
	b.Helper()
	for _, f := range figures {
		if len(f.samples) == 0 {
			b.Errorf("nothing was measured of %q", f.name)
			continue
		}
		b.Logf("%-46s median %9.2f %-7s (%.2f–%.2f, n=%d)  %s", f.name, f.median(), f.unit,
			slices.Min(f.samples), slices.Max(f.samples), len(f.samples), f.verdict())
		if f.metric != "" {
			b.ReportMetric(f.median(), f.metric)
		}
	}
	b.ReportMetric(0, "ns/op") // 0 drops it: an iteration is many things
}
