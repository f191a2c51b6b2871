package meter_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sublet/internal/meter"
	"sublet/internal/vps"
)

func drop(reason vps.DropReason, packets uint64) vps.Drop {
	return vps.Drop{Reason: reason, Packets: packets, Bytes: 60 * packets}
}

func TestNotices(t *testing.T) {
	t.Parallel()
	var d meter.Drops
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		after time.Duration
		alice []vps.Drop
		want  []meter.Notice
	}{
		{0, []vps.Drop{drop(vps.DropSpoofed, 1000)}, nil}, // from before this daemon
		{10 * time.Second, []vps.Drop{drop(vps.DropSpoofed, 1000)}, nil},
		{20 * time.Second, []vps.Drop{drop(vps.DropSpoofed, 1001)}, []meter.Notice{{"alice", "1 packet dropped: spoofed 1"}}},
		{30 * time.Second, []vps.Drop{drop(vps.DropSpoofed, 1500), drop(vps.DropARP, 2000)}, nil}, // told just now
		{11 * time.Minute, []vps.Drop{drop(vps.DropSpoofed, 1500), drop(vps.DropARP, 2000)}, []meter.Notice{{"alice", "2499 packets dropped: arp 2000, spoofed 499"}}},
		{12 * time.Minute, []vps.Drop{drop(vps.DropSpoofed, 5)}, nil}, // the kernel's counters began anew
		{40 * time.Minute, []vps.Drop{drop(vps.DropSpoofed, 5)}, []meter.Notice{{"alice", "5 packets dropped: spoofed 5"}}},
		{60 * time.Minute, []vps.Drop{drop(vps.DropSpoofed, 5)}, nil},
	} {
		if got := d.Observe(start.Add(step.after), map[string][]vps.Drop{"alice": step.alice, "bob": nil}); !slices.Equal(got, step.want) {
			t.Errorf("after %s: %v, want %v", step.after, got, step.want)
		}
	}
	got := d.Of("alice")
	want := []meter.Dropped{
		{drop(vps.DropSpoofed, 1505), start.Add(12 * time.Minute)},
		{drop(vps.DropARP, 2000), start.Add(30 * time.Second)},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if d.Of("bob") != nil || d.Of("carol") != nil {
		t.Error("drops of guests that have none")
	}
	d.Observe(start, map[string][]vps.Drop{"bob": nil})
	if d.Of("alice") != nil {
		t.Error("a guest that is gone is remembered")
	}
}

// TestTotals: whatever the counters do, the total is the sum of what they grew
// by, and never shrinks.
func TestTotals(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var d meter.Drops
		var counter, want uint64
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 30).Draw(t, "observations") {
			if rapid.IntRange(0, 4).Draw(t, "reset") == 0 {
				counter = 0
				// A counter that passed its old value since it began anew cannot
				// be told from one that went on; the wall never lets that happen
				// unseen, so the observation comes before.
				d.Observe(now, map[string][]vps.Drop{"a": {drop(vps.DropVLAN, 0)}})
			}
			n := rapid.Uint64Range(0, 100).Draw(t, "packets")
			counter += n
			want += n
			now = now.Add(time.Second)
			d.Observe(now, map[string][]vps.Drop{"a": {drop(vps.DropVLAN, counter)}})
			var got uint64
			for _, x := range d.Of("a") {
				got += x.Packets
			}
			if got != want {
				t.Fatalf("%d packets, want %d", got, want)
			}
		}
	})
}
