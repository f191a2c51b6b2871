package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// fileMode lets only the guest's own process read it: it may hold a password
// hash.
const fileMode = 0o400

// Path returns where Set keeps the seed of the guest with this id.
func Path(dir, id string) string { return filepath.Join(dir, id+".seed") }

// Set makes the seed disk of a guest be s: dir/<id>.seed, mode 0400, owned by
// uid. changed tells whether anything had to be written. It makes dir when
// missing. The old seed stays whole until the new one has replaced it in one
// step; a guest that runs keeps the one it started with. Calls for different
// guests may run at the same time, those for one guest must not.
func Set(ctx context.Context, dir, id string, s Seed, uid uint32) (path string, changed bool, err error) {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
		return "", false, vps.Invalid("id", "%q cannot be a file's name", id)
	}
	data, err := s.Bytes()
	if err != nil {
		return "", false, err
	}
	if err := ctx.Err(); err != nil {
		return "", false, err
	}
	path = Path(dir, id)
	if same(path, data, uid) {
		return path, false, nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", false, fmt.Errorf("make the folder of seeds: %w", err)
	}
	if err := replace(dir, path, data, uid); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return "", false, vps.Wrap(vps.CodeInternal, err, "the disk that holds %s is full, so the guest's seed could not be written; free some space", dir)
		}
		return "", false, fmt.Errorf("write the seed: %w", err)
	}
	return path, true, nil
}

// Remove deletes the seed of a guest. That there is none is fine.
func Remove(dir, id string) error {
	if err := os.Remove(Path(dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the seed: %w", err)
	}
	return nil
}

// same tells whether path already is a plain file with this content, mode and
// owner.
func same(path string, data []byte, uid uint32) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fileMode || info.Size() != int64(len(data)) {
		return false
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != uid {
		return false
	}
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, data)
}

func replace(dir, path string, data []byte, uid uint32) (err error) {
	// One name per guest, so that what a kill leaves behind is overwritten by
	// the next try.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chown(int(uid), -1)
	}
	if err == nil {
		err = f.Chmod(fileMode) // the umask may have taken bits
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp, path); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}
