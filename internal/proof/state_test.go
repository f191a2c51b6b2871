package proof

import (
	"testing"
	"time"

	"sublet/internal/vps"
)

func result(was vps.ProofMethod, dns Outcome) Result {
	return Result{was, []Finding{{vps.ProofDNS, dns, "so it was found"}}}
}

// TestLife takes a proof through all that may happen to it.
func TestLife(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	begin := now
	p := vps.Proof{Name: "x.example.org", Tenant: "bob", Since: now}
	if !Due(p, now) {
		t.Fatal("a new one waits")
	}
	step := func(o Outcome, want vps.DomainState, told News) {
		t.Helper()
		var n News
		p, n = After(p, result(p.Method, o), now)
		if p.State() != want || n != told || !p.Checked.Equal(now) || p.Message != "so it was found" {
			t.Fatalf("%s, %q: %+v", p.State(), n, p)
		}
	}
	step(Absent, vps.DomainPending, NewsNone)
	// It is looked for ever less often, then once a day.
	var delays []time.Duration
	for now.Sub(begin) < 8*24*time.Hour {
		next := Next(p)
		if Due(p, next.Add(-1)) || !Due(p, next) {
			t.Fatal("due at another time than it says")
		}
		delays = append(delays, next.Sub(now))
		now = next
		step([]Outcome{Absent, Unknown}[len(delays)%2], vps.DomainPending, NewsNone)
	}
	for i, want := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
		if delays[i] != time.Duration(want)*time.Minute {
			t.Errorf("delay %d is %s", i, delays[i])
		}
	}
	if last := delays[len(delays)-1]; last < 20*time.Hour || last > 24*time.Hour {
		t.Errorf("after a week it is every %s", last)
	}
	step(Proved, vps.DomainLive, NewsLive)
	proved := p.Proved
	next := Next(p)
	if d := next.Sub(now); d < 20*time.Hour || d > 24*time.Hour {
		t.Errorf("looked at again after %s", d)
	}
	// Nobody answers for a year: that alone changes nothing.
	for range 365 {
		now = Next(p)
		step(Unknown, vps.DomainLive, NewsNone)
	}
	step(Absent, vps.DomainFailing, NewsGone)
	if !p.Live() || !p.Failing.Equal(now) {
		t.Fatalf("%+v", p)
	}
	step(Proved, vps.DomainLive, NewsBack)
	if !p.Proved.Equal(proved) || p.Failures != 0 {
		t.Errorf("%+v", p)
	}
	step(Absent, vps.DomainFailing, NewsGone)
	gone := now
	for p.Live() {
		now = Next(p)
		var n News
		p, n = After(p, result(p.Method, Absent), now)
		if p.Live() != (n == NewsNone) || !p.Live() && n != NewsLost {
			t.Fatalf("%q: %+v", n, p)
		}
	}
	if d := now.Sub(gone); d < LostAfter || d > LostAfter+24*time.Hour || p.State() != vps.DomainLost || !p.Failing.Equal(gone) {
		t.Errorf("lost after %s: %+v", d, p)
	}
	// It is looked for as eagerly as a new one.
	if d := Next(p).Sub(now); d != time.Minute {
		t.Errorf("after %s", d)
	}
	now = Next(p)
	step(Unknown, vps.DomainLost, NewsNone)
	step(Proved, vps.DomainLive, NewsLive)
	if !p.Proved.Equal(now) || !p.Failing.IsZero() {
		t.Errorf("%+v", p)
	}
}

// TestNotLostAtOnce has a host be off, or its clock leap, for longer than a proof may
// be gone.
func TestNotLostAtOnce(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	p := vps.Proof{Name: "x", Since: now, Proved: now, Checked: now, Method: vps.ProofDNS}
	p, _ = After(p, result(p.Method, Absent), now)
	now = now.Add(60 * 24 * time.Hour)
	for i := range lostFailures - 2 {
		if p, _ = After(p, result(p.Method, Absent), now); !p.Live() {
			t.Fatalf("lost at look %d", i)
		}
	}
	if p, n := After(p, result(p.Method, Unknown), now); !p.Live() || n != NewsNone {
		t.Error("lost by silence")
	}
	if p, n := After(p, result(p.Method, Absent), now); p.Live() || n != NewsLost {
		t.Error("never lost")
	}
	// The clock is put back: what was looked at in the future is looked at now.
	if !Due(vps.Proof{Proved: now, Checked: now}, now.Add(-48*time.Hour)) {
		t.Error("not due for days")
	}
	if Due(vps.Proof{Proved: now, Checked: now}, now.Add(-time.Second)) {
		t.Error("due for a clock that is kept in step")
	}
	if p, n := After(vps.Proof{Since: now}, result("", Proved), now); n != NewsLive || !p.Live() {
		t.Errorf("at the first look: %q", n)
	}
}

func TestJitter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	seen := map[time.Time]bool{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		seen[Next(vps.Proof{Name: name, Proved: now, Checked: now})] = true
	}
	if len(seen) < 4 {
		t.Error("all at the same time")
	}
}
