//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// client is a connection to an edge's process, by which it is known that the
// process lives.
type client struct {
	wire
	number int
	pid    int
	// ended is closed when the connection is, which is when the process ends.
	ended chan struct{}
	// wake hears of guests that somebody calls; it must not block.
	wake func(guestID string)

	asking sync.Mutex // held while an answer is waited for
	next   uint64
	answer chan reply

	mu sync.Mutex
	// last are the counters as far as they are known; gone tells that they are
	// the last ones.
	last edge.Stats
	gone bool
}

type reply struct {
	message *message
	socket  handle
}

// dial connects to a process.
func dial(ctx context.Context, number int, path string, wake func(guestID string)) (*client, error) {
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", short)
	if err != nil {
		return nil, err
	}
	c := &client{number: number, ended: make(chan struct{}), wake: wake, answer: make(chan reply, 1)}
	c.conn = conn.(*net.UnixConn) // by the network's name
	cred, err := c.peer()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.pid = int(cred.Pid)
	go c.read()
	return c, nil
}

// read takes what the process says until it ends.
func (c *client) read() {
	defer close(c.ended)
	defer func() { _ = c.conn.Close() }()
	for {
		m, socket, err := c.receive(fromEdge)
		if err != nil {
			return
		}
		if m.ID != 0 {
			select {
			case c.answer <- reply{m, socket}:
				continue
			default: // nobody asked
			}
		}
		socket.close()
		switch m.Op {
		case opWake:
			c.wake(m.Guest)
		case opGone:
			c.counted(m.Stats, true)
		}
	}
}

func (c *client) counted(stats json.RawMessage, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s edge.Stats
	// Another version's may be of another form, and are then not known.
	if json.Unmarshal(stats, &s) == nil {
		c.last = s
	}
	c.gone = c.gone || gone
}

// counters returns the last ones that are known, and whether the process ended
// in good order.
func (c *client) counters() (last edge.Stats, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.gone
}

// patience is how long a process may take to answer. One that takes longer is
// of no use to callers either.
const patience = 30 * time.Second

// errSilent is for a process that does not answer in time.
var errSilent = errors.New("it does not answer")

// ask sends a request and returns the answer, with the socket that came with
// it. What the process refuses is an error.
func (c *client) ask(ctx context.Context, m *message, socket handle) (*message, handle, error) {
	c.asking.Lock()
	defer c.asking.Unlock()
	c.next++
	m.ID = c.next
	if err := c.send(m, socket); err != nil {
		return nil, none, err
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case r := <-c.answer:
			if r.message.ID != m.ID {
				r.socket.close()
				continue // of a request that was given up
			}
			if r.message.Error != "" {
				r.socket.close()
				return nil, none, vps.Errorf(vps.CodeConflict, "%s", r.message.Error)
			}
			return r.message, r.socket, nil
		case <-c.ended:
			return nil, none, net.ErrClosed
		case <-ctx.Done():
			return nil, none, ctx.Err()
		case <-late.C:
			return nil, none, fmt.Errorf("ask the edge for %s: %w", m.Op, errSilent)
		}
	}
}

func (c *client) hello(ctx context.Context) (*Hello, error) {
	m, _, err := c.ask(ctx, &message{Op: opHello}, none)
	if err != nil {
		return nil, err
	}
	if m.Hello == nil {
		return nil, errors.New("the edge does not say who it is")
	}
	return m.Hello, nil
}

// stats asks for the counters, and remembers them.
func (c *client) stats(ctx context.Context) error {
	m, _, err := c.ask(ctx, &message{Op: opStats}, none)
	if err == nil {
		c.counted(m.Stats, false)
	}
	return err
}

// kill ends the process at once, and returns when it has ended.
func (c *client) kill() error {
	fd, err := unix.PidfdOpen(c.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	select {
	case <-c.ended: // and the number may be somebody else's by now
		return nil
	default:
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	<-c.ended
	return nil
}
