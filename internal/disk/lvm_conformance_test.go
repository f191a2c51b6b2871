//go:build lvm

// These tests need a device mapper and a disk that they may overwrite:
// DISK_LVM names it. test/vm runs them in a machine of their own.
package disk_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"sublet/internal/disk"
	"sublet/internal/disk/disktest"
	"sublet/internal/vps"
)

func lvm(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "/usr/sbin/lvm", args...) // also to clean up
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("lvm %v: %v\n%s%s", args, err, out, words.String())
	}
	return string(out)
}

// group makes a volume group with a thin pool on a disk that somebody has used:
// no byte of it is zero. There is one for all tests, since each run of lvm(8)
// takes long where processors are emulated, and it is never taken away: the
// machine is.
var group = sync.OnceValue(func() error { //nolint:gochecknoglobals // made once
	device := os.Getenv("DISK_LVM")
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	used := bytes.Repeat([]byte("somebody's secrets. "), 1<<20/20)
	for err == nil {
		_, err = f.Write(used)
	}
	_ = f.Close()
	for _, args := range [][]string{
		{"vgcreate", "--yes", "--force", "--dataalignment", "1m", "tank", device},
		{"lvcreate", "--yes", "--wipesignatures", "n", "--size", "4m", "--name", "others", "tank"},
		{"lvcreate", "--yes", "--wipesignatures", "n", "--size", "4m", "--name", "sublet-others", "tank"},
		{"lvcreate", "--yes", "--type", "thin-pool", "--zero", "y", "--size", "160m", "--poolmetadatasize", "4m", "--name", "pool", "tank"},
	} {
		if out, err := exec.Command("/usr/sbin/lvm", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("lvm %v: %w\n%s", args, err, out)
		}
	}
	return nil
})

// volumes are the group's volumes but for the parts of a pool, with the random
// ends of their names cut.
func volumes(t *testing.T) []string {
	t.Helper()
	var all []string
	for name := range strings.FieldsSeq(lvm(t, "lvs", "--noheadings", "--options", "lv_name", "tank")) {
		if parts := strings.Split(name, "-"); len(parts) == 4 {
			name = strings.Join(parts[:3], "-")
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func bench(t *testing.T, storage string) disktest.Bench {
	t.Helper()
	if err := group(); err != nil {
		t.Fatal(err)
	}
	dir := mounted(t, "tmpfs", "tmpfs", "size=200m")
	b := files(t, dir, 32*vps.MiB)
	left := b.Left
	b.Storage, b.Left = storage, func(t *testing.T) []string { return append(left(t), volumes(t)...) }
	return b
}

func TestConformanceThick(t *testing.T) {
	disktest.Run(t, func(t *testing.T) disktest.Bench { return bench(t, "lvm:tank") })
}

func TestConformanceThin(t *testing.T) {
	disktest.Run(t, func(t *testing.T) disktest.Bench { return bench(t, "lvm:tank/pool") })
}

// TestLVMFaults has groups without room, pools that do not zero, and things
// that are not there.
func TestLVMFaults(t *testing.T) {
	b := bench(t, "lvm:tank")
	before := b.Left(t)
	lvm(t, "lvcreate", "--yes", "--type", "thin-pool", "--zero", "n", "--size", "16m", "--poolmetadatasize", "4m", "--name", "dirty", "tank")
	for storage, code := range map[string]vps.Code{
		"lvm:none": vps.CodeNotFound, "lvm:tank/none": vps.CodeNotFound, "lvm:tank/others": vps.CodeNotFound, "lvm:tank/dirty": vps.CodeConflict,
	} {
		_, err := b.Store.Create(t.Context(), "g1", b.Image, vps.VolumeSpec{Storage: storage, Size: 24 * vps.MiB, UID: 1})
		if vps.ErrorCode(err) != code {
			t.Errorf("%s: %v, want %q", storage, err, code)
		}
	}
	lvm(t, "lvremove", "--yes", "tank/dirty")
	_, err := b.Store.Create(t.Context(), "g1", b.Image, vps.VolumeSpec{Storage: "lvm:tank", Size: 8 * vps.GiB, UID: 1})
	if vps.ErrorCode(err) != vps.CodeDenied {
		t.Errorf("without room: %v", err)
	}
	if left := b.Left(t); !slices.Equal(left, before) {
		t.Errorf("what failed leaves %q, and there was %q", left, before)
	}

	// A volume that somebody has open is not changed, and one whose mark is gone
	// is not ours.
	v, err := b.Store.Create(t.Context(), "g1", b.Image, vps.VolumeSpec{Storage: "lvm:tank", Size: 24 * vps.MiB, UID: 1})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(v.Disk.Path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Store.Snapshot(t.Context(), "g1", "one", disk.Stopped); err != nil {
		t.Error(err)
	}
	if _, err := b.Store.Restore(t.Context(), "g1", "one", 1); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("restored under a guest: %v", err)
	}
	_ = f.Close()
	name := strings.TrimPrefix(v.Disk.Path, "/dev/")
	lvm(t, "lvchange", "--deltag", "sublet", name)
	if err := b.Store.Delete(t.Context(), "g1"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(lvm(t, "lvs", "--noheadings", "--options", "lv_name", "tank"), strings.TrimPrefix(name, "tank/")) {
		t.Error("a volume without our mark was removed")
	}

	// A daemon that was killed between the two halves of something: a volume that
	// no record names, and one that was made longer and not yet clean.
	lvm(t, "lvremove", "--yes", name)
	if v, err = b.Store.Create(t.Context(), "g1", b.Image, vps.VolumeSpec{Storage: "lvm:tank", Size: 24 * vps.MiB, UID: 1}); err != nil {
		t.Fatal(err)
	}
	name = strings.TrimPrefix(v.Disk.Path, "/dev/")
	tags := strings.TrimSpace(lvm(t, "lvs", "--noheadings", "--options", "lv_tags", name))
	args := []string{"lvcreate", "--yes", "--wipesignatures", "n", "--size", "8m", "--name", "sublet-g1-data-leftover", "tank"}
	for tag := range strings.SplitSeq(tags, ",") {
		args = append(args, "--addtag", tag)
	}
	lvm(t, args...)
	lvm(t, "lvextend", "--size", "+8m", name)
	if err := b.Store.Sweep(t.Context(), func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	if all := strings.Join(volumes(t), " "); all != "others pool sublet-g1-root sublet-others" {
		t.Errorf("after a sweep there is %s", all)
	}
	if _, err := b.Store.Check(t.Context(), "g1", b.Image, 1); err != nil {
		t.Error(err)
	}
	content, err := os.ReadFile(v.Disk.Path)
	if err != nil || len(content) != 32<<20 || bytes.Contains(content, []byte("secrets")) {
		t.Errorf("a volume of %d bytes still has what was on the disk before; %v", len(content), err)
	}
	// Once, and not again: the guest has it now.
	if err := os.WriteFile(v.Disk.Path, bytes.Repeat([]byte{7}, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err = b.Store.Check(t.Context(), "g1", b.Image, 1); err != nil || v.Size != 32*vps.MiB {
		t.Errorf("%+v, %v", v, err)
	}
	if content, _ = os.ReadFile(v.Disk.Path); content[len(content)-1] != 7 {
		t.Error("what the guest wrote was overwritten")
	}
	if err := b.Store.Delete(t.Context(), "g1"); err != nil {
		t.Error(err)
	}
}
