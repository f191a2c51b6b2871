package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sublet/test/lab"
)

// debian is a folder with a Debian that boots and answers SSH.
func debian(t *testing.T) string {
	t.Helper()
	return lab.Debian(t, "apt", "systemd-sysv,openssh-server,iproute2,iputils-ping")
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
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pkglist.x86_64.txt"), []byte("base 3-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tarball := filepath.Join(dir, "bootstrap.tar.zst")
	run(t, "tar", "--zstd", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--create", "--file", tarball, "--transform=s,^[.],root.x86_64,S",
		"--directory", debian(t), ".", "--directory", dir, "pkglist.x86_64.txt")
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
