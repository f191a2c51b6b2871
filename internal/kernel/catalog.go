package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Where Debian's package user-mode-linux puts things, and make install puts
// the early-boot program.
const (
	defaultBinary   = "/usr/bin/linux.uml"
	defaultModules  = "/usr/lib/uml/modules"
	initName        = "sublet-init"
	defaultInitPath = "/usr/local/lib/sublet/" + initName
)

const (
	// tempPrefix marks what is not whole yet.
	tempPrefix = ".new-"
	// digestLength is how many hexadecimal digits of a SHA-256 name a file.
	digestLength = 12
	probeTimeout = 30 * time.Second
)

// Options say where a Catalog finds what it keeps. The zero value is right on
// a Debian host.
type Options struct {
	// Binaries are paths of a kernel for User Mode Linux; the first that
	// exists is used. Empty means /usr/bin/linux.uml.
	Binaries []string
	// ModulesDir has a folder for each release, as depmod leaves it. Empty
	// means /usr/lib/uml/modules. A release without a folder has no modules.
	ModulesDir string
	// InitPath is the static early-boot program. Empty means sublet-init
	// beside the running program, then in ../lib/sublet from there, then in
	// /usr/local/lib/sublet.
	InitPath string
	// Log may be nil for none.
	Log *slog.Logger
}

// Catalog keeps kernels in a folder. It is safe for concurrent use, and
// several may share a folder.
type Catalog struct {
	dir  string
	opts Options
	log  *slog.Logger

	mu sync.Mutex
	// made is the answer of the last Default, good while its sources have
	// this fingerprint.
	made        vps.Kernel
	fingerprint string

	// said is what kernels said of themselves, assembled what Get found last.
	said, assembled sync.Map
}

// New returns a Catalog in dir. It touches nothing yet.
func New(dir string, opts Options) *Catalog {
	if len(opts.Binaries) == 0 {
		opts.Binaries = []string{defaultBinary}
	}
	if opts.ModulesDir == "" {
		opts.ModulesDir = defaultModules
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Catalog{dir: dir, opts: opts, log: log}
}

// Default returns the kernel that new guests boot, made from what is
// installed on the host. The first call for a kernel takes about a second and
// the room of its modules (105 MB for Debian's); further calls look at a few
// files. It fails with CodeNotFound when the kernel or the early-boot program
// is not installed. A call that fails or is interrupted leaves nothing
// half-made behind.
func (c *Catalog) Default(ctx context.Context) (vps.Kernel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	src, err := c.sources()
	if err != nil {
		return vps.Kernel{}, err
	}
	if now := src.fingerprint(); now != "" && now == c.fingerprint && complete(c.made) {
		return c.made, nil
	}
	k, err := c.prepare(ctx, src)
	if err == nil {
		k, err = c.describe(ctx, k)
	}
	if err != nil {
		return vps.Kernel{}, fullDisk(err, c.dir)
	}
	// Taken again, because the modules' folder is known only now.
	c.made, c.fingerprint = k, src.fingerprint()
	return k, nil
}

// List returns the kernels that are whole, sorted by name and then by path.
// It makes none.
func (c *Catalog) List(ctx context.Context) ([]vps.Kernel, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(c.dir, "uml-*.json"))
	if err != nil {
		return nil, err
	}
	var kernels []vps.Kernel
	for _, name := range names {
		k, err := c.readManifest(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			c.log.WarnContext(ctx, "kernel manifest cannot be read", "path", name, "error", err)
			continue
		}
		if complete(k) {
			kernels = append(kernels, k)
		}
	}
	slices.SortFunc(kernels, func(a, b vps.Kernel) int {
		return strings.Compare(a.Name+"\x00"+a.Path, b.Name+"\x00"+b.Path)
	})
	return kernels, nil
}

// Prune removes every file that belongs neither to one of keep nor to what
// Default returned last, nor to a kernel that was built here. Guests that run
// must have their kernels in keep, by their paths.
func (c *Catalog) Prune(ctx context.Context, keep []vps.Kernel) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	unlock, err := c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	used := map[string]bool{}
	built, err := c.records(ctx)
	if err != nil {
		return err
	}
	for _, r := range built {
		used[filepath.Join(c.dir, r.Binary)], used[c.recordPath(r.Release)] = true, true
	}
	for _, k := range append(slices.Clone(keep), c.made) {
		for _, path := range []string{k.Path, k.Initrd, k.Modules, c.manifestPath(k)} {
			used[path] = true
		}
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("read the folder of kernels: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(c.dir, e.Name())
		if used[path] || !ours(e.Name()) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		c.log.InfoContext(ctx, "removed unused kernel file", "path", path)
	}
	return errors.Join(errs...)
}

// ours tells whether a file of this name was made here.
func ours(name string) bool {
	for _, prefix := range []string{"linux-", "modules-", "initrd-", "uml-", builtPrefix} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// sources are the installed files that a kernel is made from.
type sources struct {
	binary, init string
	// modules is empty until the release is known, and when there are none.
	modules string
}

// sources finds the kernel and the early-boot program.
func (c *Catalog) sources() (*sources, error) {
	var s sources
	for _, path := range c.opts.Binaries {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			s.binary = path
			break
		}
	}
	if s.binary == "" {
		return nil, vps.Errorf(vps.CodeNotFound, "there is no kernel for User Mode Linux on this host (looked for %s); install it with: apt-get install user-mode-linux",
			strings.Join(c.opts.Binaries, ", "))
	}
	var err error
	if s.init, err = c.initPath(); err != nil {
		return nil, err
	}
	s.modules = c.modulesOf(c.made.Release)
	return &s, nil
}

// initPath finds the early-boot program.
func (c *Catalog) initPath() (string, error) {
	paths := []string{c.opts.InitPath}
	if c.opts.InitPath == "" {
		paths = []string{defaultInitPath}
		if exe, err := os.Executable(); err == nil {
			bin := filepath.Dir(exe)
			paths = []string{filepath.Join(bin, initName), filepath.Join(bin, "../lib/sublet", initName), defaultInitPath}
		}
	}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", vps.Errorf(vps.CodeNotFound, "the program %s, which guests run first when they boot, is missing (looked for %s); install sublet again, or build it with: make build",
		initName, strings.Join(paths, ", "))
}

// Init returns the path of the program that guests run first when they boot,
// or vps.CodeNotFound.
func (c *Catalog) Init() (string, error) { return c.initPath() }

// modulesOf returns the folder with the modules of a release, "" for none.
func (c *Catalog) modulesOf(release string) string {
	dir := filepath.Join(c.opts.ModulesDir, release)
	if info, err := os.Stat(filepath.Join(dir, "modules.dep")); release == "" || err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return dir
}

// fingerprint changes when a package manager or a build replaces one of the
// sources. It looks at their inodes only, and is empty when one is gone.
func (s *sources) fingerprint() string {
	var b strings.Builder
	paths := []string{s.binary, s.init}
	if s.modules != "" {
		paths = append(paths, filepath.Join(s.modules, "modules.dep"))
	}
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return ""
		}
		_, _ = fmt.Fprintf(&b, "%s %d %d %d %d\n", path, st.Dev, st.Ino, st.Size, st.Mtim.Nano())
	}
	return b.String()
}

// complete tells whether all files of a kernel are there.
func complete(k vps.Kernel) bool {
	if k.Path == "" || k.Initrd == "" {
		return false
	}
	for _, path := range []string{k.Path, k.Initrd, k.Modules} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// releasePattern is what a release may look like: it becomes part of names.
const releasePattern = `^[0-9][0-9A-Za-z._+~-]{0,63}$`

// probe asks a kernel for its release.
func probe(ctx context.Context, binary string) (string, error) {
	out, err := output(ctx, binary, "--version")
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the kernel %s does not run on this host", binary)
	}
	release := strings.TrimSpace(string(out))
	if ok, err := regexp.MatchString(releasePattern, release); err != nil || !ok {
		return "", vps.Errorf(vps.CodeInternal, "%s --version says %q, which is not a kernel's release; it is no kernel for User Mode Linux", binary, release)
	}
	return release, nil
}

// output runs a kernel for what it prints, not for a guest. A file that was just
// written is busy for a moment if somebody forked meanwhile: the child has it
// open until its exec (https://go.dev/issue/22315).
func output(ctx context.Context, binary, flag string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, binary, flag)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
		out, err := cmd.Output()
		if !errors.Is(err, unix.ETXTBSY) {
			return out, err
		}
		const pause = 5 * time.Millisecond
		select {
		case <-ctx.Done():
			return out, err
		case <-time.After(pause):
		}
	}
}

// manifest is what a kernel's JSON file holds. Paths are names in the folder,
// so that the folder can be moved, or absolute for files outside of it.
type manifest struct {
	Version int        `json:"version"`
	Kernel  vps.Kernel `json:"kernel"`
}

func (c *Catalog) readManifest(name string) (vps.Kernel, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return vps.Kernel{}, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return vps.Kernel{}, err
	}
	k := m.Kernel
	for _, path := range []*string{&k.Path, &k.Initrd, &k.Modules} {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(c.dir, *path)
		}
	}
	return k, nil
}

// manifestPath returns where the manifest of a kernel lies: there is one for
// each combination of its three files.
func (c *Catalog) manifestPath(k vps.Kernel) string {
	key := digestOf(filepath.Base(k.Path), filepath.Base(k.Initrd), filepath.Base(k.Modules))
	return filepath.Join(c.dir, "uml-"+k.Release+"-"+key+".json")
}

// fullDisk turns an error that says that the disk is full into a sentence.
func fullDisk(err error, dir string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return vps.Wrap(vps.CodeInternal, err, "the disk that holds %s is full, so the kernel's files could not be made; free some space (they need about 130 MiB)", dir)
	}
	return err
}
