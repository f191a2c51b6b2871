//go:build linux

package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/tree"
	"sublet/internal/vps"
)

// Kind is what a file was.
type Kind string

// The kinds.
const (
	Tarball Kind = "tarball"
	OCI     Kind = "oci"
	Docker  Kind = "docker"
	Disk    Kind = "disk"
)

// Bounds of what is unpacked. Systems have some hundred thousand files; the
// length counts holes, of which a file that records logins of high user IDs
// (lastlog) may have a terabyte.
const (
	maxMembers = 5_000_000
	maxLength  = 2 << 40
)

// Options say how a file is taken in.
type Options struct {
	// Dir is an empty folder for everything that is made. Nobody but root may
	// pass through it: it gets other people's programs.
	Dir string
	// Architecture is that of this host, in Go's words; see runtime.GOARCH.
	Architecture string
	// Progress gets how much of the file was read, 0 to 1; nil for nobody.
	Progress func(fraction float64)
}

// Source is what was in a file.
type Source struct {
	Kind Kind
	// Root is the folder of the root filesystem, or empty when there is a disk.
	Root string
	// Disk is the file with the image of a disk: with a filesystem from its
	// start, partitions, or in QEMU's format. Empty when there is a folder.
	Disk string
	// Manifest goes with the disk of an exported image.
	Manifest []byte
	// Left is what could not be kept of it.
	Left tree.Left
}

// Warnings say what could not be kept, one sentence each; nil for nothing.
func (s *Source) Warnings() []string {
	if n := s.Left.Attributes; n > 0 {
		return []string{fmt.Sprintf("%d extended attributes could not be kept: the filesystem of the images does not take them, or their users have no numbers.", n)}
	}
	return nil
}

// Unpack takes the file f in. vps.CodeInvalid: it is nothing that a root
// filesystem can be made of, or damaged, or tries to leave the folder. What
// was made in Dir up to an error is the caller's to remove.
func Unpack(ctx context.Context, f *os.File, o Options) (*Source, error) {
	if o.Progress == nil {
		o.Progress = func(float64) {}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	size := max(info.Size(), 1)
	in, err := open(ctx, &counter{r: f, report: func(n int64) { o.Progress(float64(n) / float64(size)) }})
	if err != nil {
		return nil, err
	}
	defer in.Close() //nolint:errcheck // everything that counts was read
	head, err := in.Peek(peeked)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, damaged(err)
	}
	switch {
	case isExport(head):
		return unpackExport(ctx, in, o)
	case isTar(head):
		return unpackTar(ctx, in, o)
	case !isDisk(head):
		return nil, unknown(head)
	case in.compression == "":
		return &Source{Kind: Disk, Disk: f.Name()}, nil
	}
	// The one in it has to be read at any place.
	path := filepath.Join(o.Dir, "disk")
	disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = CopySparse(ctx, disk, in, nil)
	if err = errors.Join(err, disk.Close()); err != nil {
		return nil, refused(ctx, err)
	}
	return &Source{Kind: Disk, Disk: path}, nil
}

// isDisk tells whether a stream that starts like this may be an image of a disk:
// of a filesystem, with a partition table, or qcow2.
func isDisk(head []byte) bool {
	for _, m := range []struct {
		at   int
		mark string
	}{
		{0, "QFI\xfb"},
		{510, "\x55\xaa"},
		{0x438, "\x53\xef"},        // ext2 to ext4, fs/ext4/ext4.h
		{0, "XFSB"},                // fs/xfs/libxfs/xfs_format.h
		{0x10000 + 64, "_BHRfS_M"}, // fs/btrfs/fs.h
	} {
		if len(head) >= m.at+len(m.mark) && string(head[m.at:m.at+len(m.mark)]) == m.mark {
			return true
		}
	}
	return false
}

// unpackTar unpacks an archive, and finds out what it is an archive of.
func unpackTar(ctx context.Context, in io.Reader, o Options) (*Source, error) {
	dir := filepath.Join(o.Dir, "unpacked")
	left, err := unpackInto(ctx, in, dir)
	if err != nil {
		return nil, err
	}
	if disk := onlyDisk(dir); disk != "" {
		return &Source{Kind: Disk, Disk: disk}, nil
	}
	if s, err := unpackContainer(ctx, dir, o); err != nil || s != nil {
		return s, err
	}
	root, err := findRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Source{Kind: Tarball, Root: root, Left: left}, own(root)
}

// onlyDisk returns the image of a disk that is all that an archive held, as some
// clouds want them; empty when there is none.
func onlyDisk(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || !entries[0].Type().IsRegular() {
		return ""
	}
	path := filepath.Join(dir, entries[0].Name())
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // read only
	head := make([]byte, peeked)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || !isDisk(head[:n]) {
		return ""
	}
	return path
}

// unpackInto unpacks an archive into a new folder.
func unpackInto(ctx context.Context, in io.Reader, dir string) (left tree.Left, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return left, err
	}
	root, err := tree.OpenBeneath(dir)
	if err != nil {
		return left, err
	}
	defer root.Close() //nolint:errcheck // a folder
	left, err = root.Unpack(ctx, in, tree.Options{MaxMembers: maxMembers, MaxSize: maxLength})
	if err != nil {
		return left, refused(ctx, err)
	}
	return left, drain(ctx, in)
}

// maxPadding bounds what may follow the end of an archive, in bytes: it is
// filled up to whole records, of 10 KiB or some MiB for tapes.
const maxPadding = 64 << 20

// drain reads on to the end of a stream: an archive has no sum of what is in
// its files, but what it is compressed with has one, at the end.
func drain(ctx context.Context, in io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(in, maxPadding+1))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return damaged(err)
	case n > maxPadding:
		return vps.Errorf(vps.CodeInvalid, "the archive is refused: more than %d MiB follow its end", maxPadding>>20)
	}
	return nil
}

// refused turns an error of unpacking into what a user is told; those of the
// host itself stay as they are.
func refused(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOMEM):
		return err
	}
	if _, known := errors.AsType[*vps.Error](err); known {
		return err
	}
	return vps.Wrap(vps.CodeInvalid, err, "the archive is refused: %v", err)
}

// own gives the root folder what every system has, whatever the archive says
// of it: most say nothing.
func own(root string) error {
	return errors.Join(os.Chown(root, 0, 0), os.Chmod(root, 0o755))
}

// isTar tells whether a stream that starts like this is an archive: its first
// header has the right sum, which also the oldest archives have.
func isTar(head []byte) bool {
	const block = 512
	if len(head) < block {
		return false
	}
	_, err := tar.NewReader(strings.NewReader(string(head[:block]))).Next()
	// A header that is followed by more than the peeked bytes is one, too.
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) && string(head[257:262]) == "ustar"
}

// unknown says what a file is that nothing can be made of.
func unknown(head []byte) error {
	for _, m := range []struct {
		at         int
		mark, what string
	}{
		{0, "KDMV", "a VMDK disk image; convert it first: qemu-img convert -O qcow2 IN.vmdk OUT.qcow2"},
		{0, "# Disk DescriptorFile", "the description of a VMDK disk image; convert it first: qemu-img convert -O qcow2 IN.vmdk OUT.qcow2"},
		{0, "vhdxfile", "a VHDX disk image; convert it first: qemu-img convert -O qcow2 IN.vhdx OUT.qcow2"},
		{0, "conectix", "a VHD disk image; convert it first: qemu-img convert -f vpc -O qcow2 IN.vhd OUT.qcow2"},
		{0x40, "\x7f\x10\xda\xbe", "a VDI disk image; convert it first: qemu-img convert -O qcow2 IN.vdi OUT.qcow2"},
		{0, "PK\x03\x04", "a zip archive; unpack it first"},
		{0, "7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"},
		{0, "hsqs", "a squashfs; unpack it first: unsquashfs -d DIR FILE, and tar -C DIR --xattrs -cf ROOT.tar ."},
		{0x8001, "CD001", "a CD image, which installs a system and holds none; use the distribution's root filesystem or cloud image"},
		{0, "LUKS\xba\xbe", "an encrypted disk; decrypt it first"},
		{0, "!<arch>", "a package or library; an image is made of a whole system"},
		{0, "0707", "a cpio archive; unpack it first, and pack it with tar"},
		{0, "\x04\x22\x4d\x18", "compressed with lz4; decompress it first: lz4 -d"},
		{0, "\x89LZO", "compressed with lzop; decompress it first: lzop -d"},
		{0, "LZIP", "compressed with lzip; decompress it first: lzip -d"},
	} {
		if len(head) >= m.at+len(m.mark) && string(head[m.at:m.at+len(m.mark)]) == m.mark {
			return vps.Errorf(vps.CodeInvalid, "the file is %s", m.what)
		}
	}
	if len(head) == 0 {
		return vps.Errorf(vps.CodeInvalid, "the file is empty")
	}
	return vps.Errorf(vps.CodeInvalid, "the file is none of what an image can be made of: a tar archive (plain, gzip, xz, zstd or bzip2), an OCI layout, a disk image (ext4, XFS, Btrfs, partitioned or qcow2), or an exported image")
}

// findRoot finds the root filesystem in what was unpacked: the folder itself,
// or the one folder in it that is one, as Arch's root.x86_64 beside its list
// of packages.
func findRoot(dir string) (string, error) {
	const depth = 3
	for range depth {
		if isRoot(dir) {
			return dir, nil
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		var folders, roots []string
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			sub := filepath.Join(dir, e.Name())
			folders = append(folders, sub)
			if isRoot(sub) {
				roots = append(roots, sub)
			}
		}
		switch {
		case len(roots) == 1:
			return roots[0], nil
		case len(roots) > 1:
			return "", vps.Errorf(vps.CodeInvalid, "the archive holds several root filesystems (%s); pack the one that is wanted", bases(roots))
		case len(folders) != 1:
			return "", errNoRoot()
		}
		dir = folders[0]
	}
	return "", errNoRoot()
}

func errNoRoot() error {
	return vps.Errorf(vps.CodeInvalid, "the archive holds no root filesystem: there is no etc with a system's programs beside it; pack it from inside of its root: tar -C ROOT --xattrs --numeric-owner -cf FILE .")
}

func bases(paths []string) string {
	var names []string
	for _, p := range paths {
		names = append(names, fmt.Sprintf("%q", filepath.Base(p)))
	}
	return strings.Join(names, ", ")
}

// isRoot tells whether a folder is the root of a system: it has the folder etc,
// and a shell, a first program, or the system's name.
func isRoot(dir string) bool {
	root, err := tree.Open(dir)
	if err != nil {
		return false
	}
	defer root.Close() //nolint:errcheck // a folder
	if !root.IsDir("etc") {
		return false
	}
	for _, name := range []string{"bin/sh", "usr/bin/sh", "sbin/init", "usr/sbin/init", "etc/os-release", "usr/lib/os-release"} {
		if _, err := root.Resolve(name); err == nil {
			return true
		}
	}
	return false
}
