package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what a probe keeps: the newest frames, so that a flood costs no
// memory.
const (
	keptFrames = 4096
	frameSize  = 2048
)

// ServeFrames answers requests from in on out: it sends frames on the link and
// keeps those that come in, until in ends or Off is asked for.
func ServeFrames(in io.Reader, out io.Writer, link string) error {
	l, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("find the link %s: %w", link, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for frames: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "frames")
	defer func() { _ = socket.Close() }()
	// In network byte order (packet(7)).
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index}); err != nil {
		return fmt.Errorf("listen on %s: %w", link, err)
	}
	var kept frames
	go kept.hear(fd)
	return Serve(in, out, func(r Request) Answer {
		switch r.Op {
		case Hello:
			return Answer{}
		case Send:
			return send(fd, l.Index, r)
		case Seen:
			return Answer{Count: kept.count(r.Marker)}
		case Off:
			return Answer{Last: true}
		case Try, Examine:
		}
		return Answer{Error: fmt.Sprintf("this probe does not know %q", r.Op)}
	})
}

// send sends what a request asks for. A queue that is full for a moment is
// waited for: what is sent is counted at the other end.
func send(fd, link int, r Request) Answer {
	for range max(r.Count, 1) {
		for _, frame := range r.Frames {
			err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link, Halen: 6})
			for errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
				<-time.After(time.Millisecond)
				err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link, Halen: 6})
			}
			if err != nil {
				return Answer{Error: err.Error()}
			}
		}
	}
	return Answer{}
}

// frames are those that came in, the oldest forgotten first.
type frames struct {
	mu   sync.Mutex
	ring [keptFrames][]byte
	next int
}

// hear keeps what comes in until the socket is closed. What the link itself
// sent comes in as well and is left out.
func (f *frames) hear(fd int) {
	buffer := make([]byte, frameSize)
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		f.mu.Lock()
		f.ring[f.next%keptFrames] = bytes.Clone(buffer[:n])
		f.next++
		f.mu.Unlock()
	}
}

// count tells how many of the kept frames hold the marker; none for an empty
// one.
func (f *frames) count(marker []byte) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, frame := range f.ring {
		if len(marker) > 0 && bytes.Contains(frame, marker) {
			n++
		}
	}
	return n
}
