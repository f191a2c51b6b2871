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
