//go:build linux

package origin_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge/origin"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// TestPorts: whose port cannot be had has another one of his own address, and
// whose address cannot be had is the host.
func TestPorts(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, routed, nil)
			w.serve(w.guests["alice"], "alice", 443)
			w.serve(w.guests["bob"], "bob", 443)
			w.serve(w.host, "host", 8080)
			host := w.network.Gateway
			if v.caller.Is6() {
				host = public6
			}
			at := func(guest string) netip.AddrPort { return netip.AddrPortFrom(w.address(guest, v.caller), 443) }
			dial := func(what, guest string, from netip.AddrPort, own bool) *net.TCPConn {
				t.Helper()
				conn, err := w.dial(steady, from, at(guest), hang.After)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				seen := unmapped(conn.LocalAddr())
				if got, want := ask(conn), guest+" sees "+seen.String(); got != want {
					t.Errorf("%s: got %q, want %q", what, got, want)
				}
				if seen.Addr() != from.Addr().Unmap() || own != (seen.Port() == from.Port()) {
					t.Errorf("%s: from %s, the guest sees %s", what, from, seen)
				}
				return conn
			}
			from := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(v.caller, port) }
			first := dial("its own", "alice", from(5000), true)
			dial("the same of another guest", "bob", from(5000), true)
			dial("the same again", "alice", from(5000), false)
			_ = first.Close()
			// Which port it gets depends on how far that has come.
			if conn, err := w.dial(steady, from(5000), at("alice"), hang.After); err != nil || unmapped(conn.LocalAddr()).Addr() != v.caller {
				t.Errorf("the same while the last connection fades away: %v", err)
			}
			dial("a privileged port", "alice", from(443), false)
			dial("a port that the host listens on", "alice", from(8080), false)
			if v.caller.Is4() {
				mapped := netip.AddrFrom16(v.caller.As16())
				dial("an address that is mapped to IPv6", "alice", netip.AddrPortFrom(mapped, 5001), true)
			}
			other := map[bool]netip.Addr{true: far6, false: far}[v.caller.Is4()]
			for what, from := range map[string]netip.AddrPort{
				"nobody": {}, "the other version of IP": netip.AddrPortFrom(other, 5002), "no port": from(0),
				"the loopback": netip.MustParseAddrPort("127.0.0.1:5003"), "the loopback of IPv6": netip.MustParseAddrPort("[::1]:5003"),
				"a group": netip.MustParseAddrPort("224.0.0.1:5004"), "everybody": netip.MustParseAddrPort("255.255.255.255:5004"),
				"the provider's LAN": netip.MustParseAddrPort("203.0.113.255:5005"), "the link": netip.MustParseAddrPort("[fe80::1%up0]:5006"),
			} {
				conn, err := w.dial(steady, from, at("alice"), hang.After)
				if err != nil {
					t.Errorf("%s: %v", what, err)
					continue
				}
				if a := unmapped(conn.LocalAddr()).Addr(); a != host {
					t.Errorf("%s: the guest sees %s, want %s", what, a, host)
				}
			}
			w.as(edgeUID, 0, func() {
				conn, err := origin.Dialer{}.Dial(t.Context(), from(5007), at("alice"))
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				if a := unmapped(conn.LocalAddr()).Addr(); a != host {
					t.Errorf("who may imitate nobody is seen as %s", a)
				}
			})
			// As many connections as there are ports, to each guest.
			w.host.Exec("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=50000 50001")
			for range 2 {
				dial("a privileged port, where ports are few", "alice", from(443), false)
				dial("a privileged port, where ports are few", "bob", from(443), false)
			}
			if _, err := w.dial(steady, from(5008), netip.AddrPortFrom(at("alice").Addr(), 444), hang.After); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a port that is closed: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := (origin.Dialer{}).Dial(ctx, from(5009), at("alice")); !errors.Is(err, context.Canceled) {
				t.Errorf("a context that has ended: %v", err)
			}
		})
	}
}

// TestBannedCallers: who is shut out by the guest does not come in as the host, nor
// from another port of his.
func TestBannedCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, routed, nil)
	w.serve(w.guests["alice"], "alice", 443)
	w.guests["alice"].ExecInput("table inet ban { chain in { type filter hook input priority 0; ip saddr 198.51.100.7 drop; ip6 saddr 2001:db8:77::7 drop; }\n}\n", "nft", "-f", "-")
	for _, v := range versions {
		conn, err := w.dial(origin.Dialer{Patience: 100 * time.Millisecond}, netip.AddrPortFrom(v.caller, 5000), netip.AddrPortFrom(w.address("alice", v.caller), 443), 400*time.Millisecond)
		if err == nil {
			t.Errorf("%s comes in: %q", v.caller, ask(conn))
		}
	}
}

// TestOtherWays: a caller has a connection to the same port of a guest that does not
// go by the edge, from the same port of his own. It goes on, and the edge takes
// another port.
func TestOtherWays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, routed, func(n *vps.Network) {
		n.Guests[0].Forwards = []vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}}
		n.Guests[0].Rules = []vps.Rule{{Action: vps.Allow, Direction: vps.In, Protocol: vps.ProtoTCP, First: 443, Last: 443}}
	})
	w.serve(w.guests["alice"], "alice", 443)
	for _, c := range []struct {
		what     string
		from, at netip.AddrPort
	}{
		{"by a port of the host", netip.AddrPortFrom(near, 5000), netip.AddrPortFrom(public, 8443)},
		{"by a port of the host, IPv6", netip.AddrPortFrom(near6, 5000), netip.AddrPortFrom(public6, 8443)},
		{"by its own address", netip.AddrPortFrom(near6, 5100), netip.AddrPortFrom(w.address("alice", near6), 443)},
	} {
		direct, err := w.call(w.callers, c.from, c.at, hang.After)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		to := netip.AddrPortFrom(w.address("alice", c.from.Addr()), 443)
		conn, err := w.dial(origin.Dialer{Patience: 200 * time.Millisecond}, c.from, to, hang.After)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		seen := unmapped(conn.LocalAddr())
		if seen.Addr() != c.from.Addr() || seen.Port() == c.from.Port() {
			t.Errorf("%s: from %s, the guest sees %s", c.what, c.from, seen)
		}
		if got, want := ask(conn), "alice sees "+seen.String(); got != want {
			t.Errorf("%s: the edge hears %q, want %q", c.what, got, want)
		}
		if got, want := ask(direct), "alice sees "+c.from.String(); got != want {
			t.Errorf("%s: the caller hears %q, want %q", c.what, got, want)
		}
	}
}

// TestDatagrams: UDP of all sizes, cut in fragments too, goes both ways, and what
// the guest's kernel says about it comes to the socket.
func TestDatagrams(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, translated, nil)
			w.serve(w.guests["alice"], "alice", 443)
			from, to := netip.AddrPortFrom(v.caller, 5000), netip.AddrPortFrom(w.address("alice", v.caller), 443)
			socket := w.dialUDP(from, to)
			for _, size := range []int{1, 1200, 1472, 1473, 4000, 20_000} {
				payload := bytes.Repeat([]byte("x"), size)
				if _, err := socket.Write(payload); err != nil {
					t.Fatal(err)
				}
				buffer := make([]byte, 1<<16)
				n, err := socket.Read(buffer)
				if want := from.String() + " " + string(payload); err != nil || string(buffer[:n]) != want {
					t.Errorf("%d bytes: got %d, %v", size, n, err)
				}
			}
			// The same port of the caller, to another guest.
			w.serve(w.guests["bob"], "bob", 443)
			second := w.dialUDP(from, netip.AddrPortFrom(w.address("bob", v.caller), 443))
			for _, s := range []*net.UDPConn{second, socket} {
				_, _ = s.Write([]byte("hello"))
				buffer := make([]byte, 100)
				if n, err := s.Read(buffer); string(buffer[:n]) != from.String()+" hello" {
					t.Errorf("got %q, %v", buffer[:n], err)
				}
			}
			closed := w.dialUDP(netip.AddrPortFrom(v.caller, 5001), netip.AddrPortFrom(to.Addr(), 444))
			_, _ = closed.Write([]byte("hello"))
			if _, err := closed.Read(make([]byte, 100)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a port that is closed: %v", err)
			}
			w.tooBig(socket, from, to)
			privileged := w.dialUDP(netip.AddrPortFrom(v.caller, 53), to)
			if a := unmapped(privileged.LocalAddr()); a.Addr() != v.caller || a.Port() == 53 {
				t.Errorf("from a privileged port: %s", a)
			}
			own := w.dialUDP(netip.AddrPort{}, to)
			if a := unmapped(own.LocalAddr()).Addr(); a == v.caller {
				t.Errorf("as the host: %s", a)
			}
		})
	}
}

// tooBig has the guest say that its path takes packets of 1300 bytes at most (RFC
// 1191, RFC 8201), and waits until the socket knows.
func (w *world) tooBig(socket *net.UDPConn, from, to netip.AddrPort) {
	w.t.Helper()
	const limit = 1300
	port := func(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }
	udp := bytes.Join([][]byte{port(from.Port()), port(to.Port()), {0, 200, 0, 0}}, nil)
	var message, inner []byte
	protocol, level, option := "ip4:icmp", unix.SOL_IP, unix.IP_MTU
	if from.Addr().Is4() {
		inner = bytes.Join([][]byte{{0x45, 0, 5, 220, 0, 1, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}, from.Addr().AsSlice(), to.Addr().AsSlice(), udp}, nil)
		sum := checksum(inner[:20])
		inner[10], inner[11] = byte(sum>>8), byte(sum)
		message = append([]byte{3, 4, 0, 0, 0, 0, limit >> 8, limit & 0xff}, inner...)
		sum = checksum(message)
		message[2], message[3] = byte(sum>>8), byte(sum)
	} else {
		protocol, level, option = "ip6:ipv6-icmp", unix.SOL_IPV6, unix.IPV6_MTU
		inner = bytes.Join([][]byte{{0x60, 0, 0, 0, 5, 180, unix.IPPROTO_UDP, 64}, from.Addr().AsSlice(), to.Addr().AsSlice(), udp}, nil)
		// The kernel adds the checksum.
		message = append([]byte{2, 0, 0, 0, 0, 0, limit >> 8, limit & 0xff}, inner...)
	}
	w.guests["alice"].Do(func() {
		conn, err := net.DialIP(protocol, &net.IPAddr{IP: to.Addr().AsSlice()}, &net.IPAddr{IP: from.Addr().AsSlice()})
		if err != nil {
			w.t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Write(message); err != nil {
			w.t.Error(err)
		}
	})
	raw, err := socket.SyscallConn()
	if err != nil {
		w.t.Fatal(err)
	}
	w.until("the socket knows of the path", func() bool {
		mtu := 0
		_, _ = socket.Write([]byte("x")) // looks the path up
		if err := raw.Control(func(fd uintptr) { mtu, _ = unix.GetsockoptInt(int(fd), level, option) }); err != nil {
			w.t.Fatal(err)
		}
		return mtu == limit
	})
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// BenchmarkDial connects to a guest as its caller, each time from another port, and
// as the host, and closes.
func BenchmarkDial(b *testing.B) {
	w := newWorld(b, routed, nil)
	w.serve(w.guests["alice"], "alice", 443)
	to := netip.AddrPortFrom(w.address("alice", far), 443)
	for what, from := range map[string]netip.Addr{"caller": far, "host": {}} {
		b.Run(what, func(b *testing.B) {
			w.asEdge(func() {
				var before, after unix.Rusage
				_ = unix.Getrusage(unix.RUSAGE_THREAD, &before)
				port := uint16(0)
				for b.Loop() {
					port++
					source := netip.AddrPort{}
					if from.IsValid() {
						source = netip.AddrPortFrom(from, 1024+port%60_000)
					}
					conn, err := origin.Dialer{}.Dial(b.Context(), source, to)
					if err != nil {
						b.Error(err)
						return
					}
					_ = conn.SetLinger(0)
					_ = conn.Close()
				}
				_ = unix.Getrusage(unix.RUSAGE_THREAD, &after)
				used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
				b.ReportMetric(float64(used)/float64(b.N), "thread-ns/op")
			})
		})
	}
}
