package kernel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// host is a host with a small stand-in for a kernel: a program that answers
// as linux.uml does.
type host struct {
	binary, modules, init, dir string
}

const standIn = `#!/bin/sh
case $1 in
--version) echo 6.1.9-test ;;
--showconfig) printf 'CONFIG_MODULES=y\nCONFIG_IPV6=m\nCONFIG_NF_TABLES=m\n# CONFIG_NF_TABLES_INET is not set\nCONFIG_NF_TABLES_BRIDGE=m\nCONFIG_HOSTFS=y\n' ;;
--help) printf 'User Mode Linux v6.1\\n\\nmem=<Amount of memory>\\n    This controls how much.\\n\\n' ;;
*) exit 1 ;;
esac
`

func newHost(t *testing.T) host {
	t.Helper()
	dir := t.TempDir()
	h := host{
		binary: filepath.Join(dir, "linux.uml"), modules: filepath.Join(dir, "modules"),
		init: filepath.Join(dir, "sublet-init"), dir: filepath.Join(dir, "kernels"),
	}
	write(t, h.binary, standIn, 0o755)
	write(t, filepath.Join(h.modules, "6.1.9-test/modules.dep"), "kernel/a.ko:\n", 0o644)
	write(t, filepath.Join(h.modules, "6.1.9-test/kernel/a.ko"), strings.Repeat("a", 100_000), 0o644)
	// The smallest static program at hand; a test never runs it.
	write(t, h.init, staticProgram, 0o755)
	return h
}

// staticProgram is the header of an ELF file for x86-64 without sections or
// segments: an ELF file, and nothing in it asks for an interpreter.
var staticProgram = "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\x3e\x00\x01\x00\x00\x00" +
	strings.Repeat("\x00", 28) + "\x40\x00\x38\x00\x00\x00\x40\x00\x00\x00\x00\x00"

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// Anew, so that a program that runs is no obstacle.
	if err := os.WriteFile(path+"~", []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

func (h host) catalog() *Catalog {
	return New(h.dir, Options{Binaries: []string{"/nonexistent/linux", h.binary}, ModulesDir: h.modules, InitPath: h.init})
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func mustDefault(t *testing.T, c *Catalog) vps.Kernel {
	t.Helper()
	k, err := c.Default(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestDefault(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	k := mustDefault(t, c)
	if k.Name != "uml/6.1.9-test" || k.Release != "6.1.9-test" {
		t.Errorf("got %+v", k)
	}
	for path, mode := range map[string]os.FileMode{k.Path: 0o555, k.Initrd: 0o444, k.Modules: 0o444} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", k.Modules).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "debugfs", "-R", "cat /kernel/a.ko", k.Modules).Output()
	if err != nil || len(out) != 100_000 {
		t.Errorf("the module has %d bytes, %v", len(out), err)
	}
	before := names(t, h.dir)
	if len(before) != 4 {
		t.Errorf("the folder has %q", before)
	}
	// Another daemon, later: the same answer, and nothing is made.
	if diff := cmp.Diff(k, mustDefault(t, h.catalog())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before, names(t, h.dir)); diff != "" {
		t.Error(diff)
	}
	list, err := c.List(t.Context())
	if err != nil || !cmp.Equal(list, []vps.Kernel{k}) {
		t.Errorf("list: %+v, %v", list, err)
	}
}

func TestUpgradeAndPrune(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	old := mustDefault(t, c)
	write(t, h.init, staticProgram+"newer", 0o755)
	now := mustDefault(t, c)
	if now.Initrd == old.Initrd || now.Path != old.Path || now.Modules != old.Modules {
		t.Errorf("a new early-boot program: %+v became %+v", old, now)
	}
	write(t, h.binary, standIn+"# rebuilt\n", 0o755)
	last := mustDefault(t, c)
	if last.Path == now.Path || last.Initrd != now.Initrd {
		t.Errorf("a new kernel: %+v became %+v", now, last)
	}
	write(t, filepath.Join(h.dir, "of-somebody-else"), "", 0o644)
	if err := c.Prune(t.Context(), []vps.Kernel{old}); err != nil {
		t.Fatal(err)
	}
	if list, err := c.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("left: %+v, %v", list, err)
	}
	if err := c.Prune(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if list, err := c.List(t.Context()); err != nil || !cmp.Equal(list, []vps.Kernel{last}) {
		t.Errorf("left: %+v, %v", list, err)
	}
	if got := names(t, h.dir); len(got) != 5 {
		t.Errorf("the folder has %q", got)
	}
}

func TestRepair(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	k := mustDefault(t, c)
	if err := os.Remove(k.Modules); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(h.dir, tempPrefix+"modules-of-a-killed-run"), "half", 0o600)
	if list, err := c.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("an incomplete kernel is listed: %+v, %v", list, err)
	}
	if diff := cmp.Diff(k, mustDefault(t, c)); diff != "" {
		t.Error(diff)
	}
	if got := names(t, h.dir); len(got) != 4 {
		t.Errorf("the folder has %q", got)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(*testing.T, *host)
		code  vps.Code
		say   string
	}{
		"kernel":        {func(_ *testing.T, h *host) { h.binary = "/nonexistent" }, vps.CodeNotFound, "apt-get install user-mode-linux"},
		"program":       {func(_ *testing.T, h *host) { h.init = "/nonexistent" }, vps.CodeNotFound, "sublet-init"},
		"not a kernel":  {func(_ *testing.T, h *host) { h.binary = "/bin/echo" }, vps.CodeInternal, "no kernel for User Mode Linux"},
		"broken kernel": {func(t *testing.T, h *host) { t.Helper(); write(t, h.binary, "#!/bin/false\n", 0o755) }, vps.CodeInternal, "does not run"},
		"no program":    {func(t *testing.T, h *host) { t.Helper(); write(t, h.init, "text", 0o755) }, vps.CodeInternal, "not a program"},
		"not static":    {func(_ *testing.T, h *host) { h.init = "/usr/bin/env" }, vps.CodeInternal, "CGO_ENABLED=0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			tc.spoil(t, &h)
			_, err := h.catalog().Default(t.Context())
			if vps.ErrorCode(err) != tc.code || !strings.Contains(vps.ErrorMessage(err), tc.say) {
				t.Errorf("got %v", err)
			}
			for _, n := range names(t, h.dir) {
				if strings.HasPrefix(n, tempPrefix) || strings.HasPrefix(n, "uml-") {
					t.Errorf("left %s", n)
				}
			}
		})
	}
}

func TestNoModules(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.modules = t.TempDir()
	c := h.catalog()
	k := mustDefault(t, c)
	if k.Modules != "" {
		t.Errorf("modules %q", k.Modules)
	}
	f, err := c.Features(t.Context(), k)
	if err != nil || f.IPv6 {
		t.Errorf("a module counts without a modules disk: %+v, %v", f, err)
	}
}

// mountTemp mounts an empty filesystem at dir until the test ends.
func mountTemp(t *testing.T, dir string, flags uintptr, data string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestFullDisk makes the folder on a filesystem of 2 MiB.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for name, modules := range map[string]int{"known before": 8 << 20, "found out": 1_950_000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			write(t, filepath.Join(h.modules, "6.1.9-test/kernel/b.ko"), strings.Repeat("b", modules), 0o644)
			nstest.New(t) // a mount namespace of our own
			mountTemp(t, h.dir, 0, "size=2m")
			_, err := h.catalog().Default(t.Context())
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(vps.ErrorMessage(err), "free some space") {
				t.Errorf("got %v", err)
			}
			for _, n := range names(t, h.dir) {
				if strings.HasPrefix(n, tempPrefix) || strings.HasPrefix(n, "modules-") || strings.HasPrefix(n, "uml-") {
					t.Errorf("left %s", n)
				}
			}
			if err := unix.Mount("", h.dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
				t.Fatal(err)
			}
			mustDefault(t, h.catalog())
		})
	}
}

func TestNoexecFolder(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	nstest.New(t)
	mountTemp(t, h.dir, unix.MS_NOEXEC, "")
	c := h.catalog()
	k := mustDefault(t, c)
	if k.Path != h.binary {
		t.Errorf("path %s", k.Path)
	}
	if list, err := c.List(t.Context()); err != nil || !cmp.Equal(list, []vps.Kernel{k}) {
		t.Errorf("list: %+v, %v", list, err)
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.catalog().Default(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := names(t, h.dir); len(got) != 0 {
		t.Errorf("left %q", got)
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := h.catalog().Default(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := names(t, h.dir); len(got) != 4 {
		t.Errorf("the folder has %q", got)
	}
}

func TestInitrd(t *testing.T) {
	t.Parallel()
	const program = "program"
	var data, again bytes.Buffer
	if err := writeInitrd(&data, strings.NewReader(program), int64(len(program))); err != nil {
		t.Fatal(err)
	}
	if err := writeInitrd(&again, strings.NewReader(program), int64(len(program))); err != nil || !bytes.Equal(data.Bytes(), again.Bytes()) {
		t.Errorf("the same program gives another archive: %v", err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(data.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, r := range records {
		got[r.Name] = r.Mode
		if r.Name == "dev/console" && (r.Rmajor != 5 || r.Rminor != 1) {
			t.Errorf("console is %d:%d", r.Rmajor, r.Rminor)
		}
		if r.Name == "init" {
			if text, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize))); err != nil || string(text) != program {
				t.Errorf("init holds %q, %v", text, err)
			}
		}
	}
	want := map[string]uint64{
		"dev": 0o40755, "dev/console": 0o20600, "proc": 0o40555, "root": 0o40755, "sys": 0o40555, "init": 0o100755,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFeatures(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	got, err := c.Features(t.Context(), mustDefault(t, c))
	if err != nil {
		t.Fatal(err)
	}
	want := Features{IPv6: true, NFTablesBridge: true, Modules: true, Hostfs: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestPackaged makes the files of the kernel that is installed. It needs the
// package user-mode-linux.
func TestPackaged(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := New(h.dir, Options{InitPath: h.init})
	k := mustDefault(t, c)
	if k.Modules == "" {
		t.Error("no modules")
	}
	f, err := c.Features(t.Context(), k)
	if err != nil || !f.IPv6 || !f.Iptables || !f.Modules {
		t.Errorf("features %+v, %v", f, err)
	}
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", k.Modules).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// TestBusy has a kernel that somebody still writes to be tried again.
func TestBusy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	f, err := os.OpenFile(h.binary, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan error)
	go func() {
		_, err := output(t.Context(), h.binary, "--version")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Errorf("while it is written to: %v", err)
	case <-time.After(100 * time.Millisecond):
		err := f.Close()
		if err := errors.Join(err, <-answer); err != nil {
			t.Error(err)
		}
		return
	}
	_ = f.Close()
}
