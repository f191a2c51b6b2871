package daemon

import (
	"context"
	"time"

	"sublet/internal/vps"
)

// sampling is how often the firewall's counters are read: often enough that
// what people see is of now, and cheap.
const sampling = 10 * time.Second

// watchDrops follows what the wall drops until ctx ends: the counters become
// events and metrics, and single packets lines in the log, of which the
// firewall lets through 15 a minute for each guest at most.
func (p *parts) watchDrops(ctx context.Context) error {
	dropped, err := p.nft.WatchDrops(ctx)
	if err != nil {
		// The wall stands all the same.
		p.log.WarnContext(ctx, "dropped packets are counted, but not logged one by one", "error", err)
	}
	timer := time.NewTicker(sampling)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d, ok := <-dropped:
			if !ok {
				dropped = nil
				continue
			}
			p.log.InfoContext(ctx, "packet dropped", "guest", p.guestOf(d.Link), "reason", string(d.Reason), "packet", d.Summary)
		case <-timer.C:
			p.sampleDrops(ctx)
		}
	}
}

// sampleDrops reads the counters once. Whoever is about to show them calls it
// too.
func (p *parts) sampleDrops(ctx context.Context) {
	byLink, err := p.nft.Drops(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.log.WarnContext(ctx, "the firewall's counters cannot be read", "error", err)
		}
		return
	}
	s, _ := p.loop.Snapshot()
	byGuest := make(map[string][]vps.Drop, len(s.Host.Guests))
	for i := range s.Host.Guests {
		g := &s.Host.Guests[i]
		byGuest[g.Spec.Name] = byLink[g.Link()]
	}
	for _, n := range p.drops.Observe(time.Now(), byGuest) {
		if _, err := p.db.AddEvent(ctx, vps.Event{Guest: n.Guest, Kind: vps.EventDropped, Message: n.Message, Time: time.Now()}); err != nil {
			p.log.ErrorContext(ctx, "cannot record an event", "kind", vps.EventDropped, "error", err)
		}
	}
}

// guestOf names the guest that a link belongs to, or the link when there is
// none.
func (p *parts) guestOf(link string) string {
	s, _ := p.loop.Snapshot()
	for i := range s.Host.Guests {
		if g := &s.Host.Guests[i]; g.Link() == link {
			return g.Spec.Name
		}
	}
	return link
}
