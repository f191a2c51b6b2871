package guestinit_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/seed"
	"sublet/internal/vps"
	testlab "sublet/test/lab"
)

// These tests boot other people's systems: Debian with init systems that are
// not its own. They need mmdebstrap, uml-utilities, and a mirror of Debian for
// the first run.

// rootHash is what crypt(3) makes of "test".
const rootHash = "$6$sublet$.bsRme25d6hAWrFF87MaB8clhgrZRyU73yPcpcaduwot6WREUvUSOliRY4C7CGonAxCk5.oPSxQP92.GZannM/"

// systemTimeout bounds what is done with one guest that has a whole system,
// which is at its login within 10 s alone on a machine.
const systemTimeout = hang.After

// basics are the packages that all of them have beside the essential ones.
const basics = ",util-linux,mount,login,procps,kmod,iproute2"

// session is a running guest, seen and typed at from its console.
type session struct {
	t      *testing.T
	lab    *lab
	cmd    *exec.Cmd
	keys   io.Writer
	change chan struct{} // something was shown
	gone   chan struct{} // closed when the guest is over
	mu     sync.Mutex
	shown  bytes.Buffer
	read   int // how much of it was waited for
}

// Write is the guest's, for its console.
func (s *session) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.change <- struct{}{}:
	default:
	}
	return s.shown.Write(b)
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(s.shown.String(), "\r", "")
}

// power starts a guest from a disk.
func (l *lab) power(disk string) *session {
	l.t.Helper()
	seedPath, _, err := seed.Set(l.t.Context(), l.dir, "g1", l.seed, uint32(os.Getuid()))
	l.must(err)
	ctx, cancel := context.WithTimeout(l.t.Context(), systemTimeout)
	l.t.Cleanup(cancel)
	s := &session{t: l.t, lab: l, change: make(chan struct{}, 1), gone: make(chan struct{})}
	s.cmd = l.command(ctx, "256M", disk, seedPath, "con0=fd:0,fd:1")
	s.cmd.Stdout, s.cmd.Stderr = s, s
	keys, err := s.cmd.StdinPipe()
	l.must(err)
	s.keys = keys
	l.must(s.cmd.Start())
	go func() {
		_ = s.cmd.Wait() // how it ended is on the console
		close(s.gone)
	}()
	return s
}

// await returns what was shown before a text, from where the last one ended.
func (s *session) await(what string) string {
	s.t.Helper()
	for {
		text := s.text()
		if at := strings.Index(text[s.read:], what); at >= 0 {
			before := text[s.read : s.read+at]
			s.read += at + len(what)
			return before
		}
		select {
		case <-s.change:
		case <-s.gone:
			s.t.Fatalf("the guest is over, without %q:\n%s", what, s.text())
		}
	}
}

func (s *session) enter(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.keys, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

// login logs root in.
func (s *session) login() {
	s.t.Helper()
	s.await("login: ")
	s.enter("root")
	s.await("Password: ")
	s.enter("test")
	s.await("# ")
	s.enter("stty -echo; PS1=; PATH=/usr/sbin:/usr/bin:/sbin:/bin; TERM=dumb")
}

// run returns what a command prints.
func (s *session) run(command string) string {
	s.t.Helper()
	s.enter("echo be''gin; (" + command + ") 2>&1; echo e''nd")
	s.await("begin\n")
	return strings.TrimSpace(s.await("end\n"))
}

// ctrlAltDel presses it, and waits until the guest is over.
func (s *session) ctrlAltDel() {
	s.t.Helper()
	s.lab.net.Exec("uml_mconsole", filepath.Join(s.lab.dir, "test", "mconsole"), "cad")
	<-s.gone
}

// makeDiskFrom makes a disk of 1 GiB with a copy of a root filesystem, in which
// these files have other contents.
func (l *lab) makeDiskFrom(tree string, files map[string]string) {
	l.t.Helper()
	l.newDisk(400 << 20)
	l.net.Exec("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, l.disk)
	l.changeDisk(files)
}

// changeDisk gives files of a disk other contents, and makes it 1 GiB large.
func (l *lab) changeDisk(files map[string]string) {
	l.t.Helper()
	var commands strings.Builder
	i := 0
	for name, text := range files {
		i++
		file := filepath.Join(l.dir, "file"+strconv.Itoa(i))
		l.must(os.WriteFile(file, []byte(text), 0o644))
		commands.WriteString("rm " + name + "\nwrite " + file + " " + name + "\n")
	}
	script := filepath.Join(l.dir, "commands")
	l.must(os.WriteFile(script, []byte(commands.String()), 0o644))
	l.net.Exec("debugfs", "-w", "-f", script, l.disk)
	l.must(os.Truncate(l.disk, 1<<30))
	l.seed.DiskSize, l.seed.RootPassword, l.seed.Driver = vps.GiB, rootHash, "uml"
}

// goodGuest asks of a guest with its login on the console what every guest has
// to have, and ends it.
func goodGuest(t *testing.T, s *session) {
	t.Helper()
	s.login()
	// The header is less, and so is what does not begin where a page does.
	name, size, _ := strings.Cut(s.run("swapon --show=NAME,SIZE --noheadings --bytes"), " ")
	if n, err := strconv.Atoi(size); err != nil || name != "/sublet.swap" || n > 64<<20 || n < 63<<20 {
		t.Errorf("swap: %q %q", name, size)
	}
	for command, want := range map[string]string{
		"hostname":                "alice",
		"stat -c %n /dev/net/tun": "/dev/net/tun",
		"ip -4 -o addr show vec0": "10.213.0.2/32",
		"ip route":                "default via 10.213.0.1",
		"df -m / | tail -1":       "/dev/ubda",
		"cat /proc/1/comm; tty":   "/dev/tty0",
	} {
		if got := s.run(command); !strings.Contains(got, want) {
			t.Errorf("%s: %q, without %q", command, got, want)
		}
	}
	goodEnd(t, s)
}

// goodEnd switches a guest off with Ctrl-Alt-Del, and looks at what is left.
func goodEnd(t *testing.T, s *session) {
	t.Helper()
	s.ctrlAltDel()
	shown := s.text()
	for _, bad := range []string{"respawning too fast", "anic", "sublet: could not", "Restarting system"} {
		if strings.Contains(shown, bad) {
			t.Errorf("the console shows %q", bad)
		}
	}
	if n := strings.Count(shown, "login: "); n != 1 {
		t.Errorf("%d logins were offered on the console", n)
	}
	if state := s.lab.net.Exec("dumpe2fs", "-h", s.lab.disk); !strings.Contains(state, "Filesystem state:         clean") || strings.Contains(state, "needs_recovery") {
		t.Error("the filesystem was not unmounted")
	}
	s.lab.net.Exec("e2fsck", "-fn", s.lab.disk)
	if t.Failed() {
		t.Logf("console:\n%s", shown)
	}
}

// TestBootBusyboxInit boots a system whose init, like Alpine's, is busybox.
func TestBootBusyboxInit(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	root := l.makeTree()
	l.must(os.Remove(filepath.Join(root, "sbin/init")))
	for applet := range strings.FieldsSeq("login getty stty umount swapoff tty init poweroff") {
		l.must(os.Symlink("/bin/busybox", filepath.Join(root, "sbin", applet)))
	}
	for name, text := range map[string]string{
		"etc/inittab": "::sysinit:/bin/hostname -F /etc/hostname\ntty1::respawn:/sbin/getty 38400 tty1\ntty2::respawn:/sbin/getty 38400 tty2\n" +
			"hvc0::respawn:/sbin/getty 38400 hvc0\n::ctrlaltdel:/sbin/reboot\n::shutdown:/sbin/swapoff -a\n::shutdown:/sbin/umount -a -r\n",
		"etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/shadow": "root:*:1::::::\n", "etc/group": "root:x:0:\n",
		"etc/securetty": "tty1\n", "etc/fstab": oldFstab,
	} {
		l.must(os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	l.must(os.MkdirAll(filepath.Join(root, "root"), 0o700))
	l.must(os.Symlink("/sbin/login", filepath.Join(root, "bin/login")))
	l.seed.Swap = 64 * vps.MiB
	l.makeDiskFrom(root, nil)
	s := l.power(l.disk)
	s.login()
	for _, ask := range [][2]string{
		{"cat /proc/swaps", "/sublet.swap"},
		{"hostname", "alice"},
		{"tty", "/dev/tty0"},
		{"cat /proc/1/comm", "init"},
		{"ip -4 -o addr show vec0", "10.213.0.2/32"},
	} {
		if got := s.run(ask[0]); !strings.Contains(got, ask[1]) {
			t.Errorf("%s: %q, without %q", ask[0], got, ask[1])
		}
	}
	goodEnd(t, s)
}

// oldInittab is what images for Xen had when its console was xvc0, on top of
// Debian's own (package sysvinit-core).
const oldInittab = `id:2:initdefault:
si::sysinit:/etc/init.d/rcS
~~:S:wait:/sbin/sulogin --force
l0:0:wait:/etc/init.d/rc 0
l1:1:wait:/etc/init.d/rc 1
l2:2:wait:/etc/init.d/rc 2
l3:3:wait:/etc/init.d/rc 3
l4:4:wait:/etc/init.d/rc 4
l5:5:wait:/etc/init.d/rc 5
l6:6:wait:/etc/init.d/rc 6
z6:6:respawn:/sbin/sulogin --force
ca:12345:ctrlaltdel:/sbin/shutdown -t1 -a -r now
1:2345:respawn:/sbin/getty --noclear 38400 tty1
2:23:respawn:/sbin/getty 38400 tty2
x0:2345:respawn:/sbin/getty -L 38400 xvc0 vt100
T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100
`

// oldFstab is for the disks of another machine.
const oldFstab = `proc /proc proc defaults 0 0
/dev/sda1 / ext3 errors=remount-ro 0 1
/dev/sda2 none swap sw 0 0
/swapfile none swap sw 0 0
UUID=01234567-89ab-cdef-0123-456789abcdef /srv ext4 defaults 0 2
`

func TestBootSysvinit(t *testing.T) {
	t.Parallel()
	tree := testlab.Debian(t, "essential", "sysvinit-core,initscripts,ifupdown,netbase"+basics)
	l := newLab(t)
	l.seed.Swap = 64 * vps.MiB
	l.makeDiskFrom(tree, map[string]string{
		"/etc/inittab": oldInittab, "/etc/fstab": oldFstab, "/etc/securetty": "tty1\n",
		"/etc/network/interfaces": "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n",
	})
	goodGuest(t, l.power(l.disk))
}

func TestBootOpenRC(t *testing.T) {
	t.Parallel()
	tree := testlab.Debian(t, "essential", "sysvinit-core,openrc,ifupdown,netbase"+basics)
	l := newLab(t)
	l.seed.Swap = 64 * vps.MiB
	l.makeDiskFrom(tree, map[string]string{"/etc/fstab": oldFstab})
	goodGuest(t, l.power(l.disk))
}

func TestBootRunit(t *testing.T) {
	t.Parallel()
	tree := testlab.Debian(t, "essential", "runit-init,runit,getty-run"+basics)
	l := newLab(t)
	l.seed.Swap = 64 * vps.MiB
	l.makeDiskFrom(tree, map[string]string{"/etc/fstab": oldFstab})
	goodGuest(t, l.power(l.disk))
}

// TestBootCloudInit boots systemd with udev and a real cloud-init: an image of
// the kind that distributions make for clouds.
func TestBootCloudInit(t *testing.T) {
	t.Parallel()
	tree := testlab.Debian(t, "essential", "systemd-sysv,dbus,udev,cloud-init,openssh-server,sudo,ifupdown,netbase"+basics)
	l := newLab(t)
	key := filepath.Join(l.dir, "key")
	l.net.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	l.must(err)
	l.seed.SSHKeys = []string{strings.TrimSpace(string(public))}
	l.seed.Swap = 64 * vps.MiB
	l.makeDiskFrom(tree, map[string]string{
		"/etc/fstab":              oldFstab,
		"/etc/network/interfaces": "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet dhcp\n",
	})
	s := l.power(l.disk)
	as := func(user, command string) (string, error) {
		return l.net.Try("ssh", "-q", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "BatchMode=yes", "-o", "ConnectTimeout=20", user+"@10.213.0.2", command)
	}
	// The image's own user is there once cloud-init made it.
	for {
		if _, err := as("debian", "sudo true"); err == nil {
			break
		}
		select {
		case <-s.gone:
			t.Fatalf("the guest is over:\n%s", s.text())
		case <-time.After(200 * time.Millisecond):
		}
	}
	for _, ask := range [][2]string{
		{"sudo cloud-init status --wait --long", "DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud"},
		{"cloud-id; hostname", "nocloud\nalice"},
		{"swapon --show=NAME --noheadings", "/sublet.swap"},
		{"ip -4 -o addr show vec0; ip route", "10.213.0.2/32"},
		{"systemctl is-system-running --wait; systemctl --failed --no-legend --plain", "running"},
	} {
		command, want := ask[0], ask[1]
		if got, err := as("debian", "PATH=/usr/sbin:$PATH; "+command); !strings.Contains(got, want) {
			t.Errorf("%s: %q, without %q (%v)", command, got, want, err)
		}
	}
	if got, err := as("root", "cat /run/systemd/network/05-sublet.network"); err != nil || !strings.Contains(got, "MACAddress="+l.seed.MAC.String()) {
		t.Errorf("root: %v, %q", err, got)
	}
	// The image has some, which were made when the package was installed.
	if keys, err := as("root", "ls /etc/ssh"); err != nil || strings.Contains(keys, "rsa_key") || !strings.Contains(keys, "ed25519_key") {
		t.Errorf("host keys: %q, %v", keys, err)
	}
	s.ctrlAltDel()
	shown := s.text()
	if n := strings.Count(shown, "alice login: "); n != 1 {
		t.Errorf("%d logins were offered on the console", n)
	}
	for _, bad := range []string{"A start job is running", "sublet: could not", "Invalid cloud-config", "Restarting system"} {
		if strings.Contains(shown, bad) {
			t.Errorf("the console shows %q", bad)
		}
	}
	if t.Failed() {
		t.Logf("console:\n%s", shown)
	}
}

// TestBootExtraDisk boots our own image, whose systemd has no udev, with an extra
// disk in fstab: nothing announces that disk, and the line asks for a check.
func TestBootExtraDisk(t *testing.T) {
	t.Parallel()
	image := filepath.Join(testlab.Images(t), vps.DefaultImage, "latest", "disk.img")
	l := newLab(t)
	l.disk = filepath.Join(l.dir, "disk.img")
	l.net.Exec("cp", "--sparse=always", image, l.disk)
	l.must(os.Chmod(l.disk, 0o600))
	l.changeDisk(map[string]string{"/etc/fstab": "/dev/disk/by-id/sublet-data /srv ext4 defaults 0 2\nLABEL=lost /mnt ext4 defaults 0 2\n"})
	l.extra = filepath.Join(l.dir, "extra.img")
	l.must(os.WriteFile(l.extra, nil, 0o600))
	l.must(os.Truncate(l.extra, 32<<20))
	l.net.Exec("mke2fs", "-q", "-F", "-t", "ext4", l.extra)
	l.seed.Disks = []seed.Disk{{Name: "data", Device: "/dev/ubdd", Size: 32 * vps.MiB}}
	s := l.power(l.disk)
	s.login()
	if got := s.run("findmnt -n -o SOURCE,FSTYPE /srv"); got != "/dev/ubdd ext4" {
		t.Errorf("/srv: %q", got)
	}
	if got := s.run("systemctl --failed --no-legend --plain; readlink -f /dev/disk/by-id/sublet-data"); got != "/dev/ubdd" {
		t.Errorf("failed units: %q", got)
	}
	s.ctrlAltDel()
	if t.Failed() {
		t.Logf("console:\n%s", s.text())
	}
}
