package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

// secretHash must never be seen in an answer.
const secretHash = "$6$saltsalt$SECRETSECRETSECRET"

// fake is a backend that keeps what it is given. Its calls can be made to
// fail by setting err.
type fake struct {
	mu         sync.Mutex
	err        error
	guests     map[string]Guest
	tenants    map[string]vps.Tenant
	images     map[string]vps.Image
	orders     []string
	applied    string
	changed    chan struct{} // closed and renewed at each change
	log        string
	consoles   chan *fakeConsole
	following  chan struct{} // one value per follower that ended
	beforeText error         // returned by Logs after its first line
	drops      []Drop
	attacks    []AuditResult
	attack     chan struct{} // one value lets one attack of the audit happen
	audited    chan struct{} // closed when an audit is told to end
}

func newFake() *fake {
	return &fake{
		guests:    map[string]Guest{},
		tenants:   map[string]vps.Tenant{vps.DefaultTenant: {Name: vps.DefaultTenant}},
		images:    map[string]vps.Image{},
		changed:   make(chan struct{}),
		consoles:  make(chan *fakeConsole, 4),
		following: make(chan struct{}, 4),
		attack:    make(chan struct{}),
		audited:   make(chan struct{}),
	}
}

func (f *fake) backend() Backend {
	return Backend{Desired: f, Observed: f, Consoles: f, Images: f.imageStore(), Kernels: f.imageStore(), Auditor: f, Usages: f, Disks: fakeDisks{f}, Packs: fakePacks{f}, Traffics: &fakeTraffic{f: f}, Notices: fakeNotices{f}, Domains: fakeDomains{f}}
}

func (f *fake) setErr(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// edit runs change under the lock unless the fake is set to fail.
func (f *fake) edit(change func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if err := change(); err != nil {
		return err
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

func noGuest(name string) error {
	return vps.Errorf(vps.CodeNotFound, "there is no guest %s", name)
}

func (f *fake) CreateGuest(_ context.Context, g CreateGuest, dryRun bool) (Change, error) {
	change := Change{DryRun: dryRun, Edits: []string{"create " + g.Name}, Steps: []string{"clone", "start"}}
	return change, f.edit(func() error {
		if _, taken := f.guests[g.Name]; taken {
			return &vps.Error{Code: vps.CodeConflict, Field: "name", Message: "the name " + g.Name + " is taken", Err: errors.New("UNIQUE constraint")}
		}
		if dryRun {
			return nil
		}
		spec := vps.GuestSpec{
			Name: g.Name, Tenant: vps.DefaultTenant, Memory: vps.DefaultMemory, RootPassword: secretHash,
			Address: netip.MustParseAddr("10.213.0.2"), StopTimeout: vps.DefaultStopTimeout, SSHKeys: g.SSHKeys, DNS: g.DNS, Forwards: g.Forwards, Domains: g.Domains,
			Rules: g.Rules, Limits: g.Limits.Apply(vps.NetworkLimits{}), Resources: g.Resources.Apply(vps.Resources{}),
		}
		set(&spec.IPv6, g.IPv6)
		set(&spec.NetworkPeer, g.NetworkPeer)
		set(&spec.SMTP, g.SMTP)
		set(&spec.Bandwidth, g.Bandwidth)
		if g.Memory != nil {
			spec.Memory = *g.Memory
		}
		if g.StopTimeout != nil {
			spec.StopTimeout = *g.StopTimeout
		}
		if g.Ports != nil {
			spec.Ports = *g.Ports
		}
		f.guests[g.Name] = Guest{ID: "id-" + g.Name, Spec: spec, Status: vps.GuestStatus{State: vps.StateCreating}}
		return nil
	})
}

func (f *fake) UpdateGuest(_ context.Context, name string, u UpdateGuest, dryRun bool) (Change, error) {
	return Change{DryRun: dryRun}, f.edit(func() error {
		g, ok := f.guests[name]
		if !ok {
			return noGuest(name)
		}
		if err := u.Expect.Check(g.Spec); err != nil {
			return err
		}
		set(&g.Spec.Rules, u.Rules)
		set(&g.Spec.Forwards, u.Forwards)
		set(&g.Spec.Domains, u.Domains)
		set(&g.Spec.Bandwidth, u.Bandwidth)
		set(&g.Spec.IPv6, u.IPv6)
		g.Spec.Limits, g.Spec.Resources = u.Limits.Apply(g.Spec.Limits), u.Resources.Apply(g.Spec.Resources)
		if u.SSHKeys != nil {
			g.Spec.SSHKeys = *u.SSHKeys
		}
		if u.Memory != nil {
			g.Spec.Memory = *u.Memory
		}
		f.guests[name] = g
		return nil
	})
}

func (f *fake) Order(_ context.Context, name string, order Order, timeout time.Duration, dryRun bool) (Change, error) {
	return Change{DryRun: dryRun, Steps: []string{string(order)}}, f.edit(func() error {
		g, ok := f.guests[name]
		if !ok {
			return noGuest(name)
		}
		f.orders = append(f.orders, fmt.Sprintf("%s %s %s %t", order, name, timeout, dryRun))
		if dryRun {
			return nil
		}
		switch order {
		case OrderStart, OrderRestart:
			g.Status.State = vps.StateRunning
		case OrderStop, OrderKill:
			g.Status.State = vps.StateStopped
		case OrderDelete:
			delete(f.guests, name)
			return nil
		}
		f.guests[name] = g
		return nil
	})
}

func (f *fake) PutTenant(_ context.Context, name string, u UpdateTenant) error {
	return f.edit(func() error {
		t := f.tenants[name]
		t.Name = name
		set(&t.Note, u.Note)
		set(&t.NetworkPeer, u.NetworkPeer)
		f.tenants[name] = t
		return nil
	})
}

func (f *fake) GuestNetwork(ctx context.Context, name string) (GuestNetwork, error) {
	g, err := f.Guest(ctx, name)
	return GuestNetwork{
		Name: name, Address: g.Spec.Address, Bandwidth: g.Spec.Bandwidth, SMTP: g.Spec.SMTP, Rules: g.Spec.Rules,
		Limits: LimitsOf(g.Spec.Limits, vps.DefaultNetworkLimits()), Drops: f.drops,
	}, err
}

// Audit hands out the fake's results one by one, each when the test lets it.
func (f *fake) Audit(ctx context.Context, progress func(AuditResult)) (AuditReport, error) {
	report := AuditReport{OK: true}
	for _, r := range f.attacks {
		select {
		case <-f.attack:
		case <-ctx.Done():
			close(f.audited)
			return AuditReport{}, ctx.Err()
		}
		progress(r)
		report.OK = report.OK && r.OK
		report.Results = append(report.Results, r)
	}
	return report, f.edit(func() error { return nil })
}

func (f *fake) DeleteTenant(_ context.Context, name string) error {
	return f.edit(func() error {
		if _, ok := f.tenants[name]; !ok {
			return vps.Errorf(vps.CodeNotFound, "there is no tenant %s", name)
		}
		delete(f.tenants, name)
		return nil
	})
}

func (f *fake) Apply(_ context.Context, file io.Reader, o ApplyOptions) (Change, error) {
	body, err := io.ReadAll(file)
	if err != nil {
		return Change{}, err
	}
	return Change{DryRun: o.DryRun, Edits: []string{fmt.Sprintf("prune=%t", o.Prune)}}, f.edit(func() error {
		if !o.DryRun {
			f.applied = string(body)
		}
		return nil
	})
}

func (f *fake) Export(_ context.Context, w io.Writer) error {
	return f.edit(func() error { _, err := io.WriteString(w, f.applied); return err })
}

func (f *fake) Guests(context.Context) (all []Guest, err error) {
	return all, f.edit(func() error {
		for _, g := range f.guests {
			all = append(all, g)
		}
		slices.SortFunc(all, func(a, b Guest) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
		return nil
	})
}

func (f *fake) Guest(_ context.Context, name string) (g Guest, err error) {
	err = f.edit(func() error {
		var ok bool
		if g, ok = f.guests[name]; !ok {
			return noGuest(name)
		}
		return nil
	})
	return g, err
}

func (f *fake) Tenants(context.Context) (all []vps.Tenant, err error) {
	return all, f.edit(func() error {
		for _, t := range f.tenants {
			all = append(all, t)
		}
		slices.SortFunc(all, func(a, b vps.Tenant) int { return strings.Compare(a.Name, b.Name) })
		return nil
	})
}

func (f *fake) Host(context.Context) (h HostInfo, err error) {
	return HostInfo{Version: "test", Settings: vps.DefaultSettings(), Memory: 2 * vps.GiB}, f.edit(func() error { return nil })
}

func (f *fake) Events(_ context.Context, guest string, after int64, limit int) ([]vps.Event, error) {
	return []vps.Event{{ID: after + 1, Guest: guest, Kind: vps.EventDrift, Message: fmt.Sprint("limit ", limit)}}, f.edit(func() error { return nil })
}

func (f *fake) Doctor(context.Context) ([]Finding, error) {
	return []Finding{{Check: "tun", Level: "ok", Message: "/dev/net/tun is there"}}, f.edit(func() error { return nil })
}

func (f *fake) Wait(ctx context.Context, name string, what WaitFor) (Guest, error) {
	for {
		f.mu.Lock()
		g, ok := f.guests[name]
		changed := f.changed
		f.mu.Unlock()
		switch {
		case !ok && what == WaitDeleted:
			return Guest{}, nil
		case !ok:
			return Guest{}, noGuest(name)
		case string(g.Status.State) == string(what):
			return g, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Guest{}, vps.Wrap(vps.CodeTimeout, ctx.Err(), "%s is still %s", name, g.Status.State)
		}
	}
}

func (f *fake) Console(_ context.Context, name string, o ConsoleOptions) (io.ReadWriteCloser, error) {
	if err := f.edit(func() error { return nil }); err != nil {
		return nil, err
	}
	if name == "busy" && !o.Takeover {
		return nil, vps.Errorf(vps.CodeConflict, "somebody has the keyboard; use --takeover")
	}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	c := &fakeConsole{options: o, inR: inR, inW: inW, outR: outR, outW: outW, sizes: make(chan [2]uint16, 4), closed: make(chan struct{})}
	f.consoles <- c
	return c, nil
}

func (f *fake) AccessLog(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	if _, err := io.WriteString(w, "calls: "); err != nil {
		return err
	}
	return f.Logs(ctx, name, lines, follow, w)
}

func (f *fake) Logs(ctx context.Context, _ string, lines int, follow bool, w io.Writer) error {
	f.mu.Lock()
	err, late, text := f.err, f.beforeText, f.log
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if all := strings.SplitAfter(text, "\n"); lines > 0 && len(all)-1 > lines {
		text = strings.Join(all[len(all)-1-lines:], "")
	}
	if _, err := io.WriteString(w, text); err != nil || late != nil {
		return errors.Join(late, err)
	}
	if follow {
		<-ctx.Done()
		f.following <- struct{}{}
	}
	return nil
}

// imageStore is the fake's other half; the names of its methods would clash
// with fields.
func (f *fake) imageStore() *fakeImages { return (*fakeImages)(f) }

type fakeImages fake

func (i *fakeImages) Images(context.Context) ([]vps.Image, error) {
	f := (*fake)(i)
	return []vps.Image{{Name: "debian/12", ID: "v1"}}, f.edit(func() error { return nil })
}

func (i *fakeImages) Image(_ context.Context, name string) (vps.Image, error) {
	f := (*fake)(i)
	return vps.Image{Name: name, ID: "v1", Packages: []vps.Package{{Name: "bash", Version: "5"}}}, f.edit(func() error { return nil })
}

func (i *fakeImages) BuildImage(_ context.Context, name, _ string) (Operation, error) {
	f := (*fake)(i)
	return Operation{ID: "op-1", Kind: "build", Target: name, Progress: vps.Progress{Phase: "start", Fraction: -1}}, f.edit(func() error { return nil })
}

func (i *fakeImages) Operation(_ context.Context, id string) (Operation, error) {
	f := (*fake)(i)
	return Operation{ID: id, Done: true, Code: vps.CodeTimeout, Error: "too slow"}, f.edit(func() error { return nil })
}

func (i *fakeImages) DeleteImage(_ context.Context, name string) error {
	f := (*fake)(i)
	return f.edit(func() error { f.orders = append(f.orders, "delete-image "+name); return nil })
}

func (i *fakeImages) Kernels(context.Context) ([]KernelInfo, error) {
	f := (*fake)(i)
	return []KernelInfo{{Kernel: vps.Kernel{Name: "uml/6.1.176"}}}, f.edit(func() error { return nil })
}

func (i *fakeImages) Kernel(_ context.Context, name string) (KernelInfo, error) {
	f := (*fake)(i)
	return KernelInfo{Kernel: vps.Kernel{Name: name}, Warning: "insecure"}, f.edit(func() error { return nil })
}

func (i *fakeImages) BuildKernel(_ context.Context, b BuildKernel) (Operation, error) {
	f := (*fake)(i)
	return Operation{ID: "op-2", Kind: "kernel-build", Target: b.Source + b.Package + b.Suite + b.Config, Log: "/log"}, f.edit(func() error { return nil })
}

func (i *fakeImages) TestKernel(_ context.Context, name string) ([]KernelTest, error) {
	f := (*fake)(i)
	return []KernelTest{{Isolation: vps.IsolationFast, Took: vps.Duration(time.Second), Checks: []KernelCheck{{Name: name, OK: true}}}}, f.edit(func() error { return nil })
}

func (i *fakeImages) UseKernel(_ context.Context, name string, dryRun bool) (Change, error) {
	f := (*fake)(i)
	return Change{DryRun: dryRun, Edits: []string{name}}, f.edit(func() error { return nil })
}

func (i *fakeImages) DeleteKernel(_ context.Context, name string) error {
	f := (*fake)(i)
	return f.edit(func() error { f.orders = append(f.orders, "delete-kernel "+name); return nil })
}

// fakeConsole is a guest's console whose other end the test holds.
type fakeConsole struct {
	options   ConsoleOptions
	inR, outR *io.PipeReader
	inW, outW *io.PipeWriter
	sizes     chan [2]uint16
	closed    chan struct{}
	once      sync.Once
}

func (c *fakeConsole) Read(p []byte) (int, error)  { return c.outR.Read(p) }
func (c *fakeConsole) Write(p []byte) (int, error) { return c.inW.Write(p) }
func (c *fakeConsole) Resize(rows, cols uint16) error {
	c.sizes <- [2]uint16{rows, cols}
	return nil
}

func (c *fakeConsole) Close() error {
	c.once.Do(func() {
		_ = c.outR.Close()
		_ = c.inW.Close()
		close(c.closed)
	})
	return nil
}

func (f *fake) DiskUsage(_ context.Context, guest string) ([]vps.DiskUsage, error) {
	if guest != "" && guest != "alice" {
		return nil, noGuest(guest)
	}
	fs := &vps.Filesystem{Type: vps.FilesystemExt4, Size: 100, Free: 60, HasInodes: true, Inodes: 5, State: vps.FilesystemClean}
	return []vps.DiskUsage{
		{Guest: "alice", Disk: "root", Format: vps.DiskRaw, Size: 100, Parts: []vps.DiskPart{{Size: 100, Filesystem: fs}}},
		{Guest: "alice", Disk: "data", Error: "it is gone"},
	}, f.err
}

func (f *fake) DiskForecast(_ context.Context, guest string) ([]vps.DiskForecast, error) {
	return []vps.DiskForecast{{Guest: "alice" + guest, Disk: "root", Growth: -5}}, f.err
}

func (f *fake) DiskHistory(_ context.Context, guest string, since time.Time) ([]vps.DiskSample, error) {
	return []vps.DiskSample{{Disk: guest, At: since}}, f.err
}
