package desired_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/desired"
	"sublet/internal/vps"
)

// TestAdopt moves a guest from one host to others.
func TestAdopt(t *testing.T) {
	t.Parallel()
	old, _ := open(t)
	g := create(t, old, "alice", func(s *vps.GuestSpec) {
		s.SSHKeys, s.RootPassword = []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl a: b # c"}, "$6$salt$hash"
		s.Address = netip.MustParseAddr("10.213.0.9")
		s.Forwards = []vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}, {Host: 5353, Guest: 53, Protocol: vps.ProtoBoth}}
		s.Disks = []vps.DataDisk{{Name: "data", Size: vps.GiB}}
		s.Rules = []vps.Rule{}
	})
	file, _, err := desired.Describe(g, g.Spec.Disks)
	if err != nil {
		t.Fatal(err)
	}

	// An empty host takes it as it was.
	s, _ := open(t)
	a := desired.Adoption{ID: s.NewID(), File: file, Storage: vps.StorageFile, ImageID: "from-elsewhere", Start: true}
	for _, dryRun := range []bool{true, false} {
		e, told, err := s.Adopt(t.Context(), a, dryRun)
		if err != nil || len(told) > 0 {
			t.Fatalf("told %q, %v", told, err)
		}
		got := e.After.Guest("alice")
		if diff := cmp.Diff(g.Spec, got.Spec, comparePrefixes, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("the spec (-was +is):\n%s", diff)
		}
		if got.ID != a.ID || got.ImageID != "from-elsewhere" || got.Index != 1 || got.Boots != 1 {
			t.Errorf("the guest is %+v", got)
		}
	}
	_, _, err = s.Adopt(t.Context(), a, false)
	if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("adopted twice: %v", err)
	}

	// On a host where others are it gets what is free.
	a.ID, a.Name, a.Start = s.NewID(), "bob", false
	e, told, err := s.Adopt(t.Context(), a, false)
	if err != nil {
		t.Fatal(err)
	}
	bob := e.After.Guest("bob").Spec
	if bob.Address.String() != "10.213.0.2" || bob.Ports.First != 20020 || len(bob.Forwards) > 0 || bob.Power != vps.PowerStopped {
		t.Errorf("bob has %s, %s, %v, %s", bob.Address, bob.Ports, bob.Forwards, bob.Power)
	}
	for _, word := range []string{"10.213.0.9", "20000-20019", "8443", "5353"} {
		if !strings.Contains(strings.Join(told, "\n"), word) {
			t.Errorf("nothing is told of %s: %q", word, told)
		}
	}

	// A quota that this host cannot have stays behind, and that is told.
	a.ID, a.Name, a.Quota = s.NewID(), "eve", []byte(`{"limit":1024,"count":"in","reset_day":31,"timezone":"Moon/Sea"}`)
	if e, told, err = s.Adopt(t.Context(), a, false); err != nil {
		t.Fatal(err)
	}
	if q := e.After.Quota(vps.QuotaGuest, "eve"); q != nil || !strings.Contains(strings.Join(told, "\n"), "its quota cannot be had here") {
		t.Errorf("eve's quota is %+v; told %q", q, told)
	}
	a.Quota = nil

	// Other pools, ports of the host's own programs, tenants that are not there.
	other, f := open(t)
	f.listeners = []desired.Listener{{Port: 20003, Protocol: vps.ProtoTCP}, {Port: 8443, Protocol: vps.ProtoTCP}}
	if _, err := other.Apply(t.Context(), strings.NewReader("settings: {subnet: 10.99.0.0/24, ports: 20000-29999}\n"), false, false); err != nil {
		t.Fatal(err)
	}
	a.ID, a.Name = other.NewID(), ""
	a.File = []byte(strings.Replace(string(file), `"tenant":"owner"`, `"tenant":"zoe"`, 1))
	if e, told, err = other.Adopt(t.Context(), a, false); err != nil {
		t.Fatal(err)
	}
	spec := e.After.Guest("alice").Spec
	if !e.After.Settings.Subnet.Contains(spec.Address) || spec.Ports.First != 20020 || len(spec.Forwards) != 1 || spec.Tenant != vps.DefaultTenant || len(told) != 4 {
		t.Errorf("elsewhere it has %s, %s, %v, %s; told %q", spec.Address, spec.Ports, spec.Forwards, spec.Tenant, told)
	}

	// A kernel that is not here.
	g.Spec.Kernel, g.Spec.Isolation, g.Spec.CPUs = "uml/elsewhere", vps.IsolationFast, 2
	if a.File, _, err = desired.Describe(g, nil); err != nil {
		t.Fatal(err)
	}
	for strict, want := range map[bool]vps.Isolation{false: vps.IsolationFast, true: vps.IsolationStrict} {
		there, f := open(t)
		f.strict = strict
		e, told, err := there.Adopt(t.Context(), a, false)
		if err != nil {
			t.Fatal(err)
		}
		if s := e.After.Guest("alice").Spec; s.Kernel != "" || s.Isolation != want || !strings.Contains(told[0], "uml/elsewhere") {
			t.Errorf("it boots %q, %s, %d; told %q", s.Kernel, s.Isolation, s.CPUs, told)
		}
	}

	for _, bad := range []string{``, `{`, `{"version":1}`, `{"version":9}`, `{"version":1,"guests":[{"name":"a"},{"name":"b"}]}`, `{"version":1,"guests":[{"name":"a","new":1}]}`} {
		a.File = []byte(bad)
		if _, _, err := other.Adopt(t.Context(), a, false); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
