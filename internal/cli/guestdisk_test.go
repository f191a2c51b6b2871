package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// Disks shows what was asked for as made, but for disks called "later".
func (f *fake) Disks(_ context.Context, name string) ([]api.GuestDisk, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(name)
	if err != nil {
		return nil, err
	}
	disks := []api.GuestDisk{{Guest: name, Name: api.RootDisk, Device: "/dev/ubda", Asked: g.Spec.Disk, Size: g.Spec.Disk, Used: vps.GiB, Path: "/v/disk.cow", Storage: "file"}}
	for i, d := range g.Spec.Disks {
		disk := api.GuestDisk{Guest: name, Name: d.Name, Device: vps.DataDevice("uml", i), Asked: d.Size, Size: d.Size, Path: "/v/data.img", Storage: "file"}
		if d.Name == "later" {
			disk.Size, disk.Pending = 0, "is made before the guest's next start"
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

func (f *fake) RemoveDisk(_ context.Context, name, disk string, dryRun bool) (api.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(name)
	if err == nil && !dryRun {
		g.Spec.Disks = slices.DeleteFunc(g.Spec.Disks, func(d vps.DataDisk) bool { return d.Name == disk })
	}
	return api.Change{Schema: 1, DryRun: dryRun, Edits: []string{name + ": disk " + disk + " goes"}, Steps: []string{}}, err
}

func (f *fake) Snapshots(_ context.Context, name string) ([]vps.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(name); err != nil {
		return nil, err
	}
	return f.snapshots[name], nil
}

func (f *fake) TakeSnapshot(_ context.Context, name, snapshot string) (api.Operation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(name); err != nil {
		return api.Operation{}, err
	}
	f.snapshots[name] = append(f.snapshots[name], vps.Snapshot{Name: snapshot, Created: now, State: vps.SnapshotRunning, Size: vps.GiB, Used: vps.MiB, Disks: []string{"root"}})
	f.orders = append(f.orders, "snapshot "+name+" "+snapshot)
	return api.Operation{ID: "op", Target: name, Done: true}, nil
}

func (f *fake) RestoreSnapshot(_ context.Context, name, snapshot string, stop bool) (api.Operation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(name)
	switch {
	case err != nil:
		return api.Operation{}, err
	case !slices.ContainsFunc(f.snapshots[name], func(s vps.Snapshot) bool { return s.Name == snapshot }):
		return api.Operation{}, vps.Errorf(vps.CodeNotFound, "%s has no snapshot %s", name, snapshot)
	case g.Status.State == vps.StateRunning && !stop:
		return api.Operation{}, vps.Errorf(vps.CodeConflict, "%s runs", name)
	}
	f.orders = append(f.orders, "restore "+name+" "+snapshot)
	return api.Operation{ID: "op", Target: name, Done: true}, nil
}

func (f *fake) DeleteSnapshot(_ context.Context, name, snapshot string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.snapshots[name])
	f.snapshots[name] = slices.DeleteFunc(f.snapshots[name], func(s vps.Snapshot) bool { return s.Name == snapshot })
	if len(f.snapshots[name]) == n {
		return vps.Errorf(vps.CodeNotFound, "%s has no snapshot %s", name, snapshot)
	}
	return nil
}

func (w *world) says(t *testing.T, code int, words string, args ...string) {
	t.Helper()
	if got := w.run(t.Context(), args...); got != code || !strings.Contains(w.errors.String()+w.out.String(), words) {
		t.Errorf("sublet %s: exit code %d, want %d; it says %q and not %q", strings.Join(args, " "), got, code, w.errors.String()+w.out.String(), words)
	}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.says(t, 0, "from its next start on", "disk", "add", "alice", "data=2GiB", "later=1GiB")
	w.says(t, 0, "", "disk", "add", "alice", "data=2GiB")
	w.says(t, 0, "alice,later,/dev/ubde,", "disk", "list", "-o", "csv")
	w.says(t, 0, "", "disk", "grow", "alice", "data", "+1GiB")
	w.says(t, 0, "", "disk", "grow", "alice", "20GiB")
	if s := w.fake.guests["alice"].Spec; s.Disk != 20*vps.GiB || len(s.Disks) != 2 || s.Disks[0].Size != 3*vps.GiB {
		t.Errorf("the spec is %+v", s)
	}
	w.says(t, 2, "a disk only grows", "disk", "grow", "alice", "data", "1GiB")
	w.says(t, 3, "alice has no disk none", "disk", "grow", "alice", "none", "1GiB")
	w.says(t, 2, "needs a guest", "disk", "grow", "alice")
	w.says(t, 2, "10XB", "disk", "grow", "alice", "10XB")
	w.says(t, 2, "add --yes", "disk", "remove", "alice", "data")
	w.says(t, 4, "sublet delete alice", "disk", "remove", "alice", "root", "--yes")
	w.says(t, 3, "no disk none", "disk", "remove", "alice", "none", "--yes")
	w.says(t, 0, "disk data goes", "disk", "remove", "alice", "data", "--dry-run")
	w.says(t, 0, "", "disk", "remove", "alice", "data", "--yes")
	if s := w.fake.guests["alice"].Spec; len(s.Disks) != 1 || s.Disks[0].Name != "later" {
		t.Errorf("the spec is %+v", s)
	}
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.says(t, 0, "snapshot before is taken", "snapshot", "create", "alice", "before")
	w.says(t, 0, "at-20260102-150405", "snapshot", "create", "alice")
	w.says(t, 0, `"guest": "alice"`, "snapshot", "list", "-o", "json")
	w.says(t, 2, "add --yes", "snapshot", "restore", "alice", "before")
	w.says(t, 4, "alice runs", "snapshot", "restore", "alice", "before", "--yes")
	w.says(t, 0, "alice is what it was in before", "snapshot", "restore", "alice", "before", "--yes", "--stop")
	w.says(t, 3, "no snapshot none", "snapshot", "restore", "alice", "none", "--yes", "--stop")
	w.says(t, 0, "is deleted", "snapshot", "delete", "alice", "before")
	w.says(t, 3, "no snapshot before", "snapshot", "delete", "alice", "before")
	w.says(t, 2, "needs a guest", "snapshot", "delete", "alice")
	w.says(t, 3, "zoe", "snapshot", "create", "zoe")
}

const packText = "SUBLETPACK\x00\x01"

// packed is what the fake makes of a guest: a head with the ID 01…, a text.
func packed(text string) string { return packText + strings.Repeat("\x01", 16) + text }

func (f *fake) Pack(_ context.Context, guest string, o api.PackOptions, w io.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(guest)
	switch {
	case err != nil:
		return err
	case g.Status.State == vps.StateRunning && !o.Live && o.Snapshot == "":
		return vps.Errorf(vps.CodeConflict, "%s runs; stop it first", guest)
	}
	if _, err := io.WriteString(w, packed(guest)); err != nil || guest != "walled" {
		return err
	}
	return vps.Errorf(vps.CodeInternal, "a disk cannot be read")
}

func (f *fake) Unpack(_ context.Context, r io.Reader, o api.UnpackOptions) (api.Unpacked, error) {
	b, err := io.ReadAll(r)
	f.orders = append(f.orders, fmt.Sprintf("unpack %d bytes from %d as %q, start %t", len(b), o.Offset, o.Name, o.Start))
	if err != nil {
		return api.Unpacked{}, err
	}
	return api.Unpacked{Guest: cmp.Or(o.Name, "alice"), Notes: []string{"the address is taken"}}, f.failure
}

func (f *fake) Unpacks(context.Context) ([]api.Unpacking, error) {
	return []api.Unpacking{{ID: strings.Repeat("01", 16), Guest: "alice", Offset: 30}}, f.failure
}

func TestPack(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.says(t, 4, "alice runs", "pack", "alice")
	w.says(t, 0, "alice is packed", "pack", "alice", "--live")
	if got := w.out.String(); got != packed("alice") {
		t.Errorf("the file is %q", got)
	}
	w.says(t, 1, "what was written is not whole", "pack", "walled", "--live")
	w.says(t, 3, "zoe", "pack", "zoe")
	w.says(t, 2, "exclude each other", "pack", "alice", "--live", "--snapshot", "one")
	w.options.IsTerminal = func(any) bool { return true }
	w.says(t, 2, "sublet pack alice > alice.sublet", "pack", "alice")
	w.says(t, 2, "is not typed", "unpack", "-")
	w.options.IsTerminal = func(any) bool { return false }

	file := filepath.Join(t.TempDir(), "alice.sublet")
	if err := os.WriteFile(file, []byte(packed("0123456789")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.fake.orders = nil
	w.says(t, 0, "bob: the address is taken", "unpack", file, "--name", "bob", "--start")
	w.says(t, 0, "going on behind 30B", "unpack", file, "--resume")
	w.options.Stdin = strings.NewReader(packed("0123456789"))
	w.says(t, 0, "going on behind 30B", "unpack", "-", "--resume")
	w.options.Stdin = strings.NewReader(packed("0"))
	w.says(t, 2, "shorter than what came before", "unpack", "-", "--resume")
	w.options.Stdin = strings.NewReader(packText + strings.Repeat("\x02", 20))
	w.says(t, 3, "nothing of this file was kept", "unpack", "-", "--resume")
	w.options.Stdin = strings.NewReader("PK")
	w.says(t, 2, "no .sublet file", "unpack", "-", "--resume")
	w.says(t, 2, "cannot be read", "unpack", file+"x")
	want := []string{
		`unpack 38 bytes from 0 as "bob", start true`, `unpack 8 bytes from 30 as "", start false`, `unpack 8 bytes from 30 as "", start false`,
	}
	if !slices.Equal(w.fake.orders, want) {
		t.Errorf("the daemon was asked for %q, want %q", w.fake.orders, want)
	}
}
