package reconcile_test

import (
	"testing"
	"testing/synctest"

	"sublet/internal/plan"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

// TestHold has somebody work on a guest's disks, while it is asked to start
// and then to be deleted.
func TestHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		defer w.run(t, nil)()
		w.edit(func(*vps.Host) { w.add("a", func(g *vps.Guest) { g.Spec.Power = vps.PowerStopped }) })
		settle()
		w.took()
		held, release, err := w.loop.Hold(t.Context(), "id-a")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.loop.Hold(t.Context(), "id-a"); vps.ErrorCode(err) != vps.CodeConflict {
			t.Errorf("held twice: %v", err)
		}
		w.edit(func(h *vps.Host) { h.Guests[0].Spec.Power = vps.PowerRunning; h.Guests[0].Boots++ })
		settle()
		same(t, "while it is held", "", w.took())
		if held.Err() != nil {
			t.Error("it was taken back for a start")
		}
		release()
		settle()
		same(t, "when it is back", "start a (it was asked to run)", w.took())

		held, release, err = w.loop.Hold(t.Context(), "id-a")
		if err != nil {
			t.Fatal(err)
		}
		w.edit(func(h *vps.Host) { h.Guests[0].Deleting = true })
		settle()
		if held.Err() == nil {
			t.Error("it was not asked back for a deletion")
		}
		release()
		settle()
		if len(w.host.Guests) > 0 {
			t.Error("it was not deleted")
		}
	})
}

// TestHoldWaits has a step under way when the guest is to be held.
func TestHoldWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		going := make(chan struct{})
		defer w.run(t, func(o *reconcile.Options) {
			o.BeforeStep = func(s plan.Step) {
				if s.Kind == plan.WriteSeed {
					<-going
				}
			}
		})()
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		got := make(chan error)
		go func() {
			_, release, err := w.loop.Hold(t.Context(), "id-a")
			if err == nil {
				release()
			}
			got <- err
		}()
		settle()
		select {
		case err := <-got:
			t.Errorf("it did not wait: %v", err)
		default:
		}
		close(going)
		if err := <-got; err != nil {
			t.Error(err)
		}
		settle()
		wantState(t, w, "a", vps.StateRunning)
	})
}
