//go:build linux

package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reason is why a relay ended.
type Reason uint8

// Reasons, with how they are called in logs.
const (
	// Done: both sides have ended what they sent, and all of it was passed on.
	Done Reason = iota + 1
	// CallerReset, GuestReset: this side reset its connection, or took no more
	// of what the other one sent. The other side's was reset too.
	CallerReset
	GuestReset
	// CallerLost, GuestLost: the network to this side failed.
	CallerLost
	GuestLost
	// Idle: nothing moved for as long as Options.Idle says.
	Idle
	// Closed: Close was called, or the context of Run ended.
	Closed
)

// String is one lower case word, "" for what is no reason.
func (r Reason) String() string {
	switch r {
	case Done:
		return "done"
	case CallerReset:
		return "caller-reset"
	case GuestReset:
		return "guest-reset"
	case CallerLost:
		return "caller-lost"
	case GuestLost:
		return "guest-lost"
	case Idle:
		return "idle"
	case Closed:
		return "closed"
	}
	return ""
}

// Options of a relay. The zero value is one without a deadline.
type Options struct {
	// Preface goes to the guest before anything else and is not counted, as the
	// caller did not send it: a PROXY protocol header.
	Preface []byte
	// First is what was read of the caller before, and goes to the guest next.
	First []byte
	// Idle ends the relay when no byte was passed on in either direction for
	// that long, and for at most a quarter of it longer. 0 is never.
	Idle time.Duration
}

// state of a Relay.
type state uint8

const (
	hearing    state = iota // the caller is to say where he wants to go
	connecting              // to the guest
	relaying
	hungUp // the caller may still read why
)

// Relay is one caller's connection, with that to its guest. It belongs to its loop;
// other goroutines call its exported methods.
type Relay struct {
	up, down      flow // caller to guest, guest to caller
	caller, guest end
	loop          *loop
	slot          int32
	generation    int32
	state         state
	queued        bool
	gone          Reason // that it will end for, when the other flow is through
	options       Options
	said          []byte // while hearing

	due  time.Duration // when to look at it again, on the loop's clock; 0 for never
	seen uint64        // bytes passed when it was looked at
	idle time.Duration

	session Session
	done    chan struct{} // of Run
	end     atomic.Uint32 // the Reason, once it is over
}

// New prepares a relay between two open connections without deadlines. It takes
// them over: to others they are closed from now on.
func New(caller, guest *net.TCPConn, options Options) (*Relay, error) {
	r := &Relay{options: options, slot: -1, done: make(chan struct{})}
	l, err := next()
	r.loop = l
	r.caller.fd, r.guest.fd = -1, -1
	if err == nil {
		r.caller.fd, err = takeOver(caller)
	}
	if err == nil {
		r.guest.fd, err = takeOver(guest)
	}
	if err != nil {
		r.close()
		_ = caller.Close()
		_ = guest.Close()
		return nil, err
	}
	return r, nil
}

// takeOver returns a descriptor of a connection which package net knows nothing of.
func takeOver(conn *net.TCPConn) (fd int, err error) {
	fd = -1
	raw, err := conn.SyscallConn()
	if err != nil {
		return fd, err
	}
	controlled := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if controlled != nil {
		return -1, controlled
	}
	if err != nil {
		return -1, err
	}
	return fd, conn.Close()
}

// Run copies until both sides have ended, or something else ends it, and closes
// both connections. It is called once. The end of ctx is the end of the relay.
func (r *Relay) Run(ctx context.Context) Reason {
	r.loop.post(r.enter)
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, r.Close)()
	}
	<-r.done
	return Reason(r.end.Load())
}

// enter begins with what New was given.
func (r *Relay) enter() {
	if r.end.Load() != 0 {
		return
	}
	r.loop.add(r)
	preface, first := r.options.Preface, r.options.First
	r.options.Preface, r.options.First = nil, nil // not held any longer
	r.up.uncounted = len(preface)
	if len(preface)+len(first) > 0 {
		// One write, so that a guest which reads once has both.
		r.up.hold(preface, first)
	}
	if r.loop.watch(r, r.caller.fd, false) != nil || r.loop.watch(r, r.guest.fd, true) != nil {
		r.finish(Closed)
		return
	}
	r.begin()
}

// begin copies from now on.
func (r *Relay) begin() {
	r.state = relaying
	r.due = 0
	if r.options.Idle > 0 {
		r.dueIn(r.step())
	}
	r.turn()
}

// Close ends the relay, with a reset for both sides so that neither takes what
// was cut for the whole. It may be called at any time by any goroutine, also
// again, and does not wait.
func (r *Relay) Close() {
	if r.end.Load() == 0 {
		r.loop.post(func() { r.finish(Closed) })
	}
}

// Bytes returns how many bytes were passed on to the guest and to the caller so
// far: what the kernel has taken to send. Any goroutine may call it at any time.
func (r *Relay) Bytes() (up, down uint64) { return r.up.passed.Load(), r.down.passed.Load() }

// Local returns the address that was called, for a Session's methods.
func (r *Relay) Local() netip.AddrPort {
	a, err := unix.Getsockname(r.caller.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// turn does what can be done.
func (r *Relay) turn() {
	if r.end.Load() != 0 {
		return
	}
	switch r.state {
	case hearing:
		r.hear()
	case connecting:
		r.connected()
	case hungUp:
		r.ignore()
	case relaying:
		r.copy()
	}
}

func (r *Relay) copy() {
	again := r.pass(&r.up, &r.caller, &r.guest)
	if r.end.Load() == 0 {
		again = r.pass(&r.down, &r.guest, &r.caller) || again
	}
	if again && r.end.Load() == 0 {
		r.loop.later(r)
	}
}

// pass lets one flow go on. more tells that it could further.
func (r *Relay) pass(f *flow, from, to *end) (more bool) {
	if f.ended && f.n == 0 {
		if from.broken {
			r.wreck(from)
		}
		return false
	}
	more, failed := f.pump(r.loop, from, to)
	fromCaller := f == &r.up
	switch {
	case failed.err == nil:
	case failed.sender:
		// Nobody is there to take what the other flow has.
		r.finish(ReasonOf(fromCaller, failed.err))
		return false
	default:
		// The receiver may have said something before it went, which the other
		// flow still passes on: it finds out by itself that no more comes.
		f.give(r.loop)
		if r.gone == 0 {
			r.gone = ReasonOf(!fromCaller, failed.err)
		}
	}
	if !f.ended || f.n > 0 {
		return more
	}
	other := &r.up
	if fromCaller {
		other = &r.down
	}
	switch {
	case !other.ended || other.n > 0:
		if failed.err == nil {
			_ = shutdown(to.fd) // what keeps it from that ends the other flow
		}
	case r.gone != 0:
		r.finish(r.gone)
	default:
		r.finish(Done)
	}
	return false
}

// wreck ends a relay one side of which has ended before, and now failed.
func (r *Relay) wreck(of *end) {
	of.broken = false
	if errno, err := unix.GetsockoptInt(of.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 {
		r.finish(ReasonOf(of == &r.caller, unix.Errno(errno)))
	}
}

// finish ends it, once.
func (r *Relay) finish(why Reason) {
	if !r.end.CompareAndSwap(0, uint32(why)) {
		return
	}
	if why != Done {
		for _, fd := range []int{r.caller.fd, r.guest.fd} {
			if fd >= 0 { // closing then resets
				_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			}
		}
	}
	r.close()
	r.up.give(r.loop)
	r.down.give(r.loop)
	r.loop.remove(r)
	if r.session != nil {
		r.session.Ended(why)
	}
	if r.done != nil {
		close(r.done)
	}
}

func (r *Relay) close() {
	for _, fd := range []int{r.caller.fd, r.guest.fd} {
		if fd >= 0 {
			closeFD(fd)
		}
	}
}

// ReasonOf says what a failure of the caller's or the guest's connection means.
func ReasonOf(caller bool, err error) Reason {
	reset := errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	switch {
	case caller && reset:
		return CallerReset
	case caller:
		return CallerLost
	case reset:
		return GuestReset
	}
	return GuestLost
}

// dueIn has the relay looked at in a while.
func (r *Relay) dueIn(d time.Duration) {
	// Rounded up, so that many are looked at together.
	r.due = (r.loop.now + d + d/8).Truncate(max(d/8, 1))
	r.loop.remind(r.due)
}

// step is how long after a look the next one is. Nothing is done for each packet:
// a look sees whether the counters have moved.
func (r *Relay) step() time.Duration { return max(r.options.Idle/8, time.Millisecond) }

// late is called when the relay is due.
func (r *Relay) late() {
	switch r.state {
	case relaying:
	case connecting:
		r.unreached(unix.ETIMEDOUT)
		return
	case hearing, hungUp:
		r.finish(Idle)
		return
	}
	if up, down := r.Bytes(); up+down != r.seen {
		r.seen, r.idle = up+down, 0
	} else if r.idle += r.step(); r.idle >= r.options.Idle {
		r.finish(Idle)
		return
	}
	r.dueIn(r.step())
}
