//go:build linux

package jail

import (
	"fmt"
	"runtime"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that the guest's process has a use for: those
// of User Mode Linux with its helpers and stubs (arch/um/os-Linux,
// arch/um/kernel/skas), of the C library's start, and of the program of ours
// that reboots it. All others fail with EPERM. System calls of a guest's own
// processes are caught by ptrace and never come here.
func allowed() []string {
	return []string{
		// memory
		"brk", "mmap", "mprotect", "munmap", "mremap", "madvise", "msync", "mincore", "memfd_create", "membarrier",
		// files
		"open", "openat", "close", "close_range", "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev",
		"lseek", "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2",
		"readlink", "readlinkat", "getcwd", "chdir", "fchdir", "getdents", "getdents64", "mkdir", "mkdirat", "rmdir",
		"unlink", "unlinkat", "rename", "renameat", "truncate", "ftruncate", "fallocate", "fsync", "fdatasync", "fchmod", "utimensat", "umask",
		"fcntl", "flock", "dup", "dup2", "dup3", "pipe", "pipe2",
		// waiting
		"poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "futex",
		// local sockets, without connect
		"socketpair", "bind", "getsockname", "getsockopt", "setsockopt", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "shutdown",
		// time
		"clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "setitimer", "getitimer", "alarm",
		"timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete", "timerfd_create", "timerfd_settime", "timerfd_gettime",
		// signals
		"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait", "sigaltstack", "pause",
		"kill", "tkill", "tgkill", "rt_tgsigqueueinfo", "restart_syscall", "signalfd4",
		// processes; the pid namespace and the user id confine ptrace and kill
		"fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "ptrace", "prctl", "arch_prctl", "modify_ldt", "seccomp",
		"sched_yield", "sched_getaffinity", "sched_setaffinity", "getcpu", "set_tid_address", "set_robust_list", "get_robust_list", "rseq",
		"getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups",
		"getpgrp", "getpgid", "getsid", "setsid", "setpgid", "getpriority",
		"getrlimit", "setrlimit", "prlimit64", "getrusage", "sysinfo", "uname", "getrandom",
	}
}

// sockaddrUn is the length of a struct sockaddr_un.
const sockaddrUn = unix.SizeofSockaddrUnix

// foreignNamespaces are the flags of clone(2) that make namespaces.
const foreignNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// conditional are calls that are allowed with some arguments only. Those of
// one name are alternatives.
func conditional(connects bool) []seccomp.NameWithConditions {
	when := func(name string, conditions ...seccomp.Condition) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: conditions}
	}
	is := func(argument uint32, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: seccomp.Equal, Value: value}
	}
	not := func(argument uint32, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: seccomp.NotEqual, Value: value}
	}
	all := []seccomp.NameWithConditions{
		when("clone", seccomp.Condition{Argument: 0, Operation: seccomp.BitsNotSet, Value: foreignNamespaces}),
	}
	// A terminal that a guest's keeper holds must not be typed into, and a tap
	// stays as the host made it.
	var ioctls []seccomp.Condition
	for _, request := range []uint64{
		unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCCONS,
		unix.TUNSETPERSIST, unix.TUNSETOWNER, unix.TUNSETGROUP, unix.TUNSETLINK, unix.TUNSETDEBUG, unix.TUNSETQUEUE,
		unix.TUNSETSTEERINGEBPF, unix.TUNSETFILTEREBPF, unix.TUNSETCARRIER, unix.SIOCSIFHWADDR,
	} {
		ioctls = append(ioctls, not(1, request))
	}
	all = append(all, when("ioctl", ioctls...))
	// Datagrams on local sockets are the guest's management console.
	for _, flags := range []uint64{0, unix.SOCK_CLOEXEC, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK} {
		all = append(all, when("socket", is(0, unix.AF_UNIX), is(1, unix.SOCK_DGRAM|flags)))
	}
	if connects {
		all = append(all, when("socket", is(0, unix.AF_UNIX), is(1, unix.SOCK_SEQPACKET)), when("connect", is(2, sockaddrUn)))
	}
	// Newer kernels set what is set already, or ask.
	for _, persona := range []uint64{0, addrNoRandomize, 0xffffffff} {
		all = append(all, when("personality", is(0, persona)))
	}
	return all
}

// program is an assembled filter.
type program []bpf.RawInstruction

// assemble makes the filter for the architecture that this runs on. Calls by
// other conventions (int 0x80, x32) are refused as a whole.
func assemble(connects bool) (program, error) {
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionErrno, // EPERM
		Syscalls: []seccomp.SyscallGroup{
			{Names: allowed(), NamesWithCondtions: conditional(connects), Action: seccomp.ActionAllow},
			// The flags of clone3 lie in memory, where no filter sees them; libraries
			// take clone when it is not there.
			{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)},
		},
	}
	return policyProgram(&policy)
}

func policyProgram(policy *seccomp.Policy) (program, error) {
	instructions, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return nil, fmt.Errorf("assemble: %w", err)
	}
	return raw, nil
}

// install puts the filter on the calling thread, or with
// SECCOMP_FILTER_FLAG_TSYNC on all of the process. They have no_new_privs.
func (p program) install(flags uintptr) error {
	filters := make([]unix.SockFilter, len(p))
	for i, in := range p {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	thread, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filters)
	switch {
	case e != 0:
		return e
	case thread != 0: // seccomp(2): one that could not be brought along
		return fmt.Errorf("thread %d has another filter", thread)
	}
	return nil
}
