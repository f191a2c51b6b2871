package image

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// Building runs in a process of its own where a test kills it, or needs
// another mount namespace: the test program, started with these.
const (
	helperDir   = "SUBLET_TEST_BUILD_DIR"
	helperFile  = "SUBLET_TEST_IMPORT_FILE" // imported, instead of building
	helperTmpfs = "SUBLET_TEST_BUILD_TMPFS" // mounted on that folder, with these options
)

func TestMain(m *testing.M) {
	dir := os.Getenv(helperDir)
	if dir == "" {
		m.Run() // its result becomes the exit code
		return
	}
	if options := os.Getenv(helperTmpfs); options != "" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			panic(err)
		}
	}
	told := func(p vps.Progress) { _, _ = fmt.Fprintln(os.Stdout, p.Phase) }
	s := New(dir, Options{CacheDir: testCache()})
	var err error
	if path := os.Getenv(helperFile); path != "" {
		err = importPath(s, path, told)
	} else {
		_, err = s.Build(context.Background(), "debian/12", told)
	}
	_, _ = fmt.Fprintf(os.Stdout, "error %s: %s\n", vps.ErrorCode(err), vps.ErrorMessage(err))
	left, _ := filepath.Glob(filepath.Join(dir, "debian/12/.*"))
	_, _ = fmt.Fprintln(os.Stdout, "left", len(left))
}

func importPath(s *Store, path string, told func(vps.Progress)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	u, err := s.Receive(context.Background(), "debian/12", f)
	if err != nil {
		return err
	}
	_, err = u.Import(context.Background(), Import{}, told)
	return err
}

// testCache keeps packages between runs of the tests, outside the checkout:
// where SUBLET_APT_CACHE says, else in the user's cache folder.
func testCache() string {
	if dir := os.Getenv("SUBLET_APT_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = "/var/cache"
	}
	return filepath.Join(dir, "sublet", "apt")
}

func helper(t *testing.T, dir string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// debugfs runs one request on an image's filesystem and returns what it says.
func debugfs(t *testing.T, disk, request string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/debugfs", "-R", request, disk)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v\n%s", request, err, errs.String())
	}
	if strings.Contains(errs.String(), "not found") {
		return "MISSING"
	}
	return string(out)
}

// list returns the names in a folder of the image, sorted.
func list(t *testing.T, disk, dir string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(debugfs(t, disk, "ls -p "+dir)) {
		// /inode/mode/uid/gid/name/size/
		if fields := strings.Split(line, "/"); len(fields) > 5 && fields[5] != "." && fields[5] != ".." && fields[5] != "" {
			all = append(all, fields[5])
		}
	}
	slices.Sort(all)
	return all
}

func TestBuild(t *testing.T) {
	t.Parallel()
	s := New(filepath.Join(t.TempDir(), "images"), Options{CacheDir: testCache()})
	var last vps.Progress
	refused := false
	img, err := s.Build(t.Context(), "debian/12", func(p vps.Progress) {
		if p.Fraction < last.Fraction {
			t.Errorf("progress went from %v back to %v", last, p)
		}
		last = p
		if !refused {
			refused = true
			_, err := s.Build(t.Context(), "debian/12", nil)
			wantCode(t, err, vps.CodeConflict, "debian/12")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if last.Fraction != 1 {
		t.Errorf("the last report is %v", last)
	}
	if err := s.Verify(t.Context(), "debian/12", nil); err != nil {
		t.Error(err)
	}
	got, err := s.Get(t.Context(), "debian/12")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(img, got); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o444 || info.Size() != int64(64*vps.GiB) || !info.ModTime().Equal(img.Created) || img.Content > 600*vps.MiB {
		t.Errorf("%v, %d bytes, %v; occupies %s", info.Mode(), info.Size(), info.ModTime(), img.Content)
	}
	if entries, err := os.ReadDir(s.home("debian/12")); err != nil || len(entries) != 2 {
		t.Errorf("the image's folder has %v, %v", entries, err)
	}
	packages := map[string]bool{}
	for _, p := range img.Packages {
		packages[p.Name] = p.Version != ""
	}
	for _, name := range append(slices.Clone(absent), present...) {
		if want := !slices.Contains(absent, name); packages[name] != want {
			t.Errorf("package %s is there: %v", name, packages[name])
		}
	}
	if out, err := exec.CommandContext(t.Context(), "/usr/sbin/e2fsck", "-fn", img.Path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	checkContent(t, img.Path)
}

var (
	absent  = []string{"udev", "ifupdown", "cron", "rsyslog", "libpam-systemd"}
	present = []string{"openssh-server", "systemd-sysv", "iptables", "apt"}
)

// checkContent looks for what must and must not be in an image.
func checkContent(t *testing.T, disk string) {
	t.Helper()
	for _, name := range list(t, disk, "/etc/ssh") {
		if strings.Contains(name, "host") {
			t.Errorf("the image holds %s", name)
		}
	}
	for _, path := range []string{"/etc/resolv.conf", "/etc/hostname", "/root/.ssh", "/etc/shadow-", "/var/lib/systemd/random-seed", "/etc/apt/apt.conf.d/99mmdebstrap"} {
		if out := debugfs(t, disk, "stat "+path); out != "MISSING" {
			t.Errorf("the image holds %s", path)
		}
	}
	if id := debugfs(t, disk, "cat /etc/machine-id"); id != "" {
		t.Errorf("machine-id is %q", id)
	}
	for line := range strings.Lines(debugfs(t, disk, "cat /etc/shadow")) {
		if fields := strings.Split(line, ":"); len(fields) < 2 || fields[1] != "*" && fields[1] != "!" && fields[1] != "!*" {
			t.Errorf("a password: %q", line)
		}
	}
	for dir, want := range map[string][]string{
		"/var/lib/apt/lists": {"partial"}, "/var/lib/apt/lists/partial": nil,
		"/var/cache/apt": {"archives"}, "/var/cache/apt/archives": {"partial"},
		"/var/log/apt": nil, "/var/log/journal": nil, "/tmp": nil, "/run": nil,
		"/etc/apt/sources.list.d":                 {"debian.sources"},
		"/etc/systemd/system/timers.target.wants": nil,
	} {
		if got := list(t, disk, dir); !cmp.Equal(got, want) && !(dir == "/run" && len(got) <= 1) {
			t.Errorf("%s holds %v, want %v", dir, got, want)
		}
	}
	for _, name := range list(t, disk, "/var/log") {
		if strings.HasSuffix(name, ".log") {
			t.Errorf("the image holds /var/log/%s", name)
		}
	}
	for link, target := range map[string]string{
		"/etc/alternatives/iptables":                                           "/usr/sbin/iptables-legacy",
		"/etc/alternatives/ip6tables":                                          "/usr/sbin/ip6tables-legacy",
		"/etc/systemd/system/ctrl-alt-del.target":                              "/lib/systemd/system/poweroff.target",
		"/etc/systemd/system/default.target":                                   "/lib/systemd/system/multi-user.target",
		"/etc/systemd/system/multi-user.target.wants/e2scrub_reap.service":     "/dev/null",
		"/etc/systemd/system/getty.target.wants/console-getty.service":         "/lib/systemd/system/console-getty.service",
		"/etc/systemd/system/sysinit.target.wants/systemd-update-utmp.service": "/dev/null",
		"/etc/systemd/system-generators/systemd-gpt-auto-generator":            "/dev/null",
	} {
		if out := debugfs(t, disk, "stat "+link); !strings.Contains(out, `"`+target+`"`) {
			t.Errorf("%s does not lead to %s:\n%s", link, target, out)
		}
	}
	if out := debugfs(t, disk, "stats -h"); !strings.Contains(out, "root") {
		t.Errorf("the label is missing:\n%s", out)
	}
}

// wantNothingLeft looks for parts of a build, on the disk and as processes.
func wantNothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, "debian/12/*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "debian/12/.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left := processes(dir); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir+"/debian") {
		t.Errorf("still mounted: %v", err)
	}
}

// processes returns the command lines that name dir.
func processes(dir string) []string {
	var all []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range paths {
		// One that has just ended has none.
		if b, _ := os.ReadFile(p); strings.Contains(string(b), dir+"/debian") {
			all = append(all, string(b))
		}
	}
	return all
}

func TestInterruptedBuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := New(dir, Options{CacheDir: testCache()}).Build(ctx, "debian/12", func(p vps.Progress) {
		if p.Phase == phaseUnpack {
			cancel()
		}
	})
	wantCode(t, err, vps.CodeInternal, "debian/12", "interrupted", "build it again")
	wantNothingLeft(t, dir)
}

func TestKilledBuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := helper(t, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != phaseUnpack {
		continue
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	// The kernel ends the others; that takes a moment.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(hang.After); len(processes(dir)) > 0 && time.Now().Before(deadline); {
		<-tick.C
	}
	s := New(dir, Options{})
	_, err = s.Get(t.Context(), "debian/12")
	wantCode(t, err, vps.CodeNotFound)
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dir)
}

func TestBuildOnFullDisk(t *testing.T) {
	t.Parallel()
	// The first is too small for the packages, the second for the filesystem.
	for _, size := range []string{"size=40m", "size=400m"} {
		dir := t.TempDir()
		cmd := helper(t, dir, helperTmpfs+"="+size)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, want := range []string{"error denied: the filesystem of " + dir + " is full", "debian/12", "free", "left 0\n"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is missing in:\n%s", size, want, out)
			}
		}
	}
}

func TestBuildWithoutNetwork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	apt := filepath.Join(dir, "apt")
	if err := os.Mkdir(apt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(apt, "sources.list"), []byte("deb http://127.0.0.1:9/debian bookworm main\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(filepath.Join(dir, "images"), Options{AptDir: apt}).Build(t.Context(), "debian/12", nil)
	wantCode(t, err, vps.CodeInternal, "debian/12", "127.0.0.1", "network")
	wantNothingLeft(t, filepath.Join(dir, "images"))
}
