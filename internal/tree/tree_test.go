//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/tree"
)

// make makes a file or folder with everything that an archive is to keep.
func populate(t *testing.T, dir string) {
	t.Helper()
	when := time.Unix(1e9, 123456789)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, []byte(content), 0o600))
		check(os.Chmod(path, mode))
		return path
	}
	plain := write("etc/motd", "hello\n", 0o640)
	check(os.Chown(plain, 7, 8))
	check(unix.Setxattr(plain, "user.note", []byte("a=b\x00c\n"), 0))
	check(os.Chtimes(plain, when, when))
	check(os.Link(plain, filepath.Join(dir, "etc/again")))
	write("bin/su", "program", 0o755|os.ModeSetuid)
	check(os.Symlink("/etc/motd", filepath.Join(dir, "link")))
	check(os.Lchown(filepath.Join(dir, "link"), 9, 9))
	check(unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	check(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(os.Mkdir(filepath.Join(dir, "closed"), 0o500))
	check(os.Chtimes(filepath.Join(dir, "closed"), when, when))
	hole := write("hole", "start", 0o600)
	check(os.Truncate(hole, 32<<20))
	f, err := os.OpenFile(hole, os.O_WRONLY, 0)
	check(err)
	_, err = f.WriteAt([]byte("middle"), 10<<20)
	check(errors.Join(err, f.Close()))
}

// look describes a tree, a line for each file.
func look(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		line := fmt.Sprintf("%s %o %d:%d %d", name, st.Mode, st.Uid, st.Gid, st.Rdev)
		if name != "." {
			line += fmt.Sprintf(" %d", unix.TimespecToNsec(st.Mtim))
		}
		if first := inodes[st.Ino]; first != "" && st.Nlink > 1 {
			line += " is " + first
		}
		inodes[st.Ino] = name
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %q", len(content), strings.Trim(string(content), "\x00")[:5])
			value := make([]byte, 100)
			if n, err := unix.Lgetxattr(path, "user.note", value); err == nil {
				line += fmt.Sprintf(" note=%q", value[:n])
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func root(t *testing.T, dir string) *tree.Root {
	t.Helper()
	r, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func closed(t *testing.T, dir string) *tree.Root {
	t.Helper()
	r, err := tree.OpenClosed(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestThereAndBack(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	populate(t, from)
	var archive bytes.Buffer
	if err := root(t, from).Pack(t.Context(), &archive, "/", "."); err != nil {
		t.Fatal(err)
	}
	again := bytes.NewReader(archive.Bytes())
	left, err := root(t, to).Unpack(t.Context(), &archive, tree.Options{})
	if err != nil || left != (tree.Left{}) {
		t.Fatal(left, err)
	}
	if want, got := look(t, from), look(t, to); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(to, "hole"), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the hole takes %d blocks, %v", st.Blocks, err)
	}
	// Once more over what is there.
	if _, err := root(t, to).Unpack(t.Context(), again, tree.Options{}); err != nil {
		t.Fatal(err)
	}
	if want, got := look(t, from), look(t, to); got != want {
		t.Errorf("the second time: got\n%s\nwant\n%s", got, want)
	}
}

func TestTame(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	populate(t, from)
	if err := unix.Setxattr(filepath.Join(from, "bin/su"), "trusted.x", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := root(t, from).Pack(t.Context(), &archive, "/", "."); err != nil {
		t.Fatal(err)
	}
	left, err := closed(t, to).Unpack(t.Context(), &archive, tree.Options{Tame: true})
	if want := (tree.Left{Devices: 1, SetID: 1, Attributes: 1}); err != nil || left != want {
		t.Errorf("left out %+v, %v; want %+v", left, err, want)
	}
	info, err := os.Stat(filepath.Join(to, "bin/su"))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("su is %v, %v", info, err)
	}
	if _, err := os.Lstat(filepath.Join(to, "null")); !os.IsNotExist(err) {
		t.Errorf("the device: %v", err)
	}
}

// hostile are archives that try to write, link or look outside of the folder.
func hostile() map[string][]tar.Header {
	return map[string][]tar.Header{
		"up":           {{Name: "../victim", Typeflag: tar.TypeReg}},
		"up inside":    {{Name: "a/../../victim", Typeflag: tar.TypeReg}},
		"through link": {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "a/victim", Typeflag: tar.TypeReg}},
		"through two": {
			{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "."},
			{Name: "a/b", Typeflag: tar.TypeSymlink, Linkname: ".."},
			{Name: "b/victim", Typeflag: tar.TypeReg},
		},
		"hard link up":       {{Name: "a", Typeflag: tar.TypeLink, Linkname: "../victim"}},
		"hard link by link":  {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "a", Typeflag: tar.TypeLink, Linkname: "l/victim"}},
		"folder by link":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/made", Typeflag: tar.TypeDir, Mode: 0o777}},
		"folder turned link": {{Name: "d", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "d", Typeflag: tar.TypeSymlink, Linkname: ".."}},
		"the folder itself":  {{Name: ".", Typeflag: tar.TypeSymlink, Linkname: "/"}},
	}
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	for name, members := range hostile() {
		for kind, open := range map[string]func(string) (*tree.Root, error){"root": tree.Open, "closed": tree.OpenClosed, "beneath": tree.OpenBeneath} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				above := t.TempDir()
				dir := filepath.Join(above, "dir")
				victim := filepath.Join(above, "victim")
				if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(victim, []byte("mine"), 0o600)); err != nil {
					t.Fatal(err)
				}
				before, err := os.Stat(above)
				if err != nil {
					t.Fatal(err)
				}
				var b bytes.Buffer
				w := tar.NewWriter(&b)
				for _, h := range members {
					if err := w.WriteHeader(&h); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				r, err := open(dir)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close() //nolint:errcheck // read only
				_, err = r.Unpack(t.Context(), &b, tree.Options{})
				t.Log(err)
				if err == nil && kind != "root" {
					t.Error("it was not refused")
				}
				after, err := os.Stat(above)
				if err != nil || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
					t.Errorf("the folder above changed: %v, %v", after, err)
				}
				entries, _ := os.ReadDir(above)
				names := []string{}
				for _, e := range entries {
					names = append(names, e.Name())
				}
				content, _ := os.ReadFile(victim)
				info, _ := os.Stat(victim)
				links := info.Sys().(*syscall.Stat_t).Nlink
				if !slices.Equal(names, []string{"dir", "victim"}) || string(content) != "mine" || links != 1 {
					t.Errorf("outside there are %v, the victim says %q and has %d names", names, content, links)
				}
			})
		}
	}
}

// FuzzUnpack unpacks whatever there is and looks outside.
func FuzzUnpack(f *testing.F) {
	for _, members := range hostile() {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range members {
			_ = w.WriteHeader(&h)
		}
		_ = w.Close()
		f.Add(b.Bytes())
	}
	above := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(above, "dir")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r, err := tree.OpenClosed(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close() //nolint:errcheck // read only
		// A header may claim a hole of exabytes.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = r.Unpack(ctx, io.LimitReader(bytes.NewReader(data), 1<<20), tree.Options{Tame: true, KeepOwner: true, MaxSize: 16 << 20, MaxMembers: 1000})
		entries, err := os.ReadDir(above)
		if err != nil || len(entries) != 1 {
			t.Fatalf("outside: %v, %v", entries, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPackOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	populate(t, dir)
	for name, want := range map[string][]string{
		"/etc/motd": {"x"}, "link": {"x"}, "/link/../etc": {"x/", "x/again", "x/motd"},
		"closed/": {"x/"},
	} {
		var b bytes.Buffer
		if err := root(t, dir).Pack(t.Context(), &b, name, "x"); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		members := map[string]byte{}
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			members[h.Name] = h.Typeflag
		}
		if got := slices.Sorted(maps.Keys(members)); !slices.Equal(got, want) {
			t.Errorf("%s: members %v, want %v", name, got, want)
		}
	}
	if err := root(t, dir).Pack(t.Context(), io.Discard, "nowhere", "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// archive packs members that have no content.
func archive(t *testing.T, members ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func beneath(t *testing.T, dir string) *tree.Root {
	t.Helper()
	r, err := tree.OpenBeneath(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// Of folders only what is set at the end is kept in memory: their headers may
// hold a megabyte each that compresses to nothing.
func TestFoldersTakeLittleMemory(t *testing.T) { //nolint:paralleltest // it looks at the memory of the whole process
	const folders, each = 200, 512 << 10
	read, write := io.Pipe()
	go func() {
		w := tar.NewWriter(write)
		comment := strings.Repeat("x", each)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var err error
		for i := 0; i < folders && err == nil; i++ {
			err = w.WriteHeader(&tar.Header{
				Name: fmt.Sprintf("d%d/", i), Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX,
				PAXRecords: map[string]string{"SUBLET.comment": comment},
			})
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if after.HeapAlloc > before.HeapAlloc+folders*each/4 {
			err = errors.Join(err, fmt.Errorf("%d MiB are in use, and %d before", after.HeapAlloc>>20, before.HeapAlloc>>20))
		}
		if err == nil {
			err = w.Close() // which ends the archive: not after an error
		}
		write.CloseWithError(err)
	}()
	if _, err := beneath(t, t.TempDir()).Unpack(t.Context(), read, tree.Options{}); err != nil {
		t.Error(err)
	}
}

func TestFoldersAreBounded(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("x", 1000<<10)
	read, write := io.Pipe()
	go func() {
		w := tar.NewWriter(write)
		var err error
		for i := 0; i < 200 && err == nil; i++ {
			err = w.WriteHeader(&tar.Header{
				Name: fmt.Sprintf("d%d/", i), Typeflag: tar.TypeDir, Mode: 0o755,
				PAXRecords: map[string]string{"SCHILY.xattr.user.x": value},
			})
		}
		if err == nil {
			err = w.Close() // which ends the archive: not after an error
		}
		write.CloseWithError(err)
	}()
	_, err := beneath(t, t.TempDir()).Unpack(t.Context(), read, tree.Options{})
	_ = read.Close()
	if err == nil || !strings.Contains(err.Error(), "names and attributes") {
		t.Errorf("200 MiB of attributes: %v", err)
	}
}

// Links that lead to ever deeper folders make paths of any length.
func TestDeepFoldersAreRefused(t *testing.T) {
	t.Parallel()
	steps := strings.TrimSuffix(strings.Repeat("a/", 500), "/")
	var chain []tar.Header
	before := ""
	for i := range 30 {
		chain = append(chain,
			tar.Header{Name: before + steps + "/", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: fmt.Sprintf("l%d", i), Typeflag: tar.TypeSymlink, Linkname: before + steps})
		before = fmt.Sprintf("l%d/", i)
	}
	for name, members := range map[string][]tar.Header{
		"chain": chain,
		"name":  {{Name: strings.Repeat("a/", 1000), Typeflag: tar.TypeDir, Mode: 0o755}},
	} {
		dir := t.TempDir()
		_, err := beneath(t, dir).Unpack(t.Context(), archive(t, members...), tree.Options{})
		if err == nil || errors.Is(err, unix.ENAMETOOLONG) {
			t.Errorf("%s: %v", name, err)
		}
		err = filepath.WalkDir(dir, func(_ string, _ os.DirEntry, err error) error { return err })
		if err != nil {
			t.Errorf("%s: what was made cannot be walked: %v", name, err)
		}
	}
}

// A whole system has links for folders (bin is usr/bin), and members below them.
func TestFoldersThroughLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := beneath(t, dir).Unpack(t.Context(), archive(t,
		tar.Header{Name: "usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"},
		tar.Header{Name: "lib/a/b/c/file", Typeflag: tar.TypeReg, Mode: 0o644},
	), tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "usr/lib/a/b/c/file")); err != nil {
		t.Error(err)
	}
}

// An attribute that a file cannot hold is left out and told, and no full disk.
func TestLargeAttribute(t *testing.T) {
	t.Parallel()
	left, err := beneath(t, t.TempDir()).Unpack(t.Context(), archive(t,
		tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 70000)}},
	), tree.Options{})
	if err != nil || left.Attributes != 1 {
		t.Errorf("left out %+v, %v", left, err)
	}
}
