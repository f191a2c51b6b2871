package guestinit

import (
	"context"
	"errors"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"sublet/internal/appliance/inside"
)

// errServed is how an appliance ends that did all that it was asked for.
var errServed = errors.New("this guest was an appliance, whose work is done")

// applianceDir is where an appliance mounts what it works on.
const applianceDir = "/appliance"

// appliance does the host's work on other guests' disks, in place of an
// image. The root disk, where there is one, is the rescue system with its
// programs; it is mounted read-only.
func (b *booter) appliance(ctx context.Context) error {
	// It lives longer and reads more than other guests' early boot.
	const usual = 100
	debug.SetGCPercent(usual)
	if err := os.Mkdir(applianceDir, 0o755); err != nil {
		return err
	}
	tools := ""
	if size, err := diskSize(b.options.root); err == nil && size > 0 {
		if err := b.mountTools(); err != nil {
			return err
		}
		tools = newRoot
	}
	if err := makeRaw(os.Stdin); err != nil {
		return err
	}
	if err := inside.Serve(ctx, os.Stdin, b.console, applianceDir, tools); err != nil {
		return err
	}
	return errServed
}

// mountTools mounts the rescue system with what its programs look for.
func (b *booter) mountTools() error {
	if err := unix.Mount(b.options.root, newRoot, "ext4", unix.MS_RDONLY|unix.MS_NOATIME, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return unix.Mount("tmpfs", newRoot+"/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "")
}

// diskSize returns the length of a block device; an error when there is none
// behind the node.
func diskSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	return f.Seek(0, 2)
}
