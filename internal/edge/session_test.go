package edge

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"sublet/internal/edge/relay"
)

// TestCutBefore: a connection that begins to pass through while all are cut is cut,
// too.
func TestCutBefore(t *testing.T) {
	t.Parallel()
	s := New(Options{Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { _ = s.Drain(context.WithoutCancel(t.Context())) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var ends [4]*net.TCPConn
	for i := 0; i < len(ends); i += 2 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		ends[i], ends[i+1] = c.(*net.TCPConn), accepted.(*net.TCPConn)
	}
	call := &session{server: s, conn: ends[1]}
	s.sessions.begin(call)
	r, err := relay.New(ends[1], ends[2], relay.Options{Idle: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s.cut.Do(func() { close(s.cutting) })
	s.sessions.cut()
	s.sessions.relays(call, r, meter{&guestState{}, &series{}})
	if why := r.Run(t.Context()); why != relay.Closed {
		t.Error(why)
	}
	s.sessions.relayed(call)
	s.sockets.take()
	call.end()
}
