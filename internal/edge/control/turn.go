//go:build linux

package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// lastTurn is how long Run waits when nothing is due.
const lastTurn = time.Hour

// drainMargin is what a process may take beyond its time before it is killed.
const drainMargin = 10 * time.Second

// turn brings about what is wanted as far as that goes now, and returns when
// there is more to do without anybody asking. It may be repeated at any time.
func (m *Manager) turn(ctx context.Context) time.Duration {
	m.reap(ctx)
	m.mu.Lock()
	w := m.wish
	m.mu.Unlock()
	if w == nil || ctx.Err() != nil {
		return lastTurn
	}
	m.fault = ""
	// Only what serves is replaced; sockets are taken from any of them.
	m.take(ctx, w)
	m.open(ctx, w)
	current := m.current(w)
	if current != nil && m.fits(current, w) {
		// First the newest: what is new there must be there before the older ones
		// are let go.
		if m.instruct(ctx, current, w) {
			m.replaced(ctx, current)
			m.instruct(ctx, current, w) // QUIC, which is not served by two
		}
	}
	for _, e := range m.edges {
		if e != current && e.hello.Build == m.o.Build && e.hello.Configured {
			m.instruct(ctx, e, w) // none has stale words while it drains
		}
	}
	next := lastTurn
	switch {
	case len(w.Config.Ports) == 0:
		m.replaced(ctx, nil)
	case current == nil || !m.fits(current, w):
		next = m.launch(ctx, w)
	}
	m.publish(w)
	return min(next, m.overdue(ctx))
}

// fits tells whether a process is what this daemon would start.
func (m *Manager) fits(e *keptEdge, w *wish) bool {
	return e.hello.Build == m.o.Build && e.hello.UID == w.UID
}

// current is the process that is to serve: the newest that fits, or the newest
// of all; nil for none.
func (m *Manager) current(w *wish) *keptEdge {
	var found *keptEdge
	for _, e := range m.edges { // the newest is the last
		if e.until.IsZero() && (found == nil || m.fits(e, w) || !m.fits(found, w)) {
			found = e
		}
	}
	return found
}

// reap lets go of processes that have ended.
func (m *Manager) reap(ctx context.Context) {
	m.mu.Lock()
	before := slices.Clone(m.edges)
	m.mu.Unlock()
	for _, e := range before {
		select {
		case <-e.ended:
		default:
			continue
		}
		m.repeat(ctx, e)
		last, gone := e.counters()
		m.mu.Lock()
		m.edges = slices.DeleteFunc(m.edges, func(o *keptEdge) bool { return o == e })
		if m.wish != nil {
			last = last.Ended(keeps(&m.wish.Config))
		}
		m.past.Add(&last)
		m.mu.Unlock()
		forget(m.o.Dir, e.number)
		if gone || !e.until.IsZero() {
			m.log.InfoContext(ctx, "an edge has ended", "process", e.pid)
			continue
		}
		m.log.WarnContext(ctx, "the edge ended unexpectedly", "process", e.pid)
		m.o.Event(fmt.Sprintf("the edge (process %d) ended unexpectedly; another one is started, and callers wait for it", e.pid))
		m.mu.Lock()
		m.state.Restarts++
		m.mu.Unlock()
		m.stumble(time.Since(e.hello.Started))
	}
}

// The pause before a process is started again that did not last: none at first,
// then doubled up to restMost.
const (
	restFirst = 100 * time.Millisecond
	restMost  = 30 * time.Second
	lasting   = time.Minute
)

// stumble puts off the next start after one that lasted for some time.
func (m *Manager) stumble(lasted time.Duration) {
	if lasted > lasting {
		m.tries = 0
	}
	pause := time.Duration(0)
	if m.tries > 0 {
		pause = min(restFirst<<min(m.tries-1, 10), restMost)
	}
	m.tries++
	m.rest = time.Now().Add(pause)
}

// take gets hold of the sockets that processes have and this one has not.
func (m *Manager) take(ctx context.Context, w *wish) {
	for _, e := range m.edges {
		for _, port := range e.hello.Ports {
			if _, have := m.sockets[port]; have || !slices.Contains(w.Config.Ports, port) || !e.listens[port] {
				continue
			}
			_, socket, err := e.ask(ctx, &message{Op: opTake, Port: &port}, none)
			if err == nil {
				err = socket.check(port)
			}
			if err != nil {
				socket.close()
				m.log.WarnContext(ctx, "the edge does not give a socket", "process", e.pid, "port", PortName(port), "error", err)
				continue
			}
			m.sockets[port] = socket
		}
	}
}

// open opens the ports that are wanted and closes the others. Those that cannot
// be opened are tried again when look has forgotten them.
func (m *Manager) open(ctx context.Context, w *wish) {
	for port, socket := range m.sockets {
		if !slices.Contains(w.Config.Ports, port) {
			socket.close()
			delete(m.sockets, port)
		}
	}
	maps.DeleteFunc(m.closed, func(port edge.Port, _ string) bool { return !slices.Contains(w.Config.Ports, port) })
	for _, port := range w.Config.Ports {
		if _, have := m.sockets[port]; have || m.closed[port] != "" {
			continue
		}
		socket, err := open(ctx, port)
		if err != nil {
			m.closed[port] = vps.ErrorMessage(err)
			m.mu.Lock()
			news := m.state.Closed[port] != m.closed[port]
			m.mu.Unlock()
			if news { // it is tried often
				m.log.WarnContext(ctx, "a port cannot be opened", "port", PortName(port), "error", err)
				m.o.Event(m.closed[port])
			}
			continue
		}
		m.sockets[port] = socket
	}
}

// instruct gives a process the configuration and, as long as it serves, the
// sockets that it lacks. It tells whether the process has all of it.
func (m *Manager) instruct(ctx context.Context, e *keptEdge, w *wish) bool {
	if e.failed == w {
		m.fault = e.why
		return false
	}
	if e.config != w {
		m.o.step("config")
		if _, _, err := e.ask(ctx, &message{Op: opConfig, Config: w.text}, none); err != nil {
			m.refused(ctx, e, w, err)
			return false
		}
		e.config, e.hello.Configured = w, true
		maps.DeleteFunc(e.listens, func(port edge.Port, _ bool) bool { return !slices.Contains(w.Config.Ports, port) })
	}
	if !e.until.IsZero() {
		return true
	}
	for _, port := range w.Config.Ports {
		socket, have := m.sockets[port]
		if !have || e.listens[port] || port.Kind == edge.KindQUIC && m.served(port) {
			continue
		}
		listen := &message{Op: opListen, Port: &port}
		if port.Kind == edge.KindQUIC {
			listen.Flows, m.flows = m.flows, nil
		}
		m.o.step("listen")
		if _, _, err := e.ask(ctx, listen, socket); err != nil {
			m.refused(ctx, e, w, err)
			return false
		}
		e.listens[port] = true
	}
	return true
}

// served tells whether a process serves a port that was not told to end.
func (m *Manager) served(port edge.Port) bool {
	return slices.ContainsFunc(m.edges, func(e *keptEdge) bool {
		select {
		case <-e.ended:
			return false
		default:
			return e.until.IsZero() && e.listens[port]
		}
	})
}

// refused is for a process that does not do what it is asked to.
func (m *Manager) refused(ctx context.Context, e *keptEdge, w *wish, err error) {
	select {
	case <-e.ended:
		m.again()
		return
	default:
	}
	if ctx.Err() != nil {
		return
	}
	if vps.ErrorCode(err) != vps.CodeConflict {
		m.end(ctx, e, err) // it is stuck
		m.again()
		return
	}
	// It goes on with what it had.
	e.failed = w
	e.why = "the edge does not take what it is to do: " + vps.ErrorMessage(err)
	m.fault = e.why
	m.log.ErrorContext(ctx, "the edge refuses its configuration", "process", e.pid, "error", err)
	m.o.Event(m.fault)
}

// replaced has all processes that serve but one take no more connections.
func (m *Manager) replaced(ctx context.Context, by *keptEdge) {
	within := m.drainTime()
	for _, e := range m.edges {
		if e == by || !e.until.IsZero() {
			continue
		}
		m.o.step("drain")
		answer, _, err := e.ask(ctx, &message{Op: opDrain, Within: vps.Duration(within)}, none)
		if err != nil {
			m.refused(ctx, e, nil, err)
			continue
		}
		if by != nil && len(answer.Flows) > 0 {
			m.flows = answer.Flows
		}
		e.until = time.Now().Add(within)
		m.o.step("drained")
		if by != nil {
			m.mu.Lock()
			m.state.Handovers++
			m.mu.Unlock()
			m.log.InfoContext(ctx, "an edge took over", "process", by.pid, "from", e.pid)
			m.o.Event(fmt.Sprintf("the edge was replaced (process %d by %d); connections that were open go on for %s at most", e.pid, by.pid, vps.Duration(within)))
		}
	}
}

// overdue kills processes that should have ended, and returns when the next
// should have.
func (m *Manager) overdue(ctx context.Context) time.Duration {
	next := lastTurn
	for _, e := range m.edges {
		if e.until.IsZero() {
			continue
		}
		left := time.Until(e.until.Add(drainMargin))
		if left <= 0 {
			m.end(ctx, e, fmt.Errorf("it still has connections %s after its time", drainMargin))
			m.again()
			continue
		}
		next = min(next, left)
	}
	return next
}

// launch starts a process unless one is being started, or it is too early, and
// returns when it is not.
func (m *Manager) launch(ctx context.Context, w *wish) time.Duration {
	if m.launching != nil {
		return lastTurn
	}
	if wait := time.Until(m.rest); wait > 0 {
		return wait
	}
	order, err := m.order(w)
	if err != nil {
		m.launchFailed(ctx, err)
		return time.Until(m.rest)
	}
	m.o.step("launch")
	m.launching = make(chan launched, 1)
	go func(to chan<- launched) {
		c, h, err := launch(ctx, order, m.o.SystemdRun, m.o.Wake)
		to <- launched{c, h, err}
	}(m.launching)
	return lastTurn
}

// order says what to start.
func (m *Manager) order(w *wish) (*Order, error) {
	all, err := numbers(m.o.Dir)
	if err != nil {
		return nil, err
	}
	if err := ownFolders(w.UID, m.o.LogDir, m.o.CertDir); err != nil {
		return nil, err
	}
	return &Order{
		Dir: m.o.Dir, Number: slices.Max(append(all, 0)) + 1, Build: m.o.Build, Command: m.o.Command, UID: w.UID,
		LogDir: m.o.LogDir, CertDir: m.o.CertDir, Memory: m.o.Memory,
	}, nil
}

// started takes in what launch came to.
func (m *Manager) started(ctx context.Context, l launched) {
	if l.err != nil {
		m.launchFailed(ctx, l.err)
		return
	}
	m.log.InfoContext(ctx, "edge started", "process", l.client.pid, "number", l.client.number)
	m.add(ctx, &keptEdge{client: l.client, hello: *l.hello, listens: map[edge.Port]bool{}})
	m.o.step("launched")
}

func (m *Manager) launchFailed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	m.stumble(0)
	fault := vps.ErrorMessage(err)
	m.log.ErrorContext(ctx, "the edge cannot be started", "error", err)
	m.mu.Lock()
	news := m.state.Fault != fault
	m.state.Fault = fault
	m.mu.Unlock()
	if news {
		m.o.Event("the edge cannot be started, so that nobody reaches guests' domains: " + fault)
	}
}

// publish tells others how it is.
func (m *Manager) publish(w *wish) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{Wanted: len(w.Config.Ports) > 0, Restarts: m.state.Restarts, Handovers: m.state.Handovers, Closed: maps.Clone(m.closed), Fault: m.fault}
	for _, e := range m.edges {
		if !e.until.IsZero() {
			s.Draining++
			continue
		}
		s.PID, s.Started, s.Build = e.pid, e.hello.Started, e.hello.Build
		s.Ports = slices.SortedFunc(maps.Keys(e.listens), comparePorts)
		if e.config != nil {
			s.Configured = e.config.made
		}
	}
	if s.PID == 0 && s.Wanted && s.Fault == "" {
		s.Fault = m.state.Fault // why it could not be started
	}
	m.state = s
}

// Summary is the state in one sentence.
func (s *State) Summary() string {
	var ports []string
	for _, p := range s.Ports {
		ports = append(ports, PortName(p))
	}
	switch {
	case !s.Wanted:
		return "no guest has a domain, so the edge does not run"
	case s.PID == 0:
		return "the edge does not run"
	}
	return fmt.Sprintf("the edge (process %d) serves %s", s.PID, strings.Join(ports, ", "))
}
