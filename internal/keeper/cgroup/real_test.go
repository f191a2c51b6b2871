//go:build linux

package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// These tests use the control groups of the machine that they run on, whatever
// version they are of. test/vm runs them on one with version 2.

// childVariable says what a process of these tests is to do in its group.
const childVariable = "CGROUP_CHILD"

// delegatedVariable says that this process is in a group that it may divide.
const delegatedVariable = "CGROUP_DELEGATED"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable)+os.Getenv(delegatedVariable) != "" {
		// Not before the parent has put this process where it belongs.
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	if what := os.Getenv(childVariable); what != "" {
		if err := behave(what); err != nil {
			_, _ = fmt.Fprintln(os.Stdout, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// eaten is how much a child eats, in MiB.
const eaten = 256

func behave(what string) error {
	name, rest, _ := strings.Cut(what, " ")
	switch name {
	case "wait":
		for {
			_ = unix.Pause() // also after a signal of the runtime
		}
	case "eat":
		memory, err := unix.Mmap(-1, 0, eaten<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for i := 0; i < len(memory); i += os.Getpagesize() {
			memory[i] = 1
		}
		return nil
	case "spin":
		return spin()
	case "fork":
		_, err := fmt.Fprintln(os.Stdout, fork())
		return err
	case "write":
		return writeDisk(rest)
	}
	return fmt.Errorf("what is %q?", what)
}

// spin does nothing for two seconds, as fast as it may, and tells what part of a
// processor it had. The start of this program, which was not in the group yet,
// is no part of that.
func spin() error {
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		return err
	}
	begun := time.Now()
	for time.Since(begun) < 2*time.Second {
	}
	took := time.Since(begun)
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		return err
	}
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	_, err := fmt.Fprintln(os.Stdout, float64(used)/float64(took))
	return err
}

// fork makes processes until it may not, or there are many, and tells how
// many there were.
func fork() int {
	const many = 500
	var pids []int
	for len(pids) < many {
		pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			break
		}
		if pid == 0 {
			for {
				_, _, _ = syscall.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
		pids = append(pids, int(pid))
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
	return len(pids)
}

// writeDisk writes past the page cache for two seconds and tells how many
// bytes that were.
func writeDisk(path string) error {
	const block, align, most = 64 << 10, 4096, 48 << 20
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	buffer := make([]byte, block+align)
	at := align - int(uintptr(unsafe.Pointer(&buffer[0]))%align)
	buffer = buffer[at : at+block]
	written := int64(0)
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); written += block {
		if _, err := f.WriteAt(buffer, written%most); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(os.Stdout, written)
	return errors.Join(err, f.Close())
}

// group makes a group of this machine, which ends with the test.
func group(t *testing.T, name string) *Group {
	t.Helper()
	g, err := Make(fmt.Sprintf("test-%d-%s", os.Getpid(), name), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Missing) > 0 {
		t.Fatalf("this machine has no control groups for %q", g.Missing)
	}
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		for _, dir := range g.Folders() {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	})
	return g
}

// child is a process in a group.
type child struct {
	*exec.Cmd
	out   bytes.Buffer
	ended chan struct{}
	err   error
}

func start(t *testing.T, g *Group, what string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{Cmd: exec.CommandContext(t.Context(), self), ended: make(chan struct{})}
	c.Env = append(os.Environ(), childVariable+"="+what)
	c.Stdout, c.Stderr = &c.out, &c.out
	begin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range g.Folders() {
		if err := write(dir, "cgroup.procs", strconv.Itoa(c.Process.Pid)); err != nil {
			t.Error(err)
		}
	}
	_ = begin.Close()
	go func() { c.err = c.Wait(); close(c.ended) }()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-c.ended
	})
	return c
}

// result waits for the end and returns what the child said.
func (c *child) result(t *testing.T) string {
	t.Helper()
	<-c.ended
	if c.err != nil {
		t.Fatalf("%v: %s", c.err, c.out.String())
	}
	return strings.TrimSpace(c.out.String())
}

func (c *child) killed() bool {
	status, ok := c.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

func set(t *testing.T, g *Group, l Limits) {
	t.Helper()
	if err := g.Set(l); err != nil {
		t.Fatal(err)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	g, other := group(t, "memory"), group(t, "memory-other")
	set(t, g, Limits{Memory: 64 * vps.MiB})
	set(t, other, Limits{Memory: 64 * vps.MiB})
	neighbour := start(t, other, "wait")
	companion := start(t, g, "wait")
	eater := start(t, g, "eat")
	<-eater.ended
	if !eater.killed() {
		t.Fatalf("who eats too much ends with %v: %s", eater.err, eater.out.String())
	}
	if g.OOMKills() == 0 || other.OOMKills() != 0 {
		t.Errorf("killed for want of memory: %d, and %d in the other group", g.OOMKills(), other.OOMKills())
	}
	if g.V1["memory"] == "" {
		<-companion.ended // all of the group
	}
	select {
	case <-neighbour.ended:
		t.Error("a process of another group was killed too")
	default:
	}
	// Live, and for who comes later.
	set(t, other, Limits{Memory: 2 * eaten * vps.MiB})
	start(t, other, "eat").result(t)
}

func TestProcessorQuota(t *testing.T) {
	t.Parallel()
	g := group(t, "cpu")
	used := func() float64 {
		part, err := strconv.ParseFloat(start(t, g, "spin").result(t), 64)
		if err != nil {
			t.Fatal(err)
		}
		return part
	}
	set(t, g, Limits{Resources: vps.Resources{CPUQuota: 20, CPUWeight: 50}})
	if got := used(); got > 0.3 {
		t.Errorf("with 20 %% of a processor it used %.0f %%", 100*got)
	}
	set(t, g, Limits{Resources: vps.Resources{CPUQuota: 60, CPUWeight: 10000}})
	if got := used(); got > 0.7 {
		t.Errorf("with 60 %% of a processor it used %.0f %%", 100*got)
	}
	set(t, g, Limits{})
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	g := group(t, "pids")
	for _, most := range []int{40, 100} {
		set(t, g, Limits{Resources: vps.Resources{Processes: most}})
		// The child has some threads itself.
		if got, err := strconv.Atoi(start(t, g, "fork").result(t)); err != nil || got > most || got < most-30 {
			t.Errorf("of at most %d processes %d were made (%v)", most, got, err)
		}
	}
}

// disk returns a disk to write to: the one that the caller names, or a file as
// one.
func disk(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("CGROUP_DISK"); path != "" {
		return path
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v\n%s", err, out)
		}
	})
	return device
}

func TestDiskRate(t *testing.T) {
	t.Parallel()
	g, device := group(t, "io"), disk(t)
	written := func() int64 {
		n, err := strconv.ParseInt(start(t, g, "write "+device).result(t), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	free := written()
	set(t, g, Limits{Disk: device, Resources: vps.Resources{IOWrite: vps.MiB, IORead: vps.MiB}})
	bound := written()
	// Two seconds at 1 MiB, and what the throttle lets through at once.
	if bound > 4<<20 || free < 2*bound {
		t.Errorf("%d bytes were written with a limit of 1 MiB per second, %d without", bound, free)
	}
	set(t, g, Limits{Disk: device, Resources: vps.Resources{IOWrite: 16 * vps.MiB}})
	if more := written(); more < 2*bound {
		t.Errorf("%d bytes were written with a higher limit, %d before", more, bound)
	}
	set(t, g, Limits{Disk: device})
	// A share of the disk, where a scheduler knows shares; elsewhere it is said.
	if err := g.Set(Limits{Resources: vps.Resources{IOWeight: 50}}); err != nil && !strings.Contains(err.Error(), "knows weights") {
		t.Error(err)
	}
}

// TestDelegated makes the group below the one that the caller is in, as in a
// unit of systemd's.
func TestDelegated(t *testing.T) {
	if os.Getenv(delegatedVariable) == "" {
		runDelegated(t)
		return
	}
	g, err := Make("guest", true, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	set(t, g, Limits{Memory: 64 * vps.MiB, Resources: vps.Resources{CPUQuota: 50, Processes: 50}})
	for _, dir := range g.Folders() {
		if !strings.Contains(dir, "/unit-") {
			t.Errorf("%s is not below this unit's group", dir)
		}
	}
	eater := start(t, g, "eat")
	if <-eater.ended; !eater.killed() {
		t.Errorf("who eats too much ends with %v", eater.err)
	}
	// A second time, as after a restart of the keeper.
	again, err := Make("guest", true, os.Getpid())
	if err != nil || strings.Join(again.Folders(), " ") != strings.Join(g.Folders(), " ") {
		t.Errorf("made again it is %v, %v; was %v", again.Folders(), err, g.Folders())
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

// runDelegated runs that test in a group of its own in each hierarchy.
func runDelegated(t *testing.T) {
	t.Helper()
	h, err := find("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	if len(h.inV2) > 0 {
		for _, c := range h.inV2 {
			if err := write(h.v2.path, "cgroup.subtree_control", "+"+c); err != nil {
				t.Fatal(err)
			}
		}
		dirs = append(dirs, h.v2.path)
	}
	for _, c := range controllers {
		if m, ok := h.v1[v1Name(c)]; ok {
			dirs = append(dirs, m.path)
		}
	}
	for i, path := range dirs {
		dirs[i] = filepath.Join(path, fmt.Sprintf("unit-%d", os.Getpid()))
		if err := os.Mkdir(dirs[i], 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, d := range []string{filepath.Join(dirs[i], "keeper"), dirs[i]} {
				if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
					t.Errorf("remove %s: %v", d, err)
				}
			}
		})
	}
	// It ends before this test does, so that what it waited for is seen.
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestDelegated$", "-test.v", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), delegatedVariable+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := write(dir, "cgroup.procs", strconv.Itoa(cmd.Process.Pid)); err != nil {
			t.Error(err)
		}
	}
	_ = begin.Close()
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: TestDelegated") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
