//go:build linux

package nft

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// indexes looks links up by name, in the network of the calling thread: with
// SIOCGIFINDEX of netdevice(7), because listing a thousand links takes the
// kernel longer than all else that a change of rules does.
type indexes struct{ socket int }

func openIndexes() (indexes, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return indexes{fd}, os.NewSyscallError("socket", err)
}

func (i indexes) close() { _ = unix.Close(i.socket) }

// of returns the index of a link, 0 when there is none.
func (i indexes) of(link string) (int, error) {
	request, err := unix.NewIfreq(link)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(i.socket, unix.SIOCGIFINDEX, request); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return 0, nil
		}
		return 0, os.NewSyscallError("ioctl SIOCGIFINDEX", err)
	}
	return int(request.Uint32()), nil
}
