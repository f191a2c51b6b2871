package guestinit

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHotplugOff(t *testing.T) {
	t.Parallel()
	proc := t.TempDir()
	if err := hotplugOff(proc); err != nil {
		t.Errorf("a kernel without it: %v", err)
	}
	path := filepath.Join(proc, "sys/kernel/hotplug")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hotplugOff(proc); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "\n" {
		t.Errorf("it says %q, %v; want an empty line", text, err)
	}
}
