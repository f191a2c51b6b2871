//go:build linux

package nstest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
)

// VnStat is vnStat with a database of its own, which looks at links of one
// network. It is called from the test's goroutine only.
type VnStat struct {
	t    testing.TB
	host *NS
	conf string
}

// VnStatCount is what vnStat has of a link, in bytes: received by the link, and
// sent by it.
type VnStatCount struct{ Rx, Tx int64 }

// VnStat makes the database, and begins with the links' counters as they are.
func (n *NS) VnStat(links ...string) *VnStat {
	n.t.Helper()
	dir := n.t.TempDir()
	v := &VnStat{t: n.t, host: n, conf: filepath.Join(dir, "vnstat.conf")}
	settings := fmt.Sprintf("DatabaseDir %q\nPidFile %q\nUseLogging 0\nUpdateInterval 2\nPollInterval 2\nSaveInterval 1\nBandwidthDetection 0\nMaxBandwidth 0\nTimeSyncWait 0\n",
		dir, filepath.Join(dir, "pid"))
	if err := os.WriteFile(v.conf, []byte(settings), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.Exec("vnstatd", "--config", v.conf, "--initdb")
	for _, link := range links {
		n.Exec("vnstat", "--config", v.conf, "--add", "-i", link)
	}
	v.Look()
	return v
}

// Version is what vnStat says that it is.
func (v *VnStat) Version() string { return v.host.Exec("vnstat", "--version") }

// Look has vnStat's daemon read the links' counters: it looks every two
// seconds, writes what it knows when it ends, and adds what came while it was
// stopped.
func (v *VnStat) Look() {
	v.t.Helper()
	deadline := time.Now().Add(hang.After)
	for err := v.look(); err != nil; err = v.look() {
		if time.Now().After(deadline) {
			v.t.Fatal(err)
		}
	}
}

// look fails when the daemon was told to end before it was ready for that,
// which a busy machine may need long for.
func (v *VnStat) look() error {
	var cmd *exec.Cmd
	var err error
	v.host.Do(func() {
		// Not killed with the test's context: it is told to end, and writes then.
		cmd = exec.CommandContext(context.WithoutCancel(v.t.Context()), "vnstatd", "--config", v.conf, "--nodaemon", "--noadd")
		err = cmd.Start()
	})
	if err != nil {
		return err
	}
	<-time.After(3 * time.Second)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(hang.After); ; {
		// It forgets a signal that comes while it begins.
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Second):
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
		}
	}
}

// Counts returns what vnStat has of a link: in total, and as the sums of its
// days and of its months.
func (v *VnStat) Counts(link string) (total, days, months VnStatCount) {
	v.t.Helper()
	var report struct {
		Interfaces []struct {
			Traffic struct {
				Total      VnStatCount
				Day, Month []VnStatCount
			}
		}
	}
	if err := json.Unmarshal([]byte(v.host.Exec("vnstat", "--config", v.conf, "--json", "-i", link)), &report); err != nil || len(report.Interfaces) != 1 {
		v.t.Fatalf("%v: %+v", err, report)
	}
	sum := func(steps []VnStatCount) (all VnStatCount) {
		for _, s := range steps {
			all.Rx += s.Rx
			all.Tx += s.Tx
		}
		return all
	}
	traffic := report.Interfaces[0].Traffic
	return traffic.Total, sum(traffic.Day), sum(traffic.Month)
}
