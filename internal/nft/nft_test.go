//go:build linux

package nft_test

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestRenderGolden(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		network vps.Network
		uplinks []string
	}{
		"empty": {network(), nil},
		"three": {withEdge(network(
			guest(2, "bob", vps.Forward{Host: 5353, Guest: 53, Protocol: vps.ProtoBoth}),
			guest(1, "alice", vps.Forward{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}, vps.Forward{Host: 20000, Guest: 2222, Protocol: vps.ProtoTCP}),
			vps.NetworkGuest{Name: "no-ports-and-a-long-name", Link: vps.LinkName("no-ports-and-a-long-name"), UID: 9, Limits: vps.DefaultNetworkLimits(), Address: netip.MustParseAddr("10.213.9.9"), MAC: vps.MACFor(netip.MustParseAddr("10.213.9.9"))},
		)), []string{"wan1", "eth0", "wan1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := nft.Render(c.network, c.uplinks, []string{"sl-alice", "sl-nobody"})
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			slices.Reverse(c.network.Guests)
			if again, err := nft.Render(c.network, c.uplinks, []string{"sl-alice", "sl-nobody"}); err != nil || again != got {
				t.Errorf("the order of guests matters (%v)", err)
			}
		})
	}
}

// withEdge is a network in which the edge may speak for its callers.
func withEdge(n vps.Network) vps.Network {
	n.EdgeUID = 721299
	return n
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	with := func(change func(n *vps.Network)) vps.Network {
		n := network(guest(1, "alice"), guest(2, "bob"))
		change(&n)
		return n
	}
	for name, c := range map[string]struct {
		network vps.Network
		uplink  string
		code    vps.Code
	}{
		"gateway":            {with(func(n *vps.Network) { n.Gateway = netip.Addr{} }), "", vps.CodeInvalid},
		"uplink":             {network(), `e"; flush ruleset; "`, vps.CodeInvalid},
		"uplink wildcard":    {network(), `eth*`, vps.CodeInvalid},
		"uplink is a guest":  {network(), `sl-alice`, vps.CodeInvalid},
		"link quote":         {with(func(n *vps.Network) { n.Guests[0].Link = `sl-a" }` }), "", vps.CodeInvalid},
		"link newline":       {with(func(n *vps.Network) { n.Guests[0].Link = "sl-a\n" }), "", vps.CodeInvalid},
		"link wildcard":      {with(func(n *vps.Network) { n.Guests[0].Link = "sl-*" }), "", vps.CodeInvalid},
		"link of others":     {with(func(n *vps.Network) { n.Guests[0].Link = "eth0" }), "", vps.CodeInvalid},
		"link too long":      {with(func(n *vps.Network) { n.Guests[0].Link = "sl-0123456789abcd" }), "", vps.CodeInvalid},
		"link taken":         {with(func(n *vps.Network) { n.Guests[0].Link = "sl-bob" }), "", vps.CodeConflict},
		"address":            {with(func(n *vps.Network) { n.Guests[0].Address = netip.MustParseAddr("fd00::1") }), "", vps.CodeInvalid},
		"address taken":      {with(func(n *vps.Network) { n.Guests[0].Address = n.Guests[1].Address }), "", vps.CodeConflict},
		"mac":                {with(func(n *vps.Network) { n.Guests[0].MAC = nil }), "", vps.CodeInvalid},
		"mac of many":        {with(func(n *vps.Network) { n.Guests[0].MAC = net.HardwareAddr{1, 2, 3, 4, 5, 6} }), "", vps.CodeInvalid},
		"root":               {with(func(n *vps.Network) { n.Guests[0].UID = 0 }), "", vps.CodeInvalid},
		"uid of the edge":    {with(func(n *vps.Network) { n.EdgeUID = n.Guests[1].UID }), "", vps.CodeConflict},
		"uid taken":          {with(func(n *vps.Network) { n.Guests[0].UID = n.Guests[1].UID }), "", vps.CodeConflict},
		"blocks overlap":     {with(func(n *vps.Network) { n.Guests[0].Ports.Count = 21 }), "", vps.CodeConflict},
		"block past the end": {with(func(n *vps.Network) { n.Guests[0].Ports = vps.PortBlock{First: 65530, Count: 20} }), "", vps.CodeInvalid},
		"block from zero":    {with(func(n *vps.Network) { n.Guests[0].Ports = vps.PortBlock{First: 0, Count: 20} }), "", vps.CodeInvalid},
		"forward protocol": {with(func(n *vps.Network) {
			n.Guests[0].Forwards = []vps.Forward{{Host: 1, Guest: 1, Protocol: "tcp }"}}
		}), "", vps.CodeInvalid},
		"forward zero": {with(func(n *vps.Network) {
			n.Guests[0].Forwards = []vps.Forward{{Host: 1, Protocol: "tcp"}}
		}), "", vps.CodeInvalid},
		"forward in another's block": {with(func(n *vps.Network) {
			n.Guests[0].Forwards = []vps.Forward{{Host: n.Guests[1].Ports.First, Guest: 1, Protocol: "tcp"}}
		}), "", vps.CodeConflict},
		"forward twice": {with(func(n *vps.Network) {
			n.Guests[0].Forwards = []vps.Forward{{Host: 80, Guest: 80, Protocol: "tcp"}}
			n.Guests[1].Forwards = []vps.Forward{{Host: 80, Guest: 81, Protocol: "tcp+udp"}}
		}), "", vps.CodeConflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var uplinks []string
			if c.uplink != "" {
				uplinks = []string{c.uplink}
			}
			text, err := nft.Render(c.network, uplinks, nil)
			if got := vps.ErrorCode(err); got != c.code || text != "" {
				t.Errorf("got %q with the code %q (%v), want no text and %q", text, got, err, c.code)
			}
		})
	}
}

const foreign = `
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		jump DOCKER-USER
		iifname "docker0" accept
	}
	chain DOCKER-USER {
	}
}
table inet mine {
	set sublet { type ipv4_addr; elements = { 10.213.0.2 }; }
	chain prerouting { type nat hook prerouting priority dstnat; policy accept; tcp dport 20000 dnat ip to 10.9.9.9; }
}
table bridge filter { }
table netdev filter { }
table ip sublet { }
`

// Tables of others stay byte for byte the same.
func TestOthersStay(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	host.ExecInput(foreign, "nft", "-f", "-")
	before := host.Exec("nft", "-a", "list", "ruleset")
	wall := nft.New(nil, nft.Options{})
	if err := wall.CleanUp(t.Context()); err != nil {
		t.Fatalf("cleaning up nothing: %v", err)
	}
	for i := range 3 {
		if err := wall.Apply(t.Context(), network(guest(1, "alice"), guest(2+i, "bob")), uplinks); err != nil {
			t.Fatal(err)
		}
		rest, _, _ := strings.Cut(host.Exec("nft", "-a", "list", "ruleset"), "table inet sublet {")
		if diff := cmp.Diff(before, strings.TrimSpace(rest)); diff != "" {
			t.Errorf("after Apply, -before +after:\n%s", diff)
		}
	}
	if err := nft.New(nil, nft.Options{}).CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, host.Exec("nft", "-a", "list", "ruleset")); diff != "" {
		t.Errorf("after CleanUp, -before +after:\n%s", diff)
	}
}

// What is changed by hand is seen, also by a process without memory, told, and
// mended; and the watch wakes up.
func TestDrift(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	host.Veth("sl-alice", host.Peer(), "eth0")
	n := network(guest(1, "alice"), guest(2, "bob"))
	wall := nft.New(nil, nft.Options{})
	if err := wall.Apply(t.Context(), n, uplinks); err != nil {
		t.Fatal(err)
	}
	changed, err := wall.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ change, want string }{
		{"delete table inet sublet", "the table inet sublet is missing"},
		{"flush ruleset", "the table inet sublet is missing"},
		{"flush chain inet sublet own", `chain own of table inet sublet lacks "iifname @packets goto drop-packets"`},
		{"delete table netdev sublet", "the table netdev sublet is missing"},
		{"delete table bridge sublet", "the table bridge sublet is missing"},
		{"delete chain netdev sublet sl-alice", "chain sl-alice of table netdev sublet is missing"},
		{"flush chain netdev sublet sl-alice", `chain sl-alice of table netdev sublet lacks "jump frames"`},
		{"insert rule netdev sublet frames accept", `chain frames of table netdev sublet has "accept", which does not belong there`},
		{"insert rule inet sublet forward accept", `chain forward of table inet sublet has "accept", which does not belong there`},
		{"delete element inet sublet uids { 721301 }", "set uids of table inet sublet lacks the element 721301 comment \"sl-alice\""},
		{"add element inet sublet addresses { 1.2.3.4 }", "set addresses of table inet sublet has the element 1.2.3.4, which does not belong there"},
		{"flush map inet sublet blocks", "map blocks of table inet sublet lacks the element tcp . 20000-20019 : 10.213.0.2"},
		{"add chain inet sublet extra", "chain extra of table inet sublet does not belong there"},
		{"add chain inet sublet forward { policy drop; }", `chain forward of table inet sublet has "type filter hook forward priority filter; policy drop;", which does not belong there`},
		{"add table inet sublet { flags dormant; }", `table inet sublet has "flags dormant", which does not belong there`},
	} {
		for len(changed) > 0 {
			<-changed
		}
		host.Exec("nft", c.change)
		if _, ok := <-changed; !ok {
			t.Fatal("the watch ended")
		}
		for _, firewall := range []*nft.Firewall{wall, nft.New(nil, nft.Options{})} {
			drift, err := firewall.Diff(t.Context(), n, uplinks)
			if err != nil || !slices.Contains(drift, c.want) {
				t.Errorf("after %q: got %q (%v), want %q", c.change, drift, err, c.want)
			}
		}
		if err := wall.Apply(t.Context(), n, uplinks); err != nil {
			t.Errorf("after %q: %v", c.change, err)
		}
		for _, firewall := range []*nft.Firewall{wall, nft.New(nil, nft.Options{})} {
			if drift, err := firewall.Diff(t.Context(), n, uplinks); err != nil || len(drift) > 0 {
				t.Errorf("after %q was mended: got %q (%v)", c.change, drift, err)
			}
		}
	}
	// Somebody else's changes are no drift.
	host.ExecInput(foreign, "nft", "-f", "-")
	if drift, err := wall.Diff(t.Context(), n, uplinks); err != nil || len(drift) > 0 {
		t.Errorf("after a change of others: got %q (%v)", drift, err)
	}
	// Other guests are a difference as well.
	if drift, err := wall.Diff(t.Context(), network(), uplinks); err != nil || len(drift) == 0 {
		t.Errorf("after guests went: got %q (%v)", drift, err)
	}
}

// TestDriftOfCounters: what is done to the tables that count and hold is seen,
// told once, and mended, whoever comes first.
func TestDriftOfCounters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	held := func() { w.setQuotas([]string{"sl-bob"}, quota("guest/alice", 1<<30, "sl-alice")) }
	diff := func() []string {
		t.Helper()
		drift, err := w.wall.Diff(t.Context(), w.network, uplinks)
		if err != nil {
			t.Fatal(err)
		}
		return drift
	}
	w.traffic()
	held()
	stands := w.host.Exec("nft", "--stateless", "--terse", "list", "ruleset")
	for _, c := range []struct {
		change string
		want   []string
	}{
		{"delete table inet sublet-traffic", []string{"the table inet sublet-traffic is missing"}},
		{"delete table bridge sublet-quota", []string{"the table bridge sublet-quota is missing"}},
		{"flush chain bridge sublet-traffic leave", []string{`chain leave of table bridge sublet-traffic lacks "oifname \"sl-*\" goto between"`}},
		{"add chain inet sublet-quota extra", []string{"chain extra of table inet sublet-quota does not belong there"}},
		{"delete element inet sublet-quota out { \"sl-bob\" }", []string{`map out of table inet sublet-quota lacks the element "sl-bob" : goto drop_out`}},
		{"flush ruleset", []string{"the table inet sublet is missing", "the table inet sublet-traffic is missing", "the table inet sublet-quota is missing"}},
	} {
		for _, sampled := range []bool{false, true} {
			w.host.Exec("nft", c.change)
			if sampled {
				w.traffic()
				held()
			}
			drift := diff()
			for _, want := range c.want {
				if !slices.Contains(drift, want) {
					t.Errorf("after %q, sampled %v: got %q, want %q", c.change, sampled, drift, want)
				}
			}
			w.apply()
			if drift := diff(); len(drift) > 0 {
				t.Errorf("after %q was mended: got %q", c.change, drift)
			}
			w.traffic()
			held()
			if drift := diff(); len(drift) > 0 {
				t.Errorf("%q was told again: %q", c.change, drift)
			}
			if mended := w.host.Exec("nft", "--stateless", "--terse", "list", "ruleset"); tablesOf(mended) != tablesOf(stands) {
				t.Errorf("after %q there is\n%s\nand there was\n%s", c.change, mended, stands)
			}
		}
	}
}

// epochNames are names that differ with each table that is made.
var epochNames = regexp.MustCompile(`epoch-[0-9a-f]+`)

// tablesOf sorts a listing's tables, and leaves out which epoch they are of.
func tablesOf(listing string) string {
	tables := strings.Split(epochNames.ReplaceAllString(listing, "epoch"), "\ntable ")
	for i := range tables {
		tables[i] = strings.TrimPrefix(strings.TrimSpace(tables[i]), "table ")
	}
	slices.Sort(tables)
	return strings.Join(tables, "\n")
}

func TestBadInputChangesNothing(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	wall := nft.New(nil, nft.Options{})
	if err := wall.Apply(t.Context(), network(guest(1, "alice")), uplinks); err != nil {
		t.Fatal(err)
	}
	before := host.Exec("nft", "-a", "list", "ruleset")
	if err := wall.Apply(t.Context(), network(guest(1, "alice"), guest(1, "bob")), uplinks); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("got %v", err)
	}
	missing := nft.New(nil, nft.Options{Binary: "/nonexistent/nft"})
	if err := missing.Apply(t.Context(), network(), uplinks); err == nil {
		t.Error("a missing nft is no error")
	}
	if diff := cmp.Diff(before, host.Exec("nft", "-a", "list", "ruleset")); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}

func many(n int) vps.Network {
	var guests []vps.NetworkGuest
	for i := range n {
		guests = append(guests, guest(i+1, fmt.Sprintf("guest%d", i), vps.Forward{Host: uint16(50000 + i), Guest: 80, Protocol: vps.ProtoBoth}))
	}
	return network(guests...)
}

func TestThousandGuests(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	wall := nft.New(nil, nft.Options{})
	if err := wall.Apply(t.Context(), many(1000), uplinks); err != nil {
		t.Fatal(err)
	}
	if drift, err := wall.Diff(t.Context(), many(1000), uplinks); err != nil || len(drift) > 0 {
		t.Fatalf("got %q (%v)", drift, err)
	}
	parts := func() int {
		return strings.Count(host.Exec("nft", "-a", "list", "table", "inet", "sublet"), "# handle")
	}
	thousand := parts()
	if err := wall.Apply(t.Context(), many(1), uplinks); err != nil {
		t.Fatal(err)
	}
	if one := parts(); one != thousand {
		t.Errorf("the table has %d parts with 1000 guests and %d with one; no rule may be per guest", thousand, one)
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	wall := nft.New(nil, nft.Options{})
	if err := wall.Apply(t.Context(), network(guest(1, "alice")), uplinks); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ruleset string
		want    []string // table, chain, owner
		mended  string
	}{
		"none":      {`table ip filter { chain FORWARD { type filter hook forward priority filter; policy accept; ct state invalid drop; }; }`, nil, ""},
		"IPv6 only": {`table ip6 filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }`, nil, ""},
		"Docker":    {foreign, []string{"ip filter", "FORWARD", "Docker"}, `insert rule ip filter DOCKER-USER iifname "sl-*" counter accept; insert rule ip filter DOCKER-USER oifname "sl-*" counter accept`},
		"ufw": {
			`table ip filter { chain ufw-before-forward { }; chain ufw-user-forward { }; chain FORWARD { type filter hook forward priority filter; policy drop; jump ufw-before-forward; jump ufw-user-forward; }; }`,
			[]string{"ip filter", "FORWARD", "ufw"},
			`add rule ip filter ufw-user-forward iifname "sl-*" accept; add rule ip filter ufw-user-forward oifname "sl-*" accept`,
		},
		"firewalld": {
			`table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state established,related accept; reject with icmpx admin-prohibited; }; }`,
			[]string{"inet firewalld", "filter_FORWARD", "firewalld"},
			"",
		},
		"iptables": {
			`table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }`,
			[]string{"ip filter", "FORWARD", "iptables"},
			`add rule ip filter FORWARD iifname "sl-*" accept; add rule ip filter FORWARD oifname "sl-*" accept`,
		},
		"own": {
			`table inet own { chain fw { type filter hook forward priority filter; policy accept; log drop; }; }`,
			[]string{"inet own", "fw", "somebody's own rules"},
			`insert rule inet own fw iifname "sl-*" accept; insert rule inet own fw oifname "sl-*" accept`,
		},
	} {
		host.ExecInput(c.ruleset, "nft", "-f", "-")
		found, err := wall.Conflicts(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		for _, f := range found {
			got = append(got, f.Table, f.Chain, f.Owner)
			if f.Problem == "" || !strings.Contains(f.Remedy, "sl-") {
				t.Errorf("%s: nothing useful is said: %+v", name, f)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
		if c.mended != "" {
			host.Exec("nft", c.mended)
			if found, err := wall.Conflicts(t.Context()); err != nil || len(found) > 0 {
				t.Errorf("%s, mended: got %+v (%v)", name, found, err)
			}
		}
		host.Exec("nft", "flush", "ruleset")
	}
}

func benchmarkSizes(b *testing.B, prepare func(b *testing.B, n vps.Network) func() error) {
	b.Helper()
	for _, count := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			step := prepare(b, many(count))
			for b.Loop() {
				if err := step(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRender(b *testing.B) {
	benchmarkSizes(b, func(_ *testing.B, n vps.Network) func() error {
		return func() error {
			_, err := nft.Render(n, uplinks, nil)
			return err
		}
	})
}

// taps makes the guests' links, so that each has its chain for frames.
func taps(host *nstest.NS, n vps.Network) {
	var batch strings.Builder
	for _, g := range n.Guests {
		fmt.Fprintf(&batch, "tuntap add %s mode tap\n", g.Link)
	}
	host.ExecInput(batch.String(), "ip", "-batch", "-")
}

// BenchmarkLoad loads all rules where there are none.
func BenchmarkLoad(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n vps.Network) func() error {
		b.Helper()
		taps(nstest.New(b), n)
		return func() error {
			wall := nft.New(nil, nft.Options{})
			b.StopTimer()
			if err := wall.CleanUp(b.Context()); err != nil {
				return err
			}
			b.StartTimer()
			return wall.Apply(b.Context(), n, uplinks)
		}
	})
}

// BenchmarkAddOne adds a guest to the others, as a pass does that finds one
// more: it looks for differences, guards the new tap, and applies.
func BenchmarkAddOne(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n vps.Network) func() error {
		b.Helper()
		host := nstest.New(b)
		taps(host, n)
		wall, others, one := nft.New(nil, nft.Options{}), n, n.Guests[0].Link
		others.Guests = n.Guests[1:]
		return func() error {
			b.StopTimer()
			host.Exec("ip", "link", "delete", one)
			if err := wall.Apply(b.Context(), others, uplinks); err != nil {
				return err
			}
			host.Exec("ip", "tuntap", "add", one, "mode", "tap")
			b.StartTimer()
			if _, err := wall.Diff(b.Context(), n, uplinks); err != nil {
				return err
			}
			if err := wall.Guard(b.Context(), one); err != nil {
				return err
			}
			return wall.Apply(b.Context(), n, uplinks)
		}
	})
}

// BenchmarkApplySame applies what is there.
func BenchmarkApplySame(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n vps.Network) func() error {
		b.Helper()
		nstest.New(b)
		wall := nft.New(nil, nft.Options{})
		return func() error { return wall.Apply(b.Context(), n, uplinks) }
	})
}
