//go:build linux

package relay

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// large pieces are worth a pipe, after so many of them in a row.
	large     = bufferSize / 2
	largeOnes = 2
	// spliceAtMost is more than a pipe holds.
	spliceAtMost = 1 << 20
	// pieces are passed on in a turn, before others have theirs.
	pieces = 8
)

// end is a connection as its events tell. They come when something changes, so it
// is remembered until a system call says otherwise.
type end struct {
	fd                 int
	readable, writable bool
	hangup             bool // the end of what it sends, or an error, is to be read
	broken             bool // an error was told
}

func (e *end) note(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.readable = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.writable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.hangup = true
	}
	if events&unix.EPOLLERR != 0 {
		e.broken = true
	}
}

// flow is one direction.
type flow struct {
	passed atomic.Uint64 // bytes that the receiver's kernel has taken
	// uncounted of what is held are not the sender's.
	uncounted int
	ended     bool // nothing more is passed on
	larges    int  // large pieces in a row

	// What the receiver has not taken yet: n bytes, the last ones of held, or in
	// the pipe.
	n      int
	held   []byte
	buffer *buffer // of the pool, that held is in, if it is
	pipe   pipe
}

// failure of one of a flow's two connections: of its sender's or its receiver's.
// The zero value is none.
type failure struct {
	sender bool
	err    error
}

// pump passes on what can be. more tells that it stopped for the sake of others.
func (f *flow) pump(l *loop, from, to *end) (more bool, failed failure) {
	for range pieces {
		if f.n > 0 {
			if !to.writable {
				return false, failure{}
			}
			if err := f.drain(l, to); err != nil {
				f.ended = true
				return false, failure{err: err}
			}
			if f.n > 0 {
				return false, failure{}
			}
		}
		if f.ended || !from.readable {
			return false, failure{}
		}
		var err error
		if f.larges >= largeOnes {
			err = f.splice(l, from, to)
		} else {
			err = f.copy(l, from, to)
		}
		switch e, isReceivers := err.(receiverError); {
		case isReceivers:
			f.ended = true
			return false, failure{err: e.error}
		case err != nil:
			f.ended = true
			return false, failure{sender: true, err: err}
		}
	}
	return true, failure{}
}

// receiverError is one of the connection that is written to.
type receiverError struct{ error }

// copy passes one piece on, and keeps what is not taken.
func (f *flow) copy(l *loop, from, to *end) error {
	n, err := read(from.fd, l.buffer[:])
	if errors.Is(err, unix.EAGAIN) {
		from.readable = false
		return nil
	}
	if err != nil {
		return err
	}
	if n == 0 {
		f.ended = true
		return nil
	}
	f.seen(from, n, bufferSize)
	sent := 0
	if to.writable {
		if sent, err = send(to.fd, l.buffer[:n]); errors.Is(err, unix.EAGAIN) {
			sent = 0
			to.writable = false
		} else if err != nil {
			return receiverError{err}
		}
		f.passed.Add(uint64(sent))
	}
	if sent < n {
		f.hold(l.buffer[sent:n])
	}
	return nil
}

// seen notes that a piece came. One that is smaller than what was asked for is all
// that there was: whatever comes later is an event.
func (f *flow) seen(from *end, n, asked int) {
	if n < asked && !from.hangup {
		from.readable = false
	}
	if n >= large {
		f.larges++
	} else {
		f.larges = 0
	}
}

// hold keeps bytes, while none are kept: it is done with them when it returns.
func (f *flow) hold(parts ...[]byte) {
	for _, p := range parts {
		f.n += len(p)
	}
	if f.n <= bufferSize {
		f.buffer = takeBuffer()
		f.held = f.buffer[:0]
	}
	for _, p := range parts {
		f.held = append(f.held, p...)
	}
}

// splice passes one piece on through the loop's pipe. When not all is taken it
// stays with the flow.
func (f *flow) splice(l *loop, from, to *end) error {
	if !l.piped {
		if l.pipe, l.piped = takePipe(); !l.piped {
			f.larges = 0
			return f.copy(l, from, to)
		}
	}
	n, err := splice(from.fd, l.pipe.write)
	if errors.Is(err, unix.EAGAIN) {
		from.readable = false
		return nil
	}
	if err != nil {
		return err
	}
	if n == 0 {
		f.ended = true
		return nil
	}
	// A pipe may be full of few bytes: that it was less says nothing.
	f.seen(from, n, 0)
	f.n, f.pipe = n, l.pipe
	l.piped = false
	if !to.writable {
		return nil
	}
	if err := f.drain(l, to); err != nil {
		return receiverError{err}
	}
	return nil
}

// drain passes on what was kept.
func (f *flow) drain(l *loop, to *end) error {
	for f.n > 0 {
		var n int
		var err error
		if f.held != nil {
			n, err = send(to.fd, f.held[len(f.held)-f.n:])
		} else {
			n, err = splice(f.pipe.read, to.fd)
		}
		if errors.Is(err, unix.EAGAIN) {
			to.writable = false
			return nil
		}
		if err != nil {
			return err
		}
		f.n -= n
		skipped := min(f.uncounted, n)
		f.uncounted -= skipped
		f.passed.Add(uint64(n - skipped))
	}
	f.give(l)
	return nil
}

// give gives back what held bytes.
func (f *flow) give(l *loop) {
	switch {
	case f.buffer != nil:
		giveBuffer(f.buffer)
	case f.pipe == pipe{}:
	case f.n > 0:
		f.pipe.close()
	case !l.piped:
		l.pipe, l.piped = f.pipe, true
	default:
		givePipe(f.pipe)
	}
	f.n, f.held, f.buffer, f.pipe = 0, nil, nil, pipe{}
}
