//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/tree"
)

// TestReceive tries the rules of cp, as its manual and docker's have them.
func TestReceive(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, src, dst string
		want           string // a file that says "content" afterwards, or part of an error
		fails          bool
	}{
		{"file to nothing", "f", "/new", "new", false},
		{"file into folder", "f", "/dir", "dir/f", false},
		{"file into folder with a slash", "f", "/dir/", "dir/f", false},
		{"file over file", "f", "/old", "old", false},
		{"file to a folder that is not there", "f", "/new/", "no such file", true},
		{"file below nothing", "f", "/no/new", "no such file", true},
		{"file through a link", "f", "/link", "dir/f", false},
		{"file through an absolute link", "f", "/abs/x", "dir/x", false},
		{"file below a file", "f", "/old/", "not a directory", true},
		{"folder to nothing", "d", "/new", "new/f", false},
		{"folder into folder", "d", "/dir", "dir/d/f", false},
		{"folder over file", "d", "/old", "not a directory", true},
		{"contents into folder", "d/.", "/dir", "dir/f", false},
		{"contents to nothing", "d/.", "/new", "new/f", false},
		{"folder with a slash", "d/", "/dir", "dir/d/f", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			from, to := t.TempDir(), t.TempDir()
			for path, content := range map[string]string{
				filepath.Join(from, "f"): "content", filepath.Join(from, "d/f"): "content", filepath.Join(to, "old"): "old", filepath.Join(to, "dir/other"): "other",
			} {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for name, target := range map[string]string{"link": "dir", "abs": "/dir"} {
				if err := os.Symlink(target, filepath.Join(to, name)); err != nil {
					t.Fatal(err)
				}
			}
			var b bytes.Buffer
			if err := root(t, from).Pack(t.Context(), &b, test.src, tree.As(test.src)); err != nil {
				t.Fatal(err)
			}
			_, err := root(t, to).Receive(t.Context(), &b, test.dst, tree.Options{})
			switch {
			case test.fails && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			case test.fails:
				return
			case err != nil:
				t.Fatal(err)
			}
			if text, err := os.ReadFile(filepath.Join(to, test.want)); err != nil || string(text) != "content" {
				t.Errorf("%s says %q, %v", test.want, text, err)
			}
			if text, err := os.ReadFile(filepath.Join(to, "dir/other")); err != nil || string(text) != "other" {
				t.Errorf("what was there says %q, %v", text, err)
			}
		})
	}
}

func TestReceiveRefusesSeveral(t *testing.T) {
	t.Parallel()
	to := t.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"a", "b"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := closed(t, to).Receive(t.Context(), &b, "new", tree.Options{}); err == nil || !strings.Contains(err.Error(), "beside") {
		t.Errorf("got %v", err)
	}
}
