package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestBroken breaks a guest in the ways that guests break, and brings it back.
func TestBroken(t *testing.T) {
	t.Parallel()
	lab.Rescue(t)
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--ssh-key", h.Key+".pub", "--data-disk", "data=64MiB", "--wait", "ssh", "--timeout", hang.After.String())
	before := h.Show("alice")

	// It locks everybody out, and leaves traps for whoever copies.
	h.SSH("alice", "usermod -p '*' root; rm -rf /root/.ssh; echo kept > /root/kept; ln -s / /root/out; echo on-data | dd of=/dev/disk/by-id/sublet-data conv=fsync 2>&1; sync")
	if r := h.Try("cp", "alice:/root/kept", h.Dir); r.Code != 4 || !strings.Contains(r.Stderr, "stop it first") {
		t.Errorf("cp while it runs: exit code %d, %s", r.Code, r.Stderr)
	}
	h.Sublet("stop", "alice")
	copies(t, h)
	mended(t, h, before)
	letIn(t, h)
	reinstalled(t, h, before)
	timeBoxed(t, h)
	daemonKilledWhileCopying(t, h)
}

func copies(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Sublet("cp", "alice:/root/kept", filepath.Join(h.Dir, "copy"))
	if text, err := os.ReadFile(filepath.Join(h.Dir, "copy")); err != nil || string(text) != "kept\n" {
		t.Errorf("what was copied out says %q, %v", text, err)
	}
	// The link leads to the guest's root, and not to anybody else's.
	h.Sublet("cp", filepath.Join(h.Dir, "copy"), "alice:/root/out/etc/copied-in")
	h.SubletInput("", "cp", "alice:/etc/copied-in", filepath.Join(h.Dir, "back"))
	if _, err := os.Stat(filepath.Join(h.Dir, "back")); err != nil {
		t.Error(err)
	}
	if r := h.Try("cp", "alice:/no/such", h.Dir); r.Code != 3 {
		t.Errorf("a missing file: exit code %d, %s", r.Code, r.Stderr)
	}
}

// mended damages the guest's filesystem from the rescue system, and mends it.
func mended(t *testing.T, h *lab.Host, before lab.Guest) {
	t.Helper()
	h.Sublet("rescue", "alice", "--key", h.Key+".pub")
	if now := h.Show("alice"); now.Status.State != "rescue" || now.Spec.Address != before.Spec.Address {
		t.Errorf("in rescue it is %s at %s", now.Status.State, now.Spec.Address)
	}
	// From outside, through the guest's own port.
	said := h.SSHFrom(h.Outside, before.Spec.Ports.First,
		"mount-guest && cat /mnt/root/kept && echo from-rescue > /mnt/root/mended && umount-guest && "+
			"dd if=/dev/disk/by-id/sublet-data bs=7 count=1 2>/dev/null && debugfs -w -R 'set_inode_field / links_count 77' /dev/disk/by-id/sublet-root && sync")
	for _, want := range []string{"kept", "on-data"} {
		if !strings.Contains(said, want) {
			t.Errorf("the rescue system says %q, without %q", said, want)
		}
	}
	h.Sublet("rescue", "alice", "--end")
	if now := h.Show("alice"); now.Status.State != "stopped" {
		t.Errorf("after its rescue it is %s, and was stopped before", now.Status.State)
	}
	if r := h.Try("fsck", "alice"); r.Code != 1 || !strings.Contains(r.Stdout, "77") {
		t.Errorf("fsck of what is damaged: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	h.Sublet("fsck", "alice", "--repair")
	h.Sublet("fsck", "alice")
}

// letIn gives the guest a password and sees that keys are back.
func letIn(t *testing.T, h *lab.Host) {
	t.Helper()
	h.SubletInput("correct horse\n", "reset-password", "alice", "--password-file", "-")
	h.Sublet("start", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	if said := h.SSH("alice", "cat /root/mended /etc/copied-in; getent shadow root"); !strings.Contains(said, "from-rescue\nkept\nroot:$6$") {
		t.Errorf("after it was mended the guest says %q", said)
	}
}

func reinstalled(t *testing.T, h *lab.Host, before lab.Guest) {
	t.Helper()
	if r := h.Try("reinstall", "alice", "--image", "debian/99", "--yes"); r.Code != 3 {
		t.Errorf("from an image that is not there: exit code %d, %s", r.Code, r.Stderr)
	}
	if r := h.Try("reinstall", "alice"); r.Code != 2 {
		t.Errorf("unasked: exit code %d, %s", r.Code, r.Stderr)
	}
	h.Sublet("reinstall", "alice", "--yes")
	h.Sublet("wait", "alice", "--for", "ssh", "--timeout", hang.After.String())
	now := h.Show("alice")
	if now.ID != before.ID || now.Spec != before.Spec || now.UID != before.UID || now.Link != before.Link {
		t.Errorf("it was %+v and is %+v", before, now)
	}
	if said := h.SSH("alice", "ls /root; dd if=/dev/disk/by-id/sublet-data bs=7 count=1 2>/dev/null"); said != "on-data" {
		t.Errorf("after it was reinstalled the guest says %q", said)
	}
	if files, err := filepath.Glob(filepath.Join(h.StateDir, "volumes", now.ID, "disk*")); err != nil || len(files) != 1 {
		t.Errorf("its disks are %v, %v", files, err)
	}
}

// timeBoxed leaves a guest in rescue, and kills the daemon that knows of it.
func timeBoxed(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Sublet("rescue", "alice", "--key", h.Key+".pub", "--for", "10s", "--yes", "--no-wait")
	h.Kill()
	h.Start()
	h.Eventually("the rescue is over, and the guest back", func() bool { return h.Show("alice").Status.State == "running" && h.Settled() })
	if roots, err := os.ReadDir(filepath.Join(h.StateDir, "rescue")); err != nil && !errors.Is(err, os.ErrNotExist) || len(roots) > 0 {
		t.Errorf("left of the rescue: %v, %v", roots, err)
	}
}

func daemonKilledWhileCopying(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Sublet("stop", "alice")
	out, err := os.Create(filepath.Join(h.Dir, "all.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // nobody reads it
	copying := exec.CommandContext(t.Context(), lab.Sublet(t), "cp", "alice:/", "-")
	copying.Env, copying.Stdout = h.Env, out
	if err := copying.Start(); err != nil {
		t.Fatal(err)
	}
	h.Eventually("something is copied", func() bool { info, err := out.Stat(); return err == nil && info.Size() > 0 })
	runs := filepath.Join(h.RunDir, "appliances")
	pids := h.InstancePIDs(runs)
	if len(pids) != 1 {
		t.Fatalf("appliances run: %v", pids)
	}
	h.Kill()
	if err := copying.Wait(); err == nil {
		t.Error("the copy is said to be whole")
	}
	h.Eventually("the appliance is gone", func() bool { return errors.Is(syscall.Kill(pids[0], 0), syscall.ESRCH) })
	h.Start()
	if left, err := os.ReadDir(runs); err != nil || len(left) > 0 {
		t.Errorf("left of the appliance: %v, %v", left, err)
	}
	h.Sublet("start", "alice", "--wait", "ssh", "--timeout", hang.After.String())
}
