package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/vps"
)

func TestDomainExport(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		args     string
		code     int
		out, err string
	}{
		"HAProxy":         {"domain export --haproxy", 0, "# of haproxy in \n", ""},
		"nginx":           {"domain export --nginx", 0, "# of nginx in \n", ""},
		"none":            {"domain export", 2, "", "say --haproxy or --nginx, one of both"},
		"both":            {"domain export --nginx --haproxy", 2, "", "say --haproxy or --nginx, one of both"},
		"of a guest":      {"domain export --nginx alice", 2, "", "is too much"},
		"as JSON":         {"domain export --nginx -o json", 0, `"text": "# of nginx in \n"`, ""},
		"not in a folder": {"domain export --nginx --out /proc/none/there", 2, "", "/proc/none/there cannot be made"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			code := w.run(t.Context(), strings.Fields(test.args)...)
			if out, errs := w.out.String(), w.errors.String(); code != test.code || !strings.Contains(out, test.out) || !strings.Contains(errs, test.err) {
				t.Errorf("%d\n%s\n%s", code, out, errs)
			}
		})
	}
}

// TestDomainExportToFolder: files are written whole, where the daemon was told that
// they would be, and nowhere else.
func TestDomainExportToFolder(t *testing.T) {
	t.Parallel()
	w := newWorld()
	dir := filepath.Join(t.TempDir(), "new", "folder")
	for range 2 { // over the first
		w.mustRun(t, "domain", "export", "--haproxy", "--out", dir)
	}
	for name, want := range map[string]string{"haproxy.conf": "# of haproxy in " + dir + "\n", "names.map": "a.example alice\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) != 2 || w.out.Len() != 0 || !strings.Contains(w.errors.String(), "haproxy.conf is written") {
		t.Errorf("%v, %v\n%s\n%s", there, err, w.out.String(), w.errors.String())
	}
	w.failure = vps.Errorf(vps.CodeConflict, "that cannot be done")
	if code := w.run(t.Context(), "domain", "export", "--nginx", "--out", filepath.Join(dir, "other")); code == 0 {
		t.Error("a failure is none")
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); !os.IsNotExist(err) {
		t.Errorf("a folder is made for nothing: %v", err)
	}
}
