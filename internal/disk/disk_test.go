package disk

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

const testUID = 654321

func makeSparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// makeImage makes an image with a small real filesystem in a long sparse file.
func makeImage(t *testing.T, dir string, size vps.Bytes) vps.Image {
	t.Helper()
	path := filepath.Join(dir, "base.img")
	out, err := exec.CommandContext(t.Context(), "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", path, "16M").CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	if err := os.Truncate(path, int64(size)); err != nil {
		t.Fatal(err)
	}
	touch(t, path, 1700000000)
	return vps.Image{Name: "test/1", ID: "test-1", Filesystem: "ext4", Size: size, Content: vps.MiB, Path: path}
}

func touch(t *testing.T, path string, seconds int64) {
	t.Helper()
	if err := os.Chtimes(path, time.Unix(seconds, 0), time.Unix(seconds, 0)); err != nil {
		t.Fatal(err)
	}
}

// newOverlayStore returns a Store that finds no reflinks.
func newOverlayStore(dir string) *Store {
	s := New(dir, nil)
	s.reflink = func(*os.File, *os.File) error { return unix.EOPNOTSUPP }
	return s
}

func mustCreate(t *testing.T, s *Store, id string, img vps.Image, size vps.Bytes) vps.Volume {
	t.Helper()
	v, err := s.Create(t.Context(), id, img, vps.VolumeSpec{Size: size, UID: testUID})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantCode(t *testing.T, err error, code vps.Code, words ...string) {
	t.Helper()
	if vps.ErrorCode(err) != code {
		t.Errorf("error is %v (code %q), want code %q", err, vps.ErrorCode(err), code)
		return
	}
	for _, w := range words {
		if !strings.Contains(vps.ErrorMessage(err), w) {
			t.Errorf("message %q does not say %q", vps.ErrorMessage(err), w)
		}
	}
}

// names lists everything below dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestOverlay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, 64*vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	v := mustCreate(t, s, "g1", img, 8*vps.GiB)
	want := vps.Volume{
		GuestID: "g1", Size: 8 * vps.GiB, Limit: 8*vps.GiB + 8192 + 16*vps.MiB, ImageID: "test-1", Used: v.Used, Storage: "file",
		Disk: vps.Disk{Path: filepath.Join(dir, "volumes/g1/disk.cow"), Backing: img.Path},
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Error(diff)
	}
	if v.Used > 64*vps.KiB {
		t.Errorf("a new overlay occupies %s", v.Used)
	}
	info, err := os.Stat(v.Disk.Path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o600 || st.Uid != testUID || st.Gid != testUID || info.Size() != int64(v.Limit) {
		t.Errorf("mode %v, owner %d:%d, length %d", info.Mode(), st.Uid, st.Gid, info.Size())
	}
	if info, err = os.Stat(filepath.Dir(v.Disk.Path)); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
	if _, err := s.Check(t.Context(), "g1", img, testUID); err != nil {
		t.Error(err)
	}
	// The reference tool reads the overlay and merges it with its base.
	merged := filepath.Join(dir, "merged")
	small := makeImage(t, t.TempDir(), 32*vps.MiB)
	v = mustCreate(t, s, "g2", small, 32*vps.MiB)
	if out, err := exec.CommandContext(t.Context(), "uml_moo", v.Disk.Path, merged).CombinedOutput(); err != nil {
		t.Fatalf("uml_moo: %v\n%s", err, out)
	}
	if !bytes.Equal(read(t, merged), read(t, small.Path)) {
		t.Error("the merged overlay is not the image")
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 2 || list[0].GuestID != "g1" || list[1].GuestID != "g2" {
		t.Errorf("list: %v, %v", list, err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCopy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, 32*vps.MiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	v := mustCreate(t, s, "g1", img, 10*vps.GiB)
	if v.Disk.Backing != "" || v.Limit != 10*vps.GiB || v.Used > 17*vps.MiB {
		t.Errorf("volume is %+v", v)
	}
	checkClone(t, v, img)
	if _, err := s.Check(t.Context(), "g1", vps.Image{}, testUID); err != nil {
		t.Error(err)
	}
	// Stopped in the middle of the copy.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Create(ctx, "g2", img, vps.VolumeSpec{Size: 10 * vps.GiB, UID: testUID}); err == nil {
		t.Error("a cancelled copy succeeded")
	}
	if got, want := names(t, filepath.Join(dir, "volumes")), []string{"g1", "g1/disk.img", "g1/volume.json"}; !cmp.Equal(got, want) {
		t.Errorf("left behind: %v", got)
	}
}

// checkClone compares a raw volume with its image, and its owner and length.
func checkClone(t *testing.T, v vps.Volume, img vps.Image) {
	t.Helper()
	f, err := os.Open(v.Disk.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	have, want := make([]byte, 16<<20), make([]byte, 16<<20)
	if _, err := f.ReadAt(have, 0); err != nil {
		t.Fatal(err)
	}
	base, err := os.Open(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = base.Close() }()
	if _, err := base.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("the volume is not a clone of the image")
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != int64(v.Size) || info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != testUID {
		t.Errorf("length %d, mode %v, owner %d", info.Size(), info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
}

// inMounts gives the calling test a mount namespace of its own. Its thread
// ends with the test.
func inMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatalf("a mount namespace (needs root): %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

// On a filesystem with reflinks the store finds them by itself.
func TestReflink(t *testing.T) {
	t.Parallel()
	inMounts(t)
	dir := t.TempDir()
	disk, mnt := filepath.Join(dir, "btrfs"), filepath.Join(dir, "mnt")
	makeSparse(t, disk, 256<<20)
	for _, args := range [][]string{{"mkfs.btrfs", "-q", disk}, {"mkdir", mnt}, {"mount", "-o", "loop", disk, mnt}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v (package btrfs-progs): %v\n%s", args, err, out)
		}
	}
	defer func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }()
	img := makeImage(t, mnt, 64*vps.GiB)
	s := New(filepath.Join(mnt, "volumes"), nil)
	v := mustCreate(t, s, "g1", img, 100*vps.GiB)
	if r, err := readRecord(filepath.Dir(v.Disk.Path), "g1"); err != nil || r.Method != methodReflink || v.Disk.Backing != "" {
		t.Fatalf("record %+v, %v", r, err)
	}
	checkClone(t, v, img)
	if v = mustCreate(t, s, "g2", img, 64*vps.MiB); v.Limit != 64*vps.MiB {
		t.Errorf("limit is %s", v.Limit)
	}
	checkClone(t, v, img)
	if err := s.Grow(t.Context(), "g2", "", 200*vps.GiB); err != nil {
		t.Error(err)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	inMounts(t)
	dir := t.TempDir()
	img := makeImage(t, dir, 32*vps.MiB)
	mnt := filepath.Join(dir, "small")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	// A child that is being started may still have a file of it open.
	defer func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }()
	s := newOverlayStore(filepath.Join(mnt, "volumes"))
	_, err := s.Create(t.Context(), "big", img, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID})
	wantCode(t, err, vps.CodeDenied, mnt, "full", "needed", "free")
	if got := names(t, mnt); !cmp.Equal(got, []string{"volumes"}) {
		t.Errorf("left behind: %v", got)
	}
	v := mustCreate(t, s, "g1", img, 32*vps.MiB)
	if err := os.WriteFile(filepath.Join(mnt, "fill"), make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(mnt, "fill"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	_ = f.Close()
	_, err = s.Create(t.Context(), "g2", img, vps.VolumeSpec{Size: 32 * vps.MiB, UID: testUID})
	wantCode(t, err, vps.CodeDenied, mnt)
	if again, err := s.Get(t.Context(), "g1"); err != nil || !cmp.Equal(again, v) {
		t.Errorf("the other volume changed: %v, %v", again, err)
	}
	if free, err := s.Free(t.Context()); err != nil || free != 0 {
		t.Errorf("free: %v, %v", free, err)
	}
}
