package guestinit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"sublet/internal/probe"
)

// What is here looks what a kernel can do, before guests are given it: it does
// each thing, and does not ask the kernel's configuration.

// examine answers what is asked about this kernel, in place of booting an
// image.
func (b *booter) examine(ctx context.Context) error {
	b.attempt(ctx, step{"mount the kernel's modules", b.mountModules})
	b.attempt(ctx, step{"load IPv6", b.loadIPv6})
	bell, err := listenForBell()
	if err != nil {
		return err
	}
	defer unix.Close(bell) //nolint:errcheck // nothing was written
	if err := makeRaw(os.Stdin); err != nil {
		return err
	}
	err = probe.Serve(os.Stdin, b.console, func(r probe.Request) probe.Answer {
		switch r.Op {
		case probe.Hello:
			return probe.Answer{}
		case probe.Examine:
			return probe.Answer{Findings: findings(bell, r.Filesystems)}
		case probe.Off:
			return probe.Answer{Last: true}
		case probe.Send, probe.Seen, probe.Try:
		}
		return probe.Answer{Error: fmt.Sprintf("this probe does not know the request %q", r.Op)}
	})
	if err != nil {
		return err
	}
	return errProbed
}

// listenForBell opens a socket that hears of new network cards.
func listenForBell() (int, error) {
	fd, err := listenLinks()
	if err != nil {
		return -1, err
	}
	limit := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// findings does everything that a guest expects of its kernel, once.
func findings(bell int, filesystems []string) []probe.Finding {
	var all []probe.Finding
	note := func(name string, err error) {
		f := probe.Finding{Name: name, OK: err == nil}
		if err != nil {
			f.Seen = err.Error()
		}
		all = append(all, f)
	}
	release, err := kernelRelease()
	all = append(all, probe.Finding{Name: "boot", OK: err == nil, Seen: release})
	note("network-card", heardBell(bell))
	for i, kind := range filesystems {
		note(kind, tryDisk("/dev/ubd"+string(rune('d'+i)), kind))
	}
	note("overlay", tryOverlay())
	note("cgroups", tryMount("cgroup2", "/try/cgroup"))
	note("namespaces", tryNamespaces())
	note("seccomp", trySeccomp())
	note("swap", exists("/proc/swaps"))
	for _, f := range []struct {
		name   string
		family byte
	}{
		{"nft-ip", unix.NFPROTO_IPV4},
		{"nft-ip6", unix.NFPROTO_IPV6},
		{"nft-inet", unix.NFPROTO_INET},
		{"nft-bridge", unix.NFPROTO_BRIDGE},
		{"nft-netdev", unix.NFPROTO_NETDEV},
		{"nft-arp", unix.NFPROTO_ARP},
	} {
		note(f.name, tryNFT(f.family))
	}
	note("iptables", tryIptables(unix.AF_INET, unix.SOL_IP))
	note("ip6tables", tryIptables(unix.AF_INET6, unix.SOL_IPV6))
	for _, kind := range []string{"wireguard", "bridge", "veth", "dummy", "vxlan"} {
		note(kind, tryLink(kind))
	}
	note("tun", exists("/dev/net/tun"))
	note("no-hostfs", missing(knownFilesystem("hostfs")))
	note("no-modules", missing(exists("/proc/modules")))
	note("no-dev-mem", missing(exists("/dev/mem")))
	return all
}

// heardBell reads what the socket has heard.
func heardBell(fd int) error {
	buffer := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return errors.New("the card that the host plugged in did not appear")
		case err != nil:
			return err
		case rings(buffer[:n]):
			return nil
		}
	}
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// missing turns what should not be there around.
func missing(err error) error {
	switch {
	case err == nil:
		return errors.New("it is there")
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

func knownFilesystem(name string) error {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[len(fields)-1] == name {
			return nil
		}
	}
	return fs.ErrNotExist
}

// tryMount mounts a filesystem that has no device, and leaves it.
func tryMount(kind, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unix.Mount(kind, dir, kind, 0, "")
}

// tryDisk mounts a disk, writes a file and reads it from a second mount.
func tryDisk(device, kind string) error {
	dir := "/try/" + kind
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, kind, 0, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	err := os.WriteFile(filepath.Join(dir, "file"), []byte(kind), 0o600)
	if err = errors.Join(err, unix.Unmount(dir, 0)); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, kind, unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount again: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "file"))
	if err == nil && string(text) != kind {
		err = fmt.Errorf("the file has %q", text)
	}
	return errors.Join(err, unix.Unmount(dir, 0))
}

func tryOverlay() error {
	if err := tryMount("tmpfs", "/try/tmpfs"); err != nil {
		return err
	}
	for _, dir := range []string{"lower", "upper", "work", "all"} {
		if err := os.Mkdir("/try/tmpfs/"+dir, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("overlay", "/try/tmpfs/all", "overlay", 0, "lowerdir=/try/tmpfs/lower,upperdir=/try/tmpfs/upper,workdir=/try/tmpfs/work")
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func tryNamespaces() error {
	for _, ns := range []string{"user", "pid", "net", "ipc", "uts", "mnt", "cgroup"} {
		if err := exists("/proc/self/ns/" + ns); err != nil {
			return err
		}
	}
	return onThread(func() error {
		return unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP)
	})
}

// trySeccomp installs a filter that makes one call fail.
func trySeccomp() error {
	return onThread(func() error {
		const (
			offsetNr = 0 // of struct seccomp_data
			refused  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTUNIQ)
		)
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetNr},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPPID, Jf: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: refused},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(filter)
		if e != 0 {
			return e
		}
		if _, _, e := unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); e != unix.ENOTUNIQ {
			return fmt.Errorf("a filter does not filter: %w", e)
		}
		return nil
	})
}

// tryLink makes a network card of a kind.
func tryLink(kind string) error {
	conn, err := dialRoute()
	if err != nil {
		return err
	}
	defer conn.close()
	body := make([]byte, unix.SizeofIfInfomsg)
	body = attribute(body, unix.IFLA_IFNAME, []byte("try-"+kind+"\x00"))
	info := attribute(nil, unix.IFLA_INFO_KIND, []byte(kind+"\x00"))
	if kind == "vxlan" {
		const vxlanID = 1 // IFLA_VXLAN_ID
		info = attribute(info, unix.IFLA_INFO_DATA, attribute(nil, vxlanID, binary.NativeEndian.AppendUint32(nil, 7)))
	}
	body = attribute(body, unix.IFLA_LINKINFO, info)
	return conn.do(routeMessage{"make a link", unix.RTM_NEWLINK, unix.NLM_F_CREATE | unix.NLM_F_EXCL, body})
}

// tryIptables asks for the table filter of iptables-legacy, which makes it.
func tryIptables(family, level int) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	// struct ipt_getinfo: the table's name, and room for the answer.
	const (
		getInfo = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
		size    = 32 + 4 + 5*4 + 5*4 + 4 + 4
	)
	var info [size]byte
	copy(info[:], "filter")
	length := uint32(size)
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// tryNFT makes a table in one of nft's families and, where there are any, a
// chain with hooks in it; in those of IP the chain masquerades by the state of
// connections.
func tryNFT(family byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	limit := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	messages := nftMessages(family)
	var batch []byte
	for i, m := range messages {
		batch = append(batch, m.bytes(uint32(i))...)
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// Each message but the first and the last is acknowledged.
	reply := make([]byte, 64<<10)
	for left := len(messages) - 2; left > 0; {
		n, _, err := unix.Recvfrom(fd, reply, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the firewall's answer: %w", err)
		}
		for rest := reply[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			length := int(binary.NativeEndian.Uint32(rest))
			if length < unix.NLMSG_HDRLEN || length > len(rest) {
				break
			}
			if _, err := acknowledged(rest[:length], binary.NativeEndian.Uint32(rest[8:])); err != nil {
				return err
			}
			left--
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
	return nil
}

// nftMessage is a message of nfnetlink, without its nlmsghdr.
type nftMessage struct {
	kind, flags uint16
	family      byte
	resource    uint16
	body        []byte
}

func (m nftMessage) bytes(sequence uint32) []byte {
	const genmsg = 4 // struct nfgenmsg
	length := unix.NLMSG_HDRLEN + genmsg + len(m.body)
	b := binary.NativeEndian.AppendUint32(nil, uint32(length))
	b = binary.NativeEndian.AppendUint16(b, m.kind)
	b = binary.NativeEndian.AppendUint16(b, m.flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.family, 0)
	b = binary.BigEndian.AppendUint16(b, m.resource)
	return append(b, m.body...)
}

// Attributes of linux/netfilter/nf_tables.h that golang.org/x/sys does not
// group by message; strings end with a zero, numbers are big-endian.
func nftMessages(family byte) []nftMessage {
	const nested = unix.NLA_F_NESTED
	text := func(b []byte, kind uint16, s string) []byte { return attribute(b, kind, []byte(s+"\x00")) }
	number := func(b []byte, kind uint16, n uint32) []byte {
		return attribute(b, kind, binary.BigEndian.AppendUint32(nil, n))
	}
	edit := func(kind uint16, body []byte) nftMessage {
		return nftMessage{unix.NFNL_SUBSYS_NFTABLES<<8 | kind, unix.NLM_F_CREATE | unix.NLM_F_ACK, family, 0, body}
	}
	messages := []nftMessage{
		{kind: unix.NFNL_MSG_BATCH_BEGIN, resource: unix.NFNL_SUBSYS_NFTABLES},
		edit(unix.NFT_MSG_NEWTABLE, text(nil, unix.NFTA_TABLE_NAME, "try")),
	}
	chain := func(kind string, hook uint32) []byte {
		b := text(nil, unix.NFTA_CHAIN_TABLE, "try")
		b = text(b, unix.NFTA_CHAIN_NAME, "all")
		b = attribute(b, unix.NFTA_CHAIN_HOOK|nested, number(number(nil, unix.NFTA_HOOK_HOOKNUM, hook), unix.NFTA_HOOK_PRIORITY, 0))
		return text(b, unix.NFTA_CHAIN_TYPE, kind)
	}
	switch family {
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6, unix.NFPROTO_INET:
		const postrouting = 4 // NF_INET_POST_ROUTING
		expression := func(b []byte, name string, data []byte) []byte {
			e := text(nil, unix.NFTA_EXPR_NAME, name)
			e = attribute(e, unix.NFTA_EXPR_DATA|nested, data)
			return attribute(b, unix.NFTA_LIST_ELEM|nested, e)
		}
		state := number(number(nil, unix.NFTA_CT_DREG, unix.NFT_REG_1), unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
		rule := text(text(nil, unix.NFTA_RULE_TABLE, "try"), unix.NFTA_RULE_CHAIN, "all")
		rule = attribute(rule, unix.NFTA_RULE_EXPRESSIONS|nested, expression(expression(nil, "ct", state), "masq", nil))
		messages = append(messages, edit(unix.NFT_MSG_NEWCHAIN, chain("nat", postrouting)), edit(unix.NFT_MSG_NEWRULE, rule))
	case unix.NFPROTO_BRIDGE, unix.NFPROTO_ARP:
		messages = append(messages, edit(unix.NFT_MSG_NEWCHAIN, chain("filter", 0)))
	}
	return append(messages, nftMessage{kind: unix.NFNL_MSG_BATCH_END, resource: unix.NFNL_SUBSYS_NFTABLES})
}
