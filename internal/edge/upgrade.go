package edge

import (
	"io"
	"net"
	"sync"
)

// upgraded is a caller's connection on which something else than HTTP is spoken from
// now on: WebSocket above all, of which there may be many that say little.
type upgraded struct {
	net.Conn
	under net.Conn // Conn, without what was read before
}

// WriteTo is io.WriterTo's, ReadFrom is io.ReaderFrom's: io.Copy would take a large
// buffer for each direction for good.
func (u *upgraded) WriteTo(w io.Writer) (int64, error) { return copyAll(w, u.Conn) }

// ReadFrom is io.ReaderFrom's.
func (u *upgraded) ReadFrom(r io.Reader) (int64, error) { return copyAll(u.Conn, r) }

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

// copyAll copies until from ends. It waits with a small buffer, and takes a large one
// for as long as it comes back full.
func copyAll(to io.Writer, from io.Reader) (total int64, err error) {
	small := make([]byte, 2048)
	for {
		n, err := from.Read(small)
		if n > 0 {
			if _, err := to.Write(small[:n]); err != nil {
				return total, err
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
				return total, err
			}
			total += int64(n)
		}
		if err != nil || n < len(b)/16 {
			return total, err
		}
	}
}
