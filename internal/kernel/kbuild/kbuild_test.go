//go:build linux

package kbuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// testUID is nobody's on the machine that runs the tests.
const testUID = 721398

// makefile is that of a kernel in small: its olddefconfig keeps the options
// that a Kconfig declares, and its kernel tells its release.
const makefile = `VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 7
EXTRAVERSION =
NAME = Small Test

olddefconfig:
	@echo "  HOSTCC  scripts/kconfig/conf.o"
	@test "$(ARCH)" = um
	@awk -v known="$$(sed -n 's/^config //p' $(CURDIR)/Kconfig $(CURDIR)/fs/Kconfig.small | tr '\n' ' ')" \
	  '{ o = $$0; sub(/^# /, "", o); sub(/^CONFIG_/, "", o); sub(/[= ].*/, "", o); if (index(" " known, " " o " ")) print }' \
	  $(O)/.config > $(O)/.config.new
	@mv $(O)/.config.new $(O)/.config

linux:
	@for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do echo "  CC      kernel/file$$i.o"; done
	@gcc -DRELEASE='"6.12.7$(LOCALVERSION)"' -o $(O)/linux $(CURDIR)/kernel.c
	@echo "  LINK    linux"
`

const kernelProgram = `#include <stdio.h>
int main(int argc, char **argv) { puts(RELEASE); return argc == 2 ? 0 : 1; }
`

// tree makes a source. change edits its files, by name, before they are
// written; an empty one is left out.
func tree(t *testing.T, change func(files map[string]string)) string {
	t.Helper()
	dir := filepath.Join(passable(t), "linux-6.12.7")
	names := slices.Sorted(maps.Keys(essential()))
	files := map[string]string{
		"Makefile": makefile, "arch/um/Makefile": "# here\n", "kernel.c": kernelProgram,
		"Kconfig":          "config " + strings.Join(names, "\nconfig ") + "\n",
		"fs/Kconfig.small": "config XFS_FS\n\ttristate \"XFS\"\nconfig OWN_OPTION\n",
	}
	if change != nil {
		change(files)
	}
	for name, text := range files {
		if text == "" {
			continue
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// passable returns a folder that the build's user can pass.
func passable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sublet-kbuild-") //nolint:usetesting // t.TempDir shuts others out
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// job returns a build of a source.
func job(t *testing.T, source string) Job {
	t.Helper()
	return Job{Source: source, WorkDir: passable(t), UID: testUID, Log: io.Discard, LogPath: "/the/log", Room: vps.MiB}
}

func mustBuild(t *testing.T, j Job) Result {
	t.Helper()
	r, err := Build(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var released = regexp.MustCompile(`^6\.12\.7-[0-9a-f]{12}$`)

func TestBuild(t *testing.T) {
	t.Parallel()
	source := tree(t, nil)
	j := job(t, source)
	j.Config = []byte("CONFIG_OWN_OPTION=y\nCONFIG_TYPO=y\n")
	var told []vps.Progress
	j.Progress = func(p vps.Progress) { told = append(told, p) }
	j.Steps = 26
	r := mustBuild(t, j)
	if !released.MatchString(r.Release) || r.Version != "6.12.7" || r.Origin != "linux-6.12.7" || r.Steps != 25 {
		t.Errorf("got %+v", r)
	}
	out, err := exec.CommandContext(t.Context(), r.Binary, "--version").Output()
	if err != nil || strings.TrimSpace(string(out)) != r.Release {
		t.Errorf("the kernel says %q, %v", out, err)
	}
	if want := []Miss{{"TYPO", "y", "n"}}; !slices.Contains(r.Misses, want[0]) {
		t.Errorf("misses %v", r.Misses)
	}
	for _, m := range r.Misses {
		if m.Name == "XFS_FS" || m.Name == "BTRFS_FS" || m.Name == "OWN_OPTION" {
			t.Errorf("%s is no miss: it came out, or this source does not know it", m)
		}
	}
	for i, p := range told {
		if i > 0 && p.Fraction < told[i-1].Fraction {
			t.Errorf("went back from %+v to %+v", told[i-1], p)
		}
	}
	if last := told[len(told)-1]; last.Phase != "link" || last.Fraction != BuiltFraction {
		t.Errorf("ended with %+v", last)
	}
	if !slices.ContainsFunc(told, func(p vps.Progress) bool { return p.Phase == "compile" && p.Remaining > 0 }) {
		t.Errorf("never said how long it would still take: %+v", told)
	}
	// The same again is the same kernel; another configuration is another.
	again := job(t, source)
	again.Config = j.Config
	again.Have = func(release string) bool { return release == r.Release }
	if got := mustBuild(t, again); got.Release != r.Release || got.Binary != "" {
		t.Errorf("the second time: %+v", got)
	}
	if got := mustBuild(t, job(t, source)); got.Release == r.Release {
		t.Errorf("another configuration has the same name, %s", got.Release)
	}
}

// TestArchives builds from the same source in every form that it comes in.
func TestArchives(t *testing.T) {
	t.Parallel()
	source := tree(t, nil)
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"plain.tar":    nil,
		"gzip.tar.gz":  {"--gzip"},
		"xz.tar.xz":    {"--xz"},
		"bzip.tar.bz2": {"--bzip2"},
		"zstd.tar.zst": {"--zstd"},
		"misnamed.zip": {"--zstd"},
		"bare.tar":     {"--transform=s,^linux-6.12.7/,,"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			archive := filepath.Join(dir, name)
			out, err := exec.CommandContext(t.Context(), "tar", append(args, "-cf", archive, "-C", filepath.Dir(source), filepath.Base(source))...).CombinedOutput()
			if err != nil {
				t.Fatalf("tar: %v: %s", err, out)
			}
			if r := mustBuild(t, job(t, archive)); !released.MatchString(r.Release) || r.Origin != name {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole := filepath.Join(dir, "whole.tar.gz")
	src := tree(t, nil)
	if out, err := exec.CommandContext(t.Context(), "tar", "-czf", whole, "-C", filepath.Dir(src), filepath.Base(src)).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	content, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	shut := tree(t, nil)
	if err := os.Chmod(shut, 0o700); err != nil {
		t.Fatal(err)
	}
	edit := func(name, from, to string) string {
		return tree(t, func(files map[string]string) { files[name] = strings.Replace(files[name], from, to, 1) })
	}
	tests := map[string]struct {
		source, config string
		code           vps.Code
		says           string
	}{
		"nothing there":    {source: "/nonexistent/linux.tar", code: vps.CodeNotFound, says: "cannot be read"},
		"a device":         {source: "/dev/null", code: vps.CodeInvalid, says: "neither an archive nor a folder"},
		"an empty file":    {source: file("empty", ""), code: vps.CodeInvalid, says: "is empty"},
		"another file":     {source: file("text", strings.Repeat("no archive ", 100)), code: vps.CodeInvalid, says: "is not an archive that is known here"},
		"a cut archive":    {source: file("cut.tar.gz", string(content[:len(content)/2])), code: vps.CodeInvalid, says: "cut off or damaged"},
		"shut":             {source: shut, code: vps.CodeConflict, says: "cannot be read by the user 721398"},
		"no kernel":        {source: edit("Makefile", "VERSION = 6", "VERSION = six"), code: vps.CodeInvalid, says: "not the source of a Linux kernel"},
		"no Makefile":      {source: dir, code: vps.CodeInvalid, says: "it has no Makefile"},
		"no UML":           {source: edit("arch/um/Makefile", "# here\n", ""), code: vps.CodeInvalid, says: "User Mode Linux"},
		"too old":          {source: edit("Makefile", "VERSION = 6", "VERSION = 4"), code: vps.CodeInvalid, says: "oldest"},
		"an odd version":   {source: edit("Makefile", "EXTRAVERSION =", "EXTRAVERSION = $(shell id)"), code: vps.CodeInvalid, says: "no version"},
		"a used folder":    {source: tree(t, func(f map[string]string) { f[".config"] = "CONFIG_A=y\n" }), code: vps.CodeInvalid, says: "make mrproper"},
		"no line":          {source: src, config: "CONFIG_A=y\nrm -rf /\n", code: vps.CodeInvalid, says: "line 2"},
		"no value":         {source: src, config: "CONFIG_A=$(id)\n", code: vps.CodeInvalid, says: "line 1"},
		"modules":          {source: src, config: "CONFIG_MODULES=y\n", code: vps.CodeInvalid, says: "CONFIG_MODULES has to be n"},
		"the host's files": {source: src, config: "CONFIG_HOSTFS=y\n", code: vps.CodeInvalid, says: "CONFIG_HOSTFS has to be n"},
		"lacks a disk":     {source: edit("Kconfig", "config BLK_DEV_UBD\n", ""), code: vps.CodeInvalid, says: "CONFIG_BLK_DEV_UBD is n, not y"},
		"does not compile": {
			source: edit("Makefile", "\t@gcc", "\t@echo noise; echo 'fs/x.c:7: error: no such thing' >&2; exit 1\n\t@gcc"),
			code:   vps.CodeInternal, says: "it ends with:\nfs/x.c:7: error: no such thing",
		},
		"does not configure": {source: edit("Makefile", "\t@test \"$(ARCH)\" = um", "\t@false"), code: vps.CodeInternal, says: "could not be configured; the log is /the/log"},
		"does not run":       {source: edit("kernel.c", "argc == 2 ? 0 : 1", "3"), code: vps.CodeInternal, says: "does not run"},
		"another name":       {source: edit("kernel.c", "puts(RELEASE)", `puts("6.6.6")`), code: vps.CodeInternal, says: `calls itself "6.6.6"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := job(t, test.source)
			j.Config = []byte(test.config)
			_, err := Build(t.Context(), j)
			if vps.ErrorCode(err) != test.code || !strings.Contains(vps.ErrorMessage(err), test.says) {
				t.Errorf("got %s: %v", vps.ErrorCode(err), err)
			}
		})
	}
}

// TestConfined looks what a source can do that means ill.
func TestConfined(t *testing.T) { //nolint:paralleltest // it sets the environment
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	source := tree(t, func(files map[string]string) {
		files["Makefile"] = strings.Replace(files["Makefile"], "linux:\n", "linux:\n"+
			"\t@id -u; id -G; cat "+secret+" || true; touch $(CURDIR)/left || true; ls /sys/class/net || true; cat /proc/net/dev; cat /proc/self/status | grep ^NSpid; env\n", 1)
	})
	j := job(t, source)
	var log bytes.Buffer
	j.Log = &log
	t.Setenv("SECRET_OF_THE_DAEMON", "x")
	mustBuild(t, j)
	text := log.String()
	if !strings.Contains(text, "\n721398\n721398\n") {
		t.Errorf("the build runs as somebody else, or in groups:\n%s", text)
	}
	if strings.Contains(text, "eth0:") || strings.Contains(text, "SECRET_OF_THE_DAEMON") {
		t.Errorf("the build sees a network or the daemon's environment:\n%s", text)
	}
	if !strings.Contains(text, secret+": Permission denied") {
		t.Errorf("the build could look for a secret:\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(source, "left")); err == nil {
		t.Error("the build wrote into the source")
	}
}

// TestInterrupted ends a build in the middle: nothing of it goes on.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	source := tree(t, func(files map[string]string) {
		files["Makefile"] = strings.Replace(files["Makefile"], "linux:\n", "linux:\n\t@echo sleeping; (trap '' TERM INT HUP; sleep 3600) & sleep 3600\n", 1)
	})
	j := job(t, source)
	ctx, cancel := context.WithCancel(t.Context())
	asleep := make(chan struct{})
	j.Log = writer(func(p []byte) {
		if bytes.Contains(p, []byte("sleeping")) {
			close(asleep)
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := Build(ctx, j)
		done <- err
	}()
	select {
	case <-asleep:
	case err := <-done:
		t.Fatalf("the build ended: %v", err)
	}
	cancel()
	err := <-done
	if vps.ErrorCode(err) != vps.CodeTimeout || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if running(t, source) {
		t.Error("something of the build goes on")
	}
}

// running tells whether a process works in a folder.
func running(t *testing.T, dir string) bool {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if at, err := os.Readlink(l); err == nil && strings.HasPrefix(at, dir) {
			return true
		}
	}
	return false
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// TestFullDisk gives a build a disk that is too small for it, which is known
// before it begins, and one that others have filled meanwhile.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	archive := filepath.Join(t.TempDir(), "linux.tar")
	if err := os.WriteFile(archive, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	j := job(t, archive)
	j.Room = 1 << 60
	if _, err := Build(t.Context(), j); vps.ErrorCode(err) != vps.CodeDenied || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	nstest.New(t) // a mount namespace of our own
	if err := unix.Mount("tmpfs", j.WorkDir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	b := &build{Job: j}
	if err := b.full(j.WorkDir); err != nil {
		t.Errorf("an empty disk: %v", err)
	}
	if err := os.WriteFile(filepath.Join(j.WorkDir, "big"), make([]byte, 900<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.full(j.WorkDir); vps.ErrorCode(err) != vps.CodeDenied || !strings.Contains(vps.ErrorMessage(err), "free some space") {
		t.Errorf("a full disk: %v", err)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	var all bytes.Buffer
	l := &tail{w: &all}
	for range 500 {
		_, _ = l.Write([]byte("  CC      a.o\nwarning: none\n"))
	}
	_, _ = l.Write([]byte("make: *** [x] Error 2"))
	if got := l.relevant(); got != "make: *** [x] Error 2" {
		t.Errorf("relevant is %q", got)
	}
	if len(l.lines) > 2*keptLines || all.Len() != 500*len("  CC      a.o\nwarning: none\n")+len("make: *** [x] Error 2") {
		t.Errorf("kept %d lines, passed on %d bytes", len(l.lines), all.Len())
	}
	quiet := &tail{}
	_, _ = quiet.Write([]byte("one\ntwo\n" + strings.Repeat("x", 10_000)))
	if got := quiet.relevant(); !strings.HasPrefix(got, "one\ntwo\nxxx") || len(got) > 500 {
		t.Errorf("relevant is %d bytes: %.20q", len(got), got)
	}
}

func TestMeter(t *testing.T) {
	t.Parallel()
	var last vps.Progress
	now := time.Unix(0, 0)
	m := newMeter(func(p vps.Progress) { last = p }, 1000)
	m.now = func() time.Time { return now }
	m.begin()
	for i := range 500 {
		now = now.Add(time.Second)
		m.line("  CC      a.o")
		m.line("  GEN     nothing that counts")
		if i == 250 && (last.Remaining < vps.Duration(12*time.Minute) || last.Remaining > vps.Duration(14*time.Minute)) {
			t.Errorf("after a quarter: %+v", last)
		}
	}
	if want := 0.08 + 0.88/2; last.Fraction < want-0.01 || last.Fraction > want+0.01 {
		t.Errorf("half way: %+v", last)
	}
	for range 1000 {
		m.line("  CC      more than was thought")
	}
	if last.Fraction > phaseCompile.end || m.steps != 1500 {
		t.Errorf("ended with %+v after %d steps", last, m.steps)
	}
}

func TestMirror(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ targets, mirror, keys string }{
		"old apt":      {"Packages|main|http://mirror.example.org/debian-security/|$(SIGNED_BY)|Debian\nPackages|main|http://mirror.example.org/debian/|$(SIGNED_BY)|Debian\n", "http://mirror.example.org/debian/", debianKeys},
		"new apt":      {"Packages|main|https://mirror.example/debian/|/usr/share/keyrings/x.gpg|Debian\n", "https://mirror.example/debian/", "/usr/share/keyrings/x.gpg"},
		"others first": {"Packages|main|https://nodesource.example/|/k.gpg|Node\nPackages|main|http://a/debian|/d.gpg|Debian\n", "http://a/debian", "/d.gpg"},
		"keys inside":  {"Packages|main|http://a/debian|-----BEGIN PGP|Debian\n", "http://a/debian", debianKeys},
		"nothing":      {"Sources|main|http://a/debian||Debian\nPackages|contrib|http://a/debian||Debian\n", "", ""},
		"no address":   {"Packages|main|http://a/$(id) b|/k|Debian\n", "", ""},
	} {
		if mirror, keys := mirrorOf([]byte(test.targets)); mirror != test.mirror || keys != test.keys {
			t.Errorf("%s: %q %q", name, mirror, keys)
		}
	}
}

func TestNewest(t *testing.T) {
	t.Parallel()
	listing := "linux-source - meta\nlinux-source-6.1 - x\nlinux-source-6.12 - x\nlinux-source-6.9 - x\nlinux-source-6.12-evil;id - x\nlinux-source-6.8.0 - x\n"
	if got := newestOf([]byte(listing)); got != "linux-source-6.12" {
		t.Errorf("got %q", got)
	}
	if got := newestOf(nil); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		job   Job
		field string
	}{
		"fine":         {Job{Source: "/src/linux.tar"}, ""},
		"apt":          {Job{Apt: Apt{Package: "linux-source-6.12", Suite: "trixie-backports"}}, ""},
		"both":         {Job{Source: "/x", Apt: Apt{Suite: "sid"}}, "source"},
		"relative":     {Job{Source: "linux.tar"}, "source"},
		"a package":    {Job{Apt: Apt{Package: "bash"}}, "package"},
		"an option":    {Job{Apt: Apt{Package: "-o=Dir::Etc=/x"}}, "package"},
		"a bad suite":  {Job{Apt: Apt{Suite: "sid main\ndeb http://evil/"}}, "suite"},
		"a bad config": {Job{Config: []byte("x")}, "config"},
	} {
		err := test.job.Check()
		var field string
		if e, ok := errors.AsType[*vps.Error](err); ok {
			field = e.Field
		}
		if (err != nil) != (test.field != "") || field != test.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig([]byte("# a comment\n\nCONFIG_A=y\nCONFIG_B=\"a b\"\n# CONFIG_C is not set\nCONFIG_D=0x10\nCONFIG_E=-1\nCONFIG_A=n\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Config{"A": "n", "B": `"a b"`, "C": "n", "D": "0x10", "E": "-1"}, c); d != "" {
		t.Error(d)
	}
	again, err := ParseConfig(c.Bytes())
	if err != nil || !cmp.Equal(c, again) {
		t.Errorf("written and read again: %v, %v", again, err)
	}
	if _, err := ParseConfig(bytes.Repeat([]byte("#\n"), maxConfig)); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("too long: %v", err)
	}
	for _, smp := range []bool{false, true} {
		ours, err := wanted(nil, smp)
		if err != nil || (ours["SMP"] == "y") != smp {
			t.Errorf("ours: %v, SMP is %q", err, ours["SMP"])
		}
		for name, value := range essential() {
			if ours[name] != value && value == "y" && name != "MULTIUSER" {
				t.Errorf("CONFIG_%s is %q in our own configuration", name, ours[name])
			}
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(Fragment)
	f.Add([]byte("CONFIG_A=\"\\\"\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(text)
		if err != nil {
			return
		}
		if again, err := ParseConfig(c.Bytes()); err != nil || !cmp.Equal(c, again) {
			t.Errorf("%q was read as %v, and again as %v, %v", text, c, again, err)
		}
	})
}

// TestArchiveIn takes the source out of the files of a package, wherever below
// usr/src it is, and nothing else.
func TestArchiveIn(t *testing.T) {
	t.Parallel()
	pack := func(files map[string]string) io.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			text := files[name]
			h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}
			if target, ok := strings.CutPrefix(text, "-> "); ok {
				h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, target, 0, ""
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, text); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"debian":  {map[string]string{"./usr/src/linux-source-6.12.tar.xz": "the source", "./usr/share/doc/x": "words"}, "linux-source-6.12.tar.xz"},
		"ubuntu":  {map[string]string{"./usr/src/linux-source-6.8.0/linux-source-6.8.0.tar.bz2": "the source"}, "linux-source-6.8.0.tar.bz2"},
		"a link":  {map[string]string{"./usr/src/linux-source-6.12.tar.xz": "-> /etc/shadow"}, ""},
		"outside": {map[string]string{"./etc/linux-source-6.12.tar.xz": "no source", "../usr/lib/linux-source-6.12.tar": "none"}, ""},
		"nothing": {nil, ""},
	} {
		dir := t.TempDir()
		got, err := archiveIn(pack(test.files), dir)
		if test.want == "" {
			if left, _ := os.ReadDir(dir); err == nil || len(left) > 0 {
				t.Errorf("%s: got %s, left %v", name, got, left)
			}
			continue
		}
		text, _ := os.ReadFile(filepath.Join(dir, test.want))
		if err != nil || got != filepath.Join(dir, test.want) || string(text) != "the source" {
			t.Errorf("%s: got %s with %q, %v", name, got, text, err)
		}
	}
}
