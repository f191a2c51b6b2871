package guestinit

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Root filesystems as distributions ship them, as far as this program looks.
// "x" stands for a program.
func distributions() map[string]map[string]string {
	return map[string]map[string]string{
		"debian systemd": {
			"sbin/init": "-> /lib/systemd/systemd", "lib/systemd/systemd": "x", "lib/systemd/systemd-udevd": "x", "lib/systemd/system/poweroff.target": "",
			"lib/systemd/system/getty.target.wants/getty-static.service": "-> ../getty-static.service",
			"lib/systemd/systemd-networkd-wait-online":                   "x",
			"etc/systemd/system/getty.target.wants/getty@tty1.service":   "-> /lib/systemd/system/getty@.service",
			"etc/network/interfaces": "# x\nsource /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\n" +
				"allow-hotplug ens3\niface ens3 inet dhcp\n\tmtu 1450\n\nauto br0\niface br0 inet static\n\taddress 10.0.0.1/24\n\tbridge_ports none\n",
			"etc/network/interfaces.d/setup": "auto eth0 eth0:1\niface eth0 inet dhcp\n",
			"etc/fstab":                      "UUID=beef / ext4 errors=remount-ro 0 1\n",
		},
		"arch": {
			"sbin": "-> usr/bin", "usr/bin/init": "-> ../lib/systemd/systemd", "usr/lib/systemd/systemd": "x", "usr/lib/systemd/systemd-udevd": "x",
			"usr/lib/systemd/system/poweroff.target":                       "",
			"usr/lib/systemd/systemd-networkd-wait-online":                 "x",
			"etc/systemd/system/getty.target.wants/serial-getty@x.service": "-> /usr/lib/systemd/system/serial-getty@.service",
			"etc/NetworkManager/NetworkManager.conf":                       "",
			"etc/securetty":                                                "tty1\n",
			"etc/adjtime":                                                  "0.0 0 0.0\n0\nLOCAL\n",
		},
		"alpine": {
			"bin/busybox": "x", "sbin/init": "-> /bin/busybox", "sbin/getty": "-> /bin/busybox", "sbin/openrc": "x", "etc/runlevels/boot/networking": "-> /etc/init.d/networking",
			"etc/inittab":            "::sysinit:/sbin/openrc sysinit\ntty1::respawn:/sbin/getty 38400 tty1\n::ctrlaltdel:/sbin/reboot\n",
			"etc/network/interfaces": "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n\thostname localhost\n",
			"etc/securetty":          "console\ntty1\n",
			"etc/conf.d/hwclock":     "clock=\"local\"\n",
		},
		"buildroot": {
			"sbin/init": "x", "sbin/getty": "x", "etc/inittab": "::sysinit:/bin/mount -a\nttyS0::respawn:/sbin/getty -L ttyS0 0 vt100\n::ctrlaltdel:/sbin/reboot\n",
		},
		"gentoo": {
			"sbin/init": "x", "sbin/openrc": "x", "sbin/agetty": "x", "sbin/shutdown": "x", "etc/init.d/net.lo": "x", "etc/runlevels/default/net.eth0": "-> /etc/init.d/net.eth0",
			"etc/inittab":    "c1:12345:respawn:/sbin/agetty --noclear 38400 tty1 linux\nca:12345:ctrlaltdel:/sbin/shutdown -r now\n",
			"etc/conf.d/net": "config_eth0=\"dhcp\"\n",
		},
		"gentoo openrc-init": {
			"sbin/init": "-> openrc-init", "sbin/openrc-init": "x", "etc/init.d/agetty": "x",
			"etc/runlevels/default/agetty.tty1": "-> /etc/init.d/agetty.tty1", "etc/runlevels/default/agetty.tty2": "-> /etc/init.d/agetty.tty2",
		},
		"void": {
			"usr/bin/init": "-> runit-init", "usr/bin/runit-init": "x", "sbin": "-> usr/bin", "usr/bin/agetty": "x", "etc/runit/1": "x", "etc/runit/ctrlaltdel": "x",
			"etc/sv/agetty-tty1/run": "x", "etc/runit/runsvdir/default/agetty-tty1": "-> /etc/sv/agetty-tty1",
			"etc/runit/runsvdir/default/agetty-tty2": "-> /etc/sv/agetty-tty2", "etc/runit/runsvdir/default/sshd": "-> /etc/sv/sshd",
			"etc/dhcpcd.conf": "hostname\n\ninterface eth0\nstatic x\n", "etc/rc.conf": "HARDWARECLOCK=\"localtime\"\n",
		},
		"centos 6": {
			"sbin/init": "x", "sbin/initctl": "x", "sbin/mingetty": "x", "sbin/shutdown": "x", "etc/init/tty.conf": "x", "etc/init/tty1.conf": "x",
			"etc/inittab": "id:3:initdefault:\n", "etc/sysconfig/init": "BOOTUP=color\nACTIVE_CONSOLES=/dev/tty[1-6]\n",
			"etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nBOOTPROTO=dhcp\nONBOOT=yes\n",
			"etc/sysconfig/network-scripts/ifcfg-lo":   "DEVICE=lo\nONBOOT=yes\n",
		},
	}
}

// fit makes an image fit a machine, and returns the guest and whether anything
// was written to its disk.
func (g *guest) fit(where place) (wrote bool) {
	g.t.Helper()
	tree, err := OpenTree(g.root)
	if err != nil {
		g.t.Fatal(err)
	}
	run, err := OpenTree(g.root)
	if err != nil {
		g.t.Fatal(err)
	}
	defer tree.Close() //nolint:errcheck // only read from now on
	defer run.Close()  //nolint:errcheck // likewise
	p := &provision{
		run:      run,
		identity: &identity{tree: tree, seed: g.seed, last: loadState(tree), now: time.Unix(0, 0)},
		place:    where, init: findInit(tree, options{}.initPrograms()),
	}
	for _, s := range p.steps() {
		if err := s.do(g.t.Context()); err != nil {
			g.t.Errorf("%s: %v", s.name, err)
		}
	}
	if err := p.save(g.t.Context()); err != nil {
		g.t.Error(err)
	}
	return tree.Changed()
}

// link returns where a symbolic link leads.
func (g *guest) link(name string) string {
	target, err := os.Readlink(filepath.Join(g.root, name))
	if err != nil {
		return ""
	}
	return target
}

func TestFindInit(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]initSystem{
		"debian systemd":     {systemd: true, udev: true},
		"arch":               {systemd: true, udev: true},
		"alpine":             {inittab: true, busybox: true, openrc: true},
		"gentoo":             {inittab: true, openrc: true},
		"gentoo openrc-init": {openrcInit: true, openrc: true},
		"void":               {runit: true},
		"centos 6":           {upstart: true},
	} {
		g := newGuest(t, distributions()[name])
		tree, err := OpenTree(g.root)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, findInit(tree, options{}.initPrograms()), cmp.AllowUnexported(initSystem{})); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestDistributions says what becomes of each image: files by their content,
// and symbolic links by where they lead, "" for what is not there.
func TestDistributions(t *testing.T) {
	t.Parallel()
	block := func(lines ...string) string {
		return blockBegin + "\n" + strings.Join(lines, "\n") + "\n" + blockEnd + "\n"
	}
	mask := "-> /dev/null"
	for name, want := range map[string]map[string]string{
		"debian systemd": {
			"run/systemd/system/ctrl-alt-del.target":                      "-> /lib/systemd/system/poweroff.target",
			"run/systemd/system/getty.target.wants/console-getty.service": "-> /lib/systemd/system/console-getty.service",
			"run/systemd/system/getty@tty1.service":                       mask,
			"run/systemd/system/serial-getty@tty0.service":                mask,
			"etc/systemd/system/getty.target.wants/getty@tty1.service":    "-> /lib/systemd/system/getty@.service",
			"run/systemd/system/console-getty.service.d/10-sublet.conf":   "[Service]\nEnvironment=TERM=xterm-256color\n",
			"run/systemd/network/05-sublet.network":                       networkdSample,
			"run/systemd/system/systemd-networkd-wait-online.service.d/10-sublet.conf": "[Service]\nExecStart=\n" +
				"ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30\n",
			"etc/fstab": noteChanged + "UUID=beef / ext4 errors=remount-ro 0 1\n/dev/ubda\t/\text4\terrors=remount-ro\t0\t0\n",
			"etc/network/interfaces": "# x\nsource /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\n" +
				noCard + "allow-hotplug ens3\n" + noCard + "iface ens3 inet dhcp\n" + noCard + "\tmtu 1450\n\nauto br0\niface br0 inet static\n\taddress 10.0.0.1/24\n\tbridge_ports none\n" +
				block("auto vec0", "iface vec0 inet manual"),
			"etc/network/interfaces.d/setup": noCard + "auto eth0 eth0:1\n" + noCard + "iface eth0 inet dhcp\n",
		},
		"arch": {
			"run/systemd/system/ctrl-alt-del.target":                      "-> /usr/lib/systemd/system/poweroff.target",
			"run/systemd/system/getty.target.wants/console-getty.service": "-> /usr/lib/systemd/system/console-getty.service",
			"run/systemd/system/serial-getty@x.service":                   mask,
			"run/NetworkManager/conf.d/05-sublet.conf": "# sublet wrote this file: the card has its address before this service starts.\n" +
				"[main]\ndns=none\n\n[device-sublet]\nmatch-device=mac:02:53:4c:d5:00:02\nmanaged=0\n",
			"etc/NetworkManager/conf.d/05-sublet.conf": "",
			"etc/securetty": "tty1\nconsole\ntty0\n",
			"etc/adjtime":   "0.0 0 0.0\n0\nUTC\n",
		},
		"alpine": {
			"etc/inittab": "::sysinit:/sbin/openrc sysinit\ntty0::respawn:/sbin/getty 38400 tty0\n::ctrlaltdel:/sbin/poweroff\n",
			"etc/network/interfaces": "auto lo\niface lo inet loopback\n\n" + noCard + "auto eth0\n" + noCard + "iface eth0 inet dhcp\n" +
				noCard + "\thostname localhost\n" + block("auto vec0", "iface vec0 inet manual"),
			"etc/securetty":      "console\ntty1\ntty0\n",
			"etc/conf.d/hwclock": "clock=\"UTC\"\nclock_hctosys=\"NO\"\nclock_systohc=\"NO\"\n",
			"run/systemd":        "",
		},
		"buildroot": {
			"etc/inittab": "::sysinit:/bin/mount -a\ntty0::respawn:/sbin/getty -L tty0 0 vt100\n::ctrlaltdel:/sbin/poweroff\n",
		},
		"gentoo": {
			"etc/inittab":                    "c1:12345:respawn:/sbin/agetty --noclear 38400 tty0 linux\nca:12345:ctrlaltdel:/sbin/shutdown -h -P now\n",
			"etc/conf.d/net":                 "config_eth0=\"dhcp\"\n" + block(`config_vec0="noop"`),
			"etc/init.d/net.vec0":            "-> net.lo",
			"etc/runlevels/default/net.vec0": "-> /etc/init.d/net.vec0",
			"etc/runlevels/default/net.eth0": "",
		},
		"gentoo openrc-init": {
			"etc/init.d/agetty.tty0": "-> agetty", "etc/runlevels/default/agetty.tty0": "-> /etc/init.d/agetty.tty0",
			"etc/runlevels/default/agetty.tty1": "", "etc/runlevels/default/agetty.tty2": "",
		},
		"void": {
			"etc/runit/runsvdir/default/agetty-tty0": "-> /etc/sv/agetty-tty0",
			"etc/runit/runsvdir/default/agetty-tty1": "", "etc/runit/runsvdir/default/agetty-tty2": "",
			"etc/runit/runsvdir/default/sshd": "-> /etc/sv/sshd",
			"etc/sv/agetty-tty0/run": "#!/bin/sh\n# sublet wrote this file: the login on the guest's console.\n" +
				"exec chpst -P /sbin/agetty --noclear 38400 tty0 xterm-256color\n",
			"etc/dhcpcd.conf": block("denyinterfaces vec0") + "hostname\n\ninterface eth0\nstatic x\n",
			"etc/rc.conf":     "HARDWARECLOCK=\"UTC\"\n",
		},
		"centos 6": {
			"etc/inittab":                          "id:3:initdefault:\n",
			"etc/init/control-alt-delete.override": "exec /sbin/shutdown -h -P now\n", "etc/init/tty1.override": "manual\n", "etc/init/tty.override": "",
			"etc/init/sublet-console.conf": "# sublet wrote this file: the login on the guest's console.\n" +
				"start on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\nrespawn\nexec /sbin/mingetty --noclear tty0\n",
			"etc/sysconfig/init":                       "BOOTUP=color\nACTIVE_CONSOLES=\n",
			"etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nBOOTPROTO=dhcp\nONBOOT=no\n",
			"etc/sysconfig/network-scripts/ifcfg-lo":   "DEVICE=lo\nONBOOT=yes\n",
			"etc/sysconfig/network-scripts/ifcfg-vec0": "# sublet wrote this file: the card has its address before the network starts.\n" +
				"DEVICE=vec0\nHWADDR=02:53:4c:d5:00:02\nBOOTPROTO=none\nONBOOT=no\nNM_CONTROLLED=no\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, distributions()[name])
			g.fit(umlPlace())
			for file, text := range want {
				if target, ok := strings.CutPrefix(text, "-> "); ok {
					if got := g.link(file); got != target {
						t.Errorf("%s leads to %q, not %q", file, got, target)
					}
					continue
				}
				if _, err := os.Lstat(filepath.Join(g.root, file)); text == "" {
					if err == nil {
						t.Errorf("%s is there", file)
					}
					continue
				}
				g.want(file, text)
			}
			if g.fit(umlPlace()) {
				t.Error("the second boot wrote something")
			}
			// Moved to another machine, all of it follows.
			g.fit(xenPlace())
			if g.fit(xenPlace()) {
				t.Error("the second boot on the other machine wrote something")
			}
		})
	}
}

const networkdSample = `# sublet writes this file at each boot.
[Match]
MACAddress=02:53:4c:d5:00:02

[Link]
RequiredForOnline=yes

[Network]
DHCP=no
IPv6AcceptRA=no
LinkLocalAddressing=ipv6
KeepConfiguration=yes
DNS=9.9.9.9

[Address]
Address=10.213.0.2/32

[Route]
Destination=10.213.0.1/32
Scope=link

[Route]
Gateway=10.213.0.1
GatewayOnLink=yes
`

// TestFitKeepsUsersChanges says that a file that was mended once is the user's
// from then on, but for the lines of fstab that keep a guest from booting.
func TestFitKeepsUsersChanges(t *testing.T) {
	t.Parallel()
	g := newGuest(t, distributions()["alpine"])
	g.fit(umlPlace())
	mine := map[string]string{
		"etc/inittab":            "tty5::respawn:/sbin/getty 38400 tty5\n",
		"etc/network/interfaces": "auto eth0\niface eth0 inet dhcp\n",
		"etc/securetty":          "\n",
	}
	for name, text := range mine {
		g.write(name, text)
	}
	g.write("etc/fstab", "/swapfile none swap sw 0 0\n")
	g.fit(umlPlace())
	for name, text := range mine {
		g.want(name, text)
	}
	g.want("etc/fstab", noteSwapFile+"\n#/swapfile none swap sw 0 0\n")
}

func TestRunitPowerSwitch(t *testing.T) {
	t.Parallel()
	g := newGuest(t, distributions()["void"])
	g.fit(umlPlace())
	for _, name := range []string{"etc/runit/ctrlaltdel", "etc/sv/agetty-tty0/run"} {
		info, err := os.Stat(filepath.Join(g.root, name))
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if text := g.read("etc/runit/ctrlaltdel"); !strings.HasSuffix(text, "\nexec init 0\n") {
		t.Errorf("ctrlaltdel:\n%s", text)
	}
}

func TestCloudInit(t *testing.T) {
	t.Parallel()
	files := func(more map[string]string) map[string]string {
		all := map[string]string{"usr/bin/cloud-init": "x", "etc/cloud/cloud.cfg": "x"}
		maps.Copy(all, more)
		return all
	}
	const meta, user = "var/lib/cloud/seed/nocloud/meta-data", "var/lib/cloud/seed/nocloud/user-data"
	t.Run("seeded", func(t *testing.T) {
		t.Parallel()
		g := newGuest(t, files(nil))
		g.fit(umlPlace())
		first := g.read(meta)
		for _, want := range []string{`"instance-id": "g1-`, `"local-hostname": "alice"`, `"ssh-ed25519 AAAA alice@laptop"`} {
			if !strings.Contains(first, want) {
				t.Errorf("the metadata is without %s:\n%s", want, first)
			}
		}
		g.want(user, "#cloud-config\n{}\n")
		if !strings.Contains(g.read("etc/cloud/cloud.cfg.d/zz-sublet.cfg"), "\ndatasource_list: [ NoCloud, None ]\n") {
			t.Error("the sources are not one line")
		}
		if g.fit(umlPlace()) {
			t.Error("the second boot wrote something")
		}
		g.seed.SSHKeys = append(g.seed.SSHKeys, "ssh-ed25519 BBBB")
		g.fit(umlPlace())
		if second := g.read(meta); second[:strings.Index(second, `"local`)] == first[:strings.Index(first, `"local`)] {
			t.Errorf("with another key, it is the same instance:\n%s", second)
		}
	})
	t.Run("the image's own user-data stays", func(t *testing.T) {
		t.Parallel()
		g := newGuest(t, files(map[string]string{user: "#cloud-config\npackages: [ x ]\n", meta: "instance-id: image\n"}))
		g.fit(umlPlace())
		g.want(user, "#cloud-config\npackages: [ x ]\n")
		if strings.Contains(g.read(meta), "image") {
			t.Error("all guests would be the same instance")
		}
	})
	for name, f := range map[string]map[string]string{
		"disabled":      files(map[string]string{"etc/cloud/cloud-init.disabled": ""}),
		"not installed": {"etc/cloud/x": ""},
	} {
		g := newGuest(t, f)
		g.fit(umlPlace())
		if g.read(meta) != "" || g.read("etc/cloud/cloud.cfg.d/zz-sublet.cfg") != "" {
			t.Errorf("%s: seeded", name)
		}
	}
}
