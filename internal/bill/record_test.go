package bill_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestSpans: what happens to guests while the clock may be wrong is billed once
// it is sure, as far as that clock can have been right.
func TestSpans(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		unsure func(w *world)
		shown  time.Time // by the clock that is not sure
		want   []string
	}{
		"nothing happens": {nil, day(2026, 10, 20), []string{"alice owner 2026-10-05..2026-10-21"}},
		"deleted":         {func(w *world) { w.host.Guests = nil }, day(2026, 10, 20), []string{"alice owner 2026-10-05..2026-10-20"}},
		"moved": {func(w *world) { w.host.Guests[0].Spec.Tenant = "bob" }, day(2026, 10, 20), []string{
			"alice owner 2026-10-05..2026-10-19", "alice bob 2026-10-20..2026-10-21",
		}},
		"moved on the last day on record": {func(w *world) { w.host.Guests[0].Spec.Tenant = "bob" }, day(2026, 10, 5), []string{"alice bob 2026-10-05..2026-10-21"}},
		"deleted by a clock that is ahead": {func(w *world) { w.host.Guests = nil }, day(2038, 1, 1), []string{
			"alice owner 2026-10-05..2026-10-21",
		}},
		"moved by a clock that is ahead": {func(w *world) { w.host.Guests[0].Spec.Tenant = "bob" }, day(2038, 1, 1), []string{
			"alice owner 2026-10-05..2026-10-20", "alice bob 2026-10-21..2026-10-21",
		}},
		"deleted by a clock that is behind": {func(w *world) { w.host.Guests = nil }, day(1970, 1, 1), []string{"alice owner 2026-10-05..2026-10-05"}},
		"made by one that is before the record": {func(w *world) { w.add("brief", "bob") }, day(1970, 1, 1), []string{
			"alice owner 2026-10-05..2026-10-21",
		}},
		"made": {func(w *world) { w.add("brief", "bob") }, day(2026, 10, 20), []string{
			"alice owner 2026-10-05..2026-10-21", "brief bob 2026-10-20..2026-10-20",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.now = day(2026, 10, 5)
			w.add("alice", "owner")
			w.record(t)
			w.now, w.wrong = c.shown, true // the host was off for two weeks
			w.record(t)
			if c.unsure != nil {
				c.unsure(w)
			}
			w.record(t)
			w.record(t)
			if len(w.host.Guests) > 1 {
				w.host.Guests = w.host.Guests[:1]
			}
			w.record(t)
			if now := spans(t, w); !cmp.Equal(now, []string{"alice owner 2026-10-05..2026-10-05"}) {
				t.Errorf("while the clock is not sure there are days of it: %q", now)
			}
			w.now, w.wrong = day(2026, 10, 21), false
			w.record(t)
			if diff := cmp.Diff(c.want, spans(t, w)); diff != "" {
				t.Error(diff)
			}
			if left, err := w.db.GuestSpans(t.Context()); err != nil || len(left) > 0 {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
	}
}

// spans tells of the days that are kept of October, in a row where they are.
func spans(t *testing.T, w *world) (all []string) {
	t.Helper()
	days, err := w.db.GuestDays(t.Context(), october)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for _, d := range days {
		who := d.Guest + " " + d.Tenant
		i, found := at[who]
		if !found {
			at[who], all = len(all), append(all, who+" "+d.Day+".."+d.Day)
			continue
		}
		first, last, _ := strings.Cut(all[i], "..")
		if next, err := time.Parse(time.DateOnly, last); err != nil || next.AddDate(0, 0, 1).Format(time.DateOnly) != d.Day {
			t.Errorf("%s: %s follows %s, %v", who, d.Day, last, err)
		}
		all[i] = first + ".." + d.Day
	}
	return all
}

// TestSpansWrites: while the clock is not sure, what is on record is not written
// again, and bills have it.
func TestSpansWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	w.record(t)
	w.now, w.wrong = day(2026, 10, 20), true
	for range 3 {
		w.record(t)
	}
	w.host.Guests[0].Spec.Tenant = "bob"
	for range 3 {
		w.record(t)
	}
	kept, err := w.db.GuestSpans(t.Context())
	if err != nil || len(kept) != 2 || kept[0].First != "2026-10-02" || kept[1].First != "2026-10-20" {
		t.Errorf("%+v, %v", kept, err)
	}
	w.host.Guests = nil
	b := w.bill(t, "2026-10")
	if alice, bob := line(t, b, "owner", "alice"), line(t, b, "bob", "alice"); b.State != vps.BillOpen || alice.Days != 19 || bob.Days != 1 {
		t.Errorf("%+v", b)
	}
}

// TestLedgersTenant: traffic of a guest that is on no record of days is its
// tenant's by the ledger.
func TestLedgersTenant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	w.record(t)
	in := input(october, yuan())
	send(&in, "brief", 5, vps.TrafficInternet, 0, int64(vps.GiB))
	in.Rows[0].Tenant = "bob"
	w.rows = in.Rows
	w.now = day(2026, 11, 2)
	if l := line(t, w.bill(t, "2026-10"), "bob", "brief"); l.Total != 53 {
		t.Errorf("%+v", l)
	}
}
