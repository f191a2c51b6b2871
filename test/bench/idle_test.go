package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sublet/test/lab"
)

const (
	manyGuests = 10
	// idle covers two of the passes that the daemon makes without a reason,
	// each 30 s.
	idle = 60 * time.Second
)

// BenchmarkTenGuests measures what the daemon takes while ten guests run:
// memory, and processor time when nobody asks it anything. What the keepers
// take is told apart: a guest needs its keeper, not the daemon.
func BenchmarkTenGuests(b *testing.B) {
	h := lab.New(b)
	h.UseImage()
	h.Start()
	for i := range manyGuests {
		h.Sublet("create", fmt.Sprintf("guest%d", i), "--memory", "128MiB", "--ssh-key", h.Key+".pub")
	}
	for i := range manyGuests {
		h.Sublet("wait", fmt.Sprintf("guest%d", i), "--for", "ssh", "--timeout", "5m")
	}
	h.Eventually("it is settled", h.Settled)
	busy := &figure{name: "daemon, resident, just after 10 creates", unit: "MiB"}
	busy.add(memory(b, h.Daemon(), "status", "VmRSS")[0])
	keepers := keepersOf(b, h)

	rss := &figure{name: "daemon, resident (VmRSS), 10 guests", unit: "MiB", metric: "rss-MiB", atMost: 40}
	own := &figure{name: "daemon, resident without its program's file", unit: "MiB", metric: "anon-MiB"}
	peak := &figure{name: "daemon, most ever (VmHWM)", unit: "MiB"}
	cpu := &figure{name: "daemon, processor when idle for 60 s", unit: "% core", metric: "idle-%", atMost: 0.5}
	keeperMemory := &figure{name: "one keeper and its anchor, proportional (Pss)", unit: "MiB", metric: "keeper-pss-MiB"}
	keeperCPU := &figure{name: "all 10 keepers, processor when idle", unit: "% core"}
	for b.Loop() {
		daemonBefore, keepersBefore, at := cpuTime(b, h.Daemon()), sum(b, keepers), time.Now()
		<-time.After(idle)
		took := time.Since(at)
		cpu.add(percent(cpuTime(b, h.Daemon())-daemonBefore, took))
		keeperCPU.add(percent(sum(b, keepers)-keepersBefore, took))
		m := memory(b, h.Daemon(), "status", "VmRSS", "RssAnon", "VmHWM")
		rss.add(m[0])
		own.add(m[1])
		peak.add(m[2])
		total := 0.0
		for _, pid := range keepers {
			total += memory(b, pid, "smaps_rollup", "Pss")[0]
		}
		keeperMemory.add(total / manyGuests)
	}
	report(b, rss, busy, own, peak, cpu, keeperMemory, keeperCPU)
}

func percent(used, of time.Duration) float64 { return 100 * used.Seconds() / of.Seconds() }

func sum(b *testing.B, pids []int) time.Duration {
	b.Helper()
	var total time.Duration
	for _, pid := range pids {
		total += cpuTime(b, pid)
	}
	return total
}

// keepersOf finds the processes that keep the guests: keepers and their
// anchors.
func keepersOf(b *testing.B, h *lab.Host) []int {
	b.Helper()
	records, err := filepath.Glob(filepath.Join(h.RunDir, "guests", "*", "instance.json"))
	check(b, err)
	var pids []int
	for _, path := range records {
		text, err := os.ReadFile(path)
		check(b, err)
		var r struct {
			Keeper int `json:"keeper"`
			Anchor struct {
				PID int `json:"pid"`
			} `json:"anchor"`
		}
		check(b, json.Unmarshal(text, &r))
		if r.Keeper == 0 || r.Anchor.PID == 0 {
			b.Fatalf("%s names no keeper or no anchor: %s", path, text)
		}
		pids = append(pids, r.Keeper, r.Anchor.PID)
	}
	if len(pids) != 2*manyGuests {
		b.Fatalf("there are %d records", len(records))
	}
	return pids
}
