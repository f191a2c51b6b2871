package desired_test

import (
	"testing"
	"time"

	"sublet/internal/vps"
)

const rescueKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl test@example"

// TestRescue takes guests into rescue and back, one that runs and one that
// does not.
func TestRescue(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for name, power := range map[string]vps.Power{"runs": vps.PowerRunning, "stopped": vps.PowerStopped} {
		create(t, s, name, func(s *vps.GuestSpec) { s.Power = power })
		want := vps.Rescue{ImageID: "rescue-1", Keys: []string{rescueKey}, Until: time.Now().Add(time.Hour)}
		for what, bad := range map[string]func(*vps.Rescue){
			"no key": func(r *vps.Rescue) { r.Keys = nil }, "no key at all": func(r *vps.Rescue) { r.Keys = []string{"x"} },
			"over": func(r *vps.Rescue) { r.Until = time.Now() }, "for ever": func(r *vps.Rescue) { r.Until = r.Until.AddDate(1, 0, 0) },
		} {
			r := want
			bad(&r)
			if _, err := s.Rescue(t.Context(), name, r, false); vps.ErrorCode(err) != vps.CodeInvalid {
				t.Errorf("%s: %v", what, err)
			}
		}
		e, err := s.Rescue(t.Context(), name, want, false)
		if err != nil {
			t.Fatal(err)
		}
		before, in := e.Before.Guest(name), e.After.Guest(name)
		if in.Rescue == nil || in.Rescue.Power != power || in.Rescue.Boots != in.Boots || in.Boots <= before.Boots || in.Spec.Power != vps.PowerRunning {
			t.Errorf("%s in rescue: %+v of %+v", name, in.Rescue, in)
		}
		if _, err := s.Rescue(t.Context(), name, want, false); vps.ErrorCode(err) != vps.CodeConflict {
			t.Errorf("a second rescue: %v", err)
		}
		if _, err := s.Reinstall(t.Context(), name, "", false); vps.ErrorCode(err) != vps.CodeConflict {
			t.Errorf("reinstalled in rescue: %v", err)
		}
		if _, err := s.EndRescue(t.Context(), name, func(vps.Rescue) bool { return false }, false); vps.ErrorCode(err) != vps.CodeConflict {
			t.Errorf("the end of another rescue: %v", err)
		}
		// It is switched off meanwhile, which is not what it goes back to.
		if _, err := s.Stop(t.Context(), name, 0, false, false); err != nil {
			t.Fatal(err)
		}
		if e, err = s.EndRescue(t.Context(), name, nil, false); err != nil {
			t.Fatal(err)
		}
		after := e.After.Guest(name)
		if after.Rescue != nil || after.Spec.Power != power || power == vps.PowerRunning && after.Boots <= in.Boots {
			t.Errorf("%s after its rescue: %+v", name, after)
		}
	}
}

func TestReinstall(t *testing.T) {
	t.Parallel()
	s, facts := open(t)
	create(t, s, "alice", nil)
	if _, err := s.Reinstall(t.Context(), "alice", "debian/99", false); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("an image that is not there: %v", err)
	}
	e, err := s.Reinstall(t.Context(), "alice", "", false)
	if err != nil {
		t.Fatal(err)
	}
	was, asked := *e.Before.Guest("alice"), *e.After.Guest("alice")
	if asked.Generation != was.Generation+1 || asked.Boots != was.Boots+1 || asked.ID != was.ID || asked.Spec.Address != was.Spec.Address || asked.Spec.Ports != was.Spec.Ports {
		t.Errorf("it was %+v and is %+v", was, asked)
	}
	if err := s.KeepOld(t.Context(), was, asked); err != nil {
		t.Fatal(err)
	}
	h, err := s.Host(t.Context())
	if err != nil || h.Guest("alice").Generation != was.Generation {
		t.Errorf("taken back: %+v, %v", h.Guest("alice"), err)
	}
	facts.disk = 0
	if _, err := s.Reinstall(t.Context(), "alice", "", false); vps.ErrorCode(err) != vps.CodeDenied {
		t.Errorf("on a full disk: %v", err)
	}
}
