//go:build linux

package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is the keeper too, by its first argument. The tests run in
// namespaces of their own, so that what a failed test leaves behind ends with
// them.
const (
	verbKeeper = "keeper"
	insideMark = "SUBLET_TEST_INSIDE"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case Rebooting():
		err = Reboot()
	case len(os.Args) > 1 && os.Args[1] == verbKeeper:
		err = Main(context.Background(), os.Args[2:], os.Stderr)
	case os.Getenv(insideMark) == "":
		os.Exit(goInside())
	default:
		if err = unix.Mount("proc", "/proc", "proc", 0, ""); err == nil {
			os.Exit(m.Run())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func goInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideMark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, ee.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the tests cannot have namespaces of their own (root is needed):", err)
		return 1
	}
	return 0
}
