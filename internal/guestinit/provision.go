package guestinit

import (
	"context"
	"path"
	"slices"
	"strings"
)

// provisionVersion changes when this program mends more than it did, so that
// guests which were mended before are mended again.
const provisionVersion = "1"

// consoleTerm is what a console is told to be: it is a terminal of our time at
// its other end.
const consoleTerm = "xterm-256color"

// provision makes an image that was made for another machine fit this one:
// its disks, its console, its power switch, its network services. What is in
// /run is written at each boot. Files on the disk are mended once for a
// machine, so that what a user makes of them later stays; fstab, whose lines
// can keep a guest from booting at all, at each boot.
type provision struct {
	*identity
	place place
	init  initSystem
	// run is the same tree, for what is written to /run only: that is not on
	// the disk.
	run *Tree
}

// steps returns everything that makes an image fit the machine, in order.
func (p *provision) steps() []step {
	var steps []step
	if p.init.systemd {
		steps = append(steps, step{"tell systemd of the machine", p.systemd})
	}
	steps = append(steps, step{"mend " + fstabPath, p.fstab})
	if machine := provisionVersion + " " + p.place.console + " " + p.place.root; p.last.Machine != machine {
		steps = append(steps,
			step{"mend " + inittabPath, p.inittab},
			step{"mend the terminals of runit", p.runit},
			step{"mend the terminals of OpenRC", p.openrcTerminals},
			step{"mend the terminals of upstart", p.upstart},
			step{"mend /etc/securetty", p.securetty},
			step{"mend the clock's settings", p.clock},
			step{"remember the machine", func(context.Context) error { p.last.Machine = machine; return nil }})
	}
	steps = append(steps, step{"tell cloud-init", p.cloudInit})
	return append(steps, p.networkSteps()...)
}

func (p *provision) fstab(context.Context) error {
	old, err := p.tree.Text(fstabPath)
	if err != nil || old == "" {
		return err
	}
	// Only systemd waits for devices to be announced.
	announced := !p.init.systemd || p.init.udev
	text := mendFstab(old, p.place, announced)
	for _, name := range runDeviceNames(text) {
		if err := p.run.Symlink("/dev/"+name, runDevices+name); err != nil {
			return err
		}
	}
	return p.tree.Write(fstabPath, []byte(text), 0o644)
}

func (p *provision) inittab(context.Context) error {
	if !p.init.inittab {
		return nil
	}
	old, err := p.tree.Text(inittabPath)
	if err != nil {
		return err
	}
	if strings.TrimSpace(old) == "" {
		if !p.init.busybox {
			return nil
		}
		old = busyboxInittab
	}
	o := inittabOptions{
		// Where busybox is not a link by name, its inittab tells.
		busybox: p.init.busybox || strings.HasPrefix(old, "::") || strings.Contains(old, "\n::"), console: p.place.console,
		getty: p.getty(), powerOff: "/sbin/poweroff",
	}
	if !o.busybox && p.tree.Exists("/sbin/shutdown") {
		o.powerOff = "/sbin/shutdown -h -P now"
	}
	return p.tree.Write(inittabPath, []byte(mendInittab(old, o)), 0o644)
}

// getty returns the command line of a login on the console, empty when the
// image has no program for that.
func (p *provision) getty() string {
	for _, g := range []struct{ program, before, after string }{
		{"/sbin/agetty", "--noclear 38400 ", " " + consoleTerm},
		{"/usr/bin/agetty", "--noclear 38400 ", " " + consoleTerm},
		{"/sbin/getty", "-L 38400 ", " " + consoleTerm},
		{"/bin/getty", "-L 38400 ", " " + consoleTerm},
		{"/sbin/mingetty", "--noclear ", ""},
	} {
		if p.tree.Exists(g.program) {
			return g.program + " " + g.before + p.place.console + g.after
		}
	}
	return ""
}

// securetty lets root log in on the console where that is restricted to a
// list (securetty(5)).
func (p *provision) securetty(context.Context) error {
	const name = "/etc/securetty"
	old, err := p.tree.Text(name)
	if err != nil || !p.tree.Exists(name) {
		return err
	}
	lines := splitLines(old)
	for _, terminal := range []string{"console", p.place.console} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.TrimSpace(l) == terminal }) {
			lines = append(lines, terminal)
		}
	}
	return p.tree.Write(name, []byte(joinLines(lines)), 0o600)
}

// clock keeps the image from believing that the machine's clock shows local
// time, and from looking for one at all. The kernel's clock is right when it
// starts; programs that set it from what the image believes would make it
// wrong (hwclock(8), adjtime_config(5)).
func (p *provision) clock(context.Context) error {
	old, err := p.tree.Text("/etc/adjtime")
	if err != nil {
		return err
	}
	if lines := splitLines(old); len(lines) > 2 && lines[2] == "LOCAL" {
		lines[2] = "UTC"
		if err := p.tree.Write("/etc/adjtime", []byte(joinLines(lines)), 0o644); err != nil {
			return err
		}
	}
	for _, c := range []struct{ file, name, value string }{
		{"/etc/default/hwclock", "HWCLOCKACCESS", "no"},
		{"/etc/conf.d/hwclock", "clock", "UTC"},
		{"/etc/conf.d/hwclock", "clock_hctosys", "NO"},
		{"/etc/conf.d/hwclock", "clock_systohc", "NO"},
	} {
		if err := p.tree.settings(c.name, c.value, c.file); err != nil {
			return err
		}
	}
	// Void's comes without the setting, which is to look for no clock.
	old, err = p.tree.Text("/etc/rc.conf")
	if err != nil || !strings.Contains(old, "HARDWARECLOCK=\"localtime\"") {
		return err
	}
	return p.tree.settings("HARDWARECLOCK", "UTC", "/etc/rc.conf")
}

// runit gives the console the only login, and makes Ctrl-Alt-Del power off:
// process 1 starts a program then, and ends when that has told it to, as
// "init 0" does with the paths that this runit was built with.
func (p *provision) runit(context.Context) error {
	if !p.init.runit {
		return nil
	}
	const script = "#!/bin/sh\n# sublet wrote this file: Ctrl-Alt-Del switches the guest off.\n" +
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin\nexec init 0\n"
	if err := p.executable("/etc/runit/ctrlaltdel", script); err != nil {
		return err
	}
	services, enabled := "/etc/sv", "/etc/runit/runsvdir/default"
	if !p.tree.IsDir(services) && p.tree.IsDir("/etc/runit/sv") {
		services = "/etc/runit/sv"
	}
	if !p.tree.IsDir(enabled) && p.tree.IsDir("/etc/service") {
		enabled = "/etc/service"
	}
	getty := p.getty()
	if getty == "" || !p.tree.IsDir(services) || !p.tree.IsDir(enabled) {
		return nil
	}
	own := "agetty-" + p.place.console
	for _, name := range p.tree.List(enabled) {
		if tty := name[strings.LastIndex(name, "-")+1:]; name != own && strings.Contains(name, "getty") && terminalPattern.MatchString(tty) {
			if err := p.tree.Remove(path.Join(enabled, name)); err != nil {
				return err
			}
		}
	}
	// A login needs a session of its own, which is what chpst of runit makes.
	run := "#!/bin/sh\n# sublet wrote this file: the login on the guest's console.\nexec chpst -P " + getty + "\n"
	if service := path.Join(services, own); !p.tree.Exists(service + "/run") {
		if err := p.executable(service+"/run", run); err != nil {
			return err
		}
	}
	return p.tree.Symlink(path.Join(services, own), path.Join(enabled, own))
}

func (p *provision) executable(name, text string) error {
	if err := p.tree.Replace(name, []byte(text), 0o755); err != nil {
		return err
	}
	return p.tree.Secure(name, 0o755)
}

// openrcTerminals is for OpenRC's own init, which has no inittab: each
// terminal is a service.
func (p *provision) openrcTerminals(context.Context) error {
	const level, services = "/etc/runlevels/default", "/etc/init.d"
	if !p.init.openrcInit || !p.tree.Exists(services+"/agetty") {
		return nil
	}
	for _, name := range p.tree.List(level) {
		if tty, ok := strings.CutPrefix(name, "agetty."); ok && tty != p.place.console {
			if err := p.tree.Remove(path.Join(level, name)); err != nil {
				return err
			}
		}
	}
	own := "agetty." + p.place.console
	if err := p.tree.Symlink("agetty", path.Join(services, own)); err != nil {
		return err
	}
	return p.tree.Symlink(path.Join(services, own), path.Join(level, own))
}

// upstart is told by files of its own (init(5)): an override takes a job's
// start away, or another command for it.
func (p *provision) upstart(context.Context) error {
	if !p.init.upstart {
		return nil
	}
	const jobs = "/etc/init/"
	files := map[string]string{"control-alt-delete.override": "exec /sbin/shutdown -h -P now\n"}
	for _, name := range p.tree.List(jobs) {
		if tty, ok := strings.CutSuffix(name, ".conf"); ok && terminalPattern.MatchString(tty) {
			files[tty+".override"] = "manual\n"
		}
	}
	if getty := p.getty(); getty != "" {
		files["sublet-console.conf"] = "# sublet wrote this file: the login on the guest's console.\n" +
			"start on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\nrespawn\nexec " + getty + "\n"
	}
	for name, text := range files {
		if err := p.tree.Write(jobs+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	// Red Hat's starts one for each terminal of this list.
	const list = "/etc/sysconfig/init"
	old, err := p.tree.Text(list)
	if err != nil || !strings.Contains(old, "ACTIVE_CONSOLES=") {
		return err
	}
	return p.tree.Write(list, []byte(setAssignment(old, "ACTIVE_CONSOLES", "")), 0o644)
}
