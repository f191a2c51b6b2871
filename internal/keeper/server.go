//go:build linux

package keeper

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Bounds of the server. The callers are the daemon and nobody else, so these
// guard against mistakes, not against attacks.
const (
	maxCallers   = 64
	lineTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
	// goodbye is how long callers get to read their last answer.
	goodbye = 2 * time.Second
)

// listen makes the keeper's socket. The lock is held, so one that lies there
// is a dead keeper's.
func listen(runDir string) (*net.UnixListener, error) { return listenAt(runDir, "unix", socketName) }

// listenAt makes a socket in the run folder that is root's only, in the place
// of what lies there.
func listenAt(runDir, network, name string) (*net.UnixListener, error) {
	dir, err := os.OpenFile(runDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "cannot open the run folder %s", runDir)
	}
	defer func() { _ = dir.Close() }()
	path := filepath.Join(runDir, name)
	_ = os.Remove(path)
	ln, err := net.ListenUnix(network, &net.UnixAddr{Name: shortPath(dir, name), Net: network})
	if err == nil {
		ln.SetUnlinkOnClose(false)
		if err = os.Chmod(path, 0o600); err != nil {
			err = errors.Join(err, ln.Close())
		}
	}
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "cannot listen on %s", path)
	}
	return ln, nil
}

// shortPath names a socket through the open run folder, since an address has
// room for 108 bytes only (unix(7)).
func shortPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

type server struct {
	k     *keeper
	ln    net.Listener
	slots chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func newServer(k *keeper, ln net.Listener) *server {
	return &server{k: k, ln: ln, slots: make(chan struct{}, maxCallers), conns: map[net.Conn]struct{}{}}
}

// serve accepts callers until the listener is closed.
func (s *server) serve() {
	for {
		s.slots <- struct{}{}
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[conn] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
				_ = conn.Close()
				<-s.slots
			}()
			s.handle(conn)
		})
	}
}

// finish takes no more callers and lets the present ones have their last
// answers.
func (s *server) finish() {
	_ = s.ln.Close()
	late := time.AfterFunc(goodbye, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			_ = c.Close()
		}
	})
	defer late.Stop()
	s.wg.Wait()
}

func (s *server) handle(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(lineTimeout))
	in := bufio.NewReaderSize(conn, maxLine)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		refuse(conn, vps.CodeInvalid, "the request is not JSON")
		return
	}
	switch current := s.k.instance(); {
	case q.Version > protocolVersion:
		refuse(conn, vps.CodeInvalid, fmt.Sprintf("this keeper speaks version %d", protocolVersion))
	case q.Instance != nil && !same(*q.Instance, current):
		refuse(conn, vps.CodeNotFound, "this keeper keeps another instance")
	case q.Instance != nil && current.Exit != nil && q.Op != opWait && q.Op != opKill:
		// The end is written down a moment before the listener closes: whoever
		// comes in between finds what they would find after it.
		refuse(conn, vps.CodeNotFound, "that instance is over")
	default:
		s.dispatch(conn, in, q)
	}
}

func (s *server) dispatch(conn net.Conn, in *bufio.Reader, q request) {
	switch q.Op {
	case opStatus:
		s.reply(conn)
	case opStop:
		s.k.stop()
		s.reply(conn)
	case opKill:
		s.k.kill()
		<-s.k.recorded
		s.reply(conn)
	case opWait:
		s.await(conn, in)
	case opConsole:
		s.console(conn, in, q)
	case opPause:
		s.pause(conn, in)
	default:
		refuse(conn, vps.CodeInvalid, "this keeper does not know the op "+printable([]byte(q.Op)))
	}
}

// await answers when the instance is over, or gives up with the caller.
func (s *server) await(conn net.Conn, in *bufio.Reader) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = in.Read(make([]byte, 1)) // Ends with the connection.
	}()
	select {
	case <-s.k.recorded:
		s.reply(conn)
	case <-gone:
	}
}

func (s *server) reply(conn net.Conn) {
	i := s.k.instance()
	send(conn, answer{Instance: &i})
}

func refuse(conn net.Conn, code vps.Code, message string) {
	send(conn, answer{Code: code, Message: message})
}

func send(conn net.Conn, a answer) {
	a.Version = protocolVersion
	b, err := json.Marshal(a)
	if err != nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = conn.Write(append(b, '\n'))
}

// console joins the caller to the console until one of the two is over.
func (s *server) console(conn net.Conn, in *bufio.Reader, q request) {
	s.reply(conn)
	r := s.k.hub.join(q)
	defer s.k.hub.leave(r)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.listenTo(in, r)
	}()
	for {
		out, more := s.k.hub.take(r)
		if len(out) > 0 {
			_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := conn.Write(out); err != nil {
				return
			}
		}
		if !more {
			return
		}
		select {
		case <-r.wake:
		case <-gone:
			return
		}
	}
}

func (s *server) listenTo(in io.Reader, r *reader) {
	buf := frameBuffer()
	for {
		kind, b, err := readFrame(in, buf)
		if err != nil {
			return
		}
		switch kind {
		case frameData:
			s.k.hub.write(r, b)
		case frameWindow:
			if len(b) >= 4 {
				s.k.hub.window(r, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
			}
		}
	}
}
