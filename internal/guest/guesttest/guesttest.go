// Package guesttest is the conformance suite for drivers of guests: what
// package guest promises, as tests. A driver's own tests call Run with a Rig.
package guesttest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/guest"
	"sublet/internal/vps"
)

// Rig is what the suite needs of a driver's tests. The functions that make
// something happen fail the test themselves. All may be called in parallel for
// different guests.
type Rig struct {
	// Driver returns a new driver on the same host, as after a restart of the
	// daemon: it shares nothing in memory with the ones before.
	Driver func(t *testing.T) guest.Driver
	// Machine returns a machine that can be started, with a name and ID that
	// no other test uses. Whatever runs of it is gone after the test.
	Machine func(t *testing.T) vps.Machine
	// Booted returns once the guest can be acted in.
	Booted func(t *testing.T, d guest.Driver, in vps.Instance)
	// PowerOff, Reboot and Panic happen inside the guest; Reboot returns when
	// the guest can be acted in again. Crash kills its process from outside.
	PowerOff, Reboot, Panic, Crash func(t *testing.T, d guest.Driver, in vps.Instance)
	// Abandon starts the machine from a process that is then killed, as a
	// daemon may be.
	Abandon func(t *testing.T, m vps.Machine) vps.Instance
	// Typed returns what to type on the console, and what the guest then
	// prints that is not in what was typed.
	Typed func(word string) (typed, printed string)
}

// patience bounds every single step. It only ends tests that hang.
const patience = 90 * time.Second

// Run runs the whole suite.
func Run(t *testing.T, rig Rig) {
	t.Helper()
	tests := []struct {
		name string
		run  func(*life)
	}{
		{"Life", testLife},
		{"FreshDriver", testFreshDriver},
		{"PowerOffInside", testPowerOffInside},
		{"Kill", testKill},
		{"Reboot", testReboot},
		{"Panic", testPanic},
		{"Crash", testCrash},
		{"StartTwice", testStartTwice},
		{"StartAtOnce", testStartAtOnce},
		{"StartAgain", testStartAgain},
		{"StaleHandle", testStaleHandle},
		{"WaitTwice", testWaitTwice},
		{"WaitGivesUp", testWaitGivesUp},
		{"EarlyStop", testEarlyStop},
		{"DaemonKilled", testDaemonKilled},
		{"Unknown", testUnknown},
		{"ConsoleReplay", testConsoleReplay},
		{"ConsoleTakeover", testConsoleTakeover},
		{"ConsoleEnd", testConsoleEnd},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			test.run(&life{t: t, rig: rig, ctx: ctx, d: rig.Driver(t), m: rig.Machine(t)})
		})
	}
}

// life is one test's guest.
type life struct {
	t   *testing.T
	rig Rig
	ctx context.Context //nolint:containedctx // one test's own deadline
	d   guest.Driver
	m   vps.Machine
}

func (l *life) start(t *testing.T) vps.Instance {
	t.Helper()
	in, err := l.d.Start(l.ctx, l.m)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return in
}

func (l *life) boot(t *testing.T) vps.Instance {
	t.Helper()
	in := l.start(t)
	l.rig.Booted(t, l.d, in)
	return in
}

func (l *life) wait(t *testing.T, in vps.Instance) vps.Exit {
	t.Helper()
	e, err := l.d.Wait(l.ctx, in)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return e
}

func (l *life) wantExit(t *testing.T, in vps.Instance, want vps.ExitReason) vps.Exit {
	t.Helper()
	e := l.wait(t, in)
	if e.Reason != want {
		t.Fatalf("it ended as %+v, want the reason %s", e, want)
	}
	if e.At.Before(in.Started) || e.At.IsZero() {
		t.Errorf("it ended at %s, before its start at %s", e.At, in.Started)
	}
	return e
}

// listed returns the instance as List has it.
func (l *life) listed(t *testing.T) (vps.Instance, bool) {
	t.Helper()
	all, err := l.d.List(l.ctx)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, in := range all {
		if in.GuestID == l.m.ID {
			return in, true
		}
	}
	return vps.Instance{}, false
}

func (l *life) wantListed(t *testing.T, want vps.Instance) {
	t.Helper()
	got, ok := l.listed(t)
	if !ok {
		t.Fatal("it is not listed")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("as started (-) and as listed (+):\n%s", diff)
	}
}

func wantNotFound(t *testing.T, what string, err error) {
	t.Helper()
	if got := vps.ErrorCode(err); got != vps.CodeNotFound {
		t.Errorf("%s: error %v with code %q, want %q", what, err, got, vps.CodeNotFound)
	}
}

func testLife(l *life) {
	t := l.t
	if in, ok := l.listed(t); ok {
		t.Fatalf("listed before it was started: %+v", in)
	}
	in := l.boot(t)
	switch {
	case in.GuestID != l.m.ID, in.Name != l.m.Name, in.Boots != l.m.Boots:
		t.Errorf("the instance is not the machine's: %+v", in)
	case in.Exit != nil, in.PID <= 0, in.Started.IsZero(), in.Driver == "":
		t.Errorf("the instance does not look like a running one: %+v", in)
	}
	l.wantListed(t, in)
	if err := l.d.Attach(l.ctx, in); err != nil {
		t.Errorf("attach: %v", err)
	}
	u, err := l.d.Inspect(l.ctx, in)
	if err != nil {
		t.Fatalf("inspect: %v", err)
	}
	if u.Memory <= 0 || u.CPUTime <= 0 {
		t.Errorf("a running guest uses %+v", u)
	}
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Fatalf("stop: %v", err)
	}
	exit := l.wantExit(t, in, vps.ExitPowerOff)
	if exit.Failed() {
		t.Error("a power-off counts as a failure")
	}
	in.Exit = &exit
	l.wantListed(t, in)
	wantNotFound(t, "attach after the end", l.d.Attach(l.ctx, in))
	_, err = l.d.Inspect(l.ctx, in)
	wantNotFound(t, "inspect after the end", err)
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Errorf("stop after the end: %v", err)
	}
}

func testFreshDriver(l *life) {
	t := l.t
	in := l.boot(t)
	l.d = l.rig.Driver(t)
	l.wantListed(t, in)
	if err := l.d.Attach(l.ctx, in); err != nil {
		t.Fatalf("attach: %v", err)
	}
	if again := l.start(t); !cmp.Equal(again, in) {
		t.Errorf("a second start made another instance:\n%s", cmp.Diff(in, again))
	}
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Fatalf("stop: %v", err)
	}
	l.wantExit(t, in, vps.ExitPowerOff)
}

func testPowerOffInside(l *life) {
	t := l.t
	in := l.boot(t)
	l.rig.PowerOff(t, l.d, in)
	if e := l.wantExit(t, in, vps.ExitPowerOff); e.Code != 0 || e.Signal != "" {
		t.Errorf("a power-off is recorded as %+v", e)
	}
}

func testKill(l *life) {
	t := l.t
	in := l.boot(t)
	for range 2 {
		if err := l.d.Kill(l.ctx, in); err != nil {
			t.Fatalf("kill: %v", err)
		}
	}
	got, ok := l.listed(t)
	if !ok || got.Exit == nil || got.Exit.Reason != vps.ExitKilled {
		t.Fatalf("after a kill it is listed as %+v", got)
	}
	if l.wantExit(t, in, vps.ExitKilled).Failed() {
		t.Error("a kill counts as a failure")
	}
}

func testReboot(l *life) {
	t := l.t
	in := l.boot(t)
	l.rig.Reboot(t, l.d, in)
	if err := l.d.Attach(l.ctx, in); err != nil {
		t.Fatalf("attach after a reboot: %v", err)
	}
	l.wantListed(t, in)
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Fatalf("stop: %v", err)
	}
	l.wantExit(t, in, vps.ExitPowerOff)
}

func testPanic(l *life) {
	t := l.t
	in := l.boot(t)
	l.rig.Panic(t, l.d, in)
	if e := l.wantExit(t, in, vps.ExitPanic); e.Detail == "" || !e.Failed() {
		t.Errorf("a panic without the kernel's line: %+v", e)
	}
}

func testCrash(l *life) {
	t := l.t
	in := l.boot(t)
	l.rig.Crash(t, l.d, in)
	if e := l.wantExit(t, in, vps.ExitCrash); e.Code != -1 || e.Signal == "" || !e.Failed() {
		t.Errorf("a crash is recorded as %+v", e)
	}
}

func testUnknown(l *life) {
	t := l.t
	nobody := l.start(t)
	nobody.GuestID = "nobody-" + nobody.GuestID
	wantNotFound(t, "attach", l.d.Attach(l.ctx, nobody))
	_, err := l.d.Inspect(l.ctx, nobody)
	wantNotFound(t, "inspect", err)
	_, err = l.d.Wait(l.ctx, nobody)
	wantNotFound(t, "wait", err)
	if err := l.d.Kill(l.ctx, nobody); err != nil {
		t.Errorf("kill: %v", err)
	}
	if in, ok := l.listed(t); !ok || in.Exit != nil {
		t.Errorf("the guest was hit by a handle that is not its own: %+v", in)
	}
}
