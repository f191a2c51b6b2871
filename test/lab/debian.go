package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Debian returns a folder with a Debian 12 that has these packages, separated by
// commas, on top of one of mmdebstrap's variants. It is for reading only. It is
// made once, from the same archive as the image for guests, and kept beside
// that. Making it needs the machine's own network: call it before New, or
// nstest.New.
func Debian(t testing.TB, variant, packages string) string {
	t.Helper()
	images := images(t)
	disk := filepath.Join(images, "debian/12/latest/disk.img")
	sources, err := exec.CommandContext(t.Context(), "debugfs", "-R", "cat /etc/apt/sources.list.d/debian.sources", disk).Output()
	if err != nil {
		t.Fatalf("read the image's apt sources: %v", err)
	}
	sum := sha256.Sum256([]byte(variant + " " + packages + string(sources)))
	dir := filepath.Join(filepath.Dir(images), "debian-"+hex.EncodeToString(sum[:8]))
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	list := filepath.Join(t.TempDir(), "debian.sources")
	if err := os.WriteFile(list, sources, 0o600); err != nil {
		t.Fatal(err)
	}
	made := dir + ".new"
	if err := os.RemoveAll(made); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "mmdebstrap", "--mode=root", "--format=directory", "--variant="+variant, "--include="+packages,
		`--aptopt=Acquire::Check-Valid-Until "false"`, "bookworm", made, list)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make a Debian with %s: %v\n%s", packages, err, out)
	}
	if err := os.Rename(made, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}
