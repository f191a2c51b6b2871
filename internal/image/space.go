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

// space is what is free on the filesystem of dir, what of that is kept for
// guests, and whether it has come down to that. Of a filesystem that does not
// tell nothing is known, and it is not scarce.
func space(dir string) (free, kept vps.Bytes, scarce bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, 0, false
	}
	block := vps.Bytes(st.Bsize)
	free, kept = vps.Bytes(st.Bavail)*block, min(keptMost, vps.Bytes(st.Blocks)*block/keptPart)
	// Some filesystems do not count inodes, and say that there are none.
	return free, kept, free < kept || st.Files > 2*keptInodes && st.Ffree < keptInodes
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
			if _, _, scarce := space(dir); scarce {
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
