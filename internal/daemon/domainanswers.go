package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

// answerTime is how long the ports of a guest may take to answer while somebody
// waits for the end of an edit, and answerPorts how many are looked at.
const (
	answerTime  = time.Second
	answerPorts = 16
)

// dialer connects as net.Dialer.DialContext does.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// silenceWarnings tell of ports of a guest that runs, which lead nowhere although an
// edit leads domains to them.
func (b backend) silenceWarnings(ctx context.Context, before, after *vps.Host, guest string) []string {
	g := after.Guest(guest)
	if g == nil {
		return nil
	}
	snapshot, _ := b.loop.Snapshot() // no edit waits for the first one
	if st := snapshot.Status[g.ID]; st.State != vps.StateRunning || st.Restraint.Suspends() {
		return nil
	}
	var old []vps.Domain
	if was := before.Guest(guest); was != nil {
		old = was.Spec.Domains
	}
	var anew []vps.Domain
	for _, d := range g.Spec.Domains {
		if !slices.Contains(old, d) {
			anew = append(anew, d)
		}
	}
	return silence(ctx, new(net.Dialer).DialContext, &g.Spec, vps.Address6(after.Settings.Prefix6(&g.Spec)), anew)
}

// silence is one warning of the ports of domains that do not answer, or none. It
// takes answerTime at most.
func silence(ctx context.Context, dial dialer, g *vps.GuestSpec, address6 netip.Addr, domains []vps.Domain) []string {
	var ports []uint16
	of := map[uint16]*vps.Domain{} // the first domain of each
	for i := range domains {
		for _, port := range domains[i].GuestPorts() {
			if of[port] == nil && len(ports) < answerPorts {
				ports, of[port] = append(ports, port), &domains[i]
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answers := make([][2]bool, len(ports))
	var work sync.WaitGroup
	for i, port := range ports {
		for j, at := range [2]netip.Addr{g.Address, address6} {
			work.Go(func() { answers[i][j] = connects(ctx, dial, at, port) })
		}
	}
	work.Wait()
	var mute []string
	var d *vps.Domain
	for i, port := range ports {
		if answers[i] == ([2]bool{}) {
			mute, d = append(mute, strconv.Itoa(int(port))), cmp.Or(d, of[port])
		}
	}
	var text string
	switch len(mute) {
	case 0:
		return nil
	case 1:
		text = fmt.Sprintf("port %s of %s does not answer yet, to which calls of %s lead", mute[0], g.Name, d)
	default:
		last := len(mute) - 1
		text = fmt.Sprintf("ports %s and %s of %s do not answer yet, to which calls of %s lead", strings.Join(mute[:last], ", "), mute[last], g.Name, d)
	}
	test := "sublet domain test " + shellName(d.Name)
	if !d.Web() {
		test += fmt.Sprintf(" --listen %d", d.Listen)
	}
	return []string{text + "; `" + test + "` says more"}
}

// connects tells whether a port of an address answers. There is none where there is
// no address.
func connects(ctx context.Context, dial dialer, at netip.Addr, port uint16) bool {
	if !at.IsValid() {
		return false
	}
	conn, err := dial(ctx, "tcp", netip.AddrPortFrom(at, port).String())
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
