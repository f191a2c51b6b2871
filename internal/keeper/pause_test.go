//go:build linux

package keeper

import (
	"context"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// TestPause has a guest stand still for as long as somebody holds it.
func TestPause(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, "echo up; while :; do :; done")
	in := launch(t, c)
	logHas(t, c, "up")
	resume, err := Pause(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	still(t, in.PID, true)
	if _, err := Pause(t.Context(), in); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("a second pause: %v", err)
	}
	still(t, in.PID, true)
	if err := resume(); err != nil {
		t.Error(err)
	}
	still(t, in.PID, false)
	if err := resume(); err != nil {
		t.Error("asked again:", err)
	}

	// Whoever paused it is killed.
	conn, err := dial(t.Context(), c.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := exchange(t.Context(), conn, request{Op: opPause, Instance: &in}); err != nil {
		t.Fatal(err)
	}
	still(t, in.PID, true)
	_ = conn.Close()
	still(t, in.PID, false)

	// Killed while it stands still.
	if resume, err = Pause(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if err := resume(); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("of a guest that ended: %v", err)
	}
	if _, err := Pause(t.Context(), in); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a guest that is over: %v", err)
	}
}

// still waits until a process stands still, or does not.
func still(t *testing.T, pid int, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		got, err := standsStill(pid)
		return got == want, err
	})
	if err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
}
