//go:build linux

package nft_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// maker makes a network out of bytes: each decides something, and when there
// are none left it is 0. Most of what it makes is sound, because what is refused
// at once tells little.
type maker struct {
	bytes   []byte
	hostile string
}

func (m *maker) next() int {
	if len(m.bytes) == 0 {
		return 0
	}
	b := m.bytes[0]
	m.bytes = m.bytes[1:]
	return int(b)
}

// rarely is true once in 128 times, and never when bytes have run out.
func (m *maker) rarely() bool { return m.next()%128 == 127 }

func pick[T any](m *maker, from ...T) T { return from[m.next()%len(from)] }

// word is one of the sound ones, or rarely the hostile one.
func (m *maker) word(sound ...string) string {
	if m.rarely() {
		return m.hostile
	}
	return pick(m, sound...)
}

// number lies in what is sound, at its ends more often than not; rarely outside.
func (m *maker) number(lowest, highest int) int {
	if m.rarely() {
		return pick(m, lowest-1, highest+1, 0, -1, math.MaxInt32)
	}
	within := lowest + (m.next()<<8|m.next())%(min(highest, math.MaxInt32-1)-lowest+1)
	return pick(m, lowest, highest, within, within)
}

func (m *maker) port() uint16 { return uint16(m.number(1, 65535)) }

func (m *maker) peer() netip.Prefix {
	if m.rarely() {
		return pick(m, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("::ffff:192.0.2.0/120"), netip.PrefixFrom(none6, 200))
	}
	switch m.next() % 3 {
	case 0:
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(m.next()), byte(m.next()), byte(m.next()), byte(m.next())}), m.next()%33).Masked()
	case 1:
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, byte(m.next()), 8: byte(m.next()), 15: byte(m.next())}), m.next()%129).Masked()
	default:
		return netip.Prefix{}
	}
}

func (m *maker) rule() vps.Rule {
	r := vps.Rule{
		Action: vps.RuleAction(m.word("allow", "deny")), Direction: vps.Direction(m.word("out", "in")),
		Protocol: vps.Protocol(m.word("tcp", "udp", "icmp", "")),
	}
	if r.Direction == vps.Out && m.next()%4 == 0 {
		r.Host = true
	} else {
		r.Peer = m.peer()
	}
	if r.Protocol == vps.ProtoTCP || r.Protocol == vps.ProtoUDP || m.rarely() {
		switch first := m.port(); m.next() % 3 {
		case 0:
			r.First, r.Last = first, first
		case 1:
			r.First, r.Last = first, max(first, m.port())
		}
	}
	return r
}

func (m *maker) prefix6(index int) netip.Prefix {
	if m.next()%4 == 0 {
		return netip.Prefix{}
	}
	if m.rarely() {
		return pick(m, netip.MustParsePrefix("fe80::/64"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("10.0.0.0/8"),
			netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("ff00::/8"), netip.PrefixFrom(netip.MustParseAddr("2001:db8::"), -1))
	}
	bits := pick(m, 128, 64, 127, 65, 126, 80, 48+m.next()%81)
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 5: byte(index), 7: byte(m.next()), 15: byte(m.next())}), bits).Masked()
}

func (m *maker) guest(index int) vps.NetworkGuest {
	name := m.word(fmt.Sprintf("guest%d", index))
	g := guest(index, name)
	g.Link = m.word(fmt.Sprintf("sl-g%d", index), fmt.Sprintf("sl-%d.a_B", index), fmt.Sprintf("sl-accept%d", index), fmt.Sprintf("sl-0123456789%d", index))
	if m.next()%3 == 0 {
		g.Bridge = m.word("br0", "xenbr0", "vmbr.7")
	}
	if m.next()%3 == 0 {
		g.Peers = pick(m, "team", m.hostile, "")
	}
	g.Prefix6 = m.prefix6(index)
	g.SMTP = m.next()%2 == 0
	g.UID = uint32(m.number(1+index, 1<<32-2-index))
	g.Limits = vps.NetworkLimits{Packets: m.number(1, math.MaxInt32), NewConnections: m.number(1, math.MaxInt32), Connections: m.number(1, math.MaxInt32)}
	g.Ports = vps.PortBlock{First: uint16(20000 + 1000*index), Count: uint16(m.number(1, 1000))}
	for range m.next() % 4 {
		g.Rules = append(g.Rules, m.rule())
	}
	for i := range m.next() % 3 {
		host := uint16(1000 + 10*index + i)
		g.Forwards = append(g.Forwards, vps.Forward{Host: host, Guest: m.port(), Protocol: vps.Protocol(m.word("tcp", "udp", "tcp+udp"))})
	}
	if m.rarely() {
		g.MAC = pick(m, nil, net.HardwareAddr{1, 2, 3, 4, 5, 6}, net.HardwareAddr(m.hostile), vps.MACFor(netip.MustParseAddr("10.213.0.2")))
	}
	if m.rarely() {
		g.Address = pick(m, netip.Addr{}, netip.MustParseAddr("fe80::1%"+`"x"`), netip.MustParseAddr(gateway), netip.MustParseAddr("10.213.0.2"))
	}
	return g
}

func (m *maker) network() (n vps.Network, up []string) {
	var guests []vps.NetworkGuest
	for i := range m.next() % 5 {
		guests = append(guests, m.guest(i+1))
	}
	n = network(guests...)
	n.NAT6 = m.next()%2 == 0
	for range m.next() % 4 {
		n.Services = append(n.Services, vps.Service{Port: m.port(), Protocol: vps.Protocol(m.word("tcp", "udp"))})
	}
	for range m.next() % 3 {
		up = append(up, m.word("eth0", "wan1", "vlan.7", "br0"))
	}
	if m.rarely() {
		n.Gateway = pick(m, netip.Addr{}, netip.MustParseAddr("fe80::1%"+`"x"`), none4)
	}
	return n, up
}

var (
	soundLink = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)
	marks     = regexp.MustCompile(`0x[0-9a-f]{8}\b`)
	quoted    = regexp.MustCompile(`"[^"]*"`)
	// known is what stands between quotes in every text.
	known = regexp.MustCompile(`^"(sl-\*|sublet [a-z-]+|made by sublet \([0-9a-f]{16}\); changes by hand are undone)"$`)
	// plain is all that stands outside of them.
	plain = regexp.MustCompile(`^[a-z0-9A-Z_ \t\n{};:,.@&|!=<>()+*/-]*$`)
)

// hostiles are words that would do harm in a text where they were not expected.
var hostiles = []string{
	`"; flush ruleset; "`, "x\nflush ruleset", `sl-x" . "y`, "sl-*", "sl-", "*", "$(reboot)", "`reboot`", `\"`, "sl-a\x00b", "sl-ä", "a;b", "tcp } accept; {",
	"icmp, ipv6-icmp } accept #", "accept", "drop", "0", "-1", "@guests", "include \"/etc/shadow\"", "define x = 1", strings.Repeat("sl-", 9), "sl-drop", "sl-a.b:c", "\xff\xfe", "",
	"tcp+udp", "jump", "sl-g1", "br0", "sl-table",
}

// FuzzRender: whatever Render is given, it does not panic; what it refuses
// gives no text; and what it returns is taken by nft, speaks of our tables only,
// and holds no word of anybody's but names of links.
func FuzzRender(f *testing.F) {
	random := rand.New(rand.NewPCG(7, 213))
	for i := range 3 * len(hostiles) {
		seed := make([]byte, 300)
		for j := range seed {
			seed[j] = byte(random.Uint32())
		}
		seed[0] = byte(1 + i%4) // guests
		f.Add(hostiles[i%len(hostiles)], seed)
	}
	f.Add("", []byte(nil))
	host, made := nstest.New(f), map[string]bool{}
	f.Fuzz(func(t *testing.T, hostile string, decisions []byte) {
		m := &maker{bytes: decisions, hostile: hostile}
		n, up := m.network()
		var links []string
		for _, g := range n.Guests {
			links = append(links, g.Link)
		}
		text, err := nft.Render(n, up, links)
		if err != nil {
			if code := vps.ErrorCode(err); text != "" || code != vps.CodeInvalid && code != vps.CodeConflict {
				t.Fatalf("refused with %q and the text %q", err, text)
			}
			return
		}
		checkWords(t, text, append(links, up...))
		checkNames(t, text, n, up, links)
		checkTaken(t, host, text, n, made)
	})
}

// checkWords finds what is not ours in a text, but for names of links.
func checkWords(t *testing.T, text string, links []string) {
	t.Helper()
	names := map[string]bool{}
	for _, l := range links {
		names[`"`+l+`"`] = soundLink.MatchString(l)
	}
	for _, q := range quoted.FindAllString(text, -1) {
		if !names[q] && !known.MatchString(q) {
			t.Errorf("the text holds %s", q)
		}
	}
	rest := quoted.ReplaceAllString(text, "")
	if !plain.MatchString(rest) {
		t.Errorf("the text holds strange characters:\n%s", rest)
	}
	for line := range strings.SplitSeq(rest, "\n") {
		if word, other, _ := strings.Cut(strings.TrimSpace(line), " "); word == "include" || word == "define" || word == "flush" || word == "reset" || word == "list" ||
			(word == "table" || word == "add" || word == "delete") && !strings.Contains(other, " sublet") {
			t.Errorf("the text says %q", line)
		}
	}
}

// checkNames: names of guests, groups and bridges leave no trace in a text,
// whatever they are.
func checkNames(t *testing.T, text string, n vps.Network, up, links []string) {
	t.Helper()
	groups := map[string]string{"": ""}
	var others []vps.NetworkGuest
	for i, g := range n.Guests {
		g.Name = fmt.Sprintf("other%d", i)
		if _, ok := groups[g.Peers]; !ok {
			groups[g.Peers] = fmt.Sprintf("group%d", len(groups))
		}
		g.Peers = groups[g.Peers]
		if g.Bridge != "" {
			g.Bridge = "br-other"
		}
		others = append(others, g)
	}
	n.Guests = others
	again, err := nft.Render(n, up, links)
	if err != nil {
		t.Fatalf("with other names it is refused: %v", err)
	}
	if marks.ReplaceAllString(text, "MARK") != marks.ReplaceAllString(again, "MARK") {
		t.Errorf("names of guests, groups or bridges are in the text:\n%s", text)
	}
}

// checkTaken has nft check a text where the guests' links are, as it would
// load it. Links that were made stay.
func checkTaken(t *testing.T, host *nstest.NS, text string, n vps.Network, made map[string]bool) {
	t.Helper()
	// Not by Try: the network belongs to the fuzz test, which must not be
	// spoken to from its target.
	run := func(input string, argv ...string) {
		host.Do(func() {
			cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
			cmd.Stdin = strings.NewReader(input)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s\n%s", argv[0], err, out, input)
			}
		})
	}
	for _, g := range n.Guests {
		if g.Bridge == "" && !made[g.Link] {
			made[g.Link] = true
			run("", "ip", "tuntap", "add", g.Link, "mode", "tap")
		}
	}
	run(text, "nft", "-c", "-f", "-")
}
