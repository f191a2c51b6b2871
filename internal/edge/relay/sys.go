//go:build linux

package relay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls of which each connection makes many. None of them waits, so that
// the scheduler has not to be told. Errors are unix.Errno.

func result(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// read is not called with an empty b, and neither is send.
func read(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
		if errno != unix.EINTR {
			return result(n, errno)
		}
	}
}

func send(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return result(n, errno)
		}
	}
}

func splice(from, to int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, spliceAtMost, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return result(n, errno)
		}
	}
}

// accept returns a connection that does not block, and who calls.
func accept(listener int) (fd int, from netip.AddrPort, err error) {
	var address unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&address)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, from, errno
	}
	b := (*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&address))
	port := binary.BigEndian.Uint16(b[2:])
	switch address.Addr.Family {
	case unix.AF_INET:
		from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case unix.AF_INET6:
		from = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), port)
	}
	return int(n), from, nil
}

// sockaddr writes an address as the kernel has it (struct sockaddr_in, sockaddr_in6).
func sockaddr(a netip.AddrPort, b *[unix.SizeofSockaddrInet6]byte) (size uintptr) {
	binary.BigEndian.PutUint16(b[2:], a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(b[:], unix.AF_INET)
		*(*[4]byte)(b[4:]) = a.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b[:], unix.AF_INET6)
	*(*[16]byte)(b[8:]) = a.Addr().As16()
	return unix.SizeofSockaddrInet6
}

// connect makes a socket and begins to connect it, from an address that is not the
// host's own, if from is valid.
func connect(from, to netip.AddrPort) (fd int, err error) {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if to.Addr().Is6() {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	fd = int(n)
	set := func(level, option int) {
		if errno == 0 {
			on := int32(1)
			_, _, errno = unix.RawSyscall6(unix.SYS_SETSOCKOPT, n, uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&on)), 4, 0)
		}
	}
	call := func(trap uintptr, a netip.AddrPort) {
		if errno == 0 {
			var b [unix.SizeofSockaddrInet6]byte
			size := sockaddr(a, &b)
			_, _, errno = unix.RawSyscall(trap, n, uintptr(unsafe.Pointer(&b)), size)
		}
	}
	set(unix.IPPROTO_TCP, unix.TCP_NODELAY)
	if from.IsValid() {
		set(level, option)
		// A caller may have one port for several connections, to several guests.
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR)
		call(unix.SYS_BIND, from)
	}
	call(unix.SYS_CONNECT, to)
	if errno != 0 && errno != unix.EINPROGRESS {
		closeFD(fd)
		return -1, errno
	}
	return fd, nil
}

func shutdown(fd int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	_, err := result(0, errno)
	return err
}

func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// add has an event reported by an epoll descriptor.
func add(epoll, fd int, e *unix.EpollEvent) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(e)), 0, 0)
	_, err := result(0, errno)
	return err
}

// poll fetches events, and waits for them at most so many milliseconds. The
// scheduler is not told, and thinks that this goroutine runs.
func poll(epoll int, events []unix.EpollEvent, wait int) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(wait), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
