//go:build linux

package control

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestEdgeIsStartedToldAndEnded(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, stop := s.manager()
	state := s.settled(m, "one")
	s.reach()
	t.Log(state.Summary())

	t.Log("it goes on without the daemon, and the next one finds it")
	stop()
	s.reach()
	m, _ = s.manager()
	if again := s.settled(m, "one"); again.PID != state.PID {
		t.Errorf("the next daemon has process %d; want %d", again.PID, state.PID)
	}

	t.Log("ports that nobody needs are closed, and the edge ends with the last one")
	less := s.d.Wish
	less.Config.Ports = less.Config.Ports[:1]
	if err := m.Set(less); err != nil {
		t.Fatal(err)
	}
	s.eventually("port 443 is closed", func() bool { return call(t.Context(), s.client(), "https") != nil })
	if err := call(t.Context(), s.client(), "http"); err != nil {
		t.Errorf("port 80: %v", err)
	}
	less.Config.Ports = nil
	if err := m.Set(less); err != nil {
		t.Fatal(err)
	}
	s.eventually("the edge has ended", func() bool { s := m.State(); return s.PID == 0 && s.Draining == 0 && !s.Wanted })
	if left, err := os.ReadDir(s.d.Options.Dir); err != nil || len(left) > 1 { // the jail's root
		t.Errorf("it leaves %v, %v", left, err)
	}
	if err := m.Set(s.d.Wish); err != nil {
		t.Fatal(err)
	}
	s.settled(m, "one")
	s.reach()
}

func TestKilledEdgeIsReplaced(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, _ := s.manager()
	for i := range 3 {
		before := s.settled(m, "one")
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		// It may not be seen to be gone yet: who calls now waits in the queue.
		for _, scheme := range []string{"http", "https"} {
			if err := call(t.Context(), s.client(), scheme); err != nil {
				t.Errorf("a caller right after the kill: %v", err)
			}
		}
		t.Logf("served %s after the kill", time.Since(killed))
		s.eventually("another process serves", func() bool { s := m.State(); return s.PID != 0 && s.PID != before.PID })
		if got := m.State().Restarts; got != uint64(i+1) {
			t.Errorf("%d restarts are counted; want %d", got, i+1)
		}
	}
	s.told("ended unexpectedly")
}

// TestRestarts is the promise: nobody is refused while the daemon is killed,
// restarted and upgraded.
func TestRestarts(t *testing.T) {
	s := newScene(t)
	s.guest()
	d := s.daemon("0")
	s.reach()

	ctx, stop := context.WithCancel(t.Context())
	var calls atomic.Int64
	var mu sync.Mutex
	var lost []string
	var callers, work sync.WaitGroup
	const clients, rate = 8, 500 // of all together, in a second
	for i := range clients {
		scheme := []string{"http", "https"}[i%2]
		client := s.client()
		callers.Go(func() {
			tick := time.NewTicker(time.Second * clients / rate)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				work.Go(func() {
					calls.Add(1)
					if err := call(context.WithoutCancel(ctx), client, scheme); err != nil {
						mu.Lock()
						defer mu.Unlock()
						lost = append(lost, fmt.Sprintf("%s: %v", scheme, err))
					}
				})
			}
		})
	}
	long := s.longCall()
	started := time.Now()
	handovers := 0
	for i := range 20 {
		build := fmt.Sprint(handovers)
		switch i % 4 {
		case 0:
			end(t, d, syscall.SIGKILL)
		case 1: // an upgrade
			handovers++
			build = fmt.Sprint(handovers)
			end(t, d, syscall.SIGTERM)
		case 2:
			end(t, d, syscall.SIGTERM)
		case 3: // one that is killed and another one installed
			handovers++
			build = fmt.Sprint(handovers)
			end(t, d, syscall.SIGKILL)
		}
		before := calls.Load()
		d = s.daemon(build)
		// There are callers during each of them.
		s.eventually("there are more callers", func() bool { return calls.Load() > before+rate/5 })
		long.still()
	}
	stop()
	callers.Wait()
	work.Wait()
	took := time.Since(started)
	if len(lost) > 0 {
		t.Errorf("%d of %d calls were lost, among them %s", len(lost), calls.Load(), lost[0])
	}
	t.Logf("%d calls in %s (%.0f a second) through 20 restarts, %d of them handovers; %d lost", calls.Load(), took.Round(time.Millisecond), float64(calls.Load())/took.Seconds(), handovers, len(lost))
	long.end()
	end(t, d, syscall.SIGKILL)
}
