package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// roughNeed is what a build takes of the disk: the unpacked system, its
// packages and the filesystem.
const roughNeed = 900 * vps.MiB

// Build makes a new version of the image called name and makes it the newest.
// It takes about half a minute and downloads some 70 MB. progress, which may
// be nil, is called from one goroutine at a time and must not block.
//
// When it fails, nothing has changed: CodeNotFound: no recipe has that name.
// CodeConflict: the image is being built already. CodeDenied: the disk is
// full. CodeTimeout: ctx reached its deadline. CodeInternal: it was
// interrupted, or the packages could not be fetched or installed.
func (s *Store) Build(ctx context.Context, name string, progress func(vps.Progress)) (vps.Image, error) {
	r, err := findRelease(name)
	if err != nil {
		return vps.Image{}, err
	}
	home := s.home(r.name())
	if err := os.MkdirAll(home, 0o755); err != nil {
		return vps.Image{}, s.explain(ctx, err, name, "")
	}
	unlock, err := lock(home, name)
	if err != nil {
		return vps.Image{}, err
	}
	defer unlock()
	start := time.Now()
	b := &build{Store: s, release: r, home: home, meter: newMeter(progress)}
	m, err := b.run(ctx)
	if err != nil {
		s.log.ErrorContext(ctx, "image build failed", "image", name, "phase", b.meter.last.Phase, "error", err)
		return vps.Image{}, s.explain(ctx, err, name, b.meter.last.Phase)
	}
	s.log.InfoContext(ctx, "image built", "image", name, "image_id", m.ID, "content", int64(m.Content), "seconds", time.Since(start).Seconds())
	return m.Image, nil
}

// build is one run of Build.
type build struct {
	*Store
	release release
	home    string
	meter   *meter
	tmp     string // where everything is made, inside home
}

func (b *build) run(ctx context.Context) (m manifest, err error) {
	if b.tmp, err = os.MkdirTemp(b.home, buildPrefix+"*"); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.tmp)) }()
	// apt downloads as a user of its own, who has to pass through.
	if err := os.Chmod(b.tmp, 0o711); err != nil {
		return m, err
	}
	tree, version := filepath.Join(b.tmp, "root"), filepath.Join(b.tmp, "version")
	sources, err := b.bootstrap(ctx, tree)
	if err != nil {
		return m, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	if m, err = b.newManifest(now); err != nil {
		return m, err
	}
	if m.Packages, err = b.finish(tree, sources, now); err != nil {
		return m, err
	}
	if err := os.Mkdir(version, 0o755); err != nil {
		return m, err
	}
	if err := b.pack(ctx, tree, filepath.Join(version, diskName), &m); err != nil {
		return m, err
	}
	if err := b.publish(version, &m); err != nil {
		return m, err
	}
	b.meter.at(phaseChecksum, 1)
	return m, nil
}

func (b *build) newManifest(now time.Time) (manifest, error) {
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return manifest{}, err
	}
	arch := map[string]string{"386": "i386"}[runtime.GOARCH] // Debian's own name where it differs
	if arch == "" {
		arch = runtime.GOARCH
	}
	r := b.release
	return manifest{Version: manifestVersion, Image: vps.Image{
		Name: r.name(), ID: strings.Join([]string{r.distribution, r.number, now.Format("20060102-150405"), hex.EncodeToString(random[:])}, "-"),
		Distribution: r.distribution, Release: r.number, Architecture: arch, Filesystem: "ext4", Created: now,
	}}, nil
}

// bootstrap unpacks and configures the release's packages into the new folder
// tree, and returns the sources they came from.
func (b *build) bootstrap(ctx context.Context, tree string) ([]source, error) {
	b.meter.at(phaseDownload, 0)
	mmdebstrap, err := findTool("mmdebstrap")
	if err != nil {
		return nil, err
	}
	host, err := readSources(b.opts.AptDir)
	if err != nil {
		return nil, err
	}
	sources, err := sourcesFor(host, b.release)
	if err != nil {
		return nil, err
	}
	list := filepath.Join(b.tmp, "debian.sources") // mmdebstrap tells the format by the ending
	if err := os.WriteFile(list, []byte(formatSources(sources)), 0o600); err != nil {
		return nil, err
	}
	archives := filepath.Join(tree, "var/cache/apt/archives")
	if err := os.MkdirAll(archives, 0o755); err != nil {
		return nil, err
	}
	if err := copyDebs(b.cache(), archives); err != nil {
		return nil, err
	}
	if b.release.mergeUsr {
		if err := mergeUsr(tree); err != nil {
			return nil, err
		}
	}
	args := bootstrapArgs(mmdebstrap, b.release, list, tree, b.aptOptions(ctx))
	if err := run(ctx, command{args: args, tmp: b.tmp, isolate: true}, b.meter.line); err != nil {
		return nil, err
	}
	return sources, b.fillCache(archives)
}

// mergeUsr makes the links of a merged /usr before anything is unpacked, as
// debootstrap does.
func mergeUsr(tree string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if err := os.MkdirAll(filepath.Join(tree, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(tree, name)); err != nil {
			return err
		}
	}
	return nil
}

// aptSetting is what apt-config prints of the settings that decide whether the
// host's mirror can be reached and read.
var aptSetting = regexp.MustCompile(`^Acquire::(https?::Proxy|Check-Valid-Until) "[^"]+";$`)

// aptOptions returns the host's own settings that the mirror needs: proxies,
// and whether old indexes are accepted.
func (b *build) aptOptions(ctx context.Context) []string {
	var options []string
	err := run(ctx, command{args: []string{"/usr/bin/apt-config", "dump"}, tmp: b.tmp}, func(line string) {
		if aptSetting.MatchString(line) {
			options = append(options, strings.TrimSuffix(line, ";"))
		}
	})
	if err != nil {
		b.log.DebugContext(ctx, "the host's apt settings cannot be read", "error", err)
	}
	return options
}

func (b *build) finish(tree string, sources []source, now time.Time) ([]vps.Package, error) {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // a folder
	if err := finish(root, b.release, sources, now); err != nil {
		return nil, err
	}
	return installed(root)
}

// pack writes the tree into the filesystem disk and fills in what the manifest
// says about it.
func (b *build) pack(ctx context.Context, tree, disk string, m *manifest) error {
	b.meter.at(phaseWrite, endBootstrap)
	content, inodes, err := usage(tree)
	if err != nil {
		return err
	}
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return err
	}
	m.FilesystemSize = filesystemSize(content, inodes)
	m.Size = max(b.opts.Capacity, m.FilesystemSize)
	if err := run(ctx, command{args: mke2fsArgs(mke2fs, tree, disk, m.FilesystemSize), tmp: b.tmp}, nil); err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(b.seal(ctx, f, m), f.Close())
}

// seal takes the checksum of a new disk and gives the file its last form.
func (b *build) seal(ctx context.Context, f *os.File, m *manifest) error {
	if err := f.Sync(); err != nil {
		return err
	}
	b.meter.at(phaseChecksum, endWrite)
	var err error
	if m.SHA256, err = checksum(ctx, f, m.FilesystemSize, func(part float64) {
		b.meter.at(phaseChecksum, endWrite+(1-endWrite)*part*0.99)
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
func (b *build) publish(version string, m *manifest) error {
	final := filepath.Join(b.home, m.ID)
	var err error
	if m.Path, err = filepath.Abs(filepath.Join(final, diskName)); err != nil {
		return err
	}
	if err := errors.Join(m.write(version), syncDir(version)); err != nil {
		return err
	}
	if err := os.Rename(version, final); err != nil {
		return err
	}
	next := filepath.Join(b.home, linkPrefix+m.ID)
	err = os.Symlink(m.ID, next)
	if err == nil {
		err = os.Rename(next, filepath.Join(b.home, latestName))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(next), os.RemoveAll(final))
	}
	return syncDir(b.home)
}

// explain turns an error of a build into a sentence that says which it was: an
// interruption, a full disk, or something else.
func (s *Store) explain(ctx context.Context, err error, name, phase string) error {
	var f *failure
	failed := errors.As(err, &f)
	var known *vps.Error
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return vps.Wrap(vps.CodeTimeout, err, "building image %s took too long and was stopped; nothing was kept: build it again with more time", name)
	case ctx.Err() != nil:
		return vps.Wrap(vps.CodeInternal, err, "building image %s was interrupted; nothing was kept: build it again", name)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), failed && f.full:
		var st unix.Statfs_t
		free := "an unknown amount"
		if unix.Statfs(s.dir, &st) == nil {
			free = (vps.Bytes(st.Bavail) * vps.Bytes(st.Bsize)).String()
		}
		return vps.Wrap(vps.CodeDenied, err, "the filesystem of %s is full: building image %s needs about %s, %s is free; nothing was kept: free some space and build it again", s.dir, name, roughNeed, free)
	case errors.As(err, &known):
		return err
	case failed:
		return vps.Wrap(vps.CodeInternal, err, "building image %s failed in phase %s: %s; nothing was kept: check the network and the host's apt sources, and build it again", name, phase, f.reason())
	default:
		return vps.Wrap(vps.CodeInternal, fmt.Errorf("phase %s: %w", phase, err), "building image %s failed on a file of the host; nothing was kept: see the daemon's log", name)
	}
}
