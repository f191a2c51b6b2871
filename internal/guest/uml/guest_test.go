//go:build linux

package uml

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"sublet/internal/guest"
	"sublet/internal/guest/guesttest"
	"sublet/internal/keeper"
	"sublet/internal/vps"
)

const (
	kernelPath = "/usr/bin/linux.uml"
	busybox    = "/bin/busybox"
	testUID    = 721399
	prompt     = "guest-is-up"
)

// inittab makes busybox's init do what Debian's does: power off on
// Ctrl-Alt-Del.
const inittab = `::sysinit:/bin/busybox sh /etc/rc
::respawn:/bin/sh /etc/shell
::ctrlaltdel:/sbin/poweroff
::shutdown:/bin/busybox umount -a -r
`

const rc = `busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -o remount,rw /
echo 0 > /proc/sys/kernel/ctrl-alt-del
echo 4 > /proc/sys/kernel/printk
`

// shell says that it is there in a way that the typed echo does not.
const shell = `echo guest-is''-up
exec /bin/sh
`

// image makes the root filesystem that all tests clone, once.
var image = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(insideMark)
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "sbin", "etc", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return "", fmt.Errorf("the package busybox-static is needed: %w", err)
	}
	files := map[string]string{"bin/busybox": string(program), "etc/inittab": inittab, "etc/rc": rc, "etc/shell": shell}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			return "", err
		}
	}
	for _, link := range []string{"bin/sh", "sbin/init", "sbin/poweroff", "sbin/reboot"} {
		if err := os.Symlink("/bin/busybox", filepath.Join(root, link)); err != nil {
			return "", err
		}
	}
	path := filepath.Join(dir, "root.img")
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, path, "8M").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return path, os.RemoveAll(root)
})

var guests atomic.Int64

// bench is one test's host: its run folders.
type bench struct{ root string }

func newBench(t *testing.T) *bench {
	t.Helper()
	// Not t.TempDir: its path depends on the test's name, and its parents
	// shut the guest's user out.
	root, err := os.MkdirTemp(os.Getenv(insideMark), "run-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &bench{root: root}
}

func (b *bench) driver(t *testing.T) guest.Driver {
	t.Helper()
	return New(Options{RunRoot: filepath.Join(b.root, "guests"), Launcher: testLauncher()})
}

// machine returns a guest with a disk and a tap of its own.
func (b *bench) machine(t *testing.T) vps.Machine {
	t.Helper()
	base, err := image()
	if err != nil {
		t.Fatal(err)
	}
	n := guests.Add(1)
	name := fmt.Sprintf("g%d", n)
	disk := filepath.Join(b.root, name+".img")
	content, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(disk, testUID, testUID); err != nil {
		t.Fatal(err)
	}
	m := vps.Machine{
		ID: "id-" + name, Name: name, Boots: 1, UID: testUID, Memory: 64 * vps.MiB,
		Kernel:    vps.Kernel{Name: "uml/test", Path: kernelPath},
		Root:      vps.Disk{Path: disk},
		DiskLimit: 16 * vps.MiB,
		Tap:       "sl-" + name, MAC: net.HardwareAddr{2, 'S', 'L', 0, 0, byte(n)},
		RunDir: filepath.Join(b.root, "guests", name), LogPath: filepath.Join(b.root, "log", name+".log"),
	}
	out, err := exec.Command("ip", "tuntap", "add", "dev", m.Tap, "mode", "tap", "vnet_hdr", "user", fmt.Sprint(testUID)).CombinedOutput()
	if err != nil {
		t.Fatalf("make a tap: %v: %s", err, out)
	}
	t.Cleanup(func() {
		clean(t, m)
		// Its address may be the next test's.
		if out, err := exec.Command("ip", "link", "del", m.Tap).CombinedOutput(); err != nil {
			t.Errorf("remove a tap: %v: %s", err, out)
		}
	})
	return m
}

// clean kills what runs of a machine, and after a failure shows what it said.
func clean(t *testing.T, m vps.Machine) {
	t.Helper()
	if t.Failed() {
		log, _ := os.ReadFile(m.LogPath)
		words, _ := os.ReadFile(filepath.Join(m.RunDir, "keeper.log"))
		t.Logf("console of %s:\n%s\nkeeper:\n%s", m.Name, log[max(0, len(log)-3000):], words)
	}
	in, err := keeper.Find(m.RunDir)
	if vps.ErrorCode(err) == vps.CodeNotFound {
		return
	}
	if err == nil {
		err = keeper.Kill(withoutCancel(t), in)
	}
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	guesttest.Run(t, b.rig())
}

func (b *bench) rig() guesttest.Rig {
	// do types a command as a new writer.
	do := func(t *testing.T, d guest.Driver, in vps.Instance, command string) *guesttest.Screen {
		t.Helper()
		s := guesttest.Join(t, d, in, guest.ConsoleOptions{Takeover: true, NoReplay: true})
		s.Type(t, command+"\n")
		return s
	}
	return guesttest.Rig{
		Driver:  b.driver,
		Machine: b.machine,
		Booted: func(t *testing.T, d guest.Driver, in vps.Instance) {
			t.Helper()
			s := guesttest.Join(t, d, in, guest.ConsoleOptions{})
			s.Until(t, prompt)
			_ = s.Close()
		},
		PowerOff: func(t *testing.T, d guest.Driver, in vps.Instance) {
			t.Helper()
			do(t, d, in, "poweroff -f")
		},
		Reboot: func(t *testing.T, d guest.Driver, in vps.Instance) {
			t.Helper()
			do(t, d, in, "reboot -f").Until(t, prompt)
		},
		Panic: func(t *testing.T, d guest.Driver, in vps.Instance) {
			t.Helper()
			do(t, d, in, "echo c > /proc/sysrq-trigger")
		},
		Crash: func(t *testing.T, _ guest.Driver, in vps.Instance) {
			t.Helper()
			if err := syscall.Kill(in.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Abandon: b.abandon,
		Typed: func(word string) (string, string) {
			return "echo " + word[:1] + "''" + word[1:] + "\n", word
		},
	}
}

func (b *bench) abandon(t *testing.T, m vps.Machine) vps.Instance {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, verbStarter)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = json.NewEncoder(stdin).Encode(map[string]any{"RunRoot": filepath.Join(b.root, "guests"), "Machine": m})
	if err != nil {
		t.Fatal(err)
	}
	var in vps.Instance
	if err := json.NewDecoder(stdout).Decode(&in); err != nil {
		t.Fatalf("the starter failed: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return in
}
