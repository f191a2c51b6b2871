//go:build linux

package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Watch returns a channel that has a value whenever something may have changed
// since the last value was taken that Set, Diff or Uplinks look at: a link with
// our prefixes, an address, a route, a routing rule, forwarding, a queueing discipline, whoever
// did it, ourselves too. Signals do not pile up. It costs nothing while nothing
// changes. The channel is closed when ctx ends. The network is that of the
// calling thread, also after the call has returned.
func (h *Net) Watch(ctx context.Context) (<-chan struct{}, error) {
	socket, err := subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_TC)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "changes to the host's network cannot be watched")
	}
	changed := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	go func() {
		defer close(changed)
		defer stop()
		buffer := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, err := socket.Read(buffer)
			// ENOBUFS says that messages were lost: then something changed.
			lost := errors.Is(err, unix.ENOBUFS)
			if err != nil && !lost {
				if ctx.Err() == nil {
					h.log.ErrorContext(ctx, "watching the host's network ended", "error", err)
				}
				return
			}
			if !lost && !matters(buffer[:n]) {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

// subscribe returns a routing netlink socket that hears these multicast
// groups. Its reads can be ended by Close.
func subscribe(groups ...uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		address.Groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, address); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// matters tells whether a datagram of netlink messages has one that concerns
// us, so that a host with many routes or containers does not keep us busy.
func matters(datagram []byte) bool {
	const head = unix.SizeofNlMsghdr
	for len(datagram) >= head {
		size := int(binary.NativeEndian.Uint32(datagram))
		if size < head || size > len(datagram) {
			return true // Not understood: better look.
		}
		body := datagram[head:size]
		switch binary.NativeEndian.Uint16(datagram[4:]) {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if name := linkOf(body); strings.HasPrefix(name, vps.LinkPrefix) || strings.HasPrefix(name, shaperPrefix) {
				return true
			}
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			// struct rtmsg: the family, and the length of the destination. Of IPv4
			// only hosts and the default concern us; of IPv6 guests' prefixes of
			// any length.
			if len(body) > 1 && (body[0] != unix.AF_INET || body[1] == 0 || body[1] == 32) {
				return true
			}
		default:
			return true
		}
		// Messages are aligned to 4 bytes (NLMSG_ALIGNTO).
		datagram = datagram[min((size+3)&^3, len(datagram)):]
	}
	return false
}

// linkOf returns the link's name in the body of a RTM_NEWLINK or RTM_DELLINK.
func linkOf(body []byte) string {
	if len(body) < unix.SizeofIfInfomsg {
		return ""
	}
	for attributes := body[unix.SizeofIfInfomsg:]; len(attributes) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(attributes))
		if size < unix.SizeofRtAttr || size > len(attributes) {
			return ""
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == unix.IFLA_IFNAME {
			return strings.TrimRight(string(attributes[unix.SizeofRtAttr:size]), "\x00")
		}
		// Attributes are aligned to 4 bytes (RTA_ALIGNTO).
		attributes = attributes[min((size+3)&^3, len(attributes)):]
	}
	return ""
}
