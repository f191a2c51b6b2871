//go:build linux

package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"sublet/internal/appliance/inside"
	"sublet/internal/vps"
)

// Filesystems are those that Make makes.
func Filesystems() []string { return []string{"btrfs", "ext4", "xfs"} }

// Make is a filesystem to be made.
type Make struct {
	// Path is a file, which is replaced if it is there, and has Size bytes
	// afterwards. The appliance's user must be able to pass through its folder.
	Path string
	Size vps.Bytes
	// Filesystem is one of Filesystems, Label its label, or empty.
	Filesystem, Label string
	// UID is a user that nobody else runs as, for the appliance.
	UID uint32
}

// Make makes a filesystem with the content of the tar archive, which is not
// compressed. The empty filesystem is made on the host, which parses nothing
// of anybody's for that, and filled in an appliance. The file belongs to the
// caller, mode 0600, and is on the disk when Make returns. When it fails the
// file is removed: CodeInvalid when the archive is wrong, CodeDenied when it
// does not fit or the host's disk is full.
func (h *Host) Make(ctx context.Context, m Make, archive io.Reader) (err error) {
	if !slices.Contains(Filesystems(), m.Filesystem) {
		return vps.Invalid("filesystem", "%q is none of the filesystems that can be made: %v", m.Filesystem, Filesystems())
	}
	if err := os.Remove(m.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(m.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(m.Path))
		}
	}()
	if err := f.Truncate(int64(m.Size)); err != nil {
		return err
	}
	if err := format(ctx, m); err != nil {
		return err
	}
	if err := f.Chown(int(m.UID), -1); err != nil {
		return err
	}
	if err := h.fill(ctx, m, archive); err != nil {
		return err
	}
	return errors.Join(f.Chown(os.Geteuid(), -1), f.Sync())
}

// fill unpacks the archive into the new filesystem.
func (h *Host) fill(ctx context.Context, m Make, archive io.Reader) (err error) {
	a, err := h.Start(ctx, Spec{Disks: []vps.Disk{{Path: m.Path}}, UID: m.UID, Limit: m.Size})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	_, err = a.Do(ctx, inside.Job{Kind: inside.Unpack, Filesystem: m.Filesystem}, archive, nil, Flow{})
	return err
}

// format makes the empty filesystem with its own program.
func format(ctx context.Context, m Make) error {
	program, args := formatArgs(m)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return vps.Wrap(vps.CodeInternal, err, "the program %s is missing on this host; install the package that has it", program)
	case err != nil && bytes.Contains(out, []byte(unix.ENOSPC.Error())):
		return fmt.Errorf("%s: %w", program, unix.ENOSPC)
	case err != nil:
		return vps.Wrap(vps.CodeInvalid, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out)),
			"no %s filesystem of %s can be made: %s", m.Filesystem, m.Size, printable(string(out), maxText))
	}
	return nil
}

func formatArgs(m Make) (program string, args []string) {
	switch m.Filesystem {
	case "xfs":
		args = []string{"-q", "-f"}
	case "btrfs":
		args = []string{"-q", "-f"}
	default:
		// What is written is all that counts: a new file is zeros already.
		args = []string{"-q", "-F", "-t", "ext4", "-m", "1", "-E", "lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0"}
	}
	if m.Label != "" {
		args = append(args, "-L", m.Label)
	}
	args = append(args, m.Path)
	if m.Filesystem == "ext4" {
		return "mke2fs", append(args, strconv.FormatInt(int64(m.Size/vps.KiB), 10)+"k")
	}
	return "mkfs." + m.Filesystem, args
}
