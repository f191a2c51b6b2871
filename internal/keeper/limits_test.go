//go:build linux

package keeper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestOutOfMemory has a guest that eats without end.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `tail /dev/zero; kill -9 $$`)
	in := launch(t, c)
	e := wait(t, in)
	if e.Reason != vps.ExitCrash || !strings.Contains(e.Detail, "out of memory") {
		t.Errorf("ended as %+v", e)
	}
	if g, err := readGroups(c.RunDir); err != nil {
		t.Error(err)
	} else {
		for _, dir := range g.Group.Folders() {
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
	}
}

// TestForkBomb has a guest that forks without end.
func TestForkBomb(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `i=0; while [ $i -lt 500 ]; do sleep 1000 & i=$((i+1)); done; echo all of them`)
	c.Resources.Processes = 64
	in := launch(t, c)
	wait(t, in)
	log, err := os.ReadFile(c.LogPath)
	if err != nil || !strings.Contains(string(log), "Cannot fork") || strings.Contains(string(log), "all of them") {
		t.Errorf("%v\n%s", err, log)
	}
}

// TestQuota bounds the processor time of a guest that runs.
func TestQuota(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `while :; do :; done`)
	in := launch(t, c)
	if r, err := Limits(c.RunDir); err != nil || *r != (vps.Resources{}) {
		t.Errorf("bounds are %+v, %v", r, err)
	}
	want := vps.Resources{CPUQuota: 10, CPUWeight: 50}
	if err := SetLimits(c.RunDir, want); err != nil {
		t.Fatal(err)
	}
	if r, err := Limits(c.RunDir); err != nil || *r != want {
		t.Errorf("bounds are %+v, %v", r, err)
	}
	g, err := readGroups(c.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	dir := g.Group.V1["cpu"]
	if dir == "" {
		dir = g.Group.V2
	}
	err = poll(t.Context(), func() (bool, error) {
		text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		return strings.Contains(string(text), "nr_throttled") && !strings.Contains(string(text), "nr_throttled 0\n"), err
	})
	if err != nil {
		t.Errorf("nothing is held back: %v", err)
	}
	if err := Kill(t.Context(), in); err != nil {
		t.Error(err)
	}
}
