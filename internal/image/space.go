package image

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// What stays free on the filesystem of the images, which is mostly that of
// guests' disks too: those are sparse, and a guest whose disk cannot grow loses
// data. At most keptMost, and no more than this part of the whole.
const (
	keptMost = 512 * vps.MiB
	keptPart = 20
	// keptInodes is the same in files.
	keptInodes = 1000
)

// reserve is what is kept free on the filesystem of dir.
func reserve(dir string) vps.Bytes {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return min(keptMost, vps.Bytes(st.Blocks)*vps.Bytes(st.Bsize)/keptPart)
}

// freeAt is what is free on the filesystem of dir.
func freeAt(dir string) vps.Bytes {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return vps.Bytes(st.Bavail) * vps.Bytes(st.Bsize)
}

// scarce tells whether the filesystem of dir has come down to its reserve.
func scarce(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	// Some filesystems do not count inodes, and say that there are none.
	return freeAt(dir) < reserve(dir) || st.Files > 2*keptInodes && st.Ffree < keptInodes
}

// guard watches the filesystem of dir: what it returns ends, with ENOSPC as its
// cause, when the reserve is reached. So whatever fills the disk, an upload, an
// archive or a program of somebody else's, is stopped before guests suffer.
func guard(ctx context.Context, dir string) (context.Context, func()) {
	const often = 100 * time.Millisecond
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(often)
		defer tick.Stop()
		for {
			if scarce(dir) {
				cancel(fmt.Errorf("the reserve of free space is reached: %w", unix.ENOSPC))
				return
			}
			select {
			case <-tick.C:
			case <-done:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}
