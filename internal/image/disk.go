package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"sublet/internal/rootfs"
	"sublet/internal/tree"
	"sublet/internal/vps"
)

// Disks reads images of disks. Whoever made one may be hostile.
type Disks interface {
	// Look tells what is on the disk in a file.
	Look(ctx context.Context, path string) (vps.DiskUsage, error)
	// Open opens that disk for reading; it ends with ctx.
	Open(ctx context.Context, path string) (Disk, error)
}

// Disk is a disk as a guest would see it.
type Disk interface {
	io.ReaderAt
	io.Closer
}

// Filesystem is one that is to be made: the new file Path of Size bytes.
type Filesystem struct {
	Path, Kind, Label string
	Size              vps.Bytes
}

// Appliance works on filesystems that this host must not mount.
type Appliance interface {
	// Make makes a filesystem with the content of an archive.
	Make(ctx context.Context, f Filesystem, archive io.Reader) error
	// Skeleton copies these files, as far as they are there, out of the
	// filesystem in the file disk into an empty folder, and what they lead to
	// when they are links. It proves too that the filesystem can be mounted.
	Skeleton(ctx context.Context, disk, dir string, names []string) error
}

// packElsewhere makes a filesystem that no program fills without mounting it.
func (w *work) packElsewhere(ctx context.Context, dir string, m *manifest, content vps.Bytes) error {
	if w.opts.Appliance == nil {
		return vps.Errorf(vps.CodeUnavailable, "this daemon cannot make %s filesystems", m.Filesystem)
	}
	root, err := tree.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a folder
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	archive, in := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.CloseWithError(root.Pack(ctx, in, ".", "."))
	}()
	sent := int64(0)
	err = w.opts.Appliance.Make(ctx, Filesystem{w.disk(), m.Filesystem, "root", m.FilesystemSize}, readerFunc(func(b []byte) (int, error) {
		n, err := archive.Read(b)
		sent += int64(n)
		w.meter.at(phaseWrite, endBootstrap+(endWrite-endBootstrap)*min(1, float64(sent)/float64(content+1)))
		return n, err
	}))
	_ = archive.CloseWithError(io.ErrClosedPipe) // ends the packing
	<-done
	return err
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// importDisk takes the root filesystem out of the image of a disk, as it is.
func (w *work) importDisk(ctx context.Context, path string, i Import, m *manifest) error {
	if w.opts.Disks == nil {
		return vps.Errorf(vps.CodeUnavailable, "this daemon cannot read images of disks")
	}
	if i.Filesystem != "" {
		return vps.Invalid("filesystem", "an image of a disk has a filesystem, which stays what it is; leave --filesystem out")
	}
	usage, err := w.opts.Disks.Look(ctx, path)
	if err != nil {
		return anonymous(err, path)
	}
	part, err := findRoot(usage, i.Partition)
	if err != nil {
		return err
	}
	if m.FilesystemSize, err = lengthOf(part); err != nil {
		return err
	}
	m.Filesystem = string(part.Filesystem.Type)
	if err := w.copyOut(ctx, path, part.Start, m.FilesystemSize); err != nil {
		return anonymous(err, path)
	}
	if err := w.inspectDisk(ctx, m); err != nil {
		return err
	}
	return w.keep(ctx, m)
}

// anonymous leaves the name of the file here, which means nothing to the user,
// out of a sentence.
func anonymous(err error, path string) error {
	if known := vps.ErrorCode(err); known == vps.CodeInvalid {
		return vps.Wrap(known, err, "%s", strings.ReplaceAll(vps.ErrorMessage(err), path, "the disk"))
	}
	return err
}

// rootKind tells whether a guest can have a filesystem as its root.
func rootKind(p *vps.DiskPart) bool {
	if p.Filesystem == nil {
		return false
	}
	switch p.Filesystem.Type {
	case vps.FilesystemExt2, vps.FilesystemExt3, vps.FilesystemExt4, vps.FilesystemXFS, vps.FilesystemBtrfs:
		return true
	case vps.FilesystemSwap, vps.FilesystemJournal:
	}
	return false
}

// findRoot picks the partition with the root filesystem: the one asked for, the
// only one, the one called so, or one that is larger than all others by far.
func findRoot(u vps.DiskUsage, number int) (vps.DiskPart, error) {
	var can []vps.DiskPart
	for _, p := range u.Parts {
		if number != 0 && p.Number == number {
			if !rootKind(&p) {
				return p, vps.Invalid("partition", "partition %d holds no ext4, XFS or Btrfs filesystem that can be read: %s", number, describePart(&p))
			}
			return p, nil
		}
		if rootKind(&p) {
			can = append(can, p)
		}
	}
	all := make([]string, 0, len(u.Parts))
	for _, p := range u.Parts {
		all = append(all, describePart(&p))
	}
	list := strings.Join(all, "; ")
	switch {
	case number != 0:
		return vps.DiskPart{}, vps.Invalid("partition", "there is no partition %d; the disk has: %s", number, list)
	case len(can) == 0:
		return vps.DiskPart{}, vps.Errorf(vps.CodeInvalid, "the disk holds no ext4, XFS or Btrfs filesystem that can be read; it has: %s", list)
	}
	largest := 0
	for i, p := range can {
		name := strings.ToLower(p.Name + " " + p.Filesystem.Label)
		if strings.Contains(name, "root") {
			return can[i], nil
		}
		if p.Size > can[largest].Size {
			largest = i
		}
	}
	for i, p := range can {
		if i != largest && p.Size > can[largest].Size/2 {
			return vps.DiskPart{}, vps.Invalid("partition", "the disk has several filesystems (%s); say which is the root: --partition N", list)
		}
	}
	return can[largest], nil
}

// describePart names a partition for people.
func describePart(p *vps.DiskPart) string {
	what := p.Contains
	switch {
	case p.Filesystem != nil:
		what = strings.TrimSpace(string(p.Filesystem.Type) + " " + p.Filesystem.Label)
	case p.Error != "":
		what = "damaged, " + p.Error
	case what == "":
		what = "nothing known"
	}
	return fmt.Sprintf("%d %s, %s", p.Number, p.Size, what)
}

// lengthOf is how much of its place a filesystem takes, in whole blocks.
func lengthOf(p vps.DiskPart) (vps.Bytes, error) {
	length := (p.Filesystem.Size + blockSize - 1) / blockSize * blockSize
	switch {
	case length <= 0 || length > maxCapacity:
		return 0, vps.Errorf(vps.CodeInvalid, "the filesystem would have %s", p.Filesystem.Size)
	case p.Filesystem.Size > p.Size:
		return 0, vps.Errorf(vps.CodeInvalid, "the filesystem has %s, and only %s are there; the end was cut off", p.Filesystem.Size, p.Size)
	}
	return length, nil
}

// copyOut writes a piece of a disk into the new version's.
func (w *work) copyOut(ctx context.Context, path string, from, length vps.Bytes) error {
	disk, err := w.opts.Disks.Open(ctx, path)
	if err != nil {
		return err
	}
	defer disk.Close() //nolint:errcheck // read only
	f, err := os.OpenFile(w.disk(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w.meter.at(phaseWrite, endUnpack)
	_, err = rootfs.CopySparse(ctx, f, io.NewSectionReader(disk, int64(from), int64(length)), func(n int64) {
		w.meter.at(phaseWrite, endUnpack+(endBootstrap-endUnpack)*float64(n)/float64(length))
	})
	if err == nil {
		// The disk may end within the last block.
		err = f.Truncate(int64(length))
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// looked are the files that tell what a system is.
var looked = []string{
	"/etc/os-release", "/usr/lib/os-release", "/sbin/init", "/usr/sbin/init", "/bin/sh", "/etc/inittab", "/etc/runlevels",
	"/usr/sbin/sshd", "/usr/bin/sshd", "/usr/sbin/dropbear", "/var/lib/dpkg/status", "/lib/apk/db/installed",
}

// inspectDisk finds out what system is on the new version's disk.
func (w *work) inspectDisk(ctx context.Context, m *manifest) error {
	if w.opts.Appliance == nil {
		return nil
	}
	dir := filepath.Join(w.tmp, "skeleton")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := w.opts.Appliance.Skeleton(ctx, w.disk(), dir, looked); err != nil {
		return err
	}
	info, err := rootfs.Inspect(dir)
	if err != nil {
		return err
	}
	if err := info.Check(runtime.GOARCH); err != nil {
		return err
	}
	m.describe(info)
	return nil
}
