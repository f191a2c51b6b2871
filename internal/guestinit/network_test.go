package guestinit

import (
	"encoding/binary"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/nstest"
	"sublet/internal/seed"
	"sublet/internal/vps"
)

// TestSetNetwork sets the network of a guest up in a namespace of its own,
// twice, and lets ip(8) judge.
func TestSetNetwork(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		address, gateway, address6 string
		want                       []string
	}{
		"IPv4": {"10.213.0.2", "10.213.0.1", "", []string{
			"10.213.0.2/32", "default via 10.213.0.1 dev vec0 proto static onlink", "\n10.213.0.1 dev vec0 proto static scope link", "mtu 1400",
		}},
		"IPv6": {"2001:db8::2", "2001:db8::1", "", []string{
			"2001:db8::2/128", "default via 2001:db8::1 dev vec0 proto static", "\n2001:db8::1 dev vec0 proto static", "mtu 1400",
		}},
		"both": {"10.213.0.2", "10.213.0.1", "2001:db8::2", []string{
			"10.213.0.2/32", "default via 10.213.0.1 dev vec0 proto static onlink", "2001:db8::2/128", "default via fe80::1 dev vec0 proto static", "mtu 1400",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nstest.New(t)
			ns.Veth("vec0", ns.Peer(), "eth0")
			link, err := netlink.LinkByName("vec0")
			if err != nil {
				t.Fatal(err)
			}
			s := seed.Seed{Address: netip.MustParseAddr(tc.address), Gateway: netip.MustParseAddr(tc.gateway), MTU: 1400}
			if tc.address6 != "" {
				s.Address6, s.Gateway6 = netip.MustParseAddr(tc.address6), vps.Gateway6
			}
			copy(s.MAC[:], link.Attrs().HardwareAddr)
			for range 2 {
				if err := setNetwork("/sys", s); err != nil {
					t.Fatal(err)
				}
			}
			var out strings.Builder
			for _, args := range [][]string{{"addr"}, {"-4", "route"}, {"-6", "route"}} {
				text, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput()
				if err != nil {
					t.Fatalf("ip %v: %v: %s", args, err, text)
				}
				out.Write(text)
			}
			for _, want := range tc.want {
				if strings.Count(out.String(), want) != 1 {
					t.Errorf("not once: %q in:\n%s", want, &out)
				}
			}
			s.MAC[5] ^= 0xff
			if err := setNetwork("/sys", s); err == nil || !strings.Contains(err.Error(), "vec0 "+link.Attrs().HardwareAddr.String()) {
				t.Errorf("a wrong MAC: %v", err)
			}
		})
	}
}

func TestRings(t *testing.T) {
	t.Parallel()
	link := func(kind uint16, name string) []byte {
		body := attribute(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_MTU, []byte{1, 2, 3, 4})
		body = attribute(body, unix.IFLA_IFNAME, append([]byte(name), 0))
		m := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
		m = binary.NativeEndian.AppendUint16(m, kind)
		m = append(m, make([]byte, 10)...)
		return append(m, body...)
	}
	bell := link(unix.RTM_NEWLINK, Doorbell)
	for name, tt := range map[string]struct {
		messages []byte
		want     bool
	}{
		"the bell":             {bell, true},
		"behind another":       {append(link(unix.RTM_NEWLINK, "vec0"), bell...), true},
		"another card":         {link(unix.RTM_NEWLINK, "vec1"), false},
		"a longer name":        {link(unix.RTM_NEWLINK, Doorbell+"0"), false},
		"the bell is taken in": {link(unix.RTM_DELLINK, Doorbell), false},
		"cut off":              {bell[:len(bell)-9], false},
		"nothing":              {nil, false},
	} {
		if got := rings(tt.messages); got != tt.want {
			t.Errorf("%s: %v; want %v", name, got, tt.want)
		}
	}
}

func FuzzRings(f *testing.F) {
	f.Add([]byte{0x20, 0, 0, 0, 16, 0})
	f.Fuzz(func(_ *testing.T, messages []byte) { rings(messages) })
}
