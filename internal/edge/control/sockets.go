//go:build linux

package control

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// handle is a descriptor of a socket that this process only keeps. It is no
// os.File: that one would hear of each connection that comes, and it may make
// the socket blocking, for all who have it.
type handle int

const none handle = -1

// close closes it; none is left alone.
func (h handle) close() {
	if h != none {
		_ = unix.Close(int(h)) // a socket that only listens loses nothing
	}
}

// duplicate returns another descriptor of the same socket.
func (h handle) duplicate() (handle, error) {
	fd, err := unix.FcntlInt(uintptr(h), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return none, os.NewSyscallError("fcntl", err)
	}
	return handle(fd), nil
}

func comparePorts(a, b edge.Port) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Kind, b.Kind))
}

// PortName says a port as people do: "443/tcp".
func PortName(p edge.Port) string {
	if p.Kind == edge.KindQUIC {
		return fmt.Sprintf("%d/udp", p.Number)
	}
	return fmt.Sprintf("%d/tcp", p.Number)
}

// open opens a port on all of the host's addresses: one socket for IPv6 and
// IPv4, or for IPv4 alone where the host has no IPv6. The queue of those who
// wait is as long as the kernel lets it be (net.core.somaxconn).
func open(ctx context.Context, port edge.Port) (handle, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false) // guests' own sockets have none either
	address := ":" + strconv.Itoa(int(port.Number))
	var socket interface {
		syscall.Conn
		Close() error
	}
	var err error
	if port.Kind == edge.KindQUIC {
		var conn net.PacketConn
		if conn, err = c.ListenPacket(ctx, "udp", address); err == nil {
			socket = conn.(*net.UDPConn) // by the network's name
		}
	} else {
		var l net.Listener
		if l, err = c.Listen(ctx, "tcp", address); err == nil {
			socket = l.(*net.TCPListener) // by the network's name
		}
	}
	if err != nil {
		return none, openError(port, err)
	}
	kept := none
	raw, err := socket.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) { kept, failed = handle(fd).duplicate() })
		err = errors.Join(err, failed)
	}
	return kept, errors.Join(err, socket.Close())
}

func openError(port edge.Port, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return vps.Wrap(vps.CodeInternal, err, "the edge cannot listen on port %s", PortName(port))
	}
	who := "another program"
	if holder := holderOf("/proc", port); holder != "" {
		who = holder
	}
	return vps.Wrap(vps.CodeConflict, err, "the edge cannot listen on port %s, because %s does; stop that, or have it listen elsewhere, and the edge takes the port by itself", PortName(port), who)
}

// holderOf names the process that listens on a port: "nginx (process 812)". It
// is empty when that cannot be found out.
func holderOf(proc string, port edge.Port) string {
	tables, state := []string{"tcp", "tcp6"}, "0A" // TCP_LISTEN
	if port.Kind == edge.KindQUIC {
		tables, state = []string{"udp", "udp6"}, "07" // as in internal/daemon's facts
	}
	inodes := map[string]bool{}
	for _, table := range tables {
		file, err := os.Open(filepath.Join(proc, "net", table))
		if err != nil {
			continue // a host without IPv6
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			// proc(5): the local address is the second column, the state the fourth,
			// the inode the tenth.
			const inode = 9
			c := strings.Fields(lines.Text())
			if len(c) > inode && c[3] == state && strings.HasSuffix(c[1], fmt.Sprintf(":%04X", port.Number)) {
				inodes["socket:["+c[inode]+"]"] = true
			}
		}
		_ = file.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	links, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	if err != nil {
		return ""
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && inodes[target] {
			dir := filepath.Dir(filepath.Dir(link))
			name, err := os.ReadFile(filepath.Join(dir, "comm"))
			if err != nil {
				continue
			}
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
		}
	}
	return ""
}

// check finds out whether this is the socket of a port. The process that gave
// it may be in strangers' hands.
func (h handle) check(port edge.Port) error {
	fd := int(h)
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	var at int
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		at = a.Port
	case *unix.SockaddrInet6:
		at = a.Port
	}
	wantKind, wantListens := unix.SOCK_STREAM, 1
	if port.Kind == edge.KindQUIC {
		wantKind, wantListens = unix.SOCK_DGRAM, 0
	}
	if kind != wantKind || listens != wantListens || at != int(port.Number) {
		return fmt.Errorf("the edge gave something else for the socket of port %s", PortName(port))
	}
	return nil
}
