package e2e

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sublet/internal/disk"
	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestDisks gives a guest disks, takes snapshots of them while it writes, and
// goes back.
func TestDisks(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "320MiB", "--disk", "2GiB", "--ssh-key", h.Key+".pub",
		"--data-disk", "data=96MiB", "--wait", "ssh", "--timeout", hang.After.String())
	id := h.Show("alice").ID

	t.Log("a data disk is there, and empty")
	h.SSH("alice", "cmp -n 100663296 /dev/ubdd /dev/zero && mkfs.ext4 -q /dev/ubdd && mount /dev/ubdd /mnt && echo first > /mnt/file && echo first > /root/file && sync")

	t.Log("a snapshot of a guest that writes all the time")
	h.SSH("alice", `(while :; do for d in /root /mnt; do rm -rf $d/new; mkdir $d/new; for i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/urandom > $d/new/$i; done; sync -f $d/new/1; done; done) >/dev/null 2>&1 &`)
	h.Sublet("snapshot", "create", "alice", "one")
	if got := h.SSH("alice", "cat /root/file"); got != "first" {
		t.Errorf("after the snapshot the guest says %q", got)
	}
	if list := h.Sublet("snapshot", "list", "alice"); !strings.Contains(list, "frozen") {
		t.Errorf("its filesystems were not frozen:\n%s", list)
	}
	for _, name := range []string{"", "data"} {
		soundFilesystem(t, h, id, "one", name)
	}
	if r := h.Try("snapshot", "create", "alice", "one"); r.Code != 4 {
		t.Errorf("a second snapshot of that name ends with %d: %s", r.Code, r.Stderr)
	}
	h.SSH("alice", "echo second > /mnt/file; echo second > /root/file; sync")

	t.Log("going back")
	if r := h.Try("snapshot", "restore", "alice", "one", "--yes"); r.Code != 4 || !strings.Contains(r.Stderr, "--stop") {
		t.Errorf("restoring a guest that runs ends with %d: %s", r.Code, r.Stderr)
	}
	h.Sublet("snapshot", "restore", "alice", "one", "--yes", "--stop")
	h.Sublet("wait", "alice", "--for", "ssh", "--timeout", hang.After.String())
	if got := h.SSH("alice", "cat /root/file; mount /dev/ubdd /mnt; cat /mnt/file"); got != "first\nfirst" {
		t.Errorf("after the restore the files say %q", got)
	}

	t.Log("disks that grow, come and go at the next start")
	h.Sublet("disk", "grow", "alice", "data", "+32MiB")
	h.Sublet("disk", "grow", "alice", "3GiB")
	h.Sublet("disk", "add", "alice", "more=16MiB")
	if list := h.Sublet("disk", "list", "alice"); strings.Count(list, "before the guest's next start") != 3 {
		t.Errorf("the list says:\n%s", list)
	}
	h.Sublet("restart", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	const sizes = "blockdev --getsize64 /dev/ubdd /dev/ubde; mount /dev/ubdd /mnt; cat /mnt/file"
	if got := h.SSH("alice", sizes); got != "134217728\n16777216\nfirst" {
		t.Errorf("the disks are %q", got)
	}
	if size := h.SSH("alice", "df -B1M --output=size / | tail -n1"); !between(t, size, 2800, 3072) {
		t.Errorf("its filesystem was not grown to 3 GiB: %s MiB", size)
	}
	h.Sublet("disk", "remove", "alice", "more", "--yes")
	h.Sublet("stop", "alice")
	h.Eventually("the disk is gone", func() bool { return !strings.Contains(h.Sublet("disk", "list", "alice"), "more") })

	t.Log("a daemon that is killed amid a snapshot leaves no guest that stands still")
	h.Sublet("start", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	h.SSH("alice", "head -c 400000000 /dev/urandom > /root/much; sync")
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		stat := filepath.Join("/proc", strconv.Itoa(h.Show("alice").Status.PID), "stat")
		for deadline := time.Now().Add(hang.After); time.Now().Before(deadline); {
			if b, err := os.ReadFile(stat); err != nil || strings.Contains(string(b), ") T ") {
				break
			}
		}
		h.Kill()
	}()
	_ = h.Try("snapshot", "create", "alice", "two")
	<-killed
	h.Start()
	if got := h.SSH("alice", "cat /root/file"); got != "first" {
		t.Errorf("after the daemon was killed the guest says %q", got)
	}
	if left, err := filepath.Glob(filepath.Join(h.StateDir, "volumes", id, "snapshots", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	h.Sublet("delete", "alice", "--yes")
}

// soundFilesystem checks a disk in a snapshot whose filesystem was frozen: not
// even its journal has to be replayed.
func soundFilesystem(t *testing.T, h *lab.Host, id, snapshot, name string) {
	t.Helper()
	c, err := disk.New(filepath.Join(h.StateDir, "volumes"), nil).Open(t.Context(), id, snapshot, name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const piece = 1 << 20
	buf := make([]byte, piece)
	for at := int64(0); ; at += piece {
		next, err := c.NextData(at)
		if errors.Is(err, io.EOF) {
			break
		}
		at = next / piece * piece
		n, readErr := c.ReadAt(buf, at)
		if _, err := f.WriteAt(buf[:n], at); err != nil || readErr != nil && !errors.Is(readErr, io.EOF) {
			t.Fatal(err, readErr)
		}
	}
	if err := errors.Join(f.Truncate(c.Size()), f.Close()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "/usr/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("the filesystem of %q in the snapshot: %v\n%s", name, err, out)
	}
}
