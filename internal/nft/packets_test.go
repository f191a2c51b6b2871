//go:build linux

package nft_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

const (
	public  = "203.0.113.1"
	outside = "203.0.113.9"
	gateway = "10.213.0.1"
)

// world is a host with guests on cables that stand for their taps, since rules
// know links by name only, and a machine outside on the provider's LAN.
type world struct {
	t       *testing.T
	host    *nstest.NS
	outside *nstest.NS
	guests  map[string]*nstest.NS
	network vps.Network
	wall    *nft.Firewall
}

func guest(index int, name string, forwards ...vps.Forward) vps.NetworkGuest {
	address := netip.AddrFrom4([4]byte{10, 213, byte((index + 1) >> 8), byte(index + 1)})
	return vps.NetworkGuest{
		Name: name, Link: vps.LinkName(name), Address: address, MAC: vps.MACFor(address),
		UID: 721300 + uint32(index), Limits: vps.DefaultNetworkLimits(), Ports: vps.PortBlock{First: uint16(20000 + 20*(index-1)), Count: 20}, Forwards: forwards,
	}
}

func network(guests ...vps.NetworkGuest) vps.Network {
	return vps.Network{
		Subnet: netip.MustParsePrefix("10.213.0.0/16"), Gateway: netip.MustParseAddr(gateway), Guests: guests,
	}
}

var uplinks = []string{"up0"}

// newWorld is called on the test's own goroutine, which is then on the host.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, host: nstest.New(t), guests: map[string]*nstest.NS{}, wall: nft.New(nil, nft.Options{})}
	w.network = network(
		guest(1, "alice", vps.Forward{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}),
		guest(2, "bob", vps.Forward{Host: 5353, Guest: 53, Protocol: vps.ProtoBoth}),
	)
	w.outside = w.host.Peer()
	w.host.Veth("up0", w.outside, "eth0")
	w.host.Exec("ip", "addr", "add", public+"/24", "dev", "up0")
	w.outside.Exec("ip", "addr", "add", outside+"/24", "dev", "eth0")
	// A neighbour who knows where guests live, and tries.
	w.outside.Exec("ip", "route", "add", "10.213.0.0/16", "via", public)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, g := range w.network.Guests {
		ns := w.host.Peer()
		w.guests[g.Name] = ns
		// What its kernel says by itself, from its cable's first MAC, would be
		// counted too.
		ns.Exec("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
		w.host.Veth(g.Link, ns, "eth0")
		w.host.Exec("ip", "addr", "add", gateway+"/32", "dev", g.Link)
		w.host.Exec("ip", "route", "add", g.Address.String(), "dev", g.Link, "src", gateway)
		ns.Exec("ip", "link", "set", "eth0", "address", g.MAC.String())
		ns.Exec("ip", "addr", "add", g.Address.String()+"/32", "dev", "eth0")
		ns.Exec("ip", "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
		for _, port := range []int{22, 53, 443, 20000, 20001, 20019, 20025} {
			w.serve(ns, g.Name, port)
		}
	}
	w.serve(w.outside, "outside", 80)
	w.serve(w.host, "host", 80)
	w.apply()
	return w
}

func (w *world) apply() {
	w.t.Helper()
	if err := w.wall.Apply(w.t.Context(), w.network, uplinks); err != nil {
		w.t.Fatal(err)
	}
}

// accept listens in the namespace of the calling thread, and answers each
// connection before it closes it.
func (w *world) accept(network, address string, answer func(net.Conn)) {
	w.t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		w.t.Error(err)
		return
	}
	w.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				answer(conn)
			}()
		}
	}()
}

// serve answers every line on a port, TCP and UDP, with who it is, which port
// that is, and whom it sees.
func (w *world) serve(ns *nstest.NS, name string, port int) {
	w.t.Helper()
	address := fmt.Sprintf("0.0.0.0:%d", port)
	ns.Do(func() {
		w.accept("tcp4", address, func(conn net.Conn) {
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				_, _ = fmt.Fprintf(conn, "%s:%d sees %s\n", name, port, conn.RemoteAddr().(*net.TCPAddr).IP)
			}
		})
		packets, err := net.ListenPacket("udp4", address)
		if err != nil {
			w.t.Error(err)
			return
		}
		w.t.Cleanup(func() { _ = packets.Close() })
		go func() {
			buffer := make([]byte, 1500)
			for {
				_, from, err := packets.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = packets.WriteTo(fmt.Appendf(nil, "%s:%d sees %s\n", name, port, from.(*net.UDPAddr).IP), from)
			}
		}()
	})
}

// ask sends one line from ns and returns the answer, or "" when none comes.
func (w *world) ask(ns *nstest.NS, protocol, address string, patience time.Duration) string {
	var answer string
	ns.Do(func() {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(w.t.Context(), protocol+"4", address)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = fmt.Fprintln(conn, "hello")
		answer, _ = bufio.NewReader(conn).ReadString('\n')
	})
	return strings.TrimSpace(answer)
}

// count returns how many packets were dropped for a reason, of all guests.
func (w *world) count(reason vps.DropReason) int {
	w.t.Helper()
	var byLink map[string][]vps.Drop
	w.host.Do(func() {
		var err error
		if byLink, err = w.wall.Drops(w.t.Context()); err != nil {
			w.t.Error(err)
		}
	})
	sum := 0
	for _, drops := range byLink {
		for _, d := range drops {
			if d.Reason == reason {
				sum += int(d.Packets)
			}
		}
	}
	return sum
}

func TestWhatPasses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ what, from, protocol, to, want string }{
		{"masquerade", "alice", "tcp", outside + ":80", "outside:80 sees " + public},
		{"masquerade", "alice", "udp", outside + ":80", "outside:80 sees " + public},
		{"first port leads to SSH, source kept", "outside", "tcp", public + ":20000", "alice:22 sees " + outside},
		{"first port of UDP is itself", "outside", "udp", public + ":20000", "alice:20000 sees " + outside},
		{"block", "outside", "tcp", public + ":20001", "alice:20001 sees " + outside},
		{"block", "outside", "udp", public + ":20001", "alice:20001 sees " + outside},
		{"last of the block", "outside", "tcp", public + ":20019", "alice:20019 sees " + outside},
		{"next block", "outside", "tcp", public + ":20020", "bob:22 sees " + outside},
		{"next block", "outside", "tcp", public + ":20025", "bob:20025 sees " + outside},
		{"forward", "outside", "tcp", public + ":8443", "alice:443 sees " + outside},
		{"forward of both", "outside", "tcp", public + ":5353", "bob:53 sees " + outside},
		{"forward of both", "outside", "udp", public + ":5353", "bob:53 sees " + outside},
		{"from the host", "host", "tcp", public + ":20000", "alice:22 sees " + public},
		{"from the host", "host", "udp", public + ":20001", "alice:20001 sees " + public},
		{"from the host by the gateway", "host", "tcp", gateway + ":8443", "alice:443 sees " + gateway},
		{"from the host directly", "host", "tcp", "10.213.0.2:22", "alice:22 sees " + gateway},
		{"from another guest", "bob", "tcp", public + ":20000", "alice:22 sees 10.213.0.3"},
		{"from another guest", "bob", "udp", public + ":20001", "alice:20001 sees 10.213.0.3"},
		{"from another guest by the gateway", "bob", "tcp", gateway + ":8443", "alice:443 sees 10.213.0.3"},
		{"from the guest itself", "alice", "tcp", public + ":20000", "alice:22 sees " + gateway},
		{"from the guest itself", "alice", "udp", public + ":20001", "alice:20001 sees " + gateway},
	} {
		if got := w.ask(w.place(c.from), c.protocol, c.to, hang.After); got != c.want {
			t.Errorf("%s: from %s to %s/%s: got %q, want %q", c.what, c.from, c.to, c.protocol, got, c.want)
		}
	}
	if got := w.ask(w.place("outside"), "tcp", public+":80", hang.After); got != "host:80 sees "+outside {
		t.Errorf("the host's own port: got %q", got)
	}
	if out, err := w.guests["alice"].Try("busybox", "ping", "-c1", "-W5", gateway); err != nil {
		t.Errorf("a guest cannot ping its gateway: %v\n%s", err, out)
	}
}

// zone returns the number of a guest's link, to say which link an address is
// of. A name will not do: package net remembers for a minute which number a
// name has, whatever the namespace.
func (w *world) zone(guest string) (index string) {
	w.t.Helper()
	w.place(guest).Do(func() {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			w.t.Error(err)
			return
		}
		index = strconv.Itoa(link.Index)
	})
	return index
}

func (w *world) place(name string) *nstest.NS {
	switch name {
	case "host":
		return w.host
	case "outside":
		return w.outside
	default:
		return w.guests[name]
	}
}

func TestWhatIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// A network of the host that is not public, as Docker's are.
	private := w.host.Peer()
	w.host.Veth("docker0", private, "eth0")
	w.host.Exec("ip", "addr", "add", "172.17.0.1/24", "dev", "docker0")
	private.Exec("ip", "addr", "add", "172.17.0.2/24", "dev", "eth0")
	private.Exec("ip", "route", "add", "default", "via", "172.17.0.1")
	w.serve(private, "private", 80)

	alice := w.guests["alice"]
	for _, c := range []struct {
		what, from, protocol, to string
		counter                  vps.DropReason
	}{
		{"guest to guest", "bob", "tcp", "10.213.0.2:22", vps.DropBetween},
		{"guest to guest", "bob", "udp", "10.213.0.2:20001", vps.DropBetween},
		{"outside to the private address", "outside", "tcp", "10.213.0.2:22", vps.DropUninvited},
		{"outside to the private address", "outside", "udp", "10.213.0.2:22", vps.DropUninvited},
		{"guest to the host", "alice", "tcp", gateway + ":80", vps.DropToHost},
		{"guest to the host", "alice", "tcp", public + ":80", vps.DropToHost},
		{"guest to a private network", "alice", "tcp", "172.17.0.2:80", vps.DropAstray},
	} {
		before := w.count(c.counter)
		if got := w.ask(w.place(c.from), c.protocol, c.to, 300*time.Millisecond); got != "" {
			t.Errorf("%s: from %s to %s/%s: got the answer %q", c.what, c.from, c.to, c.protocol, got)
		}
		if w.count(c.counter) == before {
			t.Errorf("%s: from %s to %s/%s: the counter %s did not move", c.what, c.from, c.to, c.protocol, c.counter)
		}
	}

	t.Run("address of nobody", func(t *testing.T) {
		// Else it may just look whether the gateway is still there (ARP), from
		// the same address.
		mac := strings.Fields(w.host.Exec("ip", "-brief", "link", "show", "dev", w.network.Guests[0].Link))[2]
		alice.Exec("ip", "neigh", "replace", gateway, "lladdr", mac, "nud", "permanent", "dev", "eth0")
		before := w.count(vps.DropSpoofed)
		alice.Exec("ip", "addr", "add", "10.213.0.99/32", "dev", "eth0")
		alice.Do(func() { send(t, "10.213.0.99", outside) })
		alice.Exec("ip", "addr", "add", "10.213.0.3/32", "dev", "eth0")
		alice.Do(func() { send(t, "10.213.0.3", outside) })
		if got := w.count(vps.DropSpoofed) - before; got != 2 {
			t.Errorf("%d packets were counted as spoofed, want 2", got)
		}
	})
	t.Run("other MAC", func(t *testing.T) {
		before := w.count(vps.DropSpoofed)
		alice.Exec("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
		alice.Exec("ip", "route", "replace", "default", "via", gateway, "dev", "eth0", "onlink")
		alice.Do(func() { send(t, "10.213.0.2", outside) })
		if w.count(vps.DropSpoofed) == before {
			t.Error("a packet with a foreign MAC was not counted as spoofed")
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		before := w.count(vps.DropSpoofed)
		alice.Exec("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=0")
		alice.Exec("ip", "-6", "addr", "add", "fe80::99/64", "dev", "eth0", "nodad")
		zone := w.zone("alice")
		alice.Do(func() {
			conn, err := net.Dial("udp6", "[ff02::1%"+zone+"]:9")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = fmt.Fprintln(conn, "hello")
		})
		if w.count(vps.DropSpoofed) == before {
			t.Error("a packet of IPv6 was not counted")
		}
	})
	t.Run("socket of a guest's process", func(t *testing.T) {
		if !w.sendsAs(w.network.Guests[0].UID + 1000) {
			t.Error("some user cannot send")
		}
		if w.sendsAs(w.network.Guests[0].UID) {
			t.Error("a guest's user can send from the host's own network")
		}
		if w.count(vps.DropSocket) == 0 {
			t.Error("the counter did not move")
		}
	})
}

// send sends one UDP packet.
func send(t *testing.T, from, to string) {
	t.Helper()
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 80})
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintln(conn, "hello")
}

// sendsAs tells whether a user of the host can send a packet to itself.
func (w *world) sendsAs(uid uint32) bool {
	sent := false
	w.host.Do(func() {
		// For this thread only, which ends with the function.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			w.t.Error(errno)
			return
		}
		conn, err := net.Dial("udp4", "127.0.0.1:80")
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, err = fmt.Fprintln(conn, "hello")
		sent = err == nil
	})
	return sent
}

// Established connections live through a replaced table, in both directions.
func TestReplaceKeepsConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	open := func(ns *nstest.NS, to string) (conn net.Conn) {
		ns.Do(func() {
			var err error
			if conn, err = net.Dial("tcp4", to); err != nil {
				t.Error(err)
			}
		})
		if conn == nil {
			t.FailNow()
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
	conns := []net.Conn{open(w.outside, public+":20000"), open(w.guests["alice"], outside+":80"), open(w.guests["alice"], public+":20000")}
	talk := func() {
		t.Helper()
		for _, c := range conns {
			_, _ = fmt.Fprintln(c, "hello")
			if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	talk()
	w.network.Guests = append(w.network.Guests, guest(3, "carol"))
	w.apply()
	talk()
	w.network.Guests[0].Forwards = nil
	w.apply()
	talk()
}

func TestApplyIsFree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed, err := w.wall.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.apply()
	// A firewall without memory, as after a restart of the daemon.
	w.wall = nft.New(nil, nft.Options{})
	w.apply()
	select {
	case <-changed:
		t.Error("a second Apply of the same value changed the ruleset")
	default:
	}
	w.network.Guests = w.network.Guests[:1]
	w.apply()
	if _, ok := <-changed; !ok {
		t.Error("the watch ended")
	}
	cancel()
	for range changed {
	}
}
