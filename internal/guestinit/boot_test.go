package guestinit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/guest/uml"
	"sublet/internal/guestinit"
	"sublet/internal/hang"
	"sublet/internal/kernel"
	"sublet/internal/nstest"
	"sublet/internal/seed"
	"sublet/internal/vps"
)

// These tests boot real guests with the smallest image there is: busybox,
// statically linked. They need the packages busybox-static, e2fsprogs,
// iproute2 and user-mode-linux, and root.

// bootTimeout bounds one boot, from start to power-off; it takes 2 s alone on
// a machine.
const bootTimeout = hang.After

// initScript is /sbin/init of the image. Each fact is one line, "name=value".
const initScript = `#!/bin/sh
PATH=/bin:/sbin
fact() { echo "fact $1=$(shift; "$@" 2>&1 | tr '\n' ' ')"; }
fact pid echo $$
fact hostname hostname
fact hosts grep alice /etc/hosts
fact keys cat /root/.ssh/authorized_keys
fact hostkey sha256sum /etc/ssh/ssh_host_ed25519_key
fact machine cat /etc/machine-id
fact resolv grep nameserver /etc/resolv.conf
fact address ip -4 -o addr show
fact route ip route
fact mounts cat /proc/mounts
fact modules ls /lib/modules/$(uname -r)/modules.dep
fact ipv6 ping -c 1 -W 5 ::1
fact gateway ping -c 1 -W 5 10.213.0.1
fact modprobe modprobe iptable_filter
fact firewall grep iptable_filter /proc/modules
fact console test -c /dev/console
fact args echo $*
fact swap cat /proc/swaps
fact size df -m /
fact disks ls -l /dev/disk/by-id /dev/net/tun /dev/fd
[ -n "$1" ] && nc -l -p 7 -e cat /etc/hostname </dev/null
poweroff -f
`

// lab is a host with one guest's parts.
type lab struct {
	t      *testing.T
	net    *nstest.NS
	dir    string
	kernel vps.Kernel
	disk   string
	extra  string // the first extra disk; "" for none
	seed   seed.Seed
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), net: nstest.New(t)}
	init := filepath.Join(l.dir, "sublet-init")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "sublet/cmd/sublet-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if info, err := os.Stat(init); err != nil || info.Size() > 4<<20 {
		t.Errorf("the early-boot program is larger than 4 MiB: %v, %v", info, err)
	}
	var err error
	if l.kernel, err = kernel.New(filepath.Join(l.dir, "kernels"), kernel.Options{InitPath: init}).Default(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.seed = seed.Seed{
		GuestID: "g1", Hostname: "alice", SSHKeys: []string{"ssh-ed25519 AAAA alice@laptop"},
		MAC: seed.MAC{2, 'S', 'L', 213, 0, 2}, Address: netip.MustParseAddr("10.213.0.2"), Gateway: netip.MustParseAddr("10.213.0.1"),
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, DiskSize: 256 * vps.MiB, KernelRelease: l.kernel.Release,
	}
	for _, args := range []string{
		"tuntap add sl-alice mode tap vnet_hdr", "addr add 10.213.0.1/32 dev sl-alice",
		"link set sl-alice up", "route add 10.213.0.2/32 dev sl-alice",
	} {
		l.net.Exec("ip", strings.Fields(args)...)
	}
	return l
}

// makeTree makes a root filesystem with busybox. Its /lib is an absolute
// symbolic link, as in images with a merged /usr made by hand.
func (l *lab) makeTree() (root string) {
	l.t.Helper()
	root = filepath.Join(l.dir, "root")
	for _, d := range []string{"bin", "sbin", "etc/ssh", "usr/lib"} {
		l.must(os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	box, err := exec.LookPath("busybox")
	l.must(err)
	program, err := os.ReadFile(box)
	l.must(err)
	l.must(os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	l.must(os.Symlink("/usr/lib", filepath.Join(root, "lib")))
	for applet := range strings.FieldsSeq("sh cat df echo grep hostname ip ls nc ping poweroff sha256sum test tr uname modprobe") {
		l.must(os.Symlink("/bin/busybox", filepath.Join(root, "bin", applet)))
	}
	l.must(os.Symlink("/bin/busybox", filepath.Join(root, "sbin/modprobe")))
	l.must(os.WriteFile(filepath.Join(root, "sbin/init"), []byte(initScript), 0o755))
	return root
}

// makeDisk makes a filesystem of 32 MiB on a disk of 256 MiB.
func (l *lab) makeDisk() {
	l.t.Helper()
	root := l.makeTree()
	l.newDisk(32 << 20)
	l.net.Exec("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, l.disk)
	l.must(os.Truncate(l.disk, 256<<20))
}

func (l *lab) newDisk(size int64) {
	l.t.Helper()
	l.disk = filepath.Join(l.dir, "disk.img")
	l.must(os.WriteFile(l.disk, nil, 0o600))
	l.must(os.Truncate(l.disk, size))
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// boot starts the guest, calls meanwhile beside it when there is one, waits
// for its power-off, and returns what the console showed.
func (l *lab) boot(disk, seedPath string, meanwhile func(context.Context)) string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), bootTimeout)
	defer cancel()
	args := []string{"con0=null,fd:1"}
	if meanwhile != nil {
		args = append(args, "--", "argument")
	}
	cmd := l.command(ctx, "96M", disk, seedPath, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	l.must(cmd.Start())
	if meanwhile != nil {
		meanwhile(ctx)
	}
	// Debian's kernel was seen to abort, rarely, when all was over and its
	// consoles were closed. That is not what is tested here.
	if err := cmd.Wait(); err != nil && !strings.Contains(out.String(), "reboot: System halted") {
		l.t.Fatalf("the guest ended with %v:\n%s", err, &out)
	}
	return out.String()
}

// command returns the command that starts the guest.
func (l *lab) command(ctx context.Context, memory, disk, seedPath string, more ...string) *exec.Cmd {
	l.t.Helper()
	args := []string{
		"mem=" + memory, "uml_dir=" + l.dir + "/", "umid=test", "root=/dev/ubda", "rw", "ubd0d=" + disk, "ubd2rd=" + l.kernel.Modules,
		"initrd=" + l.kernel.Initrd, "vec0:transport=tap,ifname=sl-alice,depth=128,gro=1,mac=" + l.seed.MAC.String(),
		"con=null", "quiet",
	}
	if seedPath != "" {
		args = append(args, "ubd1rd="+seedPath)
	}
	if l.extra != "" {
		args = append(args, "ubd3="+l.extra)
	}
	preload, err := uml.Preload(ctx, l.dir)
	l.must(err)
	cmd := exec.CommandContext(ctx, l.kernel.Path, append(args, more...)...)
	// The preloaded library is for processors with AMX; see its source.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + l.dir, "HOME=" + l.dir}
	if preload != "" {
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+preload)
	}
	return cmd
}

// facts returns what the image's init said.
func facts(console string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(console) {
		if fact, ok := strings.CutPrefix(line, "fact "); ok {
			name, value, _ := strings.Cut(strings.TrimSpace(fact), "=")
			found[name] = strings.TrimSpace(value)
		}
	}
	return found
}

// ask connects to the guest until it answers.
func (l *lab) ask(ctx context.Context) (answer string) {
	dialer := net.Dialer{Timeout: time.Second}
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp4", "10.213.0.2:7")
		if err != nil {
			// A refusal comes at once; without an answer the timeout is the pause.
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		data, err := io.ReadAll(conn)
		if err = errors.Join(err, conn.Close()); err != nil {
			l.t.Error(err)
		}
		return strings.TrimSpace(string(data))
	}
	return ""
}

func TestBoot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.makeDisk()
	seedPath, _, err := seed.Set(t.Context(), l.dir, "g1", l.seed, uint32(os.Getuid()))
	l.must(err)
	var answer string
	console := l.boot(l.disk, seedPath, func(ctx context.Context) { answer = l.ask(ctx) })
	if answer != "alice" {
		t.Errorf("from the network the guest is %q", answer)
	}
	first := facts(console)
	modules := "/lib/modules/" + l.kernel.Release + "/modules.dep"
	for name, want := range map[string]string{
		"pid": "1", "hostname": "alice", "hosts": "10.213.0.2 alice", "keys": "ssh-ed25519 AAAA alice@laptop",
		"hostkey": "/etc/ssh/ssh_host_ed25519_key", "resolv": "nameserver 9.9.9.9", "address": "inet 10.213.0.2/32",
		"route": "default via 10.213.0.1", "mounts": "/dev/ubda / ext4 rw", "modules": modules, "ipv6": "1 packets received",
		"gateway": "1 packets received", "firewall": "iptable_filter", "args": "argument",
	} {
		if !strings.Contains(first[name], want) {
			t.Errorf("%s is %q, without %q", name, first[name], want)
		}
	}
	if first["modprobe"] != "" || strings.Contains(first["modules"], "No such") {
		t.Errorf("modprobe %q, modules %q", first["modprobe"], first["modules"])
	}
	if got := filesystemSize(t, l.disk); got != int64(l.seed.DiskSize) {
		t.Errorf("the filesystem has %d bytes, not %d", got, l.seed.DiskSize)
	}
	// poweroff -f does not unmount, so the journal is pending. Replaying it
	// counts as a correction (exit status 1); nothing else may need one.
	_, _ = l.net.Try("e2fsck", "-fy", "-E", "journal_only", l.disk)
	l.net.Exec("e2fsck", "-fn", l.disk)
	second := facts(l.boot(l.disk, seedPath, func(ctx context.Context) { l.ask(ctx) }))
	for _, name := range []string{"hostkey", "machine", "hostname", "keys"} {
		if first[name] == "" || first[name] != second[name] {
			t.Errorf("%s was %q and is %q after a second boot", name, first[name], second[name])
		}
	}
	if t.Failed() {
		t.Logf("console:\n%s", console)
	}
}

func TestBootWithoutSeed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.makeDisk()
	console := l.boot(l.disk, "", nil)
	if got := facts(console); got["pid"] != "1" || !strings.Contains(got["modules"], "modules.dep") {
		t.Errorf("the image did not start:\n%s", console)
	}
	if !strings.Contains(console, "sublet: could not read the seed: ") {
		t.Errorf("nothing was said:\n%s", console)
	}
}

func TestBootUnmountableRoot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	empty := filepath.Join(l.dir, "empty.img")
	l.must(os.WriteFile(empty, make([]byte, 1<<20), 0o600))
	console := l.boot(empty, "", nil)
	if !strings.Contains(console, guestinit.FatalPrefix+"the root disk /dev/ubda cannot be mounted") || strings.Contains(console, "panic") {
		t.Errorf("console:\n%s", console)
	}
	noInit := filepath.Join(l.dir, "noinit.img")
	l.must(os.WriteFile(noInit, nil, 0o600))
	l.must(os.Truncate(noInit, 16<<20))
	l.net.Exec("mke2fs", "-q", "-F", "-t", "ext4", noInit)
	console = l.boot(noInit, "", nil)
	if !strings.Contains(console, guestinit.FatalPrefix+"the root disk has no program to start") {
		t.Errorf("console:\n%s", console)
	}
}

// filesystemSize reads the size of an ext4 filesystem from its superblock.
func filesystemSize(t *testing.T, disk string) int64 {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	var super [1024]byte
	if _, err := f.ReadAt(super[:], 1024); err != nil {
		t.Fatal(err)
	}
	return int64(binary.LittleEndian.Uint32(super[4:])) * (1024 << binary.LittleEndian.Uint32(super[24:]))
}
