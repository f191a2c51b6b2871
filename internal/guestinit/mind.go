package guestinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/seed"
)

// A guest holds its tap by a descriptor. When somebody removes that link on
// the host and it is made again, the descriptor stays dead, and nothing that
// the host can do to a running User Mode Linux makes it open the new one. The
// guest itself can, by taking its card down and up. So one small process stays
// behind in the guest and waits for the host to ring: a card named Doorbell
// appears, and is gone again at once.

// Doorbell is the name of the card whose appearing tells a guest to open its
// own card anew. The driver makes and removes it through the management
// console.
const Doorbell = "vec15"

// MindArg is the argument that makes this program mind the card.
const MindArg = "mind-card"

// settling is how long the card is left down: the driver's poll has to see it.
const settling = 100 * time.Millisecond

// procDescriptor is /proc, as it is handed to the process that minds the card:
// the first of exec.Cmd's ExtraFiles.
const procDescriptor = 3

// mindCard starts the process that minds the card.
func (b *booter) mindCard() error {
	s := b.seed
	args := []string{MindArg, s.MAC.String(), s.Address.String(), s.Gateway.String(), strconv.Itoa(s.MTU)}
	if s.Address6.IsValid() {
		args = append(args, s.Address6.String(), s.Gateway6.String())
	}
	return stayBehind(mindCapabilities(), args...)
}

// stayBehind starts a copy of this program that can never have other
// capabilities than these, and that outlives the change of the root and of
// process 1. Its own root stays the initramfs, out of which /proc, /sys and
// /dev are moved while it starts; so it is given /proc, where it finds the
// guest's root.
func stayBehind(capabilities []uintptr, args ...string) error {
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer proc.Close()                             //nolint:errcheck // only read from
	cmd := exec.Command("/proc/self/exe", args...) //nolint:noctx // it outlives everything here
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{proc}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return startWith(cmd, capabilities)
}

// listenLinks opens a socket of rtnetlink(7) that hears of links.
func listenLinks() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// mindCapabilities are all that minding the card needs: the card itself, and
// the root of process 1. The guest's root may trace that process and use what
// it has (capabilities(7)), so a guest whose root gave capabilities up, for
// itself and for all that process 1 starts, must not find them here.
func mindCapabilities() []uintptr {
	return []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE}
}

// startWith starts a program that can never have other capabilities than
// these. It returns when the program runs.
func startWith(cmd *exec.Cmd, capabilities []uintptr) error {
	started := make(chan error)
	go func() {
		// The bounding set is a thread's own, is inherited, and cannot be
		// widened again: this thread ends with its goroutine, because it stays
		// locked, and Go starts no other threads from a locked one.
		runtime.LockOSThread()
		err := boundCapabilities(capabilities)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// boundCapabilities takes all other capabilities out of this thread's bounding
// set. The kernel ends the list of those that it knows with EINVAL.
func boundCapabilities(keep []uintptr) error {
	for c := uintptr(0); ; c++ {
		if slices.Contains(keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
}

// Mind waits for the doorbell for ever and sets the card up anew when it
// rings. args are those behind MindArg. It returns only with an error.
func Mind(args []string) error {
	if len(args) != 4 && len(args) != 6 {
		return fmt.Errorf("%s takes four arguments, or six with IPv6, not %d", MindArg, len(args))
	}
	s, err := mindSeed(args)
	if err != nil {
		return err
	}
	fd, err := listenLinks()
	if err != nil {
		return err
	}
	buffer := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // something was missed; it may have been the bell
			answer(s)
		case err != nil:
			return err
		case rings(buffer[:n]):
			answer(s)
		}
	}
}

// answer opens the card anew and says so in the guest's kernel log.
func answer(s seed.Seed) {
	line := "opened the network card anew: the host made its link again"
	err := enterRoot()
	if err == nil {
		err = bounce("/sys", s)
	}
	if err != nil {
		line = "could not open the network card anew: " + err.Error()
	}
	tell(line)
}

// enterRoot makes the root of process 1 the root of this process: /sys and
// /dev are there. Process 1 may have changed its own, so each ring asks again.
func enterRoot() error {
	if err := unix.Fchdir(procDescriptor); err != nil {
		return fmt.Errorf("enter /proc: %w", err)
	}
	if err := unix.Chroot("1/root"); err != nil {
		return fmt.Errorf("enter the root of process 1: %w", err)
	}
	return unix.Chdir("/")
}

func mindSeed(args []string) (s seed.Seed, err error) {
	if err := s.MAC.UnmarshalText([]byte(args[0])); err != nil {
		return s, err
	}
	if s.Address, err = netip.ParseAddr(args[1]); err != nil {
		return s, err
	}
	if s.Gateway, err = netip.ParseAddr(args[2]); err != nil {
		return s, err
	}
	if s.MTU, err = strconv.Atoi(args[3]); err != nil || len(args) == 4 {
		return s, err
	}
	if s.Address6, err = netip.ParseAddr(args[4]); err != nil {
		return s, err
	}
	s.Gateway6, err = netip.ParseAddr(args[5])
	return s, err
}

// rings looks for the doorbell among messages of rtnetlink(7): an RTM_NEWLINK
// whose attribute IFLA_IFNAME is its name.
func rings(messages []byte) bool {
	for kind, name := range links(messages) {
		if kind == unix.RTM_NEWLINK && name == Doorbell {
			return true
		}
	}
	return false
}

// linkName finds IFLA_IFNAME among attributes.
func linkName(attributes []byte) string {
	for len(attributes) >= unix.SizeofRtAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofRtAttr || length > len(attributes) {
			return ""
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == unix.IFLA_IFNAME {
			return strings.TrimRight(string(attributes[unix.SizeofRtAttr:length]), "\x00")
		}
		attributes = attributes[min((length+3)&^3, len(attributes)):]
	}
	return ""
}

// bounce takes the card down, and sets it up as at boot.
func bounce(sysDir string, s seed.Seed) error {
	_, index, err := findCard(sysDir, s.MAC)
	if err != nil {
		return err
	}
	conn, err := dialRoute()
	if err != nil {
		return err
	}
	err = conn.do(routeMessage{"take down the card", unix.RTM_NEWLINK, 0, linkDown(index)})
	conn.close()
	if err != nil {
		return err
	}
	<-time.After(settling)
	return setNetwork(sysDir, s)
}

// tell writes a line to the guest's kernel log.
func tell(line string) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		_, _ = fmt.Fprintf(f, "<5>sublet: %s\n", line)
		_ = f.Close()
	}
}
