//go:build linux

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Watch returns a channel that has a value whenever some nftables ruleset of
// this network may have changed since the last value was taken, by us or by
// anybody. Signals do not pile up. It costs nothing while nothing changes.
// The channel is closed when ctx ends. The network is that of the calling
// thread, also after the call has returned.
//
// The signals are the kernel's own, of the multicast group NFNLGRP_NFTABLES
// (linux/netfilter/nfnetlink.h).
func (f *Firewall) Watch(ctx context.Context) (<-chan struct{}, error) {
	socket, err := open(1 << (unix.NFNLGRP_NFTABLES - 1))
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "changes to the firewall cannot be watched; are we root?")
	}
	changed := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	go func() {
		defer close(changed)
		defer stop()
		buffer := make([]byte, 1<<16)
		for ctx.Err() == nil {
			_, err := socket.Read(buffer)
			// ENOBUFS says that messages were lost: then something changed.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				if ctx.Err() == nil {
					f.log.ErrorContext(ctx, "watching the firewall ended", "error", err)
				}
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

// open returns a netlink socket to netfilter, subscribed to groups (a bit for
// each, the lowest for group 1). Its reads can be ended by Close.
func open(groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// generation returns the number that the kernel raises with every transaction
// on any nftables ruleset of this network (NFT_MSG_GETGEN of
// linux/netfilter/nf_tables.h).
func generation() (uint32, error) {
	socket, err := open(0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = socket.Close() }()
	// nfgen is the size of struct nfgenmsg (linux/netfilter/nfnetlink.h).
	const head, nfgen = unix.SizeofNlMsghdr, 4
	request := make([]byte, head+nfgen)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST)
	if _, err := socket.Write(request); err != nil {
		return 0, err
	}
	reply := make([]byte, 4096)
	n, err := socket.Read(reply)
	if err != nil {
		return 0, err
	}
	reply = reply[:n]
	if n < head+nfgen || binary.NativeEndian.Uint16(reply[4:]) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		return 0, errors.New("the kernel does not tell the ruleset's generation")
	}
	for attributes := reply[head+nfgen:]; len(attributes) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(attributes))
		if size < unix.SizeofNlAttr || size > len(attributes) {
			break
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == unix.NFTA_GEN_ID && size == unix.SizeofNlAttr+4 {
			return binary.BigEndian.Uint32(attributes[unix.SizeofNlAttr:]), nil
		}
		// Attributes are aligned to 4 bytes (NLA_ALIGNTO).
		attributes = attributes[min((size+3)&^3, len(attributes)):]
	}
	return 0, errors.New("the kernel's answer has no generation of the ruleset")
}
