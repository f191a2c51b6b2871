package quic

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// flow is all that goes between an address of a caller and a target, through a
// socket of its own: one connection or several. What is not atomic is the
// router's, under its lock.
type flow struct {
	source source
	target Target
	count  *counter
	conn   *net.UDPConn
	raw    syscall.RawConn

	last atomic.Int64 // when something came, of the router's clock

	proven   bool      // the caller has gone on after the guest's answer, so it is where it says
	gone     bool      // it was taken out of the router
	openings []opening // connections that began, the latest last
	ids      []string  // of the guest's that this flow was the last to use, the latest last
	idLen    int       // of the guest's latest ID; 0 is none
	shook    uint64    // when the guest answered a new connection the last time, in answers of all
	settled  bool      // the caller has changed IDs since then
}

// opening is a connection that a caller began.
type opening struct {
	version    uint32
	dcid, scid []byte // of the client's first packet
	name       string // that it asked for
	answered   bool   // by the guest
}

const (
	maxOpenings = 8
	maxIDs      = 8
)

// opened remembers a connection that begins.
func (f *flow) opened(h header, name string) {
	if len(f.openings) == maxOpenings {
		f.openings = slices.Delete(f.openings, 0, 1)
	}
	f.openings = append(f.openings, opening{version: h.version, dcid: bytes.Clone(h.dcid), scid: bytes.Clone(h.scid), name: name})
}

// began tells whether a packet with this destination belongs to a connection of
// which the client does not know the guest's ID yet.
func (f *flow) began(dcid []byte) bool {
	return slices.ContainsFunc(f.openings, func(o opening) bool { return bytes.Equal(o.dcid, dcid) })
}

// goesOn tells whether a packet from this client's ID belongs to a connection that
// the guest has answered.
func (f *flow) goesOn(scid []byte) bool {
	return len(scid) > 0 && slices.ContainsFunc(f.openings, func(o opening) bool { return o.answered && bytes.Equal(o.scid, scid) })
}

// toGuest sends a datagram, or loses it when there is no room for it. The answer
// tells whether nobody is there.
func (f *flow) toGuest(b []byte) (refused bool) {
	var sendErr error
	err := f.raw.Write(func(fd uintptr) bool {
		_, sendErr = unix.Write(int(fd), b)
		return true // a guest that takes nothing must not hold up the others
	})
	if err != nil {
		return false // it was closed
	}
	if sendErr == nil {
		f.count.in.add(len(b))
	}
	return unreachable(sendErr)
}

// buffers are held while there is something in them, and not while a socket is
// waited for.
var buffers = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

const maxDatagram = 1 << 16

// pump leads what the guest sends to the caller, until the flow is closed.
func (f *flow) pump(r *Router) {
	var (
		buffer  *[maxDatagram]byte
		n       int
		readErr error
	)
	read := func(fd uintptr) bool {
		buffer = buffers.Get().(*[maxDatagram]byte)
		n, readErr = unix.Read(int(fd), buffer[:])
		if errors.Is(readErr, unix.EAGAIN) {
			buffers.Put(buffer)
			return false
		}
		return true
	}
	for f.raw.Read(read) == nil {
		switch {
		case readErr == nil:
			r.fromGuest(f, buffer[:n])
		case unreachable(readErr):
			r.nobody(f)
		}
		buffers.Put(buffer)
	}
}

// counter counts one direction or both of a target.
type counter struct{ in, out direction }

type direction struct{ bytes, datagrams atomic.Uint64 }

func (d *direction) add(n int) {
	d.bytes.Add(uint64(n))
	d.datagrams.Add(1)
}
