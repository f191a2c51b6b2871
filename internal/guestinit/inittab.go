package guestinit

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

const inittabPath = "/etc/inittab"

// noTerminal begins a line of inittab that was taken out.
const noTerminal = "# sublet: there is no such terminal: "

// terminalPattern matches the name of a terminal among a getty's arguments.
var terminalPattern = regexp.MustCompile(`^(/dev/)?(console|tty[A-Za-z]*[0-9]+|[hx]vc[0-9]+|hvsi[0-9]+)$`)

// entry is a line of inittab(5). In busybox's dialect the id is the terminal,
// and the runlevels mean nothing.
type entry struct{ id, levels, action, process string }

func parseEntry(line string) (e entry, ok bool) {
	f := strings.SplitN(strings.TrimSpace(line), ":", 4)
	if len(f) < 4 || strings.HasPrefix(f[0], "#") {
		return entry{}, false
	}
	return entry{strings.TrimSpace(f[0]), f[1], f[2], strings.TrimSpace(f[3])}, true
}

func (e entry) String() string {
	return e.id + ":" + e.levels + ":" + e.action + ":" + e.process
}

// login returns the terminal that a line lets people log in on, "" for the
// console, and whether it does that at all.
func (e entry) login(busybox bool) (terminal string, ok bool) {
	if e.action != "respawn" && e.action != "askfirst" {
		return "", false
	}
	words := strings.Fields(e.process)
	if len(words) == 0 {
		return "", false
	}
	program := path.Base(strings.TrimLeft(words[0], "-+@"))
	getty := strings.HasSuffix(program, "getty")
	if !getty && (!busybox || !slices.Contains([]string{"sh", "ash", "bash", "login"}, program)) {
		return "", false
	}
	if getty {
		for _, w := range words[1:] {
			if terminalPattern.MatchString(w) {
				return strings.TrimPrefix(w, "/dev/"), true
			}
		}
	}
	if busybox {
		return e.id, true
	}
	return "", true
}

// on returns the line for another terminal.
func (e entry) on(terminal string, busybox bool) entry {
	words := strings.Fields(e.process)
	for i, w := range words {
		if i > 0 && terminalPattern.MatchString(w) {
			words[i] = terminal
			break
		}
	}
	e.process = strings.Join(words, " ")
	if busybox {
		e.id = terminal
	}
	return e
}

// inittabOptions say how lines are written that an inittab has not got.
type inittabOptions struct {
	busybox bool
	console string
	// getty is the command line of a getty for the console; empty when the
	// image has none.
	getty string
	// powerOff is what Ctrl-Alt-Del starts.
	powerOff string
}

// busyboxInittab is what busybox's init does without an inittab
// (parse_inittab in its init/init.c), but for the terminals.
const busyboxInittab = `::sysinit:/etc/init.d/rcS
::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/sbin/swapoff -a
::shutdown:/bin/umount -a -r
::restart:/sbin/init
`

// mendInittab returns an inittab with one login, on the console, and with
// Ctrl-Alt-Del as power-off. Of several logins that of the console stays, or
// the one that comes nearest becomes it: a line for another hypervisor's
// console (xvc0), a serial line, the first virtual terminal. All others become
// comments: their terminals are not there, so init would start them again and
// again ("respawning too fast").
func mendInittab(text string, o inittabOptions) string {
	lines := splitLines(text)
	chosen := chooseLogin(lines, o)
	placed := false
	for i, line := range lines {
		e, ok := parseEntry(line)
		if !ok {
			continue
		}
		terminal, login := e.login(o.busybox)
		switch {
		case e.action == "ctrlaltdel":
			e.process = o.powerOff
			lines[i], placed = e.String(), true
		case login && i != chosen:
			lines[i] = noTerminal + line
		case login && terminal != o.console && terminal != "" && terminal != "console":
			lines[i] = e.on(o.console, o.busybox).String()
		}
	}
	if chosen < 0 && o.getty != "" {
		e := entry{"c0", "2345", "respawn", o.getty}
		if o.busybox {
			e.id, e.levels = o.console, ""
		}
		lines = append(lines, e.String())
	}
	if !placed {
		e := entry{"ca", "12345", "ctrlaltdel", o.powerOff}
		if o.busybox {
			e.id, e.levels = "", ""
		}
		lines = append(lines, e.String())
	}
	return joinLines(lines)
}

// chooseLogin returns the line that becomes the console's login, -1 for none.
func chooseLogin(lines []string, o inittabOptions) int {
	chosen, best := -1, 0
	for i, line := range lines {
		e, ok := parseEntry(line)
		if !ok {
			continue
		}
		terminal, login := e.login(o.busybox)
		if !login {
			continue
		}
		if near := nearness(terminal, o.console); near > best {
			chosen, best = i, near
		}
	}
	return chosen
}

func nearness(terminal, console string) int {
	switch {
	case terminal == console:
		return 5
	case terminal == "" || terminal == "console":
		return 4
	case strings.HasPrefix(terminal, "xvc") || strings.HasPrefix(terminal, "hvc") || strings.HasPrefix(terminal, "hvsi"):
		return 3
	case strings.HasPrefix(terminal, "ttyS"):
		return 2
	}
	return 1
}
