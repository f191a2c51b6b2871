package api

import (
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

func TestDiskUsage(t *testing.T) {
	t.Parallel()
	s := start(t)
	disks, err := s.DiskUsage(t.Context(), "")
	check(t, err)
	if len(disks) != 2 || disks[0].Parts[0].Filesystem.Free != 60 || disks[1].Error != "it is gone" {
		t.Errorf("%+v", disks)
	}
	if _, body := s.raw(t, "GET", "/v1/disk-usage?guest=alice", "", ""); strings.Contains(body, "null") {
		t.Errorf("a null in %s", body)
	}
	for _, name := range []string{"nobody", "No/name"} {
		want := map[string]vps.Code{"nobody": vps.CodeNotFound, "No/name": vps.CodeInvalid}[name]
		if _, err := s.DiskUsage(t.Context(), name); vps.ErrorCode(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	forecasts, err := s.DiskForecast(t.Context(), "-x")
	if vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("%+v, %v", forecasts, err)
	}
	forecasts, err = s.DiskForecast(t.Context(), "")
	check(t, err)
	if len(forecasts) != 1 || forecasts[0].Growth != -5 {
		t.Errorf("%+v", forecasts)
	}
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	samples, err := s.DiskHistory(t.Context(), "alice", since)
	check(t, err)
	if len(samples) != 1 || !samples[0].At.Equal(since) || samples[0].Disk != "alice" {
		t.Errorf("%+v", samples)
	}
}
