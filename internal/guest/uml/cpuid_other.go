//go:build !amd64

package uml

// xstateSize is for x86 only, as User Mode Linux is.
func xstateSize() uint32 { return 0 }
