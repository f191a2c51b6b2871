package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/hang"
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
	h.Sublet("create", "alice", "--image", "arch/latest", "--memory", "192MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
	if got := h.SSH("alice", "stat -c %a:%U /usr/bin/passwd"); got != "4755:root" {
		t.Errorf("passwd is %s", got)
	}
	r := h.Try("image", "delete", "arch/latest")
	if r.Code != 4 {
		t.Errorf("deleting an image in use: exit code %d\n%s", r.Code, r.Stderr)
	}
}

// TestImportedFilesystems boots guests whose root is XFS and Btrfs, made of an
// archive, and one from the second partition of a disk in QEMU's format.
func TestImportedFilesystems(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tarball := filepath.Join(dir, "root.tar.gz")
	run(t, "tar", "--use-compress-program=gzip -1", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--create", "--file", tarball, "--directory", debian(t), ".")
	disk := filepath.Join(dir, "disk.qcow2")
	partitioned(t, dir, disk)
	h := lab.New(t)
	h.Start()
	for _, kind := range []string{"xfs", "btrfs", "ext4"} {
		name := "own/" + kind
		if kind == "ext4" {
			h.Sublet("image", "import", disk, "--name", name, "--capacity", "10GiB")
		} else {
			h.Sublet("image", "import", tarball, "--name", name, "--filesystem", kind, "--capacity", "10GiB")
		}
		guest := "g-" + kind
		h.Sublet("create", guest, "--image", name, "--memory", "256MiB", "--disk", "3GiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
		if got := h.SSH(guest, "findmnt -no FSTYPE / || awk '$2 == \"/\" { t = $3 } END { print t }' /proc/mounts"); got != kind {
			t.Errorf("the root of %s is %s", guest, got)
		}
		if got := h.SSH(guest, "getcap /usr/bin/ping /bin/ping 2>/dev/null | head -1; stat -c %a:%U /usr/bin/passwd"); !strings.Contains(got, "4755:root") {
			t.Errorf("in %s: %s", guest, got)
		}
		h.Sublet("kill", guest)
	}
	var shown struct {
		Init, Source, OS string
		SHA256           string `json:"sha256"`
	}
	if err := json.Unmarshal([]byte(h.Sublet("image", "show", "own/ext4", "-o", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.Init != "systemd" || shown.Source != "disk" || !strings.Contains(shown.OS, "bookworm") {
		t.Errorf("the disk's system is %+v", shown)
	}
}

// partitioned makes the image of a disk whose second partition is a Debian, as
// clouds have them.
func partitioned(t *testing.T, dir, path string) {
	t.Helper()
	const size = 1200
	root, raw := filepath.Join(dir, "root.img"), filepath.Join(dir, "disk.raw")
	run(t, "mke2fs", "-q", "-t", "ext4", "-L", "cloudimg", "-d", debian(t), root, strconv.Itoa(size)+"M")
	run(t, "truncate", "-s", strconv.Itoa(size+200)+"M", raw)
	run(t, "sh", "-c", `printf 'label: gpt\nstart=2048, size=200000, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nsize=`+strconv.Itoa(size*2048)+`\n' | sfdisk -q "$0"`, raw)
	run(t, "dd", "if="+root, "of="+raw, "bs=512", "seek=202752", "conv=notrunc,sparse", "status=none")
	run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
	for _, p := range []string{root, raw} {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}
