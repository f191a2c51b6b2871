//go:build linux

package hostnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/hostnet"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

func settle(t *testing.T, h *hostnet.Net, n vps.Network) {
	t.Helper()
	if err := h.Set(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if diff, err := h.Diff(t.Context(), n); err != nil || len(diff) > 0 {
		t.Fatalf("after Set: %v, %v", diff, err)
	}
}

// network6 is a network with IPv6 in which alice has an address and bob a
// prefix.
func network6() vps.Network {
	alice, bob := guest(1, "alice"), guest(2, "bob")
	alice.Prefix6 = netip.MustParsePrefix("2001:db8:1::2/128")
	bob.Prefix6 = netip.MustParsePrefix("2001:db8:1:100::/64")
	n := network(alice, bob)
	n.Subnet6, n.NDPProxy = netip.MustParsePrefix("2001:db8:1::/48"), vps.NDPAuto
	return n
}

// TestGuard: no link comes up before the guard has seen it, and none when the
// guard fails.
func TestGuard(t *testing.T) {
	t.Parallel()
	nstest.New(t)
	var failing error
	var seen []string
	h := hostnet.New(nil, hostnet.Options{Guard: func(_ context.Context, links ...string) error {
		for _, name := range links {
			l, err := net.InterfaceByName(name)
			if err != nil || l.Flags&net.FlagUp != 0 {
				t.Errorf("the guard is called for %s, which is %v, %v", name, l, err)
			}
		}
		seen = append(seen, links...)
		return failing
	}})
	n := network(guest(1, "alice"), guest(2, "bob"))
	failing = errors.New("no firewall")
	if err := h.Set(t.Context(), n); !errors.Is(err, failing) {
		t.Errorf("Set gave %v", err)
	}
	for _, name := range []string{"sl-alice", "sl-bob"} {
		if l, err := net.InterfaceByName(name); err != nil || l.Flags&net.FlagUp != 0 {
			t.Errorf("without its guard %s is %v, %v", name, l, err)
		}
	}
	failing, seen = nil, nil
	settle(t, h, n)
	if slices.Sort(seen); !slices.Equal(seen, []string{"sl-alice", "sl-bob"}) {
		t.Errorf("the guard saw %v", seen)
	}
	seen = nil
	settle(t, h, n)
	if seen != nil {
		t.Errorf("the guard was called for %v, which are up", seen)
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	outside := ns.Peer()
	ns.Veth("up0", outside, "eth0")
	ns.Exec("sysctl", "-q", "-w", "net.ipv6.conf.up0.accept_ra=1")
	h := hostnet.New(nil, hostnet.Options{})
	n := network6()
	settle(t, h, n)
	for path, want := range map[string]string{
		"all/forwarding": "1", "up0/accept_ra": "2", "sl-alice/accept_ra": "0", "sl-alice/disable_ipv6": "0", "sl-alice/accept_redirects": "0",
	} {
		if got, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + path); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v; want %s", path, got, err, want)
		}
	}
	if out := ns.Exec("ip", "-6", "-o", "addr", "show", "dev", "sl-alice"); strings.Count(out, "inet6") != 1 || !strings.Contains(out, "fe80::1/64") {
		t.Errorf("addresses: %s", out)
	}
	for target, want := range map[string]string{
		"2001:db8:1::2": "dev sl-alice", "2001:db8:1:100::1": "dev sl-bob", "2001:db8:1:100:1::7": "via " + vps.LinkLocal6(n.Guests[1].MAC).String() + " dev sl-bob",
	} {
		if out := ns.Exec("ip", "-6", "route", "get", target); !strings.Contains(out, want) {
			t.Errorf("to %s: %s; want %s", target, out, want)
		}
	}
	for _, harm := range []string{
		"ip -6 addr del fe80::1/64 dev sl-alice", "ip -6 addr add 2001:db8:9::1/64 dev sl-alice", "ip -6 route del 2001:db8:1::2", "ip -6 route add 2001:db8:7::/64 dev sl-bob",
		"sysctl -q -w net.ipv6.conf.sl-bob.accept_ra=1", "sysctl -q -w net.ipv6.conf.all.forwarding=0", "ip -6 route del 2001:db8:1:100::/64",
	} {
		ns.Exec(strings.Fields(harm)[0], strings.Fields(harm)[1:]...)
		if diff, err := h.Diff(t.Context(), n); err != nil || len(diff) == 0 {
			t.Errorf("%s goes unseen: %v", harm, err)
		}
		settle(t, h, n)
	}
	// Without IPv6 for guests, and back.
	off := n
	off.Subnet6 = netip.Prefix{}
	settle(t, h, off)
	if out := ns.Exec("ip", "-6", "-o", "addr", "show", "dev", "sl-alice"); out != "" {
		t.Errorf("without IPv6: %s", out)
	}
	settle(t, h, n)
}

// TestNDPProxy has a router outside that takes the whole prefix to be on the
// link.
func TestNDPProxy(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	outside := ns.Peer()
	ns.Veth("up0", outside, "eth0")
	ns.Exec("ip", "-6", "addr", "add", "2001:db8:1::1/48", "dev", "up0", "nodad")
	outside.Exec("ip", "-6", "addr", "add", "2001:db8:1::ffff/48", "dev", "eth0", "nodad")
	ns.Exec("ip", "-6", "route", "add", "default", "via", "2001:db8:1::ffff")
	h := hostnet.New(nil, hostnet.Options{})
	n := network6()
	n.Subnet6 = netip.MustParsePrefix("2001:db8:1::/64")
	n.Guests = n.Guests[:1]
	ns.Exec("ip", "-6", "neigh", "add", "proxy", "2001:db8:1:9::9", "dev", "up0")
	settle(t, h, n)
	out := ns.Exec("ip", "-6", "neigh", "show", "proxy")
	if !strings.Contains(out, "2001:db8:1::2 dev up0") || !strings.Contains(out, "2001:db8:1:9::9 dev up0") {
		t.Errorf("answers for: %s", out)
	}
	// The router asks, and hears who has it.
	outside.Do(func() {
		conn, err := net.Dial("udp6", "[2001:db8:1::2]:9")
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = conn.Write([]byte("x"))
		_ = conn.Close()
	})
	mac := strings.Fields(ns.Exec("cat", "/sys/class/net/up0/address"))[0]
	for deadline := time.Now().Add(hang.After); time.Now().Before(deadline); {
		if out = outside.Exec("ip", "-6", "neigh", "show", "2001:db8:1::2"); strings.Contains(out, mac) {
			break
		}
	}
	if !strings.Contains(out, mac) {
		t.Errorf("the router heard: %s; want %s", out, mac)
	}
	n.NDPProxy = vps.NDPOff
	settle(t, h, n)
	if out := ns.Exec("ip", "-6", "neigh", "show", "proxy"); strings.Contains(out, "2001:db8:1::2 ") || !strings.Contains(out, "2001:db8:1:9::9") {
		t.Errorf("answers for: %s", out)
	}
}

func TestCheckSubnet6(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	ns.Veth("up0", ns.Peer(), "eth0")
	ns.Exec("ip", "-6", "addr", "add", "2001:db8:1::1/48", "dev", "up0", "nodad")
	ns.Exec("ip", "-6", "route", "add", "2001:db8:2:2::/64", "dev", "up0")
	h := hostnet.New(nil, hostnet.Options{})
	for pool, want := range map[string]vps.Code{
		"2001:db8:1::/64": vps.CodeConflict, "2001:db8:1:1::/64": "", "2001:db8:2::/48": vps.CodeConflict, "fd53:4c00:d5::/64": "", "2001:db8:1::/40": vps.CodeConflict,
	} {
		if err := h.CheckSubnet(t.Context(), netip.MustParsePrefix(pool)); vps.ErrorCode(err) != want {
			t.Errorf("%s: %v; want %q", pool, err, want)
		}
	}
	if a, err := h.PublicAddress6(t.Context(), []string{"up0"}); err != nil || a.String() != "2001:db8:1::1" {
		t.Errorf("the public address is %v, %v", a, err)
	}
}

// plug makes the guest's side of a tap in a network of its own: a tap there,
// whose frames are carried to and from the host's.
func plug(t *testing.T, host *nstest.NS, g vps.NetworkGuest) *nstest.NS {
	t.Helper()
	theirs := host.Peer()
	near, err := host.OpenTap(g.Link, g.UID, unix.IFF_VNET_HDR)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Exec("ip", "tuntap", "add", "eth0", "mode", "tap", "vnet_hdr")
	far, err := theirs.OpenTap("eth0", 0, unix.IFF_VNET_HDR)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Exec("ip", "link", "set", "eth0", "address", g.MAC.String(), "up")
	theirs.Exec("ip", "addr", "add", g.Address.String()+"/32", "dev", "eth0")
	theirs.Exec("ip", "route", "add", "default", "via", "10.213.0.1", "dev", "eth0", "onlink")
	nstest.Carry(near, far)
	return theirs
}

// held returns the rate of what comes in by conn, in percent of a limit. On a
// machine that is busy with other things a second may pass in which little
// comes, and then much of what waited; so the first window that fits counts,
// or the last.
func held(t *testing.T, conn net.Conn, limit vps.BitRate) (percent float64) {
	t.Helper()
	const windows, seconds, bits = 5, 2, 8
	// A full segment on the wire, with its headers, and what of it is payload:
	// Ethernet, IPv4, TCP with timestamps.
	const onWire, payload = 14 + 1500, 1500 - 20 - 32
	// What was on its way at the old rate comes first.
	if _, err := io.CopyN(io.Discard, conn, 512<<10); err != nil {
		t.Fatal(err)
	}
	size := int64(limit) / bits * seconds
	for range windows {
		start := time.Now()
		if _, err := io.CopyN(io.Discard, conn, size); err != nil {
			t.Fatal(err)
		}
		percent = 100 * float64(size*bits) * onWire / payload / time.Since(start).Seconds() / float64(limit)
		if percent > 95 && percent < 105 {
			break
		}
	}
	return percent
}

// TestBandwidth measures a connection in each direction, while its limit
// changes under it.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	h := hostnet.New(nil, hostnet.Options{})
	n := network(guest(1, "alice"))
	n.Guests[0].Bandwidth = 20 * vps.Mbit
	settle(t, h, n)
	alice := plug(t, ns, n.Guests[0])
	for _, c := range []struct {
		what     string
		from, to *nstest.NS
		address  string
	}{{"to the guest", ns, alice, n.Guests[0].Address.String() + ":0"}, {"from the guest", alice, ns, "10.213.0.1:0"}} {
		var listener net.Listener
		c.to.Do(func() {
			var err error
			if listener, err = net.Listen("tcp4", c.address); err != nil {
				t.Error(err)
			}
		})
		if listener == nil {
			t.FailNow()
		}
		sending := c.from.Start(func() {
			conn, err := net.Dial("tcp4", listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			for buffer := make([]byte, 64<<10); err == nil; {
				_, err = conn.Write(buffer)
			}
			_ = conn.Close()
		})
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, rate := range []vps.BitRate{20 * vps.Mbit, 4 * vps.Mbit, 0, 2 * vps.Mbit, 40 * vps.Mbit} {
			n.Guests[0].Bandwidth = rate
			settle(t, h, n)
			if rate == 0 {
				continue // as before a quota throttles it
			}
			if ratio := held(t, conn, rate); ratio < 95 || ratio > 105 {
				t.Errorf("%s at %s: %.1f %% of it", c.what, rate, ratio)
			}
		}
		_ = conn.Close()
		_ = listener.Close()
		<-sending
	}
	for _, harm := range []string{
		"tc qdisc del dev sl-alice root", "tc qdisc change dev sl-alice root tbf rate 1gbit burst 1mb limit 1mb", "tc qdisc del dev sl-alice ingress",
		"tc filter del dev sl-alice ingress protocol ip pref 1", "ip link set sb-alice down", "ip link del sb-alice", "tc qdisc del dev sb-alice root",
	} {
		ns.Exec(strings.Fields(harm)[0], strings.Fields(harm)[1:]...)
		if diff, err := h.Diff(t.Context(), n); err != nil || len(diff) == 0 {
			t.Errorf("%s goes unseen: %v", harm, err)
		}
		settle(t, h, n)
	}
	n.Guests[0].Bandwidth = 0
	settle(t, h, n)
	if out := ns.Exec("ip", "-br", "link") + ns.Exec("tc", "qdisc", "show", "dev", "sl-alice"); strings.Contains(out, "sb-") || strings.Contains(out, "tbf") || strings.Contains(out, "ingress") {
		t.Errorf("without a limit there is: %s", out)
	}
	n.Guests[0].Bandwidth = vps.Gbit
	settle(t, h, n)
	if err := h.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := ns.Exec("ip", "-br", "link"); strings.Contains(out, "sb-") || strings.Contains(out, "sl-") {
		t.Errorf("after CleanUp: %s", out)
	}
}
