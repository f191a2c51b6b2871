package notice

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"

	"sublet/internal/vps"
)

const dialTimeout = 10 * time.Second

// publicDialer connects to public addresses only: what a webhook's name leads
// to is its recipient's to say, and must not be the host's own network. The
// address is looked at after names were resolved and at every connection, so
// that a name which leads elsewhere the second time gains nothing.
func publicDialer(host *vps.Host) *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || !vps.PublicAddress(to.Addr()) || isOwn(to.Addr()) || isGuests(host, to.Addr()) {
			return vps.Errorf(vps.CodeDenied, "it leads to %s, which is not a public address; allow that with `sublet host set --allow-private-webhooks`, or name a public one", address)
		}
		return nil
	}}
}

// isGuests tells whether an address is a guest's: the wall lets the host through
// to where it lets nobody else.
func isGuests(host *vps.Host, a netip.Addr) bool {
	a = a.Unmap()
	if host.Settings.Subnet.Contains(a) || host.Settings.Subnet6.Contains(a) {
		return true
	}
	for i := range host.Guests {
		if host.Settings.Prefix6(&host.Guests[i].Spec).Contains(a) {
			return true
		}
	}
	return false
}

// isOwn tells whether an address is the host's: what listens there may take
// callers from outside for strangers, and the host for a friend.
func isOwn(a netip.Addr) bool {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap() == a.Unmap() {
			return true
		}
	}
	return false
}
