package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/durable"
	"sublet/internal/rootfs"
	"sublet/internal/vps"
)

// work is a version of an image on its way in. All of it is made in a folder of
// its own beside the other versions, and moved into place at the end.
type work struct {
	*Store
	name, home string
	// doing says what is done, for people: "building".
	doing  string
	meter  *meter
	tmp    string
	unlock func()
	// version is the folder with the files of the version.
	version string
}

// begin takes the lock of an image and makes the folder for the work. Whoever
// called it calls complete or drop.
func (s *Store) begin(ctx context.Context, name, doing string) (*work, error) {
	w := &work{Store: s, name: name, home: s.home(name), doing: doing, meter: newMeter(nil)}
	if err := os.MkdirAll(w.home, 0o755); err != nil {
		return nil, w.explain(ctx, err)
	}
	var err error
	if w.unlock, err = lock(w.home, name); err != nil {
		return nil, err
	}
	if w.tmp, err = os.MkdirTemp(w.home, buildPrefix+"*"); err == nil {
		// Whoever works on the new filesystem has to pass through, apt too, which
		// downloads as a user of its own.
		err = os.Chmod(w.tmp, 0o711)
	}
	if err == nil {
		w.version = filepath.Join(w.tmp, "version")
		err = os.Mkdir(w.version, 0o755)
	}
	if err != nil {
		return nil, errors.Join(w.explain(ctx, err), w.drop())
	}
	return w, nil
}

// drop removes what was made and gives the lock back.
func (w *work) drop() error {
	var err error
	if w.tmp != "" {
		err = os.RemoveAll(w.tmp)
	}
	w.unlock()
	return err
}

// complete lets run make the version and puts it into place; in every case it
// ends the work. While it runs, the disk is watched: see guard.
func (w *work) complete(ctx context.Context, progress func(vps.Progress), run func(context.Context, *manifest) error) (img vps.Image, err error) {
	start := time.Now()
	w.meter = newMeter(progress)
	ctx, stop := guard(ctx, w.home)
	defer stop()
	defer func() {
		if dropped := w.drop(); err == nil && dropped != nil {
			w.log.WarnContext(ctx, "what an image was made in could not be removed", "image", w.name, "error", dropped)
		}
	}()
	m, err := newManifest(w.name)
	if err == nil {
		err = run(ctx, &m)
	}
	if err == nil {
		err = w.publish(&m)
	}
	if err != nil {
		w.log.ErrorContext(ctx, "an image was not made", "image", w.name, "phase", w.meter.last.Phase, "error", err)
		return vps.Image{}, w.explain(ctx, err)
	}
	w.meter.at(phaseChecksum, 1)
	w.log.InfoContext(ctx, "image made", "image", w.name, "image_id", m.ID, "content", int64(m.Content), "seconds", time.Since(start).Seconds())
	return m.Image, nil
}

// now is the time in whole seconds, which is all that overlays can tell of
// their image.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// newManifest describes a new version of the image called name.
func newManifest(name string) (manifest, error) {
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return manifest{}, err
	}
	arch := map[string]string{"386": "i386"}[runtime.GOARCH] // Debian's own name where it differs
	if arch == "" {
		arch = runtime.GOARCH
	}
	created := now()
	first, second, _ := strings.Cut(name, "/")
	return manifest{Version: manifestVersion, Image: vps.Image{
		Name: name, ID: strings.Join([]string{first, second, created.Format("20060102-150405"), hex.EncodeToString(random[:])}, "-"),
		Architecture: arch, Filesystem: "ext4", Created: created,
	}}, nil
}

// describe takes over what a root filesystem says of itself.
func (m *manifest) describe(i rootfs.Info) {
	m.Distribution, m.Release, m.OS, m.Init, m.Packages = i.Distribution, i.Release, i.Name, i.Init, i.Packages
	m.Warnings = append(m.Warnings, i.Warnings()...)
}

// disk is the file that holds the new version's filesystem.
func (w *work) disk() string { return filepath.Join(w.version, diskName) }

// pack writes the tree into a filesystem and fills in what the manifest says
// about it.
func (w *work) pack(ctx context.Context, tree string, m *manifest) error {
	w.meter.at(phaseWrite, endBootstrap)
	content, inodes, err := usage(tree)
	if err != nil {
		return err
	}
	m.FilesystemSize = filesystemSize(m.Filesystem, content, inodes)
	if m.Filesystem == "ext4" {
		err = w.packExt4(ctx, tree, m)
	} else {
		err = w.packElsewhere(ctx, tree, m, content)
	}
	if err != nil {
		return err
	}
	return w.keep(ctx, m)
}

// packExt4 lets mke2fs fill the filesystem, which mounts nothing.
func (w *work) packExt4(ctx context.Context, tree string, m *manifest) error {
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return err
	}
	return run(ctx, command{args: mke2fsArgs(mke2fs, tree, w.disk(), m.FilesystemSize), tmp: w.tmp}, nil)
}

// keep gives the new version's disk its last form.
func (w *work) keep(ctx context.Context, m *manifest) error {
	if m.Size == 0 {
		m.Size = w.opts.Capacity
	}
	m.Size = max(m.Size, m.FilesystemSize)
	f, err := os.OpenFile(w.disk(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(w.seal(ctx, f, m), f.Close())
}

// seal takes the checksum of a new disk and gives the file its last form.
func (w *work) seal(ctx context.Context, f *os.File, m *manifest) error {
	if err := f.Sync(); err != nil {
		return err
	}
	w.meter.at(phaseChecksum, endWrite)
	var err error
	if m.SHA256, err = checksum(ctx, io.NewSectionReader(f, 0, int64(m.FilesystemSize)), m.FilesystemSize, func(part float64) {
		w.meter.at(phaseChecksum, endWrite+(1-endWrite)*part*0.99)
	}); err != nil {
		return err
	}
	if err := f.Truncate(int64(m.Size)); err != nil {
		return err
	}
	if m.Content, err = occupied(f); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	// Overlays name the time of their image; whole seconds are all they hold.
	if err := os.Chtimes(f.Name(), m.Created, m.Created); err != nil {
		return err
	}
	return f.Sync()
}

// publish moves a finished version into place and makes it the newest.
func (w *work) publish(m *manifest) error {
	final := filepath.Join(w.home, m.ID)
	var err error
	if m.Path, err = filepath.Abs(filepath.Join(final, diskName)); err != nil {
		return err
	}
	if err := errors.Join(m.write(w.version), durable.SyncDir(w.version)); err != nil {
		return err
	}
	if err := os.Rename(w.version, final); err != nil {
		return err
	}
	next := filepath.Join(w.home, linkPrefix+m.ID)
	err = os.Symlink(m.ID, next)
	if err == nil {
		err = os.Rename(next, filepath.Join(w.home, latestName))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(next), os.RemoveAll(final))
	}
	return durable.SyncDir(w.home)
}

// explain turns an error into a sentence that says which it was: an
// interruption, a full disk, or something else.
func (w *work) explain(ctx context.Context, err error) error {
	what := w.doing + " image " + w.name
	again := strings.TrimSuffix(w.doing, "ing") + " it again" // "build it again"
	var f *failure
	failed := errors.As(err, &f)
	var known *vps.Error
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(context.Cause(ctx), unix.ENOSPC), failed && f.full:
		free, kept, _ := space(w.home)
		return vps.Wrap(vps.CodeDenied, err, "the filesystem of %s is full: %s needs more than the %s that are free, of which %s are kept for guests; nothing was kept: free some space and %s",
			w.dir, what, free, kept, again)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return vps.Wrap(vps.CodeTimeout, err, "%s took too long and was stopped; nothing was kept: %s with more time", what, again)
	case ctx.Err() != nil:
		return vps.Wrap(vps.CodeInternal, err, "%s was interrupted; nothing was kept: %s", what, again)
	case errors.As(err, &known):
		return err
	case failed:
		return vps.Wrap(vps.CodeInternal, err, "%s failed in phase %s: %s; nothing was kept: %s", what, w.meter.last.Phase, f.reason(), hints[f.program])
	default:
		return vps.Wrap(vps.CodeInternal, fmt.Errorf("phase %s: %w", w.meter.last.Phase, err), "%s failed on a file of the host; nothing was kept: see the daemon's log", what)
	}
}

// hints say what to do when a program failed.
var hints = map[string]string{
	"mmdebstrap": "check the network and the host's apt sources, and build it again",
	"mke2fs":     "see the daemon's log",
}
