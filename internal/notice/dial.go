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
func publicDialer() *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || !vps.PublicAddress(to.Addr()) || isOwn(to.Addr()) {
			return vps.Errorf(vps.CodeDenied, "it leads to %s, which is not a public address; allow that with `sublet host set --allow-private-webhooks`, or name a public one", address)
		}
		return nil
	}}
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
