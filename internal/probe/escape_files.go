//go:build linux

package probe

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func fileAttempts() []try {
	return []try{
		{"read-state-db", "read the daemon's state database", reader(func(a *attacker) string { return a.StateDB })},
		{"read-victim-disk", "read another guest's disk", reader(func(a *attacker) string { return a.VictimDisk })},
		{"read-victim-run", "list another guest's run folder, with its seed and sockets", reader(func(a *attacker) string { return a.VictimRun })},
		{"read-shadow", "read the host's passwords", reader(func(*attacker) string { return "/etc/shadow" })},
		{"read-ssh-keys", "list the keys of the host's SSH server and of root", reader(func(*attacker) string { return "/etc/ssh" }, "/root", "/root/.ssh")},
		{"write-victim-disk", "open another guest's disk for writing", writer(func(a *attacker) []string { return []string{a.VictimDisk} })},
		{"write-state-db", "open the daemon's state database for writing", writer(func(a *attacker) []string { return []string{a.StateDB} })},
		{"write-shared-files", "open its kernel, initrd, seed and image, which others use too, for writing", writer((*attacker).sharedFiles)},
		{"write-programs", "open programs, libraries and settings of the system for writing, or put new ones beside them", writePrograms},
		{"own-program", "open the program that runs here, or the keeper's, for writing (as in CVE-2019-5736)", ownProgram},
		{"leftover-descriptors", "use what the keeper may have left open: folders, devices, sockets, the host's files", leftovers},
		{"chroot-out", "leave the root folder by a second chroot", chrootOut},
		{"open-by-handle", "open files by their inode, past all folders", byHandle},
		{"device-nodes", "read the host's disks and memory through device nodes", deviceNodes},
		{"make-device-nodes", "make device nodes of the host's disks and memory, and read them", makeNodes},
		{"setuid-files", "find a program with set-uid or capabilities that would give rights", setuidFiles},
		{"watch-files", "watch what happens to the host's files", watchFiles},
		{"shared-memory-files", "find other programs' files in the shared memory folders", sharedMemoryFiles},
		{"proc-switches", "open the kernel's switches under /proc for writing", procSwitches},
		{"sys-switches", "open the kernel's switches under /sys for writing", sysSwitches},
		{"proc-kernel-memory", "read the kernel's memory, addresses and keys through /proc", procMemory},
		{"cgroup-files", "write to control group files, its own and those above", cgroupFiles},
	}
}

// A way opens a path of the host.
type way struct {
	name string
	open func(path string, flags int) (int, error)
}

func below(dir string) way {
	return way{strings.ReplaceAll(dir, up, "/.."), func(path string, flags int) (int, error) { return unix.Open(dir+path, flags|unix.O_CLOEXEC, 0) }}
}

// up is more folders than a run folder has above it.
var up = strings.Repeat("/..", 32)

// ways are all known ways to a path of the host that begin without rights.
func (a *attacker) ways() []way {
	w := []way{
		{"open", func(path string, flags int) (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) }},
		{"openat2", func(path string, flags int) (int, error) {
			return unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC)})
		}},
		below("." + up),
	}
	for _, p := range a.processes() {
		w = append(w, below("/proc/"+p+"/root"), below("/proc/"+p+"/cwd"+up))
	}
	for _, fd := range descriptors() {
		name := strconv.Itoa(fd)
		w = append(w,
			way{"openat from descriptor " + name, func(path string, flags int) (int, error) {
				return unix.Openat(fd, "."+up+path, flags|unix.O_CLOEXEC, 0)
			}},
			below("/proc/self/fd/"+name+up))
	}
	return append(w, way{"a clone of the mount tree", func(path string, flags int) (int, error) {
		root, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return -1, err
		}
		defer closeFD(root)
		return unix.Openat(root, strings.TrimPrefix(path, "/"), flags|unix.O_CLOEXEC, 0)
	}})
}

// processes are the names under /proc of those that may see more.
func (a *attacker) processes() []string {
	l := []string{"self", "thread-self", "1"}
	for _, pid := range []int{os.Getppid(), a.KeeperPID, a.VictimPID} {
		if name := strconv.Itoa(pid); pid > 0 && !slices.Contains(l, name) {
			l = append(l, name)
		}
	}
	return l
}

// mostDescriptors is how far to look for open descriptors where /proc does not
// list them.
const mostDescriptors = 1024

// descriptors lists what is open, not counting the console.
func descriptors() (open []int) {
	for fd := 3; fd < mostDescriptors; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			open = append(open, fd)
		}
	}
	return open
}

func closeFD(fd int) { _ = unix.Close(fd) }

// readsFrom tells what can be read from a descriptor, file or folder.
func readsFrom(fd int) (string, error) {
	b := make([]byte, 512)
	n, err := unix.Read(fd, b)
	if err == unix.EISDIR {
		n, err = unix.Getdents(fd, b)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes read", n), nil
}

// reach opens a path in every way, and reads from it unless it is for writing.
// Nothing is written.
func (a *attacker) reach(t *trail, path string, flags int) {
	for _, w := range a.ways() {
		fd, err := w.open(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err != nil {
			t.refused(path+" by "+w.name, err)
			continue
		}
		what := "opened for writing"
		if flags&unix.O_ACCMODE == unix.O_RDONLY {
			what, err = readsFrom(fd)
		}
		closeFD(fd)
		if err != nil {
			t.refused(path+" opened by "+w.name+", but read", err)
			continue
		}
		t.broke("%s by %s: %s", path, w.name, what)
	}
}

func reader(path func(*attacker) string, more ...string) func(*attacker, *trail) error {
	return func(a *attacker, t *trail) error {
		for _, p := range append([]string{path(a)}, more...) {
			if p != "" {
				a.reach(t, p, unix.O_RDONLY)
			}
		}
		return nil
	}
}

func writer(paths func(*attacker) []string) func(*attacker, *trail) error {
	return func(a *attacker, t *trail) error {
		for _, p := range paths(a) {
			if p == "" {
				continue
			}
			a.reach(t, p, unix.O_WRONLY)
			t.worked("chmod "+p+" to its own mode", chmodAsIs(p))
		}
		return nil
	}
}

func chmodAsIs(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	return unix.Chmod(path, st.Mode&0o7777)
}

// argument returns the value of the last argument that begins with one of the
// names and an equals sign.
func (a *attacker) argument(name string) string {
	value := ""
	for _, arg := range a.args {
		if v, ok := strings.CutPrefix(arg, name+"="); ok {
			value = v
		}
	}
	return value
}

// sharedFiles are those files of its own command line that it may read only:
// the kernel, the initrd, disks with the flag r, and images behind overlays.
func (a *attacker) sharedFiles() []string {
	files := []string{a.argument("initrd")}
	if len(a.args) > 0 {
		files = append(files, a.args[0])
	}
	for _, arg := range a.args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || !strings.HasPrefix(name, "ubd") {
			continue
		}
		// ubd<N><flags>=file[,backing file]
		own, backing, _ := strings.Cut(value, ",")
		if strings.Contains(strings.TrimPrefix(name, "ubd"), "r") {
			files = append(files, own)
		}
		files = append(files, backing)
	}
	return files
}

func writePrograms(a *attacker, t *trail) error {
	for _, p := range []string{
		"/etc/passwd", "/etc/ld.so.cache", "/etc/ld.so.preload", "/bin/sh", "/lib64/ld-linux-x86-64.so.2",
		"/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/libc.so.6",
	} {
		a.reach(t, p, unix.O_WRONLY)
	}
	for _, dir := range []string{"/", "/etc", "/bin", "/lib", "/lib64", "/usr", "/usr/bin", "/usr/lib", "/root", "/var", "/boot"} {
		// A file without a name, which is gone with its descriptor.
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if t.worked("a new file in "+dir, err) {
			closeFD(fd)
		}
	}
	return nil
}

func ownProgram(a *attacker, t *trail) error {
	paths := []string{}
	for _, p := range a.processes() {
		paths = append(paths, "/proc/"+p+"/exe")
	}
	if len(a.args) > 0 {
		paths = append(paths, a.args[0])
	}
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			closeFD(fd)
		}
		// A program in use is refused after the rights were found good.
		t.permitted("writing to "+p, err, unix.ETXTBSY)
	}
	return nil
}

func leftovers(_ *attacker, t *trail) error {
	for _, fd := range descriptors() {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			name = "descriptor " + strconv.Itoa(fd)
		}
		switch kind := st.Mode & unix.S_IFMT; {
		case strings.HasPrefix(name, "anon_inode:[event"), strings.HasPrefix(name, "pipe:"), kind == unix.S_IFIFO:
			t.saw(name + " is the runtime's own, or a pipe")
		case kind == unix.S_IFREG && readOnly(fd) && ofCgroups(fd):
			// It looks there for how many processors it may use.
			t.saw(name + " was opened by the Go runtime, for reading")
		case kind == 0:
			t.saw(name + " is of no kind that can be used")
		case kind == unix.S_IFDIR:
			t.broke("%s is an open folder", name)
		case kind == unix.S_IFSOCK:
			t.broke("%s is an open socket", name)
		case kind == unix.S_IFBLK, kind == unix.S_IFCHR && st.Rdev != unix.Mkdev(1, 3):
			t.broke("%s is an open device", name)
		case kind == unix.S_IFREG:
			t.broke("%s is an open file", name)
		default:
			t.saw(name + " is harmless")
		}
	}
	t.saw("looked at all descriptors from 3 on")
	return nil
}

func ofCgroups(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC)
}

func readOnly(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY
}

// chrootOut changes the root to a folder below while the working folder stays
// above, from where ".." is bounded by nothing.
func chrootOut(a *attacker, t *trail) error {
	sub := "/proc"
	if entries, err := os.ReadDir("/"); err == nil {
		for _, e := range entries {
			if e.IsDir() {
				sub = "/" + e.Name()
			}
		}
	}
	target := strings.TrimPrefix(a.StateDB, "/")
	steps := []step{{"", unix.SYS_CHDIR, []any{text("/")}}, must(unix.SYS_CHROOT, text(sub))}
	for range 32 {
		steps = append(steps, step{"", unix.SYS_CHDIR, []any{text("..")}})
	}
	steps = append(steps, step{"", unix.SYS_CHROOT, []any{text(".")}},
		step{"opening the state database after leaving the root", unix.SYS_OPENAT, []any{unix.AT_FDCWD, text(target), unix.O_RDONLY, 0}})
	t.tryInChild(0, steps...)
	return nil
}

// byHandle asks for a handle of a file that it may see, and opens that handle,
// then the root of the same file system, which is inode 2 on ext4 and 128 or
// 64 on XFS (generation 0 means any).
func byHandle(a *attacker, t *trail) error {
	for _, p := range []string{"/", ".", a.argumentDisk(), "/etc", "/dev/shm", "/tmp"} {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, p, 0)
		if err != nil {
			t.refused("handle of "+p, err)
			continue
		}
		mount, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.refused("open "+p, err)
			continue
		}
		fd, err := unix.OpenByHandleAt(mount, h, unix.O_RDONLY)
		if t.worked("opening the handle of "+p, err) {
			closeFD(fd)
		}
		for _, ino := range []uint32{2, 64, 128} {
			b := h.Bytes()
			if len(b) < 8 {
				break
			}
			b = append([]byte(nil), b[:8]...)
			binary.NativeEndian.PutUint32(b, ino)
			binary.NativeEndian.PutUint32(b[4:], 0)
			fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(1, b), unix.O_RDONLY)
			if t.worked(fmt.Sprintf("opening inode %d beside %s", ino, p), err) {
				closeFD(fd)
			}
		}
		closeFD(mount)
	}
	return nil
}

// argumentDisk is its own disk, as it was told on the command line.
func (a *attacker) argumentDisk() string {
	for _, arg := range a.args {
		name, value, ok := strings.Cut(arg, "=")
		if ok && strings.HasPrefix(name, "ubd0") {
			own, _, _ := strings.Cut(value, ",")
			return own
		}
	}
	return a.OwnDisk
}

type node struct {
	name         string
	kind         uint32
	major, minor uint32
}

// nodes are devices that give away the host: memory, ports, and disks by the
// numbers that they usually have.
var nodes = []node{
	{"mem", unix.S_IFCHR, 1, 1},
	{"kmem", unix.S_IFCHR, 1, 2},
	{"port", unix.S_IFCHR, 1, 4},
	{"kmsg", unix.S_IFCHR, 1, 11},
	{"sda", unix.S_IFBLK, 8, 0},
	{"vda", unix.S_IFBLK, 254, 0},
	{"vdb", unix.S_IFBLK, 253, 0},
	{"xvda", unix.S_IFBLK, 202, 0},
	{"nvme0n1", unix.S_IFBLK, 259, 0},
	{"dm-0", unix.S_IFBLK, 252, 0},
	{"md0", unix.S_IFBLK, 9, 0},
	{"loop0", unix.S_IFBLK, 7, 0},
	{"loop-control", unix.S_IFCHR, 10, 237},
	{"mapper/control", unix.S_IFCHR, 10, 236},
	{"fuse", unix.S_IFCHR, 10, 229},
	{"kvm", unix.S_IFCHR, 10, 232},
	{"vhost-net", unix.S_IFCHR, 10, 238},
	{"uinput", unix.S_IFCHR, 10, 223},
	{"tty0", unix.S_IFCHR, 4, 0},
	{"console", unix.S_IFCHR, 5, 1},
	{"input/event0", unix.S_IFCHR, 13, 64},
}

// tryNode opens a device, and reads from it where reading changes nothing: not
// from ports, whose devices notice, nor from terminals, whose input would be
// gone.
func tryNode(t *trail, path string, reads bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.refused(path, err)
		return
	}
	defer closeFD(fd)
	what := "open"
	if reads {
		if what, err = readsFrom(fd); err != nil {
			what = "open, though reading fails with " + err.Error()
		}
	}
	t.broke("%s: %s", path, what)
}

func (n node) harmless() bool { return n.kind == unix.S_IFBLK || n.name == "mem" || n.name == "kmem" }

func deviceNodes(a *attacker, t *trail) error {
	for _, n := range nodes {
		tryNode(t, "/dev/"+n.name, n.harmless())
		for _, p := range a.processes() {
			tryNode(t, "/proc/"+p+"/root/dev/"+n.name, n.harmless())
		}
	}
	// Whatever else is a disk here.
	entries, err := os.ReadDir("/dev")
	if err != nil {
		t.refused("/dev", err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeDevice != 0 && e.Type()&fs.ModeCharDevice == 0 {
			tryNode(t, "/dev/"+e.Name(), true)
		}
	}
	return nil
}

func makeNodes(a *attacker, t *trail) error {
	dirs := []string{".", "/dev", "/dev/shm", "/tmp", "/", filepath.Dir(a.argumentDisk()), os.TempDir()}
	for _, dir := range dirs {
		for _, n := range nodes {
			path := filepath.Join(dir, ".sublet-probe-"+filepath.Base(n.name))
			if err := unix.Mknod(path, n.kind|0o600, int(unix.Mkdev(n.major, n.minor))); err != nil {
				t.refused("mknod in "+dir, err)
				continue
			}
			tryNode(t, path, n.harmless())
			_ = unix.Unlink(path)
		}
	}
	return nil
}

// mostEntries bounds a walk through what the jail shows.
const mostEntries = 50_000

// walk visits what can be seen, the usual places first, without /proc and
// /sys. visit returns false to end it.
func walk(visit func(path string, e fs.DirEntry) bool) {
	seen, roots := 0, map[string]bool{}
	for _, root := range []string{"/bin", "/sbin", "/usr/bin", "/usr/sbin", "/tmp", "/dev", "/run", "/var", "/"} {
		if real, err := filepath.EvalSymlinks(root); err == nil {
			root = real
		}
		if roots[root] {
			continue
		}
		roots[root] = true
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what cannot be read is passed over
			}
			if path == "/proc" || path == "/sys" {
				return fs.SkipDir
			}
			if seen++; seen > mostEntries || !visit(path, e) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

func setuidFiles(_ *attacker, t *trail) error {
	found := map[string]bool{}
	walk(func(path string, e fs.DirEntry) bool {
		if !e.Type().IsRegular() || found[path] {
			return true
		}
		info, err := e.Info()
		caps := 0
		if err == nil {
			caps, _ = unix.Lgetxattr(path, "security.capability", nil)
		}
		if err == nil && (info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 || caps > 0) {
			found[path] = true
			t.broke("%s is set-uid, set-gid or has capabilities", path)
		}
		return len(found) < 20
	})
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	switch {
	case err != nil:
		t.refused("no_new_privs", err)
	case nnp == 0:
		t.broke("no_new_privs is not set: such a program would give its rights")
	}
	t.saw("looked through all folders")
	return nil
}

func watchFiles(a *attacker, t *trail) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.refused("inotify", err)
	} else {
		defer closeFD(fd)
		for _, p := range []string{a.StateDB, a.VictimDisk, a.VictimRun, "/etc/shadow"} {
			if p != "" {
				_, err := unix.InotifyAddWatch(fd, p, unix.IN_MODIFY|unix.IN_OPEN)
				t.worked("watching "+p, err)
			}
		}
	}
	fan, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	if t.worked("fanotify with access to the files", err) {
		closeFD(fan)
	}
	return nil
}

func sharedMemoryFiles(_ *attacker, t *trail) error {
	for _, dir := range []string{"/dev/shm", "/run/shm", "/dev/mqueue", "/dev/hugepages", "/run", "/var/run"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.refused(dir, err)
			continue
		}
		t.saw(fmt.Sprintf("%s is there", dir))
		for _, e := range entries {
			t.broke("%s/%s is there", dir, e.Name())
		}
	}
	return nil
}

// pointer is for structures that a system call reads or writes.
func pointer[T any](p *T) unsafe.Pointer { return unsafe.Pointer(p) }
