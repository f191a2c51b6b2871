//go:build linux

package hostnet

import (
	"errors"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapFlags are the flags of a guest's tap (linux/if_tun.h): whole frames, no
// packet information in front, and the virtio header that UML's vector driver
// needs for offloads.
const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// openTap opens the tap with this name, or makes it. The error is EBUSY when a
// process has it open. While it is not persistent it ends with the descriptor.
func openTap(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	ifreq, err := unix.NewIfreq(name)
	if err == nil {
		ifreq.SetUint16(tapFlags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifreq)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("ioctl TUNSETIFF", err)
	}
	return fd, nil
}

// makeTap makes a persistent tap that only uid, and root, may open. A kill at
// any instant leaves a whole tap with our mark or none at all: the tap becomes
// persistent last. Its group stays unset; a group would be asked of the opener
// as well.
func makeTap(handle *netlink.Handle, name, alias string, uid uint32) error {
	fd, err := openTap(name)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	link, err := handle.LinkByName(name)
	if err != nil {
		return err
	}
	if err := handle.LinkSetAlias(link, alias); err != nil {
		return err
	}
	return keepTap(fd, uid)
}

// keepTap gives an open tap its owner and makes it persistent.
func keepTap(fd int, uid uint32) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid)); err != nil {
		return os.NewSyscallError("ioctl TUNSETOWNER", err)
	}
	return os.NewSyscallError("ioctl TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

// errInUse says that a tap cannot be changed because a process has it open.
var errInUse = errors.New("the tap is open in a running guest; restart the guest")

// repairTap gives a tap of ours the right flags and owner, when no process has
// it open. What cannot be changed in place is made anew.
func repairTap(handle *netlink.Handle, tap *netlink.Tuntap, alias string, uid uint32) error {
	fd, err := openTap(tap.Name)
	switch {
	case errors.Is(err, unix.EBUSY) || tap.Queues > tap.DisabledQueues:
		if err == nil {
			_ = unix.Close(fd)
		}
		return errInUse
	case err == nil && tap.Group == 0 && tap.Mode == netlink.TUNTAP_MODE_TAP:
		defer func() { _ = unix.Close(fd) }()
		return keepTap(fd, uid)
	case err == nil:
		_ = unix.Close(fd)
	}
	if err := handle.LinkDel(tap); err != nil {
		return err
	}
	return makeTap(handle, tap.Name, alias, uid)
}

// tapIsRight tells whether a tap is as makeTap makes it.
func tapIsRight(tap *netlink.Tuntap, uid uint32) bool {
	const want = netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR
	return tap.Mode == netlink.TUNTAP_MODE_TAP && tap.Flags == want && !tap.NonPersist && tap.Owner == uid && tap.Group == 0
}
