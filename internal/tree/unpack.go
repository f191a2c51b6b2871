//go:build linux

package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// typeVolume is GNU tar's name of the whole archive, which is no file.
const typeVolume = 'V'

// noID is no user and no group, but says to leave the owner (chown(2)).
const noID = 1<<32 - 1

// Options say what of an archive's files is taken over. The zero value is for
// an archive that is trusted on the system that it is unpacked on, as a guest's
// own is in the guest.
type Options struct {
	// Tame leaves out what would give whoever wrote the archive a say over
	// this system: devices, set-user-ID and set-group-ID bits, and extended
	// attributes but for those in "user.".
	Tame bool
	// KeepOwner leaves all files with the calling user, who need not be root.
	KeepOwner bool
	// Layer takes the archive for a layer over what is there, as images of
	// containers have them: whatever stands in a member's place goes, folders
	// too, and names that only mark what a layer removes (see Mask) are passed
	// over.
	Layer bool
	// MaxMembers and MaxSize bound what an archive may hold: its members, and
	// the length in bytes of all its files together, holes included. 0 is no
	// bound.
	MaxMembers, MaxSize int64
}

// Left is what was left out, by Options or because the filesystem or the
// kernel does not take it.
type Left struct {
	Devices, SetID, Attributes, Owners int
}

// Unpack unpacks an archive into the root. Files that are there are replaced;
// folders stay and get what the archive says of them. It stops with the first
// error, and what was unpacked before that stays. An archive with a name that
// leads out is refused when that name comes.
func (r *Root) Unpack(ctx context.Context, archive io.Reader, o Options) (Left, error) {
	return r.UnpackAt(ctx, archive, "/", o)
}

// UnpackAt is Unpack into a folder of the root, which has to be there. Links in
// the root that lie above or below it are followed as in the whole of it.
func (r *Root) UnpackAt(ctx context.Context, archive io.Reader, dir string, o Options) (Left, error) {
	if err := r.folder(dir); err != nil {
		return Left{}, err
	}
	u := unpacker{root: r, live: ctx.Err, o: o, place: func(name string) (string, error) { return path.Join(dir, name), nil }}
	err := u.all(tar.NewReader(archive))
	return u.left, err
}

// folder tells whether there is such a folder.
func (r *Root) folder(name string) error {
	fd, err := r.open(clean(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// unpacker is one run of unpacking.
type unpacker struct {
	root *Root
	// live returns an error when the caller wants no more.
	live func() error
	o    Options
	// place says where a member goes.
	place func(name string) (string, error)
	left  Left
	// folders get their modes and times at the end: until then files are made
	// in them.
	folders []folder
	kept    int64 // bytes that folders takes
	buf     []byte
	// members and size are what came up to now.
	members, size int64
}

// folder is what is still to be set of one.
type folder struct {
	name   string
	header *tar.Header
}

// maxFolders bounds what is kept of an archive's folders until its end, in
// bytes: half a million of them with names of usual length. Each may have a
// megabyte of attributes that takes a few bytes of a compressed archive.
const maxFolders = 128 << 20

// keep remembers what finish sets of a folder, and no more of its header.
func (u *unpacker) keep(name string, h *tar.Header) error {
	const rest = 200 // what a folder takes beside its name and attributes
	records := map[string]string{}
	size := int64(rest + len(name))
	for key, value := range h.PAXRecords {
		if isAttribute(key) {
			// Copied, for they are parts of what the archive said in one piece.
			records[strings.Clone(key)] = strings.Clone(value)
			size += int64(len(key) + len(value))
		}
	}
	if len(records) == 0 {
		records = nil
	}
	if u.kept += size; u.kept > maxFolders {
		return fmt.Errorf("the archive's folders have more than %d MiB of names and attributes", maxFolders>>20)
	}
	u.folders = append(u.folders, folder{strings.Clone(name), &tar.Header{
		Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, PAXRecords: records,
	}})
	return nil
}

func (u *unpacker) all(archive *tar.Reader) error {
	for {
		if err := u.live(); err != nil {
			return err
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := u.entry(h, archive); err != nil {
			return err
		}
	}
}

// entry unpacks one member.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader || h.Typeflag == typeVolume {
		return nil
	}
	if err := u.count(h); err != nil {
		return err
	}
	if !local(h.Name) {
		return leaves(h.Name)
	}
	if u.o.Layer && isWhiteout(h.Name) {
		return u.passOver(clean(h.Name))
	}
	name, err := u.place(h.Name)
	if err != nil {
		return err
	}
	name = clean(name)
	if strings.Count(name, "/") > maxDepth {
		return fmt.Errorf("the archive's member %.100q... has more than %d folders within each other", name, maxDepth)
	}
	if h.Typeflag == tar.TypeDir {
		return u.makeFolder(name, h)
	}
	if name == "." {
		return fmt.Errorf("the archive's member %q is in the place of the folder that it is unpacked into", h.Name)
	}
	dir, base, err := u.root.parent(name, true)
	if err != nil {
		return err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	err = u.make(dir, base, h, content)
	if errors.Is(err, unix.EEXIST) {
		if err = u.clear(dir, base); err != nil {
			return &fs.PathError{Op: "replace", Path: name, Err: err}
		}
		err = u.make(dir, base, h, content)
	}
	if err != nil {
		return &fs.PathError{Op: "unpack", Path: name, Err: err}
	}
	return nil
}

func (u *unpacker) makeFolder(name string, h *tar.Header) error {
	if u.o.Layer && name != "." {
		if err := u.clearForFolder(name); err != nil {
			return &fs.PathError{Op: "replace", Path: name, Err: err}
		}
	}
	fd, err := u.root.makeAll(name)
	if errors.Is(err, unix.ENOTDIR) {
		// A file is in its place.
		dir, base, perr := u.root.parent(name, true)
		if perr != nil {
			return perr
		}
		_ = unix.Unlinkat(dir, base, 0) // making the folder tells
		_ = unix.Close(dir)
		fd, err = u.root.makeAll(name)
	}
	if err != nil {
		return err
	}
	_ = unix.Close(fd)
	return u.keep(name, h)
}

// make makes one file that is not there: unix.EEXIST when it is.
func (u *unpacker) make(dir int, base string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.makeFile(dir, base, h, content)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir, base); err != nil {
			return err
		}
		if err := u.own(h, func(uid, gid int) error {
			return unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
		}); err != nil {
			return err
		}
		return unix.UtimesNanoAt(dir, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
	case tar.TypeLink:
		return u.makeLink(dir, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.makeNode(dir, base, h)
	}
	return fmt.Errorf("the archive has a member of type %q, which is not known", h.Typeflag)
}

// makeLink gives a file that was unpacked before a second name.
func (u *unpacker) makeLink(dir int, base string, h *tar.Header) error {
	if !local(h.Linkname) {
		return fmt.Errorf("the link to %q would leave the folder that it is unpacked into", h.Linkname)
	}
	target, err := u.place(h.Linkname)
	if err != nil {
		return err
	}
	from, first, err := u.root.parent(clean(target), false)
	if err != nil {
		return err
	}
	defer unix.Close(from) //nolint:errcheck // O_PATH
	return unix.Linkat(from, first, dir, base, 0)
}

func (u *unpacker) makeNode(dir int, base string, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	if u.o.Tame && kind != unix.S_IFIFO {
		u.left.Devices++
		return nil
	}
	device := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if err := unix.Mknodat(dir, base, kind|0o600, int(device)); err != nil {
		return err
	}
	// Not opened: that would wait for a writer, or do what the device does.
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	return u.dress(fd, h)
}

func (u *unpacker) makeFile(dir int, base string, h *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := file(fd, base)
	err = u.fill(f, content, h.Size)
	if err == nil {
		err = u.dress(fd, h)
	}
	return errors.Join(err, f.Close())
}

// holeSize is the piece that is left out of a file when it is all zeros: the
// block size of almost every filesystem.
const holeSize = 4096

//nolint:gochecknoglobals // a constant
var zeros [holeSize]byte

// fill writes size bytes and leaves blocks of zeros out.
func (u *unpacker) fill(f *os.File, content io.Reader, size int64) error {
	if u.buf == nil {
		u.buf = make([]byte, 256<<10)
	}
	at, end := int64(0), int64(0) // end is behind the last byte written
	for at < size {
		// A few bytes of an archive can stand for a hole of any length.
		if err := u.live(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, u.buf[:min(int64(len(u.buf)), size-at)])
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		// The longest runs of blocks with something in them, each written at once.
		for from := 0; from < n; {
			to := from
			for to < n && !empty(u.buf[to:min(n, to+holeSize)]) {
				to = min(n, to+holeSize)
			}
			if to > from {
				if _, err := f.WriteAt(u.buf[from:to], at+int64(from)); err != nil {
					return err
				}
				end = at + int64(to)
			}
			for from = to; from < n && empty(u.buf[from:min(n, from+holeSize)]); {
				from = min(n, from+holeSize)
			}
		}
		at += int64(n)
	}
	if end < size {
		return f.Truncate(size)
	}
	return nil
}

// empty tells whether a block is all zeros.
func empty(block []byte) bool { return bytes.Equal(block, zeros[:len(block)]) }

// dress gives an open file, which is no link, its owner, mode, attributes and
// times; in this order, for each takes away some of those before.
func (u *unpacker) dress(fd int, h *tar.Header) error {
	path := procPath(fd)
	if err := u.own(h, func(uid, gid int) error { return unix.Chown(path, uid, gid) }); err != nil {
		return err
	}
	if err := unix.Chmod(path, u.mode(h)); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	if err := u.attributes(path, h); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times(h), 0)
}

func (u *unpacker) own(h *tar.Header, chown func(uid, gid int) error) error {
	if u.o.KeepOwner {
		u.left.Owners++
		return nil
	}
	if int64(h.Uid) != int64(uint32(h.Uid)) || int64(h.Gid) != int64(uint32(h.Gid)) || uint32(h.Uid) == noID || uint32(h.Gid) == noID {
		return fmt.Errorf("its owner, user %d and group %d, cannot be", h.Uid, h.Gid)
	}
	if err := chown(h.Uid, h.Gid); err != nil {
		return fmt.Errorf("give it to user %d and group %d: %w", h.Uid, h.Gid, err)
	}
	return nil
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	mode := uint32(h.Mode) & 0o7777
	const setID = unix.S_ISUID | unix.S_ISGID
	if u.o.Tame && mode&setID != 0 {
		u.left.SetID++
		mode &^= setID
	}
	return mode
}

func times(h *tar.Header) []unix.Timespec {
	m := unix.NsecToTimespec(h.ModTime.UnixNano())
	return []unix.Timespec{m, m}
}

// finish dresses the folders, the innermost first.
func (u *unpacker) finish() error {
	for _, d := range slices.Backward(u.folders) {
		// The archive itself may have put something else in its place since.
		fd, err := u.root.open(d.name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = u.dress(fd, d.header)
		_ = unix.Close(fd)
		if err != nil {
			return &fs.PathError{Op: "unpack", Path: path.Clean(d.name), Err: err}
		}
	}
	return nil
}
