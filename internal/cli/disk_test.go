package cli

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// withDisks is a host whose guests' disks are known.
func withDisks(t *testing.T) *world {
	t.Helper()
	w := populate(t)
	ext := vps.Filesystem{
		Type: vps.FilesystemExt4, Label: "root", UUID: "0f6d9e0a-45c2-4ac1-a52d-000000000001", BlockSize: 4096,
		Size: 8 * vps.GiB, Free: 2 * vps.GiB, Reserved: 400 * vps.MiB, Overhead: 200 * vps.MiB, HasInodes: true, Inodes: 524288, FreeInodes: 300000, MaxInodes: 524288,
		Mounts: 3, LastMounted: now.Add(-time.Hour), LastWritten: now, State: vps.FilesystemNeedsRecovery, Features: []string{"extent"},
		Approximate: "It is mounted, or was not unmounted: what was written in the last minute of its use may be missing.",
	}
	full := ext
	full.Free, full.State, full.Approximate = 401*vps.MiB, vps.FilesystemClean, ""
	full.Label = "\x1b[31mred"
	swap := vps.Filesystem{Type: vps.FilesystemSwap, Size: vps.GiB, Free: vps.GiB, State: vps.FilesystemClean, Approximate: "How much of it is used, only the guest knows.", Features: []string{}}
	w.usage = []vps.DiskUsage{
		{Guest: "alice", Disk: "root", Path: "/var/lib/sublet/volumes/g-1/disk", Format: vps.DiskCOW, Backing: "/images/1", Size: 8 * vps.GiB, Allocated: 1234 * vps.MiB, Running: true, At: now, Parts: []vps.DiskPart{{Size: 8 * vps.GiB, Filesystem: &ext}}},
		{Guest: "bob", Disk: "root", Path: "/var/lib/sublet/volumes/g-2/disk", Format: vps.DiskRaw, Size: 10 * vps.GiB, Allocated: 9 * vps.GiB, At: now, Table: "gpt", Parts: []vps.DiskPart{
			{Number: 1, Size: 8 * vps.GiB, Filesystem: &full},
			{Number: 2, Size: vps.GiB, Filesystem: &swap},
			{Number: 3, Size: vps.GiB, Contains: "LVM physical volume"},
		}},
		{Guest: "bob", Disk: "data", Path: "/dev/vg/data", Format: vps.DiskRaw, Size: vps.GiB, At: now, Parts: []vps.DiskPart{{Size: vps.GiB, Error: "the ext filesystem is damaged: it tells 3 free blocks of 2"}}},
	}
	w.forecasts = []vps.DiskForecast{
		{Guest: "alice", Disk: "root", Used: 6 * vps.GiB, Available: vps.GiB, UsedPercent: 85.7, Growth: 100 << 20, Full: now.Add(10 * 24 * time.Hour), What: "blocks", Samples: 300},
		{Guest: "bob", Disk: "root", Part: 1, UsedPercent: 99.99, Note: "not enough history: 2 samples of 5m0s, and it takes 6 of 24h0m0s", Samples: 2},
	}
	w.samples = []vps.DiskSample{{Disk: "root", At: now, Used: 6 * vps.GiB, Available: 2 * vps.GiB, Inodes: 100, FreeInodes: 50, Allocated: vps.GiB}}
	w.options.Look = func(_ context.Context, path string, backing, _ []string) (vps.DiskUsage, error) {
		switch {
		case strings.HasSuffix(path, "none"):
			return vps.DiskUsage{}, vps.Errorf(vps.CodeNotFound, "there is no file %s", path)
		case strings.HasSuffix(path, "over") && !slices.Equal(backing, []string{"base"}):
			return vps.DiskUsage{}, errors.New("no base")
		}
		u := w.usage[0]
		u.Guest, u.Disk, u.Path, u.Running = "", "", path, false
		return u, nil
	}
	return w
}

func TestDiskUsage(t *testing.T) {
	t.Parallel()
	for file, args := range map[string]string{
		"disk.usage":          "disk usage",
		"disk.usage.wide":     "disk usage -o wide",
		"disk.usage.csv":      "disk usage -o csv",
		"disk.usage.json":     "disk usage bob -o json --filter disk=root:1",
		"disk.usage.file":     "disk usage ./a/rather/long/path/to/some/disk.img ./img",
		"disk.forecast":       "disk usage --forecast",
		"disk.forecast.json":  "disk usage --forecast alice -o json",
		"disk.history":        "disk usage --history alice",
		"disk.usage.filtered": "disk usage --filter type=ext4",
	} {
		w := withDisks(t)
		w.run(t.Context(), strings.Fields(args)...)
		golden(t, filepath.Join("testdata", "golden", file), w.out.String()+"--- standard error\n"+w.errors.String())
		if !strings.Contains(args, "-o ") {
			for line := range strings.Lines(w.out.String()) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
					t.Errorf("%s: a line of %d characters: %s", args, n, line)
				}
			}
		}
	}
}

func TestDiskUsageExits(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{
		"disk usage alice":                       0,
		"disk usage":                             8, // bob's data disk
		"disk usage bob":                         8,
		"disk usage nobody":                      3,
		"disk usage nobody alice":                8,
		"disk usage ./none":                      3,
		"disk usage ./over --backing base":       0,
		"disk usage ./over":                      1,
		"disk usage alice --backing base":        2,
		"disk usage ./a ./b --backing base":      2,
		"disk usage ./a --forecast":              2,
		"disk usage alice --forecast --history":  2,
		"disk usage --history":                   2,
		"disk usage Img":                         0,
		"disk usage alice --filter state=broken": 0,
		"disk usage alice -o xml":                2,
		"disk":                                   2,
	} {
		w := withDisks(t)
		if got := w.run(t.Context(), strings.Fields(args)...); got != want {
			t.Errorf("%s: exit code %d, want %d\n%s", args, got, want, w.errors.String())
		}
	}
}
