package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sublet/internal/api"
	"sublet/internal/edge"
	"sublet/internal/edge/control"
	"sublet/internal/edge/origin"
	"sublet/internal/edge/terminate"
	"sublet/internal/keeper"
	"sublet/internal/reconcile"
	"sublet/internal/store"
	"sublet/internal/vps"
)

// edgeVerb is the hidden verb that the edge's process is started by.
const edgeVerb = "edge"

// edgeServer is what the edge's process runs.
type edgeServer struct {
	*terminate.Server
	logs *edge.FileLogs
}

// newEdgeServer makes it, in that process.
func newEdgeServer(e control.Environment, log *slog.Logger) (control.Server, error) {
	logs := edge.OpenLogs(e.LogDir, log)
	server, err := terminate.NewServer(
		edge.Options{Log: log, Origin: origin.Dialer{}, Logs: logs, Wake: e.Wake},
		terminate.Options{Dir: e.CertDir, Log: log},
	)
	if err != nil {
		return nil, err
	}
	return edgeServer{server, logs}, nil
}

func (s edgeServer) Drain(ctx context.Context) error {
	defer s.logs.Close()
	return s.Server.Drain(ctx)
}

// edgeDir is the edge's folder in a run folder.
func edgeDir(c *Config) string { return filepath.Join(c.RunDir, "edge") }

// edgeLogs is where the edge writes who called.
func (p *parts) edgeLogs() string { return p.config.statePath(filepath.Join("edge", "logs")) }

// edgeCerts is where the edge keeps certificates and their keys.
func (p *parts) edgeCerts() string { return p.config.statePath(filepath.Join("edge", "certificates")) }

// edgeKeeper has the edge do what is desired.
type edgeKeeper struct {
	*control.Manager
	// set tells the manager.
	set func(control.Wish) error
	// host is the desired state with what quotas have in force, and edits are
	// watched in the store.
	host  func(ctx context.Context) (vps.Host, error)
	edits func(ctx context.Context) (<-chan store.Change, error)
	// seen is what the loop observed. Each pass is something new, also one that an
	// address of some link set off (hostnet.Net.Watch), as by DHCP: addresses, the
	// host's own, are read anew then. proofs tells which names are live.
	seen      func() (reconcile.Snapshot, <-chan struct{})
	addresses func() ([]netip.Addr, error)
	proofs    interface {
		Live(host *vps.Host, tenant string, d *vps.Domain) bool
		Changed() <-chan struct{}
	}
	// start starts a guest as `sublet start` does.
	start func(ctx context.Context, guest string) error
	event func(guest, message string)
	log   *slog.Logger
	// wakes are guests, by ID, that somebody calls.
	wakes chan string

	// retry holds one when certificates are to be tried again.
	retry chan struct{}

	mu    sync.Mutex
	last  *edge.Config // as it was last told
	again time.Time    // edge.Config.Retry
}

// maxWakes bounds the guests that wait for being started.
const maxWakes = 256

// newEdge makes what keeps the edge. Nothing runs yet.
func (p *parts) newEdge() (*edgeKeeper, error) {
	c := &p.config
	build, err := control.Build(Version, c.Self)
	if err != nil {
		return nil, err
	}
	memory, err := memTotal()
	if err != nil {
		return nil, err
	}
	k := &edgeKeeper{
		host: restrained{p.state, p.quotas}.Host, edits: p.watchState, addresses: linkAddresses,
		seen: func() (reconcile.Snapshot, <-chan struct{}) { return p.loop.Snapshot() }, proofs: p.proofs, log: p.log,
		wakes: make(chan string, maxWakes), retry: make(chan struct{}, 1),
		start: func(ctx context.Context, guest string) error {
			_, err := backend{p}.Order(ctx, guest, api.OrderStart, 0, false)
			return err
		},
		event: func(guest, message string) { p.edgeEvent(guest, message) },
	}
	k.Manager = control.New(control.Options{
		Dir: edgeDir(c), Command: []string{c.Self, edgeVerb}, SystemdRun: keeper.SystemdRun(), Build: build, LogDir: p.edgeLogs(), CertDir: p.edgeCerts(), Memory: edgeMemory(memory),
		Log: p.log, Event: func(message string) { p.edgeEvent("", message) }, Wake: k.call,
	})
	k.set = k.Manager.Set
	return k, nil
}

// edgeMemory is what the edge may have of a host's memory.
func edgeMemory(host vps.Bytes) vps.Bytes {
	const part, least = 4, 256 * vps.MiB
	return max(host/part, least)
}

func (p *parts) edgeEvent(guest, message string) {
	ctx := context.WithoutCancel(p.lifetime)
	if _, err := p.db.AddEvent(ctx, vps.Event{Guest: guest, Kind: vps.EventEdge, Message: message, Time: time.Now()}); err != nil {
		p.log.ErrorContext(ctx, "cannot record an event", "kind", vps.EventEdge, "error", err)
	}
}

// watchState hears of each edit from now on.
func (p *parts) watchState(ctx context.Context) (<-chan store.Change, error) {
	_, now, err := p.db.List(ctx, "host/sequence")
	if err != nil {
		return nil, err
	}
	return p.db.Watch(ctx, "", now)
}

// run keeps the edge until ctx ends. It runs on then.
func (k *edgeKeeper) run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return k.Manager.Run(ctx) })
	work.Go(func() error { return k.feed(ctx) })
	work.Go(func() error { return k.wake(ctx) })
	return work.Wait()
}

// feedAgain is when what could not be read is tried again.
const feedAgain = time.Second

// feed tells the edge what to do, as soon as that is something else.
func (k *edgeKeeper) feed(ctx context.Context) error {
	var edits <-chan store.Change
	for {
		if edits == nil {
			var err error
			if edits, err = k.edits(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("watch the desired state: %w", err)
			}
		}
		seen, observed := k.seen()
		proved := k.proofs.Changed()
		var again <-chan time.Time
		// Before the first look at the host all guests would seem to be stopped.
		if !seen.At.IsZero() {
			if err := k.tell(ctx, &seen); err != nil && ctx.Err() == nil {
				k.log.WarnContext(ctx, "the edge goes on with what it knows", "error", err)
				again = time.After(feedAgain)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case change, ok := <-edits:
			if !ok || change.Err != nil {
				edits = nil // it was left behind; what is desired is read anew anyway
			}
		case <-observed:
		case <-proved:
		case <-again:
		case <-k.retry:
		}
	}
}

// tell makes the configuration of what is desired and seen now.
func (k *edgeKeeper) tell(ctx context.Context, seen *reconcile.Snapshot) error {
	host, err := k.host(ctx)
	if err != nil {
		return err
	}
	own, err := k.addresses()
	if err != nil {
		return fmt.Errorf("read the host's addresses: %w", err)
	}
	c := edgeConfig(&host, edgeWorld{running: func(id string) bool { return seen.Observed.Guests[id].Running() }, live: k.proofs.Live, own: own})
	if len(c.Terminated()) > 0 {
		c.ACME = terminate.Load(host.Settings.Edge.ACME)
	}
	k.mu.Lock()
	c.Retry = k.again
	k.last = &c
	k.mu.Unlock()
	return k.set(control.Wish{Config: c, UID: host.Settings.EdgeUID()})
}

// config is what the edge was last told; nil for nothing yet.
func (k *edgeKeeper) config() *edge.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// Ports implements edgeView.
func (k *edgeKeeper) Ports() (open []edge.Port, closed map[edge.Port]string) {
	s := k.State()
	return s.Ports, s.Closed
}

// Certificates implements edgeView.
func (k *edgeKeeper) Certificates(ctx context.Context) []vps.Certificate {
	return k.Stats(ctx).Certificates
}

// retryAfter is how long a certificate has to have failed before somebody's wish
// has it tried again: authorities count failures.
const retryAfter = time.Minute

// RetryCertificates implements edgeView.
func (k *edgeKeeper) RetryCertificates() {
	k.mu.Lock()
	k.again = time.Now().Add(-retryAfter).UTC().Round(0)
	k.mu.Unlock()
	select {
	case k.retry <- struct{}{}:
	default:
	}
}

// call is for a guest, by ID, that somebody calls. The edge may be in strangers'
// hands, so that nothing of it is believed.
func (k *edgeKeeper) call(id string) {
	select {
	case k.wakes <- id:
	default: // the edge asks again
	}
}

// wake starts guests that somebody calls.
func (k *edgeKeeper) wake(ctx context.Context) error {
	asked := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case id := <-k.wakes:
			seen, _ := k.seen()
			name, domain := k.sleeping(id, &seen)
			// What was asked for is not asked for twice, until it was looked at.
			if name == "" || !seen.Loaded.After(asked[id]) {
				continue
			}
			if err := k.start(ctx, name); err != nil {
				k.log.InfoContext(ctx, "a guest that somebody calls is not started", "guest", name, "error", err)
				continue
			}
			asked[id] = time.Now()
			k.event(name, fmt.Sprintf("somebody called %s, so that %s is started", domain, name))
		}
	}
}

// sleeping returns the name of a guest that a call starts, and by which of its
// domains; empty when it is not one, or not stopped.
func (k *edgeKeeper) sleeping(id string, seen *reconcile.Snapshot) (name, domain string) {
	c := k.config()
	if c == nil {
		return "", ""
	}
	at, there := slices.BinarySearchFunc(c.Guests, id, func(g edge.Guest, id string) int {
		switch {
		case g.ID < id:
			return -1
		case g.ID > id:
			return 1
		}
		return 0
	})
	if !there || seen.Observed.Guests[id].Running() {
		return "", ""
	}
	switch seen.Status[id].State {
	case vps.StateCreating, vps.StateStarting, vps.StateRunning, vps.StateRescue, vps.StateStopping, vps.StateDeleting:
		return "", "" // it comes by itself, or is about to go
	case vps.StateStopped, vps.StateCrashed, vps.StateFailed:
	}
	for _, d := range c.Guests[at].Domains {
		if d.Wake {
			return c.Guests[at].Name, d.String()
		}
	}
	return "", ""
}
