package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"sublet/internal/desired"
	"sublet/internal/meter"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// enforcer puts into force what quotas call for. What was counted and told is in
// the database, and all else follows from that, so that it may forget
// everything.
type enforcer struct {
	state  *desired.State
	db     *sqlite.DB
	kernel quotaKernel
	loop   quotaLoop
	// uplinks finds the public links, by the name in the settings.
	uplinks func(ctx context.Context, name string) ([]string, error)
	log     *slog.Logger
	now     func() time.Time

	turn sync.Mutex // held from the reading of counters until what follows is in force
	// reached are the steps that were told of, when known says that they are
	// those of the database.
	reached []vps.QuotaReached
	known   bool
	// held is what the kernel was last asked to hold, and restraints what the loop
	// was, by the guest's ID.
	held       []vps.NetworkQuota
	restraints map[string]*vps.Restraint

	mu     sync.Mutex
	states []meter.QuotaState
	// unshaped tells that the kernel still throttles by itself, roughly.
	unshaped bool
	// edits is when something was last edited, and edited asks for a sample soon.
	edits  time.Time
	edited chan struct{}
}

// quotaKernel holds quotas where they cannot be outrun.
type quotaKernel interface {
	SetQuotas(ctx context.Context, quotas []vps.NetworkQuota, suspended, uplinks []string) error
}

// quotaLoop stops, starts and shapes guests.
type quotaLoop interface {
	Kick()
	Snapshot() (reconcile.Snapshot, <-chan struct{})
}

// touch has quotas be evaluated soon, by what was just edited. It never blocks.
func (e *enforcer) touch() {
	e.mu.Lock()
	e.edits = time.Now()
	e.mu.Unlock()
	e.again()
}

// again asks for a sample. It never blocks.
func (e *enforcer) again() {
	select {
	case e.edited <- struct{}{}:
	default:
	}
}

func (e *enforcer) current() []meter.QuotaState {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.states
}

// restrain sets what is in force for each guest of a host.
func (e *enforcer) restrain(h *vps.Host) { meter.Restrain(e.current(), h) }

// restrained is the desired state as the loop gets it: with what quotas have in
// force.
type restrained struct {
	*desired.State
	quotas *enforcer
}

func (r restrained) Host(ctx context.Context) (vps.Host, error) {
	host, err := r.State.Host(ctx)
	r.quotas.restrain(&host)
	return host, err
}

// host returns the desired state as the loop knows it, which costs nothing,
// unless something was edited since. Its guests may be changed.
func (e *enforcer) host(ctx context.Context) (vps.Host, error) {
	e.mu.Lock()
	edits := e.edits
	e.mu.Unlock()
	if s, _ := e.loop.Snapshot(); s.Loaded.After(edits) {
		s.Host.Guests = slices.Clone(s.Host.Guests)
		return s.Host, nil
	}
	return e.state.Host(ctx)
}

// count has read tell what quotas of a host have used, and when that was, and
// puts into force what follows. What was edited before is in it.
func (e *enforcer) count(ctx context.Context, read func(context.Context, *vps.Host) ([]vps.QuotaAccount, time.Time, error)) error {
	e.turn.Lock()
	defer e.turn.Unlock()
	host, err := e.host(ctx)
	if err != nil {
		return err
	}
	accounts, at, err := read(ctx, &host)
	if err != nil {
		return err
	}
	return e.enforce(ctx, host, accounts, at)
}

// foresee tells what quotas of a host that is not to be would come to now. read
// is as for count, and keeps nothing.
func (e *enforcer) foresee(ctx context.Context, host *vps.Host, read func(context.Context, *vps.Host) ([]vps.QuotaAccount, time.Time, error)) ([]meter.QuotaState, error) {
	e.turn.Lock()
	defer e.turn.Unlock()
	accounts, _, err := read(ctx, host)
	if err != nil {
		return nil, err
	}
	reached, err := e.db.QuotaSteps(ctx)
	return meter.EvaluateQuotas(host.Quotas, accounts, reached, e.now()), err
}

// enforce puts into force what follows from accounts, which were counted at a
// time, and tells of the steps that they reach. The kernel holds it before the
// loop hears of it. Calling it again with the same accounts changes nothing.
func (e *enforcer) enforce(ctx context.Context, host vps.Host, accounts []vps.QuotaAccount, at time.Time) (err error) {
	if !e.known {
		if e.reached, err = e.db.QuotaSteps(ctx); err != nil {
			return err
		}
		e.known = true
	}
	now := e.now()
	states := meter.EvaluateQuotas(host.Quotas, accounts, e.reached, now)
	// Not to be able to write down that a step was reached is no reason to let
	// anybody outrun it.
	told := e.tell(ctx, states, &host, now)
	meter.Restrain(states, &host)
	held := e.hold(ctx, states, &host, at)
	resumed := e.resume(ctx, &host)

	e.mu.Lock()
	e.states = states
	e.mu.Unlock()
	before := e.restraints
	e.restraints = map[string]*vps.Restraint{}
	for i := range host.Guests {
		if g := &host.Guests[i]; g.Restraint != nil {
			e.restraints[g.ID] = g.Restraint
		}
	}
	if !maps.EqualFunc(before, e.restraints, func(a, b *vps.Restraint) bool { return reflect.DeepEqual(a, b) }) {
		e.loop.Kick()
	}
	return errors.Join(told, held, resumed)
}

// tell writes down which steps were reached, with an event and the notices of
// each, and forgets those of quotas that are gone.
func (e *enforcer) tell(ctx context.Context, states []meter.QuotaState, host *vps.Host, now time.Time) error {
	var undone, redated []vps.QuotaReached
	var news []sqlite.QuotaNews
	there := map[string]bool{}
	for i := range states {
		there[states[i].Use.Quota.ID()] = true
	}
	for _, r := range e.reached {
		if !there[r.Quota] {
			undone = append(undone, r)
		}
	}
	for i := range states {
		s := &states[i]
		undone = append(undone, s.Undone...)
		redated = append(redated, s.Redated...)
		for _, r := range s.New {
			news = append(news, newsOf(s, r, host, now))
		}
	}
	if len(undone)+len(redated)+len(news) == 0 {
		return nil
	}
	e.known = false
	return e.db.ReachSteps(ctx, undone, redated, news)
}

// newsOf is what is told of a step that was reached: to the owner, and to the
// tenants whose guests it acts on.
func newsOf(s *meter.QuotaState, r vps.QuotaReached, host *vps.Host, now time.Time) sqlite.QuotaNews {
	q, n := &s.Use.Quota, vps.Notice{Kind: vps.EventQuota, Time: now, Message: s.Tell(r, now), Data: s.Data(r, now)}
	switch q.Scope {
	case vps.QuotaGuest:
		n.Guest = q.Name
		if g := host.Guest(q.Name); g != nil {
			n.Tenant = g.Spec.Tenant
		}
	case vps.QuotaTenant:
		n.Tenant = q.Name
	case vps.QuotaHost:
	}
	news := sqlite.QuotaNews{
		QuotaReached: r, Notices: []sqlite.AddressedNotice{{Notice: n, To: host.NoticeTo(n.Tenant)}},
		Event: vps.Event{Kind: n.Kind, Guest: n.Guest, Message: n.Message, Time: now},
	}
	if q.Scope == vps.QuotaHost && s.Acts(r, now) {
		for _, t := range host.Tenants {
			own := vps.Notice{Kind: n.Kind, Time: now, Tenant: t.Name, Message: s.TellTenant(r, now, t.Name), Data: s.TenantData(r, now)}
			// The owner knows by the host's notice.
			to := slices.DeleteFunc(host.NoticeTo(t.Name), func(to vps.NoticeTo) bool { return to.Recipient == "" })
			if len(to) > 0 && slices.ContainsFunc(host.Guests, func(g vps.Guest) bool { return g.Spec.Tenant == t.Name }) {
				news.Notices = append(news.Notices, sqlite.AddressedNotice{Notice: own, To: to})
			}
		}
	}
	return news
}

// hold has the kernel hold what is in force, and the next steps until the next
// sample, or for as long as there is no daemon.
func (e *enforcer) hold(ctx context.Context, states []meter.QuotaState, host *vps.Host, at time.Time) error {
	seen, _ := e.loop.Snapshot()
	shaped := sync.OnceValue(func() map[string]vps.BitRate {
		rates := map[string]vps.BitRate{}
		if len(seen.Observed.Network) == 0 {
			for i := range seen.Host.Guests {
				g := &seen.Host.Guests[i]
				rates[g.Link()] = g.Restraint.Throttle(g.Spec.Bandwidth)
			}
		}
		return rates
	})
	unshaped := false
	quotas, suspended := meter.KernelQuotas(states, host, at, func(link string, rate vps.BitRate) bool {
		if has := shaped()[link]; has != 0 && has <= rate {
			return true
		}
		unshaped = true
		return false
	})
	uplinks, err := e.uplinks(ctx, host.Settings.Uplink)
	if err != nil {
		e.log.WarnContext(ctx, "no public link was found, so the host's own quota is not held by the kernel", "error", err)
	}
	if err := e.kernel.SetQuotas(ctx, quotas, suspended, uplinks); err != nil {
		return err
	}
	if !sameHeld(e.held, quotas) {
		// The kernel does not know what passed between the reading of counters and
		// its first look at a new quota: the next reading tells.
		e.again()
	}
	e.held = quotas
	e.mu.Lock()
	e.unshaped = unshaped
	e.mu.Unlock()
	return nil
}

// sameHeld tells whether two differ in nothing but what was used.
func sameHeld(a, b []vps.NetworkQuota) bool {
	return slices.EqualFunc(a, b, func(a, b vps.NetworkQuota) bool {
		a.At, a.In, a.Out = b.At, b.In, b.Out
		return reflect.DeepEqual(a, b)
	})
}

// resume orders guests to start that no quota of a host stops any more. This
// comes before the loop knows that: else it would start them by their restart
// policies, and the order would be one for a second start.
func (e *enforcer) resume(ctx context.Context, host *vps.Host) error {
	stopped := map[string]bool{}
	due := false
	for i := range host.Guests {
		g := &host.Guests[i]
		stopped[g.ID] = g.Restraint.Stops()
		due = due || g.QuotaStopped != 0 && !stopped[g.ID]
	}
	if !due {
		return nil
	}
	names, err := e.state.Resume(ctx, func(g *vps.Guest) bool { return stopped[g.ID] })
	for _, name := range names {
		ev := vps.Event{Guest: name, Kind: vps.EventQuota, Message: "no quota stops it any more, so it is started again", Time: e.now()}
		if _, err := e.db.AddEvent(ctx, ev); err != nil {
			e.log.ErrorContext(ctx, "cannot record an event", "kind", vps.EventQuota, "error", err)
		}
		e.loop.Kick()
	}
	return err
}

// watch calls sample, which ends in count, outside of the usual times when
// quotas may call for something else at once: after an edit, at the end of grace
// and of a month, and when a throttle may have been shaped. It blocks until ctx
// ends.
func (e *enforcer) watch(ctx context.Context, sample func(context.Context)) error {
	for {
		_, changed := e.loop.Snapshot()
		e.mu.Lock()
		if !e.unshaped {
			changed = nil
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-e.edited:
		case <-changed:
		case <-time.After(e.due()):
		}
		sample(ctx)
	}
}

// startQuotas puts quotas into force before anything is done for guests: by a
// sample, or where there cannot be one by what was counted before.
func (p *parts) startQuotas(ctx context.Context) {
	p.sampleTraffic(ctx)
	if p.quotas.current() != nil {
		return
	}
	err := p.quotas.count(ctx, func(ctx context.Context, _ *vps.Host) ([]vps.QuotaAccount, time.Time, error) {
		accounts, err := p.db.QuotaAccounts(ctx)
		return accounts, time.Now(), err
	})
	if err != nil && ctx.Err() == nil {
		p.log.ErrorContext(ctx, "quotas are not in force", "error", err)
	}
}

// due is how long it is until quotas change by themselves.
func (e *enforcer) due() time.Duration {
	// What is late already could not be done: it is tried again, not at once.
	const longest, again = time.Hour, time.Second
	wait := longest
	for _, s := range e.current() {
		left := s.Next.Sub(e.now())
		if left <= 0 {
			left = again
		}
		wait = min(wait, left)
	}
	return wait
}

// refuse returns an error when a quota stops the guest of this name.
func (e *enforcer) refuse(ctx context.Context, name string) error {
	host, err := restrained{e.state, e}.Host(ctx)
	if err != nil {
		return err
	}
	if g := host.Guest(name); g != nil && g.Restraint.Stops() {
		return g.Restraint.Refusal(name)
	}
	return nil
}
