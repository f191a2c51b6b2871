package cli

import (
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestRestraintsAreShown: whoever looks at a guest sees that a quota holds it
// and how long, and a filter by state goes on as before.
func TestRestraintsAreShown(t *testing.T) {
	t.Parallel()
	tests := []struct {
		restraint  vps.Restraint
		state      vps.State
		list, show string
	}{
		{vps.Restraint{Quota: "guest/alice", Action: vps.ActionThrottle, Rate: vps.Mbit, Until: now}, vps.StateRunning, "running: throttled", "throttled to 1Mbit by the quota guest/alice until"},
		{vps.Restraint{Quota: "tenant/bob", Action: vps.ActionSuspend, Until: now}, vps.StateRunning, "running: suspended", "network suspended by the quota tenant/bob until"},
		{vps.Restraint{Quota: "host", Action: vps.ActionStop, Until: now}, vps.StateStopped, "stopped: quota", "stopped by the quota host until"},
	}
	for _, tt := range tests {
		t.Run(string(tt.restraint.Action), func(t *testing.T) {
			t.Parallel()
			w := populate(t)
			w.guests["alice"].Status.State, w.guests["alice"].Status.Restraint = tt.state, &tt.restraint
			for _, line := range [][]string{{"list", "--filter", "name=alice", "--filter", "state=" + string(tt.state)}, {"show", "alice"}} {
				if w.mustRun(t, line...); !strings.Contains(w.out.String(), tt.list) {
					t.Errorf("%v does not show %q:\n%s", line, tt.list, w.out.String())
				}
			}
			if tt.restraint.Stops() {
				w.says(t, ExitDenied, "the guest alice is stopped because the quota host is used up until", "ssh", "alice")
			}
			for _, line := range [][]string{{"show", "alice"}, {"list", "-o", "wide"}} {
				if w.mustRun(t, line...); !strings.Contains(w.out.String(), tt.show) {
					t.Errorf("%v does not show %q:\n%s", line, tt.show, w.out.String())
				}
			}
		})
	}
}
