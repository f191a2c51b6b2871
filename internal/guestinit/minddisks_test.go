package guestinit

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linkMessage is what rtnetlink(7) says of a link.
func linkMessage(kind uint16, name string) []byte {
	attribute := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(name)+1))
	attribute = binary.NativeEndian.AppendUint16(attribute, unix.IFLA_IFNAME)
	attribute = append(append(attribute, name...), 0)
	for len(attribute)%4 != 0 {
		attribute = append(attribute, 0)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg+len(attribute)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, make([]byte, unix.NLMSG_HDRLEN-6+unix.SizeofIfInfomsg)...)
	return append(b, attribute...)
}

func TestFreezer(t *testing.T) {
	t.Parallel()
	var log []string
	var failure error
	f := freezer{
		answer: func(text string) { log = append(log, text) },
		freeze: func() (func(), error) {
			if failure != nil {
				return nil, failure
			}
			log = append(log, "freeze")
			return func() { log = append(log, "thaw") }, nil
		},
	}
	said := func(want ...string) {
		t.Helper()
		if !slices.Equal(log, want) {
			t.Errorf("it did %q, want %q", log, want)
		}
		log = nil
	}
	now := time.Unix(1000, 0)
	ring := linkMessage(unix.RTM_NEWLINK, FreezeBell)
	gone := linkMessage(unix.RTM_DELLINK, FreezeBell)

	f.hear(append(linkMessage(unix.RTM_NEWLINK, Doorbell), linkMessage(unix.RTM_DELLINK, "eth0")...), now)
	said()
	if f.timeout(now) != -1 {
		t.Error("it waits for an end of nothing")
	}
	f.hear(append(slices.Clone(ring), ring...), now)
	said(FreezeBegun, "freeze", FreezeDone)
	f.hear(ring, now)
	said()
	if f.expired(now) || f.timeout(now) != int(freezeLimit.Milliseconds()) {
		t.Errorf("it waits %d ms", f.timeout(now))
	}
	f.hear(gone, now)
	said("thaw")
	f.hear(gone, now)
	said()

	// A host that died.
	f.hear(ring, now)
	now = now.Add(freezeLimit)
	if !f.expired(now) {
		t.Error("it freezes for ever")
	}
	f.end("late")
	said(FreezeBegun, "freeze", FreezeDone, "thaw")
	f.hear(ring, now) // still the same card
	said()
	f.hear(gone, now)
	said()

	failure = errors.New("no such filesystem")
	f.hear(ring, now)
	said(FreezeBegun, FreezeFailed)
	f.hear(append(gone, ring...), now)
	said(FreezeBegun, FreezeFailed)
}

func TestDiskMounts(t *testing.T) {
	t.Parallel()
	const table = `24 1 98:0 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
25 24 0:6 / /dev rw,nosuid - devtmpfs udev rw
26 24 0:21 / /proc rw - proc proc rw
30 24 98:48 / /mnt/my\040disk rw,relatime - xfs /dev/ubdd rw,attr2
31 24 98:48 /sub /mnt/again rw,relatime - xfs /dev/ubdd rw,attr2
32 24 98:32 / /lib/modules ro,relatime - squashfs /dev/ubdc ro
33 24 0:40 / /b rw shared:9 master:2 - btrfs /dev/ubde rw,space_cache
34 24 98:64 / /ro ro,relatime - ext4 /dev/ubdf rw
half a line
`
	got := diskMounts(strings.NewReader(table))
	if want := []string{"/", "/mnt/my disk", "/b", "/ro"}; !slices.Equal(got, want) {
		t.Errorf("the disks are at %q, want %q", got, want)
	}
}

func FuzzLinks(f *testing.F) {
	f.Add(linkMessage(unix.RTM_NEWLINK, "vec14"))
	f.Add([]byte{16, 0, 0, 0, 16, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		for range links(b) { // it must end, and not panic
		}
	})
}
