package reconcile

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"sublet/internal/plan"
	"sublet/internal/vps"
)

const (
	// A guest that ends by itself is started again after firstBackoff, twice
	// that the next time, and so on up to lastBackoff; one that ran for
	// healthyAfter starts over.
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
	healthyAfter = 10 * time.Minute
	// A guest opens its tap in its first seconds, and may close it for a moment
	// at any time; only then is it taken for detached.
	replugAfter = 10 * time.Second
	// bootWithin bounds how long one guest may hold up the start of others
	// after the host booted.
	bootWithin = 30 * time.Second
	// killWithin bounds the wait for a guest that was killed.
	killWithin = 20 * time.Second
)

// fault is why something could not be done.
type fault struct {
	message string
	code    vps.Code
	next    time.Time
	tries   int
	// guest is the record it failed for: another record is another try.
	guest vps.Guest
}

// progress is what the loop knows of a guest beyond spec and observation. It
// may be lost at any time: only counters and waits go with it.
type progress struct {
	// cancel is set while steps of this guest are being taken.
	cancel context.CancelFunc
	doing  plan.Kind
	// record is the guest as the steps were planned for, and waiting that they
	// wait for the boots of others.
	record  vps.Guest
	waiting bool
	// ended is what the loop's count was when the last worker ended.
	ended int64
	fault *fault
	// restarts counts the starts by policy since the last one asked for;
	// boots says which that was.
	restarts int
	boots    int64
	nextTry  time.Time
	// letGo is set while somebody holds the guest, and asks for it back.
	letGo context.CancelFunc
	// replugs counts the tries to plug a guest in again that did not help.
	replugs  int
	replugAt time.Time
}

// setOff starts the guests' own steps, each guest in a goroutine of its own,
// and returns when the next pass is due at the latest.
//
// era is what l.ended was before the pass looked: a guest whose worker ended
// since then was seen half-way, and is left to the next pass.
func (l *Loop) setOff(ctx context.Context, era int64, host vps.Host, o plan.Observed, steps []plan.Step) time.Duration {
	next, now := l.o.Resync, time.Now()
	byGuest := map[string][]plan.Step{}
	for _, s := range steps {
		byGuest[s.GuestID] = append(byGuest[s.GuestID], s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range host.Guests {
		g := host.Guests[i]
		p := l.guests[g.ID]
		if p == nil {
			p = &progress{}
			l.guests[g.ID] = p
		}
		if p.cancel != nil {
			switch {
			case p.doing == plan.StopGuest && (g.Abrupt || g.Deleting):
				p.cancel() // the power switch does not wait for the shutdown
			case p.waiting && !reflect.DeepEqual(p.record, g):
				p.cancel() // what it waits for may not be wanted any more
			}
			continue
		}
		if p.letGo != nil {
			if g.Deleting {
				p.letGo() // nothing is worth doing to it any more
			}
			continue
		}
		if p.ended > era {
			continue
		}
		if p.fault != nil && !reflect.DeepEqual(p.fault.guest, g) {
			p.fault = nil
		}
		todo := byGuest[g.ID]
		if wait := p.hold(&g, o.Guests[g.ID], todo, now); wait > 0 {
			next = min(next, wait)
			continue
		}
		if len(todo) > 0 {
			l.work(ctx, p, host, g, o.Guests[g.ID], todo)
		}
	}
	return next
}

// hold says how long the guest's steps have to wait: for a try after a fault,
// or for the backoff of the restart policy. Zero means not at all.
func (p *progress) hold(g *vps.Guest, o plan.Guest, todo []plan.Step, now time.Time) time.Duration {
	p.nextTry = time.Time{}
	if p.boots != g.Boots {
		p.boots, p.restarts = g.Boots, 0
	}
	if len(todo) == 0 {
		p.fault, p.replugs = nil, 0
		return 0
	}
	if p.fault != nil && now.Before(p.fault.next) {
		p.nextTry = p.fault.next
		return p.fault.next.Sub(now)
	}
	if todo[0].Kind == plan.ReplugGuest {
		return p.holdReplug(o.Instance, now)
	}
	p.replugs = 0
	last := o.Instance
	if todo[len(todo)-1].Kind != plan.StartGuest || last == nil || last.Exit == nil || last.Boots < g.Boots {
		return 0
	}
	if last.Exit.At.Sub(last.Started) > healthyAfter {
		p.restarts = 0
	}
	due := last.Exit.At.Add(backoff(p.restarts))
	// A clock that was stepped back must not keep a guest down for long.
	if wait := min(due.Sub(now), lastBackoff); wait > 0 {
		p.nextTry = now.Add(wait)
		return wait
	}
	p.restarts++
	return 0
}

// holdReplug says how long a guest without a link has to wait for the next
// try to plug it in. One that minds no card never gets there, and is left
// alone more and more.
func (p *progress) holdReplug(i *vps.Instance, now time.Time) time.Duration {
	due := i.Started.Add(replugAfter)
	if p.replugs > 0 {
		due = p.replugAt.Add(backoff(p.replugs))
	}
	if wait := min(due.Sub(now), lastBackoff); wait > 0 {
		return wait
	}
	p.replugs++
	p.replugAt = now
	return 0
}

func backoff(tries int) time.Duration {
	return min(firstBackoff<<min(tries, 20), lastBackoff)
}

// work takes a guest's steps in order, in a goroutine. l.mu is held.
func (l *Loop) work(ctx context.Context, p *progress, host vps.Host, g vps.Guest, o plan.Guest, steps []plan.Step) {
	ctx, p.cancel = context.WithCancel(ctx)
	p.doing, p.record = steps[0].Kind, g
	w := worker{loop: l, progress: p, host: host, guest: g, observed: o, again: p.replugs > 1}
	l.workers.Go(func() {
		defer l.Kick()
		var err error
		for _, s := range steps {
			l.mu.Lock()
			p.doing = s.Kind
			l.mu.Unlock()
			if err = l.take(ctx, s, func() error { return w.take(ctx, s) }); err != nil {
				break
			}
		}
		stopped := ctx.Err() != nil
		l.mu.Lock()
		p.cancel()
		p.cancel = nil
		l.ended++
		p.ended = l.ended
		news := l.note(p, g, err, stopped)
		l.mu.Unlock()
		if news != "" {
			l.log.ErrorContext(ctx, "a step failed", "guest", g.Spec.Name, "error", err)
			l.event(ctx, g.Spec.Name, vps.EventFailed, news)
		}
	})
}

// note records how a guest's steps went and returns what is new about it for
// people. l.mu is held.
func (l *Loop) note(p *progress, g vps.Guest, err error, stopped bool) string {
	if err == nil || stopped {
		p.fault = nil
		return ""
	}
	f := &fault{message: vps.ErrorMessage(err), code: vps.ErrorCode(err), guest: g}
	if p.fault != nil {
		f.tries = p.fault.tries + 1
	}
	f.next = time.Now().Add(backoff(f.tries))
	news := p.fault == nil || p.fault.message != f.message
	p.fault = f
	if news {
		return f.message
	}
	return ""
}

// worker takes the steps of one guest.
type worker struct {
	loop     *Loop
	progress *progress
	host     vps.Host
	guest    vps.Guest
	observed plan.Guest
	again    bool // this was tried before, and told
}

func (w *worker) take(ctx context.Context, s plan.Step) error {
	o, g := &w.loop.o, w.guest
	switch s.Kind {
	case plan.CreateVolume:
		return w.createVolume(ctx)
	case plan.GrowVolume:
		return o.Volumes.Grow(ctx, g.ID, "", g.Spec.Disk)
	case plan.CreateDisk:
		return o.Volumes.CreateDisk(ctx, g.ID, s.Disk, w.volumeSpec(s.Size))
	case plan.GrowDisk:
		return o.Volumes.Grow(ctx, g.ID, s.Disk, s.Size)
	case plan.DeleteDisk:
		return o.Volumes.DeleteDisk(ctx, g.ID, s.Disk)
	case plan.WriteSeed:
		return o.Seeds.Write(ctx, w.host, g)
	case plan.StartGuest:
		return w.start(ctx)
	case plan.ReplugGuest:
		return w.replug(ctx)
	case plan.SetLimits:
		return o.Limits.SetLimits(ctx, *w.observed.Instance, g.Spec.Resources)
	case plan.StopGuest:
		return w.stop(ctx)
	case plan.KillGuest:
		return w.kill(ctx)
	case plan.DeleteVolume:
		return o.Volumes.Delete(ctx, g.ID)
	case plan.ForgetGuest:
		return w.forget(ctx)
	case plan.ReplaceVolume:
		return w.replaceVolume(ctx)
	case plan.CreateRescue:
		return o.Rescues.Create(ctx, g, w.host.Settings.UID(g.Index))
	case plan.DeleteRescue:
		return o.Rescues.Delete(ctx, s.Disk)
	case plan.SetFirewall, plan.SetNetwork:
	}
	return fmt.Errorf("reconcile: %s is no step of a guest", s.Kind)
}

func (w *worker) createVolume(ctx context.Context) error {
	img, err := w.loop.o.Images.ByID(ctx, w.guest.ImageID)
	if err != nil {
		return err
	}
	v, err := w.loop.o.Volumes.Create(ctx, w.guest.ID, img, w.volumeSpec(w.guest.Spec.Disk))
	if err != nil {
		return err
	}
	w.observed.Volume = &v
	w.loop.event(ctx, w.guest.Spec.Name, vps.EventCreated, fmt.Sprintf("a volume of %s from %s", v.Size, w.guest.Spec.Image))
	return nil
}

func (w *worker) replaceVolume(ctx context.Context) error {
	img, err := w.loop.o.Images.ByID(ctx, w.guest.ImageID)
	if err != nil {
		return err
	}
	v, err := w.loop.o.Volumes.Reset(ctx, w.guest.ID, img, w.volumeSpec(w.guest.Spec.Disk))
	if err != nil {
		return err
	}
	w.observed.Volume = &v
	w.loop.event(ctx, w.guest.Spec.Name, vps.EventCreated, fmt.Sprintf("its volume of %s anew, from %s; the old one is deleted", v.Size, w.guest.Spec.Image))
	return nil
}

// volumeSpec is what a disk of this size is to be.
func (w *worker) volumeSpec(size vps.Bytes) vps.VolumeSpec {
	return vps.VolumeSpec{Storage: w.guest.Spec.Storage, Size: size, UID: w.host.Settings.UID(w.guest.Index), Generation: w.guest.Generation}
}

func (w *worker) start(ctx context.Context) error {
	l := w.loop
	atBoot := w.observed.Instance == nil && w.guest.HostBoot != l.o.HostBoot
	if atBoot {
		if err := w.awaitTurn(ctx); err != nil {
			return err
		}
	}
	err := w.startNow(ctx)
	if !atBoot {
		return err
	}
	// Give the place to the next one only when this one is up. That takes
	// longer than this step, which is over.
	l.workers.Go(func() {
		defer func() { <-l.boots }()
		if err == nil && l.o.Ready != nil {
			ready, cancel := context.WithTimeout(context.WithoutCancel(ctx), bootWithin)
			defer cancel()
			l.o.Ready(ready, w.guest)
		}
	})
	return err
}

// awaitTurn waits for a place among those that boot. An edit of the guest ends
// the wait.
func (w *worker) awaitTurn(ctx context.Context) error {
	wait := func(waits bool) {
		w.loop.mu.Lock()
		defer w.loop.mu.Unlock()
		w.progress.waiting = waits
	}
	wait(true)
	defer wait(false)
	select {
	case w.loop.boots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *worker) startNow(ctx context.Context) error {
	l := w.loop
	var img vps.Image
	if v := w.observed.Volume; v != nil && v.Disk.Backing != "" {
		var err error
		if img, err = l.o.Images.ByID(ctx, v.ImageID); err != nil {
			return err
		}
	}
	v, err := l.o.Volumes.Check(ctx, w.guest.ID, img, w.host.Settings.UID(w.guest.Index))
	if err != nil {
		return err
	}
	m, err := l.o.Machines.Machine(ctx, w.host, w.guest, v)
	if err != nil {
		return err
	}
	i, err := l.o.Driver.Start(ctx, m)
	if err != nil {
		return err
	}
	l.event(ctx, w.guest.Spec.Name, vps.EventStarted, fmt.Sprintf("process %d", i.PID))
	return nil
}

func (w *worker) replug(ctx context.Context) error {
	n := w.host.Network(func(g *vps.Guest) bool { return g.ID == w.guest.ID })
	err := w.loop.o.Replug.Replug(ctx, *w.observed.Instance, n.Guests[0])
	if vps.ErrorCode(err) == vps.CodeUnavailable {
		return nil // it reboots just now, and opens its link by itself
	}
	if err != nil {
		return err
	}
	if !w.again {
		w.loop.event(ctx, w.guest.Spec.Name, vps.EventDrift, "its link was made again, and it was told to plug in")
	}
	return nil
}

// stop asks for an orderly shutdown and kills the guest at the deadline. When a
// quota is the reason, that is noted before: the guest is to come back.
func (w *worker) stop(ctx context.Context) error {
	l, i := w.loop, *w.observed.Instance
	if g := &w.guest; g.Spec.Power == vps.PowerRunning && g.Restraint.Stops() {
		if err := l.o.Desired.StoppedByQuota(ctx, g.ID, g.Boots); err != nil {
			return err
		}
	}
	deadline, cancel := context.WithTimeout(ctx, w.guest.StopDeadline())
	defer cancel()
	err := l.o.Driver.Stop(deadline, i)
	if err == nil {
		if _, err = l.o.Driver.Wait(deadline, i); err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	why := "it did not shut down within " + w.guest.StopDeadline().String()
	if !errors.Is(err, context.DeadlineExceeded) {
		why = "it could not be asked to shut down (" + err.Error() + ")"
	}
	l.event(ctx, w.guest.Spec.Name, vps.EventStopped, why+", so it was killed")
	return w.kill(ctx)
}

func (w *worker) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killWithin)
	defer cancel()
	if err := w.loop.o.Driver.Kill(ctx, *w.observed.Instance); err != nil {
		return err
	}
	_, err := w.loop.o.Driver.Wait(ctx, *w.observed.Instance)
	return err
}

// forget removes the last traces of a guest. Its link and its rules are gone
// by now: the pass that planned this step took the network's steps first.
func (w *worker) forget(ctx context.Context) error {
	l := w.loop
	if err := l.o.Seeds.Delete(w.guest); err != nil {
		return err
	}
	if err := l.o.Machines.Clear(w.guest); err != nil {
		return err
	}
	if err := l.o.Desired.Forget(ctx, w.guest.ID); err != nil {
		return err
	}
	l.event(ctx, w.guest.Spec.Name, vps.EventDeleted, "the guest and its volume")
	return nil
}

// status says in one value what is to be shown of a guest. l.mu is held.
func (l *Loop) status(g *vps.Guest, o plan.Guest, now time.Time) vps.GuestStatus {
	s := vps.GuestStatus{Observed: now, Restraint: g.Restraint}
	p := l.guests[g.ID]
	if p == nil {
		p = &progress{}
	}
	s.Restarts, s.NextTry = p.restarts, p.nextTry
	if o.Volume != nil {
		s.DiskUsed = o.Volume.Used
	}
	if i := o.Instance; i != nil {
		s.Exit = i.Exit
		if i.Exit == nil {
			s.PID, s.Started = i.PID, i.Started
		}
	}
	s.State = state(g, o, p, l.o.HostBoot)
	if f := p.fault; f != nil {
		s.Code, s.Message = f.code, f.message
	} else if l.netFault != nil && s.State != vps.StateRunning && s.State != vps.StateRescue && s.State != vps.StateStopped {
		s.Code, s.Message = l.netFault.code, l.netFault.message
	}
	return s
}

func state(g *vps.Guest, o plan.Guest, p *progress, hostBoot string) vps.State {
	switch {
	case g.Deleting:
		return vps.StateDeleting
	case o.Running() && (g.Power() == vps.PowerStopped || o.Instance.Boots < g.Boots):
		return vps.StateStopping
	case o.Running() && g.Rescue != nil:
		return vps.StateRescue
	case o.Running():
		return vps.StateRunning
	case p.fault != nil:
		return vps.StateFailed
	case o.Volume == nil:
		return vps.StateCreating
	}
	crashed := o.Instance != nil && o.Instance.Exit.Failed() && o.Instance.Boots == g.Boots
	switch {
	case crashed && g.Power() == vps.PowerRunning:
		return vps.StateCrashed
	case plan.WillStart(g, o, hostBoot):
		return vps.StateStarting
	}
	return vps.StateStopped
}
