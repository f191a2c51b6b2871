package disk

import (
	"context"
	"errors"
	"os"
	"strings"

	"sublet/internal/vps"
)

// backend keeps the bytes of disks of one kind. dir is the folder of the record
// that names the disk; while a volume or a snapshot is being made it is not in
// its place yet. Calls for one guest do not overlap, and those that make a disk
// leave nothing behind after an error.
type backend interface {
	// make makes a new disk of p.Size bytes: what base holds, and zeros behind
	// it. A nil base is an empty one. How and where is written into p.
	make(ctx context.Context, dir string, p *part, base *os.File, uid uint32) error
	// copy makes a disk in dir that is what from, in fromDir, is at this instant.
	// p is a copy of from's record, and is changed to name the new one. What
	// takes time and has no need of from is left to finish, which is nil where
	// there is nothing.
	copy(ctx context.Context, dir string, p *part, fromDir string, from part, uid uint32) (finish func() error, err error)
	// grow makes the disk at least so long, and writes how long into p; what is
	// new reads as zeros.
	grow(ctx context.Context, dir string, p *part, size vps.Bytes) error
	// remove removes the disk. Absent is success.
	remove(ctx context.Context, dir string, p part) error
	// ready makes the disk one that the user may open by its path, and is called
	// before each start. It may find that a call to grow was broken off, and then
	// ends it and writes the size into p.
	ready(ctx context.Context, dir string, p *part, uid uint32) error
	// describe tells what a driver needs, and how much the disk takes.
	describe(ctx context.Context, dir string, p part) (d vps.Disk, used vps.Bytes, err error)
	// open opens the disk's own bytes, which for an overlay are not those that
	// the guest sees; flag is as for os.OpenFile. errHeld is for a disk that is
	// to be written and that a guest runs from.
	open(ctx context.Context, dir string, p part, flag int) (*os.File, error)
}

// errHeld says that a running guest has the disk open.
var errHeld = errors.New("the disk is held")

// place returns what keeps new disks. storage is where they are to lie, as
// vps.GuestSpec.Storage says it: "" and "file", "lvm:GROUP", "lvm:GROUP/POOL".
func (s *Store) place(storage string, p *part) (backend, error) {
	if storage == "" || storage == "file" {
		return s.files(), nil
	}
	names, ok := strings.CutPrefix(storage, "lvm:")
	group, pool, thin := strings.Cut(names, "/")
	if !ok || !validLVM(group) || thin && !validLVM(pool) {
		return nil, vps.Invalid("storage", "%q is no place for disks; use file, lvm:GROUP or lvm:GROUP/POOL", storage)
	}
	p.Method, p.Group, p.Pool = methodThick, group, pool
	if thin {
		p.Method = methodThin
	}
	return s.lvm, nil
}

// of returns what keeps an existing disk.
func (s *Store) of(p part) backend {
	if p.onLVM() {
		return s.lvm
	}
	return s.files()
}

// storage says where a disk lies, as place reads it.
func (p *part) storage() string {
	switch {
	case !p.onLVM():
		return "file"
	case p.Pool != "":
		return "lvm:" + p.Group + "/" + p.Pool
	}
	return "lvm:" + p.Group
}
