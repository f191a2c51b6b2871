package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	sysd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"sublet/internal/api"
	"sublet/internal/appliance"
	"sublet/internal/desired"
	"sublet/internal/disk"
	"sublet/internal/door"
	"sublet/internal/edge/control"
	"sublet/internal/flock"
	"sublet/internal/guest/uml"
	"sublet/internal/hostnet"
	"sublet/internal/image"
	"sublet/internal/keeper"
	"sublet/internal/kernel"
	"sublet/internal/meter"
	"sublet/internal/nft"
	"sublet/internal/notice"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// Version is what this build calls itself; the build sets it.
var Version = "dev" //nolint:gochecknoglobals // set by the linker

// parts are the rooms of one running daemon.
type parts struct {
	config   Config
	log      *slog.Logger
	hostBoot string
	// lifetime ends with the daemon; work that outlives a request uses it.
	lifetime context.Context //nolint:containedctx // the daemon's own, not a request's

	db         *sqlite.DB
	state      *desired.State
	volumes    *disk.Store
	images     *image.Store
	kernels    *kernel.Catalog
	hostnet    *hostnet.Net
	nft        *nft.Firewall
	driver     *uml.Driver
	appliances *appliance.Host
	rescues    rescues
	loop       *reconcile.Loop
	drops      meter.Drops
	notices    *notice.Sender
	proofs     *prover
	edge       *edgeKeeper
	edgeView   edgeView // nil without an edge
	sampled    sampled
	fill       meter.Fill
	auditing   sync.Mutex
	// building is held while a kernel is built, trying while one is booted for
	// a test.
	building, trying sync.Mutex
	facts            facts
	quotas           *enforcer
	traffic          *sampler
	operations       operations
	// synced tells whether the kernel holds the clock for right.
	synced func() bool
}

// Run is the daemon: it serves the API and reconciles until ctx ends. Guests
// outlive it.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unlock, err := prepare(c)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := build(ctx, c, log)
	if err != nil {
		return err
	}
	defer p.close()
	entrances, err := listen(ctx, c, log)
	if err != nil {
		return err
	}
	return p.serve(ctx, entrances)
}

// entrance is a listener of the API with what guards it.
type entrance struct {
	net.Listener
	gates []func(http.Handler) http.Handler
}

// listen opens the unix socket, and the door to the network when one is asked
// for.
func listen(ctx context.Context, c Config, log *slog.Logger) ([]entrance, error) {
	socket, err := api.Listen(ctx, c.Socket, c.Group)
	if err != nil {
		return nil, err
	}
	entrances := []entrance{{socket, []func(http.Handler) http.Handler{door.Limit}}}
	if c.Listen == "" {
		return entrances, nil
	}
	c.Door.Log = log
	d, err := door.Open(c.Door)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	network, err := d.Listen(ctx, c.Listen)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	log.InfoContext(ctx, "the API listens on the network", "address", network.Addr().String())
	return append(entrances, entrance{network, []func(http.Handler) http.Handler{d.Guard, door.Limit}}), nil
}

// prepare makes the folders and takes the lock that keeps a second daemon
// away from them.
func prepare(c Config) (unlock func(), err error) {
	// Guests' processes pass through to their own files, by name.
	const passable = 0o711
	for _, dir := range []string{c.StateDir, c.RunDir, filepath.Join(c.RunDir, "guests"), filepath.Join(c.RunDir, applianceDir), c.statePath("seeds")} {
		if err := os.MkdirAll(dir, passable); err != nil {
			return nil, vps.Wrap(vps.CodeDenied, err, "the folder %s cannot be made; run the daemon as root, or name other folders with --state-dir and --run-dir", dir)
		}
	}
	path := c.statePath("lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, vps.Wrap(vps.CodeDenied, err, "the lock %s cannot be opened; run the daemon as root", path)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(vps.Wrap(vps.CodeConflict, err, "another daemon already works in %s; stop it first, or name another folder with --state-dir", c.StateDir), file.Close())
	}
	return func() { _ = flock.Release(file) }, nil // nothing was written
}

// bootID tells this boot of the host from all others (proc_sys_kernel(5)).
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// build opens every room. Nothing on the host's network changes yet.
func build(ctx context.Context, c Config, log *slog.Logger) (*parts, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	p := &parts{config: c, log: log, hostBoot: boot, lifetime: ctx, synced: clockSynced}
	if p.db, err = sqlite.Open(ctx, c.statePath("state.db"), log); err != nil {
		return nil, err
	}
	p.volumes = disk.New(c.statePath("volumes"), log)
	p.images = image.New(c.statePath("images"), image.Options{CacheDir: c.PackageCache, Log: log, Disks: imageDisks{}, Appliance: imageAppliance{p}})
	var binaries []string
	if c.Kernel != "" {
		binaries = []string{c.Kernel}
	}
	p.kernels = kernel.New(c.statePath("kernels"), kernel.Options{Binaries: binaries, ModulesDir: c.Modules, InitPath: c.Init, Log: log})
	p.nft = nft.New(log, nft.Options{})
	p.hostnet = hostnet.New(log, hostnet.Options{Guard: p.nft.Guard})
	p.driver = newDriver(c, log)
	p.appliances = p.newAppliances()
	p.rescues = rescues{p, disk.New(c.statePath("rescue"), log)}
	p.facts = facts{p}
	p.state = desired.New(p.db, p.facts)
	found := &foundUplinks{trafficUplinks: p.hostnet, snapshot: func() (reconcile.Snapshot, <-chan struct{}) { return p.loop.Snapshot() }}
	p.quotas = &enforcer{state: p.state, db: p.db, kernel: p.nft, uplinks: found.Uplinks, log: log, now: time.Now, edited: make(chan struct{}, 1)}
	p.traffic = &sampler{kernel: p.nft, uplinks: found, db: p.db, boot: p.hostBoot, log: log}
	p.loop = p.newLoop()
	if p.notices, err = p.newNotices(); err != nil {
		return p, err
	}
	if p.proofs, err = p.openProofs(ctx); err != nil {
		return p, err
	}
	if p.edge, err = p.newEdge(); err != nil {
		return p, err
	}
	p.edgeView = p.edge
	p.quotas.loop = p.loop
	known, err := p.known(ctx)
	if err != nil {
		return p, err
	}
	return p, errors.Join(p.appliances.Sweep(ctx), p.images.Sweep(ctx), p.volumes.Sweep(ctx, known), p.sweepBuilds(), p.rescues.store.Sweep(ctx, func(string) bool { return true }))
}

// known tells which guests there are, by ID.
func (p *parts) known(ctx context.Context) (func(id string) bool, error) {
	host, err := p.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for i := range host.Guests {
		ids[host.Guests[i].ID] = true
	}
	return func(id string) bool { return ids[id] }, nil
}

func newDriver(c Config, log *slog.Logger) *uml.Driver {
	return driverIn(c, log, filepath.Join(c.RunDir, "guests"), "")
}

// driverIn makes a driver that knows what runs below root and nothing else. A
// prefix keeps its units apart from guests'; empty means theirs.
func driverIn(c Config, log *slog.Logger, root, unitPrefix string) *uml.Driver {
	launcher := keeper.NewLauncher([]string{c.Self, "keeper"})
	launcher.UnitPrefix = unitPrefix
	return uml.New(uml.Options{RunRoot: root, Launcher: launcher, Log: log})
}

func (p *parts) newLoop() *reconcile.Loop {
	return reconcile.New(reconcile.Options{
		Desired: accounted{restrained{p.state, p.quotas}, p.traffic}, Volumes: p.volumes, Rescues: p.rescues, Images: p.images, Seeds: seeds{p}, Machines: machines{p},
		Network: p.hostnet, Firewall: firewall{p.nft, p.hostnet}, Driver: p.driver, Replug: replugger{p}, Limits: p.driver, Events: p.db,
		Log: p.log, HostBoot: p.hostBoot, BeforeStep: p.config.BeforeStep, AfterStep: p.config.AfterStep,
		Ready: func(ctx context.Context, g vps.Guest) { _ = sshAnswers(ctx, g.Spec.Address) },
	})
}

// serve runs everything until ctx ends or one part of it fails.
func (p *parts) serve(ctx context.Context, entrances []entrance) error {
	// Before the first guest is started by this daemon.
	p.startQuotas(ctx)
	b := backend{p}
	server := api.NewServer(api.Backend{Billing: b, Bills: b, Desired: b, Observed: b, Consoles: b, Images: b, ImageFiles: b, Kernels: b, Auditor: b, Usages: b, Disks: b, Packs: b, Files: b, Rescuer: b, Quotas: b, Traffics: b, Notices: b, PageLinks: b, Domains: b, DomainChecks: b}, api.ServerOptions{
		Log: p.log, Version: Version, Metrics: meter.Handler(Version, p.reading),
	})
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return p.loop.Run(ctx) })
	work.Go(func() error { return p.watchDrops(ctx) })
	work.Go(func() error { return p.watchTraffic(ctx) })
	work.Go(func() error { return p.watchRescues(ctx) })
	work.Go(func() error { return p.quotas.watch(ctx, p.sampleTraffic) })
	work.Go(func() error { return p.watchUsage(ctx) })
	work.Go(func() error { return p.notices.Run(ctx) })
	work.Go(func() error { return p.watchBills(ctx) })
	work.Go(func() error { return p.watchProofs(ctx) })
	work.Go(func() error { return p.edge.run(ctx) })
	work.Go(func() error {
		// What an audit left whose daemon was killed.
		if err := p.clearAudit(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "guests of an audit could not be removed", "error", err)
		}
		return nil
	})
	for _, e := range entrances {
		work.Go(func() error { return server.Serve(ctx, e.Listener, e.gates...) })
	}
	work.Go(func() error {
		// The first start makes the disks that go with a kernel; later ones
		// find them. Without a kernel the daemon still serves, and says so.
		if _, err := p.kernels.Default(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "no guest can boot yet", "error", err)
		}
		if err := p.pruneKernels(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "kernels that nobody has could not be removed", "error", err)
		}
		return nil
	})
	work.Go(func() error { return p.servePages(ctx) })
	work.Go(func() error { return p.announce(ctx) })
	err := work.Wait()
	p.operations.work.Wait()
	p.sampleLast(ctx)
	return err
}

// announce tells systemd when the first pass is through, and when the daemon
// stops (sd_notify(3)). Elsewhere it only logs.
func (p *parts) announce(ctx context.Context) error {
	for {
		s, changed := p.loop.Snapshot()
		if !s.At.IsZero() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
	p.log.InfoContext(ctx, "ready", "socket", p.config.Socket, "version", Version)
	if _, err := sysd.SdNotify(false, sysd.SdNotifyReady); err != nil {
		p.log.WarnContext(ctx, "cannot notify the service manager", "error", err)
	}
	<-ctx.Done()
	_, err := sysd.SdNotify(false, sysd.SdNotifyStopping)
	return err
}

func (p *parts) close() {
	if err := p.db.Close(); err != nil {
		p.log.Error("cannot close the state", "error", err)
	}
}

// CleanUp takes away what a daemon leaves on the host besides its folders:
// the edge, links, rules and empty control groups. It refuses while a daemon works in these folders. Absent is
// success.
func CleanUp(ctx context.Context, c Config, log *slog.Logger) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	unlock, err := prepare(c)
	if err != nil {
		return err
	}
	defer unlock()
	instances, err := newDriver(c, log).List(ctx)
	if err != nil {
		return err
	}
	for _, i := range instances {
		if i.Exit == nil {
			return vps.Errorf(vps.CodeConflict, "the guest %s still runs; stop all guests first", i.Name)
		}
	}
	return errors.Join(
		control.CleanUp(ctx, edgeDir(&c)),
		hostnet.New(log, hostnet.Options{}).CleanUp(ctx),
		nft.New(log, nft.Options{}).CleanUp(ctx),
		keeper.CleanUp(),
	)
}
