package disk

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

func TestCreateAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	first := mustCreate(t, s, "g1", img, 64*vps.MiB)
	if err := os.WriteFile(filepath.Join(dir, "mark"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := img
	other.ID = "test-2"
	if again := mustCreate(t, s, "g1", other, 128*vps.MiB); !cmp.Equal(first, again) {
		t.Errorf("a second create gave %+v", again)
	}
	// Many at once make one.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := s.Create(t.Context(), "g2", img, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := s.Delete(t.Context(), "g2"); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "g2"); err != nil {
		t.Error("deleting twice:", err)
	}
	if got := names(t, filepath.Join(dir, "volumes")); !cmp.Equal(got, []string{"g1", "g1/disk.cow", "g1/volume.json"}) {
		t.Errorf("there are %v", got)
	}
	_, err := s.Get(t.Context(), "g2")
	wantCode(t, err, vps.CodeNotFound, "g2")
}

// A kill in the middle of create or delete leaves a folder under another name.
func TestHalfMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	volumes := filepath.Join(dir, "volumes")
	s := newOverlayStore(volumes)
	for _, name := range []string{"g1", ".new-g1+123", ".gone-g1+", ".new-g1-b+1", ".new-g2+5", ".gone-g3+"} {
		if err := os.MkdirAll(filepath.Join(volumes, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if name == "g1" {
			continue
		}
		if err := os.WriteFile(filepath.Join(volumes, name, "disk.cow"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	mustCreate(t, s, "g1", img, 64*vps.MiB)
	if _, err := os.Stat(filepath.Join(volumes, ".new-g1+123")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the half-made volume is still there")
	}
	if _, err := os.Stat(filepath.Join(volumes, ".new-g1-b+1")); err != nil {
		t.Error("another guest's half-made volume is gone")
	}
	if err := s.Delete(t.Context(), "g1"); err != nil {
		t.Error(err)
	}
	if err := s.Sweep(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if got := names(t, volumes); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// A guest's data is never replaced because its record is damaged.
func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	v := mustCreate(t, s, "g1", img, 64*vps.MiB)
	record := filepath.Join(filepath.Dir(v.Disk.Path), recordName)
	whole := string(read(t, record))
	for _, text := range []string{"", "{", "{}", `{"version":2}`, whole[:len(whole)/2]} {
		if err := os.WriteFile(record, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.Create(t.Context(), "g1", img, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID})
		wantCode(t, err, vps.CodeInternal, "g1", "damaged", "backup")
		wantCode(t, s.Grow(t.Context(), "g1", "", 128*vps.MiB), vps.CodeInternal, "g1")
		if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("list: %v, %v", list, err)
		}
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	_, err := s.Create(t.Context(), "g1", img, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID})
	wantCode(t, err, vps.CodeInternal, "damaged")
	if err := s.Delete(t.Context(), "g1"); err != nil {
		t.Error("a damaged volume cannot be deleted:", err)
	}
}

func TestGrow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	wantCode(t, s.Grow(t.Context(), "g1", "", vps.GiB), vps.CodeNotFound, "g1")
	v := mustCreate(t, s, "g1", img, 64*vps.MiB)
	wantCode(t, s.Grow(t.Context(), "g1", "", 32*vps.MiB), vps.CodeInvalid, "shrink", "64MiB", "32MiB")
	wantCode(t, s.Grow(t.Context(), "g1", "", 2*vps.GiB), vps.CodeInvalid, "1GiB", "2GiB")
	if again, err := s.Get(t.Context(), "g1"); err != nil || !cmp.Equal(v, again) {
		t.Errorf("a refused grow changed %+v, %v", again, err)
	}
	for range 2 {
		if err := s.Grow(t.Context(), "g1", "", vps.GiB); err != nil {
			t.Error(err)
		}
	}
	again, err := s.Get(t.Context(), "g1")
	if err != nil || again.Size != vps.GiB || again.Limit-again.Size != v.Limit-v.Size {
		t.Errorf("grown volume is %+v, %v", again, err)
	}
	if _, err := s.Check(t.Context(), "g1", img, testUID); err != nil {
		t.Error(err)
	}
}

// TestRunning holds the lock that a guest holds, from another process.
func TestRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	v := mustCreate(t, s, "g1", img, 64*vps.MiB)
	// The lock belongs to a process, so it takes another one; perl is in
	// every Debian system.
	holder := exec.CommandContext(t.Context(), "perl", "-MFcntl", "-e",
		`open F, "+<", $ARGV[0] or die; my $l = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 0, 0); fcntl(F, F_SETLK, $l) or die; $| = 1; print "held\n"; <STDIN>`, v.Disk.Path)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Grow(t.Context(), "g1", "", vps.GiB), vps.CodeConflict, "g1", "stop it")
	touch(t, img.Path, 1)
	wantCode(t, check(t, s, "g1", img, testUID), vps.CodeConflict, "g1")
	_ = in.Close()
	if err := holder.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Check(t.Context(), "g1", img, testUID); err != nil {
		t.Error(err)
	}
}

func header(t *testing.T, path string) COWHeader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, cowLength)
	if _, err := f.Read(b); err != nil {
		t.Fatal(err)
	}
	h, err := ParseCOW(b)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func check(t *testing.T, s *Store, id string, img vps.Image, uid uint32) error {
	t.Helper()
	_, err := s.Check(t.Context(), id, img, uid)
	return err
}

func TestCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	v := mustCreate(t, s, "g1", img, 64*vps.MiB)
	want := header(t, v.Disk.Path)
	if want.MTime != 1700000000 || want.Backing != img.Path || want.Size != uint64(vps.GiB) {
		t.Fatalf("header is %+v", want)
	}

	touch(t, img.Path, 1800000000) // touched
	want.MTime = 1800000000
	if _, err := s.Check(t.Context(), "g1", img, testUID); err != nil {
		t.Fatal(err)
	}
	if got := header(t, v.Disk.Path); got != want {
		t.Errorf("after a touch the header is %+v", got)
	}

	moved := img
	moved.Path = filepath.Join(dir, "elsewhere")
	if err := os.Rename(img.Path, moved.Path); err != nil {
		t.Fatal(err)
	}
	wantCode(t, check(t, s, "g1", img, testUID), vps.CodeNotFound, img.Path, "test/1")
	want.Backing = moved.Path
	if _, err := s.Check(t.Context(), "g1", moved, testUID); err != nil {
		t.Fatal(err)
	}
	if got := header(t, v.Disk.Path); got != want {
		t.Errorf("after a move the header is %+v", got)
	}
	if again, err := s.Get(t.Context(), "g1"); err != nil || again.Disk.Backing != moved.Path {
		t.Errorf("after a move the volume is %+v, %v", again, err)
	}

	other := moved
	other.ID = "test-2"
	wantCode(t, check(t, s, "g1", other, testUID), vps.CodeConflict, "test-1", "test-2")
	if err := os.Truncate(moved.Path, int64(2*vps.GiB)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, check(t, s, "g1", moved, testUID), vps.CodeConflict, "test/1", "2147483648", "1073741824")
	if err := os.Truncate(moved.Path, int64(vps.GiB)); err != nil {
		t.Fatal(err)
	}

	// What a hostile guest leaves in its file is told, and not followed.
	if err := os.WriteFile(v.Disk.Path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	wantCode(t, check(t, s, "g1", moved, testUID), vps.CodeConflict, "g1", "backup")
	wantCode(t, check(t, s, "nobody", moved, testUID), vps.CodeNotFound, "nobody")
}

func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img := makeImage(t, dir, vps.GiB)
	s := newOverlayStore(filepath.Join(dir, "volumes"))
	_, err := s.Create(t.Context(), "g1", img, vps.VolumeSpec{Size: 15 * vps.MiB, UID: testUID})
	wantCode(t, err, vps.CodeInvalid, "15MiB", "16MiB", "test/1")
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".new-x", "a+b", "a b"} {
		_, err := s.Create(t.Context(), id, img, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID})
		wantCode(t, err, vps.CodeInvalid)
		_, err = s.Get(t.Context(), id)
		wantCode(t, err, vps.CodeInvalid)
		wantCode(t, s.Delete(t.Context(), id), vps.CodeInvalid)
	}
	empty := img
	empty.Path = filepath.Join(dir, "empty")
	makeSparse(t, empty.Path, 1<<20)
	_, err = s.Create(t.Context(), "g1", empty, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID})
	wantCode(t, err, vps.CodeConflict, "test/1", "sublet image build")
	empty.Path = filepath.Join(dir, "none")
	_, err = s.Create(t.Context(), "g1", empty, vps.VolumeSpec{Size: 64 * vps.MiB, UID: testUID})
	wantCode(t, err, vps.CodeNotFound, "none")
	if _, err := os.Stat(filepath.Join(dir, "volumes")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a refused create left something behind")
	}
}

func TestRecordIsStable(t *testing.T) {
	t.Parallel()
	r := record{Version: 1, GuestID: "g", part: part{Method: "overlay", Size: 2, ImageID: "i", ImageSize: 3, Backing: "/b"}}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"version":1,"guest_id":"g","method":"overlay","size":2,"image_id":"i","image_size":3,"backing":"/b"}`; string(b) != want {
		t.Errorf("volume.json is %s, want %s", b, want)
	}
}

func FuzzExt4Size(f *testing.F) {
	b := make([]byte, 4096)
	b[1024+0x38], b[1024+0x39], b[1024+4] = 0x53, 0xef, 9
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		if _, err := unix.Pwrite(int(file.Fd()), b, 0); err != nil {
			t.Fatal(err)
		}
		if size, err := ext4Size(file); err == nil && size <= 0 {
			t.Errorf("size is %d", size)
		}
	})
}
