//go:build linux

package hostnet_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/hostnet"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

func guest(index int, name string) vps.NetworkGuest {
	address := netip.AddrFrom4([4]byte{10, 213, byte((index + 1) >> 8), byte(index + 1)})
	return vps.NetworkGuest{
		Name: name, Link: vps.LinkName(name), Address: address, MAC: vps.MACFor(address), UID: 721300 + uint32(index),
	}
}

func network(guests ...vps.NetworkGuest) vps.Network {
	return vps.Network{
		Subnet: netip.MustParsePrefix("10.213.0.0/16"), Gateway: netip.MustParseAddr("10.213.0.1"), Guests: guests,
	}
}

func set(t *testing.T, n vps.Network) {
	t.Helper()
	h := hostnet.New(nil, hostnet.Options{})
	if err := h.Set(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if drift, err := h.Diff(t.Context(), n); err != nil || len(drift) > 0 {
		t.Fatalf("after Set: %q (%v)", drift, err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestSet(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	n := network(guest(1, "alice"), guest(2, "a-guest-with-a-long-name"))
	set(t, n)
	if got := host.Exec("ip", "-o", "-4", "addr", "show", "dev", "sl-alice"); !strings.Contains(got, "inet 10.213.0.1/32 scope global noprefixroute sl-alice") {
		t.Errorf("address: %s", got)
	}
	if got, want := host.Exec("ip", "route", "show", "10.213.0.2"), "10.213.0.2 dev sl-alice proto static scope link src 10.213.0.1"; !strings.HasPrefix(got, want) {
		t.Errorf("route: got %q, want %q", got, want)
	}
	if got := host.Exec("ip", "-d", "link", "show", "sl-alice"); !strings.Contains(got, "tun type tap pi off vnet_hdr on persist on user 721301") ||
		!strings.Contains(got, "alias sublet:alice") || strings.Contains(got, "group 0 ") || !strings.Contains(got, ",UP") {
		t.Errorf("link: %s", got)
	}
	for name, want := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/sl-alice/disable_ipv6": "1", "ipv4/conf/sl-alice/rp_filter": "1",
		"ipv4/conf/sl-alice/accept_redirects": "0", "ipv4/conf/sl-alice/send_redirects": "0", "ipv4/conf/sl-alice/proxy_arp": "0",
	} {
		if got := read(t, "/proc/sys/net/"+name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}

	if _, err := host.OpenTap("sl-alice", 721302, unix.IFF_VNET_HDR); err == nil {
		t.Error("another guest's user can open the tap")
	}
	h := hostnet.New(nil, hostnet.Options{})
	if names, err := h.Detached(t.Context(), n); err != nil || !slices.Contains(names, "alice") {
		t.Errorf("detached before a guest runs: %v (%v)", names, err)
	}
	if _, err := host.OpenTap("sl-alice", 721301, unix.IFF_VNET_HDR); err != nil {
		t.Errorf("the guest's user cannot open its tap: %v", err)
	}
	if names, err := h.Detached(t.Context(), n); err != nil || slices.Contains(names, "alice") {
		t.Errorf("detached while a guest runs: %v (%v)", names, err)
	}

	// Its card may have given up while the link was down.
	host.Exec("ip", "link", "set", "sl-alice", "down")
	if err := h.Set(t.Context(), n); err != nil {
		t.Error(err)
	}
	if names, err := h.Detached(t.Context(), n); err != nil || !slices.Contains(names, "alice") {
		t.Errorf("detached after its link was down: %v (%v)", names, err)
	}
	h.Plugged("sl-alice")
	if names, err := h.Detached(t.Context(), n); err != nil || slices.Contains(names, "alice") {
		t.Errorf("detached after it was plugged in anew: %v (%v)", names, err)
	}

	// The link's state follows in a moment that somebody has opened it.
	for deadline := time.Now().Add(hang.After); time.Now().Before(deadline); {
		if strings.Contains(host.Exec("ip", "link", "show", "sl-alice"), "state UP") {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	before := host.Exec("ip", "-d", "addr")
	set(t, n)
	if diff := cmp.Diff(before, host.Exec("ip", "-d", "addr")); diff != "" {
		t.Errorf("a second Set changed something, -before +after:\n%s", diff)
	}
	// alice goes, bob comes, and gets alice's address.
	bob := guest(3, "bob")
	bob.Address = n.Guests[0].Address
	set(t, network(bob, n.Guests[1]))
	if got := host.Exec("ip", "route", "show", "10.213.0.2"); !strings.Contains(got, "dev sl-bob") {
		t.Errorf("route after a change of guests: %q", got)
	}
	if out, err := host.Try("ip", "link", "show", "sl-alice"); err == nil {
		t.Errorf("a guest's link outlived it: %s", out)
	}
}

// What is changed by hand is told and mended; and the watch wakes up.
func TestDrift(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	n := network(guest(1, "alice"), guest(2, "bob"))
	set(t, n)
	h := hostnet.New(nil, hostnet.Options{})
	changed, err := h.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const alice = "sl-alice of guest alice "
	for _, c := range []struct {
		command, want string
		silent        bool
	}{
		{"ip link del sl-alice", "the link " + alice + "is missing", false},
		{"ip link set sl-alice down", "the link " + alice + "is down", false},
		{"ip addr del 10.213.0.1/32 dev sl-alice", "the link " + alice + "lacks the address 10.213.0.1/32", false},
		{"ip addr add 10.7.7.7/24 dev sl-alice", "the link " + alice + "has the address 10.7.7.7/24, which does not belong there", false},
		{"ip route del 10.213.0.2", "the route to guest alice (10.213.0.2/32 through sl-alice) is missing", false},
		{"ip route replace 10.213.0.2 dev sl-bob", "the route to guest alice (10.213.0.2/32 through sl-alice) is missing", false},
		{"ip route add 10.8.8.8 dev sl-alice", "the link " + alice + "has a route to 10.8.8.8/32, which does not belong there", false},
		{"ip link set sl-alice alias sublet:other", "the link " + alice + `has the alias "sublet:other"`, false},
		{"ip link set sl-alice name sl-old", "the link sl-old belongs to no guest", false},
		{"busybox sysctl -w net.ipv4.ip_forward=0", "forwarding of IPv4 (net.ipv4.ip_forward) is off", false},
		{"busybox sysctl -w net.ipv4.conf.sl-alice.rp_filter=0", "the setting rp_filter of the link " + alice + "is 0 instead of 1", false},
		{"busybox sysctl -w net.ipv6.conf.sl-alice.disable_ipv6=0", "the setting disable_ipv6 of the link " + alice + "is 0 instead of 1", true},
	} {
		for len(changed) > 0 {
			<-changed
		}
		args := strings.Fields(c.command)
		host.Exec(args[0], args[1:]...)
		if !c.silent {
			if _, ok := <-changed; !ok {
				t.Fatal("the watch ended")
			}
		}
		drift, err := h.Diff(t.Context(), n)
		if err != nil || !slices.Contains(drift, c.want) {
			t.Errorf("after %q: got %q (%v), want %q", c.command, drift, err, c.want)
		}
		set(t, n)
	}
}

// TestWatchHearsAddresses: an address that any link gets or loses, as by DHCP, wakes
// who watches, so that the edge learns which callers are the host itself.
func TestWatchHearsAddresses(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	changed, err := hostnet.New(nil, hostnet.Options{}).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{
		"ip addr add 192.0.2.7/24 dev lo", "ip addr del 192.0.2.7/24 dev lo",
		"ip addr add 2001:db8::7/64 dev lo", "ip addr del 2001:db8::7/64 dev lo",
	} {
		for len(changed) > 0 {
			<-changed
		}
		args := strings.Fields(command)
		host.Exec(args[0], args[1:]...)
		select {
		case _, ok := <-changed:
			if !ok {
				t.Fatal("the watch ended")
			}
		case <-time.After(hang.After):
			t.Fatalf("%q wakes nobody", command)
		}
	}
}

// A tap of ours that is wrong is repaired unless a process has it open.
func TestWrongOwner(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	n := network(guest(1, "alice"))
	set(t, n)
	running, err := host.OpenTap("sl-alice", 721301, unix.IFF_VNET_HDR)
	if err != nil {
		t.Fatal(err)
	}
	index := read(t, "/sys/class/net/sl-alice/ifindex")
	n.Guests[0].UID = 721399
	h := hostnet.New(nil, hostnet.Options{})
	if err := h.Set(t.Context(), n); err == nil || !strings.Contains(vps.ErrorMessage(err), "user id 721399") {
		t.Errorf("a tap in use was changed, or in silence: %v", err)
	}
	if got := read(t, "/sys/class/net/sl-alice/ifindex"); got != index {
		t.Error("a tap in use was made anew")
	}
	_ = running.Close()
	// A child that another test is starting has a copy until its exec.
	const pause = 10 * time.Millisecond
	for deadline := time.Now().Add(hang.After); h.Set(t.Context(), n) != nil && time.Now().Before(deadline); <-time.After(pause) {
	}
	set(t, n)
	if got := read(t, "/sys/class/net/sl-alice/owner"); got != "721399" {
		t.Errorf("the owner is %s", got)
	}
	for _, flags := range [][]string{{"mode", "tun"}, {"mode", "tap", "multi_queue"}, {"mode", "tap", "group", "5"}, {"mode", "tap"}} {
		host.Exec("ip", "link", "del", "sl-alice")
		host.Exec("ip", append([]string{"tuntap", "add", "dev", "sl-alice"}, flags...)...)
		host.Exec("ip", "link", "set", "sl-alice", "alias", "sublet:alice")
		set(t, n)
	}
}

// Links of others are never touched, whatever they are called.
func TestOthersStay(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	outside := host.Peer()
	host.Veth("up0", outside, "eth0")
	host.Veth("sl-bob", outside, "eth1")
	host.Exec("ip", "addr", "add", "203.0.113.1/24", "dev", "up0")
	host.Exec("ip", "route", "add", "default", "via", "203.0.113.9")
	host.Exec("ip", "tuntap", "add", "dev", "sl-carol", "mode", "tap")
	host.Exec("ip", "link", "add", "br-other", "type", "bridge")
	host.Exec("ip", "link", "set", "br-other", "alias", "sublet:alice")
	host.Exec("ip", "route", "add", "10.213.0.5", "via", "203.0.113.7")
	state := func() string {
		return host.Exec("ip", "-d", "addr") + host.Exec("ip", "route", "show", "table", "all") + host.Exec("ip", "rule")
	}
	// The kernel finds the carriers, and that addresses are free, by and by.
	before := state()
	for deadline := time.Now().Add(hang.After); time.Now().Before(deadline); {
		if !strings.Contains(before, "NO-CARRIER") && !strings.Contains(before, "tentative") {
			break
		}
		<-time.After(50 * time.Millisecond)
		before = state()
	}
	h := hostnet.New(nil, hostnet.Options{})
	if err := h.CleanUp(t.Context()); err != nil {
		t.Fatalf("cleaning up nothing: %v", err)
	}
	n := network(guest(1, "alice"), guest(2, "bob"), guest(3, "carol"), guest(4, "dave"))
	err := h.Set(t.Context(), n)
	for _, want := range []string{"sl-bob", "sl-carol", "10.213.0.5 of guest dave is routed elsewhere"} {
		if err == nil || vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), want) {
			t.Errorf("a conflict about %s is not told: %v", want, err)
		}
	}
	// The others' guests are served all the same.
	host.Exec("ip", "link", "show", "sl-alice")
	if err := h.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}

func TestSetRefuses(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	for name, change := range map[string]func(n *vps.Network){
		"gateway":       func(n *vps.Network) { n.Gateway = netip.Addr{} },
		"link":          func(n *vps.Network) { n.Guests[0].Link = "sl-../../x" },
		"link of other": func(n *vps.Network) { n.Guests[0].Link = "eth0" },
		"link taken":    func(n *vps.Network) { n.Guests[0].Link = n.Guests[1].Link },
		"address":       func(n *vps.Network) { n.Guests[0].Address = netip.MustParseAddr("fd00::1") },
		"address taken": func(n *vps.Network) { n.Guests[0].Address = n.Guests[1].Address },
		"address host":  func(n *vps.Network) { n.Guests[0].Address = n.Gateway },
		"root":          func(n *vps.Network) { n.Guests[0].UID = 0 },
	} {
		n := network(guest(1, "alice"), guest(2, "bob"))
		change(&n)
		h := hostnet.New(nil, hostnet.Options{})
		if err := h.Set(t.Context(), n); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := host.Exec("ip", "-br", "link"); strings.Contains(got, "sl-") {
			t.Errorf("%s: something was changed: %s", name, got)
		}
	}
}

func TestUplinks(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	h := hostnet.New(nil, hostnet.Options{})
	check := func(configured string, want ...string) {
		t.Helper()
		got, err := h.Uplinks(t.Context(), configured)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("-want +got (%v):\n%s", err, diff)
		}
	}
	check("")
	outside := host.Peer()
	for i, name := range []string{"wan1", "eth0", "lan0"} {
		host.Veth(name, outside, name)
		host.Exec("ip", "addr", "add", fmt.Sprintf("203.0.11%d.1/24", i), "dev", name)
	}
	check("")
	host.Exec("ip", "route", "add", "default", "via", "203.0.110.9")
	check("", "wan1")
	host.Exec("ip", "route", "add", "default", "via", "203.0.111.9", "metric", "100")
	host.Exec("ip", "route", "add", "unreachable", "default", "metric", "4000")
	check("", "eth0", "wan1")
	host.Exec("ip", "route", "del", "default", "via", "203.0.110.9")
	host.Exec("ip", "route", "add", "default", "nexthop", "via", "203.0.110.9", "nexthop", "via", "203.0.112.9")
	check("", "eth0", "lan0", "wan1")
	check("lan0", "lan0")
	if _, err := h.Uplinks(t.Context(), "nope"); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("an uplink that does not exist: %v", err)
	}
	for uplink, want := range map[string]string{"eth0": "203.0.111.1", "wan1": "203.0.110.1"} {
		if got, err := h.PublicAddress(t.Context(), []string{"nope", "lo", uplink}); err != nil || got.String() != want {
			t.Errorf("public address of %s: %v (%v)", uplink, got, err)
		}
	}
	if got, err := h.PublicAddress(t.Context(), nil); err != nil || got.IsValid() {
		t.Errorf("public address of nothing: %v (%v)", got, err)
	}

	set(t, network(guest(1, "alice")))
	host.Exec("ip", "route", "add", "10.99.0.0/16", "via", "203.0.112.9")
	host.Exec("ip", "route", "add", "128.0.0.0/1", "via", "203.0.112.9")
	for subnet, want := range map[string]string{
		"10.213.0.0/16": "", "172.30.0.0/24": "", "10.99.5.0/24": "route to 10.99.0.0/16", "10.0.0.0/8": "route to 10.99.0.0/16",
		"203.0.111.128/25": "203.0.111.1/24 on link eth0", "127.1.0.0/16": "127.0.0.1/8 on link lo",
	} {
		err := h.CheckSubnet(t.Context(), netip.MustParsePrefix(subnet))
		if (want == "") != (err == nil) || err != nil && (vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", subnet, err, want)
		}
	}
}

func TestResolvers(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	host.Exec("ip", "addr", "add", "192.0.2.7/32", "dev", "lo")
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := write("stub", "# nameserver 9.9.9.1\nnameserver 127.0.0.53\noptions edns0\n")
	real := write("real", "search x\nnameserver 192.0.2.7\nnameserver 203.0.113.53\nnameserver fd00::53\nnameserver 203.0.113.53\nnameserver 8.8.8.8 # c\nnameserver 1.2.3.4\nnameserver 1.2.3.5\n")
	for name, c := range map[string]struct{ files, want []string }{
		"stub":    {[]string{stub, real}, []string{"203.0.113.53", "8.8.8.8", "1.2.3.4"}},
		"nothing": {[]string{stub, filepath.Join(folder, "none")}, []string{"9.9.9.9", "1.1.1.1"}},
	} {
		var got []string
		for _, a := range hostnet.New(nil, hostnet.Options{ResolvConf: c.files}).Resolvers() {
			got = append(got, a.String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
}

// BenchmarkSet sets what is there.
func BenchmarkSet(b *testing.B) {
	for _, count := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			nstest.New(b)
			var guests []vps.NetworkGuest
			for i := range count {
				guests = append(guests, guest(i+1, fmt.Sprintf("guest%d", i)))
			}
			n, h := network(guests...), hostnet.New(nil, hostnet.Options{})
			for b.Loop() {
				if err := h.Set(b.Context(), n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
