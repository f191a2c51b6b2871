//go:build linux

package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headerSize = 4
	// toEdge and fromEdge bound the frames in each direction: a configuration with
	// 10,000 domains is some MiB, and counters are less.
	toEdge   = 64 << 20
	fromEdge = 16 << 20
	// sendTimeout is how long the other side may take to read a frame.
	sendTimeout = 30 * time.Second
	// maxFiles is how many sockets are looked for in a frame; all but the first
	// are closed.
	maxFiles = 8
)

// wire is one end of a connection. One goroutine receives; any may send.
type wire struct {
	conn *net.UnixConn
	mu   sync.Mutex // for sending
}

// send writes one frame, with a socket unless that is none. It stays the
// caller's.
func (w *wire) send(m *message, socket handle) error {
	m.Version = protocolVersion
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the message: %w", err)
	}
	var rights []byte
	if socket != none {
		rights = unix.UnixRights(int(socket))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	n, _, err := w.conn.WriteMsgUnix(header, rights, nil)
	if err == nil && n < len(header) {
		err = io.ErrShortWrite
	}
	if err == nil {
		_, err = w.conn.Write(body)
	}
	if err != nil {
		_ = w.conn.Close() // half a frame is of no use to anybody
	}
	return err
}

// receive reads one frame of at most limit bytes. The socket, if one came, is
// the caller's.
func (w *wire) receive(limit int) (*message, handle, error) {
	var header [headerSize]byte
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	// A frame's header is written in one piece, with its socket.
	n, rightsLen, _, _, err := w.conn.ReadMsgUnix(header[:], rights)
	if err == nil && n == 0 {
		err = io.EOF
	}
	socket := firstOf(rights[:rightsLen])
	if err == nil {
		_, err = io.ReadFull(w.conn, header[n:])
	}
	size := binary.BigEndian.Uint32(header[:])
	if err == nil && int64(size) > int64(limit) {
		err = fmt.Errorf("a frame of %d bytes; at most %d are taken", size, limit)
	}
	var m message
	if err == nil {
		body := make([]byte, size)
		if _, err = io.ReadFull(w.conn, body); err == nil {
			err = json.Unmarshal(body, &m)
		}
	}
	if err != nil {
		socket.close()
		return nil, none, err
	}
	return &m, socket, nil
}

// firstOf returns the first of the descriptors that came with a frame and closes
// the others.
func firstOf(rights []byte) handle {
	first := none
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return none
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // something else
		}
		for _, fd := range fds {
			if first != none {
				_ = unix.Close(fd)
				continue
			}
			first = handle(fd)
		}
	}
	return first
}

// peer returns who is at the other end.
func (w *wire) peer() (*unix.Ucred, error) {
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, failed)
}
