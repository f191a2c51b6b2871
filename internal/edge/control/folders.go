//go:build linux

package control

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// ownFolders makes the folders that the process may write to, and gives them to
// its user, with what is in them: the user may have been another one before.
func ownFolders(uid uint32, folders ...string) error {
	for _, path := range folders {
		const ownOnly = 0o700
		if err := os.MkdirAll(path, ownOnly); err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the folder %s of the edge cannot be made", path)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the folder %s of the edge cannot be looked at", path)
		}
		if st.Uid == uid && st.Gid == uid {
			continue
		}
		if err := give(path, int(uid)); err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the folder %s cannot be given to the edge", path)
		}
	}
	return nil
}

// give changes the owner of a folder and all in it. Whoever had it may have put
// anything there, so that no link is followed; the folder itself comes last, and
// says that it is done.
func give(path string, uid int) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if err := giveAll(root, ".", uid); err != nil {
		return err
	}
	return os.Lchown(path, uid, uid)
}

func giveAll(root *os.Root, dir string, uid int) error {
	folder, err := root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := folder.ReadDir(-1)
	if err := errors.Join(err, folder.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		name := dir + "/" + e.Name()
		if e.IsDir() {
			if err := giveAll(root, name, uid); err != nil {
				return err
			}
		}
		if err := root.Lchown(name, uid, uid); err != nil {
			return err
		}
	}
	return nil
}
