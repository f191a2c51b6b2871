//go:build linux

package appliance_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sublet/internal/appliance"
	"sublet/internal/appliance/inside"
	"sublet/internal/vps"
)

// tools is a disk with the host's own programs that check filesystems and what
// they load, in the place of the rescue system.
var tools = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(insideMark)
	root := filepath.Join(dir, "tools")
	for _, d := range []string{"dev", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	libraries := regexp.MustCompile(`/\S+`)
	for inside, name := range map[string]string{"/sbin/e2fsck": "e2fsck", "/sbin/xfs_repair": "xfs_repair", "/bin/btrfs": "btrfs"} {
		program, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		listing, err := exec.Command("ldd", program).Output()
		if err != nil {
			return "", err
		}
		files := map[string]string{inside: program}
		for _, lib := range libraries.FindAllString(string(listing), -1) {
			files[lib] = lib
		}
		for to, from := range files {
			text, err := os.ReadFile(from)
			if err != nil {
				return "", err
			}
			to = filepath.Join(root, to)
			if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, text, 0o755)); err != nil {
				return "", err
			}
		}
	}
	path := filepath.Join(dir, "tools.img")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, path, "64M").CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return path, os.Chmod(path, 0o444)
})

// disk makes a filesystem with a few files, and says how it is attached.
func (b *bench) disk(t *testing.T, kind string) appliance.Spec {
	t.Helper()
	path := filepath.Join(b.dir, kind+".img")
	err := b.Make(t.Context(), appliance.Make{Path: path, Size: 400 * vps.MiB, Filesystem: kind, UID: testUID}, archive(t,
		tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "etc/motd", Typeflag: tar.TypeReg, Mode: 0o644, Uid: 1, Gid: 2, Linkname: "hello\n"},
		tar.Header{Name: "escape", Typeflag: tar.TypeSymlink, Linkname: "/../../etc"},
	))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, testUID, testUID); err != nil {
		t.Fatal(err)
	}
	return appliance.Spec{Disks: []vps.Disk{{Path: path}}, UID: testUID}
}

// members lists an archive, a line for each.
func members(t *testing.T, archive io.Reader) map[string]string {
	t.Helper()
	found := map[string]string{}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = string(text) + h.Linkname
	}
}

func TestCopy(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, kind := range appliance.Filesystems() {
		s := b.disk(t, kind)
		big := strings.Repeat("0123456789abcdef", 3<<20) // 48 MiB
		if err := b.CopyIn(t.Context(), s, "/escape/new", archive(t, tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o600, Linkname: big})); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		var out bytes.Buffer
		if err := b.CopyOut(t.Context(), s, "/etc", &out); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		got := members(t, &out)
		if len(got) != 3 || got["etc/motd"] != "hello\n" || got["etc/new"] != big {
			t.Errorf("%s: %d members, motd %q, %d bytes", kind, len(got), got["etc/motd"], len(got["etc/new"]))
		}
		if err := b.CopyOut(t.Context(), s, "/no/such", io.Discard); vps.ErrorCode(err) != vps.CodeNotFound {
			t.Errorf("%s: a missing file is %v", kind, err)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rescue, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	for kind, damage := range map[string]func(path string) error{
		// The count of free blocks, and the links of the root folder.
		"ext4": func(path string) error {
			return exec.Command("debugfs", "-w", "-R", "set_inode_field / links_count 77", path).Run()
		},
		"xfs": func(path string) error {
			return exec.Command("xfs_db", "-x", "-c", "inode 128", "-c", "write -d core.nlinkv2 77", path).Run()
		},
		"btrfs": nil,
	} {
		s := b.disk(t, kind)
		s.Tools = vps.Disk{Path: rescue, ReadOnly: true}
		check := func(repair bool, want inside.Verdict) {
			t.Helper()
			var said bytes.Buffer
			got, err := b.Check(t.Context(), s, repair, &said)
			if err != nil || got.Verdict != want || got.Filesystem != kind || said.Len() == 0 {
				t.Errorf("%s, repair %t: %+v, %v; want %s\n%s", kind, repair, got, err, want, said.String())
			}
		}
		check(false, inside.Clean)
		if damage == nil {
			check(true, inside.Clean)
			continue
		}
		if err := damage(s.Disks[0].Path); err != nil {
			t.Fatal(err)
		}
		check(false, inside.Damaged)
		check(true, inside.Mended)
		check(false, inside.Clean)
	}
}

func TestUnsound(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	path := filepath.Join(b.dir, "nothing.img")
	if err := errors.Join(os.WriteFile(path, make([]byte, 1<<20), 0o600), os.Chown(path, testUID, testUID)); err != nil {
		t.Fatal(err)
	}
	err := b.CopyOut(t.Context(), appliance.Spec{Disks: []vps.Disk{{Path: path}}, UID: testUID}, "/", io.Discard)
	if vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("an empty disk is %v", err)
	}
}

// TestLeash kills the process that talks to an appliance, as far as the
// appliance can tell, and looks whether it goes by itself.
func TestLeash(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, err := b.Start(t.Context(), b.disk(t, "ext4"))
	if err != nil {
		t.Fatal(err)
	}
	a.Abandon()
	running, err := b.driver.List(t.Context())
	if err != nil || len(running) != 1 {
		t.Fatal(running, err)
	}
	exit, err := b.driver.Wait(t.Context(), running[0])
	if err != nil || exit.Reason != vps.ExitKilled {
		t.Errorf("it ended as %v, %v", exit, err)
	}
	if err := syscall.Kill(running[0].PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("its process: %v", err)
	}
	if err := b.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(b.runs); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
