//go:build linux

package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Sizes of the small filesystems in memory.
const (
	rootSize   = "size=1m,nr_inodes=1024,mode=0755"
	deviceSize = "size=4k,nr_inodes=64,mode=0755"
	ownSize    = "size=256k,nr_inodes=64"
	// memoryInodes: the kernel makes one file for its memory and unlinks it;
	// after a reboot inside one more.
	memoryInodes = 64
)

// plain is how everything is mounted: no set-user-ID programs, and no devices.
const plain = unix.MS_NOSUID | unix.MS_NODEV

// buildRoot makes the new root and moves into it. The mount namespace is this
// process's own, so nothing of it is to be undone on the host.
func (c *Config) buildRoot() error {
	// First of all nothing may reach the host's own mounts.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("sublet-root", c.Root, "tmpfs", plain, rootSize); err != nil {
		return err
	}
	for _, path := range slices.Compact(slices.Sorted(slices.Values(c.Files))) {
		if !slices.Contains(c.Writable, path) {
			if err := show(c.Root, path, path, unix.MS_RDONLY); err != nil {
				return err
			}
		}
	}
	for _, path := range c.Writable {
		if err := show(c.Root, path, path, unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	for _, inside := range slices.Sorted(maps.Keys(c.Links)) {
		if err := show(c.Root, c.Links[inside], inside, unix.MS_RDONLY); err != nil {
			return err
		}
	}
	for _, make := range []func() error{c.devices, c.processes, c.memory, c.ownDirs} {
		if err := make(); err != nil {
			return err
		}
	}
	if err := mount("", c.Root, "", unix.MS_REMOUNT|unix.MS_RDONLY|plain, rootSize); err != nil {
		return err
	}
	if err := moveIn(c.Root, c.WorkDir); err != nil {
		return err
	}
	if _, err := os.Lstat("/etc"); !errors.Is(err, fs.ErrNotExist) {
		return errors.New("the guest's root is not what was built")
	}
	return nil
}

// show puts a file of the host into a new root, with these mount flags and
// the plain ones.
func show(root, source, inside string, flags uintptr) error {
	target := filepath.Join(root, inside)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("make a folder in the guest's root: %w", err)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make a place for %s in the guest's root: %w", source, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return bind(source, target, flags)
}

// bind mounts a file or a folder on another one.
func bind(source, target string, flags uintptr) error {
	if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// A bind mount takes its flags only by a second call (mount(2)).
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|plain|flags, "")
}

// devices makes /dev with what User Mode Linux opens. Opening the device of
// taps gives the guest nothing but its own link: a tap with an owner is for
// that owner, and making a new one takes a capability (drivers/net/tun.c).
func (c *Config) devices() error {
	dev := filepath.Join(c.Root, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	const quiet = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := mount("sublet-dev", dev, "tmpfs", quiet, deviceSize); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dev, "net"), 0o755); err != nil {
		return err
	}
	// The numbers are those of Documentation/admin-guide/devices.txt.
	const mem, misc = 1, 10
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{
		{"null", mem, 3}, {"zero", mem, 5}, {"full", mem, 7}, {"random", mem, 8}, {"urandom", mem, 9}, {"net/tun", misc, 200},
	} {
		path := filepath.Join(dev, d.name)
		const everybody = 0o666
		if err := unix.Mknod(path, unix.S_IFCHR|everybody, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make the guest's device %s; a host that is itself a container has to allow that: %w", d.name, err)
		}
		if err := os.Chmod(path, everybody); err != nil { // whatever the umask is
			return err
		}
	}
	if err := c.disks(); err != nil {
		return err
	}
	return mount("", dev, "", unix.MS_REMOUNT|unix.MS_RDONLY|quiet, deviceSize)
}

// disks makes the devices of disks that are none of files. They belong to the
// guest's user; those of the host stay root's, and nobody outside of the jail
// gets to these.
func (c *Config) disks() error {
	for _, d := range c.Devices {
		path := filepath.Join(c.Root, d.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make a folder for the disk %s: %w", d.Path, err)
		}
		mode := uint32(0o600)
		if d.ReadOnly {
			mode = 0o400
		}
		if err := unix.Mknod(path, unix.S_IFBLK|mode, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
			return fmt.Errorf("make the device of the disk %s; a host that is itself a container has to allow that: %w", d.Path, err)
		}
		if err := errors.Join(os.Chmod(path, os.FileMode(mode)), os.Chown(path, int(c.UID), int(c.UID))); err != nil {
			return err
		}
	}
	return nil
}

// processes mounts a /proc that shows this user's processes of this pid
// namespace, and nothing of the kernel's own files (since Linux 5.8).
func (c *Config) processes() error {
	proc := filepath.Join(c.Root, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	const flags = plain | unix.MS_NOEXEC | unix.MS_RDONLY
	err := mount("sublet-proc", proc, "proc", flags, "subset=pid,hidepid=2")
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w; Linux 5.8 or newer is needed", err)
	}
	return err
}

// memory makes the folder for the guest's memory. It is charged to the
// guest's own control group, as are all pages that it touches first.
func (c *Config) memory() error {
	dir := filepath.Join(c.Root, c.MemoryDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("size=%d,nr_inodes=%d,mode=0700,uid=%d,gid=%d", int64(c.MemorySize), memoryInodes, c.UID, c.UID)
	return mount("sublet-memory", dir, "tmpfs", plain, options)
}

func (c *Config) ownDirs() error {
	for _, name := range c.OwnDirs {
		dir := filepath.Join(c.Root, c.WorkDir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		options := fmt.Sprintf("%s,mode=0700,uid=%d,gid=%d", ownSize, c.UID, c.UID)
		if err := mount("sublet-own", dir, "tmpfs", plain|unix.MS_NOEXEC, options); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(c.Root, c.WorkDir), 0o755)
}

// moveIn makes a new root this process's, and lets the old one go.
func moveIn(root, workDir string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// With both the same the old root lies on top of the new one, and no folder
	// is needed for it (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("move into the guest's root; a host on an initramfs cannot do that: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	if err := os.Chdir(workDir); err != nil {
		return fmt.Errorf("enter the working folder: %w", err)
	}
	return nil
}

// mount is mount(2) with an error that says what for.
func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		what := kind
		if what == "" {
			what = source
		}
		return fmt.Errorf("mount %s on %s for the guest (a host that is itself a container has to allow mounts): %w", what, target, err)
	}
	return nil
}
