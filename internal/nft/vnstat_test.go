//go:build linux

package nft_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// openTap makes the guest's tap and opens it, as its process does: frames are
// written and read, one at a time.
func openTap(t *testing.T, link string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	request, err := unix.NewIfreq(link)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		t.Fatal(err)
	}
	tap := os.NewFile(uintptr(fd), link)
	t.Cleanup(func() { _ = tap.Close() })
	return tap
}

// vnstat is vnStat's daemon with a database of its own.
type vnstat struct {
	host *nstest.NS
	conf string
	cmd  *exec.Cmd
}

func (v *vnstat) start(t *testing.T) {
	t.Helper()
	v.host.Do(func() {
		// Not killed with the test's context: it is told to end, and writes then.
		v.cmd = exec.Command("vnstatd", "--config", v.conf, "--nodaemon", "--noadd")
		if err := v.cmd.Start(); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// stop ends the daemon, which writes what it knows, and returns that.
func (v *vnstat) stop(t *testing.T, link string) (rx, tx int64) {
	t.Helper()
	_ = v.cmd.Process.Signal(unix.SIGTERM)
	if err := v.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var report struct {
		Interfaces []struct {
			Traffic struct{ Total struct{ Rx, Tx int64 } }
		}
	}
	if err := json.Unmarshal([]byte(v.host.Exec("vnstat", "--config", v.conf, "--json", "-i", link)), &report); err != nil || len(report.Interfaces) != 1 {
		t.Fatalf("%v: %+v", err, report)
	}
	total := report.Interfaces[0].Traffic.Total
	return total.Rx, total.Tx
}

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
	tap := openTap(t, link)
	v := &vnstat{host: w.host, conf: filepath.Join(t.TempDir(), "vnstat.conf")}
	settings := fmt.Sprintf("DatabaseDir %q\nPidFile %q\nUseLogging 0\nUpdateInterval 2\nPollInterval 2\nSaveInterval 1\nBandwidthDetection 0\nMaxBandwidth 0\nTimeSyncWait 0\n",
		filepath.Dir(v.conf), filepath.Join(filepath.Dir(v.conf), "pid"))
	if err := os.WriteFile(v.conf, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	w.apply()
	w.traffic()
	w.host.Exec("ip", "link", "set", link, "up")
	w.host.Exec("ip", "addr", "add", gateway+"/32", "dev", link)
	w.host.Exec("ip", "route", "add", a.Address.String(), "dev", link, "src", gateway)
	w.host.Exec("ip", "neigh", "replace", a.Address.String(), "lladdr", a.MAC.String(), "dev", link, "nud", "permanent")
	w.host.Exec("vnstatd", "--config", v.conf, "--initdb")
	w.host.Exec("vnstat", "--config", v.conf, "--add", "-i", link)
	// vnStat looks every two seconds. Its first look is where it begins, and
	// what comes while it is stopped it adds.
	look := func() (rx, tx int64) {
		v.start(t)
		<-time.After(3 * time.Second)
		return v.stop(t, link)
	}
	look()
	w.converse(tap)
	var rx, tx int64
	received, sent := w.rxBytes(link), w.sent(link)
	for deadline := time.Now().Add(hang.After); ; {
		if rx, tx = look(); rx == received && tx == sent || time.Now().After(deadline) {
			break
		}
	}
	l, _ := w.traffic()
	if sum := l.sum(link); sum.OutBytes != rx || sum.InBytes != tx || rx < mebi || tx < mebi {
		t.Errorf("vnStat has %d bytes received and %d sent, the link %d and %d, and we %+v: %v", rx, tx, received, sent, sum, l)
	}
	for _, class := range []string{"internet/4", "host/4", "dropped/0"} {
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
