package edge

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"sublet/internal/edge/relay"
)

// upgraded is a caller's connection on which something else than HTTP is spoken from
// now on: WebSocket above all, of which there may be many that say little.
type upgraded struct {
	net.Conn
	under net.Conn // Conn, without what was read before
}

// WriteTo is io.WriterTo's, ReadFrom is io.ReaderFrom's: io.Copy would take a large
// buffer for each direction for good.
func (u *upgraded) WriteTo(w io.Writer) (int64, error) {
	n, err := copyAll(w, u.Conn)
	u.ending().copied(true, err)
	return n, err
}

// ReadFrom is io.ReaderFrom's.
func (u *upgraded) ReadFrom(r io.Reader) (int64, error) {
	n, err := copyAll(u.Conn, r)
	u.ending().copied(false, err)
	return n, err
}

func (u *upgraded) ending() *ending { return &webConnOf(u.under).call.ending }

// CloseWrite is *net.TCPConn's.
func (u *upgraded) CloseWrite() error {
	if c, ok := u.under.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

const bufferSize = 32 << 10

// largeBuffers are for those that have much to copy.
var largeBuffers = sync.Pool{New: func() any { return new([bufferSize]byte) }} //nolint:gochecknoglobals // a pool

// ending is why what passed between a caller and a guest ended, of which the first
// reason counts. Ready when zero, for any goroutines at a time.
type ending struct{ first atomic.Uint32 }

func (e *ending) set(why relay.Reason) { e.first.CompareAndSwap(0, uint32(why)) }

// copied is told how copyAll ended in a direction. When this side closed the
// connection, who did it has said why; and who hangs up on TLS without a word of it
// has done so for good, too.
func (e *ending) copied(fromCaller bool, err error) {
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	_, taking := errors.AsType[*takeError](err)
	e.set(relay.ReasonOf(fromCaller != taking, err))
}

// why is the reason, relay.Done when nothing else was told.
func (e *ending) why() relay.Reason {
	if first := e.first.Load(); first != 0 {
		return relay.Reason(first)
	}
	return relay.Done
}

// takeError is an error of who was to take what is copied, not of who sent it.
type takeError struct{ err error }

func (e *takeError) Error() string { return e.err.Error() }

func (e *takeError) Unwrap() error { return e.err }

// copyAll copies until from ends. It waits with a small buffer, and takes a large one
// for as long as it comes back full. Errors of to are *takeError.
func copyAll(to io.Writer, from io.Reader) (total int64, err error) {
	small := make([]byte, 2048)
	for {
		n, err := from.Read(small)
		if n > 0 {
			if _, err := to.Write(small[:n]); err != nil {
				return total, &takeError{err}
			}
			total += int64(n)
		}
		if err == nil && n == len(small) {
			var much int64
			much, err = copyMuch(to, from)
			total += much
		}
		if err != nil {
			if err == io.EOF { //nolint:errorlint // readers return it as it is
				err = nil
			}
			return total, err
		}
	}
}

// copyMuch copies until less comes than fits into a large buffer's sixteenth part.
// Errors are those of from and to, also io.EOF.
func copyMuch(to io.Writer, from io.Reader) (total int64, err error) {
	b, _ := largeBuffers.Get().(*[bufferSize]byte)
	defer largeBuffers.Put(b)
	for {
		n, err := from.Read(b[:])
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return total, &takeError{err}
			}
			total += int64(n)
		}
		if err != nil || n < len(b)/16 {
			return total, err
		}
	}
}
