package sqlite

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestClockSteady follows what a clock shows, with a new daemon at each sample.
func TestClockSteady(t *testing.T) {
	t.Parallel()
	type look struct {
		wall, up time.Duration // since the look before
		steady   bool
	}
	const minute, long, year = time.Minute, 7 * time.Hour, 365 * 24 * time.Hour
	for name, looks := range map[string][]look{
		"as time goes":        {{minute, minute, true}, {long, long, true}},
		"kept in step":        {{61 * time.Second, minute, true}, {59 * time.Second, minute, true}},
		"ahead for a minute":  {{12 * year, minute, false}, {minute - 12*year, minute, false}, {3 * time.Hour, 3 * time.Hour, false}, {4 * time.Hour, 4 * time.Hour, true}},
		"behind for a minute": {{-year, minute, false}, {year + minute, minute, false}, {long, long, true}},
		"set for good":        {{year, minute, false}, {long, long, true}},
		"set twice":           {{year, minute, false}, {5 * time.Hour, 5 * time.Hour, false}, {year, minute, false}, {5 * time.Hour, 5 * time.Hour, false}},
		"booted":              {{minute, -23 * time.Hour, false}, {5 * time.Hour, 5 * time.Hour, false}, {long, long, true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounted(t, time.Date(2026, 10, 31, 12, 0, 0, 0, time.UTC), alice)
			for i, l := range looks {
				if l.up < 0 {
					c.Boot += "again"
				}
				c.Counters.At, c.Uptime = c.Counters.At.Add(l.wall), c.Uptime+l.up
				c.db.ledger.book = nil
				c.sample()
				if steady, err := c.db.ClockSteady(t.Context()); err != nil || steady != l.steady {
					t.Errorf("look %d: steady is %t, %v", i+1, steady, err)
				}
			}
		})
	}
}

// TestBillsFromBefore: a bill that was kept before there were summaries is listed
// all the same.
func TestBillsFromBefore(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	b := vps.Bill{Month: vps.Month{Year: 2026, Month: 10}, State: vps.BillFinal, Made: time.Unix(1e9, 0).UTC(), Price: vps.Price{Currency: "JPY"}, Total: 94, Tenants: []vps.BillTenant{}}
	if _, first, err := db.KeepBill(t.Context(), b, vps.Event{}); err != nil || !first {
		t.Fatal(first, err)
	}
	for _, statement := range []string{"UPDATE bill SET summary = summary", "UPDATE bill SET summary = ''"} {
		if _, err := db.write.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		all, err := db.Bills(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]vps.BillSummary{b.Summary()}, all); diff != "" {
			t.Errorf("%s: %s", statement, diff)
		}
	}
	if _, err := db.write.ExecContext(t.Context(), "UPDATE bill SET content = x'00'"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Bills(t.Context()); err == nil || !strings.Contains(err.Error(), "2026-10 cannot be read") {
		t.Error(err)
	}
}

// TestLastGuestDays has three guests over years, and looks only at three places.
func TestLastGuestDays(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	if days, err := db.LastGuestDays(t.Context()); err != nil || len(days) != 0 {
		t.Errorf("of nobody there are %+v, %v", days, err)
	}
	var all, want []vps.GuestDay
	for g, lived := range []int{700, 1, 35} {
		for n := range lived {
			day := time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC).Format(time.DateOnly)
			all = append(all, vps.GuestDay{Day: day, GuestID: fmt.Sprint("id", g), Guest: fmt.Sprint("g", n), Tenant: "t", Memory: vps.Bytes(n), Weight: n})
		}
		want = append(want, all[len(all)-1])
	}
	if err := db.KeepGuestDays(t.Context(), "2030-01-01", all); err != nil {
		t.Fatal(err)
	}
	got, err := db.LastGuestDays(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	rows, err := db.read.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+lastGuestDays)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id, parent, unused int
		var what string
		if err := rows.Scan(&id, &parent, &unused, &what); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(what, "SCAN guest_day") {
			t.Errorf("it looks at all rows: %s", what)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}
