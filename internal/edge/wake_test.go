package edge

import (
	"net/netip"
	"testing"
	"time"
)

// TestJoin: a guest is told to start once, also when a call comes that was led to it
// before it ran, and comes to wait after others saw it run.
func TestJoin(t *testing.T) {
	t.Parallel()
	var w waker
	now, key := time.Unix(1e9, 0), netip.MustParseAddr("192.0.2.1")
	runs := false
	running := func() bool { return runs }
	join := func(wantAsk bool, wantLeft time.Duration) {
		t.Helper()
		if ask, left, ok := w.join(key, now, running, time.Minute); ask != wantAsk || left != wantLeft || !ok {
			t.Errorf("%t, %s, %t; want %t, %s", ask, left, ok, wantAsk, wantLeft)
		}
	}
	join(true, time.Minute)
	now = now.Add(time.Second)
	join(false, 59*time.Second)
	runs = true // that is in the table
	w.runs()    // and seen there
	join(false, 59*time.Second)
	now = now.Add(time.Hour)
	join(false, time.Minute)
	runs = false
	join(true, time.Minute)
}
