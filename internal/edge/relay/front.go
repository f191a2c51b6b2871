//go:build linux

package relay

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Front decides about callers. Its methods and those of a Session run on a loop,
// several of a Front at the same time: they do not block.
type Front interface {
	// Call says what follows for one who has connected, nil for a reset. The relay
	// is his connection.
	Call(caller netip.AddrPort, r *Relay) Session
}

// Session is what a Front knows of a caller. Its methods are called one after the
// other.
type Session interface {
	// Heard is given all that the caller has said so far, each time that it is
	// more. It may be read during the call only. said is 0 bytes at no time.
	Heard(said []byte) Answer
	// Unreached says what follows when there is no connection to where Heard said:
	// err is a unix.Errno, ETIMEDOUT when Patience was over. It is not asked to
	// listen on.
	Unreached(err error) Answer
	// Reached is called when there is a connection to where Heard said.
	Reached()
	// Ended is called once, at the end, unless a goroutine took the caller.
	Ended(why Reason)
}

// Answer is what follows. Its zero value is to wait for more to be said.
type Answer struct {
	// To, when valid, is where the caller is led, and From, when valid, where that
	// connection is to come from: an address that is not the host's own
	// (IP_TRANSPARENT, which needs CAP_NET_RAW).
	To, From netip.AddrPort
	// Patience is how long To may take to answer. 0 is ten seconds.
	Patience time.Duration
	Options  Options

	// Say, when not nil, is said before the caller is hung up on. It may be empty.
	Say []byte

	// Take, when not nil, is called with the connection on a goroutine of its own,
	// which it belongs to from then on, and all that was said.
	Take func(conn *net.TCPConn, said []byte)
}

const (
	usualPatience = 10 * time.Second
	// lastWord is how long who was hung up on may take to read why: closing before
	// would reset the connection, if he had said more.
	lastWord = time.Second
	// pauseFor is how long nobody is let in when there is no room.
	pauseFor = 100 * time.Millisecond
	// callsAtOnce are let in before others have their turn.
	callsAtOnce = 16
	// mostSaid bounds what a Session may be given, in bytes.
	mostSaid = 256 << 10
)

// listener is a listening socket in one loop.
type listener struct {
	fd       int
	slot     int32
	front    Front
	patience func() time.Duration
	paused   time.Duration // until when, 0 if it is not
}

// Serve lets callers of a listener in until ctx ends. Each has handshake to say
// where he wants to go. The listener is left open; connections go on.
func Serve(ctx context.Context, in *net.TCPListener, handshake func() time.Duration, front Front) error {
	loops, err := shared()
	if err != nil {
		return err
	}
	raw, err := in.SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	controlled := raw.Control(func(from uintptr) {
		// Those who are let in have it too.
		if err = unix.SetsockoptInt(int(from), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err == nil {
			fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	if err = cmp.Or(controlled, err); err != nil {
		return err
	}
	errs := make([]error, len(loops))
	each(loops, func(i int, l *loop) {
		a := &listener{fd: fd, slot: listenerSlot, front: front, patience: handshake}
		for slices.ContainsFunc(l.listeners, func(b *listener) bool { return a.slot == b.slot }) {
			a.slot--
		}
		l.listeners = append(l.listeners, a)
		errs[i] = a.start(l)
	})
	if err = errors.Join(errs...); err == nil {
		<-ctx.Done()
	}
	each(loops, func(_ int, l *loop) {
		l.listeners = slices.DeleteFunc(l.listeners, func(a *listener) bool {
			if a.fd == fd {
				a.stop(l)
			}
			return a.fd == fd
		})
	})
	closeFD(fd)
	return err
}

// each has all loops do something, and waits.
func each(loops []*loop, do func(int, *loop)) {
	var all sync.WaitGroup
	for i, l := range loops {
		all.Add(1)
		l.post(func() {
			defer all.Done()
			do(i, l)
		})
	}
	all.Wait()
}

// start has calls reported to one of the loops that wait.
func (a *listener) start(l *loop) error {
	return add(l.epoll, a.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: a.slot})
}

func (a *listener) stop(l *loop) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, a.fd, nil)
}

// resume lets callers in again after a pause.
func (a *listener) resume(l *loop) {
	switch {
	case a.paused == 0:
	case l.now < a.paused:
		l.remind(a.paused)
	default:
		a.paused = 0
		_ = a.start(l) // it was possible before
	}
}

func (l *loop) accept(a *listener) {
	for range callsAtOnce {
		fd, from, err := accept(a.fd)
		switch {
		case err == nil:
			l.call(a, fd, from)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case errors.Is(err, unix.EAGAIN):
			return
		default: // no room: those who wait go on waiting
			a.stop(l)
			a.paused = l.now + pauseFor
			l.remind(a.paused)
			return
		}
	}
}

// call begins with a caller.
func (l *loop) call(a *listener, fd int, from netip.AddrPort) {
	r := &Relay{state: hearing}
	r.caller.fd, r.guest.fd = fd, -1
	l.add(r)
	if r.session = a.front.Call(from, r); r.session == nil || l.watch(r, fd, false) != nil {
		r.finish(Closed)
		return
	}
	r.dueIn(a.patience())
}

// hear reads what the caller says.
func (r *Relay) hear() {
	l := r.loop
	for r.state == hearing && r.caller.readable && r.end.Load() == 0 {
		n, err := read(r.caller.fd, l.buffer[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			r.caller.readable = false
			return
		case err != nil:
			r.finish(ReasonOf(true, err))
			return
		case n == 0:
			r.finish(Done)
			return
		}
		if n < len(l.buffer) && !r.caller.hangup {
			r.caller.readable = false
		}
		said := l.buffer[:n]
		if r.said != nil {
			r.said = append(r.said, said...)
			said = r.said
		}
		switch answer := r.session.Heard(said); {
		case !answer.waits():
			r.follow(&answer, said)
			return
		case len(said) > mostSaid:
			r.finish(Closed) // who listens to so much?
		case r.said == nil:
			r.said = slices.Clone(said)
		}
	}
}

func (a *Answer) waits() bool { return !a.To.IsValid() && a.Say == nil && a.Take == nil }

// follow does what an answer says. said is all that the caller has said.
func (r *Relay) follow(a *Answer, said []byte) {
	switch {
	case a.Take != nil:
		r.hand(a.Take, slices.Clone(said))
	case a.Say != nil:
		r.say(a.Say)
	case a.To.IsValid():
		r.options = a.Options
		r.up.hold(a.Options.Preface, said)
		r.up.uncounted = len(a.Options.Preface)
		r.options.Preface, r.said = nil, nil
		r.lead(a)
	default:
		r.finish(Closed)
	}
}

// lead begins to connect.
func (r *Relay) lead(a *Answer) {
	fd, err := connect(a.From, a.To)
	if err == nil {
		r.guest = end{fd: fd}
		err = r.loop.watch(r, fd, true)
	}
	r.state = connecting
	if err != nil {
		r.unreached(err)
		return
	}
	r.dueIn(cmp.Or(a.Patience, usualPatience))
}

// unreached asks what follows, after a failure to connect.
func (r *Relay) unreached(err error) {
	if r.guest.fd >= 0 {
		closeFD(r.guest.fd)
		r.guest = end{fd: -1}
	}
	said := slices.Clone(r.up.held[r.up.uncounted:])
	r.up.give(r.loop)
	r.up.uncounted = 0
	answer := r.session.Unreached(err)
	r.follow(&answer, said)
}

// connected looks whether there is a connection by now.
func (r *Relay) connected() {
	if !r.guest.writable {
		if r.caller.broken {
			r.finish(CallerReset)
		}
		return
	}
	// What keeps it from being there says so here.
	if err := r.up.drain(r.loop, &r.guest); err != nil {
		if r.up.n < len(r.up.held) { // it was there
			r.finish(ReasonOf(false, err))
			return
		}
		r.unreached(err)
		return
	}
	r.session.Reached()
	r.begin()
}

// say is the last word to a caller.
func (r *Relay) say(word []byte) {
	var err error
	if len(word) > 0 {
		_, err = send(r.caller.fd, word)
	}
	if err == nil {
		err = shutdown(r.caller.fd)
	}
	if err != nil {
		r.finish(Closed)
		return
	}
	r.state = hungUp
	r.dueIn(lastWord)
	r.ignore()
}

// ignore throws away what a caller says who was hung up on.
func (r *Relay) ignore() {
	for range pieces {
		if !r.caller.readable {
			return
		}
		n, err := read(r.caller.fd, r.loop.buffer[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			r.caller.readable = false
		case err != nil || n == 0:
			r.finish(Done)
			return
		}
	}
	r.finish(Closed) // he talks too much
}

// hand makes the caller's connection one of package net's.
func (r *Relay) hand(take func(*net.TCPConn, []byte), said []byte) {
	_ = unix.EpollCtl(r.loop.epoll, unix.EPOLL_CTL_DEL, r.caller.fd, nil)
	r.loop.remove(r)
	r.end.Store(uint32(Closed))
	fd := r.caller.fd
	go func() {
		f := os.NewFile(uintptr(fd), "")
		conn, err := net.FileConn(f)
		_ = f.Close() // conn has a duplicate
		tcp, ok := conn.(*net.TCPConn)
		if err != nil || !ok { // no room for one more descriptor
			r.session.Ended(Closed)
			return
		}
		take(tcp, said)
	}()
}
