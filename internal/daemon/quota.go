package daemon

import (
	"context"
	"errors"
	"log/slog"
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

// enforcer puts into force what quotas call for. It remembers nothing that
// matters: what was counted and told is in the database, and all else follows
// from that.
type enforcer struct {
	state  *desired.State
	db     *sqlite.DB
	kernel quotaKernel
	loop   quotaLoop
	// uplinks finds the public links, by the name in the settings.
	uplinks func(ctx context.Context, name string) ([]string, error)
	log     *slog.Logger
	now     func() time.Time

	turn sync.Mutex // held while quotas are evaluated

	mu     sync.Mutex
	states []meter.QuotaState
	// unshaped tells that the kernel still throttles by itself, roughly.
	unshaped bool
	// edits is when something was last edited, and edited asks for a sample.
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

// enforce puts into force what follows from accounts, which were counted at a
// time, and tells of the steps that they reach. The kernel holds it before the
// loop hears of it. Calling it again with the same accounts changes nothing.
func (e *enforcer) enforce(ctx context.Context, accounts []vps.QuotaAccount, at time.Time) error {
	e.turn.Lock()
	defer e.turn.Unlock()
	host, err := e.host(ctx)
	if err != nil {
		return err
	}
	reached, err := e.db.QuotaSteps(ctx)
	if err != nil {
		return err
	}
	now := e.now()
	states := meter.EvaluateQuotas(host.Quotas, accounts, reached, now)
	// Not to be able to write down that a step was reached is no reason to let
	// anybody outrun it.
	told := e.tell(ctx, states, reached, now)
	meter.Restrain(states, &host)
	held := e.hold(ctx, states, &host, at)
	resumed := e.resume(ctx, &host)

	before := e.current()
	e.mu.Lock()
	e.states = states
	e.mu.Unlock()
	if !sameRestraints(before, &host) {
		e.loop.Kick()
	}
	return errors.Join(told, held, resumed)
}

// sameRestraints tells whether guests are restrained as states do it.
func sameRestraints(states []meter.QuotaState, host *vps.Host) bool {
	other := vps.Host{Guests: slices.Clone(host.Guests)}
	meter.Restrain(states, &other)
	return slices.EqualFunc(other.Guests, host.Guests, func(a, b vps.Guest) bool { return reflect.DeepEqual(a.Restraint, b.Restraint) })
}

// tell writes down which steps were reached, with an event for each, and
// forgets those of quotas that are gone.
func (e *enforcer) tell(ctx context.Context, states []meter.QuotaState, reached []vps.QuotaReached, now time.Time) error {
	var undone []vps.QuotaReached
	for _, r := range reached {
		if !slices.ContainsFunc(states, func(s meter.QuotaState) bool { return s.Use.Quota.ID() == r.Quota }) {
			undone = append(undone, r)
		}
	}
	var news []sqlite.QuotaNews
	for i := range states {
		s := &states[i]
		undone = append(undone, s.Undone...)
		for _, r := range s.New {
			ev := vps.Event{Kind: vps.EventQuota, Message: s.Tell(r, now), Time: now}
			if s.Use.Quota.Scope == vps.QuotaGuest {
				ev.Guest = s.Use.Quota.Name
			}
			news = append(news, sqlite.QuotaNews{QuotaReached: r, Event: ev})
		}
	}
	if len(undone)+len(news) == 0 {
		return nil
	}
	return e.db.ReachSteps(ctx, undone, news)
}

// hold has the kernel hold what is in force, and the next steps until the next
// sample, or for as long as there is no daemon.
func (e *enforcer) hold(ctx context.Context, states []meter.QuotaState, host *vps.Host, at time.Time) error {
	seen, _ := e.loop.Snapshot()
	rates := map[string]vps.BitRate{}
	if len(seen.Observed.Network) == 0 {
		for i := range seen.Host.Guests {
			g := &seen.Host.Guests[i]
			rates[g.Link()] = g.Restraint.Throttle(g.Spec.Bandwidth)
		}
	}
	unshaped := false
	quotas, suspended := meter.KernelQuotas(states, host, at, func(link string, rate vps.BitRate) bool {
		if has := rates[link]; has != 0 && has <= rate {
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
	e.mu.Lock()
	e.unshaped = unshaped
	e.mu.Unlock()
	return nil
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

// watch calls sample, which ends in enforce, outside of the usual times when
// quotas may call for something else at once: after an edit, at the end of grace
// and of a month, and when a throttle may have been shaped. It blocks until ctx
// ends.
func (e *enforcer) watch(ctx context.Context, sample func(context.Context)) {
	for {
		_, changed := e.loop.Snapshot()
		e.mu.Lock()
		if !e.unshaped {
			changed = nil
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-e.edited:
		case <-changed:
		case <-time.After(e.due()):
		}
		sample(ctx)
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
		return stoppedByQuota(name, g.Restraint)
	}
	return nil
}

// stoppedByQuota says why a guest does not run, and what its owner can do.
func stoppedByQuota(name string, r *vps.Restraint) error {
	return vps.Errorf(vps.CodeDenied, "the guest %s is stopped because the quota %s is used up until %s; `sublet quota topup` adds to it, and `sublet quota lift` lifts it", name, r.Quota, r.Until.Format("2006-01-02 15:04 MST"))
}
