package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/plan"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

func same(t *testing.T, what, want, got string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimSpace(want), got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func wantState(t *testing.T, w *world, guest string, want vps.State) {
	t.Helper()
	if got := w.status(guest); got.State != want {
		t.Fatalf("%s is %s (%s); want %s", guest, got.State, got.Message, want)
	}
}

func hasEvent(w *world, text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, text) })
}

func TestLifeOfAGuest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		defer w.run(t, nil)()
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		same(t, "created", `
set-firewall (missing)
set-network (missing)
create-volume a 8GiB from debian/12 (it has none)
write-seed a (its identity changed)
start a (it was asked to run)`, w.took())
		wantState(t, w, "a", vps.StateRunning)

		w.edit(func(h *vps.Host) { h.Guests[0].Boots++ })
		settle()
		same(t, "restarted", "stop a within 1m0s (a restart was asked for)\nstart a (a start was asked for)", w.took())

		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Power, h.Guests[0].Spec.Disk = vps.PowerStopped, 9*vps.GiB })
		settle()
		same(t, "stopped and grown", "stop a within 1m0s (it was asked to be stopped)\ngrow-volume a to 9GiB (it has 8GiB)", w.took())
		wantState(t, w, "a", vps.StateStopped)

		w.edit(func(h *vps.Host) { h.Guests[0].Deleting = true })
		settle()
		same(t, "deleted", `
set-firewall (different)
set-network (different)
delete-volume a (it is being deleted)
forget a (it is being deleted)`, w.took())
		if len(w.host.Guests)+len(w.volumes)+len(w.seeds)+len(w.network.Guests) > 0 {
			t.Error("something is left of a deleted guest")
		}
	})
}

// TestQuotaStops has a quota stop a guest for a while. That it did is noted
// before, so that a daemon killed in between knows.
func TestQuotaStops(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		used := &vps.Restraint{Quota: "guest/a", Action: vps.ActionStop}
		w.edit(func(h *vps.Host) { h.Guests[0].Restraint = used })
		settle()
		same(t, "used up", "stop a within 1m0s (the quota guest/a is used up)", w.took())
		wantState(t, w, "a", vps.StateStopped)
		if got := w.status("a"); got.Restraint != used || w.host.Guests[0].QuotaStopped != 1 || w.host.Guests[0].Spec.Power != vps.PowerRunning {
			t.Errorf("restraint %v, noted at boot %d, power %s", got.Restraint, w.host.Guests[0].QuotaStopped, w.host.Guests[0].Spec.Power)
		}

		w.edit(func(h *vps.Host) {
			h.Guests[0].Restraint, h.Guests[0].QuotaStopped = nil, 0
			h.Guests[0].Boots++
		})
		settle()
		same(t, "topped up", "start a (a start was asked for)", w.took())
		wantState(t, w, "a", vps.StateRunning)

		// A throttle is a matter of the links.
		w.edit(func(h *vps.Host) { h.Guests[0].Restraint = &vps.Restraint{Action: vps.ActionThrottle, Rate: vps.Mbit} })
		settle()
		same(t, "throttled", "set-firewall (different)\nset-network (different)", w.took())
		if got := w.network.Guests[0].Bandwidth; got != vps.Mbit {
			t.Errorf("the link has %s", got)
		}
	})
}

// TestDataDisks has disks wait for the guest's next start, and be there then.
func TestDataDisks(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Disks = []vps.DataDisk{{Name: "data", Size: vps.GiB}} })
		settle()
		same(t, "asked for while it runs", "", w.took())
		w.edit(func(h *vps.Host) { h.Guests[0].Boots++ })
		settle()
		same(t, "restarted", `
stop a within 1m0s (a restart was asked for)
create-disk a data of 1GiB (it has none of that name)
start a (a start was asked for)`, w.took())
		w.edit(func(h *vps.Host) {
			h.Guests[0].Spec.Power, h.Guests[0].Spec.Disks = vps.PowerStopped, []vps.DataDisk{{Name: "data", Size: 2 * vps.GiB}}
		})
		settle()
		same(t, "stopped and grown", "stop a within 1m0s (it was asked to be stopped)\ngrow-disk a data to 2GiB (it has 1GiB)", w.took())
		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Disks = nil })
		settle()
		same(t, "removed", "delete-disk a data (it is not asked for any more)", w.took())
	})
}

func TestRunningGuestKeepsItsWallWhileItIsKilledForDeletion(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		w.edit(func(h *vps.Host) { h.Guests[0].Deleting, h.Guests[0].Abrupt = true, true })
		settle()
		same(t, "deleted", `
kill a (it is being deleted)
set-firewall (different)
set-network (different)
delete-volume a (it is being deleted)
forget a (it is being deleted)`, w.took())
	})
}

func TestLimitsChangeLive(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		pid := w.status("a").PID
		w.fail[plan.SetLimits] = errors.New("the host refuses")
		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Resources.CPUQuota = 50 })
		settle()
		wantState(t, w, "a", vps.StateRunning)
		if got := w.status("a").Message; got == "" {
			t.Error("nothing tells that the limits could not be set")
		}
		delete(w.fail, plan.SetLimits)
		elapse(time.Minute)
		settle()
		same(t, "limits", "set-limits a (its limits changed)", w.took())
		if got := w.instances["id-a"].limits.CPUQuota; got != 50 || w.status("a").PID != pid {
			t.Errorf("the quota is %d, and the process %d instead of %d", got, w.status("a").PID, pid)
		}
	})
}

func TestGuestsOutliveTheLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		end := w.run(t, nil)
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		pid := w.status("a").PID
		end()
		w.took()
		defer w.run(t, nil)()
		settle()
		same(t, "a new loop has nothing to do", "", w.took())
		if got := w.status("a"); got.PID != pid || got.State != vps.StateRunning {
			t.Errorf("after a restart of the daemon: %+v; want process %d running", got, pid)
		}
	})
}

// TestKilledBetweenAnyTwoSteps ends the daemon before and after every step of
// a guest's making, restart and removal. The next daemon finishes the work.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	edits := map[string]struct {
		edit func(w *world)
		want vps.State
	}{
		"create":  {func(w *world) { w.edit(func(*vps.Host) { w.add("b", nil) }) }, vps.StateRunning},
		"restart": {func(w *world) { w.edit(func(h *vps.Host) { h.Guests[0].Boots++ }) }, vps.StateRunning},
		"stop":    {func(w *world) { w.edit(func(h *vps.Host) { h.Guests[0].Spec.Power = vps.PowerStopped }) }, vps.StateStopped},
		"delete":  {func(w *world) { w.edit(func(h *vps.Host) { h.Guests[0].Deleting = true }) }, ""},
	}
	for name, tt := range edits {
		for death := range 12 { // before and after each of up to six steps
			t.Run(fmt.Sprintf("%s/%d", name, death), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld()
					hooks := 0
					dieAt := func(plan.Step) {
						w.mu.Lock()
						defer w.mu.Unlock()
						if hooks++; w.armed && hooks > death {
							w.dead = true
						}
					}
					end := w.run(t, func(o *reconcile.Options) { o.BeforeStep, o.AfterStep = dieAt, dieAt })
					w.edit(func(*vps.Host) { w.add("a", nil) })
					settle()
					w.mu.Lock()
					hooks, w.armed = 0, true
					w.mu.Unlock()
					tt.edit(w)
					settle()
					end()
					w.dead, w.armed = false, false
					defer w.run(t, nil)()
					settle()
					if s, _ := w.loop.Snapshot(); len(s.Steps) > 0 {
						t.Fatalf("the plan is not empty: %v", s.Steps)
					}
					if tt.want == "" {
						if len(w.host.Guests)+len(w.volumes)+len(w.seeds)+len(w.instances) > 0 {
							t.Fatal("something is left of the deleted guest")
						}
						return
					}
					wantState(t, w, w.host.Guests[len(w.host.Guests)-1].Spec.Name, tt.want)
				})
			})
		}
	}
}

func TestCrashIsStartedAgainWithBackoff(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		for n, pause := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			w.end("a", vps.ExitPanic)
			settle()
			wantState(t, w, "a", vps.StateCrashed)
			if next := w.status("a").NextTry; !next.Equal(time.Now().Add(pause)) {
				t.Fatalf("try %d is due in %s; want %s", n, time.Until(next), pause)
			}
			elapse(pause - time.Millisecond)
			settle()
			wantState(t, w, "a", vps.StateCrashed)
			elapse(time.Millisecond)
			settle()
			wantState(t, w, "a", vps.StateRunning)
			if got := w.status("a").Restarts; got != n+1 {
				t.Fatalf("%d restarts are counted; want %d", got, n+1)
			}
		}
		elapse(time.Hour) // a long healthy life starts the backoff over
		w.end("a", vps.ExitCrash)
		settle()
		if next := w.status("a").NextTry; !next.Equal(time.Now().Add(time.Second)) {
			t.Errorf("after an hour of health the next try is due in %s; want 1s", time.Until(next))
		}
		if !hasEvent(w, "crashed a: ended by panic") {
			t.Errorf("no event tells of the panic: %q", w.events)
		}
	})
}

func TestPowerOffInsideStaysOff(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		w.end("a", vps.ExitPowerOff)
		elapse(time.Hour)
		settle()
		wantState(t, w, "a", vps.StateStopped)
		w.edit(func(h *vps.Host) { h.Guests[0].Boots++ })
		settle()
		wantState(t, w, "a", vps.StateRunning)
	})
}

func TestDeafGuestIsKilledAtTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.deaf["a"] = true
		defer w.run(t, nil)()
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Power = vps.PowerStopped })
		elapse(59 * time.Second)
		settle()
		wantState(t, w, "a", vps.StateStopping)
		elapse(time.Second)
		settle()
		wantState(t, w, "a", vps.StateStopped)
		if !hasEvent(w, "it did not shut down within 1m0s, so it was killed") {
			t.Errorf("no event says that it was killed: %q", w.events)
		}
	})
}

func TestKillDoesNotWaitForTheShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.deaf["a"] = true
		defer w.run(t, nil)()
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Power = vps.PowerStopped })
		settle()
		w.edit(func(h *vps.Host) { h.Guests[0].Abrupt = true })
		settle()
		wantState(t, w, "a", vps.StateStopped)
	})
}

func TestNoStartWithoutFirewall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.fail[plan.SetFirewall] = vps.Errorf(vps.CodeInternal, "nft is broken")
		defer w.run(t, nil)()
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		same(t, "all but the start is done", "create-volume a 8GiB from debian/12 (it has none)\nwrite-seed a (its identity changed)", w.took())
		if got := w.status("a"); got.Message != "nft is broken" {
			t.Errorf("the status says %q; want the reason", got.Message)
		}
		w.mu.Lock()
		delete(w.fail, plan.SetFirewall)
		w.mu.Unlock()
		elapse(5 * time.Second)
		settle()
		wantState(t, w, "a", vps.StateRunning)
	})
}

func TestWhatRunsCanBeStoppedWithoutFirewall(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		w.mu.Lock()
		w.broken = true // nft cannot even be asked
		w.mu.Unlock()
		w.edit(func(h *vps.Host) { h.Guests[0].Boots++ })
		settle()
		same(t, "half of a restart", "stop a within 1m0s (a restart was asked for)", w.took())
		if got := w.status("a"); got.State != vps.StateStarting || got.Message == "" {
			t.Errorf("the status is %+v; want it starting, with the reason that it does not", got)
		}
		if !hasEvent(w, "nft is broken") {
			t.Errorf("no event tells of it: %q", w.events)
		}
		w.mu.Lock()
		w.broken = false
		w.mu.Unlock()
		elapse(time.Minute)
		settle()
		wantState(t, w, "a", vps.StateRunning)
	})
}

func TestGuestThatWaitsForItsTurnCanBeStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for n := range 3 {
			w.add(fmt.Sprintf("g%d", n), func(g *vps.Guest) { g.HostBoot = "boot-0" })
		}
		defer w.run(t, func(o *reconcile.Options) { o.Ready = func(ctx context.Context, _ vps.Guest) { <-ctx.Done() } })()
		settle()
		for n := range 3 {
			if name := fmt.Sprintf("g%d", n); w.status(name).State != vps.StateRunning {
				w.edit(func(h *vps.Host) { h.Guest(name).Spec.Power = vps.PowerStopped })
				settle()
				wantState(t, w, name, vps.StateStopped)
			}
		}
		elapse(time.Hour)
		settle()
		if got := w.count(); got != 2 {
			t.Errorf("%d guests were started; want the two whose turn it was", got)
		}
	})
}

func TestFaultOfOneGuestLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		w.mu.Lock()
		w.fail[plan.CreateVolume] = vps.Errorf(vps.CodeDenied, "the disk is full")
		w.mu.Unlock()
		w.edit(func(*vps.Host) { w.add("b", nil) })
		settle()
		wantState(t, w, "a", vps.StateRunning)
		wantState(t, w, "b", vps.StateFailed)
		if got := w.status("b"); got.Code != vps.CodeDenied || got.Message != "the disk is full" {
			t.Errorf("the status is %+v; want the fault", got)
		}
		elapse(10 * time.Minute)
		settle()
		failures := 0
		w.mu.Lock()
		for _, e := range w.events {
			failures += strings.Count(e, "the disk is full")
		}
		w.mu.Unlock()
		if failures != 1 {
			t.Errorf("the same fault is told %d times; want once", failures)
		}
		// An edit of the guest is a new try at once.
		w.mu.Lock()
		delete(w.fail, plan.CreateVolume)
		w.mu.Unlock()
		w.edit(func(h *vps.Host) { h.Guests[1].Spec.Memory *= 2 })
		settle()
		wantState(t, w, "b", vps.StateRunning)
	})
}

func TestDriftIsMendedAndTold(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		if hasEvent(w, "drift") {
			t.Fatalf("our own change counts as drift: %q", w.events)
		}
		w.took()
		w.mu.Lock()
		w.firewall = nil // nft delete table inet sublet
		w.mu.Unlock()
		w.wakes <- struct{}{}
		settle()
		same(t, "mended", "set-firewall (missing)", w.took())
		if !hasEvent(w, "drift : mended by set-firewall: missing") {
			t.Errorf("no event tells of the drift: %q", w.events)
		}
	})
}

func TestDetachedGuestIsPluggedIn(t *testing.T) {
	t.Parallel()
	withGuest(t, func(w *world) {
		t := w.t
		w.mu.Lock()
		w.detached["id-a"] = true // it has not opened its tap yet
		w.mu.Unlock()
		w.loop.Kick()
		settle()
		same(t, "while it boots", "", w.took())
		elapse(replugAfter)
		settle()
		same(t, "later", "replug a (its link was made again)", w.took())

		w.mu.Lock()
		w.stubborn, w.detached["id-a"] = true, true
		w.mu.Unlock()
		w.loop.Kick()
		elapse(time.Hour)
		settle()
		if tries := strings.Count(w.took(), "replug"); tries < 5 || tries > 30 {
			t.Errorf("a guest that does not plug in was told %d times in an hour", tries)
		}
		told := 0
		w.mu.Lock()
		for _, e := range w.events {
			told += strings.Count(e, "told to plug in")
		}
		w.mu.Unlock()
		if told > 2 {
			t.Errorf("the events tell of it %d times", told)
		}
		wantState(t, w, "a", vps.StateRunning)
	})
}

// replugAfter is what the loop gives a guest to open its tap.
const replugAfter = 10 * time.Second

func TestFewBootAtATimeAfterTheHostDid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for n := range 5 {
			w.add(fmt.Sprintf("g%d", n), func(g *vps.Guest) { g.HostBoot = "boot-0" })
		}
		defer w.run(t, func(o *reconcile.Options) {
			o.Ready = func(ctx context.Context, _ vps.Guest) {
				select { // each takes ten seconds to boot
				case <-ctx.Done():
				case <-time.After(10 * time.Second):
				}
			}
		})()
		for _, want := range []int{2, 4, 5} {
			settle()
			if got := w.count(); got != want {
				t.Fatalf("%d guests run; want %d", got, want)
			}
			elapse(10 * time.Second)
		}
	})
}

func TestOrphansAreShownAndNeverKilled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.instances["id-x"] = &instance{vps.Instance{GuestID: "id-x", Name: "x", PID: 99}, make(chan struct{}), vps.Resources{}}
		w.volumes["id-y"] = vps.Volume{GuestID: "id-y"}
		defer w.run(t, nil)()
		elapse(time.Hour)
		settle()
		s, _ := w.loop.Snapshot()
		slices.Sort(s.Orphans)
		same(t, "orphans", `
the guest x (id-x) runs with process 99, and the store does not know it
the volume id-y is of no guest that the store knows`, strings.Join(s.Orphans, "\n"))
		if w.instances["id-x"].Exit != nil || len(w.volumes) != 1 {
			t.Error("an orphan was touched")
		}
		w.end("x", vps.ExitKilled)
		settle()
	})
}

func TestUnreadableStoreChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		end := w.run(t, nil)
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		end()
		w.took()
		defer w.run(t, func(o *reconcile.Options) { o.Desired = brokenStore{} })()
		elapse(time.Hour)
		settle()
		same(t, "nothing is done", "", w.took())
		if w.instances["id-a"].Exit != nil {
			t.Error("a guest was stopped because the store could not be read")
		}
	})
}

type brokenStore struct{}

func (brokenStore) Host(context.Context) (vps.Host, error) {
	return vps.Host{}, errors.New("disk I/O error")
}
func (brokenStore) Forget(context.Context, string) error { return nil }

func (brokenStore) StoppedByQuota(context.Context, string, int64) error { return nil }
