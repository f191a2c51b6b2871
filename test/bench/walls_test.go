package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// Addresses of the bench's network.
const (
	wallPublic  = "203.0.113.1"
	wallOutside = "203.0.113.9"
	wallGateway = "10.213.0.1"
)

// BenchmarkWalls compares what one guest gets through to the outside with the
// rules of 1, 100 and 1000 guests in place, in turns: small packets, and one
// TCP connection. The guest is a network namespace on a cable, which is faster
// than User Mode Linux and so shows the rules' cost more clearly; its limits
// are set out of the way. Beside it stands the same wall as it is written by
// hand with iptables: rules per guest that match the bridge's port (physdev)
// and the source address, a logging one and a drop, IPv4 only.
func BenchmarkWalls(b *testing.B) {
	sizes := []int{1, 100, 1000}
	routed, bridged := newWall(b, false), newWall(b, true)
	var packets, streams, oldPackets []*figure
	for _, n := range sizes {
		packets = append(packets, &figure{name: fmt.Sprintf("packets per second, %d guests", n), unit: "kpps", metric: fmt.Sprintf("kpps-%d", n)})
		streams = append(streams, &figure{name: fmt.Sprintf("TCP, %d guests", n), unit: "Gbit/s", metric: fmt.Sprintf("Gbit-%d", n)})
		oldPackets = append(oldPackets, &figure{name: fmt.Sprintf("packets per second, physdev rules, %d guests", n), unit: "kpps", metric: fmt.Sprintf("physdev-kpps-%d", n)})
	}
	for b.Loop() {
		for range rounds {
			// Who comes first is drawn, against a drift of the machine.
			for _, i := range rand.Perm(len(sizes)) {
				routed.load(sizes[i])
				packets[i].add(routed.packets())
				streams[i].add(routed.stream())
				bridged.load(sizes[i])
				oldPackets[i].add(bridged.packets())
			}
		}
	}
	last := len(sizes) - 1
	ratio := func(name string, of []*figure, goal float64) *figure {
		f := &figure{name: name, unit: "%", metric: strings.ReplaceAll(name, " ", "-"), atLeast: goal}
		f.add(100 * of[last].median() / of[0].median())
		low, high := ratioInterval(of[last], of[0])
		b.Logf("%s: between %.1f and %.1f %% by the samples' own noise", name, low, high)
		return f
	}
	const goal = 97
	report(b, slices.Concat(packets, streams, oldPackets)...)
	report(b, ratio("packets 1000/1", packets, goal), ratio("TCP 1000/1", streams, goal), ratio("physdev packets 1000/1", oldPackets, 0))
}

// wall is a host with a guest on one side and the world on the other.
type wall struct {
	b                    *testing.B
	host, guest, outside *nstest.NS
	bridged              bool
	firewall             *nft.Firewall
	guests               []vps.NetworkGuest
	from                 netip.Addr
}

func newWall(b *testing.B, bridged bool) *wall {
	b.Helper()
	w := &wall{b: b, bridged: bridged, firewall: nft.New(nil, nft.Options{})}
	// Made from a goroutine of its own: New keeps its thread.
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.host = nstest.New(b)
	}()
	<-done
	if w.host == nil {
		b.FailNow() // it has said why
	}
	w.outside, w.guest = w.host.Peer(), w.host.Peer()
	for i := range 1000 {
		address := netip.AddrFrom4([4]byte{10, 213, byte((i + 2) >> 8), byte(i + 2)})
		name := fmt.Sprintf("g%04d", i)
		w.guests = append(w.guests, vps.NetworkGuest{
			Name: name, Link: vps.LinkName(name), Address: address, MAC: vps.MACFor(address), UID: 721300 + uint32(i),
			Ports:  vps.PortBlock{First: uint16(20000 + 20*i), Count: 20},
			Limits: vps.NetworkLimits{Packets: 100_000_000, NewConnections: 1_000_000, Connections: 10_000_000},
		})
	}
	// The guest in the middle: with a rule for each, some stand before it.
	g := w.guests[0]
	w.from = g.Address
	w.host.Do(func() { w.cables(g) })
	return w
}

// cables joins the three networks. It runs on the host.
func (w *wall) cables(g vps.NetworkGuest) {
	w.host.Veth("up0", w.outside, "eth0")
	w.host.Veth(g.Link, w.guest, "eth0")
	w.host.Exec("ip", "addr", "add", wallPublic+"/24", "dev", "up0")
	w.outside.Exec("ip", "addr", "add", wallOutside+"/24", "dev", "eth0")
	w.outside.Exec("ip", "route", "add", "10.213.0.0/16", "via", wallPublic)
	w.guest.Exec("ip", "link", "set", "eth0", "address", g.MAC.String())
	if w.bridged {
		w.host.Exec("ip", "link", "add", "br0", "type", "bridge")
		w.host.Exec("ip", "link", "set", g.Link, "master", "br0")
		w.host.Exec("ip", "link", "set", "br0", "up")
		w.host.Exec("ip", "addr", "add", wallGateway+"/16", "dev", "br0")
		w.guest.Exec("ip", "addr", "add", g.Address.String()+"/16", "dev", "eth0")
		w.guest.Exec("ip", "route", "add", "default", "via", wallGateway)
		w.write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
	} else {
		w.host.Exec("ip", "addr", "add", wallGateway+"/32", "dev", g.Link)
		w.host.Exec("ip", "route", "add", g.Address.String(), "dev", g.Link, "src", wallGateway)
		w.guest.Exec("ip", "addr", "add", g.Address.String()+"/32", "dev", "eth0")
		w.guest.Exec("ip", "route", "add", "default", "via", wallGateway, "dev", "eth0", "onlink")
	}
	w.write("/proc/sys/net/ipv4/ip_forward", "1")
}

func (w *wall) write(path, value string) {
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		w.b.Error(err)
	}
}

// load puts the rules of n guests in place.
func (w *wall) load(n int) {
	w.b.Helper()
	w.host.Do(func() {
		if w.bridged {
			w.host.ExecInput(physdev(w.guests[:n], w.guests[0]), "iptables-legacy-restore")
			return
		}
		network := vps.Network{
			Subnet: netip.MustParsePrefix("10.213.0.0/16"), Gateway: netip.MustParseAddr(wallGateway), Guests: w.guests[:n],
		}
		if err := w.firewall.Apply(context.Background(), network, []string{"up0"}); err != nil {
			w.b.Error(err)
		}
	})
}

// physdev is the old recipe for these guests. That of ours stands in the
// middle, as on average.
func physdev(guests []vps.NetworkGuest, ours vps.NetworkGuest) string {
	order := slices.Clone(guests)
	order[0], order[len(order)/2] = order[len(order)/2], ours
	var text strings.Builder
	text.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:ANTISPOOF - [0:0]\n-A FORWARD -m physdev --physdev-in sl-+ -j ANTISPOOF\n")
	for _, g := range order {
		fmt.Fprintf(&text, "-A ANTISPOOF -m physdev --physdev-in %s -s %s -j ACCEPT\n", g.Link, g.Address)
	}
	text.WriteString("-A ANTISPOOF -m limit --limit 15/min -j LOG --log-prefix \"spoofed \"\n-A ANTISPOOF -j DROP\nCOMMIT\n")
	return text.String()
}

const (
	packetPort = 9 // discard
	batch      = 64
)

// packets returns how many thousand small UDP packets per second arrive
// outside when the guest sends as fast as it can.
func (w *wall) packets() float64 {
	w.b.Helper()
	var rate float64
	w.guest.Do(func() {
		conn, err := net.Dial("udp4", net.JoinHostPort(wallOutside, strconv.Itoa(packetPort)))
		if err != nil {
			w.b.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		udp, ok := conn.(*net.UDPConn)
		if !ok {
			return
		}
		out := ipv4.NewPacketConn(udp)
		messages := make([]ipv4.Message, batch)
		for i := range messages {
			messages[i].Buffers = [][]byte{make([]byte, 18)}
		}
		send := func(until time.Duration) (took time.Duration) {
			start := time.Now()
			for took < until {
				// A port that nobody listens on answers now and then; the packet
				// went out all the same.
				_, _ = out.WriteBatch(messages, 0)
				took = time.Since(start)
			}
			return took
		}
		send(warmUp)
		before := w.arrived()
		took := send(window)
		rate = float64(w.arrived()-before) / took.Seconds() / 1e3
	})
	return rate
}

// arrived is how many packets the outside's card has received.
func (w *wall) arrived() int64 {
	text := strings.TrimSpace(w.outside.Exec("cat", "/sys/class/net/eth0/statistics/rx_packets"))
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		w.b.Error(err)
	}
	return n
}

// stream returns the speed of one TCP connection from the guest to the
// outside in Gbit/s, as the outside counts it.
func (w *wall) stream() float64 {
	w.b.Helper()
	var listener net.Listener
	w.outside.Do(func() {
		var err error
		if listener, err = net.Listen("tcp4", net.JoinHostPort(wallOutside, "0")); err != nil {
			w.b.Error(err)
		}
	})
	if listener == nil {
		return 0
	}
	defer func() { _ = listener.Close() }()
	sending := w.guest.Start(func() {
		conn, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			w.b.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		for buffer := make([]byte, 256<<10); ; {
			if _, err := conn.Write(buffer); err != nil {
				return // the outside has seen enough
			}
		}
	})
	conn, err := listener.Accept()
	if err != nil {
		w.b.Error(err)
		return 0
	}
	buffer := make([]byte, 256<<10)
	read := func(until time.Duration) float64 {
		total, start := 0, time.Now()
		for time.Since(start) < until {
			n, err := conn.Read(buffer)
			if total += n; err != nil {
				w.b.Error(err)
				return 0
			}
		}
		return gigabits(total, time.Since(start))
	}
	read(warmUp)
	speed := read(window)
	_ = conn.Close()
	<-sending
	return speed
}
