//go:build linux

package vnstat

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// What a real vnStat counts of a link and writes is read as the kernel's own
// counters have it.
func TestRealVnStat(t *testing.T) {
	host := nstest.New(t)
	guest := host.Peer()
	host.Veth("sl-alice", guest, "eth0")
	host.Exec("ip", "addr", "add", "10.9.0.1/24", "dev", "sl-alice")
	guest.Exec("ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")

	dir := t.TempDir()
	config := filepath.Join(dir, "vnstat.conf")
	text := "DatabaseDir \"" + dir + "\"\nPidFile \"" + dir + "/pid\"\nUseLogging 0\nSaveInterval 1\nPollInterval 2\nUpdateInterval 1\nBandwidthDetection 0\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// It writes what it counted when it ends.
	run := func() {
		ctx, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer stop()
		daemon := exec.CommandContext(ctx, "vnstatd", "--nodaemon", "--config", config)
		daemon.Cancel = func() error { return daemon.Process.Signal(os.Interrupt) }
		if out, err := daemon.CombinedOutput(); ctx.Err() == nil {
			t.Fatalf("vnstatd ended: %v\n%s", err, out)
		}
	}
	history := func() (*File, error) {
		run()
		out, err := exec.CommandContext(t.Context(), "vnstat", "--config", config, "--json").Output()
		if err != nil {
			return nil, err
		}
		return Parse(strings.NewReader(string(out)), time.Local, time.Now())
	}
	await(t, "vnStat knows the link", func() bool {
		file, err := history()
		return err == nil && find(file, "sl-alice") != nil
	})
	before := counters(t, host)
	guest.Exec("ping", "-q", "-c", "20", "-i", "0.01", "-s", "1000", "10.9.0.1")
	guest.Exec("ping", "-q", "-c", "5", "-i", "0.01", "-s", "100", "10.9.0.1")
	after := counters(t, host)
	if after[0]-before[0] < 20*1042+5*142 {
		t.Fatalf("the link received %d bytes only", after[0]-before[0])
	}
	// What the link had before vnStat looked first is not in its history.
	var month vps.TrafficCount
	await(t, "vnStat has written what the guest sent", func() bool {
		file, err := history()
		if err != nil {
			return false
		}
		for _, r := range find(file, "sl-alice").Rows {
			if r.Step == vps.StepMonth {
				month = r.Counts(false)
			}
		}
		return month.OutBytes >= after[0]-before[0]
	})
	if last := counters(t, host); month.OutBytes > last[0] || month.InBytes > last[1] {
		t.Errorf("vnStat has %+v, and the link %v", month, last)
	}
}

func find(file *File, name string) *Interface {
	for i := range file.Interfaces {
		if file.Interfaces[i].Name == name {
			return &file.Interfaces[i]
		}
	}
	return nil
}

// counters are what the guest's link received and sent, in bytes.
func counters(t *testing.T, host *nstest.NS) [2]int64 {
	t.Helper()
	var n [2]int64
	for i, name := range []string{"rx_bytes", "tx_bytes"} {
		text, err := host.Try("cat", "/sys/class/net/sl-alice/statistics/"+name)
		if err != nil {
			t.Fatal(text, err)
		}
		if n[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(hang.After)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("in vain: %s", what)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
