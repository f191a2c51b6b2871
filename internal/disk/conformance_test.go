package disk_test

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/disk"
	"sublet/internal/disk/disktest"
	"sublet/internal/vps"
)

// image makes an image that is as long as asked, with a filesystem of 16 MiB
// and more than zeros in it.
func image(t *testing.T, dir string, length vps.Bytes) vps.Image {
	t.Helper()
	files, path := t.TempDir(), filepath.Join(dir, "base.img")
	content := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	if err := os.WriteFile(filepath.Join(files, "content"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", files, path, "16M").CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	if err := os.Truncate(path, int64(length)); err != nil {
		t.Fatal(err)
	}
	return vps.Image{Name: "test/1", ID: "test-1", Filesystem: "ext4", Size: length, Content: 4 * vps.MiB, Path: path}
}

// paths lists everything below dir but names that were given out at random.
func paths(dir string) func(t *testing.T) []string {
	return func(t *testing.T) []string {
		t.Helper()
		var all []string
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if path != dir && filepath.Base(path) != "snapshots" {
				all = append(all, path)
			}
			return err
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return all
	}
}

func files(t *testing.T, dir string, length vps.Bytes) disktest.Bench {
	t.Helper()
	volumes := filepath.Join(dir, "volumes")
	if err := os.MkdirAll(volumes, 0o711); err != nil {
		t.Fatal(err)
	}
	return disktest.Bench{Store: disk.New(volumes, nil), Storage: vps.StorageFile, Image: image(t, dir, length), Left: paths(volumes)}
}

// The machine's own filesystem decides between reflinks and overlays; tmpfs
// has none, and an image that is shorter than the disk can only be copied.
func TestConformanceOverlay(t *testing.T) {
	t.Parallel()
	disktest.Run(t, func(t *testing.T) disktest.Bench {
		t.Helper()
		return files(t, mounted(t, "tmpfs", "tmpfs", "size=512m"), 64*vps.GiB)
	})
}

func TestConformanceCopy(t *testing.T) {
	t.Parallel()
	disktest.Run(t, func(t *testing.T) disktest.Bench {
		t.Helper()
		return files(t, mounted(t, "tmpfs", "tmpfs", "size=512m"), 16*vps.MiB)
	})
}

func TestConformanceReflink(t *testing.T) {
	t.Parallel()
	for name, mkfs := range map[string][]string{"btrfs": {"mkfs.btrfs", "-q"}, "xfs": {"mkfs.xfs", "-q", "-m", "reflink=1"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disktest.Run(t, func(t *testing.T) disktest.Bench {
				t.Helper()
				device := filepath.Join(t.TempDir(), "device")
				if err := os.WriteFile(device, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(device, 512<<20); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], device)...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", mkfs, err, out)
				}
				return files(t, mounted(t, device, name, ""), 64*vps.GiB)
			})
		})
	}
}

// mounted mounts an empty filesystem of ours where only this test sees it. The
// test's thread ends with it.
func mounted(t *testing.T, source, kind, options string) string {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatalf("a mount namespace (needs root): %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if kind == "tmpfs" {
		if err := unix.Mount(source, dir, kind, 0, options); err != nil {
			t.Fatal(err)
		}
	} else if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", "-t", kind, source, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestNoRoom has a snapshot, and a restore, that do not fit.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	dir := mounted(t, "tmpfs", "tmpfs", "size=48m")
	b := files(t, dir, 64*vps.GiB)
	if _, err := b.Store.Create(t.Context(), "g1", b.Image, vps.VolumeSpec{Size: 24 * vps.MiB, UID: 654321}); err != nil {
		t.Fatal(err)
	}
	if err := b.Store.CreateDisk(t.Context(), "g1", "data", vps.VolumeSpec{Size: 64 * vps.MiB, UID: 654321}); err != nil {
		t.Fatal(err)
	}
	v, err := b.Store.Get(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte{7}, 16<<20)
	f, err := os.OpenFile(v.Data[0].Disk.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := b.Store.Snapshot(t.Context(), "g1", "fits", disk.Stopped); err != nil {
		t.Fatal(err)
	}
	before := b.Left(t)
	_, err = b.Store.Snapshot(t.Context(), "g1", "second", disk.Stopped)
	denied(t, err)
	_, err = b.Store.Restore(t.Context(), "g1", "fits", 654321)
	denied(t, err)
	if left := b.Left(t); !slices.Equal(left, before) {
		t.Errorf("what failed leaves %q, and there was %q", left, before)
	}
	if again, err := os.ReadFile(v.Data[0].Disk.Path); err != nil || !bytes.Equal(again[:len(content)], content) {
		t.Errorf("the disk changed: %v", err)
	}
}

func denied(t *testing.T, err error) {
	t.Helper()
	if vps.ErrorCode(err) != vps.CodeDenied {
		t.Errorf("got %v, want that there is no room", err)
	}
}
