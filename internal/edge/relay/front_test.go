//go:build linux

package relay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge/relay"
	"sublet/internal/hang"
)

// front answers callers by the first line of what they say.
type front struct {
	answers map[string]relay.Answer
	refuse  bool

	mu    sync.Mutex
	seen  []netip.AddrPort
	heard int
	last  *relay.Relay
	ended chan relay.Reason
}

func (f *front) Call(caller netip.AddrPort, r *relay.Relay) relay.Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen, f.last = append(f.seen, caller), r
	if f.refuse {
		return nil
	}
	return f
}

func (f *front) Heard(said []byte) relay.Answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard++
	line, _, whole := bytes.Cut(said, []byte("\n"))
	if !whole {
		return relay.Answer{}
	}
	if a, ok := f.answers[string(line)]; ok {
		return a
	}
	return relay.Answer{Say: []byte("nobody\n")}
}

func (f *front) Unreached(err error) relay.Answer {
	if a, ok := f.answers["unreached"]; ok {
		return a
	}
	return relay.Answer{Say: []byte(err.Error() + "\n")}
}

func (f *front) Reached() {}

func (f *front) Ended(why relay.Reason) { f.ended <- why }

// expect waits for the end of a caller.
func (f *front) expect(t *testing.T, want relay.Reason) {
	t.Helper()
	select {
	case got := <-f.ended:
		if got != want {
			t.Errorf("ended as %q, want %q", got, want)
		}
	case <-time.After(hang.After):
		t.Fatalf("has not ended, want %q", want)
	}
}

// door serves a front. It returns where, and how to stop.
func door(t *testing.T, f *front, handshake time.Duration) (address netip.AddrPort, stop func()) {
	t.Helper()
	return doorOf(t, f, f, handshake)
}

// doorOf serves another one, which has f in it.
func doorOf(t *testing.T, f *front, served relay.Front, handshake time.Duration) (address netip.AddrPort, stop func()) {
	t.Helper()
	f.ended = make(chan relay.Reason, 10_000)
	listener, address := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Serve(ctx, listener, func() time.Duration { return handshake }, served) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return address, stop
}

func listen(t *testing.T) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	address := listener.Addr().(*net.TCPAddr).AddrPort()
	return listener, netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
}

func call(t *testing.T, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestServe(t *testing.T) {
	t.Parallel()
	guests, to := listen(t)
	from := netip.AddrPortFrom(netip.MustParseAddr("127.9.9.9"), 4321)
	f := &front{answers: map[string]relay.Answer{
		"guest": {To: to, Options: relay.Options{Preface: []byte("PROXY\n"), Idle: time.Hour}},
		"as me": {To: to, From: from},
	}}
	address, stop := door(t, f, time.Hour)

	caller := call(t, address)
	for _, piece := range []string{"gu", "est", "\nmore"} { // it may come as one
		say(t, caller, piece)
	}
	guest, err := guests.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	hear(t, guest, "PROXY\nguest\nmore")
	say(t, guest, "welcome")
	hear(t, caller, "welcome")
	if got := caller.LocalAddr().(*net.TCPAddr).AddrPort(); f.seen[0] != netip.AddrPortFrom(got.Addr().Unmap(), got.Port()) {
		t.Errorf("the caller is %s, but %s was seen", got, f.seen[0])
	}

	// Who is inside stays when nobody is let in any more.
	again := call(t, address)
	say(t, again, "as me\n")
	guest2, err := guests.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	if got := guest2.RemoteAddr().String(); got != from.String() {
		t.Errorf("the guest sees %s, want %s", got, from)
	}
	stop()
	say(t, caller, "still here")
	hear(t, guest, "still here")
	hear(t, guest2, "as me\n")
	reset(t, guest2)
	hearReset(t, again)
	f.expect(t, relay.GuestReset)
	_ = caller.CloseWrite()
	hearEnd(t, guest)
	_ = guest.Close()
	hearEnd(t, caller)
	f.expect(t, relay.Done)
}

func TestServeCounts(t *testing.T) {
	t.Parallel()
	guests, to := listen(t)
	f := &front{answers: map[string]relay.Answer{"guest": {To: to, Options: relay.Options{Preface: []byte("PROXY\n")}}}}
	address, _ := door(t, f, time.Hour)
	caller := call(t, address)
	say(t, caller, "guest\n")
	guest, err := guests.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	say(t, guest, "welcome")
	hear(t, caller, "welcome")
	eventually(t, "counters of an open connection", func() bool {
		up, down := f.last.Bytes()
		return up == 6 && down == 7
	})
	f.last.Close()
	hearReset(t, caller)
	f.expect(t, relay.Closed)
}

// Who says a lot before it is known where he wants to go is passed on all the same.
func TestServeLongBeginning(t *testing.T) {
	t.Parallel()
	guests, to := listen(t)
	line := string(bytes.Repeat([]byte("x"), 100_000))
	f := &front{answers: map[string]relay.Answer{line: {To: to, Options: relay.Options{Preface: []byte("PROXY\n")}}}}
	address, _ := door(t, f, time.Hour)
	caller := call(t, address)
	go func() {
		_, _ = io.WriteString(caller, line+"\nthe rest")
		_ = caller.CloseWrite()
	}()
	guest, err := guests.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(guest)
	if err != nil || string(got) != "PROXY\n"+line+"\nthe rest" {
		t.Errorf("%d bytes came (%v), want %d", len(got), err, len(line)+15)
	}
	_ = guest.Close()
	f.expect(t, relay.Done)

	endless := call(t, address)
	for err == nil {
		_, err = endless.Write(make([]byte, 64<<10))
	}
	f.expect(t, relay.Closed)
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	closed, nowhere := listen(t)
	_ = closed.Close()
	taken := make(chan string, 1)
	f := &front{answers: map[string]relay.Answer{
		"nowhere": {To: nowhere},
		"take": {Take: func(conn *net.TCPConn, said []byte) {
			defer func() { _ = conn.Close() }()
			rest, _ := io.ReadAll(conn)
			taken <- string(said) + string(rest)
			_, _ = io.WriteString(conn, "taken")
		}},
	}}
	address, _ := door(t, f, time.Hour)

	t.Run("says why", func(t *testing.T) {
		caller := call(t, address)
		say(t, caller, "anybody\nand more that is never read")
		hear(t, caller, "nobody\n")
		hearEnd(t, caller)
		_ = caller.Close()
		f.expect(t, relay.Done)
	})
	t.Run("has a last word with who does not hang up", func(t *testing.T) {
		caller := call(t, address)
		say(t, caller, "anybody\n")
		hear(t, caller, "nobody\n")
		f.expect(t, relay.Idle)
	})
	t.Run("unreached", func(t *testing.T) {
		caller := call(t, address)
		say(t, caller, "nowhere\n")
		hear(t, caller, unix.ECONNREFUSED.Error()+"\n")
		hearEnd(t, caller)
		_ = caller.Close()
		f.expect(t, relay.Done)
	})
	t.Run("unreached and taken", func(t *testing.T) {
		f := &front{answers: map[string]relay.Answer{"nowhere": f.answers["nowhere"], "unreached": f.answers["take"]}}
		address, _ := door(t, f, time.Hour)
		caller := call(t, address)
		say(t, caller, "nowhere\nrest")
		_ = caller.CloseWrite()
		hear(t, caller, "taken")
		if got := <-taken; got != "nowhere\nrest" {
			t.Errorf("it was taken with %q", got)
		}
	})
	t.Run("taken", func(t *testing.T) {
		caller := call(t, address)
		say(t, caller, "take\n")
		say(t, caller, "rest")
		_ = caller.CloseWrite()
		hear(t, caller, "taken")
		hearEnd(t, caller)
		if got := <-taken; got != "take\nrest" {
			t.Errorf("it was taken with %q", got)
		}
	})
	t.Run("hangs up", func(t *testing.T) {
		caller := call(t, address)
		say(t, caller, "nothing who")
		_ = caller.CloseWrite()
		hearEnd(t, caller)
		f.expect(t, relay.Done)
	})
	t.Run("reset", func(t *testing.T) {
		caller := call(t, address)
		reset(t, caller)
		f.expect(t, relay.CallerReset)
	})
	t.Run("is slow", func(t *testing.T) {
		f := new(front)
		address, _ := door(t, f, time.Millisecond)
		caller := call(t, address)
		hearReset(t, caller)
		f.expect(t, relay.Idle)
	})
	t.Run("is not let in", func(t *testing.T) {
		address, _ := door(t, &front{refuse: true}, time.Hour)
		conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(address))
		if err == nil {
			defer func() { _ = conn.Close() }()
			_, err = conn.Read(make([]byte, 1))
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
}

// Thousands of callers, many at a time, leave nothing behind.
func TestServeMany(t *testing.T) {
	const workers, each = 50, 60
	guests, to := listen(t)
	go func() {
		for {
			guest, err := guests.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(guest, guest)
				_ = guest.Close()
			}()
		}
	}()
	f := &front{answers: map[string]relay.Answer{"guest": {To: to, Options: relay.Options{Idle: time.Hour}}}}
	address, stop := door(t, f, time.Hour)
	round := func(n int) {
		var all sync.WaitGroup
		failed := make(chan error, workers)
		for range workers {
			all.Go(func() {
				for range n {
					if err := echo(address); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		all.Wait()
		select {
		case err := <-failed:
			t.Fatal(err)
		default:
		}
		for range workers * n {
			f.expect(t, relay.Done)
		}
	}
	round(1)
	descriptors, goroutines := open(t), runtime.NumGoroutine()
	round(each)
	eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "as many descriptors as before", func() bool { return open(t) <= descriptors+2*relay.MaxSpare })
	stop()
}

func echo(address netip.AddrPort) error {
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(address))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "guest\nhello"); err != nil {
		return err
	}
	_ = conn.CloseWrite()
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != "guest\nhello" {
		err = errors.New("came back as " + string(got))
	}
	return err
}

// TestTakenInVain: a caller who cannot be given to a goroutine, as there is no
// descriptor left, has ended.
func TestTakenInVain(t *testing.T) {
	t.Parallel()
	f := &front{ended: make(chan relay.Reason, 1)}
	if err := relay.HandPipe(f, func(*net.TCPConn, []byte) { t.Error("a pipe is no connection") }); err != nil {
		t.Fatal(err)
	}
	f.expect(t, relay.Closed)
}
