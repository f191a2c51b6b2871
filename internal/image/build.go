package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"sublet/internal/rootfs"
	"sublet/internal/vps"
)

// Build makes a new version of the image called name and makes it the newest.
// It takes about half a minute and downloads some 70 MB. progress, which may
// be nil, is called from one goroutine at a time and must not block.
//
// When it fails, nothing has changed: CodeNotFound: no recipe has that name.
// CodeConflict: the image is being built already. CodeDenied: the disk is
// full. CodeTimeout: ctx reached its deadline. CodeInternal: it was
// interrupted, or the packages could not be fetched or installed.
func (s *Store) Build(ctx context.Context, name string, progress func(vps.Progress)) (vps.Image, error) {
	return s.BuildFrom(ctx, name, "", progress)
}

// BuildFrom is Build from the archive at mirror, an address of HTTP; empty means
// those that the host's apt knows. CodeInvalid: it is no such address, or has to
// be named.
func (s *Store) BuildFrom(ctx context.Context, name, mirror string, progress func(vps.Progress)) (vps.Image, error) {
	r, err := findRelease(name)
	if err != nil {
		return vps.Image{}, err
	}
	if err := checkMirror(r, mirror); err != nil {
		return vps.Image{}, err
	}
	w, err := s.begin(ctx, r.name(), "building")
	if err != nil {
		return vps.Image{}, err
	}
	b := &build{work: w, release: r, mirror: mirror}
	return w.complete(ctx, progress, b.run)
}

// build is one run of Build.
type build struct {
	*work
	release release
	mirror  string
}

func (b *build) run(ctx context.Context, m *manifest) error {
	tree := filepath.Join(b.tmp, "root")
	sources, err := b.bootstrap(ctx, tree)
	if err != nil {
		return err
	}
	m.Created = now() // the files say when they were finished
	if err := b.trim(tree, sources, m.Created); err != nil {
		return err
	}
	info, err := rootfs.Inspect(tree)
	if err != nil {
		return err
	}
	m.Source = "recipe"
	m.describe(info)
	m.Distribution, m.Release = b.release.distribution, b.release.number
	return b.pack(ctx, tree, m)
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
	sources, err := mirrorSources(host, b.release, b.mirror)
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

// trim turns what the packages made into what an image is to be.
func (b *build) trim(tree string, sources []source, at time.Time) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	return errors.Join(finish(root, b.release, sources, at), root.Close())
}
