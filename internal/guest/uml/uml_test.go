//go:build linux

package uml

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sublet/internal/guest"
	"sublet/internal/guest/guesttest"
	"sublet/internal/hang"
	"sublet/internal/keeper"
	"sublet/internal/vps"
)

// processes returns those whose command line speaks of this guest's run
// folder or name.
func processes(t *testing.T, m vps.Machine) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if line := string(b); strings.Contains(line, "umid="+m.Name+"\x00") || strings.Contains(line, m.RunDir+"/") {
			found = append(found, filepath.Base(filepath.Dir(f))+": "+strings.ReplaceAll(line, "\x00", " "))
		}
	}
	return found
}

func wantNone(t *testing.T, m vps.Machine) {
	t.Helper()
	deadline := time.Now().Add(hang.After)
	for {
		left := processes(t, m)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left running:\n%s", strings.Join(left, "\n"))
		}
	}
}

func (b *bench) booted(t *testing.T, m vps.Machine) (guest.Driver, vps.Instance) {
	t.Helper()
	d := b.driver(t)
	in, err := d.Start(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	b.rig().Booted(t, d, in)
	return d, in
}

// TestNothingLeft kills a guest in the ways that it can be killed, and looks
// for the helpers and stubs that User Mode Linux has.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, test := range map[string]struct {
		kill func(d guest.Driver, in vps.Instance) error
		want vps.ExitReason
	}{
		"kill":   {func(d guest.Driver, in vps.Instance) error { return d.Kill(t.Context(), in) }, vps.ExitKilled},
		"guest":  {func(_ guest.Driver, in vps.Instance) error { return syscall.Kill(in.PID, syscall.SIGKILL) }, vps.ExitCrash},
		"keeper": {func(_ guest.Driver, in vps.Instance) error { return syscall.Kill(in.Keeper, syscall.SIGKILL) }, vps.ExitLost},
	} {
		m := b.machine(t)
		d, in := b.booted(t, m)
		if n := len(processes(t, m)); n < 4 {
			t.Fatalf("only %d processes found of a running guest", n)
		}
		if err := test.kill(d, in); err != nil {
			t.Fatal(err)
		}
		e, err := d.Wait(t.Context(), in)
		if err != nil || e.Reason != test.want {
			t.Errorf("%s: ended as %+v, %v", name, e, err)
		}
		wantNone(t, m)
		// The disk's lock is gone with them: it starts again.
		d, in = b.booted(t, m)
		if err := d.Kill(t.Context(), in); err != nil {
			t.Error(err)
		}
	}
}

// TestKeeperKilledAndStarted starts a guest again at once after its keeper was
// killed, while the old guest may still be dying.
func TestKeeperKilledAndStarted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	d, in := b.booted(t, m)
	if err := syscall.Kill(in.Keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again, err := d.Start(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if again.PID == in.PID || !again.Started.After(in.Started) {
		t.Errorf("no new instance: %+v after %+v", again, in)
	}
	b.rig().Booted(t, d, again)
}

// TestConfinement looks at what the guest's process is on the host.
func TestConfinement(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	d, in := b.booted(t, m)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\n", testUID, testUID, testUID, testUID),
		fmt.Sprintf("Gid:\t%d\t%d\t%d\t%d\n", testUID, testUID, testUID, testUID),
		"Groups:\t \n", "NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n",
		"CapInh:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", in.PID))
	if err != nil {
		t.Fatal(err)
	}
	limit := m.Memory + fileMargin
	if want := fmt.Sprintf("%-25s %-20d %-20d bytes", "Max file size", limit, limit); !strings.Contains(string(limits), want) {
		t.Errorf("no %q in\n%s", want, limits)
	}
	root := keeper.GuestRoot(in.PID)
	if _, err := os.Stat(root + MconsolePath(m.RunDir, m.Name)); err != nil {
		t.Error(err)
	}
	for _, ns := range []string{"mnt", "pid", "ipc", "uts"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", in.PID, ns))
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); err != nil || theirs == ours {
			t.Errorf("the %s namespace is %s, %v, like the host's", ns, theirs, err)
		}
	}
	wantFiles(t, root, m)
	// Its hostfs shows nothing of the host.
	s := guesttest.Join(t, d, in, guest.ConsoleOptions{Write: true})
	s.Type(t, "busybox mount -t hostfs none /sys -o / || echo no''-host\n")
	s.Until(t, "no-host")
}

// wantFiles checks that a guest's root holds its files and nothing else.
func wantFiles(t *testing.T, root string, m vps.Machine) {
	t.Helper()
	known := []string{
		m.Kernel.Path, m.Kernel.Initrd, m.Kernel.Modules, m.Root.Path, m.Root.Backing, m.Seed.Path, filepath.Join(m.RunDir, "linux"), filepath.Join(m.RunDir, preloadLib),
		"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/net/tun",
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		inside := strings.TrimPrefix(path, root)
		switch {
		case err != nil:
			return err
		case e.IsDir() && (inside == "/proc" || inside == filepath.Join(m.RunDir, umlDir)):
			return fs.SkipDir // made by the kernel, and by the guest
		case e.IsDir() || slices.Contains(known, inside) || strings.Contains(inside, ".so"):
			return nil
		}
		t.Errorf("the guest sees %s", inside)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile(filepath.Join(filepath.Dir(root), "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	writable := map[string]bool{m.Root.Path: !m.Root.ReadOnly, m.Seed.Path: !m.Seed.ReadOnly, keeper.MemoryDir: true, filepath.Join(m.RunDir, umlDir): true}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		options := strings.Split(f[5], ",")
		if !slices.Contains(options, "nosuid") || (!slices.Contains(options, "nodev") && f[4] != "/dev") {
			t.Errorf("mounted with set-user-ID programs or devices: %s", line)
		}
		if !slices.Contains(options, "ro") && !writable[f[4]] {
			t.Errorf("mounted writable: %s", line)
		}
	}
}

// TestSharedFiles runs two guests on one base image and one disk of modules.
func TestSharedFiles(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	base, err := image()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m := b.machine(t)
		m.Root.Backing, m.Kernel.Modules = base, base
		m.Seed = vps.Disk{Path: base, ReadOnly: true}
		writeCOW(t, m.Root.Path, base)
		d, in := b.booted(t, m)
		s := guesttest.Join(t, d, in, guest.ConsoleOptions{Write: true})
		s.Type(t, "busybox cmp /dev/ubdb /dev/ubdc && echo written > /new && busybox sync && echo all''-well\n")
		s.Until(t, "all-well")
	}
}

// writeCOW makes an empty overlay: struct cow_header_v3 of the kernel's
// arch/um/drivers/cow_user.c, and a bitmap of nothing but zeros behind it.
func writeCOW(t *testing.T, path, base string) {
	t.Helper()
	info, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	const sector, align, nameLen = 512, 4096, 4096
	h := []byte("OOOM")
	h = binary.BigEndian.AppendUint32(h, 3)
	h = binary.BigEndian.AppendUint32(h, uint32(info.ModTime().Unix()))
	h = binary.BigEndian.AppendUint64(h, uint64(info.Size()))
	h = binary.BigEndian.AppendUint32(h, sector)
	h = binary.BigEndian.AppendUint32(h, align)
	h = binary.BigEndian.AppendUint32(h, 0)
	h = append(h, base...)
	h = append(h, make([]byte, nameLen-len(base))...)
	bitmap := (len(h) + align - 1) / align * align
	data := (bitmap + int(info.Size()/sector/8) + align - 1) / align * align
	if err := os.WriteFile(path, h, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(data)+info.Size()); err != nil {
		t.Fatal(err)
	}
}

// TestFileLimit fills a disk beyond what its file may grow to: the guest gets
// an error, and lives.
func TestFileLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	limit := int64(m.Memory + fileMargin)
	// The disk is longer than the limit already, and sparse.
	if err := os.Truncate(m.Root.Path, limit+int64(16*vps.MiB)); err != nil {
		t.Fatal(err)
	}
	d, in := b.booted(t, m)
	s := guesttest.Join(t, d, in, guest.ConsoleOptions{Write: true})
	s.Type(t, fmt.Sprintf("busybox dd if=/dev/zero of=/dev/ubda bs=4096 count=1 seek=%d conv=fsync || echo not''-written\n", limit/4096+1))
	s.Until(t, "not-written")
	if err := d.Attach(t.Context(), in); err != nil {
		t.Errorf("the guest did not live on: %v", err)
	}
}

// TestKeeperTerminated ends a keeper as a shutdown of the host does.
func TestKeeperTerminated(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	d, in := b.booted(t, m)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		if err := syscall.Kill(in.Keeper, sig); err != nil {
			t.Fatal(err)
		}
	}
	e, err := d.Wait(t.Context(), in)
	if err != nil || e.Reason != vps.ExitPowerOff {
		t.Errorf("ended as %+v, %v", e, err)
	}
	wantNone(t, m)
}

// TestMemoryForGuest checks that next to nothing of the guest's memory is
// spent on page structures for a gap behind the program break.
func TestMemoryForGuest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d, in := b.booted(t, b.machine(t))
	s := guesttest.Join(t, d, in, guest.ConsoleOptions{Write: true})
	s.Type(t, "read _ kb _ < /proc/meminfo; [ $kb -gt 52000 ] && echo enough''-memory || busybox head -1 /proc/meminfo\n")
	s.Until(t, "enough-memory")
}
