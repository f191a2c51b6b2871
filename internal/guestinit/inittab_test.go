package guestinit

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMendInittab(t *testing.T) {
	t.Parallel()
	sysv := inittabOptions{console: "tty0", getty: "/sbin/agetty 38400 tty0", powerOff: "/sbin/shutdown -h -P now"}
	xen := sysv
	xen.console = "hvc0"
	busy := inittabOptions{busybox: true, console: "tty0", getty: "/sbin/getty -L 38400 tty0", powerOff: "/sbin/poweroff"}
	const ca, bca = "ca:12345:ctrlaltdel:/sbin/shutdown -h -P now\n", "::ctrlaltdel:/sbin/poweroff\n"
	for name, tc := range map[string]struct {
		text, want string
		o          inittabOptions
	}{
		"Debian": {
			o: sysv,
			text: "# x\nid:2:initdefault:\n~~:S:wait:/sbin/sulogin\nca:12345:ctrlaltdel:/sbin/shutdown -t1 -a -r now\n" +
				"1:2345:respawn:/sbin/getty --noclear 38400 tty1\n2:23:respawn:/sbin/getty 38400 tty2\n#T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n",
			want: "# x\nid:2:initdefault:\n~~:S:wait:/sbin/sulogin\n" + ca +
				"1:2345:respawn:/sbin/getty --noclear 38400 tty0\n" + noTerminal + "2:23:respawn:/sbin/getty 38400 tty2\n#T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n",
		},
		"Xen's old console": {
			o: sysv, text: "1:2345:respawn:/sbin/mingetty tty1\nco:2345:respawn:/sbin/agetty xvc0 9600 vt100-nav\n" + ca,
			want: noTerminal + "1:2345:respawn:/sbin/mingetty tty1\nco:2345:respawn:/sbin/agetty tty0 9600 vt100-nav\n" + ca,
		},
		"Xen's old console under Xen": {
			o: xen, text: "co:2345:respawn:/sbin/agetty xvc0 9600 vt100-nav\n" + ca, want: "co:2345:respawn:/sbin/agetty hvc0 9600 vt100-nav\n" + ca,
		},
		"it has the console already": {
			o: sysv, text: "1:2345:respawn:/sbin/getty 38400 tty1\nh0:2345:respawn:/sbin/getty 38400 hvc0\nt0:2345:respawn:/sbin/getty 38400 tty0\n" + ca,
			want: noTerminal + "1:2345:respawn:/sbin/getty 38400 tty1\n" + noTerminal + "h0:2345:respawn:/sbin/getty 38400 hvc0\nt0:2345:respawn:/sbin/getty 38400 tty0\n" + ca,
		},
		"/dev/console is the console": {
			o: sysv, text: "1:2345:respawn:/sbin/getty 38400 tty1\nco:2345:respawn:/sbin/getty 38400 console\n" + ca,
			want: noTerminal + "1:2345:respawn:/sbin/getty 38400 tty1\nco:2345:respawn:/sbin/getty 38400 console\n" + ca,
		},
		"no login, no switch": {o: sysv, text: "id:3:initdefault:\n", want: "id:3:initdefault:\nc0:2345:respawn:/sbin/agetty 38400 tty0\n" + ca},
		"other services stay": {
			o: sysv, text: "x:5:respawn:/etc/X11/prefdm -nodaemon\nsv:2:respawn:/usr/sbin/runsvdir-start\nt:2:respawn:/sbin/getty tty1\n" + ca,
			want: "x:5:respawn:/etc/X11/prefdm -nodaemon\nsv:2:respawn:/usr/sbin/runsvdir-start\nt:2:respawn:/sbin/getty tty0\n" + ca,
		},
		"Gentoo": {
			o: sysv, text: "c1:12345:respawn:/sbin/agetty --noclear 38400 tty1 linux\nc2:2345:respawn:/sbin/agetty 38400 tty2 linux\nca:12345:ctrlaltdel:/sbin/shutdown -r now\n",
			want: "c1:12345:respawn:/sbin/agetty --noclear 38400 tty0 linux\n" + noTerminal + "c2:2345:respawn:/sbin/agetty 38400 tty2 linux\n" + ca,
		},
		"Alpine": {
			o: busy, text: "::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc default\ntty1::respawn:/sbin/getty 38400 tty1\ntty2::respawn:/sbin/getty 38400 tty2\n" +
				"#ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n::ctrlaltdel:/sbin/reboot\n::shutdown:/sbin/openrc shutdown\n",
			want: "::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc default\ntty0::respawn:/sbin/getty 38400 tty0\n" + noTerminal + "tty2::respawn:/sbin/getty 38400 tty2\n" +
				"#ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n" + bca + "::shutdown:/sbin/openrc shutdown\n",
		},
		"busybox alone": {
			o: busy, text: busyboxInittab,
			want: "::sysinit:/etc/init.d/rcS\n::askfirst:-/bin/sh\n" + bca + "::shutdown:/sbin/swapoff -a\n::shutdown:/bin/umount -a -r\n::restart:/sbin/init\n",
		},
		"busybox's shells": {
			o: busy, text: "tty1::askfirst:-/bin/sh\ntty2::askfirst:-/bin/sh\n::respawn:/sbin/syslogd -n\n" + bca,
			want: "tty0::askfirst:-/bin/sh\n" + noTerminal + "tty2::askfirst:-/bin/sh\n::respawn:/sbin/syslogd -n\n" + bca,
		},
		"busybox without a login": {o: busy, text: "::sysinit:/bin/x\n", want: "::sysinit:/bin/x\ntty0::respawn:/sbin/getty -L 38400 tty0\n" + bca},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := mendInittab(tc.text, tc.o)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if again := mendInittab(got, tc.o); again != got {
				t.Errorf("the second time:\n%s", cmp.Diff(got, again))
			}
		})
	}
}
