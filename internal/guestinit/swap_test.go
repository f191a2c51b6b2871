package guestinit

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestSwapHeader asks the real tools what the header is.
func TestSwapHeader(t *testing.T) {
	t.Parallel()
	const size = 64 * vps.MiB
	name := filepath.Join(t.TempDir(), "swap")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := makeSwap(f, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkswap", "-q", "-L", "sublet", "-U", "00000000-0000-0000-0000-000000000000", name).CombinedOutput(); err != nil {
		t.Fatalf("mkswap: %v: %s", err, out)
	}
	theirs, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if vps.Bytes(len(ours)) != size || string(ours[:swapPage]) != string(theirs[:swapPage]) {
		t.Errorf("%d bytes:\n%s\nmkswap:\n%s", len(ours), hex.Dump(ours[1024:1100]), hex.Dump(theirs[1024:1100]))
	}
}

// TestSwapTakenAway does what needs no swapon(2), which would be the host's.
func TestSwapTakenAway(t *testing.T) {
	t.Parallel()
	tree, root, _ := newTree(t)
	put(t, root, map[string]string{"swapfile": "a user's"})
	err := setSwap(tree, 1<<60)
	if err == nil || !strings.Contains(err.Error(), "grow the disk") {
		t.Errorf("more than there is: %v", err)
	}
	if tree.Exists(SwapPath) {
		t.Error("something is left")
	}
	put(t, root, map[string]string{"sublet.swap": "old"})
	for range 2 {
		if err := setSwap(tree, 0); err != nil || tree.Exists(SwapPath) {
			t.Errorf("none: %v, there is one: %v", err, tree.Exists(SwapPath))
		}
	}
	if read(t, root, "swapfile") != "a user's" {
		t.Error("a file of the user's was touched")
	}
}
