// Package e2e tests the whole of sublet: the real daemon, the real command
// line, real guests with a real Debian, in networks of their own.
package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"sublet/internal/daemon"
	"sublet/internal/plan"
	"sublet/test/lab"
)

// dieVariable makes this test binary be a daemon that kills itself, with
// SIGKILL, at the moment with this number: before and after each step.
const dieVariable = "SUBLET_E2E_DIE_AT"

// versionVariable makes that daemon be of another version.
const versionVariable = "SUBLET_E2E_VERSION"

func TestMain(m *testing.M) {
	if at := os.Getenv(dieVariable); at != "" {
		if err := mortalDaemon(at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func mortalDaemon(at string) error {
	moment, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return err
	}
	var passed atomic.Int64
	die := func(plan.Step) {
		if passed.Add(1) > moment {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if version := os.Getenv(versionVariable); version != "" {
		daemon.Version = version
	}
	return daemon.Run(ctx, daemon.Config{
		StateDir: os.Getenv("SUBLET_STATE_DIR"), RunDir: os.Getenv("SUBLET_RUN_DIR"), Socket: os.Getenv("SUBLET_SOCKET"),
		Init: os.Getenv("SUBLET_INIT"), Self: os.Getenv("SUBLET_E2E_SELF"), BeforeStep: die, AfterStep: die,
	}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// startMortal starts a daemon that dies at a moment.
func startMortal(t *testing.T, h *lab.Host, moment int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := h.Env
	h.Env = append(append([]string{}, env...), dieVariable+"="+strconv.Itoa(moment), "SUBLET_E2E_SELF="+lab.Sublet(t))
	h.StartProgram(self)
	h.Env = env
}
