package bill_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/bill"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// world is a host with a clock that tests set.
type world struct {
	*bill.Book
	db   *sqlite.DB
	host vps.Host
	now  time.Time
	rows []vps.TrafficRow
	sent int64 // by send
	// wrong says that the clock may not be believed.
	wrong bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := &world{db: db, host: vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: "owner"}}}, now: day(2026, 10, 1)}
	w.host.Settings.Price = yuan()
	w.Book = &bill.Book{
		Days: db, Bills: db, Billing: db, Ledger: w,
		Host: func(context.Context) (vps.Host, error) { return w.host, nil },
		Now:  func() time.Time { return w.now },
		Sure: func(context.Context) bool { return !w.wrong },
	}
	return w
}

func (w *world) Traffic(_ context.Context, q vps.TrafficQuery, _ bool) ([]vps.TrafficRow, error) {
	var found []vps.TrafficRow
	for _, r := range w.rows {
		if q.Step == vps.StepDay && !r.Start.Before(q.Since) && r.Start.Before(q.Until) {
			found = append(found, r)
		}
	}
	return found, nil
}

func day(year int, month time.Month, day int) time.Time {
	return time.Date(year, month, day, 12, 0, 0, 0, time.UTC)
}

func (w *world) add(name, tenant string) *vps.Guest {
	g := vps.Guest{ID: "id-" + name, Spec: vps.NewGuestSpec(name), Created: w.now}
	g.Spec.Tenant = tenant
	w.host.Guests = append(w.host.Guests, g)
	return &w.host.Guests[len(w.host.Guests)-1]
}

func (w *world) record(t *testing.T) {
	t.Helper()
	if err := w.Record(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (w *world) bill(t *testing.T, month string) vps.Bill {
	t.Helper()
	m, err := vps.ParseMonth(month)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.Bill(t.Context(), &m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecord: days are kept once, made good when no daemon ran, and a guest that
// is deleted keeps its last one.
func TestRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.now = day(2026, 10, 5)
	w.add("alice", "owner")
	w.add("probe", "owner").Spec.Probe = "scan"
	w.record(t)
	w.record(t)
	w.now = day(2026, 10, 9) // nobody was there to see the days between
	w.host.Guests[0].Spec.Tenant = "bob"
	w.record(t)
	w.host.Guests[0].Spec.Memory = vps.GiB
	w.record(t)
	w.host.Guests = nil
	w.now = day(2026, 10, 10)
	w.record(t)
	days, err := w.db.GuestDays(t.Context(), october)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range days {
		got = append(got, strings.Join([]string{d.Day, d.Guest, d.Tenant, d.Memory.String()}, " "))
	}
	want := []string{
		"2026-10-05 alice owner 512MiB", "2026-10-06 alice bob 512MiB", "2026-10-07 alice bob 512MiB",
		"2026-10-08 alice bob 512MiB", "2026-10-09 alice bob 1GiB",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestNothingOnRecord: a month in which there was nothing to bill is no reason
// not to make the bills that follow.
func TestNothingOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.now = day(2026, 8, 31)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.now = day(2026, 10, 15) // nothing in August and September
	w.add("alice", "owner")
	w.record(t)
	w.now = day(2026, 11, 1)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for month, want := range map[vps.Month]bool{{Year: 2026, Month: 8}: false, {Year: 2026, Month: 9}: false, october: true} {
		if there, err := w.db.HasBill(t.Context(), month); err != nil || there != want {
			t.Errorf("%s: a bill is %v, %v", month, there, err)
		}
	}
}

// TestRecordWrites: what is on record is not written again.
func TestRecordWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice := w.add("alice", "owner")
	days := &countedDays{Days: w.db}
	w.Days = days
	for range 3 {
		w.record(t)
	}
	alice.Spec.BillingWeight = 7
	w.record(t)
	w.record(t)
	if days.writes != 2 {
		t.Errorf("%d writes of 2 facts", days.writes)
	}
}

type countedDays struct {
	bill.Days
	writes int
}

func (d *countedDays) KeepGuestDays(ctx context.Context, today string, days []vps.GuestDay) error {
	d.writes++
	return d.Days.KeepGuestDays(ctx, today, days)
}

// TestEstimate: the guests of today stay, and traffic goes on as so far.
func TestEstimate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Settings.Price.FreeOut = 5 * vps.GiB
	w.add("alice", "alice")
	w.add("gone", "bob")
	w.record(t)
	w.host.Guests = w.host.Guests[:1]
	w.now = time.Date(2026, 10, 1, 5, 0, 0, 0, time.UTC)
	if b := w.bill(t, "2026-10"); b.Estimate != nil {
		t.Errorf("before a hundredth has passed: %d", *b.Estimate)
	}
	in := input(october, yuan())
	send(&in, "alice", 3, vps.TrafficInternet, int64(vps.GiB), int64(2*vps.GiB))
	w.rows = in.Rows
	w.now = time.Date(2026, 10, 16, 12, 0, 0, 0, time.UTC) // half of it
	b := w.bill(t, "2026-10")
	// Bob has half of the first day; of 4 GiB sent none costs anything.
	const bob, alice = 152, 9400 - 152 + 106
	if b.Estimate == nil || *b.Estimate != alice+bob || *b.Tenants[0].Estimate != alice || *b.Tenants[1].Estimate != bob {
		t.Errorf("%+v", b)
	}
	if part := b.For("bob"); *part.Estimate != bob {
		t.Errorf("bob's part is estimated at %d", *part.Estimate)
	}
	w.now = day(2026, 11, 1)
	if b := w.bill(t, "2026-10"); b.Estimate != nil || b.Tenants[0].Estimate != nil {
		t.Error("a final bill has an estimate")
	}
}

// TestFinal: a bill of a month that is over never changes, whatever does.
func TestFinal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := input(october, yuan())
	send(&in, "alice", 3, vps.TrafficInternet, 0, int64(10*vps.GiB))
	w.rows = in.Rows
	w.now = day(2026, 10, 31)
	if b := w.bill(t, "2026-10"); b.State != vps.BillOpen || b.Total != 9400+530 || b.Passed != 31 {
		t.Errorf("%+v", b)
	}
	w.now = time.Date(2026, 11, 1, 0, 0, 1, 0, time.UTC)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := w.bill(t, "2026-10")
	if first.State != vps.BillFinal || first.Total != 9930 || !first.Made.Equal(w.now) {
		t.Errorf("%+v", first)
	}
	w.host.Settings.Price.Month *= 2
	w.rows[0].OutBytes *= 2
	w.host.Guests = nil
	w.now = day(2026, 12, 24)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, w.bill(t, "2026-10")); diff != "" {
		t.Error(diff)
	}
	// The next month has the new price.
	if b := w.bill(t, "2026-11"); b.State != vps.BillFinal || b.Fixed != 18800 {
		t.Errorf("%+v", b)
	}
	w.host.Settings.Price = vps.DefaultPrice()
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, w.bill(t, "2026-10")); diff != "" {
		t.Error(diff)
	}
	events, err := w.db.Events(t.Context(), sqlite.EventQuery{})
	if err != nil || len(events) != 2 || events[0].Message != "the bill of October 2026 is made: 99.30 CNY; `sublet bill --month 2026-10` shows it" {
		t.Errorf("%+v, %v", events, err)
	}
}

// TestOnDemand: months before there was a price are billed when somebody asks,
// and not before.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Settings.Price = vps.DefaultPrice()
	w.add("alice", "owner")
	w.record(t)
	w.now = day(2026, 12, 5)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Bill(t.Context(), &october); vps.ErrorCode(err) != vps.CodeNotFound || !strings.Contains(err.Error(), "no price is set") {
		t.Errorf("%v", err)
	}
	w.host.Settings.Price = yuan()
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.db.Bill(t.Context(), october); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a bill was made unasked: %v", err)
	}
	if b := w.bill(t, "2026-10"); b.State != vps.BillFinal || b.Total != 9400 {
		t.Errorf("%+v", b)
	}
}

func TestNoBill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("alice", "owner")
	for month, want := range map[string]string{
		"2026-11": "month: 2026-11 is in the future; it is 2026-10 now",
		"2026-09": "there is nothing on record of 2026-09: no guest and no traffic; the record begins with 2026-10-01",
	} {
		m, _ := vps.ParseMonth(month)
		if b, err := w.Bill(t.Context(), &m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v", month, b, err)
		}
	}
	b, err := w.Bill(t.Context(), nil)
	if err != nil || b.Month != october || b.State != vps.BillOpen || b.Total != 303 {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestList: the list tells of each bill what the bill does, also of one from
// before the list was.
func TestList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Settings.Price = vps.DefaultPrice()
	w.add("alice", "bob")
	w.record(t)
	list := func() (all []vps.BillSummary) {
		t.Helper()
		all, err := w.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := list(); len(all) != 0 {
		t.Errorf("without a price: %+v", all)
	}
	w.host.Settings.Price = yuan()
	if all := list(); len(all) != 1 || all[0].State != vps.BillOpen {
		t.Errorf("before bills began: %+v", all)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.now = day(2026, 12, 5)
	for _, amount := range []string{"-1.50", "1.50", "-2"} { // the second takes the first back
		if _, err := w.Correct(t.Context(), october, bill.Correction{Guest: "alice", Amount: amount, Reason: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	var want []vps.BillSummary
	for _, month := range []string{"2026-10", "2026-11", "2026-12"} {
		want = append(want, w.bill(t, month).Summary())
	}
	all := list()
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	if all[0].Total != 9400-200 || all[0].Corrections != 3 || all[0].Corrected != -200 || all[1].State != vps.BillFinal || all[2].State != vps.BillOpen || all[2].Estimate == nil {
		t.Errorf("%+v", all)
	}
	w.host.Settings.Price = vps.DefaultPrice()
	if diff := cmp.Diff(all[:2], list()); diff != "" {
		t.Errorf("the price is gone: %s", diff)
	}
	w.wrong = true
	w.host.Settings.Price = yuan()
	w.now = day(2027, 2, 1)
	if all := list(); len(all) != 5 || all[3].State != vps.BillOpen {
		t.Errorf("under a clock that may be wrong: %+v", all)
	}
}

func TestCorrect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Tenants = append(w.host.Tenants, vps.Tenant{Name: "carol"})
	w.add("alice", "bob")
	w.record(t)
	good := bill.Correction{Guest: "alice", Amount: "-1.50", Reason: " the guest was down "}
	if _, err := w.Correct(t.Context(), october, good); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("an open month was corrected: %v", err)
	}
	w.now = day(2026, 11, 2)
	before := w.bill(t, "2026-10")
	for want, c := range map[string]bill.Correction{
		`amount: "1.505" has 3 digits`:           {Guest: "alice", Amount: "1.505", Reason: "x"},
		`amount: "much" is not an amount`:        {Guest: "alice", Amount: "much", Reason: "x"},
		"amount: 0 corrects nothing":             {Guest: "alice", Amount: "0.00", Reason: "x"},
		"out of range":                           {Guest: "alice", Amount: "92233720368547758.08", Reason: "x"},
		"too large":                              {Guest: "alice", Amount: "92233720368547758.07", Reason: "x"},
		"reason: a correction needs a reason":    {Guest: "alice", Amount: "1", Reason: "  "},
		"reason: 201 characters":                 {Guest: "alice", Amount: "1", Reason: strings.Repeat("é", 201)},
		"reason: there is a character":           {Guest: "alice", Amount: "1", Reason: "a\nb"},
		"guest: say whose":                       {Amount: "1", Reason: "x"},
		"the guest dora is not on the bill":      {Guest: "dora", Amount: "1", Reason: "x"},
		"the guest alice of the tenant carol is": {Guest: "alice", Tenant: "carol", Amount: "1", Reason: "x"},
		"there is no tenant dora":                {Tenant: "dora", Amount: "1", Reason: "x"},
	} {
		if _, err := w.Correct(t.Context(), october, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	if diff := cmp.Diff(before, w.bill(t, "2026-10")); diff != "" {
		t.Error(diff)
	}
	if _, err := w.Correct(t.Context(), october, good); err != nil {
		t.Fatal(err)
	}
	b, err := w.Correct(t.Context(), october, bill.Correction{Tenant: "carol", Amount: "2", Reason: "a cable"})
	if err != nil || b.Total != 9400-150+200 || len(b.Tenants) != 2 || b.Tenants[0].Total != 9250 || b.Tenants[1].Total != 200 {
		t.Errorf("%+v, %v", b, err)
	}
	if c := b.Tenants[0].Corrections; len(c) != 1 || c[0].Reason != "the guest was down" || c[0].Guest != "alice" || c[0].Amount != -150 || !c[0].Made.Equal(w.now) {
		t.Errorf("%+v", c)
	}
}
