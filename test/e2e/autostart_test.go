package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestAutostart takes the host through a reboot, as far as a test can: all
// processes die, what lies in memory is gone, and the boot id is another one.
func TestAutostart(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	create := func(name string, args ...string) {
		h.Sublet(append([]string{"create", name, "--memory", "128MiB", "--ssh-key", h.Key + ".pub"}, args...)...)
	}
	create("alice", "--wait", "ssh", "--timeout", hang.After.String())
	create("always-off", "--stopped")
	create("bob", "--autostart=false")
	create("carol")
	create("dave")
	h.SSH("alice", "echo precious > /root/data && sync")
	for _, name := range []string{"bob", "carol", "dave"} {
		h.Sublet("wait", name, "--for", "running", "--timeout", hang.After.String())
	}
	h.Sublet("kill", "dave") // stopped by order, and so to stay
	before := h.Show("alice")

	powerCut(t, h, "7a0e3f0c-1111-4222-8333-0123456789ab")
	h.Start()
	for _, name := range []string{"alice", "carol"} {
		h.Sublet("wait", name, "--for", "ssh", "--timeout", hang.After.String())
	}
	h.Eventually("the plan is empty", h.Settled)
	states := func(want string) {
		t.Helper()
		got := h.Sublet("list", "--no-headers", "-o", "csv")
		var lines []string
		for line := range strings.Lines(got) {
			fields := strings.Split(strings.TrimSpace(line), ",")
			lines = append(lines, fields[0]+" "+h.Show(fields[0]).Status.State)
		}
		if got := strings.Join(lines, ", "); got != want {
			t.Errorf("the guests are: %s; want %s", got, want)
		}
	}
	states("alice running, always-off stopped, bob stopped, carol running, dave stopped")
	if after := h.Show("alice"); after.ID != before.ID || after.Status.PID == before.Status.PID || after.Status.Restarts != 0 {
		t.Errorf("alice is %+v; was %+v", after, before)
	}
	if data := h.SSH("alice", "cat /root/data"); data != "precious" {
		t.Errorf("after the power cut alice's file says %q", data)
	}

	t.Log("a daemon that is started again is no reboot")
	h.Stop()
	h.Start()
	h.Eventually("the plan is empty", h.Settled)
	states("alice running, always-off stopped, bob stopped, carol running, dave stopped")

	t.Log("one that was left out can be started")
	h.Sublet("start", "bob", "--wait", "ssh", "--timeout", hang.After.String())
	states("alice running, always-off stopped, bob running, carol running, dave stopped")
}

// powerCut ends everything on the host and lets the next daemon see another
// boot of it.
func powerCut(t *testing.T, h *lab.Host, bootID string) {
	t.Helper()
	h.Kill()
	records, err := filepath.Glob(filepath.Join(h.RunDir, "guests", "*", "instance.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		var i struct {
			Keeper int             `json:"keeper"`
			PID    int             `json:"pid"`
			Exit   json.RawMessage `json:"exit"`
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		decode(t, string(text), &i)
		if i.Exit != nil {
			continue
		}
		if err := syscall.Kill(i.Keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.Eventually("the guest ends with its keeper", func() bool {
			return errors.Is(syscall.Kill(i.PID, 0), syscall.ESRCH) && errors.Is(syscall.Kill(i.Keeper, 0), syscall.ESRCH)
		})
	}
	h.RemoveGroups()
	if err := os.RemoveAll(h.RunDir); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"inet", "netdev", "bridge"} {
		h.NS.Exec("nft", "delete", "table", family, "sublet")
	}
	for line := range strings.Lines(h.NS.Exec("ip", "-o", "link")) {
		if name := strings.TrimSuffix(strings.Fields(line)[1], ":"); strings.HasPrefix(name, "sl-") {
			h.NS.Exec("ip", "link", "del", name)
		}
	}
	h.NS.Exec("sysctl", "-qw", "net.ipv4.ip_forward=0")
	// In the test's own mounts, which the daemon has from it.
	path := filepath.Join(h.Dir, "boot_id")
	writeFile(t, path, bootID+"\n")
	const real = "/proc/sys/kernel/random/boot_id"
	if err := unix.Mount(path, real, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(real, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
