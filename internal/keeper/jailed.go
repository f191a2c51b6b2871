//go:build linux

package keeper

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sublet/internal/keeper/jail" //nolint:depguard // a part of this package
)

// jailFlag makes Main the process that turns itself into the guest.
const jailFlag = "--jail"

// Descriptors of that process behind the standard ones: what to do, and the
// place for the reason why it could not.
const (
	orderFD = 3 + iota
	reasonFD
)

// jailName is the empty folder in the run folder that the jail is built on.
const jailName = "root"

// startJailed starts a process of this program that shuts itself in and
// becomes the guest, with console as its standard streams. It returns when the
// guest's program runs, or with the reason why it does not.
func startJailed(c *Config, a *anchor, console *os.File) (*exec.Cmd, error) {
	order, err := jailConfig(c)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(order.Root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	orders, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = orders.Close(), tell.Close() }()
	hear, reasons, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = hear.Close(), reasons.Close() }()

	args := append(append([]string(nil), c.Command[1:]...), jailFlag)
	// Not tied to a context: the guest's life is nobody's but its own.
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", args...)
	cmd.Args[0] = c.Command[0]
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = console, console, console
	cmd.ExtraFiles = []*os.File{orders, reasons} // orderFD, reasonFD
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// A session, but no controlling terminal: no key on the console
		// becomes a signal, and the guest's own window watcher may take the
		// terminal to hear of new sizes.
		Setsid:     true,
		Cloneflags: namespaces(c),
	}
	// The thread is changed for good and thrown away with its goroutine.
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(a.ns.Fd()), unix.CLONE_NEWPID); err != nil {
			started <- fmt.Errorf("enter the guest's pid namespace: %w", err)
			return
		}
		started <- cmd.Start()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the guest's process in namespaces of its own; this host may not allow them: %w", err)
	}
	_, _ = orders.Close(), reasons.Close()
	err = json.NewEncoder(tell).Encode(order)
	_ = tell.Close()
	// Executing the guest closes the other end; words that come before say why
	// that was not to be.
	const enough = 4 << 10
	reason, _ := io.ReadAll(io.LimitReader(hear, enough))
	if len(reason) > 0 {
		err = errors.New(strings.TrimSpace(string(reason)))
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return cmd, nil
}

// namespaces are those that the guest's process starts in. It keeps the host's
// network only to open its tap there.
func namespaces(c *Config) uintptr {
	if c.Relay != "" {
		return jail.Namespaces | unix.CLONE_NEWNET
	}
	return jail.Namespaces
}

// jailMain is the process that startJailed starts.
func jailMain() error {
	// Ignoring is inherited through execve; this runtime has caught it.
	signal.Ignore(syscall.SIGXFSZ)
	unix.CloseOnExec(orderFD)
	unix.CloseOnExec(reasonFD)
	reason := os.NewFile(reasonFD, "reason")
	err := jail.Enter(os.NewFile(orderFD, "order"))
	_, _ = fmt.Fprintln(reason, err)
	return err
}

// jailConfig says what the guest is started as: its program with its
// libraries, its files, and a program of ours that reboots it.
func jailConfig(c *Config) (jail.Config, error) {
	libraries, err := librariesOf(c.Argv[0])
	if err != nil {
		return jail.Config{}, err
	}
	reboot := filepath.Join(c.RunDir, rebootName)
	files, devices, err := devicesAmong(c.Files, true)
	if err != nil {
		return jail.Config{}, err
	}
	disks, more, err := devicesAmong(c.Disks, false)
	if err != nil {
		return jail.Config{}, err
	}
	if c.Relay != "" {
		files = append(files, filepath.Join(c.RunDir, CardSocket))
	}
	return jail.Config{
		Root: filepath.Join(c.RunDir, jailName), WorkDir: c.RunDir, OwnDirs: c.OwnDirs,
		Files: slices.Concat([]string{c.Argv[0]}, libraries, files), Writable: disks, Devices: append(devices, more...),
		Links:     map[string]string{reboot: c.Command[0]},
		Connects:  c.Relay != "",
		MemoryDir: MemoryDir, MemorySize: c.Memory, Cgroups: c.Cgroups, UID: c.UID,
		Program: c.Argv[0], Argv: append([]string{reboot}, c.Argv[1:]...),
		Env: append(slices.Clone(c.Env), kernelVariable+"="+c.Argv[0]),
	}, nil
}

// devicesAmong tells files from block devices.
func devicesAmong(paths []string, readOnly bool) (files []string, devices []jail.Device, err error) {
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return nil, nil, fmt.Errorf("look at %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFBLK {
			files = append(files, path)
			continue
		}
		devices = append(devices, jail.Device{Path: path, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), ReadOnly: readOnly})
	}
	return files, devices, nil
}

// GuestRoot is the way to the root filesystem that only a guest's process
// sees. The guest may have put anything there: see mconsole.Open.
func GuestRoot(pid int) string { return filepath.Join("/proc", itoa(pid), "root") }

// librariesOf returns the dynamic loader of a program and the libraries that
// it would load, as the loader itself lists them; none for a static program.
func librariesOf(program string) ([]string, error) {
	f, err := elf.Open(program)
	if _, other := errors.AsType[*elf.FormatError](err); other {
		return nil, nil // executing it will tell what it is
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", program, err)
	}
	defer func() { _ = f.Close() }()
	i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if i < 0 {
		return nil, nil
	}
	const longest = 4096 // PATH_MAX
	name, err := io.ReadAll(io.LimitReader(f.Progs[i].Open(), longest))
	if err != nil {
		return nil, fmt.Errorf("find the loader of %s: %w", program, err)
	}
	loader := strings.TrimRight(string(name), "\x00")
	// glibc's and musl's loaders both list without running anything of the
	// program (ld.so(8)).
	cmd := exec.CommandContext(context.Background(), loader, "--list", program)
	cmd.Env = []string{"LC_ALL=C"}
	listing, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s with %s: %w", program, loader, err)
	}
	return append(parseLibraries(string(listing)), loader), nil
}

// parseLibraries reads lines such as "libc.so.6 => /lib/libc.so.6 (0x7f…)".
func parseLibraries(listing string) []string {
	var paths []string
	for lines := bufio.NewScanner(strings.NewReader(listing)); lines.Scan(); {
		_, found, _ := strings.Cut(lines.Text(), "=>")
		if path, _, _ := strings.Cut(strings.TrimSpace(found), " ("); filepath.IsAbs(path) {
			paths = append(paths, filepath.Clean(path))
		}
	}
	return paths
}
