package guestinit

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStartWith starts a program with few capabilities, and then another one,
// which has to have what this process has.
func TestStartWith(t *testing.T) {
	t.Parallel()
	own := boundOf(t, func(cmd *exec.Cmd) error { return cmd.Start() })
	// CAP_NET_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE are bits 12, 18 and 19.
	const want = "00000000000c1000"
	if got := boundOf(t, func(cmd *exec.Cmd) error { return startWith(cmd, mindCapabilities()) }); got != want {
		t.Errorf("the bounding set is %s; want %s", got, want)
	}
	if got := boundOf(t, func(cmd *exec.Cmd) error { return cmd.Start() }); got != own {
		t.Errorf("afterwards, the bounding set of others is %s; it was %s", got, own)
	}
	if err := startWith(exec.Command("/nowhere"), []uintptr{unix.CAP_NET_ADMIN}); err == nil {
		t.Error("a program that is not there was started")
	}
}

// boundOf returns the bounding set of a program that is started like this.
func boundOf(t *testing.T, start func(*exec.Cmd) error) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), "sed", "-n", `s/^CapBnd:\t//p`, "/proc/self/status")
	cmd.Stdout = &out
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}
