package kbuild

import (
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

// phase is a part of a build. The parts of the whole are by measured time on
// two processors, with a fast mirror.
type phase struct {
	name       string
	begin, end float64
}

//nolint:gochecknoglobals // a table
var (
	phaseFetch     = phase{"fetch the source", 0, 0.03}
	phaseUnpack    = phase{"unpack the source", 0.03, 0.06}
	phaseConfigure = phase{"configure", 0.06, 0.08}
	phaseCompile   = phase{"compile", 0.08, 0.96}
	phaseLink      = phase{"link", 0.96, 0.97}
)

// BuiltFraction is how far a whole is when Build is done: what remains is for
// the caller's own test of the kernel.
const BuiltFraction = 0.97

const (
	// usualSteps is how many programs are run for our configuration of
	// Linux 7.2; 6.12 has 2 % fewer.
	usualSteps = 2460
	// firstSteps are too few to tell from them how fast it goes.
	firstSteps = 20
	// afterwards is how long linking takes, and trying the kernel.
	afterwards = 30 * time.Second
)

// meter turns what happens in a build into reports that never go back. It is
// safe for concurrent use.
type meter struct {
	report func(vps.Progress)
	now    func() time.Time

	mu    sync.Mutex
	last  vps.Progress
	begun time.Time
	// expected is how many steps there will be, as far as is known.
	expected, steps int
}

func newMeter(report func(vps.Progress), steps int) *meter {
	if report == nil {
		report = func(vps.Progress) {}
	}
	if steps <= 0 {
		steps = usualSteps
	}
	return &meter{report: report, now: time.Now, expected: steps}
}

// at reports how far a phase is, from 0 to 1. Steps too small to see are left
// out.
func (m *meter) at(p phase, fraction float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(p, fraction, 0)
}

func (m *meter) set(p phase, fraction float64, remaining time.Duration) {
	whole := p.begin + (p.end-p.begin)*min(max(fraction, 0), 1)
	next := vps.Progress{Phase: p.name, Fraction: max(whole, m.last.Fraction), Remaining: vps.Duration(remaining.Round(time.Second))}
	const visible = 0.001
	if next.Phase == m.last.Phase && next.Fraction-m.last.Fraction < visible && next.Fraction < 1 {
		return
	}
	m.last = next
	m.report(next)
}

// begin says that compiling begins.
func (m *meter) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun = m.now()
	m.set(phaseCompile, 0, 0)
}

// line takes a line of make's.
func (m *meter) line(line string) {
	// "  CC      fs/ext4/balloc.o": the programs that take time. What else is
	// said, such as headers that are made, goes by in an instant.
	word, _, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
	if !strings.HasPrefix(line, "  ") || word != "CC" && word != "AS" && word != "HOSTCC" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps++
	if m.steps >= m.expected {
		// More than was thought; how many more nobody knows.
		const more = 50
		m.expected = m.steps + m.steps/more + 1
	}
	var remaining time.Duration
	if m.steps >= firstSteps {
		each := m.now().Sub(m.begun) / time.Duration(m.steps)
		remaining = each*time.Duration(m.expected-m.steps) + afterwards
	}
	m.set(phaseCompile, float64(m.steps)/float64(m.expected), remaining)
}
