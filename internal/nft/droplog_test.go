//go:build linux

package nft

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

func TestWatchDrops(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	guest := host.Peer()
	host.Veth("sl-alice", guest, "eth0")
	host.Exec("ip", "addr", "add", "10.0.0.1/24", "dev", "sl-alice")
	guest.Exec("ip", "addr", "add", "10.0.0.2/24", "dev", "eth0")
	host.ExecInput(`table inet x {
	chain in {
		type filter hook prerouting priority raw;
		iifname "sl-*" udp dport 99 log prefix "sublet spoofed" group 21324 snaplen 128 drop
		iifname "sl-*" udp dport 98 log prefix "other" group 21324 drop
	}
}
table netdev y {
	chain in {
		type filter hook ingress device "sl-alice" priority 0;
		arp operation reply log prefix "sublet arp" group 21324 drop
	}
}
`, "nft", "-f", "-")
	f := New(nil, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	logged, err := f.WatchDrops(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(nil, Options{}).WatchDrops(t.Context()); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("a second listener: %v", err)
	}
	guest.Do(func() {
		for _, port := range []string{"98", "99"} {
			conn, err := net.Dial("udp4", "10.0.0.1:"+port)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.Write([]byte("hello"))
			_ = conn.Close()
		}
	})
	mac := strings.TrimSpace(guest.Exec("cat", "/sys/class/net/eth0/address"))
	select {
	case d := <-logged:
		if d.Link != "sl-alice" || d.Reason != vps.DropSpoofed || !strings.Contains(d.Summary, "-> 10.0.0.1:99") || !strings.Contains(d.Summary, "from "+mac) {
			t.Errorf("logged %+v", d)
		}
	case <-time.After(hang.After):
		t.Fatal("nothing was logged")
	}
	// The host asks, and the guest's answer is dropped as a frame.
	host.Exec("ip", "neigh", "flush", "dev", "sl-alice")
	host.Do(func() {
		if conn, err := net.Dial("udp4", "10.0.0.2:9"); err == nil {
			_, _ = conn.Write([]byte("x"))
			_ = conn.Close()
		}
	})
	select {
	case d := <-logged:
		if d.Link != "sl-alice" || d.Reason != vps.DropARP || !strings.Contains(d.Summary, "says it has 10.0.0.2") {
			t.Errorf("logged %+v", d)
		}
	case <-time.After(hang.After):
		t.Fatal("no frame was logged")
	}
	cancel()
	for range logged {
	}
}

func FuzzDropLog(f *testing.F) {
	message := func(attributes ...[]byte) []byte {
		b := make([]byte, 20)
		for _, a := range attributes {
			b = append(b, a...)
		}
		binary.NativeEndian.PutUint32(b, uint32(len(b)))
		binary.NativeEndian.PutUint16(b[4:], msgPacket)
		return b
	}
	ip := append([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, 0, 22, 0, 23)
	f.Add(message(netlinkAttribute(attrPrefix, []byte("sublet spoofed\x00")), netlinkAttribute(attrHeader, []byte{8, 0, 0, 0}), netlinkAttribute(attrPayload, ip)))
	f.Add(message(netlinkAttribute(attrPrefix, []byte("sublet \x1b[31m")), netlinkAttribute(attrHeader, []byte{8, 6, 0, 0}), netlinkAttribute(attrPayload, make([]byte, 28))))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range parseLog(b, names{}) {
			if s := d.Summary + string(d.Reason); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q", s)
			}
		}
	})
}
