//go:build linux

package nstest

import (
	"os"

	"golang.org/x/sys/unix"
)

// OpenTap opens a tap of n, or makes it, as a guest's process does: with the
// rights of a user and no more, 0 for root. Beside IFF_TAP and IFF_NO_PI it has
// flags (linux/if_tun.h). Each Read and Write is one frame, Close ends them, and so
// does the test's end. Any goroutine may call it.
func (n *NS) OpenTap(link string, uid uint32, flags uint16) (tap *os.File, err error) {
	n.Do(func() {
		var fd int
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			err = &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
			return
		}
		var request *unix.Ifreq
		if request, err = unix.NewIfreq(link); err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
			// For this thread only, which ends with the function.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				err = os.NewSyscallError("setresuid", errno)
			} else {
				err = os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
			}
		}
		if err != nil {
			_ = unix.Close(fd)
			return
		}
		tap = os.NewFile(uintptr(fd), link)
	})
	if err == nil {
		n.t.Cleanup(func() { _ = tap.Close() })
	}
	return tap, err
}

// Carry carries what comes to each of two taps to the other one, as a guest does
// between its network and its process, until they are closed.
func Carry(a, b *os.File) {
	carry := func(from, to *os.File) {
		for buffer := make([]byte, 1<<17); ; {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			_, _ = to.Write(buffer[:n]) // a queue that is full drops
		}
	}
	go carry(a, b)
	go carry(b, a)
}
