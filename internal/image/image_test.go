package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// addVersion makes a version without a build and makes it the newest.
func addVersion(t *testing.T, s *Store, name, id string) string {
	t.Helper()
	dir := filepath.Join(s.home(name), id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, diskName)
	if err := os.WriteFile(disk, []byte("filesystem"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := checksum(t.Context(), f, 4096, func(float64) {})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	m := manifest{Version: 1, Image: vps.Image{FilesystemSize: 4096, Name: name, ID: id, Size: 1 << 20, SHA256: sum, Created: time.Unix(1, 0).UTC()}}
	if err := m.write(dir); err != nil {
		t.Fatal(err)
	}
	latest := filepath.Join(s.home(name), latestName)
	_ = os.Remove(latest)
	if err := os.Symlink(id, latest); err != nil {
		t.Fatal(err)
	}
	return dir
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

func TestReading(t *testing.T) {
	t.Parallel()
	s := New(filepath.Join(t.TempDir(), "images"), Options{})
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("an empty store lists %v, %v", list, err)
	}
	_, err := s.Get(t.Context(), "debian/12")
	wantCode(t, err, vps.CodeNotFound, "debian/12", "sublet image build debian/12")
	addVersion(t, s, "debian/12", "v1")
	addVersion(t, s, "debian/12", "v2")
	addVersion(t, s, "debian/13", "v3")
	list, err := s.List(t.Context())
	if err != nil || len(list) != 2 || list[0].ID != "v2" || list[1].ID != "v3" {
		t.Errorf("list is %v, %v", list, err)
	}
	img, err := s.ByID(t.Context(), "v1")
	if err != nil || img.Name != "debian/12" || img.Path != filepath.Join(s.dir, "debian/12/v1/disk.img") {
		t.Errorf("v1 is %+v, %v", img, err)
	}
	for _, id := range []string{"v9", "", "..", "latest", "../13/v3"} {
		_, err := s.ByID(t.Context(), id)
		wantCode(t, err, vps.CodeNotFound)
	}
	for _, name := range []string{"", "debian", "debian/", "/12", "../..", "debian/../13", "a/b/c", "debian/9"} {
		_, err := s.Get(t.Context(), name)
		wantCode(t, err, vps.CodeNotFound)
		_, err = s.Build(t.Context(), name, nil)
		wantCode(t, err, vps.CodeNotFound, "debian/11, debian/12, debian/13")
		wantCode(t, s.Delete(t.Context(), name, nil), vps.CodeNotFound)
	}
	if err := s.Verify(t.Context(), "debian/12", nil); err != nil {
		t.Error(err)
	}
}

func TestDamaged(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(dir string) error{
		"no manifest":    func(dir string) error { return os.Remove(filepath.Join(dir, manifestName)) },
		"no disk":        func(dir string) error { return os.Remove(filepath.Join(dir, diskName)) },
		"empty manifest": func(dir string) error { return rewrite(filepath.Join(dir, manifestName), "") },
		"half manifest":  func(dir string) error { return rewrite(filepath.Join(dir, manifestName), `{"version":1,"na`) },
		"newer manifest": func(dir string) error { return rewrite(filepath.Join(dir, manifestName), `{"version":2}`) },
		"other manifest": func(dir string) error {
			return rewrite(filepath.Join(dir, manifestName), `{"version":1,"name":"debian/13"}`)
		},
		"short disk": func(dir string) error { return os.Truncate(filepath.Join(dir, diskName), 100) },
		"no version": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(t.TempDir(), Options{})
			addVersion(t, s, "debian/13", "good")
			dir := addVersion(t, s, "debian/12", "v1")
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := s.Get(t.Context(), "debian/12")
			wantCode(t, err, vps.CodeInternal, "debian/12", dir, "sublet image build debian/12")
			wantCode(t, s.Verify(t.Context(), "debian/12", nil), vps.CodeInternal, "debian/12")
			if list, err := s.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != "good" {
				t.Errorf("list is %v, %v", list, err)
			}
		})
	}
}

func rewrite(path, text string) error {
	return errors.Join(os.Remove(path), os.WriteFile(path, []byte(text), 0o600))
}

func TestVerifyFindsChanges(t *testing.T) {
	t.Parallel()
	for _, at := range []int64{0, 4095, 500000} {
		s := New(t.TempDir(), Options{})
		dir := addVersion(t, s, "debian/12", "v1")
		f, err := os.OpenFile(filepath.Join(dir, diskName), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("x"), at)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		wantCode(t, s.Verify(t.Context(), "debian/12", nil), vps.CodeInternal, "debian/12", "damaged", "sublet image build debian/12")
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), Options{})
	addVersion(t, s, "debian/12", "v1")
	addVersion(t, s, "debian/12", "v2")
	wantCode(t, s.Delete(t.Context(), "debian/12", func(string) []string { return []string{"bob", "alice"} }), vps.CodeConflict, "debian/12", "alice, bob")
	if img, err := s.Get(t.Context(), "debian/12"); err != nil || img.ID != "v2" {
		t.Errorf("a refused delete changed %v, %v", img, err)
	}
	err := s.Delete(t.Context(), "debian/12", func(id string) []string {
		if id == "v1" {
			return []string{"alice"}
		}
		return nil
	})
	wantCode(t, err, vps.CodePartial, "1 of 2", "alice")
	_, err = s.Get(t.Context(), "debian/12")
	wantCode(t, err, vps.CodeNotFound)
	if _, err := s.ByID(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "debian/12", nil); err != nil {
		t.Error(err)
	}
	wantCode(t, s.Delete(t.Context(), "debian/12", nil), vps.CodeNotFound, "debian/12")
	if entries, err := os.ReadDir(s.home("debian/12")); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestSweepAndLock(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), Options{})
	home := filepath.Dir(addVersion(t, s, "debian/12", "v1"))
	left := []string{".build-123/root/etc", ".gone-v0", ".latest-v1"}
	for _, name := range left {
		if err := os.MkdirAll(filepath.Join(home, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := lock(home, "debian/12") // as a build in another process does
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(home, left[0])); err != nil {
		t.Error("a running build was swept away")
	}
	_, err = s.Build(t.Context(), "debian/12", nil)
	wantCode(t, err, vps.CodeConflict, "debian/12")
	wantCode(t, s.Delete(t.Context(), "debian/12", nil), vps.CodeConflict, "debian/12")
	unlock()
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(home)
	if err != nil || len(entries) != 2 {
		t.Errorf("after the sweep there are %v, %v", entries, err)
	}
	if _, err := s.Get(t.Context(), "debian/12"); err != nil {
		t.Error(err)
	}
}

func TestManifestIsStable(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(manifest{Version: 1, Image: vps.Image{FilesystemSize: 3, Name: "n", ID: "i", Path: "/hidden", Size: 9, Packages: []vps.Package{{Name: "a", Version: "1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":1,"name":"n","id":"i","distribution":"","release":"","architecture":"","packages":[{"name":"a","version":"1"}],"filesystem":"","filesystem_size":3,"size":9,"content":0,"sha256":"","created":"0001-01-01T00:00:00Z"}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Error(diff)
	}
}

func TestCacheKeepsWhatWasUsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := &build{work: &work{Store: New(dir, Options{CacheDir: filepath.Join(dir, "cache")})}, release: releases()["debian/12"]}
	archives, cache := filepath.Join(dir, "archives"), b.cache()
	for _, path := range []string{archives, cache} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"archives/a_1.deb", "archives/lock", "cache/bookworm/old_1.deb"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.fillCache(archives); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(cache)
	if err != nil || len(entries) != 1 || entries[0].Name() != "a_1.deb" {
		t.Errorf("the cache has %v, %v", entries, err)
	}
	if err := copyDebs(filepath.Join(dir, "none"), archives); err != nil {
		t.Error(err)
	}
	if err := copyFile(filepath.Join(cache, "a_1.deb"), filepath.Join(dir, "copy")); err != nil {
		t.Error(err)
	}
}

func TestRunIsHeard(t *testing.T) {
	t.Parallel()
	var lines []string
	err := run(t.Context(), command{args: []string{"/bin/sh", "-c", "echo one; echo E: two; echo E: three; exit 3"}, tmp: t.TempDir(), isolate: true},
		func(line string) { lines = append(lines, line) })
	var f *failure
	if !errors.As(err, &f) || f.reason() != "two" || f.full {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"one", "E: two", "E: three"}, lines); diff != "" {
		t.Error(diff)
	}
	err = run(t.Context(), command{args: []string{"/bin/sh", "-c", "echo cp: x: No space left on device >&2; false"}, tmp: t.TempDir()}, nil)
	if !errors.As(err, &f) || !f.full {
		t.Errorf("got %v", err)
	}
	if _, err := findTool("no-such-tool"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = run(ctx, command{args: []string{"/bin/sh", "-c", "(trap '' TERM; sleep 1000) & echo started; sleep 1000"}, tmp: t.TempDir(), isolate: true},
		func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
