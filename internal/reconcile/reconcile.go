// Package reconcile makes a host match what is desired of it: one loop that
// loads the desired state, observes the host, plans, takes the steps and
// records what happened.
//
// The loop owns no state that matters. Everything it needs after a kill is in
// the store or on the host, so it may be killed at any instant.
package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"strings"
	"sync"
	"time"

	"sublet/internal/plan"
	"sublet/internal/vps"
)

// Desired is the store, as the loop needs it.
type Desired interface {
	// Host has what quotas have in force for each guest.
	Host(ctx context.Context) (vps.Host, error)
	// Forget removes a guest whose parts are all gone. Absent is success.
	Forget(ctx context.Context, id string) error
	// StoppedByQuota notes that a quota stops the guest in the life that boots
	// names. Absent is success.
	StoppedByQuota(ctx context.Context, id string, boots int64) error
}

// DataDisks keeps the disks of guests beside the one that they boot from, by
// name.
type DataDisks interface {
	CreateDisk(ctx context.Context, id, name string, want vps.VolumeSpec) error
	DeleteDisk(ctx context.Context, id, name string) error
}

// Volumes keeps guests' disks.
type Volumes interface {
	DataDisks
	Create(ctx context.Context, id string, img vps.Image, want vps.VolumeSpec) (vps.Volume, error)
	// Reset makes the disk that a guest boots from anew, for a later
	// generation; the old one is whole until then.
	Reset(ctx context.Context, id string, img vps.Image, want vps.VolumeSpec) (vps.Volume, error)
	List(ctx context.Context) ([]vps.Volume, error)
	// Grow is for both kinds: "" is the disk that a guest boots from.
	Grow(ctx context.Context, id, name string, size vps.Bytes) error
	// Check makes a volume ready for a start and returns what it is then. img is
	// looked at when the volume lies on an image.
	Check(ctx context.Context, id string, img vps.Image, uid uint32) (vps.Volume, error)
	Delete(ctx context.Context, id string) error
}

// Rescues keeps the disks that rescue systems boot from, each by the ID that
// vps.Guest.RescueID says.
type Rescues interface {
	Create(ctx context.Context, g vps.Guest, uid uint32) error
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]string, error)
}

// Images finds the image that a volume was cloned from.
type Images interface {
	ByID(ctx context.Context, id string) (vps.Image, error)
}

// Seeds keeps the disks that tell guests who they are.
type Seeds interface {
	Current(host vps.Host, g vps.Guest) (bool, error)
	Write(ctx context.Context, host vps.Host, g vps.Guest) error
	Delete(g vps.Guest) error
}

// Machines assembles what the driver is given for a start.
type Machines interface {
	Machine(ctx context.Context, host vps.Host, g vps.Guest, v vps.Volume) (vps.Machine, error)
	// Clear removes the folders of a guest that is being forgotten.
	Clear(g vps.Guest) error
}

// Net is a part of the host's network that is set as one value: the links,
// and the firewall.
type Net interface {
	// Diff says how the host differs from n, a sentence each.
	Diff(ctx context.Context, n vps.Network) ([]string, error)
	Set(ctx context.Context, n vps.Network) error
	// Watch signals that something may have changed, until ctx ends.
	Watch(ctx context.Context) (<-chan struct{}, error)
}

// Driver runs guests.
type Driver interface {
	Start(ctx context.Context, m vps.Machine) (vps.Instance, error)
	Wait(ctx context.Context, i vps.Instance) (vps.Exit, error)
	Stop(ctx context.Context, i vps.Instance) error
	Kill(ctx context.Context, i vps.Instance) error
	List(ctx context.Context) ([]vps.Instance, error)
}

// Replugger is a driver, or a part beside it, that can give a running guest
// its network again after its link was made anew. Detached tells for which
// guests, by ID, that is due.
type Replugger interface {
	Detached(ctx context.Context, n vps.Network, running []vps.Instance) (map[string]bool, error)
	Replug(ctx context.Context, i vps.Instance, n vps.NetworkGuest) error
}

// Limiter is a driver, or a part beside it, that can tell and change what
// bounds the processes of a running guest.
type Limiter interface {
	// Limits returns nil where nothing can be told.
	Limits(ctx context.Context, i vps.Instance) (*vps.Resources, error)
	SetLimits(ctx context.Context, i vps.Instance, r vps.Resources) error
}

// Events keeps what happened.
type Events interface {
	AddEvent(ctx context.Context, e vps.Event) (vps.Event, error)
}

// Options are the loop's parts. All interfaces but Replug and Limits must be
// set.
type Options struct {
	Desired  Desired
	Volumes  Volumes
	Rescues  Rescues
	Images   Images
	Seeds    Seeds
	Machines Machines
	Network  Net
	Firewall Net
	Driver   Driver
	Replug   Replugger // nil: a guest keeps a dead link until its next boot
	Limits   Limiter   // nil: new limits wait for the guest's next start
	Events   Events
	Log      *slog.Logger // nil discards
	// HostBoot is the boot id of the running host.
	HostBoot string
	// Resync is how often the host is looked at when nothing was heard of it;
	// zero means every 30 s.
	Resync time.Duration
	// Booting bounds how many guests may boot at a time after the host did;
	// zero means 2.
	Booting int
	// Ready blocks until a guest that was just started has booted, or ctx
	// ends; nil means that it has at once.
	Ready func(ctx context.Context, g vps.Guest)
	// BeforeStep is called before each step is taken; nil does nothing. Tests
	// use it to kill the daemon there.
	BeforeStep func(s plan.Step)
	// AfterStep is called when a step was taken; as BeforeStep.
	AfterStep func(s plan.Step)
}

// Loop is the reconcile loop of one host. Its methods may be called from many
// goroutines; Run once.
type Loop struct {
	o     Options
	log   *slog.Logger
	wake  chan struct{}
	boots chan struct{}

	mu       sync.Mutex
	snapshot Snapshot
	changed  chan struct{} // closed and replaced when snapshot changes
	guests   map[string]*progress
	ended    int64           // counts the workers that ended
	watched  map[string]bool // instances that a goroutine waits for, by key
	applied  vps.Network     // the network that was last set without an error
	netFault *fault
	orphans  map[string]bool // those already told of
	workers  sync.WaitGroup
}

// Snapshot is what the last pass saw. It is never changed after it was
// published.
type Snapshot struct {
	Host     vps.Host
	Observed plan.Observed
	Steps    []plan.Step
	// Loaded is when the desired state was read, and At when the snapshot was
	// published. What was edited before Loaded is in it.
	Loaded, At time.Time
	// Passes is how many were published before, with this one.
	Passes  uint64
	Orphans []string
	// Status is by guest ID.
	Status map[string]vps.GuestStatus
}

// New makes a loop.
func New(o Options) *Loop {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Resync == 0 {
		o.Resync = 30 * time.Second
	}
	if o.Booting == 0 {
		o.Booting = 2
	}
	nothing := func(plan.Step) {}
	if o.BeforeStep == nil {
		o.BeforeStep = nothing
	}
	if o.AfterStep == nil {
		o.AfterStep = nothing
	}
	return &Loop{
		o: o, log: o.Log, wake: make(chan struct{}, 1), boots: make(chan struct{}, o.Booting),
		changed: make(chan struct{}), guests: map[string]*progress{}, watched: map[string]bool{}, orphans: map[string]bool{},
	}
}

// Kick asks for a pass soon. It never blocks.
func (l *Loop) Kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run reconciles until ctx ends, which is not an error. It returns when all
// of its work has come to a stop; guests stay as they are.
func (l *Loop) Run(ctx context.Context) error {
	defer l.workers.Wait()
	for name, n := range map[string]Net{"network": l.o.Network, "firewall": l.o.Firewall} {
		changes, err := n.Watch(ctx)
		if err != nil {
			return fmt.Errorf("watch the %s: %w", name, err)
		}
		l.workers.Go(func() {
			for range changes {
				l.Kick()
			}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-timer.C:
		}
		next, err := l.pass(ctx)
		if err != nil && ctx.Err() == nil {
			l.log.ErrorContext(ctx, "reconcile pass failed", "error", err)
			next = min(next, 5*time.Second)
		}
		timer.Reset(next)
	}
}

// Preview returns the steps that host would call for, without taking them.
func (l *Loop) Preview(ctx context.Context, host vps.Host) ([]plan.Step, error) {
	o, netErr, err := l.observe(ctx, host)
	if err := cmp.Or(err, netErr); err != nil {
		return nil, err
	}
	return plan.Diff(host, o), nil
}

// Snapshot returns what the last pass saw, and a channel that is closed when
// there is something newer. Before the first pass the snapshot's At is zero.
func (l *Loop) Snapshot() (Snapshot, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.snapshot, l.changed
}

// pass looks at the host once and sets off what is to be done. It returns
// when the next one is due at the latest.
func (l *Loop) pass(ctx context.Context) (time.Duration, error) {
	loaded := time.Now()
	l.mu.Lock()
	era := l.ended
	l.mu.Unlock()
	host, err := l.o.Desired.Host(ctx)
	if err != nil {
		return l.o.Resync, fmt.Errorf("load the desired state: %w", err)
	}
	observed, netErr, err := l.observe(ctx, host)
	if err != nil {
		return l.o.Resync, err
	}
	steps := plan.Diff(host, observed)
	if netErr == nil {
		observed, steps, netErr = l.takeHostSteps(ctx, host, observed, steps)
	}
	todo := steps
	if l.setNetFault(netErr) {
		l.event(ctx, "", vps.EventFailed, netErr.Error())
	}
	if netErr != nil {
		todo = withoutNetwork(steps)
	}
	next := l.setOff(ctx, era, host, observed, todo)
	l.publish(loaded, host, observed, steps)
	l.log.DebugContext(ctx, "pass", "took", time.Since(loaded), "guests", len(host.Guests), "steps", len(steps))
	return next, netErr
}

// withoutNetwork returns the steps that may be taken while the firewall and
// the links are not known to be right: no guest may start without them, and
// none may be forgotten while its link or rules may be left. What runs can be
// stopped.
func withoutNetwork(steps []plan.Step) []plan.Step {
	var safe []plan.Step
	held := map[string]bool{"": true} // the host's own steps
	for _, s := range steps {
		switch s.Kind {
		case plan.StartGuest, plan.ReplugGuest, plan.ForgetGuest:
			held[s.GuestID] = true
		case plan.SetFirewall, plan.SetNetwork, plan.SetLimits, plan.CreateVolume, plan.GrowVolume, plan.CreateDisk, plan.GrowDisk, plan.DeleteDisk, plan.ReplaceVolume, plan.CreateRescue, plan.DeleteRescue, plan.WriteSeed, plan.StopGuest, plan.KillGuest, plan.DeleteVolume:
		}
		if !held[s.GuestID] {
			safe = append(safe, s)
		}
	}
	return safe
}

// observe gathers what is there. It changes nothing. netErr says that the
// firewall or the links could not be looked at, which leaves the rest of o
// good.
func (l *Loop) observe(ctx context.Context, host vps.Host) (o plan.Observed, netErr, err error) {
	o = plan.Observed{HostBoot: l.o.HostBoot, Guests: map[string]plan.Guest{}}
	instances, err := l.o.Driver.List(ctx)
	if err != nil {
		return o, nil, fmt.Errorf("list the instances: %w", err)
	}
	var running []vps.Instance
	for _, i := range instances {
		g := o.Guests[i.GuestID]
		g.Instance = &i
		o.Guests[i.GuestID] = g
		if i.Exit == nil {
			running = append(running, i)
			l.watch(ctx, i)
			l.observeLimits(ctx, &o, i)
		}
	}
	volumes, err := l.o.Volumes.List(ctx)
	if err != nil {
		return o, nil, fmt.Errorf("list the volumes: %w", err)
	}
	for _, v := range volumes {
		g := o.Guests[v.GuestID]
		g.Volume = &v
		o.Guests[v.GuestID] = g
	}
	rescues, err := l.o.Rescues.List(ctx)
	if err != nil {
		return o, nil, fmt.Errorf("list the roots of rescue systems: %w", err)
	}
	for _, id := range rescues {
		if guest := vps.RescuedGuest(id); guest != "" {
			g := o.Guests[guest]
			g.RescueRoots = append(g.RescueRoots, id)
			o.Guests[guest] = g
		}
	}
	for i := range host.Guests {
		g := o.Guests[host.Guests[i].ID]
		if g.Seed, err = l.o.Seeds.Current(host, host.Guests[i]); err != nil {
			// Not the others' fault: writing it anew mends it, or says why not.
			l.log.WarnContext(ctx, "a seed cannot be read", "guest", host.Guests[i].Spec.Name, "error", err)
			g.Seed = false
		}
		o.Guests[host.Guests[i].ID] = g
	}
	netErr = l.observeNetwork(ctx, host, &o, running)
	return o, netErr, nil
}

// observeLimits asks what bounds a running guest. Not to know is no fault.
func (l *Loop) observeLimits(ctx context.Context, o *plan.Observed, i vps.Instance) {
	if l.o.Limits == nil {
		return
	}
	limits, err := l.o.Limits.Limits(ctx, i)
	if err != nil {
		l.log.WarnContext(ctx, "a guest's limits cannot be read", "guest", i.Name, "error", err)
		return
	}
	g := o.Guests[i.GuestID]
	g.Limits = limits
	o.Guests[i.GuestID] = g
}

func (l *Loop) observeNetwork(ctx context.Context, host vps.Host, o *plan.Observed, running []vps.Instance) (err error) {
	network := host.Network(o.Participates)
	if o.Firewall, err = l.o.Firewall.Diff(ctx, network); err != nil {
		return fmt.Errorf("look at the firewall: %w", err)
	}
	if o.Network, err = l.o.Network.Diff(ctx, network); err != nil {
		return fmt.Errorf("look at the network: %w", err)
	}
	if l.o.Replug == nil || len(running) == 0 {
		return nil
	}
	detached, err := l.o.Replug.Detached(ctx, network, running)
	if err != nil {
		return fmt.Errorf("look for guests without a link: %w", err)
	}
	for id := range detached {
		g := o.Guests[id]
		g.Detached = true
		o.Guests[id] = g
	}
	return nil
}

// takeHostSteps takes the steps that are not of one guest and drops them from
// the plan. Guests wait when one of them fails: none may start without its
// firewall.
func (l *Loop) takeHostSteps(ctx context.Context, host vps.Host, o plan.Observed, steps []plan.Step) (plan.Observed, []plan.Step, error) {
	network := host.Network(o.Participates)
	for len(steps) > 0 && steps[0].GuestID == "" {
		s := steps[0]
		drifted := l.driftSince(network)
		set := l.o.Network.Set
		if s.Kind == plan.SetFirewall {
			set = l.o.Firewall.Set
		}
		if err := l.take(ctx, s, func() error { return set(ctx, network) }); err != nil {
			return o, steps, fmt.Errorf("%s: %w", s.Kind, err)
		}
		if drifted {
			l.event(ctx, "", vps.EventDrift, fmt.Sprintf("mended by %s: %s", s.Kind, s.Why))
		}
		if s.Kind == plan.SetFirewall {
			o.Firewall = nil
		} else {
			o.Network = nil
		}
		steps = steps[1:]
	}
	l.mu.Lock()
	l.applied = network
	l.mu.Unlock()
	return o, steps, nil
}

// driftSince tells whether the network that is wanted is the one that was
// last set, so that a difference is somebody else's doing.
func (l *Loop) driftSince(wanted vps.Network) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied.Subnet.IsValid() && reflect.DeepEqual(l.applied, wanted)
}

// setNetFault remembers why the network could not be set, nil for not at all,
// and tells whether that is news.
func (l *Loop) setNetFault(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.netFault = nil
		return false
	}
	news := l.netFault == nil || l.netFault.message != vps.ErrorMessage(err)
	l.netFault = &fault{message: vps.ErrorMessage(err), code: vps.ErrorCode(err)}
	return news
}

// take runs one step between its hooks.
func (l *Loop) take(ctx context.Context, s plan.Step, do func() error) error {
	l.log.InfoContext(ctx, "taking a step", "step", s.String())
	l.o.BeforeStep(s)
	if err := do(); err != nil {
		return err
	}
	l.o.AfterStep(s)
	return nil
}

func (l *Loop) event(ctx context.Context, guest, kind, message string) {
	l.log.InfoContext(ctx, "event", "kind", kind, "guest", guest, "message", message)
	if _, err := l.o.Events.AddEvent(context.WithoutCancel(ctx), vps.Event{Guest: guest, Kind: kind, Message: message, Time: time.Now()}); err != nil {
		l.log.ErrorContext(ctx, "cannot record an event", "kind", kind, "error", err)
	}
}

// watch makes sure that somebody waits for the end of an instance and then
// asks for a pass.
func (l *Loop) watch(ctx context.Context, i vps.Instance) {
	key := fmt.Sprintf("%s/%d/%d", i.GuestID, i.Keeper, i.Started.UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watched[key] {
		return
	}
	l.watched[key] = true
	l.workers.Go(func() {
		exit, err := l.o.Driver.Wait(ctx, i)
		l.mu.Lock()
		delete(l.watched, key)
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.log.WarnContext(ctx, "lost sight of a guest", "guest", i.Name, "error", err)
		case exit.Failed():
			l.event(ctx, i.Name, vps.EventCrashed, "ended by "+exit.String())
		default:
			l.event(ctx, i.Name, vps.EventStopped, "ended by "+exit.String())
		}
		l.Kick()
	})
}

// publish makes the snapshot that everything which shows state reads.
func (l *Loop) publish(loaded time.Time, host vps.Host, o plan.Observed, steps []plan.Step) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Snapshot{Host: host, Observed: o, Steps: steps, Loaded: loaded, At: now, Passes: l.snapshot.Passes + 1, Status: map[string]vps.GuestStatus{}}
	known := map[string]bool{}
	for i := range host.Guests {
		g := &host.Guests[i]
		known[g.ID] = true
		s.Status[g.ID] = l.status(g, o.Guests[g.ID], now)
	}
	for id, g := range o.Guests {
		if !known[id] {
			s.Orphans = append(s.Orphans, orphan(id, g))
		}
	}
	maps.DeleteFunc(l.guests, func(id string, p *progress) bool { return !known[id] && p.cancel == nil && p.letGo == nil })
	l.snapshot = s
	close(l.changed)
	l.changed = make(chan struct{})
}

func orphan(id string, g plan.Guest) string {
	switch {
	case g.Running():
		return fmt.Sprintf("the guest %s (%s) runs with process %d, and the store does not know it", g.Instance.Name, id, g.Instance.PID)
	case g.Volume != nil:
		return fmt.Sprintf("the volume %s is of no guest that the store knows", id)
	case g.Instance == nil:
		return fmt.Sprintf("the roots of rescue systems %s are of no guest that the store knows", strings.Join(g.RescueRoots, ", "))
	default:
		return fmt.Sprintf("the run folder of %s (%s) is of no guest that the store knows", g.Instance.Name, id)
	}
}
