//go:build linux

package keeper

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestHardLimit checks what a guest's processes may take of the host.
func TestHardLimit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		memory    vps.Bytes
		processes int
		host      vps.Bytes
		want      vps.Bytes
	}{
		"the usual":                {512 * vps.MiB, 0, 64 * vps.GiB, (512 + 64 + 64 + 640) * vps.MiB},
		"few processes":            {512 * vps.MiB, 1024, 64 * vps.GiB, (512 + 64 + 64 + 160) * vps.MiB},
		"no room for as many":      {128 * vps.MiB, 0, 64 * vps.GiB, (128 + 64 + 16 + 256) * vps.MiB},
		"the host keeps an eighth": {512 * vps.MiB, 0, vps.GiB, 896 * vps.MiB},
		"more than the host has":   {vps.GiB, 0, vps.GiB, (1024 + 64 + 128 + 20) * vps.MiB},
	} {
		if got := hardLimit(test.memory, test.processes, test.host); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if m := hostMemory(); m < vps.GiB/4 || m > 1024*vps.GiB*1024 {
		t.Errorf("this host has %s of memory", m)
	}
}

// TestMoreProcesses raises the number of processes of a guest that runs: they
// need memory of the host, which is not taken back from it alive.
func TestMoreProcesses(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `exec sleep 1000`)
	c.Memory, c.Resources.Processes = 256*vps.MiB, 200
	in := launch(t, c)
	limit := func() vps.Bytes {
		t.Helper()
		g, err := readGroups(c.RunDir)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(g.Group.V2, "memory.max")
		if dir := g.Group.V1["memory"]; dir != "" {
			path = filepath.Join(dir, "memory.limit_in_bytes")
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(text)) != strconv.FormatInt(int64(g.Memory), 10) {
			t.Errorf("%s is %s; %s is written down", path, text, g.Memory)
		}
		return g.Memory
	}
	few := limit()
	if err := SetLimits(c.RunDir, vps.Resources{Processes: 400}); err != nil {
		t.Fatal(err)
	}
	if more := limit(); more != few+200*overheadPerProcess {
		t.Errorf("the limit went from %s to %s", few, more)
	}
	if err := SetLimits(c.RunDir, vps.Resources{Processes: 200}); err != nil {
		t.Fatal(err)
	}
	if again := limit(); again != few+200*overheadPerProcess {
		t.Errorf("the limit went back to %s", again)
	}
	if err := Kill(t.Context(), in); err != nil {
		t.Error(err)
	}
}

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
