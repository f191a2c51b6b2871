//go:build linux && !amd64

package probe

import "golang.org/x/sys/unix"

// Only x86 has kernels for User Mode Linux and what these go for.
const canForeign = false

func foreign(_, _, _, _ uintptr) uintptr { return ^uintptr(unix.ENOSYS) + 1 }

func spawn(_, _, _ uintptr) uintptr { return ^uintptr(unix.ENOSYS) + 1 }

func oldCalls(t *trail) { t.saw("this processor has no ports") }
