//go:build linux

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"sublet/internal/nstest"
)

// The test binary is the edge too, and daemons that are killed, by its first
// argument. The tests run in namespaces of their own, so that they have all
// ports, and what a failed test leaves behind ends with them.
const (
	verbEdge   = "edge"
	verbManage = "manage"
	insideMark = "SUBLET_TEST_INSIDE"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == verbEdge:
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = Main(ctx, os.Args[2:], os.Stderr, newTestServer)
	case len(os.Args) > 1 && os.Args[1] == verbManage:
		err = manage(os.Args[2])
	case os.Getenv(insideMark) == "":
		os.Exit(nstest.RunInside(insideMark + "=1"))
	default:
		if err = nstest.MountProc(); err == nil {
			err = exec.Command("ip", "link", "set", "lo", "up").Run()
		}
		if err == nil {
			os.Exit(m.Run())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// testDaemon is what a daemon that manage is has to know.
type testDaemon struct {
	Options Options
	Wish    Wish
	// Kill is who is killed when it has come to the step At: the daemon itself, the
	// older of the edges, or the newer one.
	Kill, At string
}

// manage is a daemon as far as the edge goes, until SIGTERM. It says "ready"
// when all is as wished.
func manage(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var d testDaemon
	if err := json.Unmarshal(text, &d); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d.Options.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	var m *Manager
	d.Options.step = func(name string) {
		if name != d.At || len(m.edges) == 0 {
			return
		}
		victim := map[string]int{"daemon": os.Getpid(), "old": m.edges[0].pid, "new": m.edges[len(m.edges)-1].pid}[d.Kill]
		d.At = ""
		_ = syscall.Kill(victim, syscall.SIGKILL)
	}
	m = New(d.Options)
	if err := m.Set(d.Wish); err != nil {
		return err
	}
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if s := m.State(); s.Build == d.Options.Build && len(s.Ports) == len(d.Wish.Config.Ports) && !s.Configured.IsZero() {
				_, _ = os.Stdout.WriteString("ready\n")
				return
			}
		}
	}()
	return m.Run(ctx)
}
