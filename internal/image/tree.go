package image

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// finish turns an unpacked system into an image's: the recipe's files in,
// everything of the build and of this host out. All paths are resolved inside
// the tree, whatever links the packages made.
func finish(root *os.Root, r release, sources []source, now time.Time) error {
	// Other parts are gone already: mmdebstrap empties /run, /tmp and the lists.
	for _, pattern := range []string{
		"etc/ssh/ssh_host_*", // made by the package's installation
		"etc/hostname", "etc/resolv.conf", "etc/apt/sources.list", "etc/apt/sources.list.d/*", "etc/apt/apt.conf.d/99mmdebstrap",
		"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
		"etc/systemd/system/timers.target.wants/*",
		"var/cache/apt/*.bin", "var/cache/apt/archives/*", "var/cache/debconf/*-old", "var/cache/ldconfig/*",
		"var/lib/apt/lists/*", "var/lib/dpkg/*-old", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id",
		"root/.bash_history", "root/.ssh",
	} {
		if err := removeAll(root, pattern); err != nil {
			return err
		}
	}
	if err := emptyLogs(root); err != nil {
		return err
	}
	if err := root.MkdirAll("var/lib/apt/lists/partial", 0o755); err != nil {
		return err
	}
	if err := root.MkdirAll("var/cache/apt/archives/partial", 0o755); err != nil {
		return err
	}
	archive := "debian.sources"
	if r.mirror != "" {
		archive = r.distribution + ".sources"
	}
	all := append(files(), file{path: "etc/apt/sources.list.d/" + archive, text: formatSources(forGuest(sources, r.keys()))})
	all = append(all, r.files...)
	for _, f := range all {
		if err := writeFile(root, f.path, f.text); err != nil {
			return err
		}
		if f.program {
			if err := root.Chmod(f.path, 0o755); err != nil {
				return err
			}
		}
	}
	wanted := links()
	maps.Copy(wanted, r.links)
	for name, target := range wanted {
		if err := link(root, name, target); err != nil {
			return err
		}
	}
	// ConditionNeedsUpdate= (systemd.unit(5)): the files say that /etc and
	// /var are up to date with /usr, so that nothing rebuilds caches at boot.
	for _, name := range []string{"etc/.updated", "var/.updated"} {
		if err := writeFile(root, name, "# Written when the image was made, see systemd-update-done.service(8).\n"); err != nil {
			return err
		}
		if err := root.Chtimes(name, now, now); err != nil {
			return err
		}
	}
	return root.Chtimes("usr", now, now)
}

func writeFile(root *os.Root, name, text string) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// A link in the way must not be followed.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.WriteFile(name, []byte(text), 0o644); err != nil {
		return err
	}
	return root.Chmod(name, 0o644) // whatever the umask
}

func link(root *os.Root, name, target string) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.Symlink(target, name)
}

func removeAll(root *os.Root, pattern string) error {
	names, err := fs.Glob(root.FS(), pattern)
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}

// keptLogs are made once by packages, empty, with owners of their own.
var keptLogs = []string{"btmp", "faillog", "lastlog", "wtmp"}

// emptyLogs removes what the installation logged.
func emptyLogs(root *os.Root) error {
	return fs.WalkDir(root.FS(), "var/log", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir() || d.Type()&fs.ModeSymlink != 0:
			return err
		case slices.Contains(keptLogs, d.Name()):
			f, err := root.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				return err
			}
			return f.Close()
		default:
			return root.Remove(name)
		}
	})
}

// usage is what a tree takes in a filesystem with blocks of 4 KiB. Holes take
// nothing.
func usage(dir string) (size vps.Bytes, inodes int64, err error) {
	type file struct{ device, number uint64 }
	seen := map[file]bool{} // files with several names count once
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			key := file{st.Dev, st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		inodes++
		switch {
		case d.IsDir():
			size += inBlocks(info.Size())
		case d.Type().IsRegular():
			length := info.Size()
			if st.Blocks*512 < length { // it may have holes, or be compressed
				if length, err = dataIn(path); err != nil {
					return err
				}
			}
			size += inBlocks(length)
		}
		return nil
	})
	return size, inodes, err
}

func inBlocks(length int64) vps.Bytes {
	return vps.Bytes(length+blockSize-1) / blockSize * blockSize
}

// dataIn is the length of what a file holds beside holes, in bytes, of which
// each run counts as whole blocks.
func dataIn(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // read only
	var sum int64
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return 0, err
		}
		sum += int64(inBlocks(at - from))
	}
}
