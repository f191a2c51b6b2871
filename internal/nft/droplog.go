//go:build linux

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// DropLog is one packet that the wall dropped and logged.
type DropLog struct {
	Time time.Time
	// Link is the guest's link that the packet came in by, or was to leave by.
	// It is empty for what a guest's process sent from the host's network.
	Link   string
	Reason vps.DropReason
	// Summary says in one line what it was, without control characters.
	Summary string
}

// WatchDrops returns a channel with the packets that the wall logs, 15 a
// minute for each guest at most; who does not read misses some. It is closed
// when ctx ends. Nobody else may listen to the same group: a vps.CodeConflict.
// The network is that of the calling thread, also after the call has returned.
//
// The messages are those of linux/netfilter/nfnetlink_log.h.
func (f *Firewall) WatchDrops(ctx context.Context) (<-chan DropLog, error) {
	socket, err := open(0)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "dropped packets cannot be heard of; are we root?")
	}
	links, err := newNames()
	if err == nil {
		err = bindLog(socket)
	}
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	logged := make(chan DropLog, 64)
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	go func() {
		defer close(logged)
		defer stop()
		defer func() { _ = links.socket.Close() }()
		buffer := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, err := socket.Read(buffer)
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // messages were lost, no more
				if ctx.Err() == nil {
					f.log.ErrorContext(ctx, "listening to dropped packets ended", "error", err)
				}
				return
			}
			for _, d := range parseLog(buffer[:max(n, 0)], links) {
				d.Time = time.Now()
				select {
				case logged <- d:
				default:
				}
			}
		}
	}()
	return logged, nil
}

// The commands, attributes and modes used here (linux/netfilter/nfnetlink_log.h).
const (
	msgPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	msgConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	cfgCommand = 1 // NFULA_CFG_CMD
	cfgMode    = 2 // NFULA_CFG_MODE
	cmdBind    = 1 // NFULNL_CFG_CMD_BIND
	copyPacket = 2 // NFULNL_COPY_PACKET

	attrHeader  = 1  // NFULA_PACKET_HDR
	attrIndev   = 4  // NFULA_IFINDEX_INDEV
	attrOutdev  = 5  // NFULA_IFINDEX_OUTDEV
	attrPhysIn  = 6  // NFULA_IFINDEX_PHYSINDEV
	attrPhysOut = 7  // NFULA_IFINDEX_PHYSOUTDEV
	attrPayload = 9  // NFULA_PAYLOAD
	attrPrefix  = 10 // NFULA_PREFIX
	attrUID     = 11 // NFULA_UID
	attrHWHead  = 16 // NFULA_HWHEADER

	attrMask = 0x3fff // NLA_TYPE_MASK
	nfgenLen = 4      // struct nfgenmsg
)

// bindLog makes a socket the listener of our group.
func bindLog(socket *os.File) error {
	mode := binary.BigEndian.AppendUint32(nil, snaplen)
	mode = append(mode, copyPacket, 0) // struct nfulnl_msg_config_mode
	for _, attribute := range [][]byte{
		netlinkAttribute(cfgCommand, []byte{cmdBind}), netlinkAttribute(cfgMode, mode),
	} {
		if err := configure(socket, attribute); err != nil {
			// EPERM is what the kernel says when another socket has the group.
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) {
				return vps.Wrap(vps.CodeConflict, err, "another program listens to the group %d of netfilter's log, so dropped packets are not logged; stop it", logGroup)
			}
			return vps.Wrap(vps.CodeInternal, err, "dropped packets cannot be heard of (nfnetlink_log)")
		}
	}
	return nil
}

func netlinkAttribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// configure sends one setting for the group and waits for the kernel's word.
func configure(socket *os.File, attribute []byte) error {
	const head = unix.SizeofNlMsghdr
	m := make([]byte, head+nfgenLen, head+nfgenLen+len(attribute))
	binary.NativeEndian.PutUint32(m, uint32(cap(m)))
	binary.NativeEndian.PutUint16(m[4:], msgConfig)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.BigEndian.PutUint16(m[head+2:], logGroup)
	if _, err := socket.Write(append(m, attribute...)); err != nil {
		return err
	}
	answer := make([]byte, 1<<16)
	for {
		n, err := socket.Read(answer)
		if err != nil {
			return err
		}
		// A packet may come before the answer to the second setting.
		if n < head+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(answer[head:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
}

// parseLog reads a datagram of netlink messages. What is none of ours is
// passed over.
func parseLog(datagram []byte, links names) []DropLog {
	const head = unix.SizeofNlMsghdr
	var all []DropLog
	for len(datagram) >= head {
		size := int(binary.NativeEndian.Uint32(datagram))
		if size < head || size > len(datagram) {
			break
		}
		if binary.NativeEndian.Uint16(datagram[4:]) == msgPacket && size >= head+nfgenLen {
			if d, ok := parsePacket(datagram[head+nfgenLen:size], links); ok {
				all = append(all, d)
			}
		}
		datagram = datagram[min((size+3)&^3, len(datagram)):]
	}
	return all
}

// parsePacket reads the attributes of one logged packet.
func parsePacket(attributes []byte, links names) (DropLog, bool) {
	values := map[uint16][]byte{}
	for len(attributes) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(attributes))
		if size < unix.SizeofNlAttr || size > len(attributes) {
			break
		}
		values[binary.NativeEndian.Uint16(attributes[2:])&attrMask] = attributes[unix.SizeofNlAttr:size]
		attributes = attributes[min((size+3)&^3, len(attributes)):]
	}
	reason, ours := strings.CutPrefix(strings.TrimRight(string(values[attrPrefix]), "\x00"), "sublet ")
	if !ours {
		return DropLog{}, false
	}
	d := DropLog{Reason: vps.DropReason(printable(reason))}
	for _, kind := range []uint16{attrPhysIn, attrIndev, attrPhysOut, attrOutdev} {
		if name := links.of(values[kind]); strings.HasPrefix(name, vps.LinkPrefix) {
			d.Link = name
			break
		}
	}
	var protocol uint16
	if h := values[attrHeader]; len(h) >= 2 { // struct nfulnl_msg_packet_hdr
		protocol = binary.BigEndian.Uint16(h)
	}
	var words []string
	if h := values[attrHWHead]; len(h) >= 12 {
		words = append(words, "from "+net.HardwareAddr(h[6:12]).String())
	}
	if uid := values[attrUID]; len(uid) >= 4 {
		words = append(words, fmt.Sprintf("by user %d", binary.BigEndian.Uint32(uid)))
	}
	d.Summary = strings.Join(append(words, summary(protocol, values[attrPayload])), " ")
	return d, true
}

// names finds links' names by their index, in the network that it was made in.
type names struct{ socket *os.File }

func newNames() (names, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return names{}, os.NewSyscallError("socket", err)
	}
	return names{os.NewFile(uintptr(fd), "names")}, nil
}

// of returns the name of the link with this index, or "".
func (n names) of(index []byte) string {
	if len(index) < 4 || n.socket == nil {
		return ""
	}
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return ""
	}
	request.SetUint32(binary.BigEndian.Uint32(index))
	if unix.IoctlIfreq(int(n.socket.Fd()), unix.SIOCGIFNAME, request) != nil {
		return ""
	}
	return request.Name()
}

// summary describes a packet by its network and transport headers, as far as
// they are there.
func summary(protocol uint16, b []byte) string {
	const (
		v4Len, v6Len   = 20, 40
		offsetMask     = 0x1fff
		arpLen, arpOff = 28, 14
	)
	switch protocol {
	case unix.ETH_P_IP:
		if len(b) < v4Len {
			break
		}
		from, to := addr(b[12:16]), addr(b[16:20])
		rest := b[min(int(b[0]&0xf)*4, len(b)):]
		if binary.BigEndian.Uint16(b[6:])&offsetMask != 0 {
			rest = nil
		}
		return transport(from, to, b[9], rest)
	case unix.ETH_P_IPV6:
		if len(b) < v6Len {
			break
		}
		return transport(addr(b[8:24]), addr(b[24:40]), b[6], b[v6Len:])
	case unix.ETH_P_ARP:
		if len(b) < arpLen {
			break
		}
		return fmt.Sprintf("ARP operation %d: %s says it has %s, to %s", binary.BigEndian.Uint16(b[6:]), net.HardwareAddr(b[8:arpOff]), addr(b[14:18]), addr(b[24:28]))
	}
	return fmt.Sprintf("a frame of the type 0x%04x, %d bytes", protocol, len(b))
}

// transport describes what follows the addresses.
func transport(from, to netip.Addr, protocol byte, b []byte) string {
	names := map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}
	name, ports := names[protocol]
	switch {
	case ports && len(b) >= 4:
		return fmt.Sprintf("%s %s -> %s", name, netip.AddrPortFrom(from, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:])))
	case (protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6) && len(b) >= 2:
		return fmt.Sprintf("ICMP type %d %s -> %s", b[0], from, to)
	}
	return fmt.Sprintf("IP protocol %d %s -> %s", protocol, from, to)
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// printable keeps what may stand in a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}
