//go:build linux

package kbuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// niceness is how far builds step back behind guests.
const niceness = 10

// command prepares a program of a build: the build's user, no network, nothing
// of the daemon's environment.
func (b *build) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = b.WorkDir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=" + b.WorkDir}
	// With its first process the kernel ends every process of the namespace
	// (pid_namespaces(7)): nothing of a build that was stopped goes on.
	const patience = 10 * time.Second
	cmd.WaitDelay = patience
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: b.UID, Gid: b.UID}
	}
	return cmd
}

// run runs a command to its end. Should this program be killed, the command
// ends too: its death follows that of the thread that started it
// (PR_SET_PDEATHSIG), which is this goroutine's own.
func (b *build) run(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			done <- fmt.Errorf("start %s: %w", cmd.Path, err)
			return
		}
		_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, niceness)
		done <- cmd.Wait()
	}()
	return <-done
}

// own gives a folder to the build's user.
func (b *build) own(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(b.UID), int(b.UID))
}

// tools are the programs that a build runs, and Debian's packages of them.
func tools() []struct{ program, pkg string } {
	return []struct{ program, pkg string }{
		{"make", "make"},
		{"gcc", "gcc"},
		{"ld", "binutils"},
		{"flex", "flex"},
		{"bison", "bison"},
		{"bc", "bc"},
		{"tar", "tar"},
		{"awk", "mawk"},
		{"sed", "sed"},
		{"strip", "binutils"},
	}
}

// headers are parts of the C library that a kernel for User Mode Linux is
// built against: libc6-dev.
const headers = "#include <stdio.h>\n#include <sys/ptrace.h>\n#include <linux/if_tun.h>\n#include <netdb.h>\n"

// checkTools finds everything that a build needs, and names all that is
// missing at once.
func (b *build) checkTools(ctx context.Context) error {
	var missing, packages []string
	add := func(what, pkg string) {
		missing = append(missing, what)
		if !strings.Contains(" "+strings.Join(packages, " ")+" ", " "+pkg+" ") {
			packages = append(packages, pkg)
		}
	}
	for _, t := range tools() {
		if _, err := exec.LookPath(t.program); err != nil {
			add(t.program, t.pkg)
		}
	}
	if gcc, err := exec.LookPath("gcc"); err == nil {
		cmd := b.command(ctx, gcc, "-x", "c", "-fsyntax-only", "-")
		cmd.Stdin = strings.NewReader(headers)
		if err := b.run(cmd); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if _, failed := errors.AsType[*exec.ExitError](err); !failed {
				return fmt.Errorf("try the compiler: %w", err)
			}
			add("the C library's headers", "libc6-dev")
		}
	}
	if len(missing) > 0 {
		return vps.Errorf(vps.CodeNotFound, "a kernel cannot be built on this host without %s; install them with: apt-get install %s",
			strings.Join(missing, ", "), strings.Join(packages, " "))
	}
	return nil
}

// findTool returns the path of a program that every host has.
func findTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", vps.Wrap(vps.CodeNotFound, err, "the program %s is needed to build a kernel; install it", name)
	}
	return path, nil
}
