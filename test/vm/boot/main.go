//go:build linux

// Command boot is the first process of the machine that package vm makes: it
// loads modules, mounts control groups of version 2, runs the program /test,
// says how it ended, and switches the machine off.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Println("boot:", err)
	}
	fmt.Printf("\nboot: the test ended with %d\n", code)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("boot:", err)
	}
	select {}
}

func run() (code int, err error) {
	const failed = 255
	if err := prepare(); err != nil {
		return failed, err
	}
	cmd := exec.Command("/test", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	cmd.Env = []string{"HOME=/", "PATH=/", "TMPDIR=/tmp"}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "CGROUP_") || strings.HasPrefix(e, "DISK_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return cmd.ProcessState.ExitCode(), err
}

func prepare() error {
	if err := os.MkdirAll("/run/lock", 0o755); err != nil { // of lvm(8)
		return err
	}
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	list, err := os.Open("/modules/order")
	if err != nil {
		return err
	}
	defer list.Close() //nolint:errcheck // only read from
	for lines := bufio.NewScanner(list); lines.Scan(); {
		if err := load(filepath.Join("/modules", lines.Text())); err != nil {
			return fmt.Errorf("load %s: %w", lines.Text(), err)
		}
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
