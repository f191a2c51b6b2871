package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/audit"
	"sublet/internal/guest"
	"sublet/internal/probe"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

// auditPrefix starts the names of the guests that an audit makes.
const auditPrefix = "audit-"

// Bounds of an audit's waits.
const (
	answering = 60 * time.Second // a guest boots and answers
	trying    = 60 * time.Second // one attempt
	clearing  = 2 * time.Minute  // everything is taken away again
)

// Audit implements api.Auditor.
func (b backend) Audit(ctx context.Context, progress func(api.AuditResult)) (report api.AuditReport, err error) {
	if !b.auditing.TryLock() {
		return report, vps.Errorf(vps.CodeConflict, "an audit of this host runs already; wait for its end")
	}
	defer b.auditing.Unlock()
	defer func() {
		// Also when the caller is gone: nothing may stay.
		clear, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearing)
		defer cancel()
		err = errors.Join(err, b.clearAudit(clear))
	}()
	if err := b.clearAudit(ctx); err != nil {
		return report, err
	}
	report.OK = true
	note := func(r api.AuditResult) {
		report.OK = report.OK && r.OK
		report.Results = append(report.Results, r)
		progress(r)
	}
	victim, err := b.auditGuest(ctx, "victim", probe.Frames)
	if err != nil {
		return report, err
	}
	defer victim.close()
	if err := b.auditNetwork(ctx, victim, note); err != nil {
		return report, err
	}
	return report, b.auditJail(ctx, victim, note)
}

// auditNetwork attacks the firewall's wall with frames from a guest.
func (b backend) auditNetwork(ctx context.Context, victim *audited, note func(api.AuditResult)) error {
	attacker, err := b.auditGuest(ctx, "attacker", probe.Frames)
	if err != nil {
		return err
	}
	defer attacker.close()
	host, err := b.state.Host(ctx)
	if err != nil {
		return err
	}
	network := host.Network(nil)
	uplinks, err := b.hostnet.Uplinks(ctx, network.Uplink)
	if err != nil {
		return err
	}
	return audit.Run(ctx, audit.Options{
		Network: network, Attacker: attacker.guest.Spec.Name, Victim: victim.guest.Spec.Name, Uplinks: uplinks,
		Sender: attacker.client, Listener: victim.client, Firewall: b.nft,
	}, func(r audit.Result) {
		note(api.AuditResult{
			Kind: api.AttackNetwork, Attack: r.Attack, What: r.What, Expected: r.Expected, Seen: r.Seen, Counter: r.Counter, OK: r.OK,
		})
	})
}

// clearAudit removes the guests of an audit, this one's or an earlier one's
// whose daemon was killed.
func (p *parts) clearAudit(ctx context.Context) error {
	host, err := p.state.Host(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for i := range host.Guests {
		if g := &host.Guests[i]; g.Spec.Probe != "" {
			ids = append(ids, g.ID)
			if g.Deleting {
				continue
			}
			if _, err := p.state.Delete(ctx, g.Spec.Name, false); err != nil {
				return err
			}
		}
	}
	p.loop.Kick()
	return backend{p}.await(ctx, func(s reconcile.Snapshot) bool {
		return !slices.ContainsFunc(ids, func(id string) bool { _, there := s.Status[id]; return there })
	})
}

// audited is a guest of an audit that runs and answers.
type audited struct {
	guest    vps.Guest
	instance vps.Instance
	disk     string
	console  io.ReadWriteCloser
	client   *probe.Client
	hello    probe.Answer
}

func (a *audited) close() { _ = a.console.Close() }

// auditGuest makes a throw-away guest and waits until it answers.
func (b backend) auditGuest(ctx context.Context, role, mode string) (*audited, error) {
	images, err := b.images.List(ctx)
	if err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, vps.Errorf(vps.CodeConflict, "an audit needs an image to make its guests from; build one with `sublet image build %s`", vps.DefaultImage)
	}
	name := auditPrefix + role
	const memory = 128 * vps.MiB
	edited, err := b.state.Create(ctx, name, func(s vps.GuestSpec) (vps.GuestSpec, error) {
		s.Image, s.Memory, s.Probe = images[0].Name, memory, mode
		s.Restart, s.Autostart, s.Limits = vps.RestartNever, false, audit.Limits()
		return s, nil
	}, false)
	if err != nil {
		return nil, err
	}
	b.loop.Kick()
	a := &audited{guest: *edited.After.Guest(name)}
	if err := b.provision(ctx, a.guest.ID); err != nil {
		return nil, err
	}
	found := b.seen(ctx).Observed.Guests[a.guest.ID]
	if found.Instance == nil || found.Volume == nil {
		return nil, vps.Errorf(vps.CodeInternal, "the guest %s ended at once; `sublet logs %s` shows why", name, name)
	}
	a.instance, a.disk = *found.Instance, found.Volume.Disk.Path
	if a.console, err = b.driver.Console(ctx, a.instance, guest.ConsoleOptions{Write: true}); err != nil {
		return nil, err
	}
	a.client = probe.NewClient(a.console)
	if a.hello, err = a.greet(ctx); err != nil {
		a.close()
		return nil, vps.Wrap(vps.CodeTimeout, err, "the guest %s does not answer; `sublet logs %s` shows its console", name, name)
	}
	return a, nil
}

// greet asks until the guest has booted so far that it answers.
func (a *audited) greet(ctx context.Context) (probe.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answering)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, time.Second)
		answer, err := a.client.Do(try, probe.Request{Op: probe.Hello})
		stop()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return answer, err
		}
	}
}

// mortal are the attempts that may end the one who makes them, by a limit.
var mortal = []string{"fork-bomb", "eat-memory"} //nolint:gochecknoglobals // a constant

// auditJail lets a hostile program try to leave a guest's jail.
func (b backend) auditJail(ctx context.Context, victim *audited, note func(api.AuditResult)) error {
	// Something of the host that answers, to be sure that it is not reached.
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("open a port for the audit: %w", err)
	}
	defer func() { _ = listener.Close() }()
	at, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil {
		return err
	}
	prisoner, err := b.auditGuest(ctx, "prisoner", probe.Jail)
	if err != nil {
		return err
	}
	defer func() { prisoner.close() }()
	attempts := slices.Clone(prisoner.hello.Attempts)
	slices.SortStableFunc(attempts, func(x, y probe.Attempt) int {
		return slices.Index(mortal, x.Name) - slices.Index(mortal, y.Name)
	})
	for _, attempt := range attempts {
		result := api.AuditResult{Kind: api.AttackJail, Attack: attempt.Name, What: attempt.What, Expected: "refused"}
		try, stop := context.WithTimeout(ctx, trying)
		answer, err := prisoner.client.Do(try, probe.Request{Op: probe.Try, Name: attempt.Name, Target: &probe.Targets{
			StateDB: b.config.statePath("state.db"), Socket: b.config.Socket, KeeperPID: prisoner.instance.Keeper, KeeperSock: prisoner.instance.Socket,
			VictimPID: victim.instance.PID, VictimDisk: victim.disk, VictimTap: victim.guest.Link(), VictimRun: filepath.Dir(victim.instance.Socket),
			OwnTap: prisoner.guest.Link(), OwnDisk: prisoner.disk, Host: at.Addr(), HostPort: at.Port(),
		}})
		stop()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && slices.Contains(mortal, attempt.Name):
			// The limit ended the whole guest, which is what it is for.
			result.OK, result.Seen = true, "the guest was ended by its limits"
			note(result)
			if prisoner, err = b.revive(ctx, prisoner); err != nil {
				return err
			}
			continue
		case err != nil:
			result.Seen = "no answer: " + err.Error()
		case answer.Attempt == nil:
			result.Seen = "not tried: " + answer.Error
		default:
			result.OK, result.Seen = !answer.Attempt.Escaped, strings.TrimSpace(answer.Attempt.Seen)
		}
		note(result)
	}
	return b.unharmed(ctx, victim, note)
}

// revive makes a prisoner that was ended by a limit anew.
func (b backend) revive(ctx context.Context, a *audited) (*audited, error) {
	a.close()
	if _, err := b.state.Delete(ctx, a.guest.Spec.Name, false); err != nil {
		return a, err
	}
	b.loop.Kick()
	if err := b.await(ctx, func(s reconcile.Snapshot) bool { _, there := s.Status[a.guest.ID]; return !there }); err != nil {
		return a, err
	}
	again, err := b.auditGuest(ctx, "prisoner", probe.Jail)
	if err != nil {
		return a, err
	}
	return again, nil
}

// unharmed tells whether the victim came through.
func (b backend) unharmed(ctx context.Context, victim *audited, note func(api.AuditResult)) error {
	result := api.AuditResult{Kind: api.AttackJail, Attack: "harm-neighbour", What: "the other guest runs and answers after all of that", Expected: "unharmed"}
	try, stop := context.WithTimeout(ctx, trying)
	defer stop()
	_, err := victim.client.Do(try, probe.Request{Op: probe.Hello})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	result.OK, result.Seen = err == nil, "it answers"
	if err != nil {
		result.Seen = "no answer: " + err.Error()
	}
	note(result)
	return nil
}
