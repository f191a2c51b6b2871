//go:build linux

package hostnet

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Uplinks returns the names of the links towards the public side, sorted: the
// configured one, or else those that the default routes of IPv4 and IPv6 name;
// none of these is an empty list. A configured link that does not exist is a
// vps.CodeInvalid.
func (h *Net) Uplinks(_ context.Context, configured string) ([]string, error) {
	handle, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	o, err := observe(handle)
	if err != nil {
		return nil, err
	}
	return o.uplinks(configured)
}

func (o *observed) uplinks(configured string) ([]string, error) {
	if configured != "" {
		if _, there := o.links[configured]; !there {
			return nil, vps.Invalid("uplink", "the uplink %q does not exist on this host; list links with: ip -br link", configured)
		}
		return []string{configured}, nil
	}
	indexes := map[int]bool{}
	for _, r := range slices.Concat(o.routes, o.routes6) {
		if r.Type != unix.RTN_UNICAST || !isDefault(r) {
			continue
		}
		indexes[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			indexes[hop.LinkIndex] = true
		}
	}
	var names []string
	for name, l := range o.links {
		if indexes[l.Attrs().Index] && !strings.HasPrefix(name, vps.LinkPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// PublicAddress returns the first IPv4 address of global scope on the first
// of the uplinks that has one; the zero Addr when none has.
func (h *Net) PublicAddress(_ context.Context, uplinks []string) (netip.Addr, error) {
	handle, err := newHandle()
	if err != nil {
		return netip.Addr{}, err
	}
	defer handle.Close()
	o, err := observe(handle)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, u := range uplinks {
		l, ok := o.links[u]
		if !ok {
			continue
		}
		for _, a := range o.addresses[l.Attrs().Index] {
			if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && a.Scope == unix.RT_SCOPE_UNIVERSE {
				return ip, nil
			}
		}
	}
	return netip.Addr{}, nil
}

// CheckSubnet tells whether the host already uses addresses of a subnet that
// is meant for guests: a vps.CodeConflict names the address or route that
// overlaps it. Our own links, and routes wider than /8, which stand for "the
// rest of the world", do not count.
func (h *Net) CheckSubnet(_ context.Context, subnet netip.Prefix) error {
	if !subnet.IsValid() {
		return vps.Invalid("subnet", "%q is not a subnet; write for example 10.213.0.0/16", subnet)
	}
	handle, err := newHandle()
	if err != nil {
		return err
	}
	defer handle.Close()
	o, err := observe(handle)
	if err != nil {
		return err
	}
	if !subnet.Addr().Is4() {
		return o.checkSubnet6(subnet)
	}
	const remedy = "choose another subnet for guests"
	for name, l := range o.links {
		if ours(l) {
			continue
		}
		for _, a := range o.addresses[l.Attrs().Index] {
			if p, ok := prefix(a.IPNet.IP, a.IPNet.Mask); ok && p.Masked().Overlaps(subnet) {
				return vps.Errorf(vps.CodeConflict, "the subnet %s overlaps the host's address %s on link %s; %s", subnet, p, name, remedy)
			}
		}
	}
	const wide = 8
	for _, r := range o.routes {
		if r.Dst == nil || o.names[r.LinkIndex] != "" {
			continue
		}
		if p, ok := prefix(r.Dst.IP, r.Dst.Mask); ok && p.Bits() >= wide && p.Overlaps(subnet) {
			return vps.Errorf(vps.CodeConflict, "the subnet %s overlaps the host's route to %s; %s", subnet, p, remedy)
		}
	}
	return nil
}

// prefix turns what package net has of an IPv4 prefix into a netip.Prefix.
func prefix(ip, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	m, ok2 := netip.AddrFromSlice(mask)
	if !ok || !ok2 {
		return netip.Prefix{}, false
	}
	ones := 0
	for _, b := range m.Unmap().AsSlice() {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	return netip.PrefixFrom(a.Unmap(), ones), a.Unmap().Is4()
}

// FallbackResolvers returns the DNS servers that guests get when the host
// names none that a guest could reach: two public ones, of Quad9 and of
// Cloudflare.
func FallbackResolvers() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{9, 9, 9, 9}), netip.AddrFrom4([4]byte{1, 1, 1, 1})}
}

// Resolvers returns the IPv4 addresses of the host's DNS servers that guests
// can use as well: from the first file of Options.ResolvConf that names one
// which is neither on the loopback nor on the host itself, or else FallbackResolvers. At most three, as
// many as resolv.conf(5) allows. Files that cannot be read count as empty.
func (h *Net) Resolvers() []netip.Addr {
	const most = 3
	for _, path := range h.opts.ResolvConf {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// A server on the host itself is closed to guests.
		if found := slices.DeleteFunc(resolvers(text), isOwn); len(found) > 0 {
			return found[:min(len(found), most)]
		}
	}
	return FallbackResolvers()
}

// isOwn tells whether an address is one of this host's.
func isOwn(a netip.Addr) bool {
	own, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(own, func(o net.Addr) bool {
		p, err := netip.ParsePrefix(o.String())
		return err == nil && p.Addr() == a
	})
}

// resolvers reads the usable servers of a resolv.conf(5).
func resolvers(text []byte) []netip.Addr {
	var found []netip.Addr
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil || !a.Is4() || a.IsLoopback() || a.IsUnspecified() || slices.Contains(found, a) {
			continue
		}
		found = append(found, a)
	}
	return found
}
