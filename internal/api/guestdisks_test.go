package api

import (
	"context"
	"testing"

	"sublet/internal/vps"
)

// fakeDisks knows the guest alice with the disk data and the snapshot one.
type fakeDisks struct{ *fake }

func (f fakeDisks) of(name string) error {
	if name != "alice" {
		return vps.Errorf(vps.CodeNotFound, "there is no guest %s", name)
	}
	return nil
}

func (f fakeDisks) GuestDisks(_ context.Context, guest string) ([]GuestDisk, error) {
	return []GuestDisk{{Guest: guest, Name: RootDisk, Device: "/dev/ubda", Size: vps.GiB}}, f.of(guest)
}

func (f fakeDisks) RemoveDisk(_ context.Context, guest, disk string, dryRun bool) (Change, error) {
	return Change{Schema: SchemaVersion, DryRun: dryRun, Edits: []string{"remove " + disk}}, f.of(guest)
}

func (f fakeDisks) Snapshots(_ context.Context, guest string) ([]vps.Snapshot, error) {
	return []vps.Snapshot{{Name: "one", State: vps.SnapshotFrozen, Disks: []string{"root"}}}, f.of(guest)
}

func (f fakeDisks) TakeSnapshot(_ context.Context, guest, name string) (Operation, error) {
	return Operation{ID: "op-1", Kind: "snapshot", Target: guest + " " + name}, f.of(guest)
}

func (f fakeDisks) RestoreSnapshot(_ context.Context, guest, name string, stop bool) (Operation, error) {
	op := Operation{ID: "op-2", Kind: "restore", Target: guest + " " + name}
	if stop {
		op.Kind = "stop and restore"
	}
	return op, f.of(guest)
}

func (f fakeDisks) DeleteSnapshot(_ context.Context, guest, name string) error {
	if name != "one" {
		return vps.Errorf(vps.CodeNotFound, "there is no snapshot %s", name)
	}
	return f.of(guest)
}

func TestDisksRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	same(t, must[[]GuestDisk](t)(s.Disks(ctx, "alice")), []GuestDisk{{Guest: "alice", Name: RootDisk, Device: "/dev/ubda", Size: vps.GiB}})
	same(t, must[Change](t)(s.RemoveDisk(ctx, "alice", "data", true)), Change{Schema: SchemaVersion, DryRun: true, Edits: []string{"remove data"}, Steps: []string{}})
	same(t, must[[]vps.Snapshot](t)(s.Snapshots(ctx, "alice")), []vps.Snapshot{{Name: "one", State: vps.SnapshotFrozen, Disks: []string{"root"}}})
	same(t, must[Operation](t)(s.TakeSnapshot(ctx, "alice", "two")), Operation{ID: "op-1", Kind: "snapshot", Target: "alice two"})
	same(t, must[Operation](t)(s.RestoreSnapshot(ctx, "alice", "one", false)), Operation{ID: "op-2", Kind: "restore", Target: "alice one"})
	same(t, must[Operation](t)(s.RestoreSnapshot(ctx, "alice", "one", true)), Operation{ID: "op-2", Kind: "stop and restore", Target: "alice one"})
	check(t, s.DeleteSnapshot(ctx, "alice", "one"))
	wantCode(t, s.DeleteSnapshot(ctx, "alice", "two"), vps.CodeNotFound)
	_, err := s.Disks(ctx, "bob")
	wantCode(t, err, vps.CodeNotFound)
	for _, bad := range []string{"", "..", "a/b", "UP"} {
		_, err = s.RemoveDisk(ctx, "alice", bad, false)
		wantCode(t, err, vps.CodeInvalid)
		_, err = s.TakeSnapshot(ctx, "alice", bad)
		wantCode(t, err, vps.CodeInvalid)
		_, err = s.RestoreSnapshot(ctx, "alice", bad, true)
		wantCode(t, err, vps.CodeInvalid)
		wantCode(t, s.DeleteSnapshot(ctx, "alice", bad), vps.CodeInvalid)
		_, err = s.Snapshots(ctx, bad)
		wantCode(t, err, vps.CodeInvalid)
	}
}
