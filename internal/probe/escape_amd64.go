//go:build linux

package probe

import (
	"golang.org/x/sys/unix"
)

const canForeign = true

// foreign makes a system call of i386 by int 0x80. It returns what the kernel
// does.
//
//go:noescape
func foreign(nr, a, b, c uintptr) uintptr

// spawn starts a process in this one's memory that closes the descriptor
// close, waits until nobody has the other end of the pipe wait open, and ends.
// It returns the process's number or a negative error, as the kernel does.
// buffer is a byte that the new processes may write to.
//
//go:noescape
func spawn(buffer, wait, close uintptr) uintptr

// oldCalls are ways to the processor's ports and tables, which only x86 has.
func oldCalls(t *trail) {
	// The ports of the first unused DMA page register, for this thread only.
	_, err := call(unix.SYS_IOPERM, 0x80, 1, 1)
	t.worked("ioperm", err)
	_, err = call(unix.SYS_IOPL, 3)
	t.worked("iopl", err)
}
