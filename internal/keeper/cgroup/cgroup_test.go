//go:build linux

package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// fake is a group whose files are plain ones.
func fake(t *testing.T, v2 bool, files ...string) *Group {
	t.Helper()
	dir := t.TempDir()
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if v2 {
		return &Group{V2: dir}
	}
	return &Group{V1: map[string]string{"cpu": dir, "memory": dir, "pids": dir, "io": dir}}
}

// TestFiles checks what is written to the files of each version.
func TestFiles(t *testing.T) {
	t.Parallel()
	limits := Limits{Memory: vps.GiB, Resources: vps.Resources{CPUWeight: 200, CPUQuota: 150, Processes: 500, IOWeight: 300, IORead: 10 * vps.MiB, IOWrite: vps.MiB}, Disk: "/etc/passwd"}
	device, err := deviceOf(limits.Disk)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		v2   bool
		want map[string]string
	}{
		"version 2": {true, map[string]string{
			"memory.max": "1073741824", "memory.oom.group": "1", "cpu.weight": "200", "cpu.max": "150000 100000", "pids.max": "500",
			"io.weight": "default 300", "io.max": device + " rbps=10485760 wbps=1048576",
		}},
		"version 1": {false, map[string]string{
			"memory.limit_in_bytes": "1073741824", "cpu.shares": "2048", "cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000", "pids.max": "500",
			"blkio.weight": "300", "blkio.throttle.read_bps_device": device + " 10485760", "blkio.throttle.write_bps_device": device + " 1048576",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var files []string
			for f := range test.want {
				files = append(files, f)
			}
			g := fake(t, test.v2, files...)
			if err := g.Set(limits); err != nil {
				t.Fatal(err)
			}
			for f, want := range test.want {
				if got, err := os.ReadFile(filepath.Join(g.Folders()[0], f)); err != nil || string(got) != want {
					t.Errorf("%s is %q, %v; want %q", f, got, err, want)
				}
			}
		})
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	g := &Group{Missing: []string{"cpu", "memory", "pids", "io"}}
	if err := g.Set(Limits{}); vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "pids") {
		t.Errorf("without any group: %v", err)
	}
	for _, l := range []Limits{{Memory: 1}, {Resources: vps.Resources{CPUQuota: 1}}, {Resources: vps.Resources{IORead: vps.MiB}}} {
		if err := g.Set(l); vps.ErrorCode(err) != vps.CodeConflict {
			t.Errorf("%+v: %v", l, err)
		}
	}
	if _, err := deviceOf("/proc/self/status"); err == nil {
		t.Error("a file system without a disk has one")
	}
}
