//go:build linux

package audit_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"sublet/internal/audit"
	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/probe"
	"sublet/internal/vps"
)

// world is a host with two guests on cables that stand for their taps, and a
// machine outside.
type world struct {
	t       *testing.T
	host    *nstest.NS
	options audit.Options
	wall    *nft.Firewall
}

const (
	gateway  = "10.213.0.1"
	public   = "203.0.113.1"
	public6  = "2001:db8:1::1"
	outside  = "203.0.113.9"
	outside6 = "2001:db8:1::9"
)

// newWorld is called on the test's own goroutine, which is then on the host.
// bits is how long guests' IPv6 prefixes are, 0 for none.
func newWorld(t *testing.T, bits int) *world {
	t.Helper()
	w := &world{t: t, host: nstest.New(t), wall: nft.New(nil, nft.Options{})}
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	far := w.host.Peer()
	w.host.Veth("up0", far, "eth0")
	w.addresses(w.host, "up0", public+"/24", public6+"/64")
	w.addresses(far, "eth0", outside+"/24", outside6+"/64")
	w.host.Exec("ip", "route", "add", "default", "via", outside)
	w.host.Exec("ip", "-6", "route", "add", "default", "via", outside6)
	n := vps.Network{
		Subnet: netip.MustParsePrefix("10.213.0.0/16"), Gateway: netip.MustParseAddr(gateway),
		Services: vps.DefaultServices(),
	}
	if bits != 0 {
		n.Subnet6 = netip.MustParsePrefix("2001:db8:2::/64")
	}
	probes := map[string]audit.Guest{}
	for i, name := range []string{"attacker", "victim"} {
		address := netip.AddrFrom4([4]byte{10, 213, 0, byte(i + 2)})
		g := vps.NetworkGuest{
			Name: name, Link: vps.LinkName(name), Address: address, MAC: vps.MACFor(address), UID: uint32(721300 + i),
			Limits: audit.Limits(), Ports: vps.PortBlock{First: uint16(20000 + 20*i), Count: 20},
		}
		if bits != 0 {
			g.Prefix6 = netip.MustParsePrefix(fmt.Sprintf("2001:db8:2::%x:0/%d", i+1, bits)).Masked()
		}
		n.Guests = append(n.Guests, g)
		probes[name] = w.guest(g)
	}
	w.options = audit.Options{
		Network: n, Attacker: "attacker", Victim: "victim", Uplinks: []string{"up0"},
		Sender: probes["attacker"], Listener: probes["victim"], Firewall: w.wall,
	}
	if err := w.wall.Apply(t.Context(), n, w.options.Uplinks); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) addresses(ns *nstest.NS, link string, addresses ...string) {
	for _, a := range addresses {
		args := []string{"addr", "add", a, "dev", link}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		ns.Exec("ip", args...)
	}
}

// guest makes a machine that sends and hears frames.
func (w *world) guest(g vps.NetworkGuest) audit.Guest {
	ns := w.host.Peer()
	w.host.Veth(g.Link, ns, "eth0")
	ns.Exec("sysctl", "-q", "-w", "net.ipv6.conf.eth0.addr_gen_mode=1")
	ns.Exec("ip", "-6", "addr", "flush", "dev", "eth0")
	ns.Exec("ip", "link", "set", "eth0", "address", g.MAC.String())
	w.addresses(w.host, g.Link, gateway+"/32")
	w.addresses(ns, "eth0", g.Address.String()+"/32")
	w.host.Exec("ip", "route", "add", g.Address.String(), "dev", g.Link, "src", gateway)
	ns.Exec("ip", "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
	if g.Prefix6.IsValid() {
		w.addresses(w.host, g.Link, vps.Gateway6.String()+"/64")
		w.addresses(ns, "eth0", vps.LinkLocal6(g.MAC).String()+"/64", vps.Address6(g.Prefix6).String()+"/128")
		w.host.Exec("ip", "-6", "route", "add", g.Prefix6.String(), "via", vps.LinkLocal6(g.MAC).String(), "dev", g.Link)
		ns.Exec("ip", "-6", "route", "add", "default", "via", vps.Gateway6.String(), "dev", "eth0")
	}
	requestsIn, requestsOut, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	answersIn, answersOut, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	over := ns.Start(func() {
		if err := probe.ServeFrames(requestsIn, answersOut, "eth0"); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() {
		_ = requestsOut.Close()
		<-over
		_ = answersOut.Close()
	})
	return probe.NewClient(struct {
		io.Reader
		io.Writer
	}{answersIn, requestsOut})
}

// run makes the attacks and returns what became of them, by name.
func (w *world) run(only func(audit.Attack) bool) map[string]audit.Result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), hang.After)
	defer cancel()
	w.options.Only = only
	results := map[string]audit.Result{}
	if err := audit.Run(ctx, w.options, func(r audit.Result) {
		if _, again := results[r.Attack]; again {
			w.t.Errorf("%s was tried twice", r.Attack)
		}
		results[r.Attack] = r
	}); err != nil {
		w.t.Fatal(err)
	}
	return results
}

func TestWallHolds(t *testing.T) {
	t.Parallel()
	for name, bits := range map[string]int{"without IPv6": 0, "with an address of IPv6": 128, "with a prefix": 112} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, bits)
			results := w.run(nil)
			for _, r := range results {
				if !r.OK {
					t.Errorf("%s (%s): expected %s, seen %q, counted %q", r.Attack, r.What, r.Expected, r.Seen, r.Counter)
				}
			}
			if len(results) < 150 {
				t.Errorf("%d attacks were made", len(results))
			}
		})
	}
}

// TestHolesShow takes single parts of the wall away: the attacks that they
// stop must be told as what gets through, and the others not.
func TestHolesShow(t *testing.T) {
	t.Parallel()
	for _, reason := range vps.DropReasons() {
		if slices.Contains([]vps.DropReason{vps.DropUninvited, vps.DropAstray, vps.DropRule, vps.DropSocket, vps.DropQuota}, reason) {
			continue // not of what a guest sends to where there is something, or not the wall
		}
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 128)
			holes := 0
			for _, family := range []string{"inet", "netdev", "bridge"} {
				if _, err := w.host.Try("nft", "flush", "chain", family, "sublet", "drop-"+string(reason)); err == nil {
					holes++
				}
			}
			if holes == 0 {
				t.Fatal("nothing drops for this reason")
			}
			results := w.run(func(a audit.Attack) bool {
				// What is a fragment behind defragmentation depends on the kernel,
				// so the only attack that is one has two reasons.
				alone := len(a.Reasons) == 1 || reason == vps.DropFragment && a.Name == "router-advert-late-header"
				return alone && slices.Contains(a.Reasons, reason)
			})
			tried := 0
			for _, r := range results {
				if r.Attack == "witnesses" || r.Attack == "late-arrivals" {
					continue
				}
				tried++
				if r.OK {
					t.Errorf("%s (%s) was met although nothing stops it: seen %q, counted %q", r.Attack, r.What, r.Seen, r.Counter)
				}
			}
			if tried == 0 {
				t.Error("no attack is stopped by this")
			}
		})
	}
	t.Run("no wall at all", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 128)
		if err := w.wall.CleanUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		arrived := map[string]int{}
		for _, r := range w.run(nil) {
			if !r.OK {
				arrived[r.Seen]++
			}
		}
		for _, seen := range []string{"left by up0", "left by sl-victim, the victim heard it", "the host heard it"} {
			if arrived[seen] == 0 {
				t.Errorf("nothing was told as %q: %v", seen, arrived)
			}
		}
	})
}
