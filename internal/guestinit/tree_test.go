package guestinit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// outside is a folder beside the tree that nothing may touch.
func newTree(t *testing.T) (tree *Tree, root, outside string) {
	t.Helper()
	dir := t.TempDir()
	root, outside = filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	for _, d := range []string{root, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := OpenTree(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
		if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
			t.Errorf("outside of the root there is now %v, %v", names, err)
		}
	})
	return tree, root, outside
}

// put writes files below a folder; "-> target" makes a symbolic link.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := cutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return s, false
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

func TestWriteThroughSymlinks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files map[string]string
		write string
		where string
	}{
		"plain":                    {nil, "/etc/a", "etc/a"},
		"absolute folder":          {map[string]string{"etc": "-> /real/etc", "real/etc/x": ""}, "/etc/a", "real/etc/a"},
		"relative folder":          {map[string]string{"lib": "-> usr/lib", "usr/lib/x": ""}, "/lib/modules/a", "usr/lib/modules/a"},
		"folder's target missing":  {map[string]string{"etc": "-> /new/etc"}, "/etc/a", "new/etc/a"},
		"climbs out":               {map[string]string{"etc": "-> ../../../../outside"}, "/etc/a", "outside/a"},
		"file link, absolute":      {map[string]string{"etc/a": "-> /real/b"}, "/etc/a", "real/b"},
		"file link, climbs out":    {map[string]string{"etc/a": "-> ../../../outside/b"}, "/etc/a", "outside/b"},
		"file link through a link": {map[string]string{"etc/a": "-> sub/b", "etc/sub": "-> /else", "else/x": ""}, "/etc/a", "else/b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree, root, _ := newTree(t)
			put(t, root, tc.files)
			if err := tree.Write(tc.write, []byte("text"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := read(t, root, tc.where); got != "text" {
				t.Errorf("%s has %q", tc.where, got)
			}
			if got, err := tree.Read(tc.write); err != nil || string(got) != "text" {
				t.Errorf("read back %q, %v", got, err)
			}
		})
	}
}

func TestHostileFiles(t *testing.T) {
	t.Parallel()
	tree, root, outside := newTree(t)
	put(t, root, map[string]string{
		"loop": "-> loop", "a": "-> b", "b": "-> a", "dirloop/x": "-> /dirloop/x/y",
		"abs": "-> " + outside + "/file", "dir/x": "",
	})
	if err := unix.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/loop", "/a", "/dirloop/x/z"} {
		if err := tree.Write(name, []byte("text"), 0o600); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	for _, name := range []string{"/pipe", "/dir"} {
		if _, err := tree.Read(name); !errors.Is(err, errNotRegular) {
			t.Errorf("read %s: %v", name, err)
		}
	}
	if err := tree.Replace("/dir", []byte("text"), 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	// Absolute targets begin at the root, so this makes a file inside of it.
	if err := tree.Write("/abs", []byte("text"), 0o600); err != nil {
		t.Error(err)
	}
	if err := tree.Replace("/pipe", []byte("text"), 0o600); err != nil || read(t, root, "pipe") != "text" {
		t.Errorf("replace a pipe: %v", err)
	}
	if err := tree.Replace("/a", []byte("text"), 0o600); err != nil || tree.Readlink("/a") != "" {
		t.Errorf("replace a link: %v", err)
	}
}

func TestWriteKeepsModeAndIsQuietWhenSame(t *testing.T) {
	t.Parallel()
	tree, root, _ := newTree(t)
	put(t, root, map[string]string{"etc/shadow": "old"})
	path := filepath.Join(root, "etc/shadow")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := tree.Write("/etc/shadow", []byte("old"), 0o600); err != nil || tree.Changed() {
		t.Errorf("the same content was written: %v", err)
	}
	if err := tree.Write("/etc/shadow", []byte("new"), 0o600); err != nil || !tree.Changed() {
		t.Error(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info, err)
	}
	if names, err := os.ReadDir(filepath.Join(root, "etc")); err != nil || len(names) != 1 {
		t.Errorf("left over: %v, %v", names, err)
	}
}

func TestReadBounds(t *testing.T) {
	t.Parallel()
	tree, root, _ := newTree(t)
	put(t, root, map[string]string{"big": ""})
	if err := os.Truncate(filepath.Join(root, "big"), maxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Read("/big"); !errors.Is(err, unix.EFBIG) {
		t.Errorf("got %v", err)
	}
}

// TestWriteKeepsLabels sets labels as SELinux does, which root may do on any
// filesystem that keeps attributes, whether or not the kernel knows them.
func TestWriteKeepsLabels(t *testing.T) {
	t.Parallel()
	tree, root, _ := newTree(t)
	put(t, root, map[string]string{"etc/shadow": "old"})
	const label = "security.selinux"
	for name, value := range map[string]string{"etc": "system_u:object_r:etc_t:s0", "etc/shadow": "system_u:object_r:shadow_t:s0"} {
		if err := unix.Setxattr(filepath.Join(root, name), label, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/etc/shadow", "/etc/new"} {
		if err := tree.Write(name, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"etc/shadow": "system_u:object_r:shadow_t:s0", "etc/new": "system_u:object_r:etc_t:s0"} {
		var value [256]byte
		n, err := unix.Getxattr(filepath.Join(root, name), label, value[:])
		if err != nil || string(value[:n]) != want {
			t.Errorf("%s: %q, %v", name, value[:max(n, 0)], err)
		}
	}
}
