//go:build linux

package relay

import (
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// large pieces are worth a pipe, after so many of them in a row.
	large     = bufferSize / 2
	largeOnes = 2
	// spliceAtMost is more than a pipe holds.
	spliceAtMost = 1 << 20
)

// failure of one of a half's two connections: of its sender's or its
// receiver's. The zero value is none: the sender has ended.
type failure struct {
	sender bool
	err    error
}

// half passes on what one side sends to the other one.
type half struct {
	passed   atomic.Uint64 // bytes that the receiver's kernel has taken
	from, to *net.TCPConn
	in, out  syscall.RawConn
	// Kept, so that waiting allocates nothing.
	fill, drain func(fd uintptr) bool

	// Between a fill and the drain that follows it, one of these holds n bytes.
	buffer *buffer
	pipe   pipe
	piped  bool

	start, n int   // what of it is still to be passed on
	err      error // what reading or writing said, nil when it went well
	larges   int   // large pieces in a row
}

// init makes a half between two connections that stay open until it ends.
func (h *half) init(from, to *net.TCPConn) (err error) {
	h.from, h.to = from, to
	if h.in, err = from.SyscallConn(); err != nil {
		return err
	}
	if h.out, err = to.SyscallConn(); err != nil {
		return err
	}
	h.fill, h.drain = h.fillFrom, h.drainTo
	return nil
}

// run passes on until the sender ends or one of the two connections fails.
func (h *half) run() failure {
	for {
		// Nothing is held while this waits for the sender.
		err := h.in.Read(h.fill)
		if err == nil {
			err = h.err
		}
		if err != nil {
			return failure{sender: true, err: err}
		}
		if h.n == 0 {
			return failure{}
		}
		if err := h.pour(); err != nil {
			return failure{err: err}
		}
	}
}

// pour passes on what was filled, and gives back what held it.
func (h *half) pour() error {
	err := h.out.Write(h.drain)
	if err == nil {
		err = h.err
	}
	switch {
	case h.piped && err != nil:
		h.pipe.close()
	case h.piped:
		givePipe(h.pipe)
	case h.buffer != nil:
		giveBuffer(h.buffer)
	}
	h.piped, h.buffer = false, nil
	return err
}

// fillFrom reads what there is from the sender. It is false when there is
// nothing yet; n is 0 when the sender has ended.
func (h *half) fillFrom(fd uintptr) bool {
	h.start, h.n, h.err = 0, 0, nil
	if h.larges >= largeOnes {
		if p, ok := takePipe(); ok {
			return h.splice(int(fd), p)
		}
	}
	b := takeBuffer()
	n, err := again(func() (int, error) { return unix.Read(int(fd), b[:]) })
	if n <= 0 {
		giveBuffer(b)
		h.err = err
		return err != unix.EAGAIN
	}
	h.buffer, h.n = b, n
	h.count(n)
	return true
}

func (h *half) splice(fd int, p pipe) bool {
	n, err := again(func() (int, error) { return splice(fd, p.write) })
	if n <= 0 {
		givePipe(p)
		h.err = err
		return err != unix.EAGAIN
	}
	h.pipe, h.piped, h.n = p, true, n
	h.count(n)
	return true
}

func (h *half) count(n int) {
	if n >= large {
		h.larges++
	} else {
		h.larges = 0
	}
}

// drainTo writes what was filled. It is false while the receiver takes no more.
func (h *half) drainTo(fd uintptr) bool {
	for h.n > 0 {
		n, err := again(func() (int, error) {
			if h.piped {
				return splice(h.pipe.read, int(fd))
			}
			return unix.Write(int(fd), h.buffer[h.start:h.start+h.n])
		})
		if err != nil {
			h.err = err
			return err != unix.EAGAIN
		}
		h.start += n
		h.n -= n
		h.passed.Add(uint64(n))
	}
	h.err = nil
	return true
}

func splice(from, to int) (int, error) {
	n, err := unix.Splice(from, nil, to, nil, spliceAtMost, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(n), err
}

// again repeats what a signal interrupted.
func again(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return n, err
		}
	}
}
