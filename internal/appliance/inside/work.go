//go:build linux

package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/tree"
)

// worker does one job.
type worker struct {
	job        Job
	dir, tools string
	in         io.Reader
	out        io.Writer
}

// failure is an error with its kind.
type failure struct {
	kind Failure
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(kind Failure, format string, args ...any) error {
	return &failure{kind, fmt.Errorf(format, args...)}
}

// do does the job. A fault of ours is a failed job and not the end of process
// 1, which would be a panic of the kernel.
func (w *worker) do(ctx context.Context) (o Outcome) {
	defer func() {
		if fault := recover(); fault != nil {
			o.Failure, o.Error = Other, fmt.Sprintf("a fault in the appliance: %v", fault)
		}
	}()
	err := w.run(ctx, &o)
	if err == nil {
		return o
	}
	o.Error, o.Failure = err.Error(), Other
	var f *failure
	switch {
	case errors.As(err, &f):
		o.Failure = f.kind
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		o.Failure = Full
	case errors.Is(err, fs.ErrNotExist):
		o.Failure = Missing
	}
	return o
}

func (w *worker) run(ctx context.Context, o *Outcome) error {
	device := Device(w.job.Disk)
	if err := waitFor(ctx, device); err != nil {
		return err
	}
	kind := w.job.Filesystem
	if kind == "" {
		var err error
		if kind, err = detect(device); err != nil {
			return err
		}
	}
	o.Filesystem = kind
	switch w.job.Kind {
	case Unpack:
		return w.mounted(device, kind, 0, func(root *tree.Root) error {
			_, err := root.UnpackAt(ctx, w.in, w.job.Path, tree.Options{})
			return err
		})
	case CopyIn:
		return w.mounted(device, kind, 0, func(root *tree.Root) error {
			_, err := root.Receive(ctx, w.in, w.job.Path, tree.Options{})
			return err
		})
	case CopyOut:
		return w.mounted(device, kind, unix.MS_RDONLY, func(root *tree.Root) error {
			return root.Pack(ctx, w.out, w.job.Path, tree.As(w.job.Path))
		})
	case Check:
		verdict, err := w.check(ctx, device, kind)
		o.Verdict = verdict
		return err
	}
	return fail(Bad, "the job %q is not known", w.job.Kind)
}

// mounted mounts the disk, lets do work in it, and unmounts it, so that what
// was written is on the disk and the filesystem clean.
func (w *worker) mounted(device, kind string, flags uintptr, do func(*tree.Root) error) (err error) {
	at := filepath.Join(w.dir, "disk")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	const careful = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(device, at, kind, careful|flags, ""); err != nil {
		return fail(Unsound, "the %s filesystem cannot be mounted: %w", kind, err)
	}
	defer func() {
		err = errors.Join(err, unmount(at))
	}()
	root, err := tree.Open(at)
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

// unmount unmounts, and thereby writes what is pending.
func unmount(at string) error {
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Syncfs(fd), unix.Close(fd))
	}
	if err = errors.Join(err, unix.Unmount(at, 0)); err != nil {
		return fmt.Errorf("unmount the filesystem: %w", err)
	}
	return nil
}

// waitFor waits until a disk is there, which takes the kernel a moment.
func waitFor(ctx context.Context, device string) error {
	const patience, pause = 5 * time.Second, 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		f, err := os.Open(device)
		if err == nil {
			return f.Close()
		}
		select {
		case <-ctx.Done():
			return fail(Bad, "the appliance has no disk %s: %w", device, err)
		case <-time.After(pause):
		}
	}
}

// detect tells the kind of filesystem on a disk by its magic number, all of
// which have stood at the same place since the first version of each.
func detect(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	for _, k := range []struct {
		name, magic string
		at          int64
	}{
		{"ext4", "\x53\xef", 0x438},         // fs/ext4/ext4.h; ext2 and ext3 are ext4 to the kernel
		{"xfs", "XFSB", 0},                  // fs/xfs/libxfs/xfs_format.h
		{"btrfs", "_BHRfS_M", 0x10000 + 64}, // fs/btrfs/fs.h
	} {
		have := make([]byte, len(k.magic))
		if _, err := f.ReadAt(have, k.at); err == nil && string(have) == k.magic {
			return k.name, nil
		}
	}
	return "", fail(Unsound, "the disk holds none of the filesystems %s", strings.Join([]string{"ext2 to ext4", "XFS", "Btrfs"}, ", "))
}
