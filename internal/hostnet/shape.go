//go:build linux

package hostnet

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// A guest's bandwidth is held by two token buckets (tc-tbf(8)), which delay
// packets instead of dropping them: one on its tap, for what it receives, and
// one on an intermediate device (ifb) that packets from the tap are taken
// round by, for what it sends. Only IPv4 and IPv6 go that way: whatever comes
// back from an ifb has passed the firewall's hook for frames (netdev ingress)
// by, and frames of all other kinds have to meet it.

// shaperPrefix starts the names of the intermediate devices; the rest is that
// of the guest's link.
const shaperPrefix = "sb-"

// shaperName returns the name of a guest's intermediate device.
func shaperName(link string) string { return shaperPrefix + strings.TrimPrefix(link, vps.LinkPrefix) }

// isShaper tells whether a link is an intermediate device made by this
// package.
func isShaper(l netlink.Link) bool {
	a := l.Attrs()
	return strings.HasPrefix(a.Name, shaperPrefix) && strings.HasPrefix(a.Alias, aliasPrefix) && l.Type() == "ifb"
}

// shaped are the protocols that go through the intermediate device.
var shaped = []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} //nolint:gochecknoglobals // a constant

// bucket is what a token bucket is set to.
type bucket struct {
	rate          uint64 // bytes per second
	limit, buffer uint32 // bytes that may wait; ticks of tokens
}

// bucketFor returns the bucket for a rate.
func bucketFor(r vps.BitRate) bucket {
	// The limit counts IP packets as most people do; the kernel counts frames,
	// of which full ones have 14 bytes of Ethernet before 1500.
	const bits, frame, packet = 8, 1514, 1500
	rate := uint64(r) / bits * frame / packet
	// Tokens for 10 ms, which is more than the kernel takes between two looks,
	// and for some whole frames: larger packets (GSO) are cut to that size.
	const perSecond, frames = 100, 4
	burst := max(rate/perSecond, frames*frame)
	// What waits: a tenth of a second, enough for TCP to fill the rate; at low
	// rates some windows of it, and at high ones not all of the host's memory.
	const tenth, least, most = 10, 32 << 10, 8 << 20
	wait := min(max(rate/tenth, least), most)
	return bucket{rate: rate, limit: uint32(burst + wait), buffer: netlink.Xmittime(rate, uint32(min(burst, most)))}
}

func (b bucket) qdisc(index int) *netlink.Tbf {
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       b.rate, Limit: b.limit, Buffer: b.buffer,
	}
}

// holds tells whether a qdisc is this bucket.
func (b bucket) holds(q netlink.Qdisc) bool {
	t, ok := q.(*netlink.Tbf)
	// The kernel keeps tokens in nanoseconds, so ticks may come back rounded.
	return ok && t.Rate == b.rate && t.Limit == b.limit && t.Buffer+1 >= b.buffer && t.Buffer <= b.buffer+1
}

// qdiscs are the queueing disciplines of a link that matter here.
type qdiscs struct {
	root    netlink.Qdisc // nil for the kernel's own
	ingress netlink.Qdisc
}

// observeQdiscs reads those of all links.
func (o *observed) observeQdiscs() error {
	all, err := list(func() ([]netlink.Qdisc, error) { return o.handle.QdiscList(nil) })
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the host's queueing disciplines could not be read")
	}
	o.qdiscs = map[int]qdiscs{}
	for _, q := range all {
		a, of := q.Attrs(), o.qdiscs[q.Attrs().LinkIndex]
		switch {
		case q.Type() == "ingress" || q.Type() == "clsact":
			of.ingress = q
		case a.Parent == netlink.HANDLE_ROOT && a.Handle != 0:
			// The kernel's own, which nobody set, has the handle 0.
			of.root = q
		}
		o.qdiscs[a.LinkIndex] = of
	}
	return nil
}

// shape checks what holds a guest's bandwidth.
func (o *observed) shape(l netlink.Link, g vps.NetworkGuest) []problem {
	have := o.qdiscs[l.Attrs().Index]
	if g.Bandwidth == 0 {
		return o.unshaped(l, g, have)
	}
	want := bucketFor(g.Bandwidth)
	name := shaperName(g.Link)
	device, there := o.links[name]
	switch {
	case !there:
		return []problem{mending(func() error { return makeShaper(o.handle, name, aliasPrefix+g.Name) },
			"the device %s, which holds the bandwidth of guest %s, is missing", name, g.Name)}
	case !isShaper(device):
		return []problem{conflict("the link %s has the name that the bandwidth of guest %s needs, but is not ours; rename it (ip link set %s name …) or delete it", name, g.Name, name)}
	}
	var problems []problem
	for _, side := range []struct {
		link netlink.Link
		have netlink.Qdisc
	}{{l, have.root}, {device, o.qdiscs[device.Attrs().Index].root}} {
		if side.have == nil || !want.holds(side.have) {
			problems = append(problems, mending(func() error { return o.setBucket(side.link, side.have, want) },
				"the link %s does not hold the bandwidth of guest %s to %s", side.link.Attrs().Name, g.Name, g.Bandwidth))
		}
	}
	if device.Attrs().RawFlags&unix.IFF_UP == 0 {
		problems = append(problems, mending(func() error { return o.handle.LinkSetUp(device) },
			"the device %s, which holds the bandwidth of guest %s, is down", name, g.Name))
	}
	if have.ingress == nil || !o.leads(l, device) {
		problems = append(problems, mending(func() error { return o.lead(l, have.ingress, device) },
			"the link %s of guest %s does not lead to the device that holds its bandwidth", g.Link, g.Name))
	}
	return problems
}

// unshaped removes what holds the bandwidth of a guest that has no limit.
func (o *observed) unshaped(l netlink.Link, g vps.NetworkGuest, have qdiscs) []problem {
	var problems []problem
	for _, q := range []netlink.Qdisc{have.root, have.ingress} {
		if q == nil {
			continue
		}
		problems = append(problems, mending(func() error { return ignore(o.handle.QdiscDel(q), unix.ENOENT) },
			"the link %s of guest %s has a queueing discipline (%s), which does not belong there", l.Attrs().Name, g.Name, q.Type()))
	}
	return problems
}

// setBucket changes a bucket in place, so that what waits in it goes on, or
// puts it in the place of another discipline. To a lower rate it is made anew:
// a large packet that waits already might not fit in the smaller bucket, and
// would never leave it. TCP sends again what waited.
func (o *observed) setBucket(l netlink.Link, have netlink.Qdisc, want bucket) error {
	q := want.qdisc(l.Attrs().Index)
	if t, ok := have.(*netlink.Tbf); ok && t.Rate <= want.rate {
		q.Handle = t.Handle
		if err := o.handle.QdiscChange(q); err == nil {
			return nil
		}
	}
	if have != nil {
		if err := ignore(o.handle.QdiscDel(have), unix.ENOENT); err != nil {
			return err
		}
		q.Handle = netlink.MakeHandle(1, 0)
	}
	return missingModule(o.handle.QdiscReplace(q), "sch_tbf")
}

// leads tells whether packets from a tap are taken to a device.
func (o *observed) leads(l, device netlink.Link) bool {
	filters, err := list(func() ([]netlink.Filter, error) { return o.handle.FilterList(l, netlink.MakeHandle(0xffff, 0)) })
	if err != nil || len(filters) == 0 {
		return false
	}
	var led []uint16
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok {
			return false
		}
		for _, a := range u.Actions {
			m, ok := a.(*netlink.MirredAction)
			if !ok || m.Ifindex != device.Attrs().Index || m.MirredAction != netlink.TCA_EGRESS_REDIR {
				return false
			}
			led = append(led, u.Protocol)
		}
	}
	slices.Sort(led)
	return slices.Equal(led, shaped)
}

// lead makes a tap lead packets to a device, whatever it led to before.
func (o *observed) lead(l netlink.Link, old netlink.Qdisc, device netlink.Link) error {
	if old != nil {
		if err := ignore(o.handle.QdiscDel(old), unix.ENOENT); err != nil {
			return err
		}
	}
	index := l.Attrs().Index
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := missingModule(o.handle.QdiscAdd(ingress), "sch_ingress"); err != nil {
		return err
	}
	for i, protocol := range shaped {
		// Without keys to match it takes every packet of the protocol.
		filter := &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: ingress.Handle, Priority: uint16(i + 1), Protocol: protocol},
			Actions:     []netlink.Action{netlink.NewMirredAction(device.Attrs().Index)},
		}
		if err := missingModule(o.handle.FilterAdd(filter), "cls_u32 or act_mirred"); err != nil {
			return err
		}
	}
	return nil
}

// makeShaper makes an intermediate device. Its mark comes with it, so that a
// kill leaves nothing unmarked.
func makeShaper(handle *netlink.Handle, name, alias string) error {
	ifb := &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name, Alias: alias, TxQLen: -1}}
	if err := missingModule(handle.LinkAdd(ifb), "ifb"); err != nil {
		return err
	}
	l, err := handle.LinkByName(name)
	if err != nil {
		return err
	}
	return handle.LinkSetAlias(l, alias)
}

// missingModule says which part of the kernel it takes when there is none.
func missingModule(err error, module string) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the host's kernel lacks %s, so that bandwidth cannot be limited on this host: %w", module, err)
	}
	return err
}
