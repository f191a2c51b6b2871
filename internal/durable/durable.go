// Package durable writes files so that a host that stops at any instant has
// the old ones or the new ones, whole.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

// KeySize is the length of keys, in bytes.
const KeySize = 32

// OpenKey reads the key in a file, and makes both, at random, when there is none:
// 64 hexadecimal digits, which only the file's owner may read. A file with anything
// else is an error, and left as it is.
func OpenKey(path string) (key [KeySize]byte, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return key, err
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != KeySize {
		return key, fmt.Errorf("%s is not a key of %d hexadecimal digits", path, 2*KeySize)
	}
	return [KeySize]byte(raw), nil
}

func makeKey(path string) (key [KeySize]byte, err error) {
	_, _ = rand.Read(key[:]) // never fails
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return key, err
	}
	_, err = f.WriteString(hex.EncodeToString(key[:]) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return key, err
	}
	if err := os.Rename(temporary, path); err != nil {
		return key, err
	}
	return key, SyncDir(filepath.Dir(path))
}
