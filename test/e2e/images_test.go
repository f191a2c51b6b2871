package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sublet/test/lab"
)

// debianTree unpacks the image that all tests share into a new folder, called
// name, and returns the folder that this is in.
func debianTree(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(lab.Images(t), "debian/12/latest/disk.img")
	run(t, "debugfs", "-R", "rdump / "+filepath.Join(dir, name), disk)
	return dir
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

// TestImportedImage boots a guest from a tarball in the layout of Arch's
// bootstrap.
func TestImportedImage(t *testing.T) {
	t.Parallel()
	dir := debianTree(t, "root.x86_64")
	if err := os.WriteFile(filepath.Join(dir, "pkglist.x86_64.txt"), []byte("base 3-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tarball := filepath.Join(dir, "bootstrap.tar.zst")
	run(t, "tar", "--directory", dir, "--zstd", "--xattrs", "--numeric-owner", "--create", "--file", tarball, "root.x86_64", "pkglist.x86_64.txt")
	h := lab.New(t)
	h.Start()
	h.Sublet("image", "import", tarball, "--name", "arch/latest", "--capacity", "4GiB")
	h.Sublet("create", "alice", "--image", "arch/latest", "--memory", "192MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", "3m")
	if got := h.SSH("alice", "stat -c %a:%U /usr/bin/passwd"); got != "4755:root" {
		t.Errorf("passwd is %s", got)
	}
	r := h.Try("image", "delete", "arch/latest")
	if r.Code != 4 {
		t.Errorf("deleting an image in use: exit code %d\n%s", r.Code, r.Stderr)
	}
}
