//go:build linux

package relay

import (
	"context"
	"errors"
	"net"
	"sync"
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

// Relay is one caller's connection with one guest.
type Relay struct {
	up, down half // caller to guest, guest to caller
	options  Options

	left atomic.Int32  // halves that may still pass something on
	gone atomic.Uint32 // the Reason, once the other half is through
	end  atomic.Uint32 // the Reason, once it is over
}

// New prepares a relay between two open connections without deadlines, which
// belong to it from now on.
func New(caller, guest *net.TCPConn, options Options) (*Relay, error) {
	r := &Relay{options: options}
	if err := errors.Join(r.up.init(caller, guest), r.down.init(guest, caller)); err != nil {
		return nil, err
	}
	r.left.Store(2)
	return r, nil
}

// Run copies until both sides have ended, or something else ends it, and closes
// both connections. It is called once. The end of ctx is the end of the relay.
func (r *Relay) Run(ctx context.Context) Reason {
	if r.options.Idle > 0 {
		defer r.watch().Stop()
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, r.Close)()
	}
	var down sync.WaitGroup
	down.Go(func() { r.over(&r.down, r.down.run()) })
	if err := r.begin(); err != nil {
		r.over(&r.up, failure{err: err})
	} else {
		r.over(&r.up, r.up.run())
	}
	down.Wait()
	return Reason(r.end.Load())
}

// begin sends what comes before all that is copied.
func (r *Relay) begin() error {
	preface, first := r.options.Preface, r.options.First
	r.options.Preface, r.options.First = nil, nil // not held any longer
	if len(preface)+len(first) == 0 {
		return nil
	}
	// One write, so that a guest which reads once has both.
	n, err := r.up.to.Write(append(preface[:len(preface):len(preface)], first...))
	r.up.passed.Add(uint64(max(0, n-len(preface))))
	return err
}

// Close ends the relay, with a reset for both sides so that neither takes what
// was cut for the whole. It may be called at any time by any goroutine, also
// again, and does not wait.
func (r *Relay) Close() { r.finish(Closed) }

// Bytes returns how many bytes were passed on to the guest and to the caller so
// far: what the kernel has taken to send. Any goroutine may call it at any time.
func (r *Relay) Bytes() (up, down uint64) { return r.up.passed.Load(), r.down.passed.Load() }

// finish closes both connections, once.
func (r *Relay) finish(why Reason) {
	if !r.end.CompareAndSwap(0, uint32(why)) {
		return
	}
	for _, c := range []*net.TCPConn{r.up.from, r.down.from} {
		if why != Done {
			_ = c.SetLinger(0) // closing then resets
		}
		_ = c.Close()
	}
}

// over is called when a half has nothing more to pass on.
func (r *Relay) over(h *half, f failure) {
	switch {
	case f.err == nil:
	case f.sender:
		// Nobody is there to take what the other half has.
		r.finish(reason(h == &r.up, f.err))
	default:
		// The receiver may have said something before it went, which the other
		// half still passes on: it finds out by itself that no more comes.
		r.gone.CompareAndSwap(0, uint32(reason(h != &r.up, f.err)))
	}
	switch {
	case r.left.Add(-1) > 0:
		if f.err == nil {
			_ = h.to.CloseWrite() // what keeps it from that ends the other half
		}
	case r.gone.Load() != 0:
		r.finish(Reason(r.gone.Load()))
	default:
		r.finish(Done)
	}
}

// reason says what a failure of the caller's or the guest's connection means.
func reason(caller bool, err error) Reason {
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

// watch ends an idle relay. It looks now and then whether the counters have
// moved, so that nothing is done for each packet.
func (r *Relay) watch() *time.Timer {
	every := max(r.options.Idle/4, time.Millisecond)
	var seen uint64
	var quiet time.Duration
	var timer *time.Timer
	var set sync.WaitGroup // the first look waits until timer is set
	set.Add(1)
	defer set.Done()
	timer = time.AfterFunc(every, func() {
		set.Wait()
		up, down := r.Bytes()
		if now := up + down; now != seen {
			seen, quiet = now, 0
		} else if quiet += every; quiet >= r.options.Idle {
			r.finish(Idle)
		}
		if r.end.Load() == 0 {
			timer.Reset(every)
		}
	})
	return timer
}
