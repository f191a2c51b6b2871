package notice

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"sublet/internal/vps"
)

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
)

// publicDialer connects to public addresses only: what a webhook's name leads
// to is its recipient's to say, and must not be the host's own network. The
// address is looked at after names were resolved and at every connection, so
// that a name which leads elsewhere the second time gains nothing.
func publicDialer(host *vps.Host) *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || !isPublic(host, to.Addr()) {
			return vps.Errorf(vps.CodeDenied, "it leads to %s, which is not a public address; allow that with `sublet host set --allow-private-webhooks`, or name a public one", address)
		}
		return nil
	}}
}

// Lookup finds the addresses of a name, as net.Resolver.LookupNetIP does for the
// network "ip".
type Lookup func(ctx context.Context, network, name string) ([]netip.Addr, error)

// lookupTimeout is how long a name is looked up while somebody waits.
const lookupTimeout = 2 * time.Second

// CheckWebhook wants a webhook of a host to be good (vps.ValidWebhook), and to
// lead to public addresses now, unless private ones are allowed; field is named in
// the error. A name that is not found is good: what it leads to is checked
// whenever a notice is sent.
func CheckWebhook(ctx context.Context, lookup Lookup, host *vps.Host, field, webhook string) error {
	private := host.Settings.Notices.AllowPrivate
	if err := vps.ValidWebhook(field, webhook, private); err != nil {
		return err
	}
	u, err := url.Parse(webhook)
	if err != nil || webhook == "" || private {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	to, err := lookup(ctx, "ip", u.Hostname())
	if err != nil {
		return nil // it may be there tomorrow
	}
	for _, a := range to {
		switch a = a.Unmap(); {
		case isPublic(host, a):
		case a.String() == u.Hostname():
			return vps.Invalid(field, "%s is this host or a guest of it; allow that with `sublet host set --allow-private-webhooks`, or name a public address", a)
		default:
			return vps.Invalid(field, "%s leads to %s, which is not a public address; allow that with `sublet host set --allow-private-webhooks`, or name a public one", u.Hostname(), a)
		}
	}
	return nil
}

// isPublic tells whether a webhook may lead to an address.
func isPublic(host *vps.Host, a netip.Addr) bool {
	// The wall lets the host through to guests where it lets nobody else.
	return vps.PublicAddress(a) && !isOwn(a) && !host.GuestAddress(a)
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
