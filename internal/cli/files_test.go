package cli

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stopped is a world with the guest bob, who does not run, and a folder that is
// his root; and a folder of ours.
func stopped(t *testing.T) (w *world, his, ours string) {
	t.Helper()
	w = populate(t)
	his, ours = t.TempDir(), t.TempDir()
	w.filesDir = his
	for path, text := range map[string]string{filepath.Join(his, "etc/motd"): "his", filepath.Join(ours, "dir/file"): "ours"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return w, his, ours
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if text, err := os.ReadFile(path); err != nil || string(text) != want {
		t.Errorf("%s says %q, %v; want %q", path, text, err, want)
	}
}

func TestCopyBothWays(t *testing.T) {
	t.Parallel()
	w, his, ours := stopped(t)
	w.mustRun(t, "cp", "bob:/etc", ours)
	wantFile(t, filepath.Join(ours, "etc/motd"), "his")
	w.mustRun(t, "cp", "bob:/etc/motd", filepath.Join(ours, "new"))
	wantFile(t, filepath.Join(ours, "new"), "his")
	w.mustRun(t, "cp", "bob:/etc/.", filepath.Join(ours, "contents"))
	wantFile(t, filepath.Join(ours, "contents/motd"), "his")

	w.mustRun(t, "cp", filepath.Join(ours, "dir"), "bob:/etc")
	wantFile(t, filepath.Join(his, "etc/dir/file"), "ours")
	w.mustRun(t, "cp", filepath.Join(ours, "dir")+"/.", "bob:/")
	wantFile(t, filepath.Join(his, "file"), "ours")
	w.mustRun(t, "cp", filepath.Join(ours, "dir/file"), "bob:/renamed")
	wantFile(t, filepath.Join(his, "renamed"), "ours")

	w.mustRun(t, "cp", "bob:/etc", "-")
	archive := bytes.Clone(w.out.Bytes())
	if h, err := tar.NewReader(bytes.NewReader(archive)).Next(); err != nil || h.Name != "etc/" {
		t.Errorf("the archive begins with %v, %v", h, err)
	}
	if err := os.Mkdir(filepath.Join(his, "srv"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.options.Stdin = bytes.NewReader(archive)
	w.mustRun(t, "cp", "-", "bob:/srv")
	wantFile(t, filepath.Join(his, "srv/etc/motd"), "his")
}

func TestCopyRefuses(t *testing.T) {
	t.Parallel()
	w, _, ours := stopped(t)
	for _, test := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"bob:/a", "walled:/b"}, 2, "one of the two has to be here"},
		{[]string{"a", "b"}, 2, "none of the two is in a guest"},
		{[]string{"bob:", ours}, 2, "names no path"},
		{[]string{"bob:/etc"}, 2, "needs a source and a target"},
		{[]string{"bob:/no/such", ours}, 3, "no such file"},
		{[]string{ours + "/no-such", "bob:/"}, 3, "no such file"},
		{[]string{"alice:/etc", ours}, 4, "runs"},
		{[]string{"nobody:/etc", ours}, 3, "nobody"},
		{[]string{"bob:/etc", "/proc/nothing/here"}, 2, "cannot be written to"},
		{[]string{"bob:/etc", filepath.Join(ours, "dir/file")}, 1, "not a directory"},
	} {
		if code := w.run(t.Context(), append([]string{"cp"}, test.args...)...); code != test.code || !strings.Contains(w.errors.String(), test.text) {
			t.Errorf("cp %v: exit code %d, %q; want %d, %q", test.args, code, w.errors.String(), test.code, test.text)
		}
	}
}

// TestCopyOutOfAHostileGuest has a link in the way of what is copied out.
func TestCopyOutOfAHostileGuest(t *testing.T) {
	t.Parallel()
	w, his, ours := stopped(t)
	outside := t.TempDir()
	// The first copy leaves a link; the second one would go through it.
	if err := os.Symlink(outside, filepath.Join(his, "trap")); err != nil {
		t.Fatal(err)
	}
	w.mustRun(t, "cp", "bob:/.", ours)
	if target, err := os.Readlink(filepath.Join(ours, "trap")); err != nil || target != outside {
		t.Fatal(target, err)
	}
	if err := os.Remove(filepath.Join(his, "trap")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(his, "trap"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(his, "trap/evil"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := w.run(t.Context(), "cp", "bob:/.", ours); code != 1 || !strings.Contains(w.errors.String(), "symbolic link") {
		t.Errorf("exit code %d, %q", code, w.errors.String())
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there is %v, %v", left, err)
	}
}

func TestFsck(t *testing.T) {
	t.Parallel()
	w, _, _ := stopped(t)
	if code := w.run(t.Context(), "fsck", "bob"); code != 1 || !strings.Contains(w.out.String(), "pass 1") || !strings.Contains(w.errors.String(), "--repair") {
		t.Errorf("exit code %d, %q, %q", code, w.out.String(), w.errors.String())
	}
	w.mustRun(t, "fsck", "bob", "--repair", "-o", "json")
	if !strings.Contains(w.out.String(), `"mended"`) || strings.Contains(w.out.String(), "pass 1") {
		t.Errorf("got %q", w.out.String())
	}
}

func TestAccess(t *testing.T) {
	t.Parallel()
	w, _, ours := stopped(t)
	key, password := filepath.Join(ours, "key.pub"), filepath.Join(ours, "password")
	second := strings.Replace(testKey, "AAAAC3NzaC1lZDI1NTE5AAAAIO", "AAAAC3NzaC1lZDI1NTE5AAAAIP", 1)
	for path, text := range map[string]string{key: second + "\n", password: "correct horse\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.mustRun(t, "add-key", "bob", "--key", key)
	if keys := w.guests["bob"].Spec.SSHKeys; len(keys) != 2 || keys[1] != second {
		t.Errorf("the keys are %q", keys)
	}
	hash := ""
	for range 2 {
		w.mustRun(t, "reset-password", "bob", "--password-file", password)
		now := w.guests["bob"].Spec.RootPassword
		if now == "" || now == hash {
			t.Errorf("the hash was %q and is %q: a guest that has seen it does not apply it again", hash, now)
		}
		hash = now
	}
	if code := w.run(t.Context(), "reset-password", "bob"); code != 2 {
		t.Errorf("without a terminal: exit code %d", code)
	}
}
