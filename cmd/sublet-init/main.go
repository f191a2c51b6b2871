// Command sublet-init is /init of the initramfs that guests boot from. It
// turns whatever image is on the root disk into the guest that the seed disk
// describes, and executes the image's init. It is of no use anywhere else.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"sublet/internal/guestinit"
	"sublet/internal/probe"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == guestinit.MindArg && os.Getpid() != 1 {
		// It waits for years: keep it small.
		debug.SetGCPercent(10)
		fmt.Fprintln(os.Stderr, "sublet-init:", guestinit.Mind(os.Args[2:]))
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == guestinit.MindDisksArg && os.Getpid() != 1 {
		debug.SetGCPercent(10)
		fmt.Fprintln(os.Stderr, "sublet-init:", guestinit.MindDisks())
		os.Exit(1)
	}
	if os.Getpid() != 1 && slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "umid=") }) {
		// Started like a kernel for User Mode Linux: the audit's stand-in for one.
		os.Exit(probe.Escape(os.Stdin, os.Stdout, os.Args))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "sublet-init: this program runs as process 1 of a guest, nowhere else")
		os.Exit(2)
	}
	// Ctrl-Alt-Del before the image's init runs: Go would end the program, and the
	// kernel would panic. Caught, not ignored, so that the init does not inherit
	// it; whoever asks for a shutdown asks again.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	// It lives for a fraction of a second: collecting garbage would cost more
	// than it frees. The limit is for what nobody foresaw.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	_ = guestinit.Boot(context.Background(), os.Stderr, os.Args[1:], os.Environ())
	if err := guestinit.PowerOff(); err != nil {
		fmt.Fprintln(os.Stderr, "sublet: could not switch off:", err)
	}
	// Process 1 must not end: the kernel would panic.
	select {}
}
