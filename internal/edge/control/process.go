//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"sublet/internal/edge"
	"sublet/internal/edge/quic"
	"sublet/internal/vps"
)

// process is the edge's process, as those see it who control it.
type process struct {
	order  Order
	log    *slog.Logger
	server Server
	// fault ends the process, with why.
	fault chan error
	// over is closed when nothing is left to do.
	over chan struct{}

	mu         sync.Mutex
	started    time.Time
	configured bool
	ports      map[edge.Port]*socket
	wires      map[*wire]bool
	// cut ends the connections that are left; nil while there is no end in sight.
	cut context.CancelFunc
	// wakes are the guests that were asked for, and when last.
	wakes map[string]time.Time
}

// socket is one that is being served. handle is the same one, for whoever comes
// next.
type socket struct {
	handle handle
	close  func() error
}

// wakeEvery is how often the daemon is asked for the same guest, and wakeKept
// how long somebody who called waits for a daemon that can be asked.
const (
	wakeEvery = time.Second
	wakeKept  = 30 * time.Second
)

func newProcess(o Order, log *slog.Logger) *process {
	return &process{
		order: o, log: log, started: time.Now(), fault: make(chan error, 1), over: make(chan struct{}),
		ports: map[edge.Port]*socket{}, wires: map[*wire]bool{}, wakes: map[string]time.Time{},
	}
}

// run serves those who control it until the process is to end. When ctx ends,
// connections that are open have quit to do so.
func (p *process) run(ctx context.Context, l *net.UnixListener, quit time.Duration) error {
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					p.fail(fmt.Errorf("accept who controls the edge: %w", err))
				}
				return
			}
			go p.attend(&wire{conn: conn})
		}
	}()
	stop := context.AfterFunc(ctx, func() { p.drain(quit) })
	defer stop()
	lonely := time.NewTicker(lonelyAfter)
	defer lonely.Stop()
	for {
		select {
		case <-p.over:
			return nil
		case err := <-p.fault:
			return err
		case <-lonely.C:
			if p.useless() {
				return vps.Errorf(vps.CodeTimeout, "no daemon has told this edge what to do, so it ends")
			}
		}
	}
}

// lonelyAfter is how long a process waits to be told what to do. Its daemon may
// have been killed as it started it.
const lonelyAfter = time.Minute

func (p *process) useless() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.configured && len(p.wires) == 0
}

func (p *process) fail(err error) {
	select {
	case p.fault <- err:
	default: // one reason is enough
	}
}

// attend answers one connection, which may be one of several.
func (p *process) attend(w *wire) {
	defer func() { _ = w.conn.Close() }()
	if cred, err := w.peer(); err != nil || cred.Uid != 0 {
		p.log.Warn("somebody other than root wants to control the edge", "error", err)
		return
	}
	p.mu.Lock()
	p.wires[w] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.wires, w)
		p.mu.Unlock()
	}()
	p.remember(w)
	for {
		m, socket, err := w.receive(toEdge)
		if err != nil {
			return // whoever it was is gone
		}
		answer, give := p.answer(m, socket)
		answer.ID, answer.Op = m.ID, m.Op
		err = w.send(answer, give)
		give.close()
		if err != nil {
			return
		}
	}
}

// answer does what is asked. It takes socket over, and hands give to the caller.
func (p *process) answer(m *message, socket handle) (answer *message, give handle) {
	answer, give = &message{}, none
	var err error
	switch m.Op {
	case opHello:
		answer.Hello = p.hello()
	case opTake:
		give, err = p.take(m.Port)
	case opConfig:
		err = p.configure(m.Config)
	case opListen:
		err = p.listen(m.Port, socket, m.Flows)
	case opStats:
		answer.Stats, err = p.stats()
	case opDrain:
		answer.Flows = p.drain(time.Duration(m.Within))
	default:
		err = vps.Errorf(vps.CodeInvalid, "this edge does not know the request %q", m.Op)
	}
	socket.close()
	if err != nil {
		answer.Error = err.Error()
		if text := vps.ErrorMessage(err); vps.ErrorCode(err) != vps.CodeInternal {
			answer.Error = text
		}
	}
	return answer, give
}

func (p *process) hello() *Hello {
	p.mu.Lock()
	defer p.mu.Unlock()
	ports := slices.SortedFunc(maps.Keys(p.ports), comparePorts)
	return &Hello{Build: p.order.Build, UID: p.order.UID, Started: p.started, Configured: p.configured, Draining: p.cut != nil, Ports: ports}
}

// take returns a duplicate of a port's socket.
func (p *process) take(port *edge.Port) (handle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if port == nil || p.ports[*port] == nil {
		return none, vps.Errorf(vps.CodeNotFound, "this edge has no such socket")
	}
	return p.ports[*port].handle.duplicate()
}

func (p *process) configure(text json.RawMessage) error {
	var c edge.Config
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("decode the configuration: %w", err)
	}
	if err := p.server.Set(c); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configured = true
	for port, s := range p.ports {
		if !slices.Contains(c.Ports, port) {
			p.drop(port, s)
		}
	}
	return nil
}

// drop closes a socket here. Whoever else has it goes on with it.
func (p *process) drop(port edge.Port, s *socket) {
	delete(p.ports, port)
	s.handle.close()
	if err := s.close(); err != nil {
		p.log.Warn("cannot close a socket", "port", port.Number, "kind", string(port.Kind), "error", err)
	}
}

// listen serves a socket, which stays the caller's.
func (p *process) listen(port *edge.Port, given handle, flows json.RawMessage) error {
	if port == nil || given == none {
		return vps.Errorf(vps.CodeInvalid, "a port and its socket are needed")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.cut != nil:
		return vps.Errorf(vps.CodeConflict, "this edge is about to end")
	case p.ports[*port] != nil:
		return nil // as asked for
	}
	s, serve, err := p.open(*port, given, flows)
	if err != nil {
		return err
	}
	p.ports[*port] = s
	go func() {
		err := serve()
		p.mu.Lock()
		// In drain QUIC ends before its socket is closed.
		wanted := p.ports[*port] == s && p.cut == nil
		p.mu.Unlock()
		if wanted {
			p.fail(fmt.Errorf("port %s is not served any more: %w", PortName(*port), err))
		}
	}()
	return nil
}

// open makes a listener of a socket.
func (p *process) open(port edge.Port, given handle, flows json.RawMessage) (s *socket, serve func() error, err error) {
	kept, err := given.duplicate()
	if err != nil {
		return nil, nil, err
	}
	other, err := given.duplicate()
	if err != nil {
		kept.close()
		return nil, nil, err
	}
	file := os.NewFile(uintptr(other), PortName(port))
	defer func() { _ = file.Close() }() // what is made of it has a duplicate
	if port.Kind == edge.KindQUIC {
		conn, err := net.FilePacketConn(file)
		if err != nil {
			kept.close()
			return nil, nil, err
		}
		var left []quic.Flow
		// Another version's may be of another form; their callers begin anew.
		if json.Unmarshal(flows, &left) == nil && len(left) > 0 {
			p.server.TakeQUIC(context.Background(), conn, left)
		}
		return &socket{kept, conn.Close}, func() error { return p.server.ServeQUIC(context.Background(), conn) }, nil
	}
	l, err := net.FileListener(file)
	if err != nil {
		kept.close()
		return nil, nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := func() error {
		stop() // which closes it
		return nil
	}
	return &socket{kept, done}, func() error { return p.server.Serve(ctx, port, l) }, nil
}

// drain takes no more connections, and ends those that are left after within.
// It does not wait for that. A later call can only bring the end nearer. It returns
// what another process goes on with.
func (p *process) drain(within time.Duration) json.RawMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut != nil {
		time.AfterFunc(within, p.cut)
		return nil
	}
	flows, err := json.Marshal(p.server.LeaveQUIC())
	if err != nil {
		p.log.Warn("connections of QUIC are lost", "error", err)
	}
	ctx, cut := context.WithCancel(context.Background())
	p.cut = cut
	time.AfterFunc(within, cut)
	for port, s := range p.ports {
		p.drop(port, s)
	}
	go func() {
		defer close(p.over)
		defer cut()
		if err := p.server.Drain(ctx); err != nil {
			p.log.Warn("connections did not end in good order", "error", err)
		}
		p.farewell()
	}()
	return flows
}

func (p *process) stats() (json.RawMessage, error) { return json.Marshal(p.server.Stats()) }

// farewell tells all who listen what was counted last.
func (p *process) farewell() {
	stats, err := p.stats()
	if err != nil {
		p.log.Warn("what was counted last is lost", "error", err)
	}
	p.tell(&message{Op: opGone, Stats: stats})
}

// tell sends a message unasked to all who listen.
func (p *process) tell(m *message) {
	p.mu.Lock()
	wires := slices.Collect(maps.Keys(p.wires))
	p.mu.Unlock()
	for _, w := range wires {
		_ = w.send(m, none) // it may just have gone
	}
}

// wake asks for a guest.
func (p *process) wake(guestID string) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.wakes[guestID]) < wakeEvery {
		return
	}
	maps.DeleteFunc(p.wakes, func(_ string, at time.Time) bool { return now.Sub(at) > wakeKept })
	p.wakes[guestID] = now
	go p.tell(&message{Op: opWake, Guest: guestID})
}

// remember asks somebody who comes now for guests that were asked for while
// perhaps nobody was there.
func (p *process) remember(w *wire) {
	p.mu.Lock()
	var guests []string
	for id, at := range p.wakes {
		if time.Since(at) < wakeKept {
			guests = append(guests, id)
		}
	}
	p.mu.Unlock()
	for _, id := range guests {
		_ = w.send(&message{Op: opWake, Guest: id}, none)
	}
}
