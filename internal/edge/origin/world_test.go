//go:build linux

package origin_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge/origin"
	"sublet/internal/hang"
	"sublet/internal/hostnet"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// edgeUID is that of the edge.
const edgeUID = 721299

// Callers, of the provider's LAN and from afar.
var (
	public   = netip.MustParseAddr("203.0.113.1")
	public6  = netip.MustParseAddr("2001:db8:9::1")
	near     = netip.MustParseAddr("203.0.113.9")
	near6    = netip.MustParseAddr("2001:db8:9::9")
	far      = netip.MustParseAddr("198.51.100.7")
	far6     = netip.MustParseAddr("2001:db8:77::7")
	callers4 = []netip.Addr{near, far}
	callers6 = []netip.Addr{near6, far6}
)

// The two ways in which guests have IPv6.
var (
	routed     = netip.MustParsePrefix("2001:db8:213::/48")
	translated = netip.MustParsePrefix("fd53:4c00:d5::/64")
)

// world is a host with a wall, an uplink to callers, and guests on taps.
type world struct {
	t       testing.TB
	host    *nstest.NS
	callers *nstest.NS
	guests  map[string]*nstest.NS
	network vps.Network
	wall    *nft.Firewall
	net     *hostnet.Net
}

var uplinks = []string{"up0"}

// newWorld is called on the test's own goroutine, which is then on the host.
func newWorld(tb testing.TB, pool6 netip.Prefix, change func(n *vps.Network)) *world {
	tb.Helper()
	w := &world{t: tb, host: nstest.New(tb), guests: map[string]*nstest.NS{}, wall: nft.New(nil, nft.Options{})}
	w.net = hostnet.New(nil, hostnet.Options{Guard: w.wall.Guard})
	settings := vps.Settings{Subnet6: pool6}
	w.network = vps.Network{
		Subnet: netip.MustParsePrefix("10.213.0.0/16"), Gateway: netip.MustParseAddr("10.213.0.1"), Uplink: "up0",
		Subnet6: pool6, NAT6: settings.NAT6(), NDPProxy: vps.NDPOff, EdgeUID: edgeUID,
	}
	for i, name := range []string{"alice", "bob"} {
		address := netip.AddrFrom4([4]byte{10, 213, 0, byte(i + 2)})
		prefix6 := pool6.Addr().As16()
		prefix6[15] = byte(i + 2)
		w.network.Guests = append(w.network.Guests, vps.NetworkGuest{
			Name: name, Link: vps.LinkName(name), Address: address, MAC: vps.MACFor(address), UID: 721301 + uint32(i),
			Prefix6: netip.PrefixFrom(netip.AddrFrom16(prefix6), 128), Limits: vps.DefaultNetworkLimits(),
		})
	}
	if change != nil {
		change(&w.network)
	}
	w.host.Exec("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")
	w.callers = w.host.Peer()
	w.callers.Exec("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")
	w.host.Veth("up0", w.callers, "eth0")
	w.host.Exec("ip", "addr", "add", public.String()+"/24", "dev", "up0")
	w.host.Exec("ip", "addr", "add", public6.String()+"/64", "dev", "up0", "nodad")
	w.callers.Exec("ip", "addr", "add", near.String()+"/24", "dev", "eth0")
	w.callers.Exec("ip", "addr", "add", near6.String()+"/64", "dev", "eth0", "nodad")
	for _, a := range []netip.Addr{far, far6} {
		w.callers.Exec("ip", "addr", "add", a.String(), "dev", "lo")
	}
	w.host.Exec("ip", "route", "add", "default", "via", near.String())
	w.host.Exec("ip", "route", "add", "default", "via", near6.String())
	w.callers.Exec("ip", "route", "add", "10.213.0.0/16", "via", public.String())
	w.callers.Exec("ip", "route", "add", pool6.String(), "via", public6.String())
	w.settle()
	for _, g := range w.network.Guests {
		w.plug(g)
	}
	return w
}

// settle makes the host be what the network calls for.
func (w *world) settle() {
	w.t.Helper()
	if err := w.wall.Apply(w.t.Context(), w.network, uplinks); err != nil {
		w.t.Fatal(err)
	}
	if err := w.net.Set(w.t.Context(), w.network); err != nil {
		w.t.Fatal(err)
	}
}

// plug makes the guest's side of its tap. Neighbours know one another.
func (w *world) plug(g vps.NetworkGuest) {
	w.t.Helper()
	ns := w.host.Peer()
	w.guests[g.Name] = ns
	ns.Exec("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.addr_gen_mode=1")
	near, err := w.host.OpenTap(g.Link, g.UID, unix.IFF_VNET_HDR)
	if err != nil {
		w.t.Fatal(err)
	}
	ns.Exec("ip", "tuntap", "add", "eth0", "mode", "tap", "vnet_hdr")
	far, err := ns.OpenTap("eth0", 0, unix.IFF_VNET_HDR)
	if err != nil {
		w.t.Fatal(err)
	}
	ns.Exec("ip", "link", "set", "eth0", "address", g.MAC.String(), "up")
	own6 := vps.Address6(g.Prefix6)
	gatewayMAC := strings.TrimSpace(w.host.Exec("cat", "/sys/class/net/"+g.Link+"/address"))
	for _, c := range [][]string{
		{"addr", "add", g.Address.String() + "/32"},
		{"addr", "add", own6.String() + "/128", "nodad"},
		{"addr", "add", vps.LinkLocal6(g.MAC).String() + "/64", "nodad"},
		{"route", "add", "default", "via", w.network.Gateway.String(), "onlink"},
		{"-6", "route", "add", "default", "via", vps.Gateway6.String(), "src", own6.String()},
		{"neigh", "replace", w.network.Gateway.String(), "lladdr", gatewayMAC, "nud", "permanent"},
		{"neigh", "replace", vps.Gateway6.String(), "lladdr", gatewayMAC, "nud", "permanent"},
	} {
		ns.Exec("ip", append(c, "dev", "eth0")...)
	}
	for _, a := range []netip.Addr{g.Address, own6} {
		w.host.Exec("ip", "neigh", "replace", a.String(), "lladdr", g.MAC.String(), "dev", g.Link, "nud", "permanent")
	}
	// What the kernel gives the tap is what it counts: it cuts nothing later.
	w.host.Exec("ip", "link", "set", g.Link, "gso_max_segs", "1")
	nstest.Carry(near, far)
}

// address is a guest's, of the version of IP that another one has.
func (w *world) address(guest string, like netip.Addr) netip.Addr {
	for _, g := range w.network.Guests {
		if g.Name == guest && like.Is6() {
			return vps.Address6(g.Prefix6)
		} else if g.Name == guest {
			return g.Address
		}
	}
	w.t.Fatalf("there is no guest %s", guest)
	return netip.Addr{}
}

// steady takes no other port because a busy machine is slow.
var steady = origin.Dialer{Patience: hang.After}

// asEdge runs f on the host as the edge's process runs: with its user id and no
// right but one.
func (w *world) asEdge(f func()) { w.as(edgeUID, 1<<unix.CAP_NET_RAW, f) }

// as runs f on the host with a user's id and rights.
func (w *world) as(uid uintptr, rights uint32, f func()) {
	w.t.Helper()
	w.host.Do(func() {
		// For this thread only, which ends with the function.
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			w.t.Error(err)
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			w.t.Error(errno)
			return
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: rights, Permitted: rights}}
		if err := unix.Capset(&header, &data[0]); err != nil {
			w.t.Error(err)
			return
		}
		f()
	})
}

// dial dials as the edge does.
func (w *world) dial(d origin.Dialer, from, to netip.AddrPort, patience time.Duration) (conn *net.TCPConn, err error) {
	w.t.Helper()
	w.asEdge(func() {
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		defer cancel()
		conn, err = d.Dial(ctx, from, to)
	})
	if err == nil {
		w.t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(hang.After))
	}
	return conn, err
}

// dialUDP is dial for UDP.
func (w *world) dialUDP(from, to netip.AddrPort) *net.UDPConn {
	w.t.Helper()
	var conn *net.UDPConn
	w.asEdge(func() {
		var err error
		if conn, err = (origin.Dialer{}).DialUDP(w.t.Context(), from, to); err != nil {
			w.t.Errorf("from %s to %s: %v", from, to, err)
		}
	})
	if conn == nil {
		w.t.FailNow()
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(hang.After))
	return conn
}

// serve is serveAt for all addresses of ns.
func (w *world) serve(ns *nstest.NS, name string, port uint16) (stop func()) {
	w.t.Helper()
	return w.serveAt(ns, name, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
}

// serveAt answers every line that comes to an address and port of ns, by TCP, with
// its name and whom it sees, and every datagram with whom it sees and the same
// bytes.
func (w *world) serveAt(ns *nstest.NS, name string, at netip.AddrPort) (stop func()) {
	w.t.Helper()
	var closers []func() error
	ns.Do(func() {
		listener, err := net.Listen("tcp", at.String())
		if err != nil {
			w.t.Error(err)
			return
		}
		packets, err := net.ListenPacket("udp", at.String())
		if err != nil {
			w.t.Error(err)
			return
		}
		closers = append(closers, listener.Close, packets.Close)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer func() { _ = conn.Close() }()
					for lines := bufio.NewScanner(conn); lines.Scan(); {
						_, _ = fmt.Fprintf(conn, "%s sees %s\n", name, unmapped(conn.RemoteAddr()))
					}
				}()
			}
		}()
		go func() {
			for buffer := make([]byte, 1<<16); ; {
				n, from, err := packets.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = packets.WriteTo(append([]byte(unmapped(from).String()+" "), buffer[:n]...), from)
			}
		}()
	})
	if w.t.Failed() {
		w.t.FailNow()
	}
	stop = func() {
		for _, closer := range closers {
			_ = closer()
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func unmapped(a net.Addr) netip.AddrPort {
	p := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// ask sends a line and returns the answer, "" for none.
func ask(conn net.Conn) string {
	_, _ = fmt.Fprintln(conn, "hello")
	answer, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer)
}

// call opens a connection from ns, with an address and port of its own when from
// has them, which other connections may have as well.
func (w *world) call(ns *nstest.NS, from, to netip.AddrPort, patience time.Duration) (conn net.Conn, err error) {
	w.t.Helper()
	ns.Do(func() {
		d := net.Dialer{Timeout: patience, Control: reused}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(from)
		}
		conn, err = d.DialContext(w.t.Context(), "tcp", to.String())
	})
	if err == nil {
		w.t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(hang.After))
	}
	return conn, err
}
