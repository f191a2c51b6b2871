package daemon

import (
	"errors"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

const aDay = 24 * time.Hour

// TestClockSure: a clock that is not the one that the ledger knows is not
// believed, also when no daemon saw somebody set it.
func TestClockSure(t *testing.T) {
	t.Parallel()
	for name, skew := range map[string]time.Duration{"ahead": 40 * aDay, "behind": -40 * aDay, "two minutes": 2 * time.Minute} {
		w := newTrafficWorld(t)
		if !w.clockSure(t.Context()) {
			t.Fatal("the first clock contradicts nothing")
		}
		w.skew = skew // while no daemon ran
		for range 2 {
			if w.clockSure(t.Context()) {
				t.Errorf("%s: the clock is believed", name)
			}
		}
		w.synced = func() bool { return true }
		if !w.clockSure(t.Context()) {
			t.Errorf("%s: the clock is kept in step with others, and not believed", name)
		}
	}
	w := newTrafficWorld(t)
	w.traffic.boot = "another boot"
	if w.clockSure(t.Context()) {
		t.Error("a clock that nobody has seen since the boot is believed")
	}
}

// TestPriceWaits: while the clock may be wrong, what bills of months that seem to
// be over go by stays as it is.
func TestPriceWaits(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.state = w.state.WithClock(midMonth)
	price := func(p vps.Price) vps.Price {
		p.Currency, p.Month = "CNY", 94*vps.DecimalOne
		return p
	}
	if _, err := w.state.SetPrice(t.Context(), price, false); err != nil {
		t.Fatal(err)
	}
	past := vps.MonthOf(time.Now().UTC().AddDate(0, 0, -32))
	if err := w.db.BeginBills(t.Context(), past); err != nil {
		t.Fatal(err)
	}
	if err := w.db.KeepGuestDays(t.Context(), past.Day(1), []vps.GuestDay{{Day: past.Day(1), GuestID: "1", Guest: "alice", Tenant: "owner", Memory: vps.GiB, Weight: 1}}); err != nil {
		t.Fatal(err)
	}
	w.skew = aDay
	refused := func(what string, err error) {
		t.Helper()
		if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "look at the clock with `date`") {
			t.Errorf("%s: %v", what, err)
		}
	}
	more := 100 * vps.DecimalOne
	_, err := w.SetPrice(t.Context(), api.SetPrice{Month: &more}, false)
	refused("a price is set", err)
	_, err = w.RemovePrice(t.Context(), false)
	refused("the price is removed", err)
	_, err = w.Apply(t.Context(), strings.NewReader("settings: {price: {month: 100}}"), api.ApplyOptions{})
	refused("a file has a price", err)
	_, err = w.Apply(t.Context(), strings.NewReader("settings: {timezone: Asia/Shanghai}"), api.ApplyOptions{})
	refused("a file has a time zone", err)
	host, err := w.state.Host(t.Context())
	if err != nil || host.Settings.Price != price(vps.DefaultPrice()) || host.Settings.Timezone == "Asia/Shanghai" {
		t.Errorf("%+v, %v", host.Settings, err)
	}
	e, err := w.state.Apply(t.Context(), strings.NewReader("settings: {traffic_sample: 20s}"), false, true)
	if err == nil {
		err = w.settleBills(t.Context(), e)
	}
	if err != nil {
		t.Errorf("what bills do not go by may not be set: %v", err)
	}
	w.skew = 0
	if there, err := w.db.HasBill(t.Context(), past); err != nil || there {
		t.Errorf("a bill is made: %v", err)
	}
	w.synced = func() bool { return true }
	if e, err = w.state.SetPrice(t.Context(), api.SetPrice{Month: &more}.Apply, true); err == nil {
		err = w.settleBills(t.Context(), e)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, _, err := w.db.Bill(t.Context(), past); err != nil || b.Price.Month != 94*vps.DecimalOne {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestZoneWaits: the zone stays as it is while that would end a month early, or
// let one go on that is over, however it is asked for.
func TestZoneWaits(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	const east = "Pacific/Kiritimati"
	now := time.Date(2026, 11, 30, 13, 43, 0, 0, time.UTC)
	w.state = w.state.WithClock(func() time.Time { return now })
	zone := east
	for what, ask := range map[string]func(dryRun bool) error{
		"host set": func(dryRun bool) error {
			_, err := w.UpdateHost(t.Context(), api.UpdateHost{Timezone: &zone}, dryRun)
			return err
		},
		"apply": func(dryRun bool) error {
			_, err := w.Apply(t.Context(), strings.NewReader("settings: {timezone: "+east+"}"), api.ApplyOptions{DryRun: dryRun})
			return err
		},
	} {
		for _, dryRun := range []bool{true, false} {
			if err := ask(dryRun); vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "change it after 2026-12-01 00:00 UTC") {
				t.Errorf("%s (dry run %v): %v", what, dryRun, err)
			}
		}
	}
	host, err := w.state.Host(t.Context())
	if err != nil || host.Settings.Timezone == east {
		t.Errorf("the zone is %s, %v", host.Settings.Timezone, err)
	}
	now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	if _, err := w.state.SetSettings(t.Context(), api.UpdateHost{Timezone: &zone}.Apply, false); err != nil {
		t.Errorf("when it is the same month in both: %v", err)
	}
}

// TestUnsettled: a month that just ended gets no final bill as long as the last
// of its traffic is only in the kernel; the open bill of one that runs may lack it.
func TestUnsettled(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.synced = func() bool { return true }
	if _, err := w.state.SetPrice(t.Context(), func(p vps.Price) vps.Price { p.Currency = "CNY"; return p }, false); err != nil {
		t.Fatal(err)
	}
	month := vps.MonthOf(time.Now().UTC())
	book := w.book()
	if err := book.Close(t.Context()); err != nil { // bills begin
		t.Fatal(err)
	}
	book.Now = func() time.Time { return month.Next().Start(time.UTC).Add(time.Minute) }
	w.broken = errors.New("no counters")
	if err := book.Close(t.Context()); !errors.Is(err, w.broken) {
		t.Errorf("a bill is made without the last traffic: %v", err)
	}
	if there, err := w.db.HasBill(t.Context(), month); err != nil || there {
		t.Errorf("it is kept: %v", err)
	}
	if b, err := book.Bill(t.Context(), nil); err != nil || b.State != vps.BillOpen {
		t.Errorf("the month that runs: %+v, %v", b, err)
	}
	w.broken = nil
	if err := book.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if there, err := w.db.HasBill(t.Context(), month); err != nil || !there {
		t.Errorf("no bill is made: %v", err)
	}
}
