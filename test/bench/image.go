package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/test/lab"
)

// ballast is by how much the large image is larger.
const ballast = 3 << 30

// largeImage is the name of an image that holds what debian/12 holds, and a
// file of ballast bytes.
const largeImage = "large/12"

// useLargeImage puts the large image beside the others in the host's store.
// The store's folder of the lab is shared by all tests, so the host gets one
// of its own with a link to the shared images.
func useLargeImage(b *testing.B, h *lab.Host) {
	b.Helper()
	store := filepath.Join(h.StateDir, "images")
	shared, err := os.Readlink(store)
	check(b, err)
	check(b, os.Remove(store))
	check(b, os.Mkdir(store, 0o711))
	check(b, os.Symlink(filepath.Join(shared, "debian"), filepath.Join(store, "debian")))
	source, err := filepath.EvalSymlinks(filepath.Join(shared, "debian", "12", "latest"))
	check(b, err)

	const id = "large-12-1"
	home := filepath.Join(store, filepath.FromSlash(largeImage))
	dir := filepath.Join(home, id)
	check(b, os.MkdirAll(dir, 0o755))
	disk := filepath.Join(dir, "disk.img")
	command(b, "cp", "--sparse=always", filepath.Join(source, "disk.img"), disk)
	check(b, os.Chmod(disk, 0o644))
	info, err := os.Stat(disk)
	check(b, err)

	text, err := os.ReadFile(filepath.Join(source, "manifest.json"))
	check(b, err)
	var m map[string]any
	check(b, json.Unmarshal(text, &m))
	filesystem, ok := m["filesystem_size"].(float64)
	if !ok {
		b.Fatal("the manifest tells no size of the filesystem")
	}
	filesystem += ballast + ballast/8

	heavy := filepath.Join(h.Dir, "ballast")
	check(b, writeBallast(heavy))
	// e2fsck says 1 when it changed something; there is no journal to replay.
	tryCommand(b, "e2fsck", "-fp", disk)
	command(b, "resize2fs", disk, fmt.Sprintf("%.0fK", filesystem/1024))
	command(b, "debugfs", "-w", "-R", "write "+heavy+" ballast", disk)
	check(b, os.Truncate(disk, info.Size()))
	check(b, os.Remove(heavy))

	var st unix.Stat_t
	check(b, unix.Stat(disk, &st))
	if st.Blocks*512 < ballast {
		b.Fatalf("the large image takes only %d bytes", st.Blocks*512)
	}
	m["name"], m["id"], m["filesystem_size"], m["content"] = largeImage, id, int64(filesystem)/1024*1024, st.Blocks*512
	text, err = json.Marshal(m)
	check(b, err)
	check(b, os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o444))
	check(b, os.Symlink(id, filepath.Join(home, "latest")))
}

// writeBallast makes a file without a block of zeros, which would take no room
// in an image.
func writeBallast(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := bytes.Repeat([]byte("ballast\n"), 1<<17)
	for written := 0; written < ballast; written += len(block) {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return nil
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func command(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.CommandContext(b.Context(), name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func tryCommand(b *testing.B, name string, args ...string) {
	b.Helper()
	_ = exec.CommandContext(b.Context(), name, args...).Run()
}
