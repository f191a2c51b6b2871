package fsusage

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"sublet/internal/vps"
)

// killedFilesystems are made by mkfs and lie on the guest's disks in this
// order, which are /dev/ubda and so on.
var killedFilesystems = []struct {
	kind, mkfs string
	dirty      []vps.FilesystemState // what a report may say after the kill
}{
	{"ext4", "mke2fs -q -t ext4", needsRecovery},
	{"ext4", "mke2fs -q -t ext4 -O bigalloc,meta_bg,^resize_inode", needsRecovery},
	{"ext3", "mke2fs -q -t ext3", needsRecovery},
	{"ext2", "mke2fs -q -t ext2", []vps.FilesystemState{vps.FilesystemInUse}},
	{"xfs", "mkfs.xfs -q -m rmapbt=1", needsRecovery},
	{"xfs", "mkfs.xfs -q -m crc=0", needsRecovery},
	{"btrfs", "mkfs.btrfs -q", []vps.FilesystemState{vps.FilesystemClean, vps.FilesystemNeedsRecovery}},
	{"btrfs", "mkfs.btrfs -q -M -d dup -m dup", []vps.FilesystemState{vps.FilesystemClean, vps.FilesystemNeedsRecovery}},
}

var needsRecovery = []vps.FilesystemState{vps.FilesystemNeedsRecovery}

// killedInit is /init of a guest. It mounts all disks and tells what their
// kernel says of them. Told to, it writes then until it is killed; else it
// ends in order.
const killedInit = `#!/bin/busybox sh
PATH=/bin
busybox mount -t proc none /proc; busybox mount -t devtmpfs none /dev
each() { for d in a b c d e f g h; do $1 $d; done; }
fill() {
	busybox mkdir /$1/d
	i=0; while [ $i -lt 20 ]; do i=$((i+1)); busybox head -c 500000 /dev/zero > /$1/d/$i; done
}
tell() { echo "fact $1 $(busybox stat -f -c '%S %a %c %d' /$1)"; }
enter() { busybox mkdir /$1; busybox mount -t $(busybox sed -n "s/^$1 //p" /kinds) -o noatime /dev/ubd$1 /$1 || echo "fact $1 cannot be mounted"; }
leave() { busybox umount /$1; }
settle() { busybox fsfreeze --freeze /$1; busybox fsfreeze --unfreeze /$1; }
churn() { busybox rm -f /$1/d/$((n-1)); busybox dd if=/dev/zero of=/$1/d/$n bs=9000 count=1 conv=fsync 2> /dev/null; }
each enter
if busybox grep -q churn /proc/cmdline; then
	each fill; each settle; each tell; n=1000
	while :; do n=$((n+1)); each churn; echo "round $n"; done
fi
each settle; each tell; each leave
echo fact end
busybox poweroff -f
`

// killedGuest boots the guest with the images as its disks, until it says last.
// It is killed then if it is to churn, and ends by itself otherwise. The result
// is what it told of each disk.
func killedGuest(t *testing.T, images []string, initrd, last string, args ...string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	args = append(args, "mem=256M", "initrd="+initrd, "con=null", "con0=null,fd:1", "ssl=null", "quiet", "uml_dir="+dir, "umid=killed", "rdinit=/init", "random.trust_cpu=on")
	for i, image := range images {
		args = append(args, fmt.Sprintf("ubd%d=%s", i, image))
	}
	cmd := exec.CommandContext(t.Context(), "linux.uml", args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	facts, said := map[string]string{}, []string{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		said = append(said, line)
		if fact, ok := strings.CutPrefix(line, "fact "); ok {
			name, value, _ := strings.Cut(fact, " ")
			facts[name] = value
		}
		if line == last {
			if err := kill(); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Error(err)
			}
		}
	}
	_ = cmd.Wait() // it was killed
	if len(facts) < len(images) || !strings.Contains(strings.Join(said, "\n"), last) {
		t.Fatalf("the guest said only:\n%s", strings.Join(said, "\n"))
	}
	return facts
}

// killedInitrd makes the guest's first filesystem: busybox and its script.
func killedInitrd(t *testing.T) string {
	t.Helper()
	box, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(box)
	if err != nil {
		t.Fatal(err)
	}
	var kinds strings.Builder
	for i, f := range killedFilesystems {
		fmt.Fprintf(&kinds, "%c %s\n", 'a'+i, f.kind)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w := cpio.Newc.Writer(f)
	for _, r := range []cpio.Record{
		cpio.Directory("bin", 0o755), cpio.Directory("dev", 0o755), cpio.Directory("proc", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("bin/busybox", string(program), 0o755), cpio.StaticFile("init", killedInit, 0o755), cpio.StaticFile("kinds", kinds.String(), 0o644),
	} {
		if err := w.WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKilledGuest kills a guest amid its writing, so that its filesystems have
// logs that were not played back, and looks at their disks. What its own kernel
// says before and after is compared: this is what a user would see.
func TestKilledGuest(t *testing.T) {
	t.Parallel()
	var images []string
	for i, f := range killedFilesystems {
		path := blank(t, strconv.Itoa(i), 400<<20)
		args := append(strings.Fields(f.mkfs), path)
		run(t, args[0], args[1:]...)
		images = append(images, path)
	}
	initrd := killedInitrd(t)
	before := killedGuest(t, images, initrd, "round 1007", "churn")
	var killed []vps.Filesystem
	for i, f := range killedFilesystems {
		fs, err := readPath(t, images[i])
		if err != nil {
			t.Fatalf("%s: %v", f.mkfs, err)
		}
		known := false
		for _, s := range f.dirty {
			known = known || s == fs.State
		}
		if !known || fs.State != vps.FilesystemClean && fs.Approximate == "" {
			t.Errorf("%s: killed, its state is %s (%q)", f.mkfs, fs.State, fs.Approximate)
		}
		killed = append(killed, fs)
	}
	after := killedGuest(t, images, initrd, "fact end")
	for i, f := range killedFilesystems {
		name := string(rune('a' + i))
		fs, err := readPath(t, images[i])
		if err != nil {
			t.Fatalf("%s: %v", f.mkfs, err)
		}
		// The kernel leaves an ext2 marked until fsck has seen it.
		if clean := f.kind != "ext2"; clean != (fs.State == vps.FilesystemClean && fs.Approximate == "" && len(fs.Warnings) == 0) {
			t.Errorf("%s: unmounted, its state is %s (%q, %q)", f.mkfs, fs.State, fs.Approximate, fs.Warnings)
		}
		// Btrfs goes on to free what was deleted until it is unmounted.
		have, want := counts(fs), statfsOf(t, after[name])
		if more := have.available - want.available; f.kind == "btrfs" && more < 1<<20 {
			have.available -= more
		}
		if have != want {
			t.Errorf("%s: unmounted, the report tells %+v, and the guest's kernel %+v", f.mkfs, have, want)
		}
		// All but the last rounds is where it belongs; these are in the logs.
		was, then := counts(killed[i]), statfsOf(t, before[name])
		if off := int64(was.available - then.available); max(off, -off) > 1<<20 {
			t.Errorf("%s: killed, the report tells %+v, and the guest's kernel before %+v", f.mkfs, was, then)
		}
		if off := int64(was.unused - then.unused); was.inodes != then.inodes || max(off, -off) > 10 {
			t.Errorf("%s: killed, the report tells %+v, and the guest's kernel before %+v", f.mkfs, was, then)
		}
	}
}

// usable is what statfs(2) tells of a filesystem, in bytes and inodes.
type usable struct{ available, inodes, unused uint64 }

func counts(fs vps.Filesystem) usable {
	return usable{uint64(fs.Available()), fs.MaxInodes, fs.InodesLeft()}
}

func statfsOf(t *testing.T, fact string) (u usable) {
	t.Helper()
	var unit uint64
	if _, err := fmt.Sscan(fact, &unit, &u.available, &u.inodes, &u.unused); err != nil {
		t.Fatalf("%q: %v", fact, err)
	}
	u.available *= unit
	return u
}
