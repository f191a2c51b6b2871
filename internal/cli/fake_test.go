package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"sublet/internal/api"
	"sublet/internal/tree"
	"sublet/internal/vps"
)

// now is when all tests play.
var now = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)

// fake is a daemon whose guests obey at once. Some names are special: a guest
// called "stubborn" has to be killed, one called "deaf" never answers SSH, and
// one called "broken" cannot start.
type fake struct {
	mu       sync.Mutex
	filesDir string // the root of every guest
	guests   map[string]*api.Guest
	tenants  map[string]vps.Tenant
	images   []vps.Image
	events   []vps.Event
	polls    int
	next     int
	failure  error // what every call answers, when set
	console  Stream
	opened   api.ConsoleOptions
	created  []api.CreateGuest
	orders   []string
	built    api.BuildKernel
	// warnings come with every edit.
	warnings  []string
	applied   api.ApplyOptions
	log       string
	onPoll    func()
	finds     []api.Finding
	drops     []api.Drop
	audit     api.AuditReport
	usage     []vps.DiskUsage
	forecasts []vps.DiskForecast
	samples   []vps.DiskSample
	// meanwhile is called before each update, and audited before each result.
	meanwhile func()
	audited   func(context.Context)
	updates   []api.UpdateGuest
	snapshots map[string][]vps.Snapshot
	quotas    []vps.Quota
	traffic   ledger
	links     []vps.PageLink
	price     vps.Price
	bill      vps.Bill
	asked     api.BillQuery
	corrected []api.CorrectBill
}

func newFake() *fake {
	return &fake{
		price: vps.DefaultPrice(), guests: map[string]*api.Guest{}, snapshots: map[string][]vps.Snapshot{},
		tenants: map[string]vps.Tenant{vps.DefaultTenant: {Name: vps.DefaultTenant, Created: now.Add(-24 * time.Hour)}},
		images: []vps.Image{{
			Name: "debian/12", ID: "img-1", Distribution: "debian", Release: "12", Architecture: "amd64", Filesystem: "ext4", FilesystemSize: 640 * vps.MiB,
			Packages: []vps.Package{{Name: "apt", Version: "2.6.1"}, {Name: "systemd", Version: "252.39-1"}},
			Size:     2 * vps.GiB, Content: 412 * vps.MiB, SHA256: strings.Repeat("ab", 32), Created: now.Add(-3 * time.Hour),
		}},
		finds: []api.Finding{{Check: "root", Level: "ok", Message: "runs as root"}},
		log:   "one\ntwo\nthree\n",
	}
}

func (f *fake) Guests(context.Context) ([]api.Guest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return nil, f.failure
	}
	var out []api.Guest
	for _, g := range f.guests {
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b api.Guest) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return out, nil
}

func (f *fake) find(name string) (*api.Guest, error) {
	if f.failure != nil {
		return nil, f.failure
	}
	g, ok := f.guests[name]
	if !ok {
		return nil, vps.Errorf(vps.CodeNotFound, "guest %q does not exist; `sublet list` shows all", name)
	}
	return g, nil
}

func (f *fake) Guest(_ context.Context, name string) (api.Guest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(name)
	if err != nil {
		return api.Guest{}, err
	}
	return *g, nil
}

func (f *fake) Tenants(context.Context) ([]vps.Tenant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []vps.Tenant
	for _, t := range f.tenants {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b vps.Tenant) int { return strings.Compare(a.Name, b.Name) })
	return out, f.failure
}

func (f *fake) Wait(ctx context.Context, name string, what api.WaitFor, timeout time.Duration) (api.Guest, error) {
	g, err := f.Guest(ctx, name)
	switch {
	case what == api.WaitDeleted && vps.ErrorCode(err) == vps.CodeNotFound:
		return api.Guest{}, nil
	case err != nil:
		return g, err
	case what == api.WaitSSH && name == "deaf":
		return g, vps.Errorf(vps.CodeTimeout, "deaf did not answer SSH in %s; `sublet console deaf` shows what it does", timeout)
	case g.Status.State == vps.StateFailed:
		return g, vps.Errorf(vps.CodeInternal, "%s", g.Status.Message)
	case (what == api.WaitStopped) != (g.Status.State == vps.StateStopped):
		return g, vps.Errorf(vps.CodeConflict, "%s is %s, and nothing is going to change that", name, g.Status.State)
	}
	return g, nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func (f *fake) CreateGuest(_ context.Context, c api.CreateGuest, dryRun bool) (api.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return api.Change{}, f.failure
	}
	if _, ok := f.guests[c.Name]; ok {
		return api.Change{}, vps.Errorf(vps.CodeConflict, "there is a guest %s already; choose another name", c.Name)
	}
	f.created = append(f.created, c)
	f.next++
	addr := netip.AddrFrom4([4]byte{10, 213, 0, byte(1 + f.next)})
	g := &api.Guest{Schema: api.SchemaVersion, ID: fmt.Sprintf("g-%d", f.next), ImageID: "img-1", UID: 721300 + uint32(f.next), Created: now}
	g.Spec = vps.GuestSpec{
		Name: c.Name, Tenant: vps.DefaultTenant, Driver: vps.DefaultDriver, Image: vps.DefaultImage, Memory: vps.DefaultMemory,
		Disk: vps.DefaultDisk, Storage: vps.StorageFile, Isolation: vps.IsolationStrict, CPUs: 1, BillingWeight: vps.DefaultBillingWeight, Power: vps.PowerRunning, Hostname: c.Name, Locale: "C.UTF-8", Timezone: "Etc/UTC", SSHKeys: c.SSHKeys,
		Address: addr, DNS: c.DNS, Forwards: c.Forwards, Domains: c.Domains, Ports: vps.PortBlock{First: 19980 + 20*uint16(f.next), Count: 20},
		Restart: vps.RestartOnFailure, Autostart: true, StopTimeout: vps.DefaultStopTimeout,
	}
	set(&g.Spec.Tenant, c.Tenant)
	set(&g.Spec.Memory, c.Memory)
	set(&g.Spec.Disk, c.Disk)
	set(&g.Spec.Power, c.Power)
	set(&g.Spec.Ports, c.Ports)
	set(&g.Spec.Bandwidth, c.Bandwidth)
	set(&g.Spec.NetworkPeer, c.NetworkPeer)
	set(&g.Spec.SMTP, c.SMTP)
	set(&g.Spec.IPv6, c.IPv6)
	g.Spec.Rules = c.Rules
	g.Spec.Limits, g.Spec.Resources = c.Limits.Apply(g.Spec.Limits), c.Resources.Apply(g.Spec.Resources)
	settings := vps.DefaultSettings()
	g.IPv6 = settings.Prefix6(&g.Spec)
	if g.Spec.Memory > 4*vps.GiB {
		return api.Change{}, vps.Errorf(vps.CodeDenied, "memory: %s is more than the 4GiB that are left; stop a guest or ask for less", g.Spec.Memory)
	}
	if _, ok := f.tenants[g.Spec.Tenant]; !ok {
		return api.Change{}, vps.Errorf(vps.CodeNotFound, "tenant %q does not exist; add it with `sublet tenant add`", g.Spec.Tenant)
	}
	change := api.Change{
		Warnings: f.warnings,
		Schema:   api.SchemaVersion, DryRun: dryRun, Edits: []string{"add guest " + c.Name},
		Steps: []string{"clone debian/12 for " + c.Name, "start " + c.Name},
	}
	if dryRun {
		return change, nil
	}
	g.Link, g.MAC = vps.LinkName(c.Name), vps.MACFor(g.Spec.Address).String()
	if g.Spec.Ports.First > 0 {
		g.SSH = api.Endpoint{Address: netip.MustParseAddr("203.0.113.5"), Port: g.Spec.Ports.First}
	}
	g.Status = vps.GuestStatus{State: vps.StateStopped, Observed: now}
	f.guests[c.Name] = g
	if g.Spec.Power == vps.PowerRunning {
		f.start(g)
	}
	return change, nil
}

func (f *fake) start(g *api.Guest) {
	if g.Spec.Name == "broken" {
		g.Status.State, g.Status.Message = vps.StateFailed, "broken has no kernel; run `sublet doctor`"
		return
	}
	g.Status = vps.GuestStatus{State: vps.StateRunning, Observed: now, PID: 4711, Started: now.Add(-754 * time.Second)}
}

func (f *fake) UpdateGuest(_ context.Context, name string, u api.UpdateGuest, dryRun bool) (api.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(name)
	if err != nil {
		return api.Change{}, err
	}
	if f.meanwhile != nil {
		f.meanwhile()
	}
	f.updates = append(f.updates, u)
	if err := u.Expect.Check(g.Spec); err != nil {
		return api.Change{}, err
	}
	c := api.Change{Schema: api.SchemaVersion, DryRun: dryRun, Edits: []string{"guest " + name + " changed"}, Warnings: f.warnings}
	if !dryRun {
		set(&g.Spec.Rules, u.Rules)
		set(&g.Spec.Bandwidth, u.Bandwidth)
		set(&g.Spec.Memory, u.Memory)
		set(&g.Spec.SSHKeys, u.SSHKeys)
		set(&g.Spec.RootPassword, u.RootPasswordHash)
		set(&g.Spec.Forwards, u.Forwards)
		set(&g.Spec.Domains, u.Domains)
		set(&g.Spec.Disk, u.Disk)
		set(&g.Spec.Disks, u.Disks)
		set(&g.Spec.Restart, u.Restart)
	}
	return c, nil
}

func (f *fake) Order(_ context.Context, name string, order api.Order, timeout time.Duration, dryRun bool) (api.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.find(name)
	if err != nil {
		return api.Change{}, err
	}
	change := api.Change{Schema: api.SchemaVersion, DryRun: dryRun, Steps: []string{string(order) + " " + name}}
	if dryRun {
		return change, nil
	}
	f.orders = append(f.orders, fmt.Sprintf("%s %s %s", order, name, timeout))
	switch order {
	case api.OrderStart, api.OrderRestart:
		f.start(g)
	case api.OrderStop, api.OrderKill:
		reason := vps.ExitPowerOff
		if order == api.OrderKill || name == "stubborn" {
			reason = vps.ExitKilled
		}
		g.Status = vps.GuestStatus{State: vps.StateStopped, Observed: now, Exit: &vps.Exit{Reason: reason, At: now}}
	case api.OrderDelete:
		delete(f.guests, name)
	}
	return change, nil
}

func (f *fake) PutTenant(_ context.Context, name string, u api.UpdateTenant) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tenants[name]
	t.Name, t.Created = name, now
	set(&t.Note, u.Note)
	set(&t.NetworkPeer, u.NetworkPeer)
	f.tenants[name] = t
	return f.failure
}

func (f *fake) GuestNetwork(ctx context.Context, name string) (api.GuestNetwork, error) {
	g, err := f.Guest(ctx, name)
	if err != nil {
		return api.GuestNetwork{}, err
	}
	settings := vps.DefaultSettings()
	n := api.GuestNetwork{
		Schema: api.SchemaVersion, Name: name, Link: g.Link, MAC: g.MAC, Address: g.Spec.Address, Gateway: settings.Gateway(), IPv6: g.IPv6,
		Address6: vps.Address6(g.IPv6), Gateway6: vps.Gateway6, Bandwidth: g.Spec.Bandwidth, Limits: api.LimitsOf(g.Spec.Limits, settings.Limits),
		NetworkPeer: g.Spec.NetworkPeer, Peers: []string{}, SMTP: g.Spec.SMTP, Rules: g.Spec.Rules, Drops: f.drops,
	}
	if n.NetworkPeer {
		n.Peers = []string{"bob", "carol"}
	}
	return n, nil
}

func (f *fake) Audit(ctx context.Context, progress func(api.AuditResult)) (api.AuditReport, error) {
	for _, r := range f.audit.Results {
		if f.audited != nil {
			f.audited(ctx)
		}
		if ctx.Err() != nil {
			return api.AuditReport{}, vps.Wrap(vps.CodeTimeout, ctx.Err(), "interrupted")
		}
		if progress != nil {
			progress(r)
		}
	}
	return f.audit, f.failure
}

func (f *fake) DeleteTenant(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.tenants[name]; !ok {
		return vps.Errorf(vps.CodeNotFound, "tenant %q does not exist", name)
	}
	for _, g := range f.guests {
		if g.Spec.Tenant == name {
			return vps.Errorf(vps.CodeConflict, "%s still owns %s; delete it first", name, g.Spec.Name)
		}
	}
	delete(f.tenants, name)
	return nil
}

// Apply reads lines of the form "guest NAME".
func (f *fake) Apply(ctx context.Context, file io.Reader, o api.ApplyOptions) (api.Change, error) {
	f.applied = o
	change := api.Change{Schema: api.SchemaVersion, DryRun: o.DryRun, Edits: []string{}, Steps: []string{}}
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		name, ok := strings.CutPrefix(lines.Text(), "guest ")
		if !ok {
			return change, vps.Invalid("", "line %d: unknown key %q", n, lines.Text())
		}
		c, err := f.CreateGuest(ctx, api.CreateGuest{Name: name}, o.DryRun)
		if vps.ErrorCode(err) == vps.CodeConflict {
			continue
		}
		if err != nil {
			return change, err
		}
		change.Edits = append(change.Edits, c.Edits...)
		change.Steps = append(change.Steps, c.Steps...)
	}
	return change, f.failure
}

func (f *fake) Export(ctx context.Context, w io.Writer) error {
	guests, err := f.Guests(ctx)
	for _, g := range guests {
		_, _ = fmt.Fprintf(w, "guest %s\n", g.Spec.Name)
	}
	return err
}

func (f *fake) Console(_ context.Context, name string, o api.ConsoleOptions) (Stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = o
	if _, err := f.find(name); err != nil {
		return nil, err
	}
	return f.console, nil
}

func (f *fake) AccessLog(_ context.Context, name string, lines int, _ bool, w io.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(name); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "the last %d calls of %s\n", lines, name)
	return err
}

func (f *fake) Logs(_ context.Context, name string, lines int, _ bool, w io.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(name); err != nil {
		return err
	}
	all := strings.SplitAfter(f.log, "\n")
	if lines > 0 {
		all = all[max(0, len(all)-1-lines):]
	}
	_, err := io.WriteString(w, strings.Join(all, ""))
	return err
}

func (f *fake) Host(context.Context) (api.HostInfo, error) {
	s := vps.DefaultSettings()
	s.Price = f.price
	return api.HostInfo{
		Schema: api.SchemaVersion, Version: "1.2.3", Hostname: "vps1", PublicAddress: netip.MustParseAddr("203.0.113.5"), Uplinks: []string{"eth0"},
		Memory: 2 * vps.GiB, Promised: 512 * vps.MiB, DiskFree: 30 * vps.GiB, Guests: 2, Running: 1, Settings: s, Pending: []string{"start bob"},
	}, f.failure
}

func (f *fake) Events(_ context.Context, guest string, after int64, limit int) ([]vps.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onPoll != nil {
		f.onPoll()
	}
	var out []vps.Event
	for _, e := range f.events {
		if e.ID > after && (guest == "" || e.Guest == guest) {
			out = append(out, e)
		}
	}
	return out[max(0, len(out)-limit):], f.failure
}

// Domains are live for the owner, and wait for a proof for others.
func (f *fake) Domains(ctx context.Context, guest string) ([]api.GuestDomain, error) {
	guests, err := f.Guests(ctx)
	if err != nil {
		return nil, err
	}
	if guest != "" {
		g, err := f.Guest(ctx, guest)
		if err != nil {
			return nil, err
		}
		guests = []api.Guest{g}
	}
	all := []api.GuestDomain{}
	for _, g := range guests {
		for _, d := range g.Spec.Domains {
			v := api.GuestDomain{Guest: g.Spec.Name, Tenant: g.Spec.Tenant, Domain: d, State: vps.DomainLive}
			switch {
			case d.NeedsProof(g.Spec.Tenant):
				v.State, v.Message = vps.DomainPending, "make the TXT record _sublet."+d.Name
			case g.Status.State != vps.StateRunning:
				v.State, v.Message = vps.DomainStopped, "its guest does not run"
			}
			if d.Terminate {
				v.Certificate = &vps.Certificate{Name: d.Name, State: vps.CertificateValid, Issuer: "R11", Expires: time.Date(2027, 2, 28, 12, 0, 0, 0, time.UTC)}
				switch d.Name {
				case "failing.example.org":
					*v.Certificate = vps.Certificate{Name: d.Name, State: vps.CertificateFailed, Error: "the name does not lead here"}
				case "aging.example.org":
					v.Certificate.Error = "the authority did not answer"
				case "fresh.example.org":
					*v.Certificate = vps.Certificate{Name: d.Name, State: vps.CertificateGetting}
				}
				v.Message = v.Certificate.Trouble()
			}
			all = append(all, v)
		}
	}
	return all, nil
}

// ExportDomains gives HAProxy several files in a folder.
func (f *fake) ExportDomains(_ context.Context, router, dir string) ([]api.RouterFile, error) {
	files := []api.RouterFile{{Name: router + ".conf", Text: "# of " + router + " in " + dir + "\n"}}
	if dir != "" && router == api.RouterHAProxy {
		files = append(files, api.RouterFile{Name: "../names.map", Text: "a.example alice\n"})
	}
	return files, f.failure
}

func (f *fake) Doctor(context.Context) ([]api.Finding, error) { return f.finds, f.failure }

func (f *fake) Version(context.Context) (api.VersionInfo, error) {
	return api.VersionInfo{Schema: api.SchemaVersion, Version: "1.2.3", API: "v1"}, f.failure
}

func (f *fake) DiskUsage(_ context.Context, guest string) ([]vps.DiskUsage, error) {
	if f.failure != nil {
		return nil, f.failure
	}
	if guest != "" {
		if _, err := f.find(guest); err != nil {
			return nil, err
		}
	}
	var out []vps.DiskUsage
	for _, u := range f.usage {
		if guest == "" || u.Guest == guest {
			out = append(out, u)
		}
	}
	return out, nil
}

func (f *fake) DiskForecast(_ context.Context, guest string) ([]vps.DiskForecast, error) {
	var out []vps.DiskForecast
	for _, x := range f.forecasts {
		if guest == "" || x.Guest == guest {
			out = append(out, x)
		}
	}
	return out, f.failure
}

func (f *fake) DiskHistory(context.Context, string, time.Time) ([]vps.DiskSample, error) {
	return f.samples, f.failure
}

// Files of the fake are those of one folder, which is its only guest's root.
func (f *fake) CopyOut(ctx context.Context, name string, o api.CopyOptions, w io.Writer) error {
	root, err := f.root(name)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	if err := root.Pack(ctx, w, o.Path, tree.As(o.Path)); err != nil {
		return vps.Errorf(vps.CodeNotFound, "%s", err)
	}
	return nil
}

func (f *fake) CopyIn(ctx context.Context, name string, o api.CopyOptions, archive io.Reader) error {
	root, err := f.root(name)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	if o.Unpack {
		_, err = root.UnpackAt(ctx, archive, o.Path, tree.Options{KeepOwner: true})
	} else {
		_, err = root.Receive(ctx, archive, o.Path, tree.Options{KeepOwner: true})
	}
	return err
}

func (f *fake) root(name string) (*tree.Root, error) {
	g, err := f.find(name)
	if err != nil {
		return nil, err
	}
	if g.Status.State == vps.StateRunning {
		return nil, vps.Errorf(vps.CodeConflict, "%s runs", name)
	}
	return tree.Open(f.filesDir)
}

func (f *fake) Check(_ context.Context, name string, o api.CheckOptions, w io.Writer) (api.CheckReport, error) {
	if _, err := f.find(name); err != nil {
		return api.CheckReport{}, err
	}
	_, _ = io.WriteString(w, "pass 1\n")
	verdict := "damaged"
	if o.Repair {
		verdict = "mended"
	}
	return api.CheckReport{Schema: api.SchemaVersion, Filesystem: "ext4", Verdict: verdict, OK: o.Repair}, nil
}

func (f *fake) Rescue(_ context.Context, name string, r api.RescueGuest, dryRun bool) (api.Change, error) {
	g, err := f.find(name)
	if err != nil {
		return api.Change{}, err
	}
	if !dryRun {
		f.orders = append(f.orders, fmt.Sprintf("rescue %s with %d keys for %s", name, len(r.Keys), r.For))
		g.Status.State, g.Spec.Power = vps.StateRescue, vps.PowerRunning
	}
	return api.Change{Schema: api.SchemaVersion, DryRun: dryRun, Steps: []string{"create-rescue " + name}}, nil
}

func (f *fake) EndRescue(_ context.Context, name string, dryRun bool) (api.Change, error) {
	g, err := f.find(name)
	if err != nil {
		return api.Change{}, err
	}
	if !dryRun {
		f.orders = append(f.orders, "end rescue "+name)
		g.Status.State, g.Spec.Power = vps.StateStopped, vps.PowerStopped
	}
	return api.Change{Schema: api.SchemaVersion, DryRun: dryRun}, nil
}

func (f *fake) Reinstall(_ context.Context, name, image string) (api.Operation, error) {
	if _, err := f.find(name); err != nil {
		return api.Operation{}, err
	}
	f.orders = append(f.orders, "reinstall "+name+" "+image)
	return api.Operation{ID: "op", Kind: "reinstall", Target: name, Done: true}, nil
}

func (f *fake) PageLinks(context.Context) ([]vps.PageLink, error) { return f.links, f.failure }

func (f *fake) CreatePageLink(_ context.Context, c api.CreatePageLink) (api.CreatedPageLink, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.tenants[c.Tenant]; !ok && !c.All {
		return api.CreatedPageLink{}, vps.Errorf(vps.CodeNotFound, "tenant %q does not exist", c.Tenant)
	}
	l := vps.PageLink{ID: int64(len(f.links) + 1), Tenant: c.Tenant, Note: c.Note, Created: now}
	f.links = append(f.links, l)
	return api.CreatedPageLink{Schema: api.SchemaVersion, PageLink: l, Address: fmt.Sprintf("https://203.0.113.5:8444/t/key%d", l.ID)}, f.failure
}

func (f *fake) RevokePageLink(_ context.Context, id int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.links)
	f.links = slices.DeleteFunc(f.links, func(l vps.PageLink) bool { return l.ID == id })
	if len(f.links) == before {
		return vps.Errorf(vps.CodeNotFound, "there is no link %d", id)
	}
	return f.failure
}
