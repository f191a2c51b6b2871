package guestinit_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/seed"
	"sublet/internal/vps"
)

// TestBootFilesystems boots from roots of XFS and Btrfs that are smaller than
// their disks, one of them in a subvolume, with swap and an extra disk.
func TestBootFilesystems(t *testing.T) {
	t.Parallel()
	for name, mkfs := range map[string]func(l *lab, root string){
		"xfs": func(l *lab, root string) {
			l.newDisk(320 << 20)
			l.net.Exec("mkfs.xfs", "-q", "-f", "-p", l.protofile(root), l.disk)
		},
		"btrfs": func(l *lab, root string) {
			l.newDisk(256 << 20)
			l.net.Exec("mkfs.btrfs", "-q", "-f", "--rootdir", root, l.disk)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			mkfs(l, l.makeTree())
			const size = 640
			l.must(os.Truncate(l.disk, size<<20))
			l.seed.DiskSize, l.seed.Swap, l.seed.Driver = size*vps.MiB, 64*vps.MiB, "uml"
			l.extra = filepath.Join(l.dir, "extra.img")
			l.must(os.WriteFile(l.extra, make([]byte, 1<<20), 0o600))
			l.seed.Disks = []seed.Disk{{Name: "data", Device: "/dev/ubdd", Size: vps.MiB}}
			first := l.factsOf()
			fields := strings.Fields(first["size"])
			// What the filesystem keeps for itself is less than a tenth.
			if n, err := strconv.Atoi(fields[max(0, len(fields)-5)]); err != nil || n < size*9/10 || n > size {
				t.Errorf("it has %d MiB of %d: %q", n, size, first["size"])
			}
			for fact, want := range map[string]string{
				"mounts": "/dev/ubda / " + name + " rw", "swap": "/sublet.swap", "disks": "sublet-data -> ../../ubdd", "hostname": "alice",
			} {
				if !strings.Contains(first[fact], want) {
					t.Errorf("%s: %q, without %q", fact, first[fact], want)
				}
			}
			// The next boot finds all of it; a wish for less swap is fulfilled.
			l.seed.Swap = 0
			if second := l.factsOf(); second["size"] == "" || strings.Contains(second["swap"], "/sublet.swap") || second["hostkey"] != first["hostkey"] {
				t.Errorf("after the second boot: %q", second)
			}
			switch name {
			case "xfs":
				l.net.Exec("xfs_repair", "-L", l.disk) // poweroff -f leaves the log
				l.net.Exec("xfs_repair", "-n", l.disk)
			case "btrfs":
				l.net.Exec("btrfs", "check", "--readonly", l.disk)
			}
		})
	}
}

// moveScript is an init that moves its system into a subvolume, as installers do
// from the start.
const moveScript = `#!/bin/sh
/bin/mksubvol / @ && cp -a /bin /etc /lib /usr /sbin /@/ && mv /@/sbin/real /@/sbin/init && rm /sbin/init && echo fact pid=moved
poweroff -f
`

// TestBootSubvolume boots from a Btrfs whose system lies in a subvolume that is
// not the default one.
func TestBootSubvolume(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	root := l.makeTree()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(root, "bin/mksubvol"), "./testdata/mksubvol")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	l.must(os.Rename(filepath.Join(root, "sbin/init"), filepath.Join(root, "sbin/real")))
	l.must(os.WriteFile(filepath.Join(root, "sbin/init"), []byte(moveScript), 0o755))
	for _, applet := range []string{"cp", "mv", "rm"} {
		l.must(os.Symlink("/bin/busybox", filepath.Join(root, "bin", applet)))
	}
	l.newDisk(256 << 20)
	l.net.Exec("mkfs.btrfs", "-q", "-f", "--rootdir", root, l.disk)
	l.must(os.Truncate(l.disk, 320<<20))
	l.seed.DiskSize = 320 * vps.MiB
	if shown := l.boot(l.disk, "", nil); !strings.Contains(shown, "fact pid=moved") {
		t.Fatalf("the system was not moved:\n%s", shown)
	}
	if got := l.factsOf(); !strings.Contains(got["mounts"], "subvol=/@ 0 0") || got["hostname"] != "alice" {
		t.Errorf("mounted: %q, host name %q", got["mounts"], got["hostname"])
	}
}

// factsOf boots the guest once.
func (l *lab) factsOf() map[string]string {
	l.t.Helper()
	seedPath, _, err := seed.Set(l.t.Context(), l.dir, "g1", l.seed, uint32(os.Getuid()))
	l.must(err)
	shown := l.boot(l.disk, seedPath, nil)
	if strings.Contains(shown, "sublet: ") && !strings.Contains(shown, "sublet: the root filesystem has") || !strings.Contains(shown, "fact pid=1") {
		l.t.Errorf("console:\n%s", shown)
	}
	return facts(shown)
}

// protofile describes a folder to mkfs.xfs, which has no better way.
func (l *lab) protofile(root string) string {
	l.t.Helper()
	var b strings.Builder
	b.WriteString("/\n0 0\nd--755 0 0\n")
	depth := 0
	l.must(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		for in := strings.Count(strings.TrimPrefix(path, root), "/"); depth >= in; depth-- {
			b.WriteString("$\n")
		}
		switch {
		case d.IsDir():
			b.WriteString(d.Name() + " d--755 0 0\n")
			depth++
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			b.WriteString(d.Name() + " l--777 0 0 " + target + "\n")
		default:
			b.WriteString(d.Name() + " ---755 0 0 " + path + "\n")
		}
		return nil
	}))
	b.WriteString(strings.Repeat("$\n", depth+1))
	file := filepath.Join(l.dir, "proto")
	l.must(os.WriteFile(file, []byte(b.String()), 0o600))
	return file
}
