package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestGuestsOutliveTheDaemon kills the daemon under running guests.
func TestGuestsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "256MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
	before := h.Show("alice")
	uptime := h.SSH("alice", "cat /proc/sys/kernel/random/boot_id")
	for range 5 {
		h.Kill()
		h.NS.Exec("ssh-keyscan", "-T", "20", before.Spec.Address) // it answers without a daemon
		h.Start()
		h.Eventually("the plan is empty", h.Settled)
		if after := h.Show("alice"); after.Status.PID != before.Status.PID || !after.Status.Started.Equal(before.Status.Started) {
			t.Fatalf("after a kill of the daemon it is %+v; was %+v", after.Status, before.Status)
		}
	}
	if now := h.SSH("alice", "cat /proc/sys/kernel/random/boot_id"); now != uptime {
		t.Error("the guest was booted anew")
	}
	if console := h.Sublet("logs", "alice", "-n", "3"); strings.TrimSpace(console) == "" {
		t.Error("the console's log is empty after the daemon was killed")
	}
	h.Stop()
	h.Start()
	h.Sublet("stop", "alice")
	if g := h.Show("alice"); g.Status.Exit == nil || g.Status.Exit.Reason != "power-off" {
		t.Errorf("a guest of an earlier daemon does not stop in good order: %+v", g.Status)
	}
}

// TestDaemonKilledAtEveryStep kills the daemon before and after every step of
// the plans of create, restart by force, and delete. The next daemon finishes
// the work, and the plan is then empty.
func TestDaemonKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "bystander", "--memory", "128MiB", "--ssh-key", h.Key+".pub")
	bystander := h.Show("bystander").Status.PID
	h.Stop()

	// Each life runs until the daemon survives its whole plan.
	for _, life := range []struct {
		name    string
		prepare []string
		order   []string
		check   func(name string)
	}{
		{"create", nil, []string{"create", "NAME", "--memory", "128MiB", "--ssh-key", h.Key + ".pub"}, func(name string) {
			if g := h.Try("show", name, "-o", "json"); g.Code == 3 {
				return // killed before the order was written down
			}
			h.Sublet("wait", name, "--for", "running", "--timeout", hang.After.String())
		}},
		{"kill", []string{"create", "NAME", "--memory", "128MiB", "--ssh-key", h.Key + ".pub"}, []string{"kill", "NAME"}, func(name string) {
			h.Sublet("kill", name)
		}},
		{"delete", []string{"create", "NAME", "--memory", "128MiB", "--ssh-key", h.Key + ".pub"}, []string{"delete", "NAME", "--yes"}, func(name string) {
			if h.Try("show", name).Code != 3 {
				h.Sublet("delete", name, "--yes")
			}
		}},
	} {
		survived := false
		for moment := 0; !survived; moment++ {
			if moment > 20 {
				t.Fatalf("%s: still dying after %d moments", life.name, moment)
			}
			name := fmt.Sprintf("%s-%d", life.name, moment)
			at := func(args []string) []string {
				out := append([]string{}, args...)
				for i := range out {
					out[i] = strings.Replace(out[i], "NAME", name, 1)
				}
				return out
			}
			if life.prepare != nil {
				h.Start()
				h.Sublet(at(life.prepare)...)
				h.Eventually("it is settled", h.Settled)
				h.Stop()
			}
			startMortal(t, h, moment)
			h.Eventually("the mortal daemon answers or is dead", func() bool {
				return h.Try("host", "show").Code == 0 || isGone(h)
			})
			h.Try(at(life.order)...)
			survived = !isGoneWithin(h, 2*time.Second)
			if survived {
				h.Stop()
			}
			h.Start()
			h.Eventually(life.name+": the plan is empty", h.Settled)
			life.check(name)
			h.Eventually(life.name+": the plan is empty", h.Settled)
			if now := h.Show("bystander").Status.PID; now != bystander {
				t.Fatalf("%s at moment %d: the bystander is process %d; was %d", life.name, moment, now, bystander)
			}
			if h.Try("show", name).Code == 0 {
				h.Sublet("delete", name, "--yes")
			}
			h.Stop()
		}
	}
	h.Start()
	if list := h.Sublet("list", "-q"); list != "bystander" {
		t.Errorf("left over: %q", list)
	}
	if orphans := h.Try("doctor").Stdout; strings.Contains(orphans, "the store does not know") {
		t.Errorf("orphans are left:\n%s", orphans)
	}
}

func isGone(h *lab.Host) bool { return isGoneWithin(h, 0) }

func isGoneWithin(h *lab.Host, d time.Duration) bool {
	select {
	case <-h.Gone():
		return true
	default:
	}
	select {
	case <-h.Gone():
		return true
	case <-time.After(d):
		return false
	}
}
