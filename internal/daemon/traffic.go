package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/desired"
	"sublet/internal/hostnet"
	"sublet/internal/nft"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// sampler carries what the kernel counted into the ledger.
type sampler struct {
	kernel  trafficKernel
	uplinks trafficUplinks
	db      *sqlite.DB
	boot    string // the host's boot id
	log     *slog.Logger

	// turn is held from the reading of counters until they are kept: what was
	// read first has to be kept first, or it looks as if they began anew.
	turn sync.Mutex
}

// trafficKernel counts for guests' links, also while no daemon runs.
type trafficKernel interface {
	Traffic(ctx context.Context) (vps.TrafficCounters, error)
	ForgetTraffic(ctx context.Context, links ...string) error
}

// trafficUplinks finds the public links and what they counted themselves.
type trafficUplinks interface {
	Uplinks(ctx context.Context, configured string) ([]string, error)
	Counters(ctx context.Context, uplinks []string) ([]vps.LinkTraffic, error)
}

// sample reads the counters once, keeps what they grew by, and returns what
// each of the host's quotas has used by then, and when that was. After an error
// nothing is lost: the kernel goes on counting.
func (s *sampler) sample(ctx context.Context, host *vps.Host) (accounts []vps.QuotaAccount, at time.Time, err error) {
	return s.enter(ctx, host, s.db.AddTraffic)
}

// rehearse is sample for a host that is not to be: nothing is kept.
func (s *sampler) rehearse(ctx context.Context, host *vps.Host) (accounts []vps.QuotaAccount, at time.Time, err error) {
	return s.enter(ctx, host, s.db.RehearseTraffic)
}

func (s *sampler) enter(ctx context.Context, host *vps.Host, add func(context.Context, sqlite.TrafficSample) ([]vps.QuotaAccount, error)) (accounts []vps.QuotaAccount, at time.Time, err error) {
	zone := hostZone(host)
	if name := host.Settings.Timezone; name != "" && zone.String() != name {
		s.log.WarnContext(ctx, "the host's time zone is unknown, so days begin in UTC", "timezone", name)
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	entry := sqlite.TrafficSample{Boot: s.boot, Zone: zone, Quotas: host.Quotas, Guests: make([]sqlite.TrafficGuest, 0, len(host.Guests)), Tenants: map[string]time.Time{}}
	if entry.Counters, err = s.kernel.Traffic(ctx); err != nil {
		return nil, at, err
	}
	if entry.Uplinks, err = s.publicCounters(ctx, host.Settings.Uplink); err != nil {
		// Guests' traffic is kept all the same.
		s.log.WarnContext(ctx, "the host's own counters cannot be read", "error", err)
	}
	if entry.Uptime, err = uptime(); err != nil {
		return nil, at, err
	}
	for i := range host.Guests {
		g := &host.Guests[i]
		entry.Guests = append(entry.Guests, sqlite.TrafficGuest{ID: g.ID, Name: g.Spec.Name, Tenant: g.Spec.Tenant, Link: g.Link()})
	}
	for i := range host.Tenants {
		entry.Tenants[host.Tenants[i].Name] = host.Tenants[i].Created
	}
	accounts, err = add(ctx, entry)
	return accounts, entry.Counters.At, err
}

func (s *sampler) publicCounters(ctx context.Context, configured string) ([]vps.LinkTraffic, error) {
	uplinks, err := s.uplinks.Uplinks(ctx, configured)
	if err != nil {
		return nil, err
	}
	return s.uplinks.Counters(ctx, uplinks)
}

// uptime is how long ago the host booted, by a clock that nobody can set
// (CLOCK_BOOTTIME, clock_gettime(2)).
func uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read the time since the boot: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// foundUplinks remembers the public links between two passes of the loop: to
// find them takes a look at every link of the host.
type foundUplinks struct {
	trafficUplinks
	snapshot func() (reconcile.Snapshot, <-chan struct{})

	mu         sync.Mutex
	pass       time.Time
	configured string
	links      []string
}

func (f *foundUplinks) Uplinks(ctx context.Context, configured string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, _ := f.snapshot()
	if f.links != nil && f.pass.Equal(s.At) && f.configured == configured {
		return slices.Clone(f.links), nil
	}
	links, err := f.trafficUplinks.Uplinks(ctx, configured)
	if err != nil {
		return nil, err
	}
	f.pass, f.configured, f.links = s.At, configured, links
	return slices.Clone(links), nil
}

// accounted is the desired state as the loop gets it, in which no guest is
// forgotten before its last traffic is kept.
type accounted struct {
	restrained
	traffic *sampler
}

// Forget keeps the guest's last traffic, and then removes its record. Its link
// is gone by now.
func (a accounted) Forget(ctx context.Context, id string) error {
	host, err := a.State.Host(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(host.Guests, func(g vps.Guest) bool { return g.ID == id })
	if at < 0 {
		return nil
	}
	if _, _, err := a.traffic.sample(ctx, &host); err != nil {
		return err
	}
	// The counters of the next guest of this name start from nothing, and the
	// ledger has to have seen them there.
	if err := a.traffic.kernel.ForgetTraffic(ctx, host.Guests[at].Link()); err != nil {
		return err
	}
	if _, _, err := a.traffic.sample(ctx, &host); err != nil {
		return err
	}
	return a.restrained.Forget(ctx, id)
}

// sampleTraffic samples once, and puts into force what quotas call for. Whoever
// is about to show traffic calls it too.
func (p *parts) sampleTraffic(ctx context.Context) {
	err := p.quotas.count(ctx, func(ctx context.Context, host *vps.Host) ([]vps.QuotaAccount, time.Time, error) {
		accounts, at, err := p.traffic.sample(ctx, host)
		if err == nil || ctx.Err() == nil { // not because nobody waits any more
			p.sampled.note(time.Now(), err)
		}
		return accounts, at, err
	})
	if err != nil && ctx.Err() == nil {
		p.log.WarnContext(ctx, "traffic was not kept, or not all of what quotas call for is in force; the kernel goes on counting, and holds what it did", "error", err)
	}
}

// watchTraffic samples from time to time until ctx ends, on the strokes of the
// clock, so that steps of history end with a sample.
func (p *parts) watchTraffic(ctx context.Context) error {
	for due := true; ; {
		if due {
			p.sampleTraffic(ctx)
		}
		host, err := p.quotas.host(ctx)
		every := time.Duration(host.Settings.TrafficSample)
		if err != nil || every <= 0 {
			every = time.Duration(vps.DefaultSettings().TrafficSample)
		}
		var wait time.Duration
		wait, due = untilSample(time.Now(), every)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// untilSample is how long to wait for the next stroke of the clock, or, when that
// is far, until the setting is looked at again: somebody may have changed it.
func untilSample(now time.Time, every time.Duration) (wait time.Duration, due bool) {
	const look = 10 * time.Second
	wait = now.Truncate(every).Add(every).Sub(now)
	return min(wait, look), wait <= look
}

// SampleOnce keeps what passed since the daemon stopped: guests stop after it
// when the host shuts down, and the kernel's counters do not outlive that. It
// refuses while a daemon works in these folders, and may be repeated.
func SampleOnce(ctx context.Context, c Config, log *slog.Logger) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	unlock, err := prepare(c)
	if err != nil {
		return err
	}
	defer unlock()
	boot, err := bootID()
	if err != nil {
		return err
	}
	db, err := sqlite.Open(ctx, c.statePath("state.db"), log)
	if err != nil {
		return err
	}
	host, err := desired.New(db, nil).Host(ctx) // nothing is edited, so no facts are asked for
	if err == nil {
		s := &sampler{kernel: nft.New(log, nft.Options{}), uplinks: hostnet.New(log, hostnet.Options{}), db: db, boot: boot, log: log}
		_, _, err = s.sample(ctx, &host)
	}
	return errors.Join(err, db.Close())
}

// sampleLast keeps what there is when the daemon stops.
func (p *parts) sampleLast(ctx context.Context) {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	p.sampleTraffic(ctx)
}
