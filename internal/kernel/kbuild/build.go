//go:build linux

package kbuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"sublet/internal/vps"
)

// Job is one build.
type Job struct {
	// Source is the path of an archive or of an unpacked folder. When it is
	// empty, Apt says which package has it.
	Source string
	Apt    Apt
	// Config is what the owner adds to our configuration, in the form of a
	// .config; may be nil. SMP asks for several processors.
	Config []byte
	SMP    bool
	// WorkDir is an empty folder for everything that the build writes; it takes
	// up to 4 GiB. Its parents have to be passable for UID. The caller removes
	// it.
	WorkDir string
	// Room is how much of the disk has to be free; 0 means what a whole Linux
	// takes.
	Room vps.Bytes
	// UID is the user (and the group) that the build runs as when this process
	// is root's; nobody else's.
	UID uint32
	// Log gets everything that the build says. LogPath is where the user finds
	// it.
	Log     io.Writer
	LogPath string
	// Steps is how many steps the last build of such a kernel took; 0 when
	// there was none.
	Steps int
	// Have tells whether a kernel of this release is there already: then
	// nothing is compiled. It may be nil.
	Have func(release string) bool
	// Progress may be nil. It is called from one goroutine at a time.
	Progress func(vps.Progress)
}

// Result is a kernel that was built.
type Result struct {
	// Binary is its path in the work folder; empty when Have knew the release.
	Binary string
	// Release is what uname -r will say: the source's version and the first
	// digits of the digest of its source and configuration, "6.12.74-1a2b3c4d5e6f".
	Release string
	// Version is the source's own.
	Version string
	// Origin says where the source came from, for people.
	Origin string
	// Misses are options that did not come out as they were asked for.
	Misses []Miss
	// Steps is how many steps the build took.
	Steps int
	// Took is how long compiling took.
	Took time.Duration
}

// build is one run of Build.
type build struct {
	Job
	log   *tail
	meter *meter
}

// Build makes a kernel. It takes minutes to an hour, and ends early, with
// nothing left running, when ctx does. Errors are CodeInvalid for a source or a
// configuration that cannot be used, CodeNotFound for what is not installed or
// not there, CodeDenied for a disk without room, CodeInternal with the last
// lines of the log for a build that failed.
func Build(ctx context.Context, j Job) (Result, error) {
	if j.Room == 0 {
		j.Room = sourceSize
	}
	b := &build{Job: j, log: &tail{w: j.Log}, meter: newMeter(j.Progress, j.Steps)}
	want, err := wanted(j.Config, j.SMP)
	if err != nil {
		return Result{}, err
	}
	if err := b.checkTools(ctx); err != nil {
		return Result{}, err
	}
	r, err := b.do(ctx, want)
	switch {
	case ctx.Err() != nil && err != nil:
		return Result{}, vps.Wrap(vps.CodeTimeout, errors.Join(ctx.Err(), err), "the build of the kernel was interrupted; nothing of it is left")
	case err != nil && vps.ErrorCode(err) == vps.CodeInternal:
		if full := b.full(j.WorkDir); full != nil {
			return Result{}, full
		}
	}
	return r, err
}

var (
	versionForm = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z._~-]{0,24}$`)
	releaseForm = regexp.MustCompile(`^[0-9][0-9A-Za-z._+~-]{0,63}$`)
)

func (b *build) do(ctx context.Context, want Config) (Result, error) {
	path, origin := b.Source, filepath.Base(b.Source)
	if path == "" {
		var err error
		if path, origin, err = b.fetch(ctx); err != nil {
			return Result{}, err
		}
	}
	b.meter.at(phaseUnpack, 0)
	src, err := b.unpack(ctx, path, filepath.Join(b.WorkDir, "source"))
	if err != nil {
		return Result{}, err
	}
	b.meter.at(phaseConfigure, 0)
	out := filepath.Join(b.WorkDir, "build")
	got, missed, err := b.configure(ctx, src, want, out)
	if err != nil {
		return Result{}, err
	}
	r := Result{Version: src.version, Origin: origin, Misses: missed, Release: src.version + "-" + key(src, got)}
	if b.Have != nil && b.Have(r.Release) {
		return r, nil
	}
	started := time.Now()
	if err := b.compile(ctx, src, r.Release, out); err != nil {
		return Result{}, err
	}
	r.Steps, r.Took = b.meter.steps, time.Since(started)
	r.Binary, err = b.finish(ctx, r.Release, out)
	return r, err
}

// keyLength is how many hexadecimal digits of a SHA-256 name a kernel.
const keyLength = 12

// key follows from the source and the whole configuration, the compiler's
// version among it.
func key(src *source, c Config) string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n", src.digest)
	_, _ = h.Write(c.Bytes())
	return sum(h)[:keyLength]
}

// configure makes the configuration in the new folder out, and says what of it
// did not come out as it was wanted.
func (b *build) configure(ctx context.Context, src *source, want Config, out string) (Config, []Miss, error) {
	if err := os.Mkdir(out, 0o755); err != nil {
		return nil, nil, err
	}
	file := filepath.Join(out, ".config")
	if err := os.WriteFile(file, want.Bytes(), 0o644); err != nil { //nolint:gosec // no secret, and the build's user changes it
		return nil, nil, err
	}
	if err := errors.Join(b.own(out), b.own(file)); err != nil {
		return nil, nil, err
	}
	known, err := knownOptions(src.dir)
	if err != nil {
		return nil, nil, err
	}
	if err := b.make(ctx, src, out, b.log, "olddefconfig"); err != nil {
		return nil, nil, b.failure(err, "the source of Linux %s could not be configured", src.version)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, b.failure(err, "the source of Linux %s made no configuration", src.version)
	}
	got, err := ParseConfig(text)
	if err != nil {
		return nil, nil, b.failure(err, "the source of Linux %s made a configuration that is not understood", src.version)
	}
	if err := checkEssential(got); err != nil {
		return nil, nil, err
	}
	ours, err := ParseConfig(Fragment)
	if err != nil {
		return nil, nil, err
	}
	return got, misses(want, got, known, ours), nil
}

// compile makes the kernel itself.
func (b *build) compile(ctx context.Context, src *source, release, out string) error {
	b.meter.begin()
	lines := &lineWriter{w: b.log, line: b.meter.line}
	err := b.make(ctx, src, out, lines, "-j"+strconv.Itoa(runtime.NumCPU()),
		"LOCALVERSION="+strings.TrimPrefix(release, src.version), "linux")
	if err != nil {
		return b.failure(err, "Linux %s could not be built", src.version)
	}
	return nil
}

// make runs the source's Makefile.
func (b *build) make(ctx context.Context, src *source, out string, log io.Writer, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	program, err := findTool("make")
	if err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(src.dir, "Makefile"))
	if err != nil {
		return err
	}
	cmd := b.command(ctx, program, append([]string{"-C", src.dir, "O=" + out, "ARCH=um"}, args...)...)
	// The same source gives the same kernel, whoever builds it and when.
	cmd.Env = append(cmd.Env, "KBUILD_BUILD_USER=sublet", "KBUILD_BUILD_HOST=sublet", "KBUILD_BUILD_VERSION=1",
		"KBUILD_BUILD_TIMESTAMP="+info.ModTime().UTC().Format(time.RFC1123))
	cmd.Stdout, cmd.Stderr = log, log
	return b.run(cmd)
}

// finish checks what was built, and returns it without its symbols.
func (b *build) finish(ctx context.Context, release, out string) (string, error) {
	b.meter.at(phaseLink, 1)
	built := filepath.Join(out, "linux")
	cmd := b.command(ctx, built, "--version")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, b.log
	if err := b.run(cmd); err != nil {
		return "", b.failure(err, "the kernel that was built does not run")
	}
	if got := strings.TrimSpace(said.String()); got != release || !releaseForm.MatchString(got) {
		return "", vps.Errorf(vps.CodeInternal, "the kernel that was built calls itself %.64q, not %q; the source's own configuration sets another name", got, release)
	}
	strip, err := findTool("strip")
	if err != nil {
		return "", err
	}
	stripped := filepath.Join(out, "linux.stripped")
	cmd = b.command(ctx, strip, "--strip-all", "-o", stripped, built)
	cmd.Stdout, cmd.Stderr = b.log, b.log
	if err := b.run(cmd); err != nil {
		return "", b.failure(err, "the kernel that was built could not be stripped")
	}
	return stripped, nil
}

// failure makes what a user is told of a program that failed.
func (b *build) failure(err error, format string, args ...any) error {
	if _, ended := errors.AsType[*exec.ExitError](err); !ended {
		return err
	}
	return vps.Wrap(vps.CodeInternal, err, "%s%s", fmt.Sprintf(format, args...), b.lastLines())
}

// lastLines tells where the log is, and how it ends.
func (b *build) lastLines() string {
	text := "; the log is " + b.LogPath
	if lines := b.log.relevant(); lines != "" {
		text += "; it ends with:\n" + lines
	}
	return text
}
