package fsusage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"sublet/internal/vps"
)

// lookTime bounds how long one disk may take, whatever is on it.
const lookTime = 20 * time.Second

// liveTries is how often a disk that is written meanwhile is read before its
// content is called damaged: a superblock may have been half written.
const liveTries = 3

// errUnsupported is wrapped by errors about what may be sound and cannot be
// read here.
var errUnsupported = errors.New("not supported")

// Options say how a disk is read.
type Options struct {
	// Format is how the bytes are kept; "" means to find out. The owner of a
	// guest decides what stands at the start of its disk, so whoever knows
	// the format says it.
	Format vps.DiskFormat
	// Backing is what the disk lies on: for an overlay or a qcow2 image its
	// base, then the base's base, and so on. What a header says about that is
	// never followed: it would let the content of one file open others.
	Backing []string
	// Devices are paths of further disks that a filesystem on this one may
	// reach over (Btrfs). With Format given they are raw, else it is found out
	// how their bytes are kept.
	Devices []string
	// Live says that the disk may be written while it is read.
	Live bool
}

// Look reads how full a disk is: a file or a block device at path, or what an
// image there holds. Nothing is written and nothing is mounted.
//
// An error is for the user: CodeNotFound when there is no such file,
// CodeInvalid when it or what it lies on cannot be read as a disk. What is
// wrong with one filesystem or partition stands in its part instead. Look
// reads a bounded amount and takes a bounded time. It is safe for concurrent
// use.
func Look(ctx context.Context, path string, o Options) (vps.DiskUsage, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	tries := 1
	if o.Live {
		tries = liveTries
	}
	for {
		u, err := look(ctx, path, o)
		tries--
		if tries == 0 || err == nil && !u.damaged || err != nil && !errors.Is(err, errDamaged) {
			if err != nil {
				return vps.DiskUsage{}, explain(path, err)
			}
			return u.DiskUsage, nil
		}
	}
}

// usage is a report, and whether reading again may help.
type usage struct {
	vps.DiskUsage
	damaged bool
}

func look(ctx context.Context, path string, o Options) (u usage, err error) {
	s := &stack{ctx: ctx, left: newBudget()}
	defer s.close()
	top, err := s.open(path, o.Format, o.Backing)
	if err != nil {
		return u, err
	}
	u.DiskUsage = vps.DiskUsage{Path: path, Format: top.format, Size: vps.Bytes(top.Size()), Allocated: vps.Bytes(top.allocated), Backing: top.backing, At: time.Now().UTC()}
	var others []*device
	format := o.Format
	if format != "" {
		format = vps.DiskRaw
	}
	for _, p := range o.Devices {
		other, err := s.open(p, format, nil)
		if err != nil {
			return u, err
		}
		others = append(others, other.device)
	}
	u.read(top.device, others, top.warnings)
	if o.Live {
		u.doubt()
	}
	return u, ctx.Err()
}

// doubt says what is not known of a disk that may be written: Btrfs does not
// note whether it is mounted, as the others do.
func (u *usage) doubt() {
	for i := range u.Parts {
		if fs := u.Parts[i].Filesystem; fs != nil && fs.Type == vps.FilesystemBtrfs && fs.Approximate == "" {
			fs.Approximate = "It may be mounted, which Btrfs does not note: what was written in the last half minute of its use may be missing."
		}
	}
}

// read fills the report with what is on d.
func (u *usage) read(d *device, others []*device, warnings []string) {
	u.Parts = []vps.DiskPart{}
	whole := vps.DiskPart{Size: vps.Bytes(d.Size())}
	left := u.identify(&whole, d, others)
	var parts []partition
	// What is left of an older filesystem does not hide a partition table.
	if left || whole.Error != "" {
		table, found, err := partitions(d)
		switch {
		case err == nil:
			u.Table, parts, whole.Error = table, found, ""
		case !errors.Is(err, errNoTable) && left:
			u.Table, parts = table, found
			u.note(&whole, err)
		case left:
			u.salvage(&whole, d, others)
		}
	}
	if whole.Filesystem != nil {
		whole.Filesystem.Warnings = append(whole.Filesystem.Warnings, warnings...)
	}
	if u.Table == "" || whole.Error != "" {
		u.Parts = append(u.Parts, whole)
	}
	for _, p := range parts {
		part := vps.DiskPart{Number: p.number, Name: p.name, Start: vps.Bytes(p.start), Size: vps.Bytes(p.size)}
		if p.start <= d.Size() && p.size <= d.Size()-p.start {
			sub := &device{ctx: d.ctx, source: &section{d, p.start, p.size}, left: d.left}
			if u.identify(&part, sub, others) {
				u.salvage(&part, sub, others)
			}
		}
		u.Parts = append(u.Parts, part)
	}
}

// identify tells what is on d where it should be. It returns true when there
// is nothing.
func (u *usage) identify(part *vps.DiskPart, d *device, others []*device) bool {
	owner, err := named(d, owners)
	if err != nil || owner != "" {
		part.Contains = owner
		u.note(part, err)
		return false
	}
	fs, err := probe(d, others)
	if errors.Is(err, errNothing) {
		return true
	}
	u.set(part, fs, err)
	return false
}

// salvage names what is on d other than filesystems that are read, and looks
// for what is left of one whose begin is destroyed.
func (u *usage) salvage(part *vps.DiskPart, d *device, others []*device) {
	contents, err := named(d, foreign)
	if err != nil || contents != "" {
		part.Contains = contents
		u.note(part, err)
		return
	}
	if fs, err := rescue(d, others); err == nil {
		part.Filesystem = &fs
	}
}

func (u *usage) set(part *vps.DiskPart, fs vps.Filesystem, err error) {
	if err == nil {
		part.Filesystem = &fs
	}
	u.note(part, err)
}

func (u *usage) note(part *vps.DiskPart, err error) {
	if err != nil {
		part.Error = sentence(err)
		u.damaged = u.damaged || errors.Is(err, errDamaged)
	}
}

// sentence is an error's text for people: those made here are; what the host
// says of a read is added as it is.
func sentence(err error) string { return err.Error() }

// section is a part of a device; what is read of it counts for the device.
type section struct {
	*device
	start, size int64
}

// Size is the part's length in bytes.
func (s *section) Size() int64 { return s.size }

// ReadAt reads bytes that lie in the part; its user checks that they do.
func (s *section) ReadAt(p []byte, off int64) (int, error) { return s.source.ReadAt(p, s.start+off) }

// stack opens disks with what they lie on.
type stack struct {
	ctx   context.Context //nolint:containedctx // one stack lives for one look
	left  *budget
	files []*raw
}

// layer is a disk that was opened.
type layer struct {
	*device
	format    vps.DiskFormat
	backing   string
	allocated int64
	warnings  []string
}

func (s *stack) close() {
	for _, f := range s.files {
		_ = f.Close() // read only
	}
}

// open opens the disk at path with what it lies on.
func (s *stack) open(path string, format vps.DiskFormat, backing []string) (*layer, error) {
	file, err := openRaw(path)
	if err != nil {
		return nil, err
	}
	s.files = append(s.files, file)
	l := &layer{device: s.device(file), format: format, allocated: file.allocated}
	if l.format == "" {
		if l.format, err = detect(l.device); err != nil {
			return nil, err
		}
	}
	switch l.format {
	case vps.DiskCOW:
		named, c, err := cowHeader(l.device)
		if err != nil {
			return nil, err
		}
		// To the guest's kernel the base is raw, whatever its bytes look like.
		base, err := s.base(path, named, vps.DiskRaw, backing)
		if err != nil {
			return nil, err
		}
		// The guest's kernel refuses to start on a base of another length.
		if base.Size() != c.size {
			return nil, fmt.Errorf("%w: it lies on %d bytes, and %s has %d", errDamaged, c.size, backing[0], base.Size())
		}
		c.base, l.device, l.backing = base, s.device(c), backing[0]
	case vps.DiskQcow2:
		named, q, err := qcow2Header(l.device)
		if err != nil {
			return nil, err
		}
		if named != "" {
			if q.base, err = s.base(path, named, "", backing); err != nil {
				return nil, err
			}
			l.backing = backing[0]
		}
		l.device, l.warnings = s.device(q), q.warnings
	case vps.DiskRaw:
	}
	return l, nil
}

// base opens what a disk lies on.
func (s *stack) base(path, named string, format vps.DiskFormat, backing []string) (*layer, error) {
	if len(backing) == 0 {
		return nil, &backingError{path, named}
	}
	return s.open(backing[0], format, backing[1:])
}

func (s *stack) device(source Source) *device {
	return &device{ctx: s.ctx, source: source, left: s.left}
}

// detect tells how the disk's bytes are kept.
func detect(d *device) (vps.DiskFormat, error) {
	if d.Size() < 512 {
		return vps.DiskRaw, nil
	}
	b, err := d.read(0, 4)
	switch {
	case err != nil:
		return "", err
	case string(b) == cowMagic:
		return vps.DiskCOW, nil
	case string(b) == qcow2Magic:
		return vps.DiskQcow2, nil
	}
	return vps.DiskRaw, nil
}

// backingError says that a disk lies on a file that the caller did not name.
type backingError struct{ path, named string }

func (e *backingError) Error() string {
	return fmt.Sprintf("it lies on %s, which is not opened only because %s says so", e.named, e.path)
}

// explain makes an error for the user.
func explain(path string, err error) error {
	if backing, ok := errors.AsType[*backingError](err); ok {
		return vps.Wrap(vps.CodeInvalid, err, "%s holds only what differs from another file, %s; name that file, if it is the right one: --backing %s", backing.path, backing.named, backing.named)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vps.Wrap(vps.CodeNotFound, err, "there is no file %s", path)
	case errors.Is(err, fs.ErrPermission):
		return vps.Wrap(vps.CodeDenied, err, "%s may not be read by you; run this as root", path)
	case errors.Is(err, context.DeadlineExceeded):
		return vps.Wrap(vps.CodeTimeout, err, "%s could not be read within %s", path, lookTime)
	case errors.Is(err, context.Canceled):
		return err
	}
	if host, ok := errors.AsType[*fs.PathError](err); ok {
		return vps.Wrap(vps.CodeInvalid, err, "%s cannot be read as a disk: %v", host.Path, host.Err)
	}
	return vps.Wrap(vps.CodeInvalid, err, "%s cannot be read as a disk: %v", path, err)
}
