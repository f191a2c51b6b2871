// Package durable writes files so that a host that stops at any instant has
// the old ones or the new ones, whole.
package durable

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
)

// SyncDir makes the names in a folder last through a power cut: those that
// were made, renamed and removed before the call (fsync(2)). It blocks until
// they are on the disk, and may be repeated.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// WriteJSON makes or replaces the file at path, in one step and with mode
// 0600: a reader sees the old or the new one. A kill may leave a file beside it
// whose name starts with a dot.
func WriteJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails after the rename, as it should
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}
