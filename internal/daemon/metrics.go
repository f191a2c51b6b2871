package daemon

import (
	"context"
	"sync"
	"time"

	"sublet/internal/meter"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

// readingTimeout bounds how long metrics are gathered; scrapers wait 10 s by
// default.
const readingTimeout = 8 * time.Second

// sampled counts samples of traffic. The zero value is ready.
type sampled struct {
	mu             sync.Mutex
	kept, failures uint64
	last           time.Time
	broken         error // why the newest one could not be kept; nil when it was
}

// behind tells up to when traffic is kept, and why not up to now: nil means
// that it is.
func (s *sampled) behind() (last time.Time, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.broken
}

func (s *sampled) note(at time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
	if err != nil {
		s.failures++
		return
	}
	s.kept, s.last = s.kept+1, at
}

// reading gathers what metrics tell of. It reads counters of the kernel and of
// guests' processes, and no table that grows with time.
func (p *parts) reading() meter.Reading {
	ctx, cancel := context.WithTimeout(p.lifetime, readingTimeout)
	defer cancel()
	s, _ := p.loop.Snapshot()
	r := meter.Reading{Host: p.hostReading(ctx, &s.Host), Daemon: p.daemonReading(ctx, &s)}
	for _, q := range p.quotas.current() {
		r.Quotas = append(r.Quotas, q.Use)
	}
	traffic := p.trafficReading(ctx)
	for i := range s.Host.Guests {
		g := &s.Host.Guests[i]
		name := g.Spec.Name
		r.Guests = append(r.Guests, meter.GuestReading{
			Spec: g.Spec, Status: p.usedBy(ctx, g, &s), Traffic: traffic[g.Link()], Drops: p.drops.Of(name), Disks: p.fill.Of(name),
		})
	}
	r.Edge = p.edgeReading(ctx, &s.Host)
	uplinks, err := p.traffic.publicCounters(ctx, s.Host.Settings.Uplink)
	if err != nil {
		p.log.DebugContext(ctx, "metrics lack the host's own counters", "error", err)
	}
	r.Uplinks = uplinks
	return r
}

// usedBy is a guest's status, with what its running instance takes.
func (p *parts) usedBy(ctx context.Context, g *vps.Guest, s *reconcile.Snapshot) vps.GuestStatus {
	status := s.Status[g.ID]
	if i := s.Observed.Guests[g.ID].Instance; i != nil && i.Exit == nil {
		if usage, err := p.driver.Inspect(ctx, *i); err == nil {
			status.MemoryUsed, status.CPUTime = usage.Memory, vps.Duration(usage.CPUTime)
		}
	}
	return status
}

// trafficReading is what the kernel counted, by link.
func (p *parts) trafficReading(ctx context.Context) map[string][]vps.LinkTraffic {
	counters, err := p.traffic.kernel.Traffic(ctx)
	if err != nil {
		p.log.DebugContext(ctx, "metrics lack guests' traffic", "error", err)
	}
	byLink := map[string][]vps.LinkTraffic{}
	for _, c := range counters.Links {
		byLink[c.Link] = append(byLink[c.Link], c)
	}
	return byLink
}

func (p *parts) hostReading(ctx context.Context, host *vps.Host) meter.HostReading {
	h := meter.HostReading{Promised: host.Promised()}
	var err error
	if h.Memory, h.DiskFree, err = p.facts.Room(ctx); err != nil {
		p.log.DebugContext(ctx, "metrics lack the host's room", "error", err)
	}
	return h
}

func (p *parts) daemonReading(ctx context.Context, s *reconcile.Snapshot) meter.DaemonReading {
	p.sampled.mu.Lock()
	d := meter.DaemonReading{
		Passes: s.Passes, LastPass: s.At, Steps: len(s.Steps),
		Samples: p.sampled.kept, SampleErrors: p.sampled.failures, LastSample: p.sampled.last,
		Notices: map[vps.NoticeChannel]meter.NoticeCount{},
	}
	p.sampled.mu.Unlock()
	for channel, c := range p.notices.Counts() {
		d.Notices[channel] = meter.NoticeCount(c)
	}
	var err error
	if d.NoticesWaiting, err = p.db.NoticesWaiting(ctx); err != nil {
		p.log.DebugContext(ctx, "metrics lack the notices that wait", "error", err)
	}
	return d
}
