//go:build linux

package origin_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"sublet/internal/edge/origin"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// dropped is how many packets of a guest were dropped for a reason.
func (w *world) dropped(link string, reason vps.DropReason) (packets uint64) {
	w.t.Helper()
	drops, err := w.wall.Drops(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range drops[link] {
		if d.Reason == reason {
			packets += d.Packets
		}
	}
	return packets
}

// until waits for a state.
func (w *world) until(what string, reached func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(hang.After); !reached(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("it does not come to that %s", what)
		}
	}
}

// version is an address of the callers, and the version of IP.
type version struct {
	name   string
	caller netip.Addr
}

var versions = []version{{"IPv4", far}, {"IPv6", far6}}

// TestNoWayToServices: the port of a caller is the caller's choice, who may be the
// guest's friend. When the edge's socket is gone, and a service of the host has
// come to listen on that port of all addresses, the guest does not reach it.
func TestNoWayToServices(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, routed, nil)
			alice, to := w.guests["alice"], netip.AddrPortFrom(w.address("alice", v.caller), 443)
			// TCP: the guest lets the edge wait, and calls itself when it has given up.
			from := netip.AddrPortFrom(v.caller, 5432)
			alice.ExecInput("table inet deaf { chain in { type filter hook prerouting priority 0; tcp dport 443 drop; }\n}\n", "nft", "-f", "-")
			if conn, err := w.dial(origin.Dialer{Patience: time.Second}, from, to, 300*time.Millisecond); err == nil {
				t.Fatalf("a deaf guest answered: %v", conn.RemoteAddr())
			}
			// UDP: the guest was heard, and goes on when the socket is closed.
			fromUDP := netip.AddrPortFrom(v.caller, 8125)
			stop := w.serve(alice, "alice", 443)
			socket := w.dialUDP(fromUDP, to)
			if _, err := socket.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			buffer := make([]byte, 100)
			if n, err := socket.Read(buffer); string(buffer[:n]) != fromUDP.String()+" hello" {
				t.Errorf("got %q, %v", buffer[:n], err)
			}
			_ = socket.Close()
			stop()
			alice.Exec("nft", "delete", "table", "inet", "deaf")

			w.serve(w.host, "a service of the host", 5432)
			w.serve(w.host, "a service of the host", 8125)
			before := w.dropped("sl-alice", vps.DropToHost)
			if conn, err := w.call(alice, to, from, 300*time.Millisecond); err == nil {
				t.Errorf("a guest reaches %s", ask(conn))
			}
			dropped := w.dropped("sl-alice", vps.DropToHost)
			if dropped == before {
				t.Error("what the guest sent by TCP is not counted as dropped")
			}
			var forged *net.UDPConn
			alice.Do(func() {
				conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(to), net.UDPAddrFromAddrPort(fromUDP))
				if err != nil {
					t.Error(err)
					return
				}
				forged = conn
			})
			if forged == nil {
				t.FailNow()
			}
			_, _ = forged.Write([]byte("hello"))
			w.until("the guest's datagram is dropped", func() bool { return w.dropped("sl-alice", vps.DropToHost) > dropped })
			_ = forged.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := forged.Read(buffer); err == nil {
				t.Errorf("a guest reaches a service of the host: %q", buffer[:n])
			}
			_ = forged.Close()
			// What is for the caller otherwise goes to him, from that port too.
			w.serve(w.callers, "outside", 8080)
			conn, err := w.call(alice, netip.AddrPort{}, netip.AddrPortFrom(v.caller, 8080), hang.After)
			if err != nil {
				t.Fatal(err)
			}
			if got := ask(conn); !strings.HasPrefix(got, "outside sees ") {
				t.Errorf("got %q", got)
			}
			w.serve(w.callers, "outside", 8081)
			if conn, err = w.call(alice, to, netip.AddrPortFrom(v.caller, 8081), hang.After); err != nil {
				t.Fatal(err)
			}
			if got := ask(conn); !strings.HasPrefix(got, "outside sees ") {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestOthersAreNotHeard: only the guest that was called answers. What another one
// sends to the caller's address and port goes to the caller.
func TestOthersAreNotHeard(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, translated, nil)
			w.serve(w.guests["alice"], "alice", 443)
			w.serveAt(w.callers, "outside", netip.AddrPortFrom(v.caller, 7777))
			from, to := netip.AddrPortFrom(v.caller, 7777), netip.AddrPortFrom(w.address("alice", v.caller), 443)
			socket := w.dialUDP(from, to)
			_, _ = socket.Write([]byte("hello"))
			buffer := make([]byte, 100)
			if n, err := socket.Read(buffer); err != nil {
				t.Fatalf("got %q, %v", buffer[:n], err)
			}
			for _, c := range []struct {
				guest string
				port  uint16
			}{{"bob", 443}, {"alice", 444}} {
				own := netip.AddrPortFrom(w.address(c.guest, v.caller), c.port)
				w.guests[c.guest].Do(func() {
					conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(own), net.UDPAddrFromAddrPort(from))
					if err != nil {
						t.Error(err)
						return
					}
					defer func() { _ = conn.Close() }()
					_ = conn.SetDeadline(time.Now().Add(hang.After))
					_, _ = conn.Write([]byte("forged"))
					if n, err := conn.Read(buffer); !strings.HasSuffix(string(buffer[:n]), " forged") {
						t.Errorf("from %s: the caller answers %q, %v", own, buffer[:n], err)
					}
				})
			}
			_, _ = socket.Write([]byte("again"))
			if n, err := socket.Read(buffer); string(buffer[:n]) != from.String()+" again" {
				t.Errorf("the edge hears %q, %v", buffer[:n], err)
			}
			// A service of the host is closed to guests as it was.
			w.serve(w.host, "host", 9000)
			if conn, err := w.call(w.guests["alice"], netip.AddrPort{}, netip.AddrPortFrom(public, 9000), 300*time.Millisecond); err == nil {
				t.Errorf("a guest reaches %s", ask(conn))
			}
		})
	}
}

// TestOnlyTheEdge: nobody else's connections in foreign names are brought back,
// and the edge's from an address of the host have no mark.
func TestOnlyTheEdge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, routed, nil)
	w.serve(w.guests["alice"], "alice", 443)
	for _, v := range versions {
		from, to := netip.AddrPortFrom(v.caller, 6000), netip.AddrPortFrom(w.address("alice", v.caller), 443)
		w.as(edgeUID+5, 1<<13, func() { // CAP_NET_RAW
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			conn, err := origin.Dialer{Patience: 200 * time.Millisecond}.Dial(ctx, from, to)
			if err == nil {
				t.Errorf("another user than the edge's speaks as %s", conn.LocalAddr())
				_ = conn.Close()
			}
		})
	}
	own := netip.AddrPortFrom(public, 6001)
	conn, err := w.dial(steady, own, netip.AddrPortFrom(w.address("alice", own.Addr()), 443), hang.After)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ask(conn), "alice sees "+own.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if marks := conntracks(t); strings.Contains(marks, "sport=6001") && strings.Contains(marks, fmt.Sprintf("mark=%d", vps.EdgeMark)) {
		t.Errorf("a connection from the host's own address has a mark:\n%s", marks)
	}
}

// conntracks are the connections that the kernel tracks.
func conntracks(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// moved is the traffic of all links, by link, class and version of IP.
func (w *world) moved() map[string]vps.TrafficCount {
	w.t.Helper()
	c, err := w.wall.Traffic(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string]vps.TrafficCount{}
	for _, row := range c.Links {
		all[fmt.Sprintf("%s %s/%d", row.Link, row.Class, row.Family)] = row.TrafficCount
	}
	return all
}

// own is what a link itself has counted, as its guest sees it.
func (w *world) own(link string) (c vps.TrafficCount) {
	w.t.Helper()
	for name, n := range map[string]*int64{"tx_bytes": &c.InBytes, "tx_packets": &c.InPackets, "rx_bytes": &c.OutBytes, "rx_packets": &c.OutPackets} {
		text, err := os.ReadFile("/sys/class/net/" + link + "/statistics/" + name)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(text), n); err != nil {
			w.t.Fatal(err)
		}
	}
	return c
}

func minus(a, b vps.TrafficCount) vps.TrafficCount {
	return vps.TrafficCount{InBytes: a.InBytes - b.InBytes, InPackets: a.InPackets - b.InPackets, OutBytes: a.OutBytes - b.OutBytes, OutPackets: a.OutPackets - b.OutPackets}
}

// TestTrafficIsTheHosts: what goes through the edge is the guest's, of the class
// host, in both directions once, to the byte of what its tap counts itself.
func TestTrafficIsTheHosts(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, translated, nil)
			w.serve(w.guests["alice"], "alice", 443)
			// What kernels say of themselves by IPv6, which not every host hears.
			const quiet = "table inet quiet { chain out { type filter hook output priority -500; oifname { eth0, sl-alice } icmpv6 type { mld2-listener-report, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } drop; }\n}\n"
			w.host.ExecInput(quiet, "nft", "-f", "-")
			w.guests["alice"].ExecInput(quiet, "nft", "-f", "-")
			before, link := w.moved(), w.own("sl-alice")
			w.until("nothing moves", func() bool {
				last, lastLink := before, link
				before, link = w.moved(), w.own("sl-alice")
				return maps.Equal(last, before) && lastLink == link
			})
			to := netip.AddrPortFrom(w.address("alice", v.caller), 443)
			conn, err := w.dial(steady, netip.AddrPortFrom(v.caller, 44000), to, hang.After)
			if err != nil {
				t.Fatal(err)
			}
			line := strings.Repeat("x", 50_000)
			for range 20 {
				if _, err := fmt.Fprintln(conn, line); err != nil {
					t.Fatal(err)
				}
				if got, want := ask(conn), "alice sees "+v.caller.String(); !strings.Contains(got, v.caller.String()) {
					t.Fatalf("got %q, want %q", got, want)
				}
			}
			_ = conn.Close()
			socket := w.dialUDP(netip.AddrPortFrom(v.caller, 44001), to)
			buffer := make([]byte, 2000)
			for range 100 {
				_, _ = socket.Write(buffer[:1000])
				if _, err := socket.Read(buffer); err != nil {
					t.Fatal(err)
				}
			}
			var classes map[string]vps.TrafficCount
			var sum, counted vps.TrafficCount
			// The last packets of a connection that is closed come by and by.
			w.until("the counters agree", func() bool {
				classes, sum = map[string]vps.TrafficCount{}, vps.TrafficCount{}
				counted = minus(w.own("sl-alice"), link)
				for key, c := range w.moved() {
					if d := minus(c, before[key]); d != (vps.TrafficCount{}) {
						classes[key], sum = d, sum.Add(d)
					}
				}
				return sum == counted
			})
			key := map[bool]string{true: "sl-alice host/4", false: "sl-alice host/6"}[v.caller.Is4()]
			if c := classes[key]; len(classes) != 1 || c.InBytes < 1_000_000 || c.OutBytes < 100_000 {
				t.Errorf("the link has %+v, and there are %+v", counted, classes)
			}
		})
	}
}

// TestQuotasHold: what the edge sends uses up a guest's quota, and a guest that is
// cut off gets nothing by it.
func TestQuotasHold(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, routed, nil)
			w.serve(w.guests["alice"], "alice", 443)
			set := func(suspended []string, quotas ...vps.NetworkQuota) {
				t.Helper()
				if err := w.wall.SetQuotas(t.Context(), quotas, suspended, uplinks); err != nil {
					t.Fatal(err)
				}
			}
			from, to := netip.AddrPortFrom(v.caller, 45000), netip.AddrPortFrom(w.address("alice", v.caller), 443)
			conn, err := w.dial(steady, from, to, hang.After)
			if err != nil {
				t.Fatal(err)
			}
			want := "alice sees " + from.String()
			if got := ask(conn); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
			set([]string{"sl-alice"})
			_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if got := ask(conn); got != "" {
				t.Errorf("a guest that is cut off says %q", got)
			}
			if _, err := w.dial(steady, netip.AddrPortFrom(v.caller, 45001), to, 300*time.Millisecond); err == nil {
				t.Error("a guest that is cut off is connected to")
			}
			if w.dropped("sl-alice", vps.DropQuota) == 0 {
				t.Error("drops are not counted")
			}
			set(nil)
			_ = conn.SetDeadline(time.Now().Add(hang.After))
			if got := ask(conn); got != want {
				t.Errorf("after that: got %q, want %q", got, want)
			}
			const limit, slack = 1 << 20, 1 << 18
			w.moved() // what quotas count begins here
			set(nil, vps.NetworkQuota{ID: "guest/alice", Scope: vps.QuotaGuest, Links: []string{"sl-alice"}, Count: vps.CountBoth, Block: limit, Throttle: -1})
			before := w.own("sl-alice")
			socket := w.dialUDP(netip.AddrPortFrom(v.caller, 45002), to)
			payload, buffer := make([]byte, 1000), make([]byte, 2000)
			for n := 0; ; n++ {
				if n > 4*limit/1000 {
					t.Fatal("a quota that is used up lets all pass")
				}
				_, _ = socket.Write(payload) // what is dropped here is an error
				_ = socket.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := socket.Read(buffer); err != nil {
					break
				}
			}
			used := minus(w.own("sl-alice"), before)
			if sum := used.Bytes(); sum < limit-slack || sum > limit+slack {
				t.Errorf("%d bytes passed a quota of %d", sum, limit)
			}
		})
	}
}

// TestNobodyIsToldOfGuests: what the host's kernel has to say of a guest that
// cannot be reached does not go to the caller, who knows nothing of that guest.
func TestNobodyIsToldOfGuests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, routed, nil)
	var heard net.PacketConn
	w.callers.Do(func() {
		var err error
		if heard, err = net.ListenPacket("ip4:icmp", far.String()); err != nil {
			t.Error(err)
		}
	})
	if heard == nil {
		t.FailNow()
	}
	defer func() { _ = heard.Close() }()
	_ = heard.SetDeadline(time.Now().Add(hang.After))
	// A neighbour that nobody is.
	alice := w.address("alice", far)
	w.host.Exec("ip", "neigh", "del", alice.String(), "dev", "sl-alice")
	w.guests["alice"].Exec("ip", "link", "set", "eth0", "down")
	w.host.Exec("sysctl", "-q", "-w", "net.ipv4.neigh.sl-alice.mcast_solicit=1", "net.ipv4.neigh.sl-alice.retrans_time_ms=10")
	socket := w.dialUDP(netip.AddrPortFrom(far, 46000), netip.AddrPortFrom(alice, 443))
	_, _ = socket.Write([]byte("hello"))
	w.until("the guest is not found", func() bool {
		return strings.Contains(w.host.Exec("ip", "neigh", "show", alice.String(), "dev", "sl-alice"), "FAILED")
	})
	w.host.Exec("busybox", "ping", "-c1", "-W5", far.String())
	buffer := make([]byte, 1500)
	for {
		n, from, err := heard.ReadFrom(buffer)
		if err != nil {
			t.Fatal(err)
		}
		const echo, unreachable = 8, 3
		if n > 0 && buffer[0] == echo {
			break
		}
		if n > 0 && buffer[0] == unreachable {
			t.Errorf("%s says that something cannot be reached: % x", from, buffer[:n])
		}
	}
}
