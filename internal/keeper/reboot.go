//go:build linux

package keeper

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// A guest's kernel reboots by executing its own argv[0] (main() in
// arch/um/os-Linux/main.c). Everything that it had open stays open then: its
// tap, which it cannot open a second time, and the file that was its memory,
// which stays allocated; and helpers of the old life may still hold the locks
// of its disks. So argv[0] leads to this program, which clears that away and
// executes the kernel.

const (
	// rebootName is our program in the guest's working folder; it is what ps
	// shows.
	rebootName = "linux"
	// kernelVariable names the kernel in the guest's environment.
	kernelVariable = "SUBLET_GUEST_KERNEL"
)

// Rebooting tells whether this process is what a guest's kernel executed to
// reboot. Programs that lead to Main ask this before anything else, and call
// Reboot.
func Rebooting() bool { return os.Getenv(kernelVariable) != "" }

// Reboot ends what is left of the guest's last life and executes its kernel
// anew. It returns only with an error.
func Reboot() error {
	if err := endOthers(); err != nil {
		return err
	}
	// This runtime catches all signals, and the next execve would make that their
	// default action. SIGXFSZ the guest is to ignore: see limits. SIGIO the kernel
	// had ignored before it came here (os_set_ioignore() in
	// arch/um/os-Linux/irq.c), because the console still sends it; by default it
	// would end the new kernel before that has a handler.
	signal.Ignore(syscall.SIGXFSZ, syscall.SIGIO)
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close what the guest had open: %w", err)
	}
	kernel := os.Getenv(kernelVariable)
	if err := unix.Exec(kernel, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("execute the guest's kernel %s: %w", kernel, err)
	}
	return nil
}

// endOthers kills every process of the guest's pid namespace but this one and
// the anchor, which belongs to root.
func endOthers() error {
	// kill(2) with -1 is a mighty word. It is said only by a user that is not
	// root, in a pid namespace that its parent, the keeper, is not in: there
	// nobody but the guest's own helpers hears it (pid_namespaces(7)).
	if os.Getuid() == 0 || os.Getppid() != 0 {
		return nil
	}
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the guest's helpers: %w", err)
	}
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(-1, &ws, unix.WALL, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
	}
}
