//go:build linux

package control

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sublet/internal/vps"
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

	t.Log("another domain is live at once")
	more := s.d.Wish
	more.Config.Guests = slices.Clone(more.Config.Guests)
	more.Config.Guests[0].Domains = append(slices.Clone(more.Config.Guests[0].Domains), vps.Domain{Name: "new.example.org", Port: guestTLS, HTTPPort: guestHTTP})
	edited := time.Now()
	if err := m.Set(more); err != nil {
		t.Fatal(err)
	}
	client := s.client()
	s.eventually("it is served", func() bool { return callName(t.Context(), client, "http", "new.example.org") == nil })
	t.Logf("served %s after the edit", time.Since(edited))

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

	load := s.load()
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
		before := load.calls.Load()
		d = s.daemon(build)
		// There are callers during each of them.
		s.eventually("there are more callers", func() bool { return load.calls.Load() > before+loadRate/2 })
		long.still()
	}
	load.end()
	took := time.Since(started)
	calls := load.calls.Load()
	t.Logf("%d calls in %s (%.0f a second) through 20 restarts, %d of them handovers", calls, took.Round(time.Millisecond), float64(calls)/took.Seconds(), handovers)
	long.end()
	end(t, d, syscall.SIGKILL)
}

// TestKilledHalfway kills each of the three that take part in a replacement at
// each of its steps. Only an edge's own connections are lost with it.
func TestKilledHalfway(t *testing.T) {
	for _, at := range []string{"launch", "launched", "config", "listen", "drain", "drained"} {
		for _, who := range []string{"daemon", "old", "new"} {
			t.Run(at+" "+who, func(t *testing.T) {
				s := newScene(t)
				s.guest()
				end(t, s.daemon("0"), syscall.SIGKILL)
				var load *load
				if who == "daemon" {
					load = s.load()
				}
				d, said := s.mortal("1", who, at)
				if who == "daemon" {
					if said != "" {
						t.Fatalf("the daemon lives, and says %q", said)
					}
					_ = d.Wait()
					before := load.calls.Load()
					s.eventually("there are callers without a daemon", func() bool { return load.calls.Load() > before+loadRate/10 })
					d = s.daemon("1")
					load.end()
				}
				s.reach()
				end(t, d, syscall.SIGTERM)
				m := New(s.d.Options)
				m.o.Build = "1"
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if err := m.find(ctx); err != nil {
					t.Fatal(err)
				}
				serving := 0
				for _, e := range m.edges {
					if !e.hello.Draining {
						serving++
						if e.hello.Build != "1" || !e.hello.Configured || len(e.hello.Ports) != len(testPorts) {
							t.Errorf("process %d serves as %+v", e.pid, e.hello)
						}
					}
				}
				if serving != 1 {
					t.Errorf("%d processes serve", serving)
				}
			})
		}
	}
}

// loadRate are the calls of all callers of a load together, in a second.
const loadRate = 500

// load are callers who come all the time, by both ways.
type load struct {
	s             *scene
	stop          func()
	calls         atomic.Int64
	callers, work sync.WaitGroup

	mu   sync.Mutex
	lost []string
}

func (s *scene) load() *load {
	s.t.Helper()
	s.reach()
	ctx, stop := context.WithCancel(s.t.Context())
	l := &load{s: s, stop: stop}
	const clients, most = 8, 200
	room := make(chan struct{}, most)
	for i := range clients {
		scheme := []string{"http", "https"}[i%2]
		client := s.client()
		l.callers.Go(func() {
			began := time.Now()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for made := 0; ; <-tick.C {
				if ctx.Err() != nil {
					return
				}
				// By the clock: a busy machine owes the calls that it did not get to, but
				// not more of them at a time than it has room for.
				for due := int(time.Since(began).Seconds() * loadRate / clients); made < due; made++ {
					room <- struct{}{}
					l.work.Go(func() {
						defer func() { <-room }()
						l.call(context.WithoutCancel(ctx), client, scheme)
					})
				}
			}
		})
	}
	s.t.Cleanup(func() { stop(); l.callers.Wait(); l.work.Wait() })
	return l
}

func (l *load) call(ctx context.Context, client *http.Client, scheme string) {
	err := call(ctx, client, scheme)
	l.calls.Add(1)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lost = append(l.lost, fmt.Sprintf("%s: %v", scheme, err))
	}
}

// end waits for all callers, and none of them was lost.
func (l *load) end() {
	l.s.t.Helper()
	l.stop()
	l.callers.Wait()
	l.work.Wait()
	if len(l.lost) > 0 {
		l.s.t.Errorf("%d of %d calls were lost, among them %s", len(l.lost), l.calls.Load(), l.lost[0])
	}
}
