package desired_test

import (
	"slices"
	"testing"

	"sublet/internal/desired"
	"sublet/internal/vps"
)

// TestResume has a quota stop guests, and says for each what happened between
// that and the end of it.
func TestResume(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		shape   func(*vps.GuestSpec)
		between func(t *testing.T, s *desired.State, f *facts)
		starts  bool
	}{
		{"nothing", nil, nil, true},
		{"it is still used up", nil, nil, false},
		{"stopped", nil, func(t *testing.T, s *desired.State, _ *facts) {
			t.Helper()
			if _, err := s.Stop(t.Context(), "a", 0, false, false); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"started", nil, func(t *testing.T, s *desired.State, _ *facts) {
			t.Helper()
			if _, err := s.Start(t.Context(), "a", false, false); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"deleted", nil, func(t *testing.T, s *desired.State, _ *facts) {
			t.Helper()
			if _, err := s.Delete(t.Context(), "a", false); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"the host was booted", nil, func(_ *testing.T, _ *desired.State, f *facts) { f.boot = "boot-2" }, true},
		{"the host was booted, no autostart", func(s *vps.GuestSpec) { s.Autostart = false }, func(_ *testing.T, _ *desired.State, f *facts) { f.boot = "boot-2" }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, f := open(t)
			g := create(t, s, "a", tt.shape)
			create(t, s, "b", nil) // which no quota stopped
			for _, boots := range []int64{g.Boots, g.Boots + 1} {
				if err := s.StoppedByQuota(t.Context(), g.ID, boots); err != nil {
					t.Fatal(err)
				}
			}
			if got := host(t, s).Guest("a").QuotaStopped; got != g.Boots {
				t.Fatalf("noted at %d, want %d", got, g.Boots)
			}
			if tt.between != nil {
				tt.between(t, s, f)
			}
			before := host(t, s).Guest("a").Boots
			used := tt.name == "it is still used up"
			names, err := s.Resume(t.Context(), func(*vps.Guest) bool { return used })
			if err != nil {
				t.Fatal(err)
			}
			after := host(t, s)
			if a := after.Guest("a"); tt.starts != slices.Contains(names, "a") || tt.starts != (a.Boots == before+1) || (a.QuotaStopped != 0) != used {
				t.Errorf("started %q, boots %d after %d, noted %d", names, a.Boots, before, a.QuotaStopped)
			}
			if b := after.Guest("b"); b.Boots != 1 {
				t.Errorf("b has %d boots", b.Boots)
			}
			if again, err := s.Resume(t.Context(), func(*vps.Guest) bool { return used }); err != nil || len(again) > 0 {
				t.Errorf("once more: %q, %v", again, err)
			}
		})
	}
}
