//go:build linux

package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunInside runs the test binary once more, with the same arguments and one more
// variable ("NAME=value") by which it knows that it is inside: in a network, a mount
// and a pid namespace of its own, so that whatever a failed test leaves behind ends
// with it. It returns the exit code that is to be this process's. Inside, MountProc
// comes first.
func RunInside(variable string) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx,gosec // the test binary itself, for as long as this process
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), variable)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
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

// MountProc shows the processes of RunInside's pid namespace in /proc.
func MountProc() error {
	return os.NewSyscallError("mount /proc", unix.Mount("proc", "/proc", "proc", 0, ""))
}
