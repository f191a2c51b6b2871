//go:build linux

package inside

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"sublet/internal/tree"
)

// check runs the program that knows this kind of filesystem.
func (w *worker) check(ctx context.Context, device, kind string) (Verdict, error) {
	if w.tools == "" {
		return "", fail(Bad, "the appliance has no rescue system with the programs that check filesystems")
	}
	// What a crash left to be replayed is no damage. A filesystem that cannot
	// be mounted is what the programs are for.
	if err := w.mounted(device, kind, 0, func(*tree.Root) error { return nil }); err != nil {
		w.say("it could not be mounted to replay its journal: %v", err)
	}
	switch kind {
	case "xfs":
		return w.checkXFS(ctx, device)
	case "btrfs":
		return w.checkBtrfs(ctx, device)
	}
	return w.checkExt(ctx, device)
}

// checkExt runs e2fsck, whose exit code is a sum: 1 and 2 for errors that were
// corrected, 4 for those that were not, 8 and more for failures of its own
// (e2fsck(8)).
func (w *worker) checkExt(ctx context.Context, device string) (Verdict, error) {
	mode := "-n"
	if w.job.Repair {
		mode = "-y"
	}
	code, err := w.tool(ctx, "/sbin/e2fsck", "-f", mode, device)
	const uncorrected, failed = 4, 8
	switch {
	case err != nil:
		return "", err
	case code >= failed:
		return Damaged, fail(Unsound, "e2fsck gave up with code %d", code)
	case code&uncorrected != 0:
		return Damaged, nil
	case code != 0:
		return Mended, nil
	}
	return Clean, nil
}

// checkXFS runs xfs_repair, which with -n ends with 1 when there is damage, and
// with -e with 4 when there was (xfs_repair(8)). It does not touch a filesystem
// whose log has not been replayed: that is 2.
func (w *worker) checkXFS(ctx context.Context, device string) (Verdict, error) {
	mode := "-n"
	if w.job.Repair {
		mode = "-e"
	}
	code, err := w.tool(ctx, "/sbin/xfs_repair", mode, device)
	switch {
	case err != nil:
		return "", err
	case code == 0:
		return Clean, nil
	case code == 1 && !w.job.Repair:
		return Damaged, nil
	case code == 4 && w.job.Repair:
		return Mended, nil
	case code == 2:
		return Damaged, fail(Unsound, "xfs_repair does not touch this filesystem while its log cannot be replayed; copy out what can be read, and then discard the log in the rescue system with `xfs_repair -L`")
	}
	return Damaged, fail(Unsound, "xfs_repair gave up with code %d", code)
}

// checkBtrfs runs btrfs check, and its repair only where that is needed: its
// manual warns of it.
func (w *worker) checkBtrfs(ctx context.Context, device string) (Verdict, error) {
	look := func() (sound bool, err error) {
		code, err := w.tool(ctx, "/bin/btrfs", "check", "--readonly", device)
		return code == 0, err
	}
	sound, err := look()
	switch {
	case err != nil:
		return "", err
	case sound:
		return Clean, nil
	case !w.job.Repair:
		return Damaged, nil
	}
	// --force leaves out a pause of ten seconds for second thoughts.
	if _, err := w.tool(ctx, "/bin/btrfs", "check", "--repair", "--force", device); err != nil {
		return "", err
	}
	sound, err = look()
	switch {
	case err != nil:
		return "", err
	case sound:
		return Mended, nil
	}
	return Damaged, nil
}

// tool runs a program of the rescue system, with that as its root, and
// returns its exit code. What it writes is the job's output.
func (w *worker) tool(ctx context.Context, program string, args ...string) (code int, err error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = w.out, w.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: w.tools}
	w.say("%s", cmd)
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return -1, fmt.Errorf("run %s: %w", program, err)
	}
	return 0, nil
}

func (w *worker) say(format string, args ...any) {
	_, _ = fmt.Fprintf(w.out, "# "+format+"\n", args...) // nobody may read it any more
}
