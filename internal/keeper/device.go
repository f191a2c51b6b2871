//go:build linux

package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tunPath is where User Mode Linux opens the device of taps.
const tunPath = "/dev/net/tun"

// lendTun lets the guest, which this thread is about to start, open the device
// of taps. It gives the guest nothing but its own link: a tap with an owner is
// for that owner, and making a new one takes a capability (drivers/net/tun.c).
//
// udev opens the device to everybody. Where nothing did, as in many
// containers, the guest gets a folder /dev/net of its own with a device that
// it may open; the host's stays as it is. The thread's view of the file
// systems is its own afterwards, so it must be locked and thrown away.
func lendTun() error {
	const everybody = 0o006
	info, err := os.Stat(tunPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel says what is wrong when it opens it
	}
	if err != nil {
		return fmt.Errorf("look at the device of taps: %w", err)
	}
	if info.Mode()&everybody == everybody {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from the host: %w", err)
	}
	if err := unix.Mount("sublet-dev", filepath.Dir(tunPath), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=4k"); err != nil {
		return fmt.Errorf("mount a folder for the device of taps: %w", err)
	}
	// The numbers are those of Documentation/admin-guide/devices.txt.
	const misc, tun = 10, 200
	if err := unix.Mknod(tunPath, unix.S_IFCHR|everybody, int(unix.Mkdev(misc, tun))); err != nil {
		return fmt.Errorf("make the device of taps: %w", err)
	}
	if err := os.Chmod(tunPath, everybody); err != nil {
		return fmt.Errorf("open the device of taps: %w", err)
	}
	return nil
}
