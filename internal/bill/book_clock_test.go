package bill_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/bill"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// TestWrongClock: days that a clock in the future told are no days.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	w.record(t)
	w.now = day(2030, 1, 1)
	w.record(t)
	w.now = day(2026, 10, 2)
	w.record(t)
	if days, err := w.db.LastGuestDays(t.Context()); err != nil || len(days) != 1 || days[0].Day != "2026-10-02" {
		t.Errorf("%+v, %v", days, err)
	}
}

// TestUnsure: while the clock may be wrong nothing is kept and nothing dropped,
// whoever asks; and prices stay as long as they are to make bills by.
func TestUnsure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.record(t)
	w.now = day(2026, 10, 20)
	w.record(t)
	kept := func() (days []vps.GuestDay) {
		days, err := w.db.GuestDays(t.Context(), october)
		if err != nil {
			t.Fatal(err)
		}
		return days
	}
	before := kept()
	for _, now := range []time.Time{day(1970, 1, 1), day(2026, 9, 30), day(2026, 11, 2), day(2038, 1, 1)} {
		w.now, w.wrong = now, true
		w.record(t)
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		ahead := now.After(day(2026, 10, 31))
		b, err := w.Bill(t.Context(), &october)
		if ahead && (err != nil || b.State != vps.BillOpen || b.Total != 9400) || !ahead && vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%s: %+v, %v", now, b, err)
		}
		if _, err := w.Bill(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if _, err := w.Correct(t.Context(), october, bill.Correction{Guest: "alice", Amount: "1", Reason: "x"}); err == nil {
			t.Error("what is not final was corrected")
		}
		err = w.Settle(t.Context())
		if ahead != (vps.ErrorCode(err) == vps.CodeConflict) || ahead && !strings.Contains(err.Error(), "the bill of October 2026 has to be made first") {
			t.Errorf("%s: the price may change: %v", now, err)
		}
		if _, _, err := w.db.Bill(t.Context(), october); vps.ErrorCode(err) != vps.CodeNotFound {
			t.Errorf("%s: a bill is kept: %v", now, err)
		}
		if diff := cmp.Diff(before, kept()); diff != "" {
			t.Errorf("%s: %s", now, diff)
		}
	}
	w.now, w.wrong = day(2026, 11, 2), false
	if err := w.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := w.bill(t, "2026-10")
	if first.State != vps.BillFinal {
		t.Errorf("%+v", first)
	}
	w.now, w.wrong = day(1970, 1, 1), true
	if diff := cmp.Diff(first, w.bill(t, "2026-10")); diff != "" {
		t.Errorf("a clock that is behind hides a bill: %s", diff)
	}
	w.host.Settings.Price = vps.DefaultPrice()
	if err := w.Settle(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestBeganAhead: bills are made from the month that runs on, also when they
// began under a clock that was far ahead.
func TestBeganAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	for _, now := range []time.Time{day(2038, 1, 1), day(2026, 10, 5), day(2026, 11, 2)} {
		w.now = now
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if there, err := w.db.HasBill(t.Context(), october); err != nil || !there {
		t.Errorf("October has no bill: %v", err)
	}
}

// TestClockBehind: a guest that by the clock is not made yet is not there, and
// is there on all its days once the clock is right.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.now = day(2026, 10, 20)
	w.add("alice", "owner")
	w.now = day(2026, 10, 18)
	w.record(t)
	if days, err := w.db.LastGuestDays(t.Context()); err != nil || len(days) != 0 {
		t.Errorf("before it was made there are %+v, %v", days, err)
	}
	w.now = day(2026, 10, 22)
	w.record(t)
	w.now = day(2026, 10, 21) // the days after are taken back
	w.record(t)
	days, err := w.db.GuestDays(t.Context(), october)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range days {
		got = append(got, d.Day)
	}
	if diff := cmp.Diff([]string{"2026-10-20", "2026-10-21"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestZoneChanged: no day of the ledger is billed twice or never when the host's
// zone changes.
func TestZoneChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Settings.Timezone = "Asia/Shanghai"
	w.add("alice", "owner")
	in := input(october, yuan())
	in.Zone = time.FixedZone("", 8*3600)
	send(&in, "alice", 31, vps.TrafficInternet, 0, int64(vps.GiB))
	send(&in, "alice", 32, vps.TrafficInternet, 0, int64(vps.GiB)) // begins on October 31 in UTC
	w.rows = in.Rows
	w.now = day(2026, 11, 1)
	if b := w.bill(t, "2026-10"); b.Total != 9400+53 {
		t.Errorf("%+v", b)
	}
	w.host.Settings.Timezone = "Etc/UTC"
	w.now = day(2026, 12, 1)
	if b := w.bill(t, "2026-11"); b.Total != 9400+53 {
		t.Errorf("%+v", b)
	}
}

// TestZoneChangedWest: with the ledger's own days, which go on under their old
// begin when the zone moves to the west in the night in which a month ends.
func TestZoneChangedWest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		begun bool // bills are made unasked, so that October's is kept before
		want  [2]vps.Money
	}{
		"October is kept":      {true, [2]vps.Money{9400 + 2*53, 9400 + 3*53}},
		"October is asked for": {false, [2]vps.Money{9400 + 2*53, 9400 + 3*53}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.host.Settings.Timezone = "Asia/Shanghai"
			w.now = time.Date(2026, 9, 30, 16, 0, 1, 0, time.UTC) // October in Shanghai
			w.add("alice", "owner")
			w.add("gone", "owner")
			w.Ledger = realLedger{w.db}
			if !c.begun {
				w.host.Settings.Price = vps.DefaultPrice()
			}
			look := func(now time.Time, gib int64) {
				t.Helper()
				w.now = now
				w.send(t, gib)
				w.record(t)
				if err := w.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			utc := func(month time.Month, day, hour int) time.Time {
				return time.Date(2026, month, day, hour, 0, 0, 0, time.UTC)
			}
			look(w.now, 0)
			look(utc(9, 30, 17), 1)  // October 1 there, September 30 in UTC
			look(utc(10, 31, 15), 1) // October 31
			w.host.Guests = w.host.Guests[:1]
			look(utc(10, 31, 17), 1) // November 1 there: October is over
			w.host.Settings.Timezone = "Etc/UTC"
			look(utc(10, 31, 18), 1) // October 31 again
			look(utc(11, 1, 1), 1)   // November 1 again
			w.host.Settings.Price = yuan()
			w.now = utc(12, 2, 0)
			october, november := w.bill(t, "2026-10"), w.bill(t, "2026-11")
			if got := [2]vps.Money{october.Total, november.Total}; got != c.want {
				t.Errorf("%v, want %v\n%+v\n%+v", got, c.want, october, november)
			}
			if !october.End.Equal(november.Start) {
				t.Errorf("October ends at %s, and November begins at %s", october.End, november.Start)
			}
			if l := line(t, october, "owner", "alice"); len(l.Rows) != 2 || l.Days != 31 || l.Rows[0].Start.Format(time.DateOnly) != "2026-10-01" {
				t.Errorf("%+v", l)
			}
			if l := line(t, october, "owner", "gone"); l.Days != 31 {
				t.Errorf("%+v", l)
			}
			if n := len(november.Tenants[0].Lines); n != 1 {
				t.Errorf("%d lines in November", n)
			}
		})
	}
}

// realLedger is what samples went into; it is whole.
type realLedger struct{ db *sqlite.DB }

func (l realLedger) Traffic(ctx context.Context, q vps.TrafficQuery, _ bool) ([]vps.TrafficRow, error) {
	return l.db.Traffic(ctx, q)
}

// send lets alice's link send so many GiB until now, into the real ledger.
func (w *world) send(t *testing.T, gib int64) {
	t.Helper()
	w.sent += gib * int64(vps.GiB)
	zone, err := time.LoadLocation(w.host.Settings.Timezone)
	if err != nil {
		t.Fatal(err)
	}
	sample := sqlite.TrafficSample{
		Counters: vps.TrafficCounters{At: w.now, Epoch: "e", Links: []vps.LinkTraffic{{
			Link: "sl-alice", TrafficKey: vps.TrafficKey{Class: vps.TrafficInternet, Family: 4}, TrafficCount: vps.TrafficCount{OutBytes: w.sent, OutPackets: w.sent},
		}}},
		Guests: []sqlite.TrafficGuest{{ID: "id-alice", Name: "alice", Tenant: "owner", Link: "sl-alice"}},
		Boot:   "b", Uptime: time.Duration(w.now.UnixNano()), Zone: zone,
	}
	if _, err := w.db.AddTraffic(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
}
