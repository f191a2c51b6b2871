//go:build linux

package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A guest's kernel reboots by executing its own argv[0] (main() in
// arch/um/os-Linux/main.c). Everything that it had open stays open then: its
// tap, which it cannot open a second time, and the file that was its memory,
// which stays allocated; and helpers of the old life may still hold the locks
// of its disks. So argv[0] is a link to this program, which clears that away
// and executes the kernel.

const (
	// rebootName is the link in the run folder; it is what ps shows.
	rebootName = "linux"
	// kernelVariable names the kernel in the guest's environment.
	kernelVariable = "SUBLET_GUEST_KERNEL"
	// programFD is the first descriptor behind the standard ones.
	programFD = 3
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
	if err := unix.CloseRange(programFD+1, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
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
	// root, inside of a namespace, where nobody but the guest's own helpers
	// hears it.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("look at this process: %w", err)
	}
	if os.Getuid() == 0 || !inNamespace(status) {
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

// inNamespace reads the line NSpid of proc_pid_status(5): the process's number
// in each pid namespace that it is part of, from the one that /proc shows.
func inNamespace(status []byte) bool {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			return len(strings.Fields(string(rest))) > 1
		}
	}
	return false
}

// linkReboot makes the link that the guest's kernel executes to reboot, and
// returns it with the program that the guest has to inherit as programFD: the
// link leads there, because the guest's uid need not reach the program by its
// path.
func linkReboot(c *Config) (link string, program *os.File, err error) {
	link = filepath.Join(c.RunDir, rebootName)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", programFD), link); err != nil {
		return "", nil, err
	}
	program, err = os.OpenFile(c.Command[0], unix.O_PATH, 0)
	return link, program, err
}
