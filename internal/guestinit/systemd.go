package guestinit

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// systemd is told in /run, which stands between what an image ships (/usr) and
// what a user sets (/etc): the image's disk stays as it is, and a user's word
// counts more (systemd.unit(5)). /run is in memory, so all of it is written at
// each boot.
const runUnits = "/run/systemd/system/"

// mountRun mounts /run in the image's root, as an initramfs does for systemd,
// which leaves it as it finds it.
func mountRun(t *Tree) error {
	if err := t.MkdirAll("/run", 0o755); err != nil {
		return err
	}
	fd, err := t.open("/run", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	return unix.Mount("tmpfs", procPath(fd), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_STRICTATIME, "mode=755,size=20%")
}

// systemdUnits returns what systemd is told about the console and the power
// switch: files by their path, "-> target" for symbolic links.
//
//   - One login, on the console, whatever its terminal is (console-getty is
//     the unit that does not wait for udev).
//   - No login on any other terminal: none of them leads anywhere, and
//     the unit for a serial line that is missing waits for it for 90 s.
//   - Ctrl-Alt-Del powers off.
//   - Waiting for the network ends with the first card that works: an image
//     may name cards of the machine that it was made on.
func (p *provision) systemdUnits() map[string]string {
	units := "/usr/lib/systemd/system/"
	if !p.tree.Exists(units + "poweroff.target") {
		units = "/lib/systemd/system/"
	}
	files := map[string]string{
		runUnits + "ctrl-alt-del.target":                                   "-> " + units + "poweroff.target",
		runUnits + "getty-static.service":                                  "-> /dev/null",
		runUnits + "getty@tty1.service":                                    "-> /dev/null",
		runUnits + "serial-getty@" + p.place.console + ".service":          "-> /dev/null",
		runUnits + "getty.target.wants/console-getty.service":              "-> " + units + "console-getty.service",
		runUnits + "console-getty.service.d/10-sublet.conf":                "[Service]\nEnvironment=TERM=" + consoleTerm + "\n",
		runUnits + "systemd-networkd-wait-online.service.d/10-sublet.conf": waitOnline(p.tree),
	}
	for _, dir := range []string{"/etc/systemd/system/getty.target.wants", units + "getty.target.wants"} {
		for _, name := range p.tree.List(dir) {
			if strings.HasPrefix(name, "getty@") || strings.HasPrefix(name, "serial-getty@") {
				files[runUnits+name] = "-> /dev/null"
			}
		}
	}
	return files
}

// waitOnline returns the setting for systemd-networkd-wait-online(8).
func waitOnline(t *Tree) string {
	program := "/usr/lib/systemd/systemd-networkd-wait-online"
	if !t.Exists(program) {
		program = "/lib/systemd/systemd-networkd-wait-online"
	}
	return "[Service]\nExecStart=\nExecStart=" + program + " --any --timeout=30\n"
}

// systemd writes what is for this boot only.
func (p *provision) systemd(context.Context) error {
	var failed error
	for name, text := range p.systemdUnits() {
		failed = errors.Join(failed, p.put(name, text))
	}
	return failed
}

// put makes a file with this text, or a symbolic link.
func (p *provision) put(name, text string) error {
	if target, ok := strings.CutPrefix(text, "-> "); ok {
		return p.run.Symlink(target, name)
	}
	return p.run.Write(name, []byte(text), 0o644)
}
