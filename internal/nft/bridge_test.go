//go:build linux

package nft_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

var (
	outsideMAC = net.HardwareAddr{0x02, 0, 0x5e, 0, 0, 9}
	outside4   = netip.MustParseAddr("10.213.255.9")
	outside6   = netip.MustParseAddr("2001:db8:9::9")
	pool6      = netip.MustParsePrefix("2001:db8:213::/48")
)

// silent keeps the kernel of a namespace from speaking IPv6 by itself, on links
// that come later too.
func silent(ns *nstest.NS) {
	ns.Exec("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
}

// newBridge is a host whose guests are ports of a bridge, as Xen's are by
// custom, with a machine outside on the same bridge. It is called on the
// test's own goroutine. The guests are alice, who acts and has a prefix, bob
// with a single address, and carol with none.
func newBridge(t *testing.T, change func(n *vps.Network)) *stage {
	t.Helper()
	w := &world{t: t, host: nstest.New(t), guests: map[string]*nstest.NS{}, wall: nft.New(nil, nft.Options{})}
	silent(w.host)
	w.network = network(guest(1, "alice"), guest(2, "bob"), guest(3, "carol"))
	w.network.Subnet6 = pool6
	w.network.Guests[0].Prefix6 = netip.MustParsePrefix("2001:db8:213:2::/64")
	w.network.Guests[1].Prefix6 = netip.MustParsePrefix("2001:db8:213:3::7/128")
	for i := range w.network.Guests {
		w.network.Guests[i].Bridge = "br0"
	}
	if change != nil {
		change(&w.network)
	}
	w.host.Exec("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0", "stp_state", "0")
	w.host.Exec("ip", "link", "set", "br0", "up")
	w.host.Exec("ip", "addr", "add", gateway+"/16", "dev", "br0")
	port := func(link string) *nstest.NS {
		ns := w.host.Peer()
		silent(ns)
		w.host.Veth(link, ns, "eth0")
		w.host.Exec("ip", "link", "set", link, "master", "br0")
		return ns
	}
	w.outside = port("up0")
	w.apply()
	s := &stage{world: w, actor: w.network.Guests[0], public: hear(t, w.outside, "eth0"), answer: aim(t, w.outside, "eth0"), next: outsideMAC, next6: outside6}
	s.call = func(mark []byte) []byte {
		return ether(outsideMAC, s.actor.MAC, typeIPv4, packet4{from: s.actor.Address, to: outside4, proto: protoUDP}.of(udp(s.actor.Address, outside4, 4, 9, mark)))
	}
	for _, g := range w.network.Guests {
		ns := port(g.Link)
		w.guests[g.Name] = ns
		if g.Name == s.actor.Name {
			s.act = aim(t, ns, "eth0")
			continue
		}
		s.neighbours = append(s.neighbours, neighbour{hear(t, ns, "eth0"), func(mark []byte) []byte {
			return ether(g.MAC, outsideMAC, typeIPv4, packet4{from: outside4, to: g.Address, proto: protoUDP}.of(udp(outside4, g.Address, 4, 9, mark)))
		}})
		// So that the bridge knows where everybody is, and floods nothing.
		aim(t, ns, "eth0")(ether(outsideMAC, g.MAC, typeARP, arp(1, g.MAC, g.Address, outside4)))
	}
	s.answer(ether(everybody, outsideMAC, typeARP, arp(1, outsideMAC, outside4, outside4), []byte("mark first")))
	for _, n := range s.neighbours {
		n.until([]byte("mark first"))
	}
	s.play()
	return s
}

// on is a switch of netfilter on bridges: what a bridge passes on goes through
// the rules of IP as well, or not.
func (s *stage) bridgeCalls(on string) {
	s.t.Helper()
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte(on), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestBridgeFrames sends all that a guest on a bridge should not, and what it
// may, with and without bridge-nf-call-iptables.
func TestBridgeFrames(t *testing.T) {
	t.Parallel()
	for _, on := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+on, func(t *testing.T) {
			t.Parallel()
			s := newBridge(t, nil)
			s.bridgeCalls(on)
			s.run(slices.Concat(s.frameScenes(), s.arpScenes(), s.scenes4(), s.scenes6(), s.neighbourScenes()))
		})
	}
}

// frameScenes are about what stands in front of a packet.
func (s *stage) frameScenes() []scene {
	a, b := s.actor, s.network.Guests[1]
	own := packet4{from: a.Address, to: outside4, proto: protoUDP}.of(udp(a.Address, outside4, 1, 9))
	tag := func(id, inner uint16) []byte { return word16(nil, id, inner) }
	scenes := []scene{pass("its own packet", ether(outsideMAC, a.MAC, typeIPv4, own))}
	for what, mac := range map[string]net.HardwareAddr{
		"the neighbour's MAC": b.MAC, "the outside's MAC": outsideMAC, "a group's MAC": {1, 0, 0x5e, 0, 0, 1}, "no MAC": make(net.HardwareAddr, 6),
	} {
		if mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
			// The bridge itself takes no such frame from anybody.
			scenes = append(scenes, drop("", what, ether(outsideMAC, mac, typeIPv4, own)))
			continue
		}
		scenes = append(scenes,
			drop(vps.DropSpoofed, what, ether(outsideMAC, mac, typeIPv4, own)),
			drop(vps.DropSpoofed, what+", ARP", ether(outsideMAC, mac, typeARP, arp(2, mac, b.Address, outside4))),
			drop(vps.DropSpoofed, what+", IPv6", ether(outsideMAC, mac, typeIPv6, packet6(vps.Address6(a.Prefix6), outside6, protoUDP, udp(vps.Address6(a.Prefix6), outside6, 1, 9)))),
		)
	}
	for what, kind := range map[string]uint16{
		"RARP": 0x8035, "LLDP": 0x88cc, "PPPoE discovery": 0x8863, "PPPoE": 0x8864, "MPLS": 0x8847, "EAPOL": 0x888e, "MACsec": 0x88e5,
		"ATA": 0x88a2, "IPX": 0x8137, "PTP": 0x88f7, "TRILL": 0x22f3, "an experiment": 0x88b5, "a loopback test": 0x9000, "another old tag": 0x9200,
		"type 0": 0, "the last type": 0xffff,
	} {
		scenes = append(scenes, drop(vps.DropEthertype, what, ether(everybody, a.MAC, kind, own)))
	}
	bpdu := joined([]byte{0x42, 0x42, 3}, make([]byte, 35))
	snap := joined([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, own)
	return append(scenes,
		drop(vps.DropEthertype, "spanning tree", ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, a.MAC, uint16(len(bpdu)), bpdu)),
		drop(vps.DropEthertype, "Cisco's spanning tree", ether(net.HardwareAddr{1, 0, 0x0c, 0xcc, 0xcc, 0xcd}, a.MAC, uint16(len(bpdu)), bpdu)),
		drop(vps.DropEthertype, "SNAP", ether(outsideMAC, a.MAC, uint16(len(snap)), snap)),
		drop(vps.DropVLAN, "VLAN 7", ether(outsideMAC, a.MAC, typeVLAN, tag(7, typeIPv4), own)),
		drop(vps.DropVLAN, "VID 0", ether(outsideMAC, a.MAC, typeVLAN, tag(0, typeIPv4), own)),
		drop(vps.DropVLAN, "VID 0, ARP", ether(everybody, a.MAC, typeVLAN, tag(0, typeARP), arp(1, a.MAC, a.Address, outside4))),
		drop(vps.DropVLAN, "VID 0, IPv6", ether(outsideMAC, a.MAC, typeVLAN, tag(5<<13, typeIPv6), packet6(vps.Address6(a.Prefix6), outside6, protoUDP))),
		drop(vps.DropVLAN, "VID 4095", ether(outsideMAC, a.MAC, typeVLAN, tag(4095, typeIPv4), own)),
		drop(vps.DropVLAN, "802.1ad", ether(outsideMAC, a.MAC, typeQinQ, tag(7, typeIPv4), own)),
		drop(vps.DropVLAN, "802.1ad, VID 0", ether(outsideMAC, a.MAC, typeQinQ, tag(0, typeIPv4), own)),
		drop(vps.DropVLAN, "QinQ", ether(outsideMAC, a.MAC, typeQinQ, tag(7, typeVLAN), tag(9, typeIPv4), own)),
		drop(vps.DropVLAN, "two tags of VID 0", ether(outsideMAC, a.MAC, typeVLAN, tag(0, typeVLAN), tag(0, typeIPv4), own)),
		drop(vps.DropVLAN, "the old kind of tag", ether(outsideMAC, a.MAC, 0x9100, tag(7, typeIPv4), own)),
		// The kernel takes these for the port itself, and passes them to nobody.
		drop("", "LLDP to bridges", ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, a.MAC, 0x88cc)),
		drop("", "EAPOL to bridges", ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 3}, a.MAC, 0x888e)),
		drop("", "a pause of the link", ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 1}, a.MAC, 0x8808, []byte{0, 1, 255, 255})),
		drop(vps.DropSpoofed, "IPv4 to bridges", ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 3}, a.MAC, typeIPv4, own)),
	)
}

func (s *stage) arpScenes() []scene {
	a, b := s.actor, s.network.Guests[1]
	frame := func(body []byte) []byte { return ether(outsideMAC, a.MAC, typeARP, body) }
	bent := func(at int, value ...byte) []byte {
		body := arp(1, a.MAC, a.Address, outside4)
		copy(body[at:], value)
		return frame(body)
	}
	host := netip.MustParseAddr(gateway)
	everywhere := ether(everybody, a.MAC, typeARP, arp(1, a.MAC, a.Address, a.Address))
	return []scene{
		pass("its own ARP request", frame(arp(1, a.MAC, a.Address, outside4))),
		pass("its own ARP reply", frame(arp(2, a.MAC, a.Address, outside4))),
		pass("an ARP probe for its address", frame(arp(1, a.MAC, none4, a.Address))),
		{what: "its own gratuitous ARP", frames: [][]byte{everywhere}, reason: vps.DropBetween, out: 1},
		drop(vps.DropARP, "ARP reply for the neighbour", frame(arp(2, a.MAC, b.Address, outside4))),
		drop(vps.DropARP, "ARP reply for the gateway", frame(arp(2, a.MAC, host, outside4))),
		drop(vps.DropARP, "ARP request of the neighbour's", frame(arp(1, a.MAC, b.Address, outside4))),
		drop(vps.DropARP, "gratuitous ARP for the gateway", ether(everybody, a.MAC, typeARP, arp(1, a.MAC, host, host))),
		drop(vps.DropARP, "gratuitous reply for the outside", ether(everybody, a.MAC, typeARP, arp(2, a.MAC, outside4, outside4))),
		drop(vps.DropARP, "ARP probe for the neighbour's address", frame(arp(1, a.MAC, none4, b.Address))),
		drop(vps.DropARP, "ARP reply from no address", frame(arp(2, a.MAC, none4, a.Address))),
		drop(vps.DropARP, "ARP with the neighbour's MAC inside", frame(arp(2, b.MAC, a.Address, outside4))),
		drop(vps.DropARP, "ARP with everybody's MAC inside", frame(arp(2, everybody, a.Address, outside4))),
		drop(vps.DropARP, "ARP for another hardware", bent(0, 0, 6)),
		drop(vps.DropARP, "ARP for another protocol", bent(2, 0x86, 0xdd)),
		drop(vps.DropARP, "ARP of another address length", bent(4, 4, 6)),
		drop(vps.DropARP, "ARP of another protocol length", bent(5, 16)),
		drop(vps.DropARP, "inverse ARP", bent(6, 0, 8)),
		drop(vps.DropARP, "reverse ARP in ARP", bent(6, 0, 4)),
		drop(vps.DropARP, "ARP of operation 0", bent(6, 0, 0)),
	}
}

// TestBridgeBetween: guests of one bridge do not hear each other, unless they
// are peers, whatever a frame is addressed to.
func TestBridgeBetween(t *testing.T) {
	t.Parallel()
	for _, peers := range []bool{false, true} {
		t.Run(fmt.Sprintf("peers=%v", peers), func(t *testing.T) {
			t.Parallel()
			s := newBridge(t, func(n *vps.Network) {
				n.Guests[2].Peers = "team"
				if peers {
					n.Guests[0].Peers, n.Guests[1].Peers = "team", "others"
				}
			})
			s.bridgeCalls("0") // a fragment alone passes no other rules
			a, b, c := s.actor, s.network.Guests[1], s.network.Guests[2]
			local, own6, other6 := vps.LinkLocal6(a.MAC), vps.Address6(a.Prefix6), vps.Address6(b.Prefix6)
			to := func(g vps.NetworkGuest) []byte {
				return ether(g.MAC, a.MAC, typeIPv4, packet4{from: a.Address, to: g.Address, proto: protoUDP}.of(udp(a.Address, g.Address, 1, 9)))
			}
			over := 0
			reasonC := vps.DropBetween
			if peers {
				over, reasonC = 1, ""
			}
			s.run([]scene{
				drop(vps.DropBetween, "a packet", to(b)),
				{what: "a packet to the third", frames: [][]byte{to(c)}, reason: reasonC, over: over},
				drop(vps.DropBetween, "a packet for the outside in a frame to the neighbour", ether(b.MAC, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoUDP}.of(udp(a.Address, outside4, 1, 9)))),
				drop(vps.DropBetween, "ARP", ether(b.MAC, a.MAC, typeARP, arp(1, a.MAC, a.Address, b.Address))),
				{what: "ARP to everybody", frames: [][]byte{ether(everybody, a.MAC, typeARP, arp(1, a.MAC, a.Address, b.Address))}, reason: vps.DropBetween, out: 1, over: over},
				drop(vps.DropBetween, "IPv6", ether(b.MAC, a.MAC, typeIPv6, packet6(own6, other6, protoUDP, udp(own6, other6, 1, 9)))),
				drop(vps.DropBetween, "a solicitation", ether(b.MAC, a.MAC, typeIPv6, packet6(local, other6, protoICMP6, icmp6(local, other6, solicitation, 0, other6.AsSlice(), hardware(1, a.MAC))))),
				{what: "IPv6 to everybody", frames: [][]byte{ether(group(allNodes), a.MAC, typeIPv6, packet6(local, allNodes, protoICMP6, icmp6(local, allNodes, 128, 1)))}, reason: vps.DropBetween, out: 1, over: over},
				drop(vps.DropBetween, "fragments", ether(b.MAC, a.MAC, typeIPv4, packet4{from: a.Address, to: b.Address, proto: protoUDP, where: 4}.of(make([]byte, 64)))),
				{what: "to a MAC of nobody", frames: [][]byte{ether(net.HardwareAddr{2, 1, 1, 1, 1, 1}, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoUDP}.of(udp(a.Address, outside4, 1, 9)))}, reason: vps.DropBetween, out: 1, over: over},
			})
		})
	}
}

// TestBridgeMail: port 25 is closed by both versions of IP, unless opened.
func TestBridgeMail(t *testing.T) {
	t.Parallel()
	s := newBridge(t, nil)
	s.bridgeCalls("0") // a fragment alone passes no other rules
	a := s.actor
	own6 := vps.Address6(a.Prefix6)
	mails := [][]byte{
		ether(outsideMAC, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoTCP}.of(syn(a.Address, outside4, 1, 25))),
		ether(outsideMAC, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoTCP, options: []byte{1, 1, 1, 0}}.of(syn(a.Address, outside4, 1, 25))),
		ether(outsideMAC, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoTCP, where: moreFragments}.of(syn(a.Address, outside4, 1, 25, make([]byte, 44)))),
		ether(outsideMAC, a.MAC, typeIPv6, packet6(own6, outside6, protoTCP, syn(own6, outside6, 1, 25))),
		ether(outsideMAC, a.MAC, typeIPv6, packet6(own6, outside6, destination, options6(protoTCP), syn(own6, outside6, 1, 25))),
		ether(outsideMAC, a.MAC, typeIPv6, packet6(own6, outside6, fragmented, fragment6(protoTCP, 0, true, 1), syn(own6, outside6, 1, 25, make([]byte, 44)))),
	}
	for _, m := range mails {
		s.run([]scene{drop(vps.DropSMTP, "mail", m)})
	}
	s.network.Guests[0].SMTP = true
	s.apply()
	for _, m := range mails {
		s.run([]scene{pass("mail that is let", m)})
	}
}

// TestBridgeLimit: a guest on a bridge sends no more packets than its limit
// lets it, of any kind.
func TestBridgeLimit(t *testing.T) {
	t.Parallel()
	const rate, sent = 50, 1000
	s := newBridge(t, func(n *vps.Network) { n.Guests[0].Limits.Packets = rate })
	a := s.actor
	local := vps.LinkLocal6(a.MAC)
	for what, f := range map[string][]byte{
		"IPv4":         ether(outsideMAC, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoUDP}.of(udp(a.Address, outside4, 1, 9))),
		"IPv6":         ether(outsideMAC, a.MAC, typeIPv6, packet6(local, outside6, protoUDP, udp(local, outside6, 1, 9))),
		"ARP":          ether(outsideMAC, a.MAC, typeARP, arp(1, a.MAC, a.Address, outside4)),
		"MLD from ::":  ether(outsideMAC, a.MAC, typeIPv6, packet6(none6, mldRouter, hopByHop, options6(protoICMP6), icmp6(none6, mldRouter, mld2Report, 0))),
		"a DAD's":      ether(outsideMAC, a.MAC, typeIPv6, packet6(none6, solicited(local), protoICMP6, icmp6(none6, solicited(local), solicitation, 0, local.AsSlice()))),
		"solicitation": ether(outsideMAC, a.MAC, typeIPv6, packet6(local, solicited(outside6), protoICMP6, icmp6(local, solicited(outside6), solicitation, 0, outside6.AsSlice(), hardware(1, a.MAC)))),
	} {
		before, start := s.drops(a.Link)[vps.DropFlood], time.Now()
		s.act(slices.Repeat([][]byte{f}, sent)...)
		end := ether(everybody, outsideMAC, typeARP, arp(1, outsideMAC, outside4, outside4), []byte("mark the end"))
		// It comes back from the bridge to all but its sender; the neighbour hears
		// it after the outside has heard what passed.
		s.answer(end)
		for _, n := range s.neighbours {
			n.until([]byte("mark the end"))
		}
		most := rate/10 + 1 + int(time.Since(start).Seconds()*rate) + 1
		dropped := int(s.drops(a.Link)[vps.DropFlood] - before)
		if dropped < sent-most || dropped > sent {
			t.Errorf("%s: of %d packets %d were dropped, want at least %d", what, sent, dropped, sent-most)
		}
	}
}
