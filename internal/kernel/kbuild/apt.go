//go:build linux

package kbuild

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sublet/internal/vps"
)

// Apt says which of Debian's packages has a source.
type Apt struct {
	// Package is its name, "linux-source-6.12"; empty means the newest that
	// there is.
	Package string
	// Suite is another suite of Debian's than the host's own, "trixie-backports",
	// whose packages are looked through without touching the host's lists.
	Suite string
}

var (
	packageForm = regexp.MustCompile(`^linux-source-[0-9]+(\.[0-9]+){1,2}$`)
	suiteForm   = regexp.MustCompile(`^[a-z][a-z0-9-]{1,40}$`)
	mirrorForm  = regexp.MustCompile(`^(https?|file|cdrom|copy)://?[A-Za-z0-9._~:/@%+-]+$`)
)

// check refuses what is no name.
func (a Apt) check() error {
	if a.Package != "" && !packageForm.MatchString(a.Package) {
		return vps.Invalid("package", "%q is not a package with a kernel's source; they are called linux-source-6.12", a.Package)
	}
	if a.Suite != "" && !suiteForm.MatchString(a.Suite) {
		return vps.Invalid("suite", "%q is not the name of a suite of Debian's; write for example trixie-backports", a.Suite)
	}
	return nil
}

// Check refuses a job that cannot be meant, before anything is done for it.
func (j Job) Check() error {
	if _, err := wanted(j.Config, j.SMP); err != nil {
		return err
	}
	if j.Source != "" {
		if j.Apt != (Apt{}) {
			return vps.Invalid("source", "give a source, or take one from apt, not both")
		}
		if !filepath.IsAbs(j.Source) {
			return vps.Invalid("source", "%q is not an absolute path on the host", j.Source)
		}
	}
	return j.Apt.check()
}

// fetch lets apt download a source, and takes the archive out of the package.
// The host's own packages, lists and settings stay as they are.
func (b *build) fetch(ctx context.Context) (archive, origin string, err error) {
	if err := b.Apt.check(); err != nil {
		return "", "", err
	}
	b.meter.at(phaseFetch, 0)
	dir := filepath.Join(b.WorkDir, "apt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", "", err
	}
	a := &apt{build: b, dir: dir}
	if b.Apt.Suite != "" {
		if err := a.useSuite(ctx, b.Apt.Suite); err != nil {
			return "", "", err
		}
	}
	name := b.Apt.Package
	if name == "" {
		if name, err = a.newest(ctx); err != nil {
			return "", "", err
		}
	}
	deb, err := a.download(ctx, name)
	if err != nil {
		return "", "", err
	}
	archive, err = b.takeOut(ctx, deb, b.WorkDir)
	if err != nil {
		return "", "", err
	}
	return archive, strings.TrimSuffix(filepath.Base(deb), ".deb"), os.RemoveAll(dir)
}

// apt runs apt's programs.
type apt struct {
	*build
	dir string
	// options lead to lists of our own.
	options []string
}

// output runs one of apt's programs and returns what it prints.
func (a *apt) output(ctx context.Context, program string, args ...string) ([]byte, error) {
	file, err := exec.LookPath(program)
	if err != nil {
		return nil, vps.Wrap(vps.CodeNotFound, err, "this host has no %s; give the source of a kernel with --source", program)
	}
	// Not the build's user: apt has one of its own for what comes from outside.
	cmd := exec.CommandContext(ctx, file, append(slices.Clone(a.options), args...)...)
	cmd.Dir = a.dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	const patience = 10 * time.Second
	cmd.WaitDelay = patience
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, a.log
	_, _ = fmt.Fprintf(a.log, "+ %s %s\n", program, strings.Join(cmd.Args[1:], " "))
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return out.Bytes(), err
}

// useSuite makes lists of another suite, from the host's own mirror.
func (a *apt) useSuite(ctx context.Context, suite string) error {
	out, err := a.output(ctx, "apt-get", "indextargets", "--format", "$(CREATED_BY)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)|$(ORIGIN)")
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "apt does not tell where this host's packages come from%s", a.lastLines())
	}
	mirror, keys := mirrorOf(out)
	if mirror == "" {
		return vps.Errorf(vps.CodeNotFound, "this host's apt knows no mirror of Debian's to look for %s on; run apt-get update first, or give the source of a kernel with --source", suite)
	}
	if err := os.MkdirAll(filepath.Join(a.dir, "lists/partial"), 0o755); err != nil {
		return err
	}
	signed := ""
	if keys != "" {
		signed = "[signed-by=" + keys + "] "
	}
	list := filepath.Join(a.dir, "sources.list")
	line := "deb " + signed + mirror + " " + suite + " main\n"
	if err := os.WriteFile(list, []byte(line), 0o644); err != nil { //nolint:gosec // apt reads it as a user of its own
		return err
	}
	a.options = []string{
		"-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::Lists=" + filepath.Join(a.dir, "lists"), "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=",
		"-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any",
	}
	if _, err := a.output(ctx, "apt-get", "--quiet", "update"); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return vps.Wrap(vps.CodeNotFound, err, "the lists of %s could not be fetched from %s%s", suite, mirror, a.lastLines())
	}
	return nil
}

// debianKeys is where Debian's package debian-archive-keyring has them.
const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// mirrorOf finds, in what apt-get indextargets printed, the first mirror of
// Debian's main packages that is not for security updates only, and the keys
// that its lists are signed with.
func mirrorOf(targets []byte) (mirror, keys string) {
	lines := bufio.NewScanner(bytes.NewReader(targets))
	for lines.Scan() {
		f := strings.Split(lines.Text(), "|")
		if len(f) != 5 || f[0] != "Packages" || f[1] != "main" || strings.Contains(f[2], "security") || !mirrorForm.MatchString(f[2]) {
			continue
		}
		// Older versions of apt do not say; several keys, or keys in the file
		// itself, are not a path.
		if strings.HasPrefix(f[3], "/") && !strings.ContainsAny(f[3], " ,\t]") {
			keys = f[3]
		}
		if f[4] == "Debian" {
			return f[2], cmp.Or(keys, debianKeys)
		}
		mirror = cmp.Or(mirror, f[2])
	}
	return mirror, keys
}

// newest returns the package with the newest version of Linux.
func (a *apt) newest(ctx context.Context) (string, error) {
	out, err := a.output(ctx, "apt-cache", "search", "--names-only", "^linux-source-[0-9]")
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "apt cannot be asked for the sources of kernels%s", a.lastLines())
	}
	name := newestOf(out)
	if name == "" {
		return "", vps.Errorf(vps.CodeNotFound, "apt offers no package linux-source-*; run apt-get update, name another suite with --suite, or give the source of a kernel with --source")
	}
	return name, nil
}

func newestOf(listing []byte) string {
	var best string
	var bestVersion []int
	lines := bufio.NewScanner(bytes.NewReader(listing))
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), " ")
		if !packageForm.MatchString(name) {
			continue
		}
		var version []int
		for part := range strings.SplitSeq(strings.TrimPrefix(name, "linux-source-"), ".") {
			n, err := strconv.Atoi(part)
			if err != nil {
				version = nil
				break
			}
			version = append(version, n)
		}
		if slices.Compare(version, bestVersion) > 0 {
			best, bestVersion = name, version
		}
	}
	return best
}

// download fetches a package, and tells how far it is by the size of the file.
func (a *apt) download(ctx context.Context, name string) (string, error) {
	deb := filepath.Join(a.dir, "deb")
	if err := os.Mkdir(deb, 0o755); err != nil {
		return "", err
	}
	if u, err := user.Lookup("_apt"); err == nil && os.Geteuid() == 0 {
		if id, err := strconv.Atoi(u.Uid); err == nil {
			if err := os.Chown(deb, id, -1); err != nil {
				return "", err
			}
		}
	}
	size := a.sizeOf(ctx, name)
	if err := a.room(deb, a.Room+2*vps.Bytes(size)); err != nil {
		return "", err
	}
	watch, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-watch.Done():
				return
			case <-tick.C:
				if size > 0 {
					a.meter.at(phaseFetch, float64(sizeBelow(deb))/float64(size))
				}
			}
		}
	}()
	a.dir = deb // where apt-get download puts it
	_, err := a.output(ctx, "apt-get", "--quiet", "download", name)
	stop()
	<-watched
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	found, globErr := filepath.Glob(filepath.Join(deb, "*.deb"))
	if err = errors.Join(err, globErr); err != nil || len(found) != 1 {
		if full := a.full(deb); full != nil {
			return "", full
		}
		return "", vps.Wrap(vps.CodeNotFound, err, "apt could not fetch the package %s; run apt-get update, or name another package or --suite%s", name, a.lastLines())
	}
	return found[0], nil
}

// sizeOf returns the length of a package's file, 0 when apt does not say.
func (a *apt) sizeOf(ctx context.Context, name string) int64 {
	out, err := a.output(ctx, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(out)) {
		if text, found := strings.CutPrefix(line, "Size: "); found {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

func sizeBelow(dir string) (total int64) {
	for _, pattern := range []string{"*", "partial/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			continue
		}
		for _, name := range names {
			if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
				total += info.Size()
			}
		}
	}
	return total
}

// takeOut takes the archive with the source out of a package.
func (b *build) takeOut(ctx context.Context, deb, to string) (archive string, err error) {
	tool, err := exec.LookPath("dpkg-deb")
	if err != nil {
		return "", vps.Wrap(vps.CodeNotFound, err, "this host has no dpkg-deb; give the source of a kernel with --source")
	}
	// Read by this process, so that apt's file needs to be nobody else's.
	cmd := exec.CommandContext(ctx, tool, "--fsys-tarfile", deb)
	cmd.Stderr = b.log
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	archive, err = archiveIn(pipe, to)
	_, _ = io.Copy(io.Discard, pipe)
	if ended := cmd.Wait(); err == nil {
		err = ended
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil && b.full(to) != nil:
		return "", b.full(to)
	case err != nil:
		return "", vps.Wrap(vps.CodeInternal, err, "the package %s has no source that can be used", filepath.Base(deb))
	}
	return archive, nil
}

// archiveIn copies usr/src/linux-source-6.12.tar.xz, wherever below usr/src it
// is, out of the tar of a package's files.
func archiveIn(files io.Reader, to string) (string, error) {
	r := tar.NewReader(files)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return "", errors.New("there is no usr/src/linux-source-*.tar.* in it")
		}
		if err != nil {
			return "", err
		}
		name := path.Clean("/" + h.Name)
		ok, err := path.Match("linux-source-*.tar*", path.Base(name))
		if err != nil {
			return "", err
		}
		if !ok || h.Typeflag != tar.TypeReg || !strings.HasPrefix(name, "/usr/src/") {
			continue
		}
		archive := filepath.Join(to, path.Base(name))
		f, err := os.OpenFile(archive, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", err
		}
		_, err = io.CopyN(f, r, h.Size)
		return archive, errors.Join(err, f.Close())
	}
}
