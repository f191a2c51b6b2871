package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"sublet/internal/rootfs"
	"sublet/internal/vps"
)

// Import says how an image is made of a file. The zero value is fit for use.
type Import struct {
	// Filesystem is what files are put into: one of Filesystems, or empty for
	// ext4. An image of a disk has one already.
	Filesystem string
	// Capacity is the length of the image's file; 0 is that of the store. It is
	// at least as long as its filesystem.
	Capacity vps.Bytes
	// Partition is the number of the partition of a disk that holds the root
	// filesystem; 0 finds it.
	Partition int
}

// Filesystems are those that an image can have.
func Filesystems() []string { return []string{"btrfs", "ext4", "xfs"} }

// Validate tells whether it can be done. CodeInvalid names the field.
func (i Import) Validate() error {
	switch {
	case i.Filesystem != "" && !slices.Contains(Filesystems(), i.Filesystem):
		return vps.Invalid("filesystem", "%q is none of %s", i.Filesystem, strings.Join(Filesystems(), ", "))
	case i.Partition < 0 || i.Partition > maxPartition:
		return vps.Invalid("partition", "%d is no number of a partition", i.Partition)
	case i.Capacity < 0 || i.Capacity > maxCapacity || i.Capacity%blockSize != 0:
		return vps.Invalid("capacity", "%s is out of range; use at most %s, a multiple of 4KiB", i.Capacity.Exact(), maxCapacity)
	}
	return nil
}

// maxPartition bounds the numbers of partitions.
const maxPartition = 1024

// maxCapacity is the largest disk of a guest.
const maxCapacity = vps.MaxDisk

// Upload is a file that was handed in to make an image of. It is for one
// goroutine at a time, and has to be imported or dropped.
type Upload struct {
	work *work
	file *os.File
}

// Receive takes in a file from r for the image called name, and keeps the image
// for itself until that is imported or dropped. An upload that breaks off
// leaves nothing. CodeConflict: the image is being made already. CodeDenied:
// the disk is full.
func (s *Store) Receive(ctx context.Context, name string, r io.Reader) (_ *Upload, err error) {
	if err := vps.ValidImageName("name", name); err != nil {
		return nil, err
	}
	w, err := s.begin(ctx, name, "importing")
	if err != nil {
		return nil, err
	}
	ctx, stop := guard(ctx, w.home)
	defer stop()
	u := &Upload{work: w}
	u.file, err = os.OpenFile(filepath.Join(w.tmp, "upload"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = rootfs.CopySparse(ctx, u.file, sender{r}, nil)
	}
	if err != nil {
		return nil, errors.Join(w.explain(ctx, err), u.Drop())
	}
	return u, nil
}

// sender is the reader of a file that somebody sends.
type sender struct{ r io.Reader }

func (s sender) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		// Wrapped, so that no end in its middle is taken for the file's.
		err = vps.Wrap(vps.CodeInvalid, errors.New(err.Error()), "the file did not arrive whole; send it again")
	}
	return n, err
}

// Drop removes the upload.
func (u *Upload) Drop() error {
	var err error
	if u.file != nil {
		err = u.file.Close()
	}
	return errors.Join(err, u.work.drop())
}

// Import makes a new version of the image of the upload, and makes it the
// newest. The upload is gone after that, in every case. progress, which may be
// nil, is called from one goroutine at a time and must not block.
//
// When it fails, nothing has changed: CodeInvalid: the file is nothing that an
// image can be made of. CodeDenied: the disk is full. CodeTimeout: ctx reached
// its deadline. CodeInternal: it was interrupted.
func (u *Upload) Import(ctx context.Context, i Import, progress func(vps.Progress)) (vps.Image, error) {
	defer func() { _ = u.file.Close() }() // removed with the rest
	w := u.work
	if err := i.Validate(); err != nil {
		return vps.Image{}, errors.Join(err, w.drop())
	}
	return w.complete(ctx, progress, func(ctx context.Context, m *manifest) error { return u.run(ctx, i, m) })
}

func (u *Upload) run(ctx context.Context, i Import, m *manifest) error {
	w := u.work
	w.meter.at(phaseUnpack, 0)
	scratch := filepath.Join(w.tmp, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return err
	}
	source, err := rootfs.Unpack(ctx, u.file, rootfs.Options{
		Dir: scratch, Architecture: runtime.GOARCH,
		Progress: func(part float64) { w.meter.at(phaseUnpack, endUnpack*part) },
	})
	if err != nil {
		return err
	}
	if source.Kind == rootfs.Exported {
		return w.importExport(ctx, source, i, m)
	}
	m.Source = string(source.Kind)
	m.Size = i.Capacity
	if source.Disk != "" {
		return w.importDisk(ctx, source.Disk, i, m)
	}
	// What it was made of takes room no more.
	if err := u.file.Truncate(0); err != nil {
		return err
	}
	info, err := rootfs.Inspect(source.Root)
	if err != nil {
		return err
	}
	if err := info.Check(runtime.GOARCH); err != nil {
		return err
	}
	if err := forgetGuest(source.Root); err != nil {
		return err
	}
	m.describe(info)
	m.Warnings = append(m.Warnings, source.Warnings()...)
	if i.Filesystem != "" {
		m.Filesystem = i.Filesystem
	}
	return w.pack(ctx, source.Root, m)
}

// forgetGuest removes what the first program of a guest noted in the system
// that was packed from it: by that, all clones would take themselves for that
// guest, and keep its host keys. Nothing outside of the folder is reached.
func forgetGuest(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	// With var a link that leads out of it, there is nothing to remove.
	if info, err := root.Stat("var/lib/sublet-init"); err == nil && info.IsDir() {
		return errors.Join(root.RemoveAll("var/lib/sublet-init"), root.Close())
	}
	return root.Close()
}
