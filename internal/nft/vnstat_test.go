//go:build linux

package nft_test

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// TestVnStat compares the sum of a guest's classes with what vnStat has of its
// tap, to the byte, in the same run: the world, the host, what is dropped, in
// both directions.
func TestVnStat(t *testing.T) {
	t.Parallel()
	w := &world{t: t, host: nstest.New(t), wall: nft.New(nil, nft.Options{}), network: network(guest(1, "alice"))}
	w.network.Guests[0].Limits = vps.NetworkLimits{Packets: 10_000_000, NewConnections: 10_000_000, Connections: 10_000_000}
	silent(w.host) // ARP and the kernel's own words are in no class
	w.outside = w.host.Peer()
	w.host.Veth("up0", w.outside, "eth0")
	w.host.Exec("ip", "addr", "add", public+"/24", "dev", "up0")
	w.outside.Exec("ip", "addr", "add", outside+"/24", "dev", "eth0")
	w.host.Exec("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	w.sink(w.outside, 9)
	a, link := w.network.Guests[0], w.network.Guests[0].Link
	tap, err := w.host.OpenTap(link, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.apply()
	w.traffic()
	w.host.Exec("ip", "link", "set", link, "up")
	w.host.Exec("ip", "addr", "add", gateway+"/32", "dev", link)
	w.host.Exec("ip", "route", "add", a.Address.String(), "dev", link, "src", gateway)
	w.host.Exec("ip", "neigh", "replace", a.Address.String(), "lladdr", a.MAC.String(), "dev", link, "nud", "permanent")
	v := w.host.VnStat(link)
	w.converse(tap)
	var got nstest.VnStatCount
	received, sent := w.rxBytes(link), w.sent(link)
	for deadline := time.Now().Add(hang.After); ; {
		v.Look()
		if got, _, _ = v.Counts(link); got.Rx == received && got.Tx == sent || time.Now().After(deadline) {
			break
		}
	}
	l, _ := w.traffic()
	if sum := l.sum(link); sum.OutBytes != got.Rx || sum.InBytes != got.Tx || got.Rx < mebi || got.Tx < mebi {
		t.Errorf("vnStat has %d bytes received and %d sent, the link %d and %d, and we %+v: %v", got.Rx, got.Tx, received, sent, sum, l)
	}
	for _, class := range []string{"internet/4", "host/4", "dropped/4"} {
		if c := l[link+" "+class]; c.OutPackets == 0 {
			t.Errorf("nothing was sent of %s: %v", class, l)
		}
	}
}

// converse has a guest send and receive some MiB, and reads what it gets.
func (w *world) converse(tap *os.File) {
	w.t.Helper()
	a, host := w.network.Guests[0], netip.MustParseAddr(gateway)
	hardware, err := net.ParseMAC(w.host.Exec("cat", "/sys/class/net/"+a.Link+"/address"))
	if err != nil {
		w.t.Fatal(err)
	}
	var read atomic.Int64
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, err := tap.Read(buffer)
			if err != nil {
				return
			}
			read.Add(int64(n))
		}
	}()
	far := netip.MustParseAddr(outside)
	send := func(from, to netip.Addr, proto byte, payload []byte) {
		w.t.Helper()
		if _, err := tap.Write(ether(hardware, a.MAC, typeIPv4, packet4{from: from, to: to, proto: proto}.of(payload))); err != nil {
			w.t.Fatal(err)
		}
	}
	answers := int64(0)
	for i := range 1500 {
		send(a.Address, far, protoUDP, udp(a.Address, far, 1, 9, make([]byte, 40+i%1400)))
		send(netip.MustParseAddr("10.213.9.9"), far, protoUDP, udp(a.Address, far, 1, 9, make([]byte, 40+i%500)))
		if i%10 == 0 {
			send(a.Address, host, protoICMP, echo(uint16(i), make([]byte, 1000)))
			answers += 14 + 20 + 8 + 1000
			drained(w.t)
		}
	}
	for deadline := time.Now().Add(time.Minute); read.Load() < answers && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	// The tap drops what it has no room for, behind our counters.
	before, total := read.Load(), int64(0)
	for range 10 {
		for ns, c := range map[*nstest.NS]struct {
			to   string
			size int64
		}{w.outside: {public + ":20002", 1200}, w.host: {a.Address.String() + ":9", 700}} {
			w.pour(ns, c.to, 200*c.size, c.size)
			total += 200 * c.size
			for deadline := time.Now().Add(hang.After); read.Load()-before < total; {
				if time.Now().After(deadline) {
					w.t.Fatalf("the guest got %d bytes of %d", read.Load()-before, total)
				}
				<-time.After(time.Millisecond)
			}
		}
	}
}

// echo is a request of ICMP.
func echo(sequence uint16, data []byte) []byte {
	b := append(word16([]byte{8, 0}, 0, 7, sequence), data...)
	sum := checksum(b)
	b[2], b[3] = byte(sum>>8), byte(sum)
	return b
}
