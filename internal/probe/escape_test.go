//go:build linux

package probe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sublet/internal/hang"
)

// The roles that this test binary plays, by an environment variable.
const (
	roleKey = "SUBLET_PROBE_TEST_ROLE"
	// asHost prepares what the targets are in namespaces of its own and starts
	// the attacker.
	asHost = "host"
	// asAttacker is the hostile program, without a jail.
	asAttacker = "attacker"
	// asPrisoner is the same with no rights, no new rights, in a bare root.
	asPrisoner = "prisoner"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleKey); role {
	case "":
		os.Exit(m.Run())
	case asAttacker:
		small := bounds{processes: 64, memory: 32 << 20, descriptors: 300, timers: 300, locked: 1 << 20}
		os.Exit(escapeWithin(os.Stdin, os.Stdout, os.Args, small))
	case asPrisoner:
		if err := imprison(); err != nil {
			fmt.Fprintln(os.Stderr, "prison:", err)
			os.Exit(3)
		}
		// Chosen above the limits that imprison sets.
		os.Exit(escapeWithin(os.Stdin, os.Stdout, os.Args, bounds{processes: 400, memory: 32 << 20, descriptors: 300, timers: 300, locked: 1 << 20}))
	default:
		if err := playHost(); err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			os.Exit(3)
		}
	}
}

// playHost runs as process 1 of new namespaces.
func playHost() error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	if err := unix.Mount("none", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("/run: %w", err)
	}
	dir := os.Getenv("SUBLET_PROBE_TEST_DIR")
	var up tunRequest
	copy(up.name[:], "lo")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := ioctl(fd, unix.SIOCSIFFLAGS, up.flags(unix.IFF_UP)); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	closeFD(fd)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	t := Targets{
		StateDB: filepath.Join(dir, "state.db"), Socket: filepath.Join(dir, "daemon.sock"), KeeperSock: filepath.Join(dir, "keeper.sock"),
		VictimDisk: filepath.Join(dir, "victim", "disk"), VictimRun: filepath.Join(dir, "victim"), VictimTap: "victim0",
		OwnTap: "own0", OwnDisk: filepath.Join(dir, "own"),
		Host: netip.MustParseAddr("127.0.0.1"), HostPort: uint16(listener.Addr().(*net.TCPAddr).Port),
	}
	for _, path := range []string{t.Socket, t.KeeperSock, filepath.Join(t.VictimRun, "mconsole"), "/run/acpid.socket", "@sublet-probe-test"} {
		if _, err := net.Listen("unix", path); err != nil {
			return err
		}
	}
	for _, name := range []string{t.VictimTap, t.OwnTap} {
		if err := makeTap(name); err != nil {
			return fmt.Errorf("tap %s: %w", name, err)
		}
	}
	if _, err := call(unix.SYS_SHMGET, 0, 4096, 0o1600); err != nil {
		return fmt.Errorf("shmget: %w", err)
	}
	for _, pid := range []*int{&t.KeeperPID, &t.VictimPID} {
		c := exec.Command("sleep", "infinity")
		if err := c.Start(); err != nil {
			return err
		}
		*pid = c.Process.Pid
	}
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		return err
	}
	// What a careless keeper would leave: an open folder and its own terminal.
	folder, err := os.Open("/")
	if err != nil {
		return err
	}
	_, terminal, err := pty.Open()
	if err != nil {
		return err
	}
	c := exec.Command(os.Args[0], os.Args[1:]...)
	if role := os.Getenv("SUBLET_PROBE_TEST_ATTACKER"); role == asAttacker {
		c.ExtraFiles = []*os.File{folder, terminal}
		c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 4}
	}
	c.Env = append(os.Environ(), roleKey+"="+os.Getenv("SUBLET_PROBE_TEST_ATTACKER"))
	c.Stdin, c.Stdout, c.Stderr, c.Dir = os.Stdin, os.Stdout, os.Stderr, dir
	return c.Run()
}

func makeTap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if err := ioctl(fd, unix.TUNSETIFF, request(name).flags(tapFlags)); err != nil {
		return err
	}
	_, err = call(unix.SYS_IOCTL, fd, unix.TUNSETPERSIST, 1)
	return err
}

// imprison leaves this process nothing: a stand-in for a jail, to see that
// attempts tell failure from success.
func imprison() error {
	runtime.LockOSThread() // no new rights are a thread's, until all get its filter
	root := os.Getenv("SUBLET_PROBE_TEST_DIR") + "/prison"
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	limits := map[int]uint64{
		unix.RLIMIT_NOFILE: 64, unix.RLIMIT_NPROC: 40, unix.RLIMIT_SIGPENDING: 32, unix.RLIMIT_MEMLOCK: 0,
		unix.RLIMIT_CORE: 0, unix.RLIMIT_RTPRIO: 0, unix.RLIMIT_NICE: 0, unix.RLIMIT_MSGQUEUE: 0,
	}
	for resource, n := range limits {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	const nobodyHere = 64123
	if err := unix.Setgroups(nil); err != nil {
		return err
	}
	if err := unix.Setresgid(nobodyHere, nobodyHere, nobodyHere); err != nil {
		return err
	}
	if err := unix.Setresuid(nobodyHere, nobodyHere, nobodyHere); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return filter()
}

// filter refuses what others than root may do, and ends whoever comes by
// another entry.
func filter() error {
	const nr, arch, firstArgument = 0, 4, 16 // in struct seccomp_data
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	is := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: k}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET, K: k} }
	kill, refuse := answer(unix.SECCOMP_RET_KILL_PROCESS), answer(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM))
	p := []unix.SockFilter{
		load(arch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.AUDIT_ARCH_X86_64},
		kill,
		load(nr),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32Bit},
		kill,
	}
	for _, n := range []uint32{
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP,
		unix.SYS_MEMFD_SECRET, unix.SYS_FANOTIFY_INIT, unix.SYS_VMSPLICE, unix.SYS_PROCESS_MADVISE, unix.SYS_MIGRATE_PAGES,
		unix.SYS_MOVE_PAGES, unix.SYS_SHMCTL, unix.SYS_SYSLOG,
	} {
		p = append(p, is(n, 1), refuse)
	}
	p = append(p, is(unix.SYS_SOCKET, 3), load(firstArgument), is(unix.AF_UNIX, 2), answer(unix.SECCOMP_RET_ALLOW),
		answer(unix.SECCOMP_RET_ALLOW), refuse)
	program := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, err := call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, pointer(&program))
	return err
}

// start runs the attacker in namespaces of its own, where nothing is the
// machine's but the files, of which none is written.
func start(t *testing.T, role string) (*Client, Targets) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "probe") //nolint:usetesting // short: sockets have names of 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "victim"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"state.db", "victim/disk", "own", "image", "seed", "initrd"} {
		if err := os.WriteFile(filepath.Join(dir, f), bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(dir, "own")
	c := exec.Command("/proc/self/exe", "mem=32768K", "umid=probe", "ubd0="+own+","+dir+"/image", "ubd1rd="+dir+"/seed", "initrd="+dir+"/initrd")
	c.Env = append(os.Environ(), roleKey+"="+asHost, "SUBLET_PROBE_TEST_DIR="+dir, "SUBLET_PROBE_TEST_ATTACKER="+role)
	c.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatalf("cannot start in new namespaces (root is needed): %v", err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.Process.Kill() // with process 1, all of them end
		_ = c.Wait()
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var targets Targets
	if err := json.Unmarshal(line, &targets); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return NewClient(struct {
		io.Reader
		io.Writer
	}{lines, in}), targets
}

func ask(t *testing.T, c *Client, r Request) Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	a, err := c.Do(ctx, r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Op, r.Name, err)
	}
	return a
}

// TestEveryAttemptSucceedsWithoutAJail proves that an attempt which fails in a
// jail failed because of the jail.
func TestEveryAttemptSucceedsWithoutAJail(t *testing.T) {
	c, targets := start(t, asAttacker)
	all := ask(t, c, Request{Op: Hello}).Attempts
	if len(all) < 40 {
		t.Errorf("only %d attempts", len(all))
	}
	names := map[string]bool{}
	for _, try := range all {
		if names[try.Name] || try.Name == "" || try.What == "" {
			t.Errorf("%q has no name of its own or does not say what it is", try.Name)
		}
		names[try.Name] = true
		a := ask(t, c, Request{Op: Try, Name: try.Name, Target: &targets})
		switch {
		case a.Attempt == nil:
			t.Errorf("%s was not made: %s", try.Name, a.Error)
		case a.Attempt.Escaped:
			t.Logf("%s: %.300s", try.Name, a.Attempt.Seen)
		case missing(a.Attempt):
			t.Logf("%s cannot succeed on this machine: %s", try.Name, a.Attempt.Seen)
		default:
			t.Errorf("%s failed although nothing keeps it: %s", try.Name, a.Attempt.Seen)
		}
	}
}

// missing tells whether the machine's kernel has nothing for an attempt, or the
// machine's own root may not do it.
func missing(a *Attempt) bool {
	if a.Name == "spare-from-oom" {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
		return err == nil && has == 0
	}
	for way := range strings.SplitSeq(a.Seen, "; ") {
		if !strings.Contains(way, unix.ENOSYS.Error()) {
			return false
		}
	}
	return true
}

// TestNoAttemptSucceedsInABareJail tells that attempts do not cry wolf.
func TestNoAttemptSucceedsInABareJail(t *testing.T) {
	c, targets := start(t, asPrisoner)
	for _, try := range ask(t, c, Request{Op: Hello}).Attempts {
		a := ask(t, c, Request{Op: Try, Name: try.Name, Target: &targets})
		switch {
		case a.Attempt == nil && try.Name == "eat-memory":
			t.Log(a.Error) // a machine with very little memory
		case a.Attempt == nil:
			t.Errorf("%s was not made: %s", try.Name, a.Error)
		case try.Name == "eat-memory":
			// This jail has no control group.
			if !a.Attempt.Escaped {
				t.Errorf("%s met a limit that is not there: %s", try.Name, a.Attempt.Seen)
			}
		case a.Attempt.Escaped:
			t.Errorf("%s: %s", try.Name, a.Attempt.Seen)
		case a.Attempt.Seen == "":
			t.Errorf("%s does not say what it saw", try.Name)
		case (try.Name == "int80" || try.Name == "x32") && !strings.Contains(a.Attempt.Seen, string(errFilter)):
			t.Errorf("%s does not tell of the filter: %s", try.Name, a.Attempt.Seen)
		}
	}
}

func TestUnknownRequests(t *testing.T) {
	c, targets := start(t, asPrisoner)
	if a := ask(t, c, Request{Op: Try, Name: "none", Target: &targets}); a.Error == "" || a.Attempt != nil {
		t.Errorf("an unknown attempt: %+v", a)
	}
	if a := ask(t, c, Request{Op: Try, Name: "reboot"}); a.Error == "" || a.Attempt != nil {
		t.Errorf("no targets: %+v", a)
	}
	if a := ask(t, c, Request{Op: Send}); a.Error == "" {
		t.Errorf("a request of the other mode: %+v", a)
	}
	// Targets that nobody filled in leave nothing to try, and do no harm.
	for _, try := range ask(t, c, Request{Op: Hello}).Attempts {
		if a := ask(t, c, Request{Op: Try, Name: try.Name, Target: &Targets{}}); a.Attempt == nil && a.Error == "" {
			t.Errorf("%s without targets: no answer", try.Name)
		}
	}
}

func TestEscapeEnds(t *testing.T) {
	var out bytes.Buffer
	in := strings.NewReader("garbage\n{}\n[1]\n\x00\xff\n{\"id\":1,\"op\":\"hello\"}\n{\"id\":2,\"op\":\"off\"}\n{\"id\":3,\"op\":\"hello\"}\n")
	if code := Escape(in, &out, nil); code != 0 {
		t.Errorf("exit code %d after off", code)
	}
	if n := strings.Count(out.String(), Mark); n != 2 {
		t.Errorf("%d answers to hello and off:\n%s", n, out.String())
	}
	if code := Escape(strings.NewReader(""), io.Discard, nil); code != 0 {
		t.Errorf("exit code %d at the end", code)
	}
	if code := Escape(strings.NewReader(strings.Repeat("x", 2*maxLine)), io.Discard, nil); code != 1 {
		t.Errorf("exit code %d after a line without end", code)
	}
}

func TestArguments(t *testing.T) {
	a := &attacker{args: []string{"/k", "mem=65536K", "ubd0=/own,/image", "ubd1rd=/seed", "ubd2rd=/modules", "initrd=/i", "con0=fd:0,fd:1"}}
	if got := a.ownMemory(); got != 64<<20 {
		t.Errorf("memory: %d", got)
	}
	if got := a.argumentDisk(); got != "/own" {
		t.Errorf("disk: %q", got)
	}
	got := slices.DeleteFunc(a.sharedFiles(), func(s string) bool { return s == "" })
	if want := []string{"/i", "/k", "/image", "/seed", "/modules"}; !slices.Equal(got, want) {
		t.Errorf("shared files: %q, want %q", got, want)
	}
}
