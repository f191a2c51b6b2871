package bill_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// history is a ledger that nothing is counted in: it has what was imported.
type history struct{ *sqlite.DB }

func (h history) Traffic(ctx context.Context, q vps.TrafficQuery, _ bool) ([]vps.TrafficRow, error) {
	return h.DB.Traffic(ctx, q)
}

// TestImportedMonths: bills have what months show, also of those whose days were
// not imported, or only some of them.
func TestImportedMonths(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Ledger = history{w.db}
	w.host.Settings.Price.FreeOut = 10 * vps.GiB
	w.now = day(2026, 10, 20)
	w.add("alice", "bob")
	w.record(t)
	row := func(step vps.TrafficStep, month time.Month, day int, received, sent vps.Bytes) vps.TrafficRow {
		return vps.TrafficRow{Step: step, Start: time.Date(2026, month, day, 0, 0, 0, 0, time.UTC), TrafficCount: vps.TrafficCount{InBytes: int64(received), OutBytes: int64(sent)}}
	}
	_, err := w.db.ImportTraffic(t.Context(), sqlite.TrafficImport{
		Guest: sqlite.TrafficGuest{ID: "id-alice", Name: "alice", Tenant: "bob"}, Now: w.now,
		Rows: []vps.TrafficRow{
			row(vps.StepMonth, 7, 1, vps.GiB, 110*vps.GiB), // no day of it
			row(vps.StepMonth, 8, 1, 5*vps.GiB, 50*vps.GiB+1), row(vps.StepDay, 8, 30, 2*vps.GiB, vps.GiB), row(vps.StepDay, 8, 31, 3*vps.GiB, vps.GiB),
			row(vps.StepMonth, 9, 1, 7, 9*vps.GiB), row(vps.StepDay, 9, 1, 7, 4*vps.GiB), row(vps.StepDay, 9, 30, 0, 5*vps.GiB), // all of them
			row(vps.StepMonth, 10, 1, vps.TiB, vps.TiB), row(vps.StepDay, 10, 1, vps.GiB, vps.GiB), // cut where the ledger begins
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	months, err := w.db.Traffic(t.Context(), vps.TrafficQuery{Step: vps.StepMonth})
	if err != nil || len(months) != 4 {
		t.Fatalf("%+v, %v", months, err)
	}
	w.now = day(2026, 11, 2)
	for i, c := range []struct {
		month         string
		undated       [2]vps.Bytes // received and sent
		free, rows    int64        // of what was sent, in GiB; how many
		received, out vps.Money
	}{
		{"2026-07", [2]vps.Bytes{vps.GiB, 110 * vps.GiB}, 10, 1, 53, 5300},
		{"2026-08", [2]vps.Bytes{0, 48*vps.GiB + 1}, 10, 3, 265, 2120},
		{"2026-09", [2]vps.Bytes{}, 9, 2, 0, 0},
		{"2026-10", [2]vps.Bytes{}, 1, 1, 53, 0},
	} {
		b := w.bill(t, c.month)
		if len(b.Tenants) == 0 || b.Tenants[0].Tenant != "bob" || b.State != vps.BillFinal {
			t.Fatalf("%s: %+v", c.month, b)
		}
		l := b.Tenants[0].Lines[0]
		shown := months[i]
		if l.In.Bytes != shown.InBytes || l.Out.Bytes != shown.OutBytes || l.Guest != "alice" {
			t.Errorf("%s: billed are %d and %d bytes, and the month has %d and %d", c.month, l.In.Bytes, l.Out.Bytes, shown.InBytes, shown.OutBytes)
		}
		if l.In.Undated != int64(c.undated[0]) || l.Out.Undated != int64(c.undated[1]) || l.Out.Free != c.free*int64(vps.GiB) || l.In.Amount != c.received || l.Out.Amount != c.out {
			t.Errorf("%s: %+v", c.month, l)
		}
		var in, out, undated int64
		for _, r := range l.Rows {
			in, out = in+r.In, out+r.Out
			if r.Step == vps.StepMonth {
				undated += r.In + r.Out
			}
		}
		if in != l.In.Bytes || out != l.Out.Bytes || undated != l.In.Undated+l.Out.Undated || int64(len(l.Rows)) != c.rows {
			t.Errorf("%s: the rows do not add up: %+v", c.month, l.Rows)
		}
	}
	m, _ := vps.ParseMonth("2026-06")
	if b, err := w.Bill(t.Context(), &m); err == nil || !strings.Contains(err.Error(), "there is nothing on record of 2026-06") {
		t.Errorf("a month without traffic: %+v, %v", b, err)
	}
}

// TestUndatedOfTenants: what is of no day is of the tenant that had the guest
// first in the month.
func TestUndatedOfTenants(t *testing.T) {
	t.Parallel()
	in := input(october, yuan())
	for d := 1; d <= october.Days(); d++ {
		tenant := "ann"
		if d > 5 {
			tenant = "bob"
		}
		in.Lived = append(in.Lived, vps.GuestDay{Day: october.Day(d), GuestID: "id-alice", Guest: "alice", Tenant: tenant, Memory: vps.GiB, Weight: 100})
	}
	send(&in, "alice", 10, vps.TrafficInternet, 0, int64(vps.GiB))
	send(&in, "alice", 1, vps.TrafficInternet, 0, int64(2*vps.GiB))
	in.Rows[1].Step = vps.StepMonth
	b := make1(t, in)
	ann, bob := b.Tenants[0].Lines[0], b.Tenants[1].Lines[0]
	if ann.Out.Bytes != int64(2*vps.GiB) || ann.Out.Undated != ann.Out.Bytes || bob.Out.Bytes != int64(vps.GiB) || bob.Out.Undated != 0 {
		t.Errorf("%+v, %+v", ann, bob)
	}
}
