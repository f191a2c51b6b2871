//go:build linux

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sublet/internal/durable"
)

// attackMark in an edge's folder of certificates makes it attack the host
// instead of serving, as one that strangers have taken over would.
const attackMark = "attack.json"

// target is what the attack is after.
type target struct {
	// Secrets are files that it must not see, Socket one that it must not reach, PID
	// a process that it must not touch.
	Secrets []string
	Socket  string
	PID     int
}

// attack tries each thing and returns what of it could be done.
func attack(e Environment, t target) map[string]string {
	done := map[string]string{}
	try := func(what string, err error) {
		if err == nil {
			done[what] = "done"
		}
	}
	socket := func(what string, family, kind, protocol int) {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			_ = unix.Close(fd)
		}
		try("open a socket: "+what, err)
	}
	socket("packets", unix.AF_PACKET, unix.SOCK_RAW, 0)
	socket("packets, cooked", unix.AF_PACKET, unix.SOCK_DGRAM, 0x0300)
	socket("raw IPv4", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
	socket("raw IPv6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	socket("netlink", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	socket("netlink of netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	socket("unix", unix.AF_UNIX, unix.SOCK_STREAM, 0)
	socket("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	socket("SCTP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	_, err := net.Dial("unix", t.Socket)
	try("reach the daemon", err)
	for _, path := range append(t.Secrets, "/proc/self/status", "/dev/null", "/sys/kernel", "/bin/sh", "/etc/passwd", "/etc/shadow") {
		_, err := os.ReadFile(path)
		if err != nil {
			_, err = os.Stat(path)
		}
		try("see "+path, err)
	}
	for _, dir := range []string{"/", "/etc", filepath.Dir(e.LogDir)} {
		try("write to "+dir, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
	}
	for _, path := range []string{"/etc/resolv.conf", "/sublet"} {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		try("open for writing "+path, err)
		if err == nil {
			_ = f.Close()
		}
	}
	_, err = os.StartProcess("/sublet", []string{"/sublet"}, &os.ProcAttr{})
	try("start a program", err)
	try("execute a program", syscall.Exec("/sublet", []string{"/sublet"}, nil))
	own := filepath.Join(e.LogDir, "program")
	if err := os.WriteFile(own, []byte("#!/sublet\n"), 0o700); err != nil {
		done["write to its own folder"] = err.Error() // it may
	}
	try("execute what it wrote", syscall.Exec(own, []string{own}, nil))
	try("mount", unix.Mount("x", e.LogDir, "tmpfs", 0, ""))
	try("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	try("chroot", unix.Chroot(e.LogDir))
	try("trace", unix.PtraceAttach(t.PID))
	try("signal", unix.Kill(t.PID, unix.SIGKILL))
	try("signal a thread", unix.Tgkill(t.PID, t.PID, unix.SIGKILL))
	try("become root", unix.Setuid(0))
	try("set the clock", unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{}))
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	try("have memory that can be executed", err)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil {
		err = unix.Mprotect(page, unix.PROT_READ|unix.PROT_EXEC)
	}
	try("make memory executable", err)
	for what, call := range map[string][4]uintptr{
		"bpf":               {unix.SYS_BPF},
		"modules":           {unix.SYS_INIT_MODULE},
		"keys":              {unix.SYS_KEYCTL},
		"io_uring":          {unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&page[0]))},
		"userfaultfd":       {unix.SYS_USERFAULTFD},
		"perf":              {unix.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&page[0])), 0, 0},
		"process_vm_readv":  {unix.SYS_PROCESS_VM_READV, uintptr(t.PID)},
		"pidfd":             {unix.SYS_PIDFD_OPEN, uintptr(t.PID)},
		"a process":         {unix.SYS_FORK},
		"a process, cloned": {unix.SYS_CLONE, uintptr(unix.SIGCHLD)},
	} {
		_, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3])
		// What fails for another reason than that it is not allowed got past the filter.
		if e != unix.EPERM {
			done["call "+what] = fmt.Sprint(e)
		}
	}
	runtime.KeepAlive(page)
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err == nil {
		done["ask for capabilities"] = "done"
	}
	return done
}

// attackInstead is what newTestServer calls first.
func attackInstead(e Environment) error {
	path := filepath.Join(e.CertDir, attackMark)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var t target
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err != nil {
		return err
	}
	// Packets are what CAP_NET_RAW would be good for; this one is what it is for.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	}
	done := attack(e, t)
	if err != nil {
		done["be transparent, which it may"] = err.Error()
	}
	if text, err = json.Marshal(done); err != nil {
		return err
	}
	if err := os.WriteFile(path+".done", text, 0o600); err != nil {
		return err
	}
	return os.Remove(path)
}

func TestJailHolds(t *testing.T) {
	s := newScene(t)
	// As an edge that was there before left it.
	secret := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	api := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", api)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only listens
	mark := filepath.Join(s.d.Options.CertDir, attackMark)
	if err := os.MkdirAll(s.d.Options.CertDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteJSON(mark, target{Secrets: []string{secret}, Socket: api, PID: os.Getpid()}); err != nil {
		t.Fatal(err)
	}
	m, _ := s.manager()
	state := s.settled(m, "one")
	var done map[string]string
	s.eventually("the attack is over", func() bool {
		text, err := os.ReadFile(mark + ".done")
		return err == nil && json.Unmarshal(text, &done) == nil
	})
	for what, how := range done {
		t.Errorf("the edge can %s: %s", what, how)
	}

	t.Log("and from outside it is seen to be what it should")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", state.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", testUID), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", testUID), "Groups:\t \n",
		"NoNewPrivs:\t1\n", "Seccomp:\t2\n",
		"CapEff:\t0000000000002000\n", "CapPrm:\t0000000000002000\n", "CapBnd:\t0000000000002000\n", "CapAmb:\t0000000000002000\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("its status lacks %q:\n%s", want, status)
		}
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", state.PID))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads: %v", len(threads), err)
	}
	for _, path := range threads {
		if text, err := os.ReadFile(path); err == nil && !strings.Contains(string(text), "Seccomp:\t2\n") {
			t.Errorf("a thread is without the filter:\n%s", text)
		}
	}
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", state.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range open {
		to, err := os.Readlink(path)
		if err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, s.d.Options.Dir) && to != "/dev/null" {
			t.Errorf("it holds %s open", to)
		}
	}
}
