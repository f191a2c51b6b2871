//go:build linux

package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func processAttempts() []try {
	return []try{
		{"signal-keeper", "signal its keeper", signals(func(a *attacker) int { return a.KeeperPID })},
		{"signal-victim", "signal another guest's process", signals(func(a *attacker) int { return a.VictimPID })},
		{"signal-anchor", "signal the first process of the jail, and its own parent", signalAnchor},
		{"signal-everyone", "signal every process that there may be", signalEveryone},
		{"trace-keeper", "trace its keeper, read its memory, take its descriptors", tracer(func(a *attacker) int { return a.KeeperPID })},
		{"trace-victim", "trace another guest's process, read its memory, take its descriptors", tracer(func(a *attacker) int { return a.VictimPID })},
		{"trace-anchor", "trace the first process of the jail, read its memory, take its descriptors", tracer(func(*attacker) int { return 1 })},
		{"see-processes", "see processes of others under /proc", seeProcesses},
		{"become-root", "become root, or any other user or group", becomeRoot},
		{"gain-capabilities", "give itself capabilities", gainCapabilities},
		{"loosen-process", "undo with prctl what the jail has set", loosenProcess},
		{"schedule", "run before everybody else: negative nice, real time, disk first", schedule},
		{"spare-from-oom", "be spared when memory runs out", spareFromOOM},
		{"raise-limits", "raise its own limits", raiseLimits},
		{"limit-others", "change the limits and the priority of others", limitOthers},
		{"enter-namespaces", "enter the namespaces of other processes", enterNamespaces},
		{"user-namespace", "make a user namespace and be root in it", userNamespace},
		{"new-namespaces", "make mount, network, process, IPC, host name, time and cgroup namespaces", newNamespaces},
		{"core-dump", "have the host's core dump handler run", coreDump},
		{"int80", "pass the filter with system calls of 32 bits", foreignCalls},
		{"x32", "pass the filter with system calls of the x32 kind", x32Calls},
		{"shared-ipc", "find other programs' System V memory, queues and semaphores", sharedIPC},
	}
}

// own tells whether a number is that of a thread of this process: in a process
// namespace of its own, the host's numbers may mean something else.
func own(pid int) bool {
	return pid == os.Getpid() || unix.Tgkill(os.Getpid(), pid, 0) == nil
}

// signal0 is checked like any signal and sends none.
const signal0 = 0

func signalsTo(t *trail, pid int) {
	switch {
	case pid <= 0:
		return
	case own(pid):
		t.saw(fmt.Sprintf("process %d is this one", pid))
		return
	}
	name := " process " + strconv.Itoa(pid)
	_, err := call(unix.SYS_KILL, pid, signal0)
	t.worked("kill"+name, err)
	_, err = call(unix.SYS_TGKILL, pid, pid, signal0)
	t.worked("tgkill"+name, err)
	if pid > 1 { // -1 is everybody, one's own children too
		_, err = call(unix.SYS_KILL, -pid, signal0)
		t.worked("kill the group of"+name, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		err = unix.PidfdSendSignal(fd, signal0, nil, 0)
		closeFD(fd)
	}
	t.worked("pidfd_send_signal"+name, err)
	fd, err = unix.Open("/proc/"+strconv.Itoa(pid), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.PidfdSendSignal(fd, signal0, nil, 0)
		closeFD(fd)
	}
	t.worked("pidfd_send_signal by /proc to"+name, err)
}

func signals(pid func(*attacker) int) func(*attacker, *trail) error {
	return func(a *attacker, t *trail) error {
		signalsTo(t, pid(a))
		return nil
	}
}

func signalAnchor(_ *attacker, t *trail) error {
	signalsTo(t, 1)
	if parent := os.Getppid(); parent != 1 {
		signalsTo(t, parent)
	}
	t.saw("asked for process 1 and the parent")
	return nil
}

// mostPIDs is the highest number that a process can have (PID_MAX_LIMIT).
const mostPIDs = 4 << 20

func signalEveryone(_ *attacker, t *trail) error {
	// Not kill(-1): it succeeds when there is but a child of one's own.
	others := 0
	for pid := 1; pid < mostPIDs; pid++ {
		if _, err := call(unix.SYS_KILL, pid, signal0); err != nil || own(pid) {
			continue
		}
		if others++; others <= 10 {
			t.broke("process %d can be signalled", pid)
		}
	}
	t.saw(fmt.Sprintf("%d processes of others can be signalled", others))
	return nil
}

// tracer tries what reading another process's memory needs. Nothing is
// stopped: a tracer by PTRACE_SEIZE does not, and it ends at once. Attaching is
// tried only where the gentler way is refused, and undone.
func tracer(of func(*attacker) int) func(*attacker, *trail) error {
	return func(a *attacker, t *trail) error {
		pid := of(a)
		switch {
		case pid <= 0:
			return nil
		case own(pid):
			t.saw(fmt.Sprintf("process %d is this one", pid))
			return nil
		}
		o, err := inChild(0, step{"", unix.SYS_PTRACE, []any{unix.PTRACE_SEIZE, pid, 0, 0}})
		if err == nil {
			err = o.errAt(0)
		}
		if !t.worked("ptrace seize", err) {
			_, err = call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, pid, 0, 0)
			if t.worked("ptrace attach", err) {
				_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
				_ = unix.PtraceDetach(pid)
			}
		}
		readMemory(t, pid)
		takeDescriptors(t, pid)
		for _, link := range []string{"root", "cwd", "exe", "fd", "environ", "maps", "map_files", "stack", "syscall", "auxv"} {
			p := filepath.Join("/proc", strconv.Itoa(pid), link)
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err == nil {
				// Some are checked only when they are read.
				_, err = readsFrom(fd)
				closeFD(fd)
			}
			t.worked(p, err)
		}
		return nil
	}
}

func readMemory(t *trail, pid int) {
	for _, mode := range []struct {
		name string
		flag int
	}{{"reading", unix.O_RDONLY}, {"writing", unix.O_WRONLY}} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", pid), mode.flag|unix.O_CLOEXEC, 0)
		if t.worked("opening its memory for "+mode.name, err) {
			closeFD(fd)
		}
	}
	// Rights come first; whether something is at that address comes later.
	b := make([]byte, 16)
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	remote := []unix.RemoteIovec{{Base: 0x400000, Len: len(b)}}
	_, err := unix.ProcessVMReadv(pid, local, remote, 0)
	t.permitted("process_vm_readv", err, unix.EFAULT)
	// No write with a length: this one has no effect where it is allowed.
	remote[0].Base = 0
	_, err = unix.ProcessVMWritev(pid, local, remote, 0)
	t.permitted("process_vm_writev to address 0", err, unix.EFAULT)
}

func takeDescriptors(t *trail, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.refused("pidfd_open", err)
		return
	}
	defer closeFD(fd)
	for target := range 8 {
		got, err := unix.PidfdGetfd(fd, target, 0)
		if err == nil {
			closeFD(got)
		}
		// EBADF: allowed, and no such descriptor there.
		t.permitted("pidfd_getfd", err, unix.EBADF)
	}
}

func seeProcesses(_ *attacker, t *trail) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.refused("/proc", err)
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || own(pid) || pid == 1 || pid == os.Getppid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			t.refused("process "+e.Name(), err)
			continue
		}
		t.broke("process %s is %q", e.Name(), strings.ReplaceAll(string(line), "\x00", " "))
		if len(t.broken) > 10 {
			break
		}
	}
	t.saw("no more than the jail's own")
	return nil
}

func becomeRoot(_ *attacker, t *trail) error {
	// Raw calls: those of the library would do it to all threads.
	calls := []step{
		{"setresuid", unix.SYS_SETRESUID, []any{0, 0, 0}},
		{"setreuid", unix.SYS_SETREUID, []any{0, 0}},
		{"setuid", unix.SYS_SETUID, []any{0}},
		{"setresgid", unix.SYS_SETRESGID, []any{0, 0, 0}},
		{"setgid", unix.SYS_SETGID, []any{0}},
		{"setgroups", unix.SYS_SETGROUPS, []any{1, make([]byte, 4)}},
	}
	t.tryInChild(0, calls...)
	// The file system's uid is returned as it was, even on failure.
	o, err := inChild(0, step{"", unix.SYS_SETFSUID, []any{0}}, step{"", unix.SYS_SETFSUID, []any{-1}})
	if err == nil && o.errAt(1) == nil && o.results[1] == 0 {
		t.broke("setfsuid worked")
	}
	return nil
}

// capVersion3 is what capset and capget speak: two words of each set.
const capVersion3 = 0x20080522

func gainCapabilities(_ *attacker, t *trail) error {
	header := []uint64{capVersion3} // version, pid 0
	data := make([]byte, 24)
	if _, err := call(unix.SYS_CAPGET, header, data); err != nil {
		t.refused("capget", err)
	}
	for i, set := range []string{"effective", "permitted", "inheritable"} {
		for _, word := range []int{0, 12} {
			v := *(*uint32)(unsafe.Pointer(&data[word+i*4]))
			if v != 0 {
				t.broke("it has %s capabilities %#x", set, v)
			}
		}
	}
	all := make([]byte, 24)
	for i := range all {
		all[i] = 0xff
	}
	header[0] = capVersion3
	// The kernel takes only bits that it knows; up to 40 all have a meaning.
	for word := 12; word < 24; word += 4 {
		*(*uint32)(unsafe.Pointer(&all[word])) = 1<<(unix.CAP_CHECKPOINT_RESTORE-32+1) - 1
	}
	t.tryInChild(0,
		step{"capset", unix.SYS_CAPSET, []any{header, all}},
		step{"", unix.SYS_PRCTL, []any{unix.PR_SET_KEEPCAPS, 1, 0, 0, 0}},
		step{"raising an ambient capability", unix.SYS_PRCTL, []any{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0}},
		step{"dropping from the bounding set, which needs CAP_SETPCAP,", unix.SYS_PRCTL, []any{unix.PR_CAPBSET_DROP, unix.CAP_WAKE_ALARM, 0, 0, 0}},
		step{"changing the securebits", unix.SYS_PRCTL, []any{unix.PR_SET_SECUREBITS, 0, 0, 0, 0}},
	)
	return nil
}

func loosenProcess(_ *attacker, t *trail) error {
	t.tryInChild(0,
		step{"clearing no_new_privs", unix.SYS_PRCTL, []any{unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0}},
		step{"switching the filter off", unix.SYS_PRCTL, []any{unix.PR_SET_SECCOMP, 0, 0, 0, 0}},
	)
	// Permitted calls fail late here: with a right to change, the address 0 is
	// found wanting.
	o, err := inChild(0, step{"", unix.SYS_PRCTL, []any{unix.PR_SET_MM, unix.PR_SET_MM_START_CODE, 0, 0, 0}})
	if err == nil {
		t.permitted("PR_SET_MM", o.errAt(0), unix.EINVAL)
	}
	filter, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	switch {
	case err != nil:
		t.refused("asking for the filter", err)
	case filter == 0:
		t.broke("there is no filter of system calls")
	}
	return nil
}

func schedule(_ *attacker, t *trail) error {
	priority := make([]byte, 4)
	priority[0] = 1
	const realTime, firstLevel = 1, 1<<13 | 4 // IOPRIO_CLASS_RT
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_DEADLINE, Runtime: 1 << 20, Deadline: 1 << 24, Period: 1 << 24}
	t.tryInChild(0,
		step{"nice -20", unix.SYS_SETPRIORITY, []any{unix.PRIO_PROCESS, 0, -20}},
		step{"SCHED_FIFO", unix.SYS_SCHED_SETSCHEDULER, []any{0, realTime, priority}},
		step{"SCHED_DEADLINE", unix.SYS_SCHED_SETATTR, []any{0, pointer(&attr), 0}},
		step{"ioprio real time", unix.SYS_IOPRIO_SET, []any{1, 0, firstLevel}},
	)
	return nil
}

func spareFromOOM(_ *attacker, t *trail) error {
	const path = "/proc/self/oom_score_adj"
	old, err := os.ReadFile(path)
	if err != nil {
		t.refused(path, err)
		return nil
	}
	if err = os.WriteFile(path, []byte("-1000"), 0); t.worked("oom_score_adj -1000", err) {
		_ = os.WriteFile(path, old, 0)
	}
	return nil
}

func raiseLimits(_ *attacker, t *trail) error {
	for name, resource := range map[string]int{
		"open files": unix.RLIMIT_NOFILE, "processes": unix.RLIMIT_NPROC, "locked memory": unix.RLIMIT_MEMLOCK, "core": unix.RLIMIT_CORE,
		"real time": unix.RLIMIT_RTPRIO, "nice": unix.RLIMIT_NICE, "signals": unix.RLIMIT_SIGPENDING, "queues": unix.RLIMIT_MSGQUEUE,
	} {
		var have unix.Rlimit
		if err := unix.Prlimit(0, resource, nil, &have); err != nil {
			t.refused(name, err)
			continue
		}
		if have.Max == unix.RLIM_INFINITY {
			if resource != unix.RLIMIT_NPROC && resource != unix.RLIMIT_SIGPENDING {
				t.broke("%s: there is no limit", name)
			}
			continue
		}
		more := unix.Rlimit{Cur: have.Cur, Max: have.Max + 1}
		t.tryInChild(0, step{"a higher limit of " + name, unix.SYS_PRLIMIT64, []any{0, resource, pointer(&more), nil}})
	}
	t.saw("asked for all limits")
	return nil
}

func limitOthers(a *attacker, t *trail) error {
	for _, pid := range []int{a.KeeperPID, a.VictimPID, 1} {
		if pid <= 0 || own(pid) {
			continue
		}
		var have unix.Rlimit
		err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &have)
		t.worked(fmt.Sprintf("prlimit of process %d", pid), err)
		// To what it is already.
		prio, err := call(unix.SYS_GETPRIORITY, unix.PRIO_PROCESS, pid)
		if err == nil {
			_, err = call(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, pid, 20-prio)
		}
		t.worked(fmt.Sprintf("setpriority of process %d", pid), err)
	}
	t.saw("asked for the keeper, the victim and process 1")
	return nil
}

// namespaces by the names that they have under /proc/PID/ns.
var namespaces = map[string]uintptr{
	"mnt": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "pid": unix.CLONE_NEWPID, "ipc": unix.CLONE_NEWIPC,
	"uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "user": unix.CLONE_NEWUSER, "time": unix.CLONE_NEWTIME,
}

func enterNamespaces(a *attacker, t *trail) error {
	for _, pid := range a.processes() {
		for name, kind := range namespaces {
			path := "/proc/" + pid + "/ns/" + name
			t.tryInChild(0,
				must(unix.SYS_OPENAT, unix.AT_FDCWD, text(path), unix.O_RDONLY, 0),
				step{"setns to " + path, unix.SYS_SETNS, []any{result(0), kind}})
		}
	}
	for _, pid := range []int{1, a.KeeperPID, a.VictimPID} {
		if pid > 0 {
			t.tryInChild(0,
				must(unix.SYS_PIDFD_OPEN, pid, 0),
				step{fmt.Sprintf("setns to process %d", pid), unix.SYS_SETNS, []any{result(0), unix.CLONE_NEWNS | unix.CLONE_NEWUTS}})
		}
	}
	return nil
}

func userNamespace(_ *attacker, t *trail) error {
	t.tryInChild(0, step{"unshare", unix.SYS_UNSHARE, []any{unix.CLONE_NEWUSER}})
	fsName := text("tmpfs")
	if o, err := inChild(unix.CLONE_NEWUSER|unix.CLONE_NEWNS, step{"", unix.SYS_FSOPEN, []any{fsName, 0}}); err != nil {
		t.refused("clone", err)
	} else {
		t.broke("clone worked, and mounting there (%v)", o.errAt(0))
	}
	newProcess(t, "clone3", unix.CLONE_NEWUSER)
	return nil
}

// newProcess makes a process with clone3, which a filter cannot look into. The
// child, which has this program's memory, ends at once.
func newProcess(t *trail, name string, flags uintptr) {
	// struct clone_args of version 0: flags, pidfd, child_tid, parent_tid,
	// exit_signal, stack, stack_size, tls.
	args := []uint64{uint64(flags), 0, 0, 0, uint64(unix.SIGCHLD), 0, 0, 0}
	o, err := inChild(0, step{"", unix.SYS_CLONE3, []any{args, len(args) * 8}})
	if err == nil {
		err = o.errAt(0)
	}
	t.worked(name, err)
}

func newNamespaces(_ *attacker, t *trail) error {
	for name, kind := range namespaces {
		if name == "user" {
			continue
		}
		t.tryInChild(0, step{"unshare " + name, unix.SYS_UNSHARE, []any{kind}})
		if kind != unix.CLONE_NEWTIME { // In clone(2) that bit is part of a signal.
			_, err := inChild(kind)
			t.worked("clone "+name, err)
		}
		newProcess(t, "clone3 "+name, kind)
	}
	return nil
}

// coreDump lets a child end with a core of at most a few pages. Where the host
// hands cores to a program, that program runs as root, outside.
func coreDump(_ *attacker, t *trail) error {
	little := unix.Rlimit{Cur: 4096, Max: 4096}
	action := make([]byte, 64) // SIG_DFL
	before := map[string]bool{}
	for _, p := range cores() {
		before[p] = true
	}
	o, err := inChild(0,
		step{"", unix.SYS_PRCTL, []any{unix.PR_SET_DUMPABLE, 1, 0, 0, 0}},
		step{"", unix.SYS_PRLIMIT64, []any{0, unix.RLIMIT_CORE, pointer(&little), nil}},
		must(unix.SYS_RT_SIGACTION, int(unix.SIGSEGV), action, nil, 8),
		step{"", unix.SYS_GETPID, nil},
		step{"", unix.SYS_KILL, []any{result(3), int(unix.SIGSEGV)}},
	)
	if err != nil {
		t.refused("a child", err)
		return nil
	}
	for _, p := range cores() {
		if !before[p] {
			_ = os.Remove(p)
		}
	}
	if o.status.CoreDump() {
		t.broke("a core was dumped")
	} else {
		t.saw("the child ended without a core")
	}
	return nil
}

func cores() []string {
	l, _ := filepath.Glob("core*")
	return l
}

// sharedIPC looks for what is not its own: an IPC namespace of its own is
// empty.
func sharedIPC(_ *attacker, t *trail) error {
	// SHM_STAT, MSG_STAT and SEM_STAT of the kernel's headers take a slot, not
	// an identifier.
	const shmStat, msgStat, semStat, slots = 13, 11, 18, 1024
	for _, k := range []struct {
		name string
		find func(slot int) (int, error)
	}{
		{"shared memory", func(i int) (int, error) { return call(unix.SYS_SHMCTL, i, shmStat, make([]byte, 256)) }},
		{"a message queue", func(i int) (int, error) { return call(unix.SYS_MSGCTL, i, msgStat, make([]byte, 256)) }},
		{"semaphores", func(i int) (int, error) { return call(unix.SYS_SEMCTL, i, 0, semStat, make([]byte, 256)) }},
	} {
		var last error
		for i := range slots {
			// What may not be read is there all the same, and is seen.
			if _, last = k.find(i); last == nil || errors.Is(last, unix.EACCES) {
				t.broke("%s of another program, slot %d", k.name, i)
				break
			}
		}
		t.refused(k.name, last)
	}
	return nil
}

// foreignCalls asks by the old entry for programs of 32 bits, which has
// numbers of its own: a filter that looks at numbers only takes one for
// another. The numbers are those of the kernel's syscall_32.tbl.
func foreignCalls(_ *attacker, t *trail) error {
	if !canForeign {
		return errors.New("this processor has no second kind of system calls")
	}
	for _, c := range []struct {
		name string
		nr   uintptr
		args []any
	}{
		{"getpid", 20, nil},
		{"socket", 359, []any{unix.AF_INET, unix.SOCK_DGRAM, 0}},
		{"unshare", 310, []any{unix.CLONE_NEWUSER}},
		{"keyctl", 288, []any{0, -1, 0}},
	} {
		o, err := inChild(foreignFlag, step{"", c.nr, c.args})
		if err == nil {
			err = o.errAt(0)
		}
		t.worked(c.name+" by int 0x80", err)
	}
	return nil
}

// x32Bit marks the third kind of system calls on x86 (__X32_SYSCALL_BIT).
const x32Bit = 0x40000000

func x32Calls(_ *attacker, t *trail) error {
	if !canForeign {
		return errors.New("this processor has no third kind of system calls")
	}
	for name, s := range map[string]step{
		"getpid":  {nr: unix.SYS_GETPID},
		"socket":  {nr: unix.SYS_SOCKET, args: []any{unix.AF_INET, unix.SOCK_DGRAM, 0}},
		"unshare": {nr: unix.SYS_UNSHARE, args: []any{unix.CLONE_NEWUSER}},
	} {
		s.nr |= x32Bit
		o, err := inChild(0, s)
		if err == nil {
			err = o.errAt(0)
		}
		t.worked(name+" by x32", err)
	}
	return nil
}
