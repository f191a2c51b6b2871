package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// sublet runs a command line of the shell's.
func sublet(t *testing.T, on *lab.Host, command string) lab.Result {
	t.Helper()
	return on.Command("/bin/sh", "-c", lab.Sublet(t)+" "+command)
}

const packSums = "sha256sum < /root/file; sha256sum < /dev/ubdd"

// TestPack moves a guest to another host, and breaks the line on the way.
func TestPack(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "320MiB", "--disk", "2GiB", "--ssh-key", h.Key+".pub", "--data-disk", "data=64MiB", "--wait", "ssh", "--timeout", hang.After.String())
	h.SSH("alice", "head -c 20000000 /dev/urandom > /root/file; head -c 5000000 /dev/urandom | dd of=/dev/ubdd seek=3000 status=none; sync")
	want := h.SSH("alice", packSums)

	file := filepath.Join(t.TempDir(), "alice.sublet")
	if r := sublet(t, h, "pack alice > "+file); r.Code != 4 || !strings.Contains(r.Stderr, "--live") {
		t.Errorf("packing a guest that runs ends with %d: %s", r.Code, r.Stderr)
	}
	if r := sublet(t, h, "pack alice --live > "+file); r.Code != 0 {
		t.Fatalf("pack --live ends with %d: %s", r.Code, r.Stderr)
	}
	if got := h.SSH("alice", packSums); got != want {
		t.Errorf("after it was packed the guest says %q, and said %q", got, want)
	}
	if list := h.Sublet("snapshot", "list", "-q"); strings.TrimSpace(list) != "" {
		t.Errorf("a snapshot is left: %s", list)
	}

	// A test's thread is in the network of one host, so the other one has a test
	// of its own.
	t.Run("other host", func(t *testing.T) { unpackElsewhere(t, file, h.Key, want) })
	h.Sublet("delete", "alice", "--yes")
}

// unpackElsewhere makes a guest of a file on a host that has no image, and
// breaks the line on the way.
func unpackElsewhere(t *testing.T, file, key, want string) {
	t.Helper()
	other := lab.New(t)
	other.Start()
	other.Key = key
	t.Log("a line that breaks, and a daemon that is killed")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if r := sublet(t, other, "unpack - < /dev/null"); r.Code != 2 {
		t.Errorf("an empty file ends with %d: %s", r.Code, r.Stderr)
	}
	half := strconv.FormatInt(info.Size()/2, 10)
	if r := sublet(t, other, "unpack - --name bob < /dev/null; head -c "+half+" "+file+" | "+lab.Sublet(t)+" unpack - --name bob"); r.Code != 8 || !strings.Contains(r.Stderr, "--resume") {
		t.Errorf("half of the file ends with %d: %s", r.Code, r.Stderr)
	}
	other.Kill()
	<-other.Gone()
	other.Start()
	if r := sublet(t, other, "unpack "+file+" --name bob --resume --start"); r.Code != 0 || !strings.Contains(r.Stderr, "going on behind") {
		t.Fatalf("going on ends with %d: %s", r.Code, r.Stderr)
	}
	other.Sublet("wait", "bob", "--for", "ssh", "--timeout", hang.After.String())
	if got := other.SSH("bob", packSums); got != want {
		t.Errorf("on the other host the guest says %q, and said %q", got, want)
	}
	other.Sublet("delete", "bob", "--yes")
	if left, err := filepath.Glob(filepath.Join(other.StateDir, "volumes", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}
