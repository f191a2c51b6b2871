//go:build linux

// Package vm tests what needs another kernel than that of the machine that the
// tests run on: it boots Debian's in QEMU, emulated, or where that suffices a
// guest's as a process, which is many times faster, with a program for a first
// process. Nothing of the machine is touched.
package vm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"sublet/test/lab"
)

// kernelPackage names the package that depends on the newest kernel for
// virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// machine says what is to be booted.
type machine struct {
	// pkg is the package whose tests are run, built with tags.
	pkg, tags string
	tests     []string
	// variable is one that they have in their environment.
	variable string
	// modules are those that Debian's kernel needs beside its disk's; what they
	// need themselves is found.
	modules []string
	// programs are those of this machine that it has too, with their libraries,
	// and files more, by their path there.
	programs []string
	files    map[string]string
	disk     int64 // bytes
}

// patience is how long a machine may take: it is emulated, and a kernel may be
// built beside it.
const patience = 40 * time.Minute

// TestCgroupVersion2 runs the tests of control groups where they are of
// version 2, and the disk is one.
func TestCgroupVersion2(t *testing.T) {
	t.Parallel()
	tests := []string{"TestMemory", "TestProcessorQuota", "TestProcesses", "TestDiskRate", "TestDelegated"}
	machine{
		pkg: "./internal/keeper/cgroup", tests: tests, variable: "CGROUP_DISK=/dev/vda",
		// A scheduler for the disk that knows weights.
		modules: []string{"bfq"}, disk: 64 << 20,
	}.run(t, emulated)
}

// lvmConf is for a machine without udev, where LVM makes its devices itself.
const lvmConf = `activation { udev_sync = 0 udev_rules = 0 verify_udev_operations = 1 monitoring = 0 }
devices { scan = ["/dev"] obtain_device_list_from_udev = 0 external_device_info_source = "none" use_devicesfile = 0 }
global { use_lvmpolld = 0 event_activation = 0 }
backup { backup = 0 archive = 0 }
`

// TestLVM runs the tests of disks on logical volumes where there is a device
// mapper.
func TestLVM(t *testing.T) {
	t.Parallel()
	machine{
		pkg: "./internal/disk", tags: "lvm", tests: []string{"TestConformanceThick", "TestConformanceThin", "TestLVMFaults"}, variable: "DISK_LVM=/dev/ubda",
		programs: []string{"/usr/sbin/lvm", "/usr/sbin/mke2fs", "/usr/sbin/thin_check", "/usr/sbin/thin_repair", "/usr/sbin/thin_dump"},
		files:    map[string]string{"/etc/lvm/lvm.conf": lvmConf, "/etc/mke2fs.conf": "[defaults]\nbase_features = has_journal,extent\n"},
		disk:     448 << 20,
	}.run(t, userMode)
}

// files are what a machine boots from, and its kernel's command line.
type files struct {
	dir, initrd, disk, cmdline string
}

// run fails unless all tests pass in a machine that start starts.
func (m machine) run(t *testing.T, start func(*testing.T, machine, files) *exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	f := files{dir: dir, initrd: filepath.Join(dir, "initrd"), disk: filepath.Join(dir, "disk")}
	if err := errors.Join(os.WriteFile(f.disk, nil, 0o600), os.Truncate(f.disk, m.disk)); err != nil {
		t.Fatal(err)
	}
	// What the kernel does not know itself becomes its first process's
	// environment, and what is behind the hyphens its arguments.
	// Warnings of the kernel are shown: they may say what a test waits for.
	f.cmdline = "loglevel=5 panic=-1 " + m.variable + " -- -test.v -test.timeout=" + patience.String() + " -test.run=^(" + strings.Join(m.tests, "|") + ")$"
	cmd := start(t, m, f)
	said, err := cmd.CombinedOutput()
	out := strings.ReplaceAll(string(said), "\r", "")
	if err != nil {
		t.Errorf("%s: %v", cmd.Path, err)
	}
	for _, name := range m.tests {
		if !strings.Contains(out, "--- PASS: "+name) {
			t.Errorf("%s did not pass", name)
		}
	}
	if !strings.Contains(out, "boot: the test ended with 0") || t.Failed() {
		t.Errorf("the machine said:\n%s", out)
	}
}

// emulated is the machine in QEMU, with Debian's kernel.
func emulated(t *testing.T, m machine, f files) *exec.Cmd {
	t.Helper()
	k := kernel(t)
	images, err := filepath.Glob(filepath.Join(k, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("kernels in %s: %q, %v", k, images, err)
	}
	m.initramfs(t, f, k)
	return exec.CommandContext(limited(t), "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "768",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", images[0], "-initrd", f.initrd, "-append", "console=ttyS0 "+f.cmdline,
		"-drive", "file="+f.disk+",format=raw,if=virtio,cache=unsafe")
}

// userMode is the machine as a process, with the kernel of our guests, which
// has all in itself.
func userMode(t *testing.T, m machine, f files) *exec.Cmd {
	t.Helper()
	m.initramfs(t, f, "")
	args := []string{"mem=768M", "initrd=" + f.initrd, "ubd0=" + f.disk, "con=null", "con0=null,fd:1"}
	cmd := exec.CommandContext(limited(t), filepath.Join(lab.Kernel(t, lab.Newest), "linux"), append(args, strings.Fields(f.cmdline)...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+f.dir)
	return cmd
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kernel returns a folder with what is in the package of Debian's kernel, as
// it would be below /, and modules.dep. It is kept for later runs.
func kernel(t *testing.T) string {
	t.Helper()
	depends := run(t, "/", "apt-cache", "depends", "--important", kernelPackage)
	_, name, found := strings.Cut(depends, "Depends: ")
	name, _, _ = strings.Cut(strings.TrimSpace(name), "\n")
	if !found {
		t.Fatalf("apt does not know %s; run `apt-get update`\n%s", kernelPackage, depends)
	}
	cache := filepath.Dir(lab.Images(t))
	dir := filepath.Join(cache, name)
	unlock, err := lab.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	made, err := os.MkdirTemp(cache, "kernel")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(made) //nolint:errcheck // renamed, or of no use
	run(t, made, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	archives, err := filepath.Glob(filepath.Join(made, "*.deb"))
	if err != nil || len(archives) != 1 {
		t.Fatalf("apt made %q, %v", archives, err)
	}
	tree := filepath.Join(made, "tree")
	run(t, made, "dpkg-deb", "-x", archives[0], tree)
	release := strings.TrimPrefix(name, "linux-image-")
	// Debian 13 and later have modules below /usr.
	if _, err := os.Stat(filepath.Join(tree, "lib")); errors.Is(err, fs.ErrNotExist) {
		if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
			t.Fatal(err)
		}
	}
	run(t, made, "/sbin/depmod", "-b", tree, release)
	if err := os.Rename(tree, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// initramfs makes the machine's first files: the tests, what starts them, and
// the modules of a kernel's tree, if any, with the order to load them in.
func (m machine) initramfs(t *testing.T, to files, tree string) {
	t.Helper()
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	program, first := filepath.Join(to.dir, "test"), filepath.Join(to.dir, "boot")
	run(t, root, "go", "test", "-c", "-tags", m.tags, "-o", program, m.pkg)
	run(t, root, "go", "build", "-o", first, "./test/vm/boot")
	f, err := os.Create(to.initrd)
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.Newc.Writer(f)
	add := func(records ...cpio.Record) {
		if err := cpio.WriteRecords(w, records); err != nil {
			t.Fatal(err)
		}
	}
	made := map[string]bool{"/": true, "/dev": true, "/modules": true}
	var parent func(name string)
	parent = func(name string) {
		if dir := filepath.Dir(name); !made[dir] {
			parent(dir)
			made[dir] = true
			add(cpio.Directory(dir[1:], 0o755))
		}
	}
	content := func(name, text string) {
		if parent(name); !made[name] {
			made[name] = true
			add(cpio.StaticFile(name[1:], text, 0o755))
		}
	}
	file := func(name, from string) {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		content(name, string(text))
	}
	const console = 5<<8 | 1
	add(cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, console>>8, console&0xff), cpio.Directory("modules", 0o755))
	file("/init", first)
	file("/test", program)
	for name, text := range m.files {
		content(name, text)
	}
	for _, name := range m.programs {
		file(name, name)
		for _, library := range libraries(t, name) {
			file(library, library)
		}
	}
	var modules, order []string
	if tree != "" {
		modules = append([]string{"virtio_pci", "virtio_blk"}, m.modules...)
	}
	for _, module := range modules {
		release := strings.TrimPrefix(filepath.Base(tree), "linux-image-")
		needs := run(t, tree, "/sbin/modprobe", "-d", tree, "-S", release, "--show-depends", module)
		for line := range strings.Lines(needs) {
			kind, from, _ := strings.Cut(strings.TrimSpace(line), " ")
			if name := filepath.Base(from); kind == "insmod" && !slices.Contains(order, name) {
				file("/modules/"+name, from)
				order = append(order, name)
			}
		}
	}
	add(cpio.StaticFile("modules/order", strings.Join(order, "\n"), 0o644))
	if err := errors.Join(cpio.WriteTrailer(w), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// libraries are what a program of this machine needs to run, with its loader,
// by the paths under which they are looked for.
func libraries(t *testing.T, program string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(run(t, "/", "ldd", program)) {
		for word := range strings.FieldsSeq(line) {
			if strings.HasPrefix(word, "/") {
				all = append(all, word)
			}
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s has no libraries; install the packages lvm2 and thin-provisioning-tools", program)
	}
	return all
}
