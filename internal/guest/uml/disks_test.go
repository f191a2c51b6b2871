//go:build linux

package uml

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/guest"
	"sublet/internal/guest/guesttest"
	"sublet/internal/vps"
)

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

// TestBlockDevices boots a guest from a block device of the host that belongs
// to root, with another one as its data disk, and makes it stand still.
func TestBlockDevices(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	root, data := m.Root.Path, filepath.Join(b.root, "data.img")
	if err := os.WriteFile(data, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(root, 0, 0); err != nil {
		t.Fatal(err)
	}
	m.Root.Path, m.Data = loopDevice(t, root), []vps.Disk{{Path: loopDevice(t, data)}}
	d, in := b.booted(t, m)
	s := guesttest.Join(t, d, in, guest.ConsoleOptions{Write: true, NoReplay: true})
	// Device numbers of ubd: 98, and 16 for each disk (Documentation/admin-guide/devices.txt).
	s.Type(t, "busybox mknod /d b 98 48; echo root-was-here > /mark; echo data-was-here > /d; busybox sync; echo wri''tten\n")
	s.Until(t, "written")

	uml := d.(*Driver)
	if err := uml.Sync(t.Context(), in); err != nil {
		t.Error(err)
	}
	resume, err := uml.Pause(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	for device, text := range map[string]string{m.Root.Path: "root-was-here", m.Data[0].Path: "data-was-here"} {
		if content, err := os.ReadFile(device); err != nil || !bytes.Contains(content, []byte(text)) {
			t.Errorf("%s does not hold what the guest wrote: %v", device, err)
		}
	}
	if err := resume(); err != nil {
		t.Error(err)
	}
	s.Type(t, "echo goes-''on\n")
	s.Until(t, "goes-on")
	if err := d.Kill(t.Context(), in); err != nil {
		t.Error(err)
	}
}
