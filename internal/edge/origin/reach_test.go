//go:build linux

package origin_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// reused lets an address and port have several connections.
func reused(_, _ string, c syscall.RawConn) error {
	var err error
	controlled := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	if controlled != nil {
		return controlled
	}
	return err
}

// edge relays what comes to a port of the host to a guest, in the caller's name.
func (w *world) edge(port uint16, guest string, guestPort uint16) {
	w.t.Helper()
	var listener *net.TCPListener
	w.host.Do(func() {
		var err error
		if listener, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)}); err != nil {
			w.t.Error(err)
		}
	})
	if listener == nil {
		w.t.FailNow()
	}
	w.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			caller, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			from := unmapped(caller.RemoteAddr())
			to, err := w.dial(steady, from, netip.AddrPortFrom(w.address(guest, from.Addr()), guestPort), hang.After)
			if err != nil {
				w.t.Errorf("from %s: %v", from, err)
				_ = caller.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(to, caller)
				_ = to.CloseWrite()
			}()
			go func() {
				_, _ = io.Copy(caller, to)
				_ = caller.Close()
				_ = to.Close()
			}()
		}
	}()
}

// TestCallersAreSeen calls a guest through the edge, from near and afar, on hosts
// that are set up in various ways; the guest sees the caller's own address and
// port, and the caller hears the guest.
func TestCallersAreSeen(t *testing.T) {
	t.Parallel()
	for name, pool6 := range map[string]netip.Prefix{"routed": routed, "translated": translated} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pool6, nil)
			w.serve(w.guests["alice"], "alice", 443)
			w.edge(443, "alice", 443)
			w.edge(993, "alice", 443)
			check := func(what string, callers ...netip.Addr) {
				t.Helper()
				for _, caller := range callers {
					to := public
					if caller.Is6() {
						to = public6
					}
					for _, port := range []uint16{443, 993} {
						conn, err := w.call(w.callers, netip.AddrPortFrom(caller, 0), netip.AddrPortFrom(to, port), hang.After)
						if err != nil {
							t.Errorf("%s: from %s: %v", what, caller, err)
							continue
						}
						if got, want := ask(conn), "alice sees "+conn.LocalAddr().String(); got != want {
							t.Errorf("%s: from %s: got %q, want %q", what, caller, got, want)
						}
						_ = conn.Close()
					}
				}
			}
			all := append(callers4, callers6...)
			check("as it is", all...)
			for _, settings := range []string{
				"all.rp_filter=1 up0.rp_filter=1 all.src_valid_mark=0", "all.rp_filter=2 up0.rp_filter=2", "all.rp_filter=0 up0.rp_filter=0",
				// As wg-quick has it: the mark counts for the way back.
				"all.rp_filter=1 up0.rp_filter=1 all.src_valid_mark=1", "all.rp_filter=2 all.src_valid_mark=1",
			} {
				for setting := range strings.FieldsSeq(settings) {
					w.host.Exec("sysctl", "-q", "-w", "net.ipv4.conf."+setting)
				}
				check(settings, callers4...)
			}
			w.host.Exec("sysctl", "-q", "-w", "net.ipv4.conf.all.src_valid_mark=0", "net.ipv4.tcp_early_demux=0", "net.ipv4.ip_early_demux=0")
			check("without early demux", all...)
			w.host.Exec("sysctl", "-q", "-w", "net.ipv4.fwmark_reflect=1", "net.ipv6.fwmark_reflect=1", "net.ipv4.tcp_fwmark_accept=1")
			check("marks that are reflected", all...)

			// Other programs: a VPN that takes all that has not its mark; two uplinks
			// that keep a packet's mark with its connection; firewalld's check of the
			// way back, by the mark.
			for _, family := range []string{"-4", "-6"} {
				w.host.Exec("ip", family, "rule", "add", "priority", "9000", "not", "fwmark", "51820", "lookup", "51820")
				w.host.Exec("ip", family, "rule", "add", "priority", "8000", "lookup", "main", "suppress_prefixlength", "0")
				w.host.Exec("ip", family, "route", "add", "unreachable", "default", "table", "51820")
				w.host.Exec("ip", family, "rule", "add", "priority", "8500", "oif", "up0", "lookup", "main")
			}
			check("with a VPN's rules", near, near6)
			for _, family := range []string{"-4", "-6"} {
				w.host.Exec("ip", family, "rule", "del", "priority", "9000")
			}
			w.host.ExecInput(`
				table inet other {
					chain restore { type filter hook prerouting priority -155; meta mark set ct mark; }
					chain restore_own { type route hook output priority -155; meta mark set ct mark; }
					chain save { type filter hook postrouting priority -150; ct mark set meta mark; }
					chain rpfilter { type filter hook prerouting priority filter + 10; meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }
				}
			`, "nft", "-f", "-")
			check("with other programs' marks", all...)
			w.host.Exec("nft", "delete", "table", "inet", "other")

			w.host.Exec("ip", "route", "del", "default", "via", near.String())
			w.host.Exec("ip", "route", "del", "default", "via", near6.String())
			w.host.Exec("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1")
			check("without a default route", near, near6)
		})
	}
}

// TestConnectionsOutlive: a connection goes on when the rules are taken away and
// come back, and when the wall is replaced.
func TestConnectionsOutlive(t *testing.T) {
	t.Parallel()
	w := newWorld(t, routed, nil)
	w.serve(w.guests["alice"], "alice", 443)
	from, from6 := netip.AddrPortFrom(far, 40000), netip.AddrPortFrom(far6, 40000)
	var conns []*net.TCPConn
	for _, from := range []netip.AddrPort{from, from6} {
		conn, err := w.dial(steady, from, netip.AddrPortFrom(w.address("alice", from.Addr()), 443), hang.After)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"nothing", func() {}},
		{"rules flushed", func() { w.host.Exec("nft", "flush", "ruleset") }},
		{"routing rules deleted", func() {
			w.host.Exec("ip", "-4", "rule", "del", "priority", "534")
			w.host.Exec("ip", "-6", "rule", "del", "priority", "534")
		}},
		{"another gateway, so that the wall is replaced", func() { w.network.Services = append(w.network.Services, vps.Service{Port: 53, Protocol: vps.ProtoUDP}) }},
		{"another guest's rules", func() { w.network.Guests[1].Limits.Packets++ }},
	} {
		c.do()
		w.settle()
		for _, conn := range conns {
			if got, want := ask(conn), "alice sees "+conn.LocalAddr().String(); got != want {
				t.Errorf("%s: got %q, want %q", c.what, got, want)
			}
		}
	}
}
