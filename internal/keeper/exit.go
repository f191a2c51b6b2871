//go:build linux

package keeper

import (
	"bytes"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// panicMark starts the line that every Linux kernel ends with on a panic
// (panic() in kernel/panic.c). User Mode Linux then aborts.
const panicMark = "Kernel panic - not syncing: "

// halted are the last words of a kernel that is told to power off or to halt
// (kernel_power_off() and kernel_halt() in kernel/reboot.c). Its filesystems
// are clean then, and its init has ended.
var halted = []string{"reboot: Power down", "reboot: System halted"} //nolint:gochecknoglobals // a constant

// maxDetail bounds the kernel's line in an exit record, in bytes: whoever
// owns the guest can print what they like.
const maxDetail = 300

// exitOf says how the guest ended, from its wait status and the last of its
// console. killed tells that somebody asked us for it.
//
// A guest's end by a signal that nobody asked for is a crash, unless its
// kernel said on the console that it panics. That line alone means nothing: a
// user of the guest may print it, so it only counts for a guest that ended
// badly.
//
// User Mode Linux may still die of a signal on the way from there to its own
// exit: one that arrives meanwhile finds a kernel that has given up its memory
// (see main() in arch/um/os-Linux/main.c). For the guest that is a power-off.
func exitOf(status syscall.WaitStatus, console []byte, killed bool) vps.Exit {
	e := vps.Exit{Code: -1, At: now()}
	switch {
	case status.Exited():
		e.Code = status.ExitStatus()
	case status.Signaled():
		e.Signal = unix.SignalName(status.Signal())
	}
	switch line := panicLine(console); {
	case killed && status.Signaled():
		e.Reason = vps.ExitKilled
	case e.Code == 0:
		e.Reason = vps.ExitPowerOff
	case line != "" && (status.Exited() || status.Signal() == syscall.SIGABRT):
		e.Reason, e.Detail = vps.ExitPanic, line
	case status.Signaled() && isHalted(lastLine(console)):
		e.Reason = vps.ExitPowerOff
	default:
		e.Reason, e.Detail = vps.ExitCrash, lastLine(console)
	}
	return e
}

// panicLine returns the last panic message on a console.
func panicLine(console []byte) string {
	i := bytes.LastIndex(console, []byte(panicMark))
	if i < 0 {
		return ""
	}
	line, _, _ := bytes.Cut(console[i:], []byte("\n"))
	return printable(line)
}

// isHalted tells whether a console's last line, with or without the time in
// front, says that the kernel came to its end in good order.
func isHalted(line string) bool {
	return slices.ContainsFunc(halted, func(words string) bool { return strings.HasSuffix(line, words) })
}

// lastLine returns the last line of a console that holds anything.
func lastLine(console []byte) string {
	for _, line := range slices.Backward(bytes.Split(console, []byte("\n"))) {
		if s := printable(line); s != "" {
			return s
		}
	}
	return ""
}

// printable makes a guest's bytes fit to be shown: no control characters, so
// that they cannot play with the terminal, and a bounded length.
func printable(b []byte) string {
	b = b[:min(len(b), maxDetail)]
	s := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b), ""))
	return strings.TrimSpace(s)
}
