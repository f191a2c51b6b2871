package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"sublet/internal/durable"
)

func TestWriteJSON(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "record.json")
	for _, v := range []any{map[string]int{"a": 1}, "next"} {
		if err := durable.WriteJSON(path, v); err != nil {
			t.Fatal(err)
		}
	}
	// What cannot be written leaves what is there.
	if err := durable.WriteJSON(path, func() {}); err == nil {
		t.Error("a function was written")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "\"next\"\n" {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("beside it there is something: %v, %v", all, err)
	}
	if err := durable.WriteJSON(filepath.Join(path, "none", "x"), 1); err == nil {
		t.Error("a file was written where there is no folder")
	}
}

func TestSyncDir(t *testing.T) {
	t.Parallel()
	if err := durable.SyncDir(t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := durable.SyncDir(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("a folder that is not there: %v", err)
	}
}
