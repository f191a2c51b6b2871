package e2e

import (
	"encoding/json"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/vps"
	"sublet/test/lab"
)

// TestDiskUsage compares what is read from a guest's disk with what the guest
// says, fills it up, and looks at what the daemon tells of it.
func TestDiskUsage(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "256MiB", "--disk", "2GiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())

	t.Log("a guest that runs: the numbers are those of its last write-back")
	fields := strings.Fields(h.SSH("alice", "sync; df -B1 --output=size,used,avail / | tail -n1; stat -f -c '%c %d' /"))
	df := make([]float64, len(fields))
	for i, f := range fields {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		df[i] = n
	}
	near := func(what string, got vps.Bytes, want float64, off vps.Bytes) {
		t.Helper()
		if math.Abs(float64(got)-want) > float64(off) {
			t.Errorf("%s: %d, and the guest says %.0f", what, got, want)
		}
	}
	u := usageOf(t, h, "alice")
	fs := u.Parts[0].Filesystem
	// The kernel keeps at most 4096 clusters more for itself than it tells here.
	near("size", fs.Size-fs.Overhead, df[0], 0)
	near("used", fs.Used(), df[1], 8*vps.MiB)
	near("available", fs.Available(), df[2], 24*vps.MiB)
	near("inodes", vps.Bytes(fs.Inodes), df[3], 0)
	near("free inodes", vps.Bytes(fs.FreeInodes), df[4], 50)
	if !u.Running || fs.Approximate == "" || fs.State == vps.FilesystemClean || u.Allocated < 1*vps.MiB || u.Allocated > u.Size {
		t.Errorf("%+v, %+v", u, fs)
	}

	t.Log("a guest that fills up is told of once")
	h.SSH("alice", "fallocate -l "+strconv.FormatInt(int64(df[2])*9/10, 10)+" /root/big; sync")
	told := func() int {
		return strings.Count(h.Sublet("events", "alice", "-o", "json"), `"filling"`)
	}
	for range 2 {
		h.Stop()
		h.Start()
		h.Eventually("it is told that alice fills up", func() bool { return told() > 0 })
	}
	if n := told(); n != 1 {
		t.Errorf("it is told %d times that alice fills up:\n%s", n, h.Sublet("events", "alice"))
	}
	if f := h.Sublet("disk", "usage", "--forecast"); !strings.Contains(f, "not enough history") {
		t.Errorf("a forecast without a history: %s", f)
	}
	if s := h.Sublet("disk", "usage", "--history", "alice", "-o", "csv"); !strings.Contains(s, "Z,root,") {
		t.Errorf("no history: %s", s)
	}

	t.Log("a guest that is stopped: the numbers are exact, for the command alone as well")
	h.Sublet("stop", "alice")
	u = usageOf(t, h, "alice")
	fs = u.Parts[0].Filesystem
	if u.Running || fs.State != vps.FilesystemClean || fs.Approximate != "" || fs.UsedPercent() < 80 {
		t.Errorf("%+v, %+v", u, fs)
	}
	args := []string{"disk", "usage", u.Path, "-o", "json"}
	if u.Backing != "" {
		args = append(args, "--backing", u.Backing)
	}
	var alone struct{ Disks []vps.DiskUsage }
	if err := json.Unmarshal([]byte(h.Sublet(args...)), &alone); err != nil || len(alone.Disks) != 1 {
		t.Fatalf("%v: %+v", err, alone)
	}
	if got := alone.Disks[0].Parts[0].Filesystem; got.Free != fs.Free || got.FreeInodes != fs.FreeInodes || got.UUID != fs.UUID {
		t.Errorf("%+v, want %+v", got, fs)
	}
	if r := h.Try("disk", "usage", filepath.Join(h.Dir, "none")); r.Code != 3 {
		t.Errorf("a file that is not there: exit code %d", r.Code)
	}
}

// usageOf is what is told of a guest's only disk.
func usageOf(t *testing.T, h *lab.Host, name string) vps.DiskUsage {
	t.Helper()
	var list struct{ Disks []vps.DiskUsage }
	if err := json.Unmarshal([]byte(h.Sublet("disk", "usage", name, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Disks) != 1 || len(list.Disks[0].Parts) != 1 || list.Disks[0].Parts[0].Filesystem == nil {
		t.Fatalf("%+v", list)
	}
	return list.Disks[0]
}
