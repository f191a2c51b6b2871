package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// TestDiskThresholds fills a guest's data disk by and by, with a look in
// between, as its guest would do.
func TestDiskThresholds(t *testing.T) {
	t.Parallel()
	b := packHost(t, "")
	packGuest(t, b)
	_, g, err := b.guest(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	v, err := b.volumes.Get(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	data := v.Data[0].Disk.Path
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", data)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("content ", 1<<17)), 0o600); err != nil { // 1 MiB
		t.Fatal(err)
	}
	files := 0
	for _, step := range []struct {
		files int
		want  []string // all events up to then
	}{
		{10, nil},
		{50, []string{"8"}},
		{51, []string{"8"}},
		{46, []string{"8"}}, // less than 80 %, but hardly
		{50, []string{"8"}},
		{40, []string{"8"}},
		{50, []string{"8", "8"}},
		{56, []string{"8", "8", "9"}},
		{57, []string{"8", "8", "9"}},
	} {
		for ; files < step.files; files++ {
			run("debugfs", "-w", "-R", fmt.Sprintf("write %s f%d", file, files), data)
		}
		for ; files > step.files; files-- {
			run("debugfs", "-w", "-R", fmt.Sprintf("rm f%d", files-1), data)
		}
		// What was told is not told again, also by the next daemon.
		for range 2 {
			if err := b.sampleDisks(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		events, err := b.db.Events(t.Context(), sqlite.EventQuery{Guest: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			if e.Kind == vps.EventFilling {
				_, rest, _ := strings.Cut(e.Message, "the disk data is ")
				got = append(got, rest[:1])
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(step.want) {
			t.Errorf("with %d MiB: the events are %v, want %v: %+v", step.files, got, step.want, events)
		}
	}
	disks, err := b.disksOf(t.Context(), g)
	if err != nil || len(disks) != 2 {
		t.Fatalf("%+v, %v", disks, err)
	}
	// Random bytes are no filesystem.
	if r := disks[0]; r.Disk != api.RootDisk || r.Error != "" || r.Parts[0].Filesystem != nil || r.Parts[0].Error != "" {
		t.Errorf("%+v", r)
	}
	if d := disks[1]; d.Disk != "data" || d.Parts[0].Filesystem == nil || d.Allocated < 50*vps.MiB || d.Allocated > 65*vps.MiB || d.Size != 64*vps.MiB {
		t.Errorf("%+v", d)
	}
	samples, err := b.DiskHistory(t.Context(), "alice", time.Time{})
	if err != nil || len(samples) == 0 || samples[0].Disk != "data" {
		t.Errorf("%+v, %v", samples, err)
	}
	forecasts, err := b.DiskForecast(t.Context(), "")
	if err != nil || len(forecasts) != 1 || !strings.HasPrefix(forecasts[0].Note, "not enough history") || forecasts[0].Disk != "data" {
		t.Errorf("%+v, %v", forecasts, err)
	}
	if _, err := b.DiskHistory(t.Context(), "nobody", time.Time{}); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("nobody: %v", err)
	}
}
