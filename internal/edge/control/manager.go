//go:build linux

package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// Options say how a Manager keeps the edge. Dir, Command, LogDir and CertDir
// must be set.
type Options struct {
	// Dir is RUN/edge. It is made, for root only.
	Dir string
	// Command is the argv that leads to Main, its first an absolute path.
	Command []string
	// SystemdRun is the path of systemd-run, where processes become units of their own.
	// Empty means a plain child process in a session of its own.
	SystemdRun string
	// Build is this daemon's: a process of another one is replaced.
	Build string
	// LogDir and CertDir are the process's own folders. They are made.
	LogDir, CertDir string
	// Memory bounds the process; 0 does not.
	Memory vps.Bytes
	// Log hears of everything; nil discards.
	Log *slog.Logger `json:"-"`
	// Event tells people what happened; nil tells nobody.
	Event func(message string) `json:"-"`
	// Wake is asked to start a guest that somebody calls. It must not block.
	Wake func(guestID string) `json:"-"`
	// look is how often what cannot be heard of is looked at; 0 means lookEvery.
	look time.Duration
	// step is called at each step of a replacement; tests kill somebody there.
	step func(name string)
}

// Wish is what the edge is to do, and under which user.
type Wish struct {
	Config edge.Config
	UID    uint32
}

// Manager keeps one edge's process: it finds the one that runs, starts it when
// there is none, replaces it when it is of another build, and tells it what to
// do. All of it may be killed at any time, and the next Manager goes on.
//
// Set, State and Stats may be called from any goroutine; Run once.
type Manager struct {
	o    Options
	log  *slog.Logger
	poke chan struct{}

	mu    sync.Mutex
	wish  *wish // nil until Set was called
	state State
	edges []*keptEdge // changed by Run only
	// past is what processes counted that have ended, for what is still there.
	past edge.Stats

	// What follows is Run's own.
	sockets map[edge.Port]handle
	// closed are the ports that cannot be opened, and why.
	closed    map[edge.Port]string
	launching chan launched // nil when nothing is being started
	// flows are those of QUIC that a process left and none has taken yet.
	flows json.RawMessage
	// tries counts processes that did not last, and rest is when the next may be
	// started.
	tries int
	rest  time.Time
	fault string
}

// wish is a Wish as it goes out.
type wish struct {
	Wish
	text json.RawMessage
	made time.Time
}

// keptEdge is a process that runs.
type keptEdge struct {
	*client
	hello Hello
	// config is the one that it has from here, and listens are the sockets; failed
	// is one that it does not take, and why.
	config, failed *wish
	why            string
	listens        map[edge.Port]bool
	// until is when it has to have ended; zero while it serves.
	until time.Time
	// heard is how much of its messages is in the log.
	heard int64
}

type launched struct {
	client *client
	hello  *Hello
	err    error
}

// State is how the edge is.
type State struct {
	// Wanted tells that some port is to be served; Ports are those that are, and
	// Closed says why others are not, by port.
	Wanted bool
	Ports  []edge.Port
	Closed map[edge.Port]string
	// PID is the process that serves, 0 for none, and Started since when. Draining
	// counts those before it that still have connections.
	PID      int
	Started  time.Time
	Draining int
	// Build is that of the process.
	Build string
	// Fault says why what is wanted is not so; empty when it is.
	Fault string
	// Restarts counts processes that ended without having been asked to, and
	// Handovers those that were replaced, since this Manager was made.
	Restarts, Handovers uint64
	// Configured is when the configuration that is in force was made.
	Configured time.Time
}

// New makes a Manager, which does nothing before Run.
func New(o Options) *Manager {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Event == nil {
		o.Event = func(string) {}
	}
	if o.step == nil {
		o.step = func(string) {}
	}
	if o.look == 0 {
		o.look = lookEvery
	}
	return &Manager{
		o: o, log: o.Log, poke: make(chan struct{}, 1),
		sockets: map[edge.Port]handle{}, closed: map[edge.Port]string{},
	}
}

// Set says what the edge is to do from now on. It does not wait for that.
func (m *Manager) Set(w Wish) error {
	text, err := json.Marshal(w.Config)
	if err != nil {
		return fmt.Errorf("encode what the edge is to do: %w", err)
	}
	m.mu.Lock()
	same := m.wish != nil && m.wish.UID == w.UID && bytes.Equal(m.wish.text, text)
	if !same {
		m.wish = &wish{w, text, time.Now()}
		m.past = m.past.Ended(keeps(&w.Config))
	}
	m.mu.Unlock()
	if !same {
		m.again()
	}
	return nil
}

// keeps tells whether a Config still has a guest, with the name "", or a domain of
// it.
func keeps(c *edge.Config) func(guestID, name string, listen uint16) bool {
	type key struct {
		guest, name string
		listen      uint16
	}
	all := map[key]bool{}
	for i := range c.Guests {
		g := &c.Guests[i]
		all[key{guest: g.ID}] = true
		for j := range g.Domains {
			all[key{g.ID, g.Domains[j].Name, g.Domains[j].Listen}] = true
		}
	}
	return func(guestID, name string, listen uint16) bool { return all[key{guestID, name, listen}] }
}

// again asks for a turn. It never blocks.
func (m *Manager) again() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// State returns how the edge is.
func (m *Manager) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.Ports, s.Closed = slices.Clone(s.Ports), maps.Clone(s.Closed)
	return s
}

// Stats are the counters of all processes that run, and of those that have run
// since this Manager was made, as far as that is known: what one counted in the
// last seconds before it was killed is lost. One that does not answer before ctx
// ends counts with what it said last.
func (m *Manager) Stats(ctx context.Context) edge.Stats {
	m.mu.Lock()
	edges := slices.Clone(m.edges)
	m.mu.Unlock()
	for _, e := range edges {
		if err := e.stats(ctx); err != nil {
			m.log.DebugContext(ctx, "an edge does not tell what it counted", "process", e.pid, "error", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum edge.Stats
	if m.wish == nil {
		return sum
	}
	sum.Add(&m.past)
	keep := keeps(&m.wish.Config)
	for _, e := range m.edges {
		last, _ := e.counters()
		last = last.Of(keep)
		sum.Add(&last)
	}
	return sum
}

// How often what cannot be heard of is looked at: whether the process still
// answers, and whether a port has become free.
const lookEvery = 10 * time.Second

// Run keeps the edge until ctx ends. The process runs on then.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.prepare(); err != nil {
		return err
	}
	defer m.leave()
	if err := m.find(ctx); err != nil {
		return err
	}
	look := time.NewTicker(m.o.look)
	defer look.Stop()
	for {
		next := m.turn(ctx)
		rest := time.NewTimer(next)
		select {
		case <-ctx.Done():
			rest.Stop()
			return nil
		case <-m.poke:
		case l := <-m.launching:
			m.launching = nil
			m.started(ctx, l)
		case <-rest.C:
		case <-look.C:
			m.look(ctx)
		}
		rest.Stop()
	}
}

// prepare makes the folder.
func (m *Manager) prepare() error {
	const ownOnly = 0o700
	if err := os.MkdirAll(m.o.Dir, ownOnly); err != nil {
		return vps.Wrap(vps.CodeDenied, err, "the folder %s for the edge cannot be made; run the daemon as root", m.o.Dir)
	}
	return os.Chmod(m.o.Dir, ownOnly)
}

// leave lets go of everything; what runs, runs on.
func (m *Manager) leave() {
	if m.launching != nil {
		if l := <-m.launching; l.client != nil {
			_ = l.client.conn.Close() // the next daemon finds it
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.edges {
		_ = e.conn.Close()
	}
	for _, s := range m.sockets {
		s.close()
	}
}

// find connects to all processes that run.
func (m *Manager) find(ctx context.Context) error {
	all, err := numbers(m.o.Dir)
	if err != nil {
		return err
	}
	for _, n := range all {
		e, err := m.meet(ctx, n)
		if err != nil {
			m.log.InfoContext(ctx, "an edge has ended", "number", n, "error", err)
			forget(m.o.Dir, n)
			continue
		}
		m.add(ctx, e)
	}
	return nil
}

func (m *Manager) meet(ctx context.Context, number int) (*keptEdge, error) {
	o := Order{Dir: m.o.Dir, Number: number}
	c, err := dial(ctx, number, o.path(socketExt), m.o.Wake)
	if err != nil {
		return nil, err
	}
	h, err := c.hello(ctx)
	if err != nil {
		return nil, errors.Join(err, c.kill())
	}
	e := &keptEdge{client: c, hello: *h, listens: map[edge.Port]bool{}}
	if info, err := os.Stat(o.path(messagesExt)); err == nil {
		e.heard = info.Size() // the daemon before has told it
	}
	for _, port := range h.Ports {
		e.listens[port] = true
	}
	return e, nil
}

// add takes a process in, and has a turn when it ends.
func (m *Manager) add(ctx context.Context, e *keptEdge) {
	if e.hello.Draining {
		e.until = time.Now().Add(m.drainTime())
	}
	m.mu.Lock()
	m.edges = append(m.edges, e)
	slices.SortFunc(m.edges, func(a, b *keptEdge) int { return cmp.Compare(a.number, b.number) })
	m.mu.Unlock()
	go func() {
		select {
		case <-e.ended:
			m.again()
		case <-ctx.Done():
		}
	}()
}

// look asks each process whether it is still there, and tries once more what
// could not be done.
func (m *Manager) look(ctx context.Context) {
	clear(m.closed)
	for _, e := range m.edges {
		m.repeat(ctx, e)
		if err := e.stats(ctx); errors.Is(err, errSilent) {
			m.end(ctx, e, err)
		}
	}
}

// repeat puts into the log what a process has said since.
func (m *Manager) repeat(ctx context.Context, e *keptEdge) {
	text, at := heard(&Order{Dir: m.o.Dir, Number: e.number}, e.heard)
	e.heard = at
	for line := range strings.Lines(text) {
		if line = printable(line); line != "" {
			m.log.Log(ctx, levelOf(line), "the edge says", "process", e.pid, "line", line)
		}
	}
}

// levelOf is the level of a line as slog.TextHandler writes it, and Warn of any
// other, such as a panic's. The process may be in strangers' hands: no level hides
// what it says.
func levelOf(line string) slog.Level {
	at, rest, _ := strings.Cut(line, " ")
	level, _, _ := strings.Cut(rest, " ")
	if strings.HasPrefix(at, slog.TimeKey+"=") {
		switch level {
		case slog.LevelKey + "=INFO":
			return slog.LevelInfo
		case slog.LevelKey + "=ERROR":
			return slog.LevelError
		}
	}
	return slog.LevelWarn
}

// end ends a process that is of no use any more.
func (m *Manager) end(ctx context.Context, e *keptEdge, why error) {
	m.log.WarnContext(ctx, "killing an edge", "process", e.pid, "error", why)
	if err := e.kill(); err != nil {
		m.log.ErrorContext(ctx, "an edge cannot be killed", "process", e.pid, "error", err)
	}
}

// drainTime is how long open connections may go on in a process that was
// replaced.
func (m *Manager) drainTime() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish == nil {
		return time.Duration(vps.DefaultEdgeSettings().DrainTimeout)
	}
	return time.Duration(m.wish.Config.Settings.DrainTimeout)
}
