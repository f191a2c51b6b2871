package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/test/lab"
)

// smallMakefile is that of a kernel in small, which a minute's work would
// build. %LINUX% is what its target linux does first.
const smallMakefile = `VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 7
EXTRAVERSION =
olddefconfig:
	@true
linux:
	%LINUX%
	@gcc -DRELEASE='"6.12.7$(LOCALVERSION)"' -o $(O)/linux $(CURDIR)/kernel.c
`

// noKernel says what a kernel does of itself, and does not boot.
const noKernel = `#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
	if (argc == 2 && !strcmp(argv[1], "--version")) puts(RELEASE);
	if (argc == 2) return 0;
	puts("Kernel panic - not syncing: there is nothing here");
	return 1;
}
`

// smallSource makes a source that the build's user can read.
func smallSource(t *testing.T, h *lab.Host, name, does string) string {
	t.Helper()
	dir := filepath.Join(h.Dir, name)
	for file, text := range map[string]string{
		"Makefile": strings.Replace(smallMakefile, "%LINUX%", does, 1), "kernel.c": noKernel, "arch/um/Makefile": "", "Kconfig": "",
	} {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestKernelBuildFails builds what is no kernel: nothing of it is offered or
// left, and it is said why.
func TestKernelBuildFails(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.Start()
	before := h.Sublet("kernel", "list", "-q")
	builds := filepath.Join(h.StateDir, "kernel-builds")
	nothingLeft := func() {
		t.Helper()
		if list := h.Sublet("kernel", "list", "-q"); list != before {
			t.Errorf("the kernels are %q now, not %q", list, before)
		}
		h.Eventually("the folder of the build is gone", func() bool { _, err := os.Stat(builds); return os.IsNotExist(err) })
	}

	t.Log("what does not compile")
	r := h.Try("kernel", "build", "--source", smallSource(t, h, "wrong", "@echo 'fs/x.c:7: error: no such thing' >&2; exit 1"))
	if r.Code != 1 || !strings.Contains(r.Stderr, "fs/x.c:7: error: no such thing") || !strings.Contains(r.Stderr, filepath.Join(h.StateDir, "kernel-logs")) {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	nothingLeft()

	t.Log("what does not boot")
	r = h.Try("kernel", "build", "--source", smallSource(t, h, "mute", "@true"))
	if r.Code != 1 || !strings.Contains(r.Stderr, "does not boot with isolation strict") || !strings.Contains(r.Stderr, "there is nothing here") {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	nothingLeft()
	logs, err := filepath.Glob(filepath.Join(h.StateDir, "kernel-logs", "*.log"))
	if err != nil || len(logs) != 2 {
		t.Errorf("the logs are %q, %v", logs, err)
	}

	t.Log("what is no source")
	if r := h.Try("kernel", "build", "--source", h.Dir); r.Code != 2 || !strings.Contains(r.Stderr, "is not the source of a Linux kernel") {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}

	t.Log("a daemon that is killed ends its build, and the next one sweeps")
	slow := smallSource(t, h, "slow", "@echo begun; sleep 3600")
	h.Sublet("kernel", "build", "--source", slow, "--no-wait")
	if r := h.Try("kernel", "build", "--source", slow, "--no-wait"); r.Code != 4 || !strings.Contains(r.Stderr, "is being built already") {
		t.Errorf("a second build: exit code %d\n%s", r.Code, r.Stderr)
	}
	h.Eventually("it compiles", func() bool { return worksIn(t, slow) })
	h.Kill()
	<-h.Gone()
	h.Eventually("the build ends with it", func() bool { return !worksIn(t, slow) })
	if _, err := os.Stat(builds); err != nil {
		t.Errorf("the killed daemon left nothing to sweep: %v", err)
	}
	h.Start()
	nothingLeft()
}

// worksIn tells whether a process works in a folder.
func worksIn(t *testing.T, dir string) bool {
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
