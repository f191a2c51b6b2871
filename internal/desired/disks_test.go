package desired_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/desired"
	"sublet/internal/sqlite"
	"sublet/internal/store"
	"sublet/internal/vps"
)

// TestDataIsNotLost edits the list of a guest's disks in ways that would lose
// one, or make it another device.
func TestDataIsNotLost(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	a, b := vps.DataDisk{Name: "a", Size: vps.GiB}, vps.DataDisk{Name: "b", Size: vps.GiB}
	create(t, s, "alice", func(s *vps.GuestSpec) { s.Disks = []vps.DataDisk{a, b} })
	update := func(disks ...vps.DataDisk) error {
		_, err := s.Update(t.Context(), "alice", func(s vps.GuestSpec) (vps.GuestSpec, error) {
			s.Disks = disks
			return s, nil
		}, false)
		return err
	}
	small := vps.DataDisk{Name: "b", Size: vps.MiB}
	for _, disks := range [][]vps.DataDisk{nil, {a}, {b}, {b, a}, {a, small}, {{Name: "c", Size: vps.GiB}, a, b}} {
		if err := update(disks...); vps.ErrorCode(err) != vps.CodeInvalid || !strings.HasPrefix(vps.ErrorMessage(err), "disks: ") {
			t.Errorf("%v: %v; want it refused", disks, err)
		}
	}
	large := vps.DataDisk{Name: "a", Size: 2 * vps.GiB}
	if err := update(large, b, vps.DataDisk{Name: "c", Size: vps.GiB}); err != nil {
		t.Errorf("a larger one and a new one: %v", err)
	}
	_, err := s.Update(t.Context(), "alice", func(s vps.GuestSpec) (vps.GuestSpec, error) {
		s.Storage = "lvm:vg0"
		return s, nil
	}, false)
	if vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("another storage: %v", err)
	}
}

// TestOlderRecords reads a guest that was stored before it had fields whose
// zero value means nothing.
func TestOlderRecords(t *testing.T) {
	t.Parallel()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	s := desired.New(db, &facts{memory: vps.GiB, disk: vps.GiB})
	g := create(t, s, "alice", nil)
	var record map[string]any
	text, err := json.Marshal(g)
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := record["spec"].(map[string]any)
	for _, field := range []string{"storage", "swap", "kernel", "isolation", "cpus"} {
		if _, there := spec[field]; !there {
			t.Errorf("the field %s is not stored", field)
		}
		delete(spec, field)
	}
	if text, err = json.Marshal(record); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Commit(t.Context(), nil, []store.Write{{Key: "guests/" + g.ID, Value: text}}); err != nil {
		t.Fatal(err)
	}
	old := host(t, s).Guest("alice")
	if err := old.Spec.Validate(); err != nil {
		t.Error(err)
	}
	if old.Spec.Storage != vps.StorageFile || old.Spec.Isolation != vps.IsolationStrict || old.Spec.CPUs != 1 {
		t.Errorf("read as %+v", old.Spec)
	}
}
