package fsusage

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sublet/internal/vps"
)

// fileSource is a file for tests.
type fileSource struct{ *os.File }

func (f fileSource) Size() int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func readFile(t *testing.T, path string) (vps.Filesystem, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return readFilesystem(t.Context(), fileSource{f})
}

func TestExt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	run(t, "mke2fs", "-q", "-t", "ext4", path, "64M")
	fs, err := readFile(t, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", fs)
}
