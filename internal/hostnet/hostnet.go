//go:build linux

// Package hostnet keeps the links between the host and its guests: for each
// guest one persistent tap that belongs to the guest's user id, carries the
// gateway's address, and has the route to the guest's address. No bridge and
// nothing else of layer 2 is shared between guests.
//
// Ours are the links that have vps.LinkPrefix in front of their name and
// "sublet:" in front of their alias (ip link, ifalias), and what hangs on
// them; the devices with "sb-" in front, which hold their bandwidth; and the rules
// and routes with the protocol 0x53 that lead guests' answers to the edge. Links
// of others are never touched, also not when their name looks like ours. What
// else is changed: forwarding is turned on, for IPv6 with accept_ra before it,
// and where the provider's router asks for guests' IPv6 addresses the host
// answers for them on its uplink. Guests on a bridge are left to who made it.
//
// The package works on the network namespace of the calling thread.
package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// aliasPrefix marks our links; the guest's name follows.
const aliasPrefix = "sublet:"

// linkName is what a guest's link may be called: such a name is safe in a path
// below /proc/sys.
var linkName = regexp.MustCompile(`^` + vps.LinkPrefix + `[A-Za-z0-9][A-Za-z0-9_-]{0,11}$`)

// Options are the settings of a Net. The zero value is ready for use.
type Options struct {
	// ResolvConf are the files that name the host's DNS servers, tried in this
	// order; nil means resolv.conf(5) and then the one of systemd-resolved
	// that has the servers behind its local stub.
	ResolvConf []string
	// Guard is called with the names of the links that Set is about to bring
	// up, before any of them is: the firewall's chance to be there first. When
	// it fails they stay down. nil does nothing.
	Guard func(ctx context.Context, links ...string) error
}

// Net keeps the host's links to its guests. It is safe for concurrent use;
// calls that change something wait for one another. Of the host it remembers
// nothing between calls but the links that it found down.
type Net struct {
	log  *slog.Logger
	opts Options
	mu   sync.Mutex
	// raised are links that were down and are up again, until Plugged.
	raised sync.Map
}

// New returns a Net. It touches nothing. A nil log discards.
func New(log *slog.Logger, opts Options) *Net {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if opts.ResolvConf == nil {
		opts.ResolvConf = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
	}
	return &Net{log: log, opts: opts}
}

// Set makes the links be what n calls for: forwarding is on, every guest has
// its tap, up, with address, route and sysctls, answers to the edge reach it when
// there is one (vps.Network.EdgeUID), and taps of ours that no guest of n has are
// gone. What is right already is left alone, so a second call is
// free of changes. Additions come before removals.
//
// A tap that is wrong beyond repair in place (its owner or kind) is made anew
// only when no process has it open. A tap of ours is removed even under a
// running guest when n does not name that guest.
//
// Set goes on after a failure and returns all of them joined. A link of
// somebody else in a guest's place is a vps.CodeConflict.
func (h *Net) Set(ctx context.Context, n vps.Network) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := validate(n); err != nil {
		return err
	}
	handle, err := newHandle()
	if err != nil {
		return err
	}
	defer handle.Close()
	// The first pass makes links, the second the devices that hold their
	// bandwidth, the third configures those; the last one finds it all right.
	const passes = 4
	var errs error
	for pass := range passes {
		errs = nil
		problems, err := inspect(handle, n)
		if err != nil {
			return err
		}
		guarded := h.guard(ctx, problems)
		if guarded != nil {
			errs = errors.Join(errs, guarded)
		}
		for _, p := range problems {
			if err := ctx.Err(); err != nil {
				return errors.Join(errs, err)
			}
			if p.raises != "" && guarded != nil {
				continue
			}
			if err := p.mend(); err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			if p.raises != "" && pass == 0 { // it was there before
				h.raised.Store(p.raises, true)
			}
			h.log.InfoContext(ctx, "host network mended", "problem", p.sentence)
		}
		if len(problems) == 0 {
			break
		}
	}
	return errs
}

// guard calls Options.Guard for the links that are about to come up.
func (h *Net) guard(ctx context.Context, problems []problem) error {
	var links []string
	for _, p := range problems {
		if p.raises != "" {
			links = append(links, p.raises)
		}
	}
	if h.opts.Guard == nil || len(links) == 0 {
		return nil
	}
	return h.opts.Guard(ctx, links...)
}

// Diff tells in sentences where the links on this host differ from what n
// calls for, nil when they do not. It changes nothing. After a Set without
// error, and with nobody meddling, it is empty.
func (h *Net) Diff(_ context.Context, n vps.Network) ([]string, error) {
	if err := validate(n); err != nil {
		return nil, err
	}
	handle, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	problems, err := inspect(handle, n)
	if err != nil {
		return nil, err
	}
	var sentences []string
	for _, p := range problems {
		sentences = append(sentences, p.sentence)
	}
	return sentences, nil
}

// Detached returns the names of those guests of n whose tap exists, is up, and
// is held open by no process. For a guest that runs this means that its tap
// was removed under it and made anew: the kernel does not lead the guest's old
// descriptor to the new tap. The guest has to open its tap again, which it
// does when its own link goes down and up, or when it boots.
//
// Guests whose tap Set found down are among them until Plugged: a kernel for
// User Mode Linux that sent something meanwhile gives its card up for good
// (in_error in arch/um/drivers/vector_kern.c), and nothing shows that here.
func (h *Net) Detached(_ context.Context, n vps.Network) ([]string, error) {
	handle, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	links, err := list(func() ([]netlink.Link, error) { return handle.LinkList() })
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the host's links could not be read")
	}
	byName := make(map[string]netlink.Link, len(links))
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	var names []string
	for _, g := range n.Guests {
		l, ok := byName[g.Link]
		// The tap's carrier is whether it is open (drivers/net/tun.c).
		if !ok || !ours(l) || l.Attrs().RawFlags&unix.IFF_UP == 0 {
			continue
		}
		if _, raised := h.raised.Load(g.Link); raised || l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
			names = append(names, g.Name)
		}
	}
	return names, nil
}

// Plugged tells that a guest's tap was opened anew, or that no guest has it.
func (h *Net) Plugged(link string) { h.raised.Delete(link) }

// CleanUp removes our links, and with them their addresses and routes, also
// under running guests, and our routing rules. Without any it succeeds. It needs no memory of what
// Set did. net.ipv4.ip_forward stays as it is: others may have come to rely on
// it, and nobody can tell.
func (h *Net) CleanUp(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := newHandle()
	if err != nil {
		return err
	}
	defer handle.Close()
	o, err := observe(handle)
	if err != nil {
		return err
	}
	var errs error
	for _, p := range o.leadAnswers(vps.Network{}) {
		errs = errors.Join(errs, p.mend())
	}
	for _, l := range o.links {
		if !ours(l) && !isShaper(l) {
			continue
		}
		if err := remove(handle, l); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		h.log.InfoContext(ctx, "link removed", "link", l.Attrs().Name)
	}
	return errs
}

// validate refuses values that must reach neither the kernel nor a path.
func validate(n vps.Network) error {
	if len(n.Guests) > 0 && !n.Gateway.Is4() {
		return vps.Invalid("gateway", "%q is not an IPv4 address; guests need the host's address as gateway", n.Gateway)
	}
	links, addresses := map[string]string{}, map[netip.Addr]string{}
	for _, g := range n.Guests {
		switch {
		case !linkName.MatchString(g.Link):
			return vps.Invalid("link", "guest %q: %q is not the name of a guest's link", g.Name, g.Link)
		case !g.Address.Is4():
			return vps.Invalid("address", "guest %q: %q is not an IPv4 address", g.Name, g.Address)
		case g.Address == n.Gateway:
			return vps.Errorf(vps.CodeConflict, "guest %q has the address %s, which is the host's own; give it another", g.Name, g.Address)
		case g.UID == 0:
			return vps.Invalid("uid", "guest %q has the user id 0; a guest's process must not be root", g.Name)
		case links[g.Link] != "":
			return vps.Errorf(vps.CodeConflict, "guests %q and %q both have the link %s; rename one of them", links[g.Link], g.Name, g.Link)
		case addresses[g.Address] != "":
			return vps.Errorf(vps.CodeConflict, "guests %q and %q both have the address %s; give one of them another", addresses[g.Address], g.Name, g.Address)
		}
		links[g.Link], addresses[g.Address] = g.Name, g.Name
	}
	return nil
}

// ours tells whether a link was made by this package.
func ours(l netlink.Link) bool {
	a := l.Attrs()
	return strings.HasPrefix(a.Name, vps.LinkPrefix) && strings.HasPrefix(a.Alias, aliasPrefix) && l.Type() == "tuntap"
}

func remove(handle *netlink.Handle, l netlink.Link) error {
	err := handle.LinkDel(l)
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return vps.Wrap(vps.CodeInternal, err, "the link %s could not be removed; try: ip link delete %s", l.Attrs().Name, l.Attrs().Name)
}

func newHandle() (*netlink.Handle, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the kernel's network cannot be reached")
	}
	return handle, nil
}

// list asks for a dump until it is of one piece. A host whose links change all
// the time may never give one; then a dump with a gap has to do, and what it
// misses is found by the next look.
func list[T any](dump func() ([]T, error)) ([]T, error) {
	var items []T
	var err error
	for range 5 {
		if items, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, nil
}

// problem is one difference between what is and what should be.
type problem struct {
	sentence string
	mend     func() error
	// raises names the guest's link that mend brings up; empty for all else.
	raises string
}

// failed words a mend that the kernel refused.
func failed(err error, sentence string) error {
	if err == nil {
		return nil
	}
	return vps.Wrap(vps.CodeInternal, err, "%s, and it could not be mended", sentence)
}

// mending pairs a sentence with a change.
func mending(mend func() error, format string, args ...any) problem {
	sentence := fmt.Sprintf(format, args...)
	return problem{sentence: sentence, mend: func() error { return failed(mend(), sentence) }}
}

// conflict is a problem that is not ours to mend.
func conflict(format string, args ...any) problem {
	sentence := fmt.Sprintf(format, args...)
	return problem{sentence: sentence, mend: func() error { return vps.Errorf(vps.CodeConflict, "%s", sentence) }}
}
