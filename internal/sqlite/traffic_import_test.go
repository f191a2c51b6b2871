package sqlite

import (
	"fmt"
	"math"
	"testing"
	"time"

	"sublet/internal/vps"
)

// sums adds up what a guest received, by step.
func sums(t *testing.T, db *DB, id string) map[vps.TrafficStep]int64 {
	t.Helper()
	all := map[vps.TrafficStep]int64{}
	for _, step := range vps.TrafficSteps() {
		rows, err := db.Traffic(t.Context(), vps.TrafficQuery{Step: step, GuestIDs: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			all[step] += r.InBytes
		}
	}
	return all
}

// TestImport imports the history of a program that has counted beside the
// ledger since it began, so that the same bytes are in both.
func TestImport(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 10, 20, 14, 30, 0, 0, time.UTC)
	c := newCounted(t, begin, alice, web)
	c.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaGuest, "alice", "Etc/UTC")}
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1_000_000)
	now := begin.Add(2 * time.Hour)
	row := func(step vps.TrafficStep, start time.Time, in int64) vps.TrafficRow {
		return vps.TrafficRow{Step: step, Start: start, TrafficCount: vps.TrafficCount{InBytes: in, OutBytes: in / 2}}
	}
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 10, day, hour, minute, 0, 0, time.UTC) }
	imported := TrafficImport{Guest: alice, Now: now, Rows: []vps.TrafficRow{
		row(vps.StepFiveMinutes, at(20, 14, 25), 3), row(vps.StepFiveMinutes, at(20, 14, 30), 1_000_000), row(vps.StepFiveMinutes, at(10, 1, 0), 99),
		row(vps.StepHour, at(20, 13, 0), 40), row(vps.StepHour, at(20, 14, 0), 1_000_003), row(vps.StepHour, at(20, 15, 0), 500),
		row(vps.StepDay, at(19, 0, 0), 600), row(vps.StepDay, at(20, 0, 0), 1_000_043),
		row(vps.StepMonth, at(1, 0, 0).AddDate(0, -1, 0), 8000), row(vps.StepMonth, at(1, 0, 0), 1_000_643),
	}}
	want := map[vps.TrafficStep]int64{
		vps.StepFiveMinutes: 1_000_000 + 3, vps.StepHour: 1_000_000 + 40 + 3,
		vps.StepDay: 1_000_000 + 600 + 43, vps.StepMonth: 1_000_000 + 8000 + 643,
	}
	check := func(what string, want map[vps.TrafficStep]int64) {
		t.Helper()
		for step, sum := range sums(t, c.db, alice.ID) {
			if sum != want[step] {
				t.Errorf("%s: by %s there are %d bytes; want %d", what, step, sum, want[step])
			}
		}
	}
	for _, what := range []string{"imported", "imported again"} {
		if _, err := c.db.ImportTraffic(t.Context(), imported); err != nil {
			t.Fatal(err)
		}
		check(what, want)
	}
	c.want(c.sample(), 1_000_643)
	for step, in := range want {
		rows, err := c.db.Traffic(t.Context(), vps.TrafficQuery{Step: step, GuestIDs: []string{alice.ID}, Imported: true, Whole: true})
		if err != nil || len(rows) != 1 || rows[0].InBytes != in-1_000_000 {
			t.Errorf("imported are by %s %+v, %v; want %d", step, rows, err, in-1_000_000)
		}
	}

	t.Log("another import takes the place of the first in its steps, and leaves other guests alone")
	other := imported
	other.Guest, other.Rows = web, []vps.TrafficRow{row(vps.StepMonth, at(1, 0, 0).AddDate(0, -1, 0), 5)}
	if _, err := c.db.ImportTraffic(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	check("another guest's import", want)
	imported.Rows = []vps.TrafficRow{row(vps.StepMonth, at(1, 0, 0).AddDate(0, -1, 0), 8001)}
	made, err := c.db.ImportTraffic(t.Context(), imported)
	if err != nil || len(made.Rows) != 1 || made.Rows[0].InBytes != 8001 || made.Rows[0].Guest != "alice" || made.Replaced[vps.StepMonth] != 1 || len(made.New) != 0 {
		t.Errorf("made is %+v (%v)", made, err)
	}
	want[vps.StepMonth] = 1_000_000 + 8001 + 643 // the month that was cut stays, too
	check("another import", want)
	if got := sums(t, c.db, web.ID)[vps.StepMonth]; got != 5 {
		t.Errorf("the other guest's month has %d bytes; want 5", got)
	}

	t.Log("what is no traffic is refused, and changes nothing")
	for _, bad := range []vps.TrafficRow{
		row(vps.StepDay, at(1, 0, 0), -1), row("year", at(1, 0, 0), 1),
		{Step: vps.StepDay, TrafficKey: vps.TrafficKey{Class: "x"}},
		row(vps.StepDay, at(1, 0, 0), vps.MaxImportedRow+1),
	} {
		imported.Rows = []vps.TrafficRow{row(vps.StepMonth, at(1, 0, 0).AddDate(0, -2, 0), 1), bad}
		if _, err := c.db.ImportTraffic(t.Context(), imported); err == nil {
			t.Errorf("%+v is no error", bad)
		}
	}
	imported.Rows = nil
	for day := 1; day <= 17; day++ {
		imported.Rows = append(imported.Rows, row(vps.StepDay, at(day, 0, 0).AddDate(0, -3, 0), vps.MaxImportedRow))
	}
	if _, err := c.db.ImportTraffic(t.Context(), imported); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("rows that come to more than there can be: %v", err)
	}
	check("after bad imports", want)

	t.Log("what is as large as it may be of each guest is no more than fits, for tenants too")
	huge := []vps.TrafficRow{}
	for day := 1; day <= 16; day++ {
		huge = append(huge, row(vps.StepDay, at(day, 0, 0), vps.MaxImportedRow))
	}
	c.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaTenant, "bob", "Etc/UTC")}
	for i := range 9 {
		g := TrafficGuest{ID: fmt.Sprint("huge", i), Name: fmt.Sprint("huge", i), Tenant: "bob", Link: fmt.Sprint("sl-huge", i)}
		c.Guests = append(c.Guests, g)
		if _, err := c.db.ImportTraffic(t.Context(), TrafficImport{Guest: g, Now: now, Rows: huge}); err != nil {
			t.Fatal(err)
		}
	}
	if a := c.sample(); len(a) != 1 || a[0].In != math.MaxInt64 || a[0].Out < 9*vps.MaxImportedSum/2 {
		t.Errorf("the tenant's account is %+v", a)
	}
	if a := c.pass(time.Second, "sl-huge1", vps.TrafficInternet, 1000); a[0].In != math.MaxInt64 {
		t.Errorf("and then %+v", a)
	}
}

// TestImportsMerge: each import adds to those before. Rows take the place of
// those of their own step, and nothing else is lost, whatever a file lacks.
func TestImportsMerge(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 10, 20, 14, 30, 0, 0, time.UTC)
	c := newCounted(t, begin, alice, web)
	c.sample()
	now := begin.Add(time.Minute)
	zone := time.UTC
	day := func(month time.Month, day int, in int64) vps.TrafficRow {
		return vps.TrafficRow{Step: vps.StepDay, Start: time.Date(2026, month, day, 0, 0, 0, 0, zone), TrafficCount: vps.TrafficCount{InBytes: in}}
	}
	month := func(year int, month time.Month, in int64) vps.TrafficRow {
		return vps.TrafficRow{Step: vps.StepMonth, Start: time.Date(year, month, 1, 0, 0, 0, 0, zone), TrafficCount: vps.TrafficCount{InBytes: in}}
	}
	hour := func(day, hour int, in int64) vps.TrafficRow {
		return vps.TrafficRow{Step: vps.StepHour, Start: time.Date(2026, time.October, day, hour, 0, 0, 0, zone), TrafficCount: vps.TrafficCount{InBytes: in}}
	}
	take := func(guest TrafficGuest, dryRun bool, rows ...vps.TrafficRow) Imported {
		t.Helper()
		made, err := c.db.ImportTraffic(t.Context(), TrafficImport{Guest: guest, Zone: zone, Now: now, Rows: rows, DryRun: dryRun})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	take(web, false, day(9, 1, 7), month(2026, 9, 7))
	for _, step := range []struct {
		what            string
		later           time.Duration // after the one before
		zone            *time.Location
		rows            []vps.TrafficRow
		day, month      int64 // that there are then
		fresh, replaced string
	}{
		{
			what: "the first", rows: []vps.TrafficRow{hour(20, 13, 3), day(9, 1, 10), day(10, 1, 20), day(10, 20, 9), month(2026, 9, 100), month(2026, 10, 33)},
			day: 10 + 20 + 3, month: 100 + 23, fresh: "map[day:3 hour:1 month:2]", replaced: "map[]",
		},
		{
			what: "other years", rows: []vps.TrafficRow{month(2024, 5, 1000), month(2025, 9, 2000)},
			day: 33, month: 3123, fresh: "map[month:2]", replaced: "map[]",
		},
		{
			what: "the first again", rows: []vps.TrafficRow{hour(20, 13, 3), day(9, 1, 10), day(10, 1, 20), day(10, 20, 9), month(2026, 9, 100), month(2026, 10, 33)},
			day: 33, month: 3123, fresh: "map[]", replaced: "map[]",
		},
		{
			what: "a newer file, which has no hours any more, and fewer days and months", later: 100 * 24 * time.Hour,
			rows: []vps.TrafficRow{day(10, 5, 50), day(10, 20, 900), day(10, 21, 900), month(2026, 9, 101), month(2026, 10, 5000), month(2026, 11, 5000)},
			day:  83, month: 3123 + 1 + 50, fresh: "map[day:1]", replaced: "map[month:2]",
		},
		{
			what: "the same days and months as the host calls them in another zone", zone: time.FixedZone("", 8*3600),
			rows: []vps.TrafficRow{day(9, 1, 11), day(10, 1, 20), month(2026, 9, 101)},
			day:  84, month: 3174, fresh: "map[]", replaced: "map[day:1]",
		},
	} {
		now = now.Add(step.later)
		if step.zone != nil {
			zone = step.zone
			for i := range step.rows {
				r := &step.rows[i]
				r.Start = time.Date(r.Start.Year(), r.Start.Month(), r.Start.Day(), 0, 0, 0, 0, zone)
			}
		}
		for _, dryRun := range []bool{true, false} {
			made := take(alice, dryRun, step.rows...)
			if fresh, replaced := fmt.Sprint(made.New), fmt.Sprint(made.Replaced); fresh != step.fresh || replaced != step.replaced {
				t.Errorf("%s (dry run %v): new are %s, replaced %s; want %s and %s", step.what, dryRun, fresh, replaced, step.fresh, step.replaced)
			}
		}
		if got := sums(t, c.db, alice.ID); got[vps.StepDay] != step.day || got[vps.StepMonth] != step.month {
			t.Errorf("%s: days have %d bytes and months %d; want %d and %d", step.what, got[vps.StepDay], got[vps.StepMonth], step.day, step.month)
		}
		if got := sums(t, c.db, web.ID); got[vps.StepDay] != 7 || got[vps.StepMonth] != 7 {
			t.Errorf("%s: the other guest has %v", step.what, got)
		}
	}
	// Together they may not have more than one could.
	for at := range 17 {
		_, err := c.db.ImportTraffic(t.Context(), TrafficImport{Guest: alice, Now: now, Rows: []vps.TrafficRow{month(2000+at, 1, vps.MaxImportedRow)}})
		if at == 15 && vps.ErrorCode(err) != vps.CodeInvalid || at < 15 && err != nil {
			t.Errorf("%d large months: %v", at+1, err)
		}
	}
}

// TestPrune drops what is too old, but not because the clock is wrong.
func TestPrune(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	c := newCounted(t, begin, alice)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.pass(10*time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	old := func() int {
		rows, err := c.db.Traffic(t.Context(), vps.TrafficQuery{Step: vps.StepFiveMinutes, Until: begin.Add(5 * time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		return len(rows)
	}
	right := c.Counters.At
	c.Counters.At = time.Date(2038, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 10 {
		c.pass(10*time.Minute, "sl-alice", vps.TrafficInternet, 1)
	}
	c.Counters.At = right
	c.pass(10*time.Minute, "sl-alice", vps.TrafficInternet, 1)
	if old() != 1 {
		t.Fatal("a clock that was wrong for some time has cost history")
	}
	for range 3 * 24 {
		c.pass(time.Hour, "sl-alice", vps.TrafficInternet, 1)
	}
	if old() != 0 {
		t.Error("5 minutes are kept for more than 2 days")
	}
	if got := sums(t, c.db, alice.ID); got[vps.StepHour] != got[vps.StepMonth] || got[vps.StepDay] != got[vps.StepMonth] {
		t.Errorf("the steps do not agree: %v", got)
	}
}

// TestImportForHost: what is imported of the public link counts for the host's
// quota, once, also when it is imported again.
func TestImportForHost(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 10, 20, 14, 30, 0, 0, time.UTC)
	c := newCounted(t, begin, alice)
	c.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaHost, "", "Etc/UTC"), vps.NewQuota(vps.QuotaGuest, "alice", "Etc/UTC")}
	public := func(in int64) []vps.QuotaAccount {
		c.Counters.At, c.Uptime = c.Counters.At.Add(time.Minute), c.Uptime+time.Minute
		c.Uplinks = []vps.LinkTraffic{{Link: "eth0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: in, OutBytes: in / 2}}}
		return c.sample()
	}
	public(1 << 40)
	c.want(public(1<<40+100), 100, 0)
	row := func(day int, month time.Month, in int64) vps.TrafficRow {
		return vps.TrafficRow{
			Step: vps.StepDay, Start: time.Date(2026, month, day, 0, 0, 0, 0, time.UTC),
			TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: in, OutBytes: in / 2},
		}
	}
	for _, imported := range []int64{5000, 5000, 800} { // each takes the place of the one before
		i := TrafficImport{Now: c.Counters.At, Rows: []vps.TrafficRow{row(30, time.September, 1<<40), row(5, time.October, imported)}}
		if _, err := c.db.ImportTraffic(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		c.want(c.sample(), 100+imported, 0)
	}
	c.want(public(1<<40+110), 910, 0)
	stored, err := c.db.QuotaAccounts(t.Context())
	if err != nil || len(stored) != 2 || stored[1].ID != "host" || stored[1].In != 910 {
		t.Errorf("stored are %+v (%v)", stored, err)
	}
}
