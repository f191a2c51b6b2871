package guesttest

import (
	"context"
	"sync"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func testStartTwice(l *life) {
	t := l.t
	first := l.start(t)
	l.m.Boots++
	second := l.start(t)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("starting a running guest made another instance:\n%s", diff)
	}
}

func testStartAtOnce(l *life) {
	t := l.t
	const callers = 3
	got := make([]vps.Instance, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		d := l.d
		if i > 0 {
			d = l.rig.Driver(t)
		}
		wg.Go(func() { got[i], errs[i] = d.Start(l.ctx, l.m) })
	}
	wg.Wait()
	for i := range callers {
		if errs[i] != nil {
			t.Fatalf("caller %d: %v", i, errs[i])
		}
		if diff := cmp.Diff(got[0], got[i]); diff != "" {
			t.Errorf("callers 0 and %d got two instances:\n%s", i, diff)
		}
	}
}

func testStartAgain(l *life) {
	t := l.t
	first := l.start(t)
	if err := l.d.Kill(l.ctx, first); err != nil {
		t.Fatalf("kill: %v", err)
	}
	l.m.Boots++
	second := l.boot(t)
	if !second.Started.After(first.Started) || second.Boots != l.m.Boots || second.Exit != nil {
		t.Errorf("a start after the end gave %+v, after %+v", second, first)
	}
	l.wantListed(t, second)
	_, err := l.d.Wait(l.ctx, first)
	wantNotFound(t, "wait for the one before", err)
}

func testStaleHandle(l *life) {
	t := l.t
	first := l.start(t)
	if err := l.d.Kill(l.ctx, first); err != nil {
		t.Fatalf("kill: %v", err)
	}
	second := l.boot(t)
	if err := l.d.Kill(l.ctx, first); err != nil {
		t.Errorf("kill of the one before: %v", err)
	}
	if err := l.d.Stop(l.ctx, first); err != nil {
		t.Errorf("stop of the one before: %v", err)
	}
	wantNotFound(t, "attach to the one before", l.d.Attach(l.ctx, first))
	if err := l.d.Attach(l.ctx, second); err != nil {
		t.Errorf("an old handle hit the new instance: %v", err)
	}
}

func testWaitTwice(l *life) {
	t := l.t
	in := l.start(t)
	exits := make([]vps.Exit, 2)
	errs := make([]error, len(exits))
	var wg sync.WaitGroup
	for i := range exits {
		d := l.d
		if i > 0 {
			d = l.rig.Driver(t)
		}
		wg.Go(func() { exits[i], errs[i] = d.Wait(l.ctx, in) })
	}
	l.rig.Booted(t, l.d, in)
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Fatalf("stop: %v", err)
	}
	wg.Wait()
	third, err := l.d.Wait(l.ctx, in) // After the end.
	if err != nil || errs[0] != nil || errs[1] != nil {
		t.Fatalf("waiting failed: %v, %v, %v", errs[0], errs[1], err)
	}
	if !cmp.Equal(exits[0], third) || !cmp.Equal(exits[1], third) {
		t.Errorf("three callers were told of different ends: %+v, %+v, %+v", exits[0], exits[1], third)
	}
}

func testWaitGivesUp(l *life) {
	t := l.t
	in := l.start(t)
	ctx, cancel := context.WithCancel(l.ctx)
	cancel()
	if e, err := l.d.Wait(ctx, in); err == nil {
		t.Errorf("waiting with a cancelled context gave %+v", e)
	}
	if err := l.d.Attach(l.ctx, in); err != nil {
		t.Errorf("giving up waiting hurt the guest: %v", err)
	}
}

// testEarlyStop asks for a shutdown of a guest that is not far enough to hear
// it, or whose kernel takes it for a reboot.
func testEarlyStop(l *life) {
	t := l.t
	in := l.start(t)
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Fatalf("stop: %v", err)
	}
	l.wantExit(t, in, vps.ExitPowerOff)
}

func testDaemonKilled(l *life) {
	t := l.t
	in := l.rig.Abandon(t, l.m)
	l.wantListed(t, in)
	if err := l.d.Attach(l.ctx, in); err != nil {
		t.Fatalf("attach: %v", err)
	}
	l.rig.Booted(t, l.d, in)
	if err := l.d.Stop(l.ctx, in); err != nil {
		t.Fatalf("stop: %v", err)
	}
	l.wantExit(t, in, vps.ExitPowerOff)
}
