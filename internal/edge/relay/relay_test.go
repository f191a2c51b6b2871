//go:build linux

package relay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge/relay"
	"sublet/internal/hang"
)

// scene is a relay with a caller and a guest at its ends.
type scene struct {
	t             *testing.T
	caller, guest *net.TCPConn
	relay         *relay.Relay
	stop          context.CancelFunc
	ended         chan relay.Reason
}

func play(t *testing.T, options relay.Options) *scene {
	t.Helper()
	s := &scene{t: t, ended: make(chan relay.Reason, 1)}
	caller, up := pair(t)
	down, guest := pair(t)
	s.caller, s.guest = caller, guest
	var err error
	if s.relay, err = relay.New(up, down, options); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ended <- s.relay.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return s
}

// pair is a connection over loopback, both ends.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if client, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	if server, err = listener.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.TCPConn{client, server} {
		t.Cleanup(func() { _ = c.Close() })
	}
	return client, server
}

// expect waits for the end.
func (s *scene) expect(want relay.Reason) {
	s.t.Helper()
	select {
	case got := <-s.ended:
		if got != want {
			s.t.Errorf("ended as %q, want %q", got, want)
		}
	case <-time.After(hang.After):
		s.t.Fatalf("has not ended, want %q", want)
	}
}

func (s *scene) counted(up, down uint64) {
	s.t.Helper()
	if gotUp, gotDown := s.relay.Bytes(); gotUp != up || gotDown != down {
		s.t.Errorf("counted %d and %d bytes, want %d and %d", gotUp, gotDown, up, down)
	}
}

// eventually waits for a state.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hang.After); !is(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got, err, want)
	}
}

func hearEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes (%v), want the end", n, err)
	}
}

func hearReset(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read %d bytes (%v), want a reset", len(rest), err)
	}
}

func reset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestFirstBytesAndCounters(t *testing.T) {
	t.Parallel()
	s := play(t, relay.Options{Preface: []byte("PROXY\r\n"), First: []byte("hello ")})
	hear(t, s.guest, "PROXY\r\nhello ")
	say(t, s.caller, "again")
	hear(t, s.guest, "again")
	say(t, s.guest, "welcome")
	hear(t, s.caller, "welcome")
	// It was counted before it could be read, or just after.
	eventually(t, "counters of an open connection", func() bool {
		up, down := s.relay.Bytes()
		return up == 11 && down == 7
	})
	_ = s.caller.CloseWrite()
	hearEnd(t, s.guest)
	_ = s.guest.Close()
	hearEnd(t, s.caller)
	s.expect(relay.Done)
	s.counted(11, 7)
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	for _, callerFirst := range []bool{true, false} {
		s := play(t, relay.Options{})
		first, second := s.caller, s.guest
		if !callerFirst {
			first, second = second, first
		}
		say(t, first, "question")
		_ = first.CloseWrite()
		hear(t, second, "question")
		hearEnd(t, second)
		for range 3 {
			say(t, second, "answer")
			hear(t, first, "answer")
		}
		_ = second.CloseWrite()
		hearEnd(t, first)
		s.expect(relay.Done)
	}
}

func TestReset(t *testing.T) {
	t.Parallel()
	t.Run("caller", func(t *testing.T) {
		t.Parallel()
		s := play(t, relay.Options{})
		say(t, s.caller, "x")
		hear(t, s.guest, "x")
		reset(t, s.caller)
		hearReset(t, s.guest)
		s.expect(relay.CallerReset)
	})
	t.Run("guest", func(t *testing.T) {
		t.Parallel()
		s := play(t, relay.Options{})
		say(t, s.caller, "x")
		hear(t, s.guest, "x")
		reset(t, s.guest)
		hearReset(t, s.caller)
		s.expect(relay.GuestReset)
	})
	t.Run("guest that has ended before", func(t *testing.T) {
		t.Parallel()
		s := play(t, relay.Options{})
		say(t, s.guest, "last words")
		_ = s.guest.CloseWrite()
		hear(t, s.caller, "last words")
		hearEnd(t, s.caller)
		reset(t, s.guest)
		// It is found out when there is something for it.
		for err := error(nil); err == nil; _, err = s.caller.Write([]byte("x")) {
			runtime.Gosched()
		}
		s.expect(relay.GuestReset)
	})
	t.Run("guest that says why", func(t *testing.T) {
		t.Parallel()
		s := play(t, relay.Options{})
		say(t, s.caller, "too much")
		hear(t, s.guest, "too")
		say(t, s.guest, "413")
		_ = s.guest.Close() // resets, as it has not read all
		hear(t, s.caller, "413")
		s.expect(relay.GuestReset)
		s.counted(8, 3)
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*scene){
		"context": func(s *scene) { s.stop() },
		"close":   func(s *scene) { s.relay.Close(); s.relay.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := play(t, relay.Options{Idle: time.Hour})
			say(t, s.caller, "x")
			hear(t, s.guest, "x")
			end(s)
			hearReset(t, s.caller)
			hearReset(t, s.guest)
			s.expect(relay.Closed)
		})
	}
}

func TestIdle(t *testing.T) {
	t.Parallel()
	s := play(t, relay.Options{Idle: 20 * time.Millisecond})
	hearReset(t, s.guest)
	hearReset(t, s.caller)
	s.expect(relay.Idle)
}

// Bytes of one direction keep both alive, also when there are none in the other.
func TestIdleIsRenewed(t *testing.T) {
	t.Parallel()
	const idle = 400 * time.Millisecond
	for _, fromCaller := range []bool{true, false} {
		s := play(t, relay.Options{Idle: idle})
		from, to := s.caller, s.guest
		if !fromCaller {
			from, to = to, from
		}
		tick := time.NewTicker(idle / 40)
		for start, last := time.Now(), time.Now(); time.Since(start) < 2*idle; last = time.Now() {
			say(t, from, "x")
			hear(t, to, "x")
			<-tick.C
			if time.Since(last) > idle/2 {
				start = time.Now() // this machine was away itself
			}
		}
		tick.Stop()
		say(t, from, "still there")
		hear(t, to, "still there")
		s.expect(relay.Idle)
	}
}

// send writes n random bytes in pieces of random sizes, with pauses in which
// the other side has read everything, and ends.
func send(c *net.TCPConn, random *rand.Rand, n int) ([]byte, error) {
	sum := sha256.New()
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(random.Uint32())
	}
	source := rand.NewChaCha8(seed)
	buffer := make([]byte, 1<<18)
	for n > 0 {
		size := 1 + random.IntN(16)
		if random.IntN(3) > 0 {
			size = 1 + random.IntN(len(buffer))
		}
		piece := buffer[:min(n, size)]
		_, _ = source.Read(piece)
		sum.Write(piece)
		if _, err := c.Write(piece); err != nil {
			return nil, err
		}
		n -= len(piece)
		if random.IntN(8) == 0 {
			runtime.Gosched()
		}
	}
	return sum.Sum(nil), c.CloseWrite()
}

// receive reads to the end in pieces of random sizes.
func receive(c *net.TCPConn, random *rand.Rand) ([]byte, error) {
	sum := sha256.New()
	buffer := make([]byte, 1<<18)
	for {
		n, err := c.Read(buffer[:1+random.IntN(len(buffer))])
		sum.Write(buffer[:n])
		if errors.Is(err, io.EOF) {
			return sum.Sum(nil), nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	for round := range 12 {
		random := rand.New(rand.NewPCG(uint64(round), 6))
		s := play(t, relay.Options{Idle: time.Hour})
		up, down := random.IntN(8<<20), random.IntN(8<<20)
		var sent, got [2][]byte
		var errs [4]error
		var all sync.WaitGroup
		for i, way := range []struct {
			from, to *net.TCPConn
			n        int
		}{{s.caller, s.guest, up}, {s.guest, s.caller, down}} {
			a, b := rand.New(rand.NewPCG(random.Uint64(), 1)), rand.New(rand.NewPCG(random.Uint64(), 2))
			all.Go(func() { sent[i], errs[2*i] = send(way.from, a, way.n) })
			all.Go(func() { got[i], errs[2*i+1] = receive(way.to, b) })
		}
		all.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		for i := range sent {
			if !bytes.Equal(sent[i], got[i]) {
				t.Errorf("round %d: direction %d arrived changed", round, i)
			}
		}
		s.expect(relay.Done)
		s.counted(uint64(up), uint64(down))
	}
}

// A side that does not read holds the other one up, and gets everything later.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	const total = 64 << 20
	s := play(t, relay.Options{})
	_ = s.guest.SetReadBuffer(64 << 10)
	var written atomic.Int64
	sent := make(chan error, 1)
	sum := sha256.New()
	go func() {
		source := rand.NewChaCha8([32]byte{7})
		buffer := make([]byte, 64<<10)
		for written.Load() < total {
			_, _ = source.Read(buffer)
			sum.Write(buffer)
			n, err := s.caller.Write(buffer)
			if written.Add(int64(n)); err != nil {
				sent <- err
				return
			}
		}
		sent <- s.caller.CloseWrite()
	}()
	// It stalls: nothing moves any more in a while in which much moved before.
	last, still := int64(-1), 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for still < 20 {
		<-tick.C
		up, _ := s.relay.Bytes()
		if now := written.Load() + int64(up); now != last {
			last, still = now, 0
		} else if now > 0 {
			still++
		}
	}
	if n := written.Load(); n >= total {
		t.Fatalf("all of %d bytes were taken, and nobody reads them", n)
	}
	// The other direction is not held up.
	say(t, s.guest, "meanwhile")
	hear(t, s.caller, "meanwhile")
	got, err := receive(s.guest, rand.New(rand.NewPCG(1, 1)))
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sum.Sum(nil)) {
		t.Error("what arrived is not what was sent")
	}
	_ = s.guest.Close()
	s.expect(relay.Done)
	s.counted(total, 9)
}

// Without pipes, large streams are copied: both loops hold theirs up with streams
// that are stuck, so that a third one has none.
func TestWithoutPipes(t *testing.T) {
	defer relay.TakeAllPipes()()
	for range 2 * runtime.GOMAXPROCS(0) {
		stuck := play(t, relay.Options{})
		go func() { _, _ = stuck.caller.Write(make([]byte, 32<<20)) }()
		eventually(t, "something is on its way", func() bool {
			up, _ := stuck.relay.Bytes()
			return up > 1<<20
		})
	}
	s := play(t, relay.Options{})
	const n = 8 << 20
	sent := make(chan []byte, 1)
	go func() {
		sum, _ := send(s.caller, rand.New(rand.NewPCG(3, 3)), n)
		sent <- sum
	}()
	got, err := receive(s.guest, rand.New(rand.NewPCG(4, 4)))
	if err != nil || !bytes.Equal(got, <-sent) {
		t.Errorf("what arrived is not what was sent (%v)", err)
	}
	_ = s.guest.Close()
	s.expect(relay.Done)
	s.counted(n, 0)
}

// A relay that is ended while bytes are stuck on their way gives back all.
func TestNothingLeaks(t *testing.T) {
	const relays, together = 3000, 100
	round := func() {
		var all sync.WaitGroup
		for i := range together {
			s := play(t, relay.Options{Idle: time.Hour})
			all.Go(func() {
				random := rand.New(rand.NewPCG(uint64(i), 1))
				switch i % 4 {
				case 0: // a short exchange
					_, _ = s.caller.Write(make([]byte, 1+random.IntN(1000)))
					_ = s.caller.CloseWrite()
					_ = s.guest.Close()
				case 1: // stuck
					_ = s.caller.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
					_, _ = s.caller.Write(make([]byte, 8<<20))
					s.relay.Close()
				case 2:
					_ = s.guest.SetLinger(0)
					_ = s.guest.Close()
				case 3:
					s.stop()
				}
				<-s.ended
				_ = s.caller.Close()
				_ = s.guest.Close()
			})
		}
		all.Wait()
	}
	round() // pools and the poller have what they need
	descriptors, goroutines := open(t), runtime.NumGoroutine()
	for range relays/together - 1 {
		round()
	}
	eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	// Pipes that are spared may have become more, not without bound.
	eventually(t, "as many descriptors as before", func() bool { return open(t) <= descriptors+2*relay.MaxSpare })
}

func open(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
