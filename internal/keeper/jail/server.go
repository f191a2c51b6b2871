//go:build linux

package jail

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Server says how a server of ours is shut in that strangers talk to. It keeps
// the host's network, which it is there for, and CAP_NET_RAW, with which it may
// speak for addresses that are not the host's (IP_TRANSPARENT in ip(7)).
type Server struct {
	// Root is an empty folder of the host that becomes the root; see Config.
	Root string
	// Files are seen read-only under the same path, and Folders may be written
	// to, as far as their owner and mode let the user. Nothing in them can be
	// executed.
	Files, Folders []string
	// Program is the server's, seen read-only as ServerProgram.
	Program string
	// UID is its user and its group, never 0.
	UID uint32
	// Argv and Env are all of its arguments, with argv[0], and its environment.
	Argv, Env []string
}

// ServerProgram is the path of a server's program in its jail.
const ServerProgram = "/sublet"

func (s *Server) check() error {
	paths := append([]string{s.Root, s.Program}, s.Files...)
	for _, p := range append(paths, s.Folders...) {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
			return vps.Invalid("jail", "%q is not a clean, absolute path", p)
		}
	}
	if s.UID == 0 || len(s.Argv) == 0 {
		return vps.Invalid("jail", "a user that is not root and arguments are needed")
	}
	return nil
}

// Enter shuts the calling process in and executes the server in its place, with
// all descriptors that are open beyond exec. It returns only with an error,
// which names what this host does not allow. The process has to be root; other
// threads of it go on outside until the exec.
//
// The server calls FilterServer first of all: only after it has been executed
// it can do without execve.
func (s *Server) Enter() error {
	// What follows changes this thread, and execve leaves no other.
	runtime.LockOSThread()
	if err := s.check(); err != nil {
		return err
	}
	if err := unix.Unshare(Namespaces); err != nil {
		return fmt.Errorf("enter namespaces of its own; this host may not allow them: %w", err)
	}
	if err := s.buildRoot(); err != nil {
		return err
	}
	if err := limitNone(); err != nil {
		return err
	}
	if err := drop(s.UID, unix.CAP_NET_RAW); err != nil {
		return err
	}
	if err := syscall.Exec(ServerProgram, s.Argv, s.Env); err != nil {
		return fmt.Errorf("execute %s: %w", s.Program, err)
	}
	return nil
}

// buildRoot makes the new root and moves into it. There is no /proc and no /dev.
func (s *Server) buildRoot() error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("sublet-root", s.Root, "tmpfs", plain, rootSize); err != nil {
		return err
	}
	if err := show(s.Root, s.Program, ServerProgram, unix.MS_RDONLY); err != nil {
		return err
	}
	for _, path := range s.Files {
		if err := show(s.Root, path, path, unix.MS_RDONLY|unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	for _, path := range s.Folders {
		target := filepath.Join(s.Root, path)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("make a place for %s: %w", path, err)
		}
		if err := bind(path, target, unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	if err := mount("", s.Root, "", unix.MS_REMOUNT|unix.MS_RDONLY|plain, rootSize); err != nil {
		return err
	}
	return moveIn(s.Root, "/")
}

// FilterServer leaves the calling process, with all its threads, the system
// calls that a server written in Go has a use for. All others fail with EPERM:
// it starts no programs, traces and signals nobody, and makes no memory
// executable. Of sockets there are TCP and UDP over IP only; CAP_NET_RAW is of
// no use for anything else.
func FilterServer() error {
	filter, err := policyProgram(&seccomp.Policy{
		DefaultAction: seccomp.ActionErrno, // EPERM
		Syscalls: []seccomp.SyscallGroup{
			{Names: serverCalls(), NamesWithCondtions: serverConditions(os.Getpid()), Action: seccomp.ActionAllow},
			{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)}, // as for guests
		},
	})
	if err != nil {
		return fmt.Errorf("make the filter of system calls: %w", err)
	}
	if err := filter.install(unix.SECCOMP_FILTER_FLAG_TSYNC); err != nil {
		return fmt.Errorf("install the filter of system calls; this host's kernel may lack CONFIG_SECCOMP_FILTER: %w", err)
	}
	return nil
}

// serverCalls are those of Go's runtime and of its packages net and os.
func serverCalls() []string {
	return []string{
		// memory
		"brk", "munmap", "mremap", "madvise", "mincore", "membarrier",
		// files
		"openat", "close", "close_range", "read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "fstat", "newfstatat", "statx", "fstatfs",
		"faccessat", "faccessat2", "readlinkat", "getcwd", "getdents64", "mkdirat", "unlinkat", "renameat", "renameat2", "ftruncate",
		"fsync", "fdatasync", "fchmod", "fchmodat", "utimensat", "fcntl", "flock", "dup", "dup3", "pipe2", "splice", "sendfile", "copy_file_range",
		// waiting
		"ppoll", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "futex",
		// sockets, which are made as serverConditions says
		"accept4", "bind", "connect", "listen", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt",
		"sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
		// time
		"clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time",
		"timer_create", "timer_settime", "timer_delete", "setitimer",
		// signals
		"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
		// threads
		"exit", "exit_group", "sched_yield", "sched_getaffinity", "getcpu", "set_robust_list", "rseq", "arch_prctl",
		"getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "getrlimit", "uname", "getrandom",
	}
}

// serverConditions are calls that are allowed with some arguments only.
func serverConditions(pid int) []seccomp.NameWithConditions {
	when := func(name string, conditions ...seccomp.Condition) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: conditions}
	}
	on := func(argument uint32, operation seccomp.Operation, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: operation, Value: value}
	}
	all := []seccomp.NameWithConditions{
		when("mmap", on(2, seccomp.BitsNotSet, unix.PROT_EXEC)),
		when("mprotect", on(2, seccomp.BitsNotSet, unix.PROT_EXEC)),
		when("clone", on(0, seccomp.BitsSet, unix.CLONE_THREAD), on(0, seccomp.BitsNotSet, foreignNamespaces)),
		// The runtime interrupts its own threads.
		when("tgkill", on(0, seccomp.Equal, uint64(pid))),
	}
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []uint64{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			for _, flags := range []uint64{0, unix.SOCK_CLOEXEC, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK} {
				all = append(all, when("socket", on(0, seccomp.Equal, family), on(1, seccomp.Equal, kind|flags), on(2, seccomp.LessOrEqual, unix.IPPROTO_UDP)))
			}
		}
	}
	return all
}
