package image

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// cache is the folder of downloaded packages for this release, or "".
func (b *build) cache() string {
	if b.opts.CacheDir == "" {
		return ""
	}
	return filepath.Join(b.opts.CacheDir, b.release.codename)
}

// fillCache makes the cache hold what this build used, and no more.
func (b *build) fillCache(archives string) error {
	cache := b.cache()
	if cache == "" {
		return nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	if err := copyDebs(archives, cache); err != nil {
		return err
	}
	entries, err := os.ReadDir(cache)
	for _, e := range entries {
		if _, gone := os.Lstat(filepath.Join(archives, e.Name())); gone != nil && strings.HasSuffix(e.Name(), ".deb") {
			err = errors.Join(err, ignoreMissing(os.Remove(filepath.Join(cache, e.Name()))))
		}
	}
	return err
}

// copyDebs puts every package of one folder into another that has it not. A
// folder that is "" or missing has none.
func copyDebs(from, to string) error {
	if from == "" {
		return nil
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), ".deb") {
			continue
		}
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		err := os.Link(src, dst)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = copyFile(src, dst)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return ignoreMissing(err) // another build may have cleaned the cache
		}
	}
	return nil
}

// copyFile copies src to dst, whole or not at all.
func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	out, err := os.CreateTemp(filepath.Dir(dst), ".copy-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(out.Name()) }() // fails after the rename, as it should
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), dst)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
