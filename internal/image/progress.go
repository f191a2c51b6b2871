package image

import (
	"strconv"
	"strings"

	"sublet/internal/vps"
)

// The phases of a build, and where each part of it ends as a fraction of the
// whole, by measured time. mmdebstrap goes through the first three twice.
const (
	phaseDownload  = "download"
	phaseUnpack    = "unpack"
	phaseConfigure = "configure"
	phaseWrite     = "write"
	phaseChecksum  = "checksum"

	endUnpack    = 0.7
	endBootstrap = 0.85
	endWrite     = 0.95
)

// meter turns what happens in a build into reports that never go back.
type meter struct {
	report func(vps.Progress)
	last   vps.Progress
	// packages is how many apt has announced, or the usual number before it
	// has; done counts packages fetched, unpacked and configured, each.
	packages, announced, done int
}

// usualPackages is what the recipe comes to on Debian 12.
const usualPackages = 170

func newMeter(report func(vps.Progress)) *meter {
	if report == nil {
		report = func(vps.Progress) {}
	}
	return &meter{report: report, packages: usualPackages}
}

// at reports a phase and a fraction of the whole; a fraction that was passed
// already counts as the last one. Steps too small to see are left out.
func (m *meter) at(phase string, fraction float64) {
	fraction = min(max(fraction, m.last.Fraction), 1)
	if phase == m.last.Phase && fraction < 1 && fraction-m.last.Fraction < 0.002 {
		return
	}
	m.last = vps.Progress{Phase: phase, Fraction: fraction}
	m.report(m.last)
}

// line reads one line of mmdebstrap --verbose, which passes on what apt and
// dpkg say.
func (m *meter) line(line string) {
	var phase string
	switch {
	case strings.Contains(line, " newly installed, "):
		// "0 upgraded, 89 newly installed, 0 to remove and 0 not upgraded."
		fields := strings.Fields(line)
		for i, f := range fields {
			if n, err := strconv.Atoi(f); err == nil && i+1 < len(fields) && fields[i+1] == "newly" {
				m.announced += n
				m.packages = max(m.packages, m.announced)
			}
		}
		return
	case strings.HasPrefix(line, "I: running apt-get update"):
		phase = phaseDownload
	case strings.HasPrefix(line, "Get:"):
		phase = phaseDownload
		m.done++
	case strings.HasPrefix(line, "Unpacking "):
		phase = phaseUnpack
		m.done++
	case strings.HasPrefix(line, "Setting up "):
		phase = phaseConfigure
		m.done++
	default:
		return
	}
	m.at(phase, endBootstrap*min(1, float64(m.done)/float64(3*m.packages)))
}
