package edge

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Unix(1e9, 0)
	taken := 0
	for range 1000 {
		if p.take(now, 100, burst) {
			taken++
		}
	}
	if taken != 100 {
		t.Errorf("%d at once, want a second's worth", taken)
	}
	for i := range 300 { // three seconds at 100 each, tried thrice as often
		for range 3 {
			if p.take(now.Add(time.Duration(i+1)*10*time.Millisecond), 100, burst) {
				taken++
			}
		}
	}
	if taken != 400 {
		t.Errorf("%d, want 400", taken)
	}
}

// TestShares: who asks for far more than a guest takes does not keep others from it,
// and alone he has all that it takes.
func TestShares(t *testing.T) {
	t.Parallel()
	var p sharedPace
	const rate, seconds = 100, 20
	greedy, modest := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Unix(1e9, 0)
	var alone, beside, refused int
	for range 10 * rate * seconds { // ten times the rate
		now = now.Add(time.Second / 10 / rate)
		if p.take(greedy, now, rate) {
			alone++
		}
	}
	for i := range 10 * rate * seconds {
		now = now.Add(time.Second / 10 / rate)
		if p.take(greedy, now, rate) {
			beside++
		}
		if i%(10*rate/20) == 0 && !p.take(modest, now, rate) { // 20 a second
			refused++
		}
	}
	if alone < rate*seconds || alone > rate*(seconds+1) {
		t.Errorf("alone, a caller has %d in %d s, at a rate of %d", alone, seconds, rate)
	}
	if refused > 0 || beside < (rate-20)*seconds-rate/2 {
		t.Errorf("beside a greedy caller, who had %d in %d s, another one was refused %d times", beside, seconds, refused)
	}

	var even sharedPace
	for range rate * seconds { // just what it takes
		now = now.Add(time.Second / rate)
		if !even.take(greedy, now, rate) {
			t.Fatal("a caller who keeps to the rate is refused")
		}
	}
}

func TestCallerKey(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::",
		"fe80::1%eth0": "fe80::",
	} {
		if got := callerKey(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

// TestCallersAreForgotten: a flood from everywhere leaves little behind, and does not
// make the edge forget who has connections.
func TestCallersAreForgotten(t *testing.T) {
	t.Parallel()
	var c callers
	now := time.Unix(1e9, 0)
	address := func(i int) netip.Addr {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], uint64(i)+1<<60)
		return netip.AddrFrom16(b)
	}
	for range 3 {
		if _, ok := c.admit(address(0), now, 3, 10); !ok {
			t.Fatal("refused")
		}
	}
	for i := 1; i < 4*maxRests; i++ {
		if _, ok := c.admit(address(i), now, 3, 10); !ok {
			t.Fatal("refused")
		}
		c.leave(address(i), now)
	}
	if n := c.len(); n > maxRests+1 {
		t.Errorf("%d are remembered", n)
	}
	if why, ok := c.admit(address(0), now, 3, 10); ok || why != ReasonCallerConnections {
		t.Errorf("the first one was forgotten: %v", ok)
	}
	// Later all rest, and are forgotten as others come and go.
	now = now.Add(time.Hour)
	for i := range 2 * maxRests {
		if _, ok := c.admit(address(i+1), now, 3, 10); !ok {
			t.Fatal("refused")
		}
		c.leave(address(i+1), now)
		now = now.Add(time.Second)
	}
	if n := c.len(); n > 8 {
		t.Errorf("%d are remembered", n)
	}
}

func BenchmarkAdmit(b *testing.B) {
	var c callers
	now := time.Unix(1e9, 0)
	var a [4]byte
	for i := 0; b.Loop(); i++ {
		binary.BigEndian.PutUint32(a[:], uint32(i))
		key := netip.AddrFrom4(a)
		c.admit(key, now, 1024, 1000)
		c.leave(key, now)
	}
}

func TestRoom(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		files        uint64
		memory, want int64
	}{
		{1 << 20, math.MaxInt64, 1<<20 - 2048},
		{1024, math.MaxInt64, 768},
		{math.MaxUint64, math.MaxInt64, 1<<30 - 2048},
		{1 << 20, 128 << 20, 32 << 10},
		{1024, 128 << 20, 768},
	} {
		if got := roomFor(tt.files, tt.memory); got != tt.want {
			t.Errorf("%d files and %d bytes: %d, want %d", tt.files, tt.memory, got, tt.want)
		}
	}
}
