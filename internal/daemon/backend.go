package daemon

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/notice"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

// backend answers the API: it edits what is desired, and reads what the loop
// observed.
type backend struct {
	*parts
}

// made bounds how long create waits for the guest's parts. They take a
// fraction of a second; a host in trouble may take longer.
const made = time.Minute

func (b backend) CreateGuest(ctx context.Context, c api.CreateGuest, dryRun bool) (api.Change, error) {
	e, err := b.state.Create(ctx, c.Name, func(s vps.GuestSpec) (vps.GuestSpec, error) { return createSpec(s, c), nil }, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	change, err := b.change(ctx, e, dryRun)
	if err != nil || dryRun {
		return change, err
	}
	return change, b.provision(ctx, e.Guest)
}

// provision waits until the parts of a new guest are made and it was started.
// When that fails, it is taken back: create either makes a guest or leaves
// nothing.
func (b backend) provision(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), made)
	defer cancel()
	var failure error
	err := b.await(ctx, func(s reconcile.Snapshot) bool {
		st, known := s.Status[id]
		switch {
		case !known:
			return false
		case st.Message != "":
			failure = &vps.Error{Code: st.Code, Message: st.Message}
			return true
		}
		return st.State == vps.StateRunning || st.State == vps.StateStopped || st.State == vps.StateCrashed
	})
	if err == nil && failure == nil {
		return nil
	}
	if failure == nil {
		failure = vps.Wrap(vps.CodeTimeout, err, "the guest was not made within %s; `sublet events` says how far it came", made)
	}
	undo, stop := context.WithTimeout(context.WithoutCancel(ctx), made)
	defer stop()
	if err := b.state.Undo(undo, id); err != nil {
		return vps.Wrap(vps.ErrorCode(failure), err, "%s; and it could not be taken back, so delete it", vps.ErrorMessage(failure))
	}
	b.loop.Kick()
	if err := b.await(undo, func(s reconcile.Snapshot) bool { _, known := s.Status[id]; return !known }); err != nil {
		return vps.Wrap(vps.ErrorCode(failure), err, "%s; its parts are still being removed", vps.ErrorMessage(failure))
	}
	return failure
}

// await blocks until a snapshot satisfies ok, or ctx ends.
func (b backend) await(ctx context.Context, ok func(reconcile.Snapshot) bool) error {
	for {
		s, changed := b.loop.Snapshot()
		if ok(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change tells of an edit, and sets it off unless it was a dry run.
func (b backend) change(ctx context.Context, e desired.Edited, dryRun bool) (api.Change, error) {
	c := api.Change{Schema: api.SchemaVersion, DryRun: dryRun, Edits: e.Lines(), Steps: []string{}}
	if c.Edits == nil {
		c.Edits = []string{}
	}
	c.Warnings = append(b.fastWarnings(ctx, e.Before, e.After), domainWarnings(e.Before, e.After)...)
	if !dryRun {
		b.loop.Kick()
		b.quotas.touch()
		if !reflect.DeepEqual(e.Before.Quotas, e.After.Quotas) {
			b.sampleTraffic(ctx) // so that it is in force when the caller hears of it
		}
		return c, nil
	}
	c.Steps = append(c.Steps, b.foreseeQuotas(ctx, &e)...)
	steps, err := b.loop.Preview(ctx, e.After)
	for _, s := range steps {
		c.Steps = append(c.Steps, s.String())
	}
	return c, err
}

func (b backend) UpdateGuest(ctx context.Context, name string, u api.UpdateGuest, dryRun bool) (api.Change, error) {
	if u.Tenant != nil && !dryRun {
		b.sampleTraffic(ctx) // what passed until now is the tenant's who had it
	}
	e, err := b.state.Update(ctx, name, func(s vps.GuestSpec) (vps.GuestSpec, error) {
		return updateSpec(s, u), u.Expect.Check(s)
	}, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	c, err := b.change(ctx, e, dryRun)
	if err == nil && !dryRun {
		c.Warnings = append(c.Warnings, b.silenceWarnings(ctx, &e.Before, &e.After, name)...)
	}
	return c, err
}

func (b backend) Order(ctx context.Context, name string, order api.Order, timeout time.Duration, dryRun bool) (api.Change, error) {
	var e desired.Edited
	var err error
	if order == api.OrderStart || order == api.OrderRestart {
		if err := b.quotas.refuse(ctx, name); err != nil {
			return api.Change{}, err
		}
	}
	switch order {
	case api.OrderStart:
		e, err = b.state.Start(ctx, name, b.isRunning(ctx, name), dryRun)
	case api.OrderStop:
		e, err = b.state.Stop(ctx, name, timeout, false, dryRun)
	case api.OrderKill:
		e, err = b.state.Stop(ctx, name, 0, true, dryRun)
	case api.OrderRestart:
		e, err = b.state.Restart(ctx, name, timeout, dryRun)
	case api.OrderDelete:
		e, err = b.state.Delete(ctx, name, dryRun)
	default:
		err = vps.Invalid("order", "%q is not an order", order)
	}
	if err != nil {
		return api.Change{}, err
	}
	return b.change(ctx, e, dryRun)
}

// seen returns the last snapshot. When the daemon has just been started it
// waits a moment for the first one: without it every guest that runs would be
// taken for one that does not.
func (b backend) seen(ctx context.Context) reconcile.Snapshot {
	const firstLook = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	_ = b.await(ctx, func(s reconcile.Snapshot) bool { return !s.At.IsZero() })
	s, _ := b.loop.Snapshot()
	return s
}

func (b backend) isRunning(ctx context.Context, name string) bool {
	s := b.seen(ctx)
	g := s.Host.Guest(name)
	return g != nil && s.Observed.Guests[g.ID].Running()
}

func (b backend) PutTenant(ctx context.Context, name string, u api.UpdateTenant) error {
	if u.Webhook != nil {
		host, err := b.state.Host(ctx)
		if err != nil {
			return err
		}
		if err := notice.CheckWebhook(ctx, net.DefaultResolver.LookupNetIP, &host, "webhook", *u.Webhook); err != nil {
			return err
		}
	}
	_, err := b.state.PutTenant(ctx, name, func(t vps.Tenant) vps.Tenant { return updateTenant(t, u) })
	b.loop.Kick()
	b.quotas.touch()
	return err
}

func (b backend) DeleteTenant(ctx context.Context, name string) error {
	_, err := b.state.DeleteTenant(ctx, name)
	b.loop.Kick()
	b.quotas.touch()
	return err
}

func (b backend) Apply(ctx context.Context, file io.Reader, o api.ApplyOptions) (api.Change, error) {
	var content bytes.Buffer
	e, err := b.state.Apply(ctx, io.TeeReader(file, &content), o.Prune, true)
	if err == nil {
		err = checkWebhooks(ctx, net.DefaultResolver.LookupNetIP, e.Before, e.After)
	}
	if err == nil && !o.DryRun {
		if err = b.settleBills(ctx, e); err == nil {
			b.sampleTraffic(ctx) // the file may give guests to other tenants, as UpdateGuest
			e, err = b.state.Apply(ctx, &content, o.Prune, false)
		}
	}
	if err != nil {
		return api.Change{}, err
	}
	c, err := b.change(ctx, e, o.DryRun)
	c.Warnings = append(c.Warnings, quotaWarnings(e.Before, e.After)...)
	return c, err
}

func (b backend) Export(ctx context.Context, w io.Writer) error { return b.state.Export(ctx, w) }

func (b backend) Guests(ctx context.Context) ([]api.Guest, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	s := b.seen(ctx)
	public := b.publicAddress(ctx, host.Settings)
	guests := make([]api.Guest, 0, len(host.Guests))
	for i := range host.Guests {
		guests = append(guests, b.view(ctx, &host, &host.Guests[i], s, public))
	}
	return guests, nil
}

func (b backend) Guest(ctx context.Context, name string) (api.Guest, error) {
	host, g, err := b.guest(ctx, name)
	if err != nil {
		return api.Guest{}, err
	}
	s := b.seen(ctx)
	return b.view(ctx, &host, g, s, b.publicAddress(ctx, host.Settings)), nil
}

// view shows one guest. Guests newer than the snapshot are still creating.
func (b backend) view(ctx context.Context, host *vps.Host, g *vps.Guest, s reconcile.Snapshot, public netip.Addr) api.Guest {
	status := b.usedBy(ctx, g, &s)
	if _, known := s.Status[g.ID]; !known {
		status = vps.GuestStatus{State: vps.StateCreating, Observed: s.At}
	}
	spec := g.Spec
	spec.Probe = "" // the audit's own
	var rescue time.Time
	if g.Rescue != nil {
		rescue = g.Rescue.Until
	}
	return api.Guest{
		Schema: api.SchemaVersion, RescueUntil: rescue, ID: g.ID, Spec: spec, Status: status, IPv6: host.Settings.Prefix6(&g.Spec), Link: g.Link(), MAC: g.Spec.MAC().String(),
		UID: host.Settings.UID(g.Index), ImageID: g.ImageID, SSH: api.Endpoint{Address: public, Port: g.Spec.Ports.First}, Created: g.Created,
	}
}

// GuestNetwork shows the network of one guest as its spec and the host's
// settings make it, and what the wall dropped up to now.
func (b backend) GuestNetwork(ctx context.Context, name string) (api.GuestNetwork, error) {
	host, g, err := b.guest(ctx, name)
	if err != nil {
		return api.GuestNetwork{}, err
	}
	n := networkOf(&host, g)
	b.sampleDrops(ctx)
	for _, d := range b.drops.Of(name) {
		n.Drops = append(n.Drops, api.Drop{Drop: d.Drop, Last: d.Last})
	}
	return n, nil
}

// networkOf is everything of a guest's network that follows from what is
// desired.
func networkOf(host *vps.Host, g *vps.Guest) api.GuestNetwork {
	n := api.GuestNetwork{
		Schema: api.SchemaVersion, Name: g.Spec.Name, Link: g.Link(), MAC: g.Spec.MAC().String(), Address: g.Spec.Address,
		Gateway: host.Settings.Gateway(), IPv6: host.Settings.Prefix6(&g.Spec), Bandwidth: g.Spec.Bandwidth,
		Limits: api.LimitsOf(g.Spec.Limits, host.Settings.Limits), SMTP: g.Spec.SMTP, Rules: g.Spec.Rules,
	}
	if n.IPv6.IsValid() {
		n.Address6, n.Gateway6 = vps.Address6(n.IPv6), vps.Gateway6
	}
	group := ""
	all := host.Network(nil).Guests
	for _, o := range all {
		if o.Name == n.Name {
			group = o.Peers
		}
	}
	n.NetworkPeer = group != ""
	for _, o := range all {
		if n.NetworkPeer && o.Peers == group && o.Name != n.Name {
			n.Peers = append(n.Peers, o.Name)
		}
	}
	return n
}

func (b backend) Tenants(ctx context.Context) ([]vps.Tenant, error) {
	host, err := b.state.Host(ctx)
	return host.Tenants, err
}

func (b backend) Host(ctx context.Context) (api.HostInfo, error) {
	host, err := restrained{b.state, b.quotas}.Host(ctx)
	if err != nil {
		return api.HostInfo{}, err
	}
	memory, disk, err := b.facts.Room(ctx)
	if err != nil {
		return api.HostInfo{}, err
	}
	uplinks, err := b.hostnet.Uplinks(ctx, host.Settings.Uplink)
	if err != nil {
		b.log.WarnContext(ctx, "cannot find the uplink", "error", err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		b.log.WarnContext(ctx, "cannot read the host's name", "error", err)
	}
	s, _ := b.loop.Snapshot()
	info := api.HostInfo{
		Schema: api.SchemaVersion, Version: Version, Hostname: hostname, PublicAddress: b.publicAddress(ctx, host.Settings),
		Uplinks: uplinks, Memory: memory, Promised: host.Promised(), DiskFree: disk, Guests: len(host.Guests),
		Settings: host.Settings, Pending: []string{},
		// What was edited since the last pass is still to be done.
		Settled: !s.At.IsZero() && len(s.Steps) == 0 && reflect.DeepEqual(s.Host, host),
	}
	for _, st := range s.Status {
		if st.State == vps.StateRunning {
			info.Running++
		}
	}
	for _, step := range s.Steps {
		info.Pending = append(info.Pending, step.String())
	}
	return info, nil
}

// publicAddress returns what callers use to reach the host; the zero value
// when it has none.
func (p *parts) publicAddress(ctx context.Context, s vps.Settings) netip.Addr {
	if s.PublicAddress.IsValid() {
		return s.PublicAddress
	}
	uplinks, err := p.hostnet.Uplinks(ctx, s.Uplink)
	if err != nil || len(uplinks) == 0 {
		return netip.Addr{}
	}
	a, err := p.hostnet.PublicAddress(ctx, uplinks)
	if err != nil {
		p.log.DebugContext(ctx, "no public address", "error", err)
	}
	return a
}

func (b backend) Wait(ctx context.Context, name string, what api.WaitFor) (api.Guest, error) {
	g, err := b.Guest(ctx, name)
	if err != nil {
		if what == api.WaitDeleted && vps.ErrorCode(err) == vps.CodeNotFound {
			return api.Guest{Spec: vps.GuestSpec{Name: name}}, nil
		}
		return api.Guest{}, err
	}
	var failure error
	asked := time.Now()
	b.loop.Kick()
	err = b.await(ctx, func(s reconcile.Snapshot) bool {
		if s.Loaded.Before(asked) {
			return false // it may not know yet of the order that is waited for
		}
		var there bool
		there, failure = reached(s, g, what)
		return there || failure != nil
	})
	if err == nil && failure == nil && what == api.WaitSSH {
		err = sshAnswers(ctx, g.Spec.Address)
	}
	switch {
	case failure != nil:
		return api.Guest{}, failure
	case err != nil:
		return api.Guest{}, vps.Wrap(vps.CodeTimeout, err, "the guest %s did not get to %q in time; `sublet logs %s` shows its console", name, what, name)
	case what == api.WaitDeleted:
		return g, nil
	}
	return b.Guest(ctx, name)
}

// reached tells whether the guest is where it is waited for, or an error when
// it cannot get there without another order.
func reached(s reconcile.Snapshot, g api.Guest, what api.WaitFor) (bool, error) {
	st, known := s.Status[g.ID]
	if !known {
		if what == api.WaitDeleted {
			return true, nil
		}
		return false, vps.Errorf(vps.CodeNotFound, "the guest %s was deleted meanwhile", g.Spec.Name)
	}
	spec := &s.Host.Guest(g.Spec.Name).Spec
	switch what {
	case api.WaitDeleted:
		return false, nil
	case api.WaitStopped:
		return st.State == vps.StateStopped || st.State == vps.StateCrashed && st.NextTry.IsZero(), nil
	case api.WaitRunning, api.WaitSSH:
	default:
		return false, vps.Invalid("for", "%q cannot be waited for; use ssh, running, stopped or deleted", what)
	}
	switch {
	case st.State == vps.StateRunning || st.State == vps.StateRescue:
		return true, nil
	case st.State == vps.StateFailed:
		return false, &vps.Error{Code: st.Code, Message: st.Message}
	case st.State == vps.StateDeleting:
		return false, vps.Errorf(vps.CodeConflict, "the guest %s is being deleted", g.Spec.Name)
	case st.State == vps.StateStopped && st.Restraint.Stops():
		return false, st.Restraint.Refusal(g.Spec.Name)
	case st.State == vps.StateStopped && spec.Power == vps.PowerStopped:
		return false, vps.Errorf(vps.CodeConflict, "the guest %s is stopped; start it with `sublet start %s`", g.Spec.Name, g.Spec.Name)
	case (st.State == vps.StateCrashed || st.State == vps.StateStopped) && st.NextTry.IsZero() && st.Exit != nil && !willStart(s, g.ID):
		return false, vps.Errorf(vps.CodeConflict, "the guest %s ended by %s and is not started again; `sublet logs %s` shows why, `sublet start %s` starts it", g.Spec.Name, st.Exit, g.Spec.Name, g.Spec.Name)
	}
	return false, nil
}

func willStart(s reconcile.Snapshot, id string) bool {
	for _, step := range s.Steps {
		if step.GuestID == id {
			return true
		}
	}
	return false
}

// sshAnswers blocks until an SSH server greets at port 22 of a (RFC 4253,
// 4.2), or ctx ends.
func sshAnswers(ctx context.Context, a netip.Addr) error {
	const pause = 50 * time.Millisecond
	for {
		if greets(ctx, a) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func greets(ctx context.Context, a netip.Addr) bool {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, vps.SSHPort).String())
	if err != nil {
		return false
	}
	defer conn.Close() //nolint:errcheck // only read from
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetReadDeadline(deadline)
	}
	greeting := make([]byte, 4)
	_, err = io.ReadFull(conn, greeting)
	return err == nil && strings.HasPrefix(string(greeting), "SSH-")
}
