package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func all(string) bool { return true }

// TestDiskSamples keeps a sample every ten minutes for some time.
func TestDiskSamples(t *testing.T) {
	t.Parallel()
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := start
	for i := range 40 * 24 * 2 { // 40 days, every half hour
		end = start.Add(time.Duration(i) * 30 * time.Minute)
		s := vps.DiskSample{GuestID: "a", Disk: "root", At: end, Used: vps.Bytes(i), Available: 1000, Inodes: 10, FreeInodes: 5, Allocated: 7}
		other := s
		other.Part = 1
		if err := db.AddDiskSamples(t.Context(), []vps.DiskSample{s, other}, all); err != nil {
			t.Fatal(err)
		}
	}
	got, err := db.DiskSamples(t.Context(), "a", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	count := map[int]int{}
	last := map[int]time.Time{}
	for _, s := range got {
		if !s.At.After(last[s.Part]) {
			t.Fatalf("%s follows %s", s.At, last[s.Part])
		}
		count[s.Part]++
		last[s.Part] = s.At
	}
	// 25 days, of each the last half hour, and the hours of 15 days.
	if count[0] < 15*24+24 || count[0] > 16*24+25 || count[0] != count[1] || !last[0].Equal(end) {
		t.Errorf("%v samples until %v", count, last)
	}
	if diff := cmp.Diff(vps.DiskSample{GuestID: "a", Disk: "root", At: start.Add(23*time.Hour + 30*time.Minute), Used: 47, Available: 1000, Inodes: 10, FreeInodes: 5, Allocated: 7}, got[0]); diff != "" {
		t.Error(diff)
	}
	recent, err := db.DiskSamples(t.Context(), "a", end.Add(-24*time.Hour))
	if err != nil || len(recent) != 2*25 {
		t.Errorf("%d samples of a day: %v", len(recent), err)
	}
	if err := db.AddDiskSamples(t.Context(), nil, func(id string) bool { return id != "a" }); err != nil {
		t.Fatal(err)
	}
	if got, err := db.DiskSamples(t.Context(), "a", time.Time{}); err != nil || len(got) != 0 {
		t.Errorf("%d samples of a guest that is gone: %v", len(got), err)
	}
}

// TestDiskSamplesSize measures what docs/disks.md says that history takes.
func TestDiskSamplesSize(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const guests = 20
	// A year of days, and the last of it by the hour: what is left of samples
	// at every hour of a year.
	for i := range 365 + 15*24 {
		at := start.Add(time.Duration(i) * 24 * time.Hour)
		if i >= 365 {
			at = start.Add(350*24*time.Hour + time.Duration(i-365)*time.Hour)
		}
		var samples []vps.DiskSample
		for g := range guests {
			samples = append(samples, vps.DiskSample{
				GuestID: fmt.Sprintf("abcdefghijk%d", g), Disk: "root", At: at, Used: 5<<30 + vps.Bytes(i)<<20, Available: 3 << 30, Allocated: 5 << 30, Inodes: 524288, FreeInodes: 400000,
			})
		}
		if err := db.AddDiskSamples(t.Context(), samples, all); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	perGuest := info.Size() / guests
	t.Logf("%d bytes for each guest and year", perGuest)
	if perGuest > 128<<10 {
		t.Errorf("a guest's year takes %d bytes", perGuest)
	}
}

func TestDiskLevels(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := DiskLevel{"a", "root", 0, "blocks", 80}
	if err := db.SetDiskLevel(t.Context(), l, &vps.Event{Guest: "alice", Kind: vps.EventFilling, Message: "80"}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if got, err := db.DiskLevels(t.Context()); err != nil || len(got) != 1 || got[0] != l {
		t.Errorf("%v, %v", got, err)
	}
	if events, err := db.Events(t.Context(), EventQuery{}); err != nil || len(events) != 1 || events[0].Message != "80" {
		t.Errorf("%v, %v", events, err)
	}
	l.Level = 0
	if err := db.SetDiskLevel(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := db.DiskLevels(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
