package guestinit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/probe"
	"sublet/internal/seed"
)

// FatalPrefix begins the one console line that tells why a guest cannot boot.
// The guest powers off behind it.
const FatalPrefix = "sublet: cannot boot: "

const (
	// newRoot is where the root disk is mounted until it becomes /.
	newRoot = "/root"
	// modulesAt is where the modules disk is mounted until it is moved.
	modulesAt = "/modules"
)

// booter carries a boot from the initramfs to the image's init.
type booter struct {
	console io.Writer
	options options
	args    []string
	env     []string
	seed    seed.Seed
	// seeded tells that there is a valid seed.
	seeded bool
	// rootKind is the filesystem of the root disk.
	rootKind string
	tree     *Tree
	// modules tells that the modules disk is mounted at modulesAt.
	modules bool
}

// Boot makes this machine the guest of its seed and executes the image's
// init. It is for process 1 of an initramfs; args and env are what the kernel
// gave that process, and go on to the init. It returns only when the guest
// cannot boot, after it has said why on the console.
func Boot(ctx context.Context, console io.Writer, args, env []string) error {
	b := &booter{console: console, args: args, env: env}
	err := b.boot(ctx)
	// One write, so that the kernel's own lines do not come between.
	_, _ = fmt.Fprintf(console, "%s%v. The guest is switched off now.\n", FatalPrefix, err)
	return err
}

// PowerOff writes what is pending to the disks and switches the guest off. It
// returns only when the kernel refuses.
func PowerOff() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot does not let a fault of ours end process 1, which would be a panic of
// the guest's kernel.
func (b *booter) boot(ctx context.Context) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("a fault in the early-boot program: %v", fault)
		}
	}()
	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	b.options = parseOptions(string(cmdline))
	b.attempt(ctx, step{"take Ctrl-Alt-Del", func(context.Context) error { return takeCtrlAltDel("/proc") }})
	b.attempt(ctx, step{"turn the kernel's hotplug program off", func(context.Context) error { return hotplugOff("/proc") }})
	b.attempt(ctx, step{"quiet the kernel", func(context.Context) error { return quietKernel("/proc") }})
	b.attempt(ctx, step{"read the seed", b.readSeed})
	if b.seeded {
		switch b.seed.Probe {
		case probe.Frames:
			return b.probe(ctx)
		case seed.Appliance:
			return b.appliance(ctx)
		case probe.Kernel:
			return b.examine(ctx)
		}
	}
	if err := b.mountRoot(ctx); err != nil {
		return err
	}
	if b.tree, err = OpenTree(newRoot); err != nil {
		return err
	}
	b.attempt(ctx, step{"mount the kernel's modules", b.mountModules})
	b.attempt(ctx, step{"make device nodes", func(context.Context) error { return makeNodes("/dev") }})
	if b.seeded {
		b.attempt(ctx, step{"link the extra disks", func(context.Context) error { return linkDisks("/dev", b.seed.Disks) }})
		b.attempt(ctx, step{"grow the root filesystem", b.grow})
		b.attempt(ctx, step{"load IPv6", b.loadIPv6})
		b.attempt(ctx, step{"set the network up", func(context.Context) error { return setNetwork("/sys", b.seed) }})
		b.attempt(ctx, step{"mind the network card", func(context.Context) error { return b.mindCard() }})
		b.attempt(ctx, step{"mind the disks", func(context.Context) error { return b.mindDisks() }})
		b.identify(ctx)
	}
	return b.handOver(ctx)
}

// errProbed is how a probe ends that did all that it was asked for.
var errProbed = errors.New("this guest was a probe, which is over")

// probe serves who attacks the host through this guest, in place of the
// image.
func (b *booter) probe(ctx context.Context) error {
	b.attempt(ctx, step{"mount the kernel's modules", b.mountModules})
	b.attempt(ctx, step{"load IPv6", b.loadIPv6})
	if err := setNetwork("/sys", b.seed); err != nil {
		return err
	}
	card, _, err := findCard("/sys", b.seed.MAC)
	if err != nil {
		return err
	}
	// Lines longer than a terminal's own buffer, and no echo.
	if err := makeRaw(os.Stdin); err != nil {
		return err
	}
	if err := probe.ServeFrames(os.Stdin, b.console, card); err != nil {
		return err
	}
	return errProbed
}

// makeRaw makes a terminal hand over what comes as it comes.
func makeRaw(terminal *os.File) error {
	t, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.IEXTEN
	t.Iflag &^= unix.ICRNL | unix.IXON
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(int(terminal.Fd()), unix.TCSETS, t)
}

// attempt does one step that may fail. A failure, or a fault of ours, becomes
// one line on the console.
func (b *booter) attempt(ctx context.Context, s step) {
	defer func() {
		if fault := recover(); fault != nil {
			b.say("could not %s: fault: %v", s.name, fault)
		}
	}()
	if err := s.do(ctx); err != nil {
		b.say("could not %s: %v", s.name, err)
	}
}

func (b *booter) say(format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
	_, _ = fmt.Fprintf(b.console, "sublet: %s\n", line)
}

func mountKernelFilesystems() error {
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", unix.MS_NOSUID},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// takeCtrlAltDel makes Ctrl-Alt-Del a signal to init, and not a reboot at once
// (ctrlaltdel(8)). The host presses it, to ask for a shutdown, only when this
// is so; this program catches the signal by then, and whatever init follows is
// deaf to it until it listens.
func takeCtrlAltDel(procDir string) error {
	return os.WriteFile(procDir+"/sys/kernel/ctrl-alt-del", []byte("0"), 0)
}

// quietKernel makes the kernel write warnings and worse to the console from now
// on, as `quiet` on its command line does from the start
// (CONSOLE_LOGLEVEL_QUIET in include/linux/printk.h). How it came up is there by
// then.
func quietKernel(procDir string) error {
	return os.WriteFile(procDir+"/sys/kernel/printk", []byte("4"), 0)
}

// hotplugOff keeps the kernel from starting a process for every device that
// comes or goes. Debian's kernel for User Mode Linux looks for /sbin/hotplug
// each time (CONFIG_UEVENT_HELPER_PATH), which no image has had since udev. A
// kernel without that has no such file.
func hotplugOff(procDir string) error {
	f, err := os.OpenFile(procDir+"/sys/kernel/hotplug", os.O_WRONLY, 0)
	if err != nil {
		return notMissing(err)
	}
	_, err = f.WriteString("\n")
	return errors.Join(err, f.Close())
}

func (b *booter) readSeed(context.Context) error {
	f, err := os.Open(b.options.seed)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if b.seed, err = seed.Read(f); err != nil {
		return err
	}
	b.seeded = true
	return nil
}

// mountModules mounts the modules disk where the image's modprobe looks. That
// there is no such disk is fine: a kernel may have everything built in.
func (b *booter) mountModules(context.Context) error {
	if _, err := os.Stat(b.options.modules); err != nil {
		return notMissing(err)
	}
	if err := os.MkdirAll(modulesAt, 0o755); err != nil {
		return err
	}
	// ENXIO, EIO: the device's node exists in a guest that has no such disk.
	err := unix.Mount(b.options.modules, modulesAt, "ext4", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", b.options.modules, err)
	}
	b.modules = true
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if b.seeded && b.seed.KernelRelease != "" && b.seed.KernelRelease != release {
		b.say("this kernel is %s, the seed was made for %s; modules may not fit", release, b.seed.KernelRelease)
	}
	dir := "/lib/modules/" + release
	if err := b.tree.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	target, err := b.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(target) //nolint:errcheck // O_PATH
	// A second mount of the same disk, so that this program has its own.
	return unix.Mount(modulesAt, procPath(target), "", unix.MS_BIND, "")
}

func kernelRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

func (b *booter) grow(context.Context) error {
	if b.seed.DiskSize == 0 {
		return nil
	}
	grown, err := growMounted(newRoot, b.options.root, b.seed.DiskSize)
	if grown {
		b.say("the root filesystem has %s now", b.seed.DiskSize)
	}
	return err
}

// loadIPv6 makes ::1 and IPv6 sockets work before the image's first program
// asks for them: Debian's kernel has IPv6 as a module, which nothing in a
// small image loads by itself.
func (b *booter) loadIPv6(context.Context) error {
	if _, err := os.Stat("/proc/net/if_inet6"); err == nil || !b.modules {
		return nil
	}
	return loadModule(modulesAt, "ipv6")
}

// identify writes the identity into the root filesystem.
func (b *booter) identify(ctx context.Context) {
	id := &identity{
		tree: b.tree, seed: b.seed, last: loadState(b.tree), fresh: !b.tree.Exists(StatePath),
		now: time.Now(), rand: rand.Reader, run: runIn(newRoot), say: b.say,
	}
	steps := id.steps()
	if fit, err := b.provision(id); err != nil {
		b.say("could not look at the image: %v", err)
	} else {
		defer fit.run.Close() //nolint:errcheck // O_PATH
		if fit.init.systemd {
			b.attempt(ctx, step{"mount /run", func(context.Context) error { return mountRun(b.tree) }})
		}
		steps = append(steps, fit.steps()...)
	}
	for _, s := range steps {
		b.attempt(ctx, s)
	}
	b.attempt(ctx, step{"set the swap up", func(context.Context) error { return setSwap(b.tree, b.seed.Swap) }})
	b.attempt(ctx, step{"set the host name", func(context.Context) error {
		return unix.Sethostname([]byte(id.currentHostname()))
	}})
	b.attempt(ctx, step{"remember what was applied", id.save})
}

// provision observes the machine and the image.
func (b *booter) provision(id *identity) (*provision, error) {
	run, err := OpenTree(newRoot)
	if err != nil {
		return nil, err
	}
	disks := &devices{dev: "/dev", sys: "/sys", skip: []string{b.options.seed, b.options.modules}}
	card, _, err := findCard("/sys", b.seed.MAC)
	if err != nil {
		card = "" // said already
	}
	return &provision{
		identity: id, run: run,
		init: findInit(b.tree, b.options.initPrograms()),
		place: place{
			console: findConsole("/sys"), root: b.options.root, kind: b.rootKind, card: card,
			noSwapFiles: b.seed.Driver == "uml" || strings.HasPrefix(b.options.root, "/dev/ubd"),
			hasCard: func(name string) bool {
				_, err := os.Stat("/sys/class/net/" + name)
				return err == nil && name != "" && !strings.Contains(name, "/")
			},
			device: disks.find,
		},
	}, nil
}

// runIn runs programs of the image, with its root filesystem as theirs.
func runIn(root string) command {
	return func(ctx context.Context, program string, args ...string) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		out, err := cmd.CombinedOutput()
		if err != nil && len(out) > 0 {
			return fmt.Errorf("%w: %.200s", err, strings.TrimSpace(string(out)))
		}
		return err
	}
}

// handOver makes the root disk the root of everything, frees the initramfs
// and executes the image's init. It returns only with an error.
func (b *booter) handOver(ctx context.Context) error {
	if b.tree.Changed() {
		b.attempt(ctx, step{"save the identity", func(context.Context) error { return b.tree.Sync() }})
	}
	if b.modules {
		if err := unix.Unmount(modulesAt, 0); err != nil {
			b.say("could not unmount %s: %v", modulesAt, err)
		}
	}
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		if err := b.moveMount(dir); err != nil {
			return fmt.Errorf("move %s into the root disk: %w", dir, err)
		}
	}
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return fmt.Errorf("make the root disk the root: %w", err)
	}
	// The kernel frees the memory of this program's file once it is replaced.
	for _, name := range []string{"init", "dev/console"} {
		_ = unix.Unlinkat(old, name, 0)
	}
	_ = unix.Close(old)
	return b.execInit()
}

// moveMount moves a mounted filesystem to the same place in the root disk,
// which may lead elsewhere in it by symbolic links.
func (b *booter) moveMount(dir string) error {
	if err := b.tree.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	to, err := b.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(to) //nolint:errcheck // O_PATH
	return unix.MoveMount(unix.AT_FDCWD, dir, to, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// switchRoot is what switch_root(8) does once all other mounts are moved.
func switchRoot() error {
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func (b *booter) execInit() error {
	var failures []string
	for _, program := range b.options.initPrograms() {
		err := unix.Exec(program, append([]string{program}, b.args...), b.env)
		failures = append(failures, fmt.Sprintf("%s: %v", program, err))
	}
	return fmt.Errorf("the root disk has no program to start (%s): install an init in the image, or name one with init=",
		strings.Join(failures, ", "))
}
