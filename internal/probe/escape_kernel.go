//go:build linux

package probe

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func kernelAttempts() []try {
	return []try{
		{"load-module", "load a kernel module", loadModule},
		{"kexec", "replace the host's kernel", kexec},
		{"bpf", "load programs and maps into the kernel", bpf},
		{"perf-events", "watch the host's processors with perf", perfEvents},
		{"kernel-keys", "use the kernel's key rings", kernelKeys},
		{"userfaultfd", "handle page faults, which makes holes in the kernel easier to use", userFault},
		{"io-uring", "make system calls by io_uring, which no filter sees", ioUring},
		{"kernel-log", "read or silence the kernel's log", kernelLog},
		{"mount", "mount file systems", mount},
		{"mount-new-calls", "mount with the newer calls", mountNew},
		{"remount-writable", "make its read-only files writable by mounting them again", remount},
		{"unmount", "unmount what covers the host's files", unmount},
		{"pivot-root", "change the root folder of all", pivotRoot},
		{"rare-calls", "use system calls that a kernel in user mode never needs", rareCalls},
	}
}

// What follows is refused by the kernel before anything happens, by those who
// may because the arguments are wrong, by others because they may not. The
// order was read in the kernel's source, in the functions that are named.
const nowhere = "/.sublet-probe-none/none"

// loadModule: may_init_module() comes before the image is looked at.
func loadModule(_ *attacker, t *trail) error {
	junk := text("none")
	_, err := call(unix.SYS_INIT_MODULE, junk, len(junk), text(""))
	t.permitted("init_module", err, unix.ENOEXEC, unix.EINVAL)
	const noSuchFlag = 0x80
	_, err = call(unix.SYS_FINIT_MODULE, 0, text(""), noSuchFlag)
	t.permitted("finit_module", err, unix.EINVAL, unix.ENOEXEC)
	_, err = call(unix.SYS_DELETE_MODULE, text(".sublet-probe-none"), unix.O_NONBLOCK)
	t.permitted("delete_module", err, unix.ENOENT)
	return nil
}

// kexec: kexec_load_permitted() comes before the flags and the number of
// segments; in kexec_file_load too.
func kexec(_ *attacker, t *trail) error {
	const wrongFlags, tooMany = 0x8000, 1 << 20
	_, err := call(unix.SYS_KEXEC_LOAD, 0, tooMany, nil, wrongFlags)
	t.permitted("kexec_load", err, unix.EINVAL)
	_, err = call(unix.SYS_KEXEC_FILE_LOAD, -1, -1, 0, nil, wrongFlags)
	t.permitted("kexec_file_load", err, unix.EINVAL)
	return nil
}

func bpf(_ *attacker, t *trail) error {
	const mapCreate, progLoad, array, socketFilter = 0, 5, 2, 1
	// union bpf_attr: map_type and key_size, value_size and max_entries.
	attr := make([]uint64, 16)
	attr[0], attr[1] = array|4<<32, 4|1<<32
	fd, err := call(unix.SYS_BPF, mapCreate, attr, len(attr)*8)
	if t.worked("making a map", err) {
		closeFD(fd)
	}
	// r0 = 0; exit
	program, license := []uint64{0xb7, 0x95}, text("GPL")
	w := words([]any{program, license})
	attr = make([]uint64, 16)
	attr[0], attr[1], attr[2] = socketFilter|uint64(len(program))<<32, uint64(w[0]), uint64(w[1])
	fd, err = call(unix.SYS_BPF, progLoad, attr, len(attr)*8, program, license)
	if t.worked("loading a program", err) {
		closeFD(fd)
	}
	return nil
}

func perfEvents(_ *attacker, t *trail) error {
	for _, c := range []struct {
		name     string
		pid, cpu int
		bits     uint64
	}{
		{"of all processes", -1, 0, 0},
		{"of the kernel", 0, -1, 0},
		{"of itself", 0, -1, unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv},
	} {
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: unix.PERF_ATTR_SIZE_VER0, Bits: c.bits | unix.PerfBitDisabled}
		fd, err := unix.PerfEventOpen(&attr, c.pid, c.cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if t.worked("perf events "+c.name, err) {
			closeFD(fd)
		}
	}
	return nil
}

func kernelKeys(_ *attacker, t *trail) error {
	// The thread's own ring is gone with the thread.
	_, err := unix.AddKey("user", "sublet-probe", []byte("x"), unix.KEY_SPEC_THREAD_KEYRING)
	t.worked("add_key", err)
	_, err = unix.RequestKey("user", "sublet-probe-none", "", unix.KEY_SPEC_THREAD_KEYRING)
	t.permitted("request_key", err, unix.ENOKEY)
	for name, ring := range map[string]int{"session": unix.KEY_SPEC_SESSION_KEYRING, "user": unix.KEY_SPEC_USER_KEYRING} {
		_, err = unix.KeyctlGetKeyringID(ring, false)
		t.permitted("the ring of the "+name, err, unix.ENOKEY)
	}
	return nil
}

func userFault(_ *attacker, t *trail) error {
	const userModeOnly = 1
	for _, flags := range []int{unix.O_CLOEXEC, unix.O_CLOEXEC | userModeOnly} {
		fd, err := call(unix.SYS_USERFAULTFD, flags)
		if t.worked("userfaultfd", err) {
			closeFD(fd)
		}
	}
	fd, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if t.worked("/dev/userfaultfd", err) {
		closeFD(fd)
	}
	return nil
}

func ioUring(_ *attacker, t *trail) error {
	// struct io_uring_params has 120 bytes.
	fd, err := call(unix.SYS_IO_URING_SETUP, 1, make([]byte, 256))
	if t.worked("io_uring_setup", err) {
		closeFD(fd)
	}
	return nil
}

// kernelLog: check_syslog_permissions() comes before the level is looked at.
func kernelLog(_ *attacker, t *trail) error {
	const readAll, level, noLevel = 3, 8, 0
	_, err := unix.Klogctl(readAll, make([]byte, 256))
	t.worked("reading the kernel's log", err)
	_, err = call(unix.SYS_SYSLOG, level, nil, noLevel)
	t.permitted("silencing the kernel's log", err, unix.EINVAL)
	return nil
}

// mount: may_mount() in path_mount() comes before the type is looked for. In a
// mount namespace of its own, if it can have one, mounting is for real.
func mount(_ *attacker, t *trail) error {
	for _, dir := range []string{"/", "."} {
		_, err := call(unix.SYS_MOUNT, text("none"), text(dir), text("sublet-probe-none"), 0, nil)
		t.permitted("mount on "+dir, err, unix.ENODEV)
	}
	for name, flags := range map[string]uintptr{"": unix.CLONE_NEWNS, " with a user namespace": unix.CLONE_NEWNS | unix.CLONE_NEWUSER} {
		private := must(unix.SYS_MOUNT, text("none"), text("/"), nil, unix.MS_REC|unix.MS_PRIVATE, nil)
		for _, kind := range []string{"tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup2", "overlay"} {
			t.tryInChild(flags, private, step{kind + name, unix.SYS_MOUNT, []any{text("none"), text("/"), text(kind), 0, nil}})
		}
		t.tryInChild(flags, private, step{"binding /" + name, unix.SYS_MOUNT, []any{text("/"), text("/"), nil, unix.MS_BIND | unix.MS_REC, nil}})
		t.tryInChild(flags, private, step{"moving mounts" + name, unix.SYS_MOUNT, []any{text("/"), text("/"), nil, unix.MS_MOVE, nil}})
	}
	return nil
}

func mountNew(_ *attacker, t *trail) error {
	// A file system that is nowhere: gone with its descriptor.
	fd, err := call(unix.SYS_FSOPEN, text("tmpfs"), unix.FSOPEN_CLOEXEC)
	if t.worked("fsopen", err) {
		_, err = call(unix.SYS_FSCONFIG, fd, unix.FSCONFIG_CMD_CREATE, nil, nil, 0)
		if t.worked("fsconfig", err) {
			var m int
			m, err = call(unix.SYS_FSMOUNT, fd, unix.FSMOUNT_CLOEXEC, 0)
			if t.worked("fsmount", err) {
				closeFD(m)
			}
		}
		closeFD(fd)
	}
	fd, err = call(unix.SYS_OPEN_TREE, unix.AT_FDCWD, text("/"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if t.worked("open_tree", err) {
		closeFD(fd)
	}
	fd, err = call(unix.SYS_FSPICK, unix.AT_FDCWD, text("/"), unix.FSPICK_CLOEXEC)
	if t.worked("fspick", err) {
		closeFD(fd)
	}
	// may_mount() comes before the flags.
	const wrongFlags = 1 << 30
	_, err = call(unix.SYS_MOVE_MOUNT, -1, text(""), -1, text(""), wrongFlags)
	t.permitted("move_mount", err, unix.EINVAL)
	return nil
}

// remount sets the attributes of mounts to what they are: to nothing else, by
// a call that changes only what it is told to. The old call would change all,
// so it is made on single files, which are mounts in a jail only.
func remount(a *attacker, t *trail) error {
	for _, p := range append(a.sharedFiles(), "/") {
		if p == "" {
			continue
		}
		// Nothing to set, nothing to clear: may_mount() alone is asked.
		_, err := call(unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, text(p), 0, make([]uint64, 4), 32)
		t.worked("mount_setattr of "+p, err)
		if info, err := os.Stat(p); err != nil || !info.Mode().IsRegular() {
			continue
		}
		_, err = call(unix.SYS_MOUNT, text("none"), text(p), nil, unix.MS_REMOUNT|unix.MS_BIND, nil)
		t.permitted("remounting "+p, err, unix.EINVAL)
	}
	private := must(unix.SYS_MOUNT, text("none"), text("/"), nil, unix.MS_REC|unix.MS_PRIVATE, nil)
	for name, flags := range map[string]uintptr{"": unix.CLONE_NEWNS, " with a user namespace": unix.CLONE_NEWNS | unix.CLONE_NEWUSER} {
		t.tryInChild(flags, private, step{"remounting / in a namespace" + name, unix.SYS_MOUNT, []any{text("none"), text("/"), nil, unix.MS_REMOUNT | unix.MS_BIND, nil}})
	}
	return nil
}

// unmount: can_umount() comes before MNT_EXPIRE refuses a root folder.
func unmount(_ *attacker, t *trail) error {
	_, err := call(unix.SYS_UMOUNT2, text("/"), unix.MNT_EXPIRE)
	t.permitted("umount", err, unix.EINVAL, unix.EBUSY, unix.EAGAIN)
	private := must(unix.SYS_MOUNT, text("none"), text("/"), nil, unix.MS_REC|unix.MS_PRIVATE, nil)
	for _, dir := range []string{"/proc", "/dev", "/dev/shm", "/tmp"} {
		t.tryInChild(unix.CLONE_NEWNS, private, step{"umount " + dir, unix.SYS_UMOUNT2, []any{text(dir), unix.MNT_DETACH}})
	}
	return nil
}

// pivotRoot: may_mount() comes before the paths.
func pivotRoot(_ *attacker, t *trail) error {
	_, err := call(unix.SYS_PIVOT_ROOT, text(nowhere), text(nowhere))
	t.permitted("pivot_root", err, unix.ENOENT)
	_, err = call(unix.SYS_CHROOT, text("/"))
	t.worked("chroot to /", err)
	return nil
}

// rareCalls are none by themselves an escape, and have been parts of many.
func rareCalls(_ *attacker, t *trail) error {
	fd, err := call(unix.SYS_MEMFD_SECRET, 0)
	if t.worked("memfd_secret", err) {
		closeFD(fd)
	}
	fd, err = call(unix.SYS_FANOTIFY_INIT, unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_FID, 0)
	if t.worked("fanotify_init", err) {
		closeFD(fd)
	}
	for name, nr := range map[string]uintptr{"vmsplice": unix.SYS_VMSPLICE, "process_madvise": unix.SYS_PROCESS_MADVISE, "migrate_pages": unix.SYS_MIGRATE_PAGES, "move_pages": unix.SYS_MOVE_PAGES} {
		_, err = call(nr, -1, nil, 0, nil, 0, 0)
		// They are there if the kernel finds the arguments wrong.
		t.permitted(name, err, unix.EBADF, unix.EINVAL, unix.ESRCH)
	}
	// modify_ldt is not among them: such a kernel clears its table with it.
	return nil
}

func machineAttempts() []try {
	return []try{
		{"set-time", "change the host's clock", setTime},
		{"reboot", "restart the host", reboot},
		{"host-name", "change the host's name", hostName},
		{"swap", "change the host's swap space", swap},
		{"accounting", "write the accounts of all processes to a file", accounting},
		{"io-ports", "reach the host's devices by their ports", func(_ *attacker, t *trail) error {
			oldCalls(t)
			return nil
		}},
		{"terminal-input", "type on the keeper's terminal", terminal},
		{"new-terminals", "open terminals of the host", newTerminals},
	}
}

// setTime: timekeeping_validate_timex() asks for the right before the tick is
// found wrong, do_sys_settimeofday64() before the time zone is.
func setTime(_ *attacker, t *trail) error {
	for name, f := range map[string]func(*unix.Timex) (int, error){
		"adjtimex":      unix.Adjtimex,
		"clock_adjtime": func(x *unix.Timex) (int, error) { return unix.ClockAdjtime(unix.CLOCK_REALTIME, x) },
	} {
		_, err := f(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 0})
		t.permitted(name, err, unix.EINVAL)
	}
	// struct timezone: minutes west, and something that nobody uses. More than
	// 15 hours there are not.
	zone := []uint64{100 * 60}
	_, err := call(unix.SYS_SETTIMEOFDAY, nil, zone)
	t.permitted("settimeofday", err, unix.EINVAL)
	return nil
}

// reboot asks for the right before the magic numbers, which are missing here.
func reboot(_ *attacker, t *trail) error {
	_, err := call(unix.SYS_REBOOT, 0, 0, 0, nil)
	t.permitted("reboot", err, unix.EINVAL)
	return nil
}

// hostName asks for the right before the length.
func hostName(_ *attacker, t *trail) error {
	_, err := call(unix.SYS_SETHOSTNAME, text("none"), -1)
	t.permitted("sethostname", err, unix.EINVAL)
	_, err = call(unix.SYS_SETDOMAINNAME, text("none"), -1)
	t.permitted("setdomainname", err, unix.EINVAL)
	return nil
}

func swap(_ *attacker, t *trail) error {
	_, err := call(unix.SYS_SWAPON, text(nowhere), 0)
	t.permitted("swapon", err, unix.ENOENT)
	_, err = call(unix.SYS_SWAPOFF, text(nowhere))
	t.permitted("swapoff", err, unix.ENOENT)
	return nil
}

func accounting(_ *attacker, t *trail) error {
	_, err := call(unix.SYS_ACCT, text(nowhere))
	t.permitted("acct", err, unix.ENOENT)
	return nil
}

// terminal puts a newline into the input of the console, which makes an empty
// line of what comes next, and asks a virtual terminal for the state of its
// shift keys.
func terminal(_ *attacker, t *trail) error {
	const shiftState = 6
	for fd := range 3 {
		_, err := call(unix.SYS_IOCTL, fd, unix.TIOCSTI, []byte{'\n'})
		t.worked(fmt.Sprintf("TIOCSTI on descriptor %d", fd), err)
		_, err = call(unix.SYS_IOCTL, fd, unix.TIOCLINUX, []byte{shiftState, 0})
		t.worked(fmt.Sprintf("TIOCLINUX on descriptor %d", fd), err)
	}
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if t.worked("a controlling terminal", err) {
		closeFD(fd)
	}
	return nil
}

func newTerminals(_ *attacker, t *trail) error {
	for _, p := range []string{"/dev/ptmx", "/dev/pts/ptmx", "/proc/1/root/dev/ptmx"} {
		fd, err := unix.Open(p, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if t.worked(p, err) {
			closeFD(fd)
		}
	}
	entries, err := os.ReadDir("/dev/pts")
	if err != nil {
		t.refused("/dev/pts", err)
	}
	for _, e := range entries {
		p := "/dev/pts/" + e.Name()
		if strings.HasSuffix(p, "ptmx") || isConsole(p) {
			continue
		}
		fd, err := unix.Open(p, unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if t.worked(p, err) {
			closeFD(fd)
		}
	}
	return nil
}

// isConsole tells whether a path is what this program speaks on.
func isConsole(path string) bool {
	var a, b unix.Stat_t
	return unix.Stat(path, &a) == nil && unix.Fstat(0, &b) == nil && a.Rdev == b.Rdev
}
