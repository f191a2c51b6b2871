//go:build linux

package uml

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sublet/internal/guest"
	"sublet/internal/guest/guesttest"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// TestCrowd has a guest that uses all that it may have at once: it starts
// processes until the host refuses one more, and then eats its memory. Both
// are its own business: the first is an error of fork inside, the second ends
// in the guest's kernel killing who eats, and the host's kernel kills nobody.
func TestCrowd(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	// Room for more of them than it may have, in the guest's own kernel too.
	m.Memory, m.Resources.Processes = 192*vps.MiB, 500
	d, in := b.booted(t, m)
	s := guesttest.Join(t, d, in, guest.ConsoleOptions{Write: true, NoReplay: true})
	s.Type(t, "i=0; while [ $i -lt 1000 ]; do busybox sleep 100000 & i=$((i+1)); done\n")
	s.Until(t, "can't fork")
	bounds := boundsOf(t, m)
	// Not the number of processes: a child of the kernel's own may have ended
	// since, such as the one that writes to its terminal.
	if bounds.event(t, "max", "pids", "pids.events") == 0 {
		t.Error("it was not the limit of the host that refused")
	}
	// Room for some of them to eat, one after the other.
	s.Type(t, "kill %1 %2 %3 %4 %5 %6 %7 %8; wait %1 %2 %3 %4 %5 %6 %7 %8; echo some''-gone\n")
	s.Until(t, "some-gone")
	for range 3 {
		// Who ended in the guest ends on the host a little later.
		for deadline := time.Now().Add(hang.After); bounds.count(t, "pids", "pids.current") > int64(m.Resources.Processes)-4; {
			if time.Now().After(deadline) {
				t.Fatal("the host still counts who ended")
			}
			<-time.After(10 * time.Millisecond)
		}
		s.Type(t, "busybox tail /dev/zero; echo ate''-$?\n")
		s.Until(t, "Out of memory: Killed process")
		s.Until(t, "ate-137")
	}
	if usage := vps.Bytes(bounds.count(t, "memory", "memory.usage_in_bytes", "memory.current")); usage >= bounds.Memory {
		t.Errorf("its processes take %s, which is all of the %s that they may", usage, bounds.Memory)
	}
	if n := bounds.event(t, "oom_kill", "memory", "memory.oom_control", "memory.events"); n != 0 {
		t.Errorf("the host's kernel killed %d of the guest's processes", n)
	}
	s.Type(t, "kill $(jobs -p); wait; echo all''-gone\n")
	s.Until(t, "all-gone")
	if _, err := d.Inspect(t.Context(), in); err != nil {
		t.Errorf("the guest does not run any more: %v", err)
	}
}

// bounds are the control groups of a guest, as its keeper wrote them down.
type bounds struct {
	Group struct {
		V2 string            `json:"v2"`
		V1 map[string]string `json:"v1"`
	} `json:"group"`
	Memory vps.Bytes `json:"memory"`
}

func boundsOf(t *testing.T, m vps.Machine) *bounds {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.RunDir, "cgroups.json"))
	if err != nil {
		t.Fatal(err)
	}
	g := &bounds{}
	if err := json.Unmarshal(text, g); err != nil {
		t.Fatal(err)
	}
	return g
}

// read returns a file of the group of a controller: in version 1 the first
// that is named, in version 2 the last.
func (g *bounds) read(t *testing.T, controller string, names ...string) string {
	t.Helper()
	dir, name := g.Group.V1[controller], names[0]
	if dir == "" {
		dir, name = g.Group.V2, names[len(names)-1]
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (g *bounds) count(t *testing.T, controller string, names ...string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(g.read(t, controller, names...), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// event returns a counter of a file that holds one in each line.
func (g *bounds) event(t *testing.T, event, controller string, names ...string) int {
	t.Helper()
	for line := range strings.Lines(g.read(t, controller, names...)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), event+" "); ok {
			count, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
	}
	t.Fatalf("the group does not tell its %s", event)
	return 0
}
