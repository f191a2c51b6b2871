package guestinit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// deviceTimeout is how long a root disk may take to appear.
	deviceTimeout = 10 * time.Second
	devicePoll    = 20 * time.Millisecond
)

// filesystems are tried in this order for the root disk. All are built into
// Debian's kernel for User Mode Linux.
func filesystems() []string { return []string{"ext4", "xfs", "btrfs"} }

// subvolumes are those that installers put a system into which lies on Btrfs:
// Ubuntu's and Arch's, Debian's, Fedora's.
func subvolumes() []string { return []string{"@", "@rootfs", "root"} }

// mountRoot mounts the root disk with the first filesystem that fits, and with
// the options of rootflags=.
func (b *booter) mountRoot(ctx context.Context) error {
	device := b.options.root
	if !strings.HasPrefix(device, "/dev/") {
		return fmt.Errorf("root=%s on the kernel's command line is not the path of a device", device)
	}
	if err := waitFor(ctx, device); err != nil {
		return fmt.Errorf("the root disk %s is missing: attach it, or name another with root=", device)
	}
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	var failures []string
	for _, kind := range filesystems() {
		err := unix.Mount(device, newRoot, kind, 0, b.options.rootFlags)
		if err == nil {
			b.rootKind = kind
			return b.enterSubvolume()
		}
		failures = append(failures, fmt.Sprintf("%s: %v", kind, err))
	}
	return fmt.Errorf("the root disk %s cannot be mounted (%s): check it from the host with sublet fsck, or restore a snapshot",
		device, strings.Join(failures, ", "))
}

// enterSubvolume mounts the subvolume of a Btrfs root that holds the system,
// where the default one does not.
func (b *booter) enterSubvolume() error {
	if b.rootKind != "btrfs" || b.hasInit(newRoot) {
		return nil
	}
	for _, name := range subvolumes() {
		if !b.hasInit(newRoot + "/" + name) {
			continue
		}
		flags := "subvol=" + name
		if b.options.rootFlags != "" {
			flags = b.options.rootFlags + "," + flags
		}
		if err := unix.Unmount(newRoot, 0); err != nil {
			return err
		}
		if err := unix.Mount(b.options.root, newRoot, "btrfs", 0, flags); err != nil {
			return fmt.Errorf("the subvolume %s of the root disk cannot be mounted: %w", name, err)
		}
		return nil
	}
	return nil
}

// hasInit tells whether there is a program to start below a folder. A shell
// alone makes no system: it is what is left to start when there is none.
func (b *booter) hasInit(dir string) bool {
	t, err := OpenTree(dir)
	if err != nil {
		return false
	}
	defer t.Close() //nolint:errcheck // O_PATH
	return slices.ContainsFunc(b.options.initPrograms(), func(program string) bool {
		return program != "/bin/sh" && t.Exists(program)
	})
}

func waitFor(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	for {
		_, err := os.Stat(device)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(devicePoll):
		}
	}
}
