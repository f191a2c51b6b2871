//go:build linux

package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func limitAttempts() []try {
	return []try{
		{"open-files", "open files without end", manyFiles},
		{"timers", "make timers and pending signals without end", manyTimers},
		{"lock-memory", "lock memory so that it cannot be swapped out", lockMemory},
		{"fill-disk", "write more than its disk holds, and find folders that can be filled", fillDisk},
		{"eat-memory", "use more memory than the guest has; this may end it", eatMemory},
		{"fork-bomb", "make processes without end; this may end the guest", forkBomb},
	}
}

func manyFiles(a *attacker, t *trail) error {
	var opened []int
	defer func() {
		for _, fd := range opened {
			closeFD(fd)
		}
	}()
	for len(opened) < a.bounds.descriptors {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.saw(fmt.Sprintf("%d files, then %v", len(opened), err))
			return nil
		}
		opened = append(opened, fd)
	}
	t.broke("%d files and no limit", len(opened))
	return nil
}

func manyTimers(a *attacker, t *trail) error {
	event := make([]uint64, 8) // struct sigevent, a signal at the end of the timer
	event[1] = uint64(unix.SIGURG)
	var id uint64
	var ids []uint64
	defer func() {
		for _, id := range ids {
			_, _ = call(unix.SYS_TIMER_DELETE, uintptr(id))
		}
	}()
	for len(ids) < a.bounds.timers {
		if _, err := call(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, event, pointer(&id)); err != nil {
			t.saw(fmt.Sprintf("%d timers, then %v", len(ids), err))
			return nil
		}
		ids = append(ids, id&0xffffffff)
	}
	t.broke("%d timers and no limit", len(ids))
	return nil
}

func lockMemory(a *attacker, t *trail) error {
	b, err := unix.Mmap(-1, 0, a.bounds.locked, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.refused("mmap", err)
		return nil
	}
	defer unix.Munmap(b) //nolint:errcheck // it cannot fail for what was just mapped
	t.worked(fmt.Sprintf("locking %d bytes", len(b)), unix.Mlock(b))
	return nil
}

// beyond is how far after the end of its disk a write is tried: far enough to
// be no rounding, with a hole before it that takes no space.
const beyond = 64 << 20

// fillDisk writes a byte where only a limit on size keeps it out, and takes it
// back.
func fillDisk(a *attacker, t *trail) error {
	if disk := a.argumentDisk(); disk != "" {
		if err := growFile(disk); err == nil {
			t.broke("%s grows beyond its size", disk)
		} else {
			t.refused("growing "+disk, err)
		}
	}
	found := 0
	walk(func(path string, e fs.DirEntry) bool {
		if !e.IsDir() || unix.Access(path, unix.W_OK) != nil {
			return true
		}
		if tryFolder(t, a, path) {
			found++
		}
		return found < 10
	})
	t.saw("looked through all folders")
	return nil
}

// growFile puts a byte behind the end of a file, and cuts it off again.
func growFile(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("not a file")
	}
	if _, err := unix.Pwrite(fd, []byte{1}, st.Size+beyond); err != nil {
		return err
	}
	return unix.Ftruncate(fd, st.Size)
}

// farAway is more than any guest's disk, and is a hole on every file system
// that has holes.
const farAway = 1 << 40

// tryFolder makes a file in a folder and tells whether it has no limit. Files
// in memory are the guest's memory: there, the size of the file system counts.
func tryFolder(t *trail, a *attacker, dir string) bool {
	// A file without a name, which is gone with its descriptor. Not all file
	// systems have that.
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		path := filepath.Join(dir, ".sublet-probe-fill")
		if fd, err = unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
			_ = unix.Unlink(path)
		}
	}
	if err != nil {
		t.refused("a file in "+dir, err)
		return false
	}
	defer closeFD(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		t.refused("statfs "+dir, err)
		return false
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		size := st.Blocks * uint64(st.Bsize)
		if size == 0 || size > a.ownMemory()+a.bounds.memory {
			t.broke("%s is in memory and holds %d bytes", dir, size)
			return true
		}
		t.saw(fmt.Sprintf("%s is in memory and holds %d bytes, of a guest's %d", dir, size, a.ownMemory()))
		return false
	}
	if _, err := unix.Pwrite(fd, []byte{1}, farAway); err != nil {
		t.refused("a large file in "+dir, err)
		return false
	}
	t.broke("files in %s can grow without a limit", dir)
	return true
}

// ownMemory is what the guest was given, in bytes.
func (a *attacker) ownMemory() uint64 {
	text := strings.ToUpper(a.argument("mem"))
	shift := 0
	for suffix, s := range map[string]int{"K": 10, "M": 20, "G": 30} {
		if before, ok := strings.CutSuffix(text, suffix); ok {
			text, shift = before, s
		}
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0
	}
	return n << shift
}

// leave is the part of the host's free memory that is never taken.
const leave = 4

// eatMemory fills memory in a child, which the kernel may then end instead of
// this program.
func eatMemory(a *attacker, t *trail) error {
	want := a.ownMemory() + a.bounds.memory
	if free := freeMemory(); want > free/leave*(leave-1) {
		return fmt.Errorf("the host has %d bytes of memory free: too little to try %d without harm to it", free, want)
	}
	const piece = 4 << 20
	n := int(want / piece)
	// One piece of address space at a time, which the kernel fills at once.
	steps := make([]step, 0, maxSteps)
	size := piece
	for n > maxSteps {
		n, size = (n+1)/2, size*2
	}
	for range n {
		steps = append(steps, must(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE, -1, 0))
	}
	o, err := inChild(0, steps...)
	if err != nil {
		t.refused("a child", err)
		return nil
	}
	for i := range steps {
		if err := o.errAt(i); err != nil {
			t.saw(fmt.Sprintf("%d bytes, then %v", i*size, err))
			return nil
		}
	}
	t.broke("%d bytes and no limit, with %d of its own", n*size, a.ownMemory())
	return nil
}

// freeMemory is what the host can give away at once, in bytes: 0 if that is
// not known.
func freeMemory() uint64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				return n << 10
			}
		}
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	return (s.Freeram + s.Bufferram) * uint64(s.Unit)
}

// forkBomb makes processes that share this one's memory, so that no other
// limit is met first, and that end with the pipe they read from: at once if
// this program is killed.
func forkBomb(a *attacker, t *trail) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("a pipe: %w", err)
	}
	defer closeFD(p[0])
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		closeFD(p[1])
		return fmt.Errorf("a page: %w", err)
	}
	defer unix.Munmap(page) //nolint:errcheck // it cannot fail for what was just mapped
	var children []int
	for len(children) < a.bounds.processes && err == nil {
		pid := int(spawn(uintptr(unsafe.Pointer(unsafe.SliceData(page))), uintptr(p[0]), uintptr(p[1])))
		if pid < 0 {
			err = unix.Errno(-pid)
			break
		}
		children = append(children, pid)
	}
	runtime.KeepAlive(page)
	closeFD(p[1])
	for _, pid := range children {
		_, _ = reap(pid)
	}
	if err != nil {
		t.saw(fmt.Sprintf("%d processes, then %v", len(children), err))
		return nil
	}
	t.broke("%d processes and no limit", len(children))
	return nil
}
