package guestinit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A snapshot of a running guest's disks is better when its filesystems are
// frozen while they are copied: nothing is half-way then, and no journal has to
// be replayed. Only the guest can do that. So a second small process stays
// behind and waits for the host to ring: a card named FreezeBell appears, and
// the filesystems are frozen until it is gone, or for freezeLimit. The card's
// own sysctl FreezeAnswer, which means nothing to the kernel, is the answer.

// FreezeBell is the name of the card whose presence asks for frozen
// filesystems. The driver makes and removes it through the management console.
const FreezeBell = "vec14"

// FreezeAnswer is the file below /proc that the host reads the answer from.
const FreezeAnswer = "sys/net/ipv4/conf/" + FreezeBell + "/tag"

// The answers. The kernel's default is 0: nobody has answered.
const (
	FreezeBegun  = "3"
	FreezeDone   = "1"
	FreezeFailed = "2"
)

// MindDisksArg is the argument that makes this program mind the disks.
const MindDisksArg = "mind-disks"

// freezeLimit is how long filesystems stay frozen at most. It does not count
// while the host has the guest stand still.
const freezeLimit = 10 * time.Second

// mindDisks starts the process that minds the disks, as mindCard does the
// other one. Freezing takes CAP_SYS_ADMIN, and getting at the guest's mounts
// the rest.
func (b *booter) mindDisks() error {
	return stayBehind(mindDisksCapabilities(), MindDisksArg)
}

func mindDisksCapabilities() []uintptr {
	return []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}
}

// MindDisks waits for the bell for ever. It returns only with an error.
func MindDisks() error {
	fd, err := listenLinks()
	if err != nil {
		return err
	}
	f := freezer{freeze: freezeAll, answer: answerFreeze}
	buffer := make([]byte, 32<<10)
	for {
		if f.expired(time.Now()) {
			f.end("the host did not say that it was done")
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, f.timeout(time.Now()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ready < 1 {
			continue
		}
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // something was missed; it may have been the end
			f.end("")
		case err != nil:
			return err
		default:
			f.hear(buffer[:n], time.Now())
		}
	}
}

// freezer is whether the filesystems are frozen.
type freezer struct {
	freeze func() (thaw func(), err error)
	answer func(text string)

	rung  bool // the card is there, and was answered
	thaw  func()
	until time.Time
}

// hear takes messages of rtnetlink(7). The same card is announced more than
// once, and rings once.
func (f *freezer) hear(messages []byte, now time.Time) {
	for kind, name := range links(messages) {
		switch {
		case name != FreezeBell:
		case kind == unix.RTM_DELLINK:
			f.end("")
			f.rung = false
		case !f.rung:
			f.rung = true
			f.answer(FreezeBegun)
			thaw, err := f.freeze()
			if err != nil {
				f.answer(FreezeFailed)
				tell("could not freeze the filesystems: " + err.Error())
				continue
			}
			f.thaw, f.until = thaw, now.Add(freezeLimit)
			f.answer(FreezeDone)
		}
	}
}

// end lets the filesystems go on.
func (f *freezer) end(why string) {
	if f.thaw == nil {
		return
	}
	f.thaw()
	f.thaw = nil
	if why != "" {
		tell("let the filesystems go on: " + why)
	}
}

func (f *freezer) expired(now time.Time) bool { return f.thaw != nil && !now.Before(f.until) }

// timeout is how long to wait for messages, in milliseconds; -1 is for ever.
func (f *freezer) timeout(now time.Time) int {
	if f.thaw == nil {
		return -1
	}
	return max(1, int(f.until.Sub(now).Milliseconds()))
}

// links yields the kind and the link's name of each message of rtnetlink(7).
func links(messages []byte) func(yield func(kind uint16, name string) bool) {
	return func(yield func(kind uint16, name string) bool) {
		for len(messages) >= unix.NLMSG_HDRLEN {
			length := int(binary.NativeEndian.Uint32(messages))
			if length < unix.NLMSG_HDRLEN || length > len(messages) {
				return
			}
			kind, body := binary.NativeEndian.Uint16(messages[4:]), messages[unix.NLMSG_HDRLEN:length]
			if (kind == unix.RTM_NEWLINK || kind == unix.RTM_DELLINK) && len(body) >= unix.SizeofIfInfomsg {
				if !yield(kind, linkName(body[unix.SizeofIfInfomsg:])) {
					return
				}
			}
			messages = messages[min((length+3)&^3, len(messages)):]
		}
	}
}

// answerFreeze writes the answer where the host reads it.
func answerFreeze(text string) {
	fd, err := unix.Openat(procDescriptor, FreezeAnswer, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the card is gone already
	}
	_, _ = unix.Write(fd, []byte(text))
	_ = unix.Close(fd)
}

// Requests that stop a filesystem in a state that needs no recovery, and let it
// go on: FIFREEZE and FITHAW of linux/fs.h, _IOWR('X', 119, int) and 120.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// freezeAll freezes the filesystems that process 1 sees on disks, the last
// mounted first, since it may lie on an earlier one. One that cannot be frozen
// is an error, and none stays so.
func freezeAll() (thaw func(), err error) {
	fd, err := unix.Openat(procDescriptor, "1/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read the mounts of process 1: %w", err)
	}
	table := os.NewFile(uintptr(fd), "mountinfo")
	places := diskMounts(table)
	_ = table.Close() // only read from
	if err := enterRoot(); err != nil {
		return nil, err
	}
	var frozen []*os.File
	thaw = func() {
		for _, f := range slices.Backward(frozen) {
			_ = unix.IoctlSetInt(int(f.Fd()), fiThaw, 0)
			_ = f.Close()
		}
	}
	for _, place := range slices.Backward(places) {
		f, err := os.Open(place)
		if err == nil {
			err = unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0)
		}
		switch {
		case err == nil:
			frozen = append(frozen, f)
		case errors.Is(err, unix.EBUSY): // somebody else froze it, and thaws it
			_ = f.Close()
		default:
			thaw()
			return nil, fmt.Errorf("freeze %s: %w", place, err)
		}
	}
	return thaw, nil
}

// diskMounts returns one place for each filesystem that lies on a disk and can
// be written to, in the order in which they were mounted. The lines are those
// of proc_pid_mountinfo(5).
func diskMounts(r io.Reader) []string {
	var places []string
	seen := map[string]bool{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		before, after, found := strings.Cut(lines.Text(), " - ")
		own, fs := strings.Fields(before), strings.Fields(after)
		if !found || len(own) < 6 || len(fs) < 3 {
			continue
		}
		source, writable := fs[1], slices.Contains(strings.Split(fs[2], ","), "rw")
		if !strings.HasPrefix(source, "/dev/") || !writable || seen[own[2]] {
			continue
		}
		seen[own[2]] = true
		places = append(places, unescapeMount(own[4]))
	}
	return places
}

// unescapeMount undoes what the kernel does to blanks and backslashes in paths.
func unescapeMount(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}
