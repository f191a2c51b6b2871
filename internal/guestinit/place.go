package guestinit

import (
	"os"
	"path"
	"path/filepath"
	"strings"
)

// place is the machine that an image finds itself on, as far as files of the
// image speak of it. It is observed, not assumed, so that it is right for
// every driver.
type place struct {
	// console is the terminal behind /dev/console: "tty0" under User Mode
	// Linux, "hvc0" under Xen.
	console string
	// root is the device of the root disk, and kind its filesystem.
	root, kind string
	// card is the name of the network card, empty when there is none.
	card string
	// noSwapFiles tells that a swap file in fstab would hang the boot.
	noSwapFiles bool
	// hasCard tells whether there is a network card of this name.
	hasCard func(name string) bool
	// device returns the block device that the first field of a line of
	// fstab(5) means, "" when there is none.
	device func(spec string) string
}

// findConsole returns the name of the terminal behind /dev/console: the last
// of those that /sys/class/tty/console/active lists (the kernel's
// sysfs-tty documentation). UML's own is tty0.
func findConsole(sysDir string) string {
	text, err := os.ReadFile(filepath.Join(sysDir, "class/tty/console/active"))
	if names := strings.Fields(string(text)); err == nil && len(names) > 0 {
		return names[len(names)-1]
	}
	return "tty0"
}

// initSystem is what an image starts as process 1, and what goes with it.
// Several may be true: OpenRC is mostly started by an init with an inittab.
type initSystem struct {
	systemd, openrcInit, runit, upstart bool
	// inittab tells that process 1 reads /etc/inittab, as sysvinit's and, in
	// other words, busybox's does.
	inittab, busybox bool
	// openrc tells that services are OpenRC's.
	openrc bool
	// udev tells that something announces devices.
	udev bool
}

// findInit tells what the program at one of these places is. They are tried in
// order, as they are when it is executed.
func findInit(t *Tree, programs []string) initSystem {
	s := initSystem{openrc: t.IsDir("/etc/runlevels")}
	for _, dir := range []string{"/lib/systemd", "/usr/lib/systemd", "/sbin", "/usr/sbin", "/usr/bin"} {
		s.udev = s.udev || t.Exists(dir+"/systemd-udevd") || t.Exists(dir+"/udevd") || t.Exists(dir+"/eudevd")
	}
	for _, program := range programs {
		if !t.Exists(program) {
			continue
		}
		end, err := t.target(program)
		if err != nil {
			end = program
		}
		switch name := path.Base(end); {
		case name == "systemd":
			s.systemd = true
		case name == "openrc-init":
			s.openrcInit = true
		case name == "runit-init" || name == "runit":
			s.runit = true
		case strings.HasPrefix(name, "busybox"):
			s.inittab, s.busybox = true, true
		case t.Exists("/etc/runit/1") && !t.Exists("/etc/inittab"):
			s.runit = true
		case t.IsDir("/etc/init") && t.Exists("/sbin/initctl"):
			s.upstart = true // it reads one line of inittab, the runlevel
		case t.Exists("/etc/inittab"):
			s.inittab = true
		}
		break
	}
	return s
}
