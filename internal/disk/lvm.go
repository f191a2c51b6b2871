package disk

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// lvm keeps disks as logical volumes, with the program lvm(8). Each has two
// tags: tagOurs, and one that tells the stores of a host apart. Nothing without
// both is ever changed. Names are new for every disk, and the record says which
// disk is which: what no record names is a left-over.
//
// What a thick volume is made of was somebody else's before. It is zeroed
// before anybody may read it, also what is added when it grows.
type lvm struct {
	tag string
	// run runs one command of lvm(8) and returns what it printed; tests replace
	// it.
	run func(ctx context.Context, args ...string) ([]byte, error)

	mu   sync.Mutex
	seen []logicalVolume // what list found, until fresh ends
	till time.Time
}

const (
	// tagOurs marks all of our logical volumes, and their names start with it.
	tagOurs = "sublet"
	// freshFor is how long what lvs(8) said is believed: the host's loop asks
	// for every guest, and each run of it takes a tenth of a second.
	freshFor = 5 * time.Second
)

func newLVM(dir string) *lvm {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	sum := sha256.Sum256([]byte(dir))
	return &lvm{tag: tagOurs + "." + hex.EncodeToString(sum[:6]), run: runLVM}
}

// validLVM tells whether a text may name a group or a volume (lvm(8), VALID
// NAMES).
func validLVM(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-"
	return name != "" && len(name) < 128 && name[0] != '-' && name != "." && name != ".." && strings.Trim(name, letters) == ""
}

// name makes a name that was never used: sublet-GUEST-DISK-RANDOM.
func (b *lvm) name(dir string, p *part) string {
	id := strings.TrimPrefix(strings.TrimPrefix(filepath.Base(dir), newPrefix), stagePrefix)
	id, _, _ = strings.Cut(id, idEnd)
	return tagOurs + "-" + id + "-" + cmp.Or(p.Name, rootName) + "-" + strings.ToLower(rand.Text()[:8])
}

func (p *part) lvPath() string { return p.Group + "/" + p.Volume }

// devicePath is the name of its device; the guest's jail makes a node of its
// own.
func (p *part) devicePath() string { return filepath.Join("/dev", p.Group, p.Volume) }

// make implements backend.
func (b *lvm) make(ctx context.Context, dir string, p *part, base *os.File, _ uint32) error {
	if err := b.create(ctx, dir, p); err != nil {
		return err
	}
	err := b.write(p, func(f *os.File) error {
		if p.Method == methodThick {
			if err := zero(ctx, f, 0, int64(p.Size)); err != nil {
				return err
			}
		}
		if base == nil {
			return nil
		}
		info, err := base.Stat()
		if err != nil {
			return err
		}
		// An image is longer than its content, which was found to fit.
		return copySparse(ctx, f, base, min(info.Size(), int64(p.Size)))
	})
	if err != nil {
		return errors.Join(err, b.remove(context.WithoutCancel(ctx), dir, *p))
	}
	return nil
}

// create makes a logical volume of at least p.Size bytes, and writes its name
// and its size into p.
func (b *lvm) create(ctx context.Context, dir string, p *part) error {
	p.Volume = b.name(dir, p)
	// Signatures of those who had the space before are not looked for: all of
	// it is overwritten.
	args := []string{"lvcreate", "--yes", "--quiet", "--wipesignatures", "n", "--addtag", tagOurs, "--addtag", b.tag, "--name", p.Volume}
	if p.Method == methodThin {
		if err := b.checkPool(ctx, p); err != nil {
			return err
		}
		args = append(args, "--virtualsize", bytesArg(p.Size), "--thinpool", p.Group+"/"+p.Pool)
	} else {
		args = append(args, "--zero", "n", "--size", bytesArg(p.Size), p.Group)
	}
	if err := b.change(ctx, args...); err != nil {
		return err
	}
	lv, err := b.find(ctx, *p)
	if err != nil {
		return errors.Join(err, b.remove(context.WithoutCancel(ctx), dir, *p))
	}
	p.Size = lv.size
	return nil
}

// checkPool refuses a pool that hands out blocks as somebody else left them.
func (b *lvm) checkPool(ctx context.Context, p *part) error {
	pools, err := b.lvs(ctx, p.Group+"/"+p.Pool)
	if err != nil {
		return err
	}
	// The first character of lv_attr is the type, the eighth says whether new
	// blocks are zeroed (lvs(8)).
	if len(pools) != 1 || !strings.HasPrefix(pools[0].attr, "t") {
		return vps.Errorf(vps.CodeNotFound, "%s/%s is no thin pool; make one with lvcreate --type thin-pool", p.Group, p.Pool)
	}
	if len(pools[0].attr) < 8 || pools[0].attr[7] != 'z' {
		return vps.Errorf(vps.CodeConflict, "the thin pool %s/%s does not zero new blocks, so a guest could read what another one left; turn it on with lvchange --zero y %s/%s", p.Group, p.Pool, p.Group, p.Pool)
	}
	return nil
}

// copy implements backend. A thin volume is a snapshot, at once. Of a thick one
// a snapshot is taken at once too, and finish copies it.
func (b *lvm) copy(ctx context.Context, dir string, p *part, fromDir string, from part, _ uint32) (finish func() error, err error) {
	if p.Method == methodThin {
		p.Volume = b.name(fromDir, p)
		err := b.change(ctx, "lvcreate", "--yes", "--quiet", "--snapshot", "--setactivationskip", "n", "--addtag", tagOurs, "--addtag", b.tag,
			"--name", p.Volume, from.lvPath())
		return nil, err
	}
	// The copy's space is taken first: there may be none.
	if err := b.create(ctx, fromDir, p); err != nil {
		return nil, err
	}
	moment := from
	moment.Volume = b.name(fromDir, p)
	undo := func(err error) error {
		ctx := context.WithoutCancel(ctx)
		return errors.Join(err, b.remove(ctx, dir, moment), b.remove(ctx, dir, *p))
	}
	if err := b.change(ctx, "lvcreate", "--yes", "--quiet", "--snapshot", "--size", bytesArg(momentSize(from.Size)), "--addtag", tagOurs, "--addtag", b.tag,
		"--name", moment.Volume, from.lvPath()); err != nil {
		return nil, undo(err)
	}
	return func() error {
		src, err := os.Open(moment.devicePath())
		if err == nil {
			err = b.write(p, func(f *os.File) error { return copyRange(ctx, f, src, 0, int64(from.Size)) })
			err = errors.Join(err, src.Close())
		}
		if err != nil {
			return undo(fmt.Errorf("copy %s; the guest may have written more meanwhile than there was room to remember: %w", from.lvPath(), err))
		}
		return b.remove(context.WithoutCancel(ctx), dir, moment)
	}, nil
}

// momentSize is how much may be written to a thick volume while it is copied.
func momentSize(size vps.Bytes) vps.Bytes {
	const part, least = 5, 64 * vps.MiB
	return min(size, max(size/part, least))
}

// grow implements backend.
func (b *lvm) grow(ctx context.Context, _ string, p *part, size vps.Bytes) error {
	lv, err := b.find(ctx, *p)
	if err != nil {
		return err
	}
	if lv.size < size {
		if err := b.change(ctx, "lvextend", "--yes", "--quiet", "--size", bytesArg(size), p.lvPath()); err != nil {
			return err
		}
		if lv, err = b.find(ctx, *p); err != nil {
			return err
		}
	}
	return b.clean(ctx, p, lv)
}

// clean zeroes what a volume has behind the size in its record, and sets that.
// After a kill between the two steps of growing it is done at the next start.
func (b *lvm) clean(ctx context.Context, p *part, lv logicalVolume) error {
	if p.Method == methodThick && lv.size > p.Size {
		if err := b.write(p, func(f *os.File) error { return zero(ctx, f, int64(p.Size), int64(lv.size)) }); err != nil {
			return err
		}
	}
	p.Size = lv.size
	return nil
}

// remove implements backend.
func (b *lvm) remove(ctx context.Context, _ string, p part) error {
	b.forget() // whether it is ours is asked anew
	lv, err := b.find(ctx, p)
	if vps.ErrorCode(err) == vps.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return b.change(ctx, "lvremove", "--yes", "--quiet", lv.group+"/"+lv.name)
}

// ready implements backend: volumes are not active after the host has booted
// where nothing activates them.
func (b *lvm) ready(ctx context.Context, _ string, p *part, _ uint32) error {
	lv, err := b.find(ctx, *p)
	if err != nil {
		return err
	}
	// The fifth character of lv_attr is the state.
	if len(lv.attr) < 5 || lv.attr[4] != 'a' {
		if err := b.change(ctx, "lvchange", "--activate", "y", "--ignoreactivationskip", p.lvPath()); err != nil {
			return err
		}
	}
	return b.clean(ctx, p, lv)
}

// describe implements backend.
func (b *lvm) describe(ctx context.Context, _ string, p part) (vps.Disk, vps.Bytes, error) {
	lv, err := b.find(ctx, p)
	if err != nil {
		return vps.Disk{}, 0, err
	}
	return vps.Disk{Path: p.devicePath()}, lv.used(), nil
}

// open implements backend.
func (b *lvm) open(ctx context.Context, _ string, p part, flag int) (*os.File, error) {
	if _, err := b.find(ctx, p); err != nil {
		return nil, err
	}
	if flag&(os.O_RDWR|os.O_WRONLY) != 0 {
		if err := b.unheld(ctx, p); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(p.devicePath(), flag|unix.O_CLOEXEC, 0)
}

// unheld waits a moment for a device to be let go: the host's own programs look
// at a new one.
func (b *lvm) unheld(ctx context.Context, p part) error {
	const tries, pause = 20, 50 * time.Millisecond
	for range tries {
		b.forget()
		lv, err := b.find(ctx, p)
		if err != nil {
			return err
		}
		// The sixth character of lv_attr says whether the device is open.
		if len(lv.attr) < 6 || lv.attr[5] != 'o' {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return fmt.Errorf("%w: %s is open", errHeld, p.lvPath())
}

// sweep removes our volumes that no record names.
func (b *lvm) sweep(ctx context.Context, used map[string]bool) error {
	if _, err := os.Stat(lvmProgram); err != nil {
		return nil //nolint:nilerr // without the program there are none
	}
	b.forget()
	all, err := b.list(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, lv := range all {
		if !used[lv.group+"/"+lv.name] {
			errs = append(errs, b.change(ctx, "lvremove", "--yes", "--quiet", lv.group+"/"+lv.name))
		}
	}
	return errors.Join(errs...)
}

// write opens a volume that no guest can have and lets do fill it.
func (b *lvm) write(p *part, do func(*os.File) error) error {
	f, err := os.OpenFile(p.devicePath(), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err = do(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// zero makes part of a device read as zeros (BLKZEROOUT of linux/fs.h), in
// pieces, so that ctx is heard.
func zero(ctx context.Context, f *os.File, from, to int64) error {
	const piece = 64 << 20
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		length := min(to-from, piece)
		if err := zeroOut(f, uint64(from), uint64(length)); err != nil {
			return fmt.Errorf("overwrite %s with zeros: %w", f.Name(), err)
		}
		from += length
	}
	return nil
}
