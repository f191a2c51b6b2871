package e2e

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/sqlite"
	"sublet/internal/vps"
	"sublet/test/lab"
)

// TestBill has the bills of a host that has let guests for three months: of
// tenants that share, move, leave and come back, in three currencies.
func TestBill(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	b := &billLab{Host: h, now: time.Now().UTC(), counters: map[string]*vps.LinkTraffic{}}
	b.seed(t)
	h.Start()
	h.Sublet("tenant", "set", "ann")
	h.Sublet("tenant", "set", "idle")
	b.refusesPrices(t)
	b.billsMonths(t)
	b.addsUp(t)
	b.tracesFigures(t)
	b.corrects(t)
	b.listsAll(t)
	b.refusesMonths(t)
}

type billLab struct {
	*lab.Host
	now      time.Time
	months   [3]vps.Month // the oldest first; the last one is the one before this
	counters map[string]*vps.LinkTraffic
}

// seed writes the record of the months before this one, as a daemon that ran
// would have: in the first there was nobody.
func (b *billLab) seed(t *testing.T) {
	t.Helper()
	m := vps.MonthOf(b.now)
	for i := range b.months {
		m = vps.MonthOf(m.Start(time.UTC).AddDate(0, -1, 0))
		b.months[2-i] = m
	}
	if err := os.MkdirAll(b.StateDir, 0o711); err != nil {
		t.Fatal(err)
	}
	db, err := sqlite.Open(t.Context(), filepath.Join(b.StateDir, "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var days []vps.GuestDay
	live := func(m vps.Month, id, name, tenant string, from, to, weight int, memory vps.Bytes) {
		for d := from; d <= to; d++ {
			days = append(days, vps.GuestDay{Day: m.Day(d), GuestID: id, Guest: name, Tenant: tenant, Memory: memory, Weight: weight})
		}
	}
	live(b.months[0], "old", "old", "owner", 1, 1, 100, vps.GiB) // the record begins
	last := b.months[2].Days()
	for _, m := range b.months[1:] {
		live(m, "one", "shop", "ann", 1, m.Days(), 100, 512*vps.MiB)
	}
	live(b.months[2], "two", "web", "ann", 1, 9, 300, vps.GiB)
	live(b.months[2], "two", "web", "ben", 10, last, 300, vps.GiB) // moves on the 10th
	live(b.months[2], "three", "db", "ben", 1, 12, 50, 3*vps.GiB)  // is deleted on the 12th,
	live(b.months[2], "four", "db", "ben", 15, last, 50, vps.GiB)  // and made anew on the 15th
	if err := db.KeepGuestDays(t.Context(), vps.MonthOf(b.now).Day(b.now.Day()), days); err != nil {
		t.Fatal(err)
	}
	for at := b.months[0].Start(time.UTC).Add(12 * time.Hour); at.Before(b.now); at = at.AddDate(0, 0, 1) {
		b.sample(t, db, at)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// sample is a day's traffic, counted at noon.
func (b *billLab) sample(t *testing.T, db *sqlite.DB, at time.Time) {
	t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		t.Fatal(err)
	}
	s := sqlite.TrafficSample{
		Counters: vps.TrafficCounters{At: at, Epoch: "before"}, Boot: strings.TrimSpace(string(boot)),
		Uptime: time.Duration(up.Nano()) - time.Since(at), Zone: time.UTC,
	}
	if m := vps.MonthOf(at); m != b.months[0] && m.Compare(vps.MonthOf(b.now)) < 0 {
		id := map[bool]string{true: "three", false: "four"}[at.Day() <= 12]
		s.Guests = []sqlite.TrafficGuest{{ID: "one", Name: "shop", Tenant: "ann", Link: "sl-shop"}}
		b.count("sl-shop", vps.TrafficInternet, 4, 123_456_789, 987_654_321)
		b.count("sl-shop", vps.TrafficInternet, 6, 1, 0)
		if m == b.months[2] {
			s.Guests = append(s.Guests, sqlite.TrafficGuest{ID: "two", Name: "web", Tenant: "ben", Link: "sl-web"}, sqlite.TrafficGuest{ID: id, Name: "db", Tenant: "ben", Link: "sl-db"})
			b.count("sl-web", vps.TrafficHost, 4, 55_555_555, 333_333_333)
			b.count("sl-web", vps.TrafficBetween, 4, 1<<40, 1<<40)
			b.count("sl-db", vps.TrafficDropped, 4, 0, 1<<40)
			b.count("sl-db", vps.TrafficInternet, 6, 77_777, 7)
		}
	}
	for _, l := range b.counters {
		s.Counters.Links = append(s.Counters.Links, *l)
	}
	// What nobody is billed for.
	s.Uplinks = []vps.LinkTraffic{{Link: "pub0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: at.Unix() << 10, OutBytes: at.Unix() << 10}}}
	if _, err := db.AddTraffic(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func (b *billLab) count(link string, class vps.TrafficClass, family int, in, out int64) {
	key := fmt.Sprint(link, class, family)
	if b.counters[key] == nil {
		b.counters[key] = &vps.LinkTraffic{Link: link, TrafficKey: vps.TrafficKey{Class: class, Family: family}}
	}
	b.counters[key].TrafficCount = b.counters[key].TrafficCount.Add(vps.TrafficCount{InBytes: in, InPackets: in / 1000, OutBytes: out, OutPackets: out / 1000})
}

// bill asks for a bill, with the rows of the ledger.
func (b *billLab) bill(t *testing.T, m vps.Month) (bill vps.Bill) {
	t.Helper()
	decodeText(t, b.Sublet("bill", "--month", m.String(), "-o", "json"), &bill)
	return bill
}

func decodeText(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// refusesPrices: what is no price is refused in one line, and changes nothing.
func (b *billLab) refusesPrices(t *testing.T) {
	t.Helper()
	before := b.Sublet("price", "show", "-o", "json")
	for _, price := range []string{
		"--month 94.005", "--month -1", "--month 1e9", "--month NaN", "--month Inf", "--month 0x10", "--month 1000000001", "--month 99999999999999999999",
		"--in 0.1234567", "--out -0.53", "--free -1GiB", "--free 9EiB", "--currency RMB", "--currency C", "--share fair", "--free-per all",
	} {
		b.refuses(t, 2, "--"+strings.TrimPrefix(strings.Fields(price)[0], "--")+":", append([]string{"price", "set", "--currency", "CNY"}, strings.Fields(price)...)...)
	}
	b.refuses(t, 3, "no price is set", "bill")
	if after := b.Sublet("price", "show", "-o", "json"); after != before {
		t.Errorf("the price was changed to %s", after)
	}
}

func (b *billLab) refuses(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	r := b.Try(args...)
	if text := strings.TrimSpace(r.Stderr); r.Code != code || !strings.Contains(text, want) || strings.Contains(text, "\n") || r.Stdout != "" {
		t.Errorf("sublet %s: exit code %d, want %d, and %q in one line of %s%s", strings.Join(args, " "), r.Code, code, want, r.Stdout, r.Stderr)
	}
}

// billsMonths has a month each in dinars, yen and yuan, of which one is 1000, 1
// and 100 of the smallest amount.
func (b *billLab) billsMonths(t *testing.T) {
	t.Helper()
	b.Sublet("price", "set", "--currency", "KWD", "--month", "9.999", "--in", "0.053", "--out", "0.053")
	bill := b.bill(t, b.months[0])
	if l := bill.Tenants[0].Lines; len(bill.Tenants) != 1 || len(l) != 2 || l[1].GuestID != "" || l[1].Days != b.months[0].Days()-1 || bill.Total != 9999 {
		t.Errorf("%+v", bill)
	}
	b.Sublet("price", "set", "--currency", "jpy", "--month", "1999", "--share", "weights", "--in", "11", "--out", "12.5", "--free", "10GiB", "--free-per", "host")
	if bill := b.bill(t, b.months[1]); len(bill.Tenants) != 1 || bill.Fixed != 1999 || bill.Digits != 0 || bill.Total <= 1999 {
		t.Errorf("%+v", bill)
	}
	b.Sublet("price", "set", "--currency", "CNY", "--month", "94", "--share", "memory", "--in", "0.53", "--out", "0.53", "--free-in", "1GiB", "--free-out", "2GiB", "--free-per", "tenant")
	text := b.Sublet("bill", "--month", b.months[2].String())
	for line := range strings.Lines(text) {
		if len(line) > 81 {
			t.Errorf("more than 80 columns: %s", line)
		}
	}
	for _, want := range []string{"Bill of " + b.months[2].Title() + " in CNY: final", "cut to 0.01 CNY", "1GiB received and 2GiB sent"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if text := b.Sublet("bill", "--month", b.months[2].String(), "--tenant", "idle"); !strings.Contains(text, "0.00") {
		t.Errorf("a tenant without a guest: %s", text)
	}
	b.Sublet("create", "late", "--stopped", "--tenant", "ann")
	if bill := b.bill(t, vps.MonthOf(b.now)); bill.State != vps.BillOpen || bill.Tenants[0].Tenant != "ann" || bill.Tenants[0].Lines[0].Days != 1 {
		t.Errorf("the month that runs: %+v", bill)
	}
}

// addsUp: lines add up to what tenants owe, that to the total, and so does CSV.
func (b *billLab) addsUp(t *testing.T) {
	t.Helper()
	bill := b.bill(t, b.months[2])
	var all, fixed vps.Money
	days := map[string]int{}
	for _, bt := range bill.Tenants {
		var owes vps.Money
		for _, l := range bt.Lines {
			owes += l.Total
			fixed += l.Fixed
			days[bt.Tenant+"/"+l.GuestID] = l.Days
		}
		if owes != bt.Total {
			t.Errorf("%s owes %d, and its lines come to %d", bt.Tenant, bt.Total, owes)
		}
		all += owes
	}
	if all != bill.Total || fixed != 9400 || bill.Fixed != fixed {
		t.Errorf("the lines come to %d with %d fixed: %+v", all, fixed, bill)
	}
	last := b.months[2].Days()
	want := map[string]int{"ann/one": last, "ann/two": 9, "ben/two": last - 9, "ben/three": 12, "ben/four": last - 14}
	if diff := cmp.Diff(want, days); diff != "" {
		t.Errorf("days: %s", diff)
	}
	records, err := csv.NewReader(strings.NewReader(b.Sublet("bill", "--month", b.months[2].String(), "-o", "csv"))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records[1:] {
		amount, err := vps.ParseMoney(r[slices.Index(records[0], "total")], bill.Digits)
		if err != nil {
			t.Fatal(err)
		}
		all -= amount
	}
	if all != 0 {
		t.Errorf("CSV is %d off", all)
	}
}

// tracesFigures: the rows of a bill are those that the ledger shows, of each
// guest and day, also of guests that are gone.
func (b *billLab) tracesFigures(t *testing.T) {
	t.Helper()
	m := b.months[2]
	var ledger struct {
		Lines []struct {
			ID      string                                `json:"guest_id"`
			Start   time.Time                             `json:"start"`
			Classes map[vps.TrafficClass]vps.TrafficCount `json:"classes"`
		} `json:"traffic"`
	}
	decodeText(t, b.Sublet("traffic", "--days", "--by", "guest", "--since", m.Day(1), "--until", m.Next().Day(1), "-o", "json"), &ledger)
	type key struct {
		id    string
		day   int64
		class vps.TrafficClass
	}
	shown, billed := map[key][2]int64{}, map[key][2]int64{}
	for _, l := range ledger.Lines {
		for class, c := range l.Classes {
			if class == vps.TrafficInternet || class == vps.TrafficHost {
				shown[key{l.ID, l.Start.Unix(), class}] = [2]int64{c.InBytes, c.OutBytes}
			}
		}
	}
	for _, bt := range b.bill(t, m).Tenants {
		for _, l := range bt.Lines {
			in, out := l.In.Bytes, l.Out.Bytes
			for _, r := range l.Rows {
				k := key{l.GuestID, r.Start.Unix(), r.Class}
				billed[k] = [2]int64{billed[k][0] + r.In, billed[k][1] + r.Out}
				in, out = in-r.In, out-r.Out
			}
			if in != 0 || out != 0 {
				t.Errorf("the rows of %s are %d and %d short", l.GuestID, in, out)
			}
		}
	}
	if diff := cmp.Diff(shown, billed); diff != "" || len(billed) < 3*m.Days()-2 {
		t.Errorf("the ledger shows something else than what is billed: %s", diff)
	}
}

// corrects adds lines, of which one takes another back, and finds the bill as it
// was in all else.
func (b *billLab) corrects(t *testing.T) {
	t.Helper()
	m := b.months[2].String()
	before := b.bill(t, b.months[2])
	correct := func(args ...string) []string { return append([]string{"bill", "correct", "--month", m}, args...) }
	b.Sublet(correct("--guest", "shop", "--amount", "-1.50", "--reason", "down for a day")...)
	b.Sublet(correct("--guest", "shop", "--amount", "1.50", "--reason", "takes 1 back")...)
	b.Sublet(correct("--tenant", "idle", "--amount", "5", "--reason", "=cmd|' /C calc'!A0")...)
	b.refuses(t, 2, "name one of ann, ben", correct("--guest", "web", "--amount", "1", "--reason", "x")...)
	b.refuses(t, 3, "the guest nobody is not on the bill", correct("--guest", "nobody", "--amount", "1", "--reason", "x")...)
	for _, amount := range []string{"1.505", "0", "1 EUR", "CNY1", "1e3", "NaN"} {
		b.refuses(t, 2, "--amount:", correct("--guest", "shop", "--amount", amount, "--reason", "x")...)
	}
	for month, code := range map[string]int{"2026-13": 2, "2999-01": 2, "1970-01": 3, vps.MonthOf(b.now).String(): 4} {
		b.refuses(t, code, "", "bill", "correct", "--month", month, "--guest", "shop", "--amount", "1", "--reason", "x")
	}
	after := b.bill(t, b.months[2])
	var reasons []string
	for i := range after.Tenants {
		for _, c := range after.Tenants[i].Corrections {
			reasons = append(reasons, fmt.Sprint(c.Tenant, " ", c.Amount, " ", c.Reason))
		}
		after.Tenants[i].Corrections = []vps.BillCorrection{}
	}
	if diff := cmp.Diff([]string{"ann -150 down for a day", "ann 150 takes 1 back", "idle 500 =cmd|' /C calc'!A0"}, reasons); diff != "" {
		t.Error(diff)
	}
	if csv := b.Sublet("bill", "--month", m, "-o", "csv"); !strings.Contains(csv, ",'=cmd|") {
		t.Errorf("a formula in %s", csv)
	}
	idle := after.Tenants[len(after.Tenants)-1]
	after.Tenants, after.Total = after.Tenants[:len(after.Tenants)-1], after.Total-idle.Total
	if diff := cmp.Diff(before, after); diff != "" || idle.Total != 500 {
		t.Errorf("a correction changed the bill: %s", diff)
	}
}

func (b *billLab) listsAll(t *testing.T) {
	t.Helper()
	records, err := csv.NewReader(strings.NewReader(b.Sublet("bill", "list", "-o", "csv"))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records {
		got = append(got, strings.Join([]string{r[0], r[1], r[3], r[5], r[6]}, " "))
	}
	want := []string{
		"month state currency corrections corrected", b.months[0].String() + " final KWD 0 0.000", b.months[1].String() + " final JPY 0 0",
		b.months[2].String() + " final CNY 3 5.00", vps.MonthOf(b.now).String() + " open CNY 0 0.00",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if text := b.Sublet("__complete", "bill", "--month", ""); !strings.HasPrefix(text, b.months[0].String()+"\n") {
		t.Errorf("completion offers %s", text)
	}
}

func (b *billLab) refusesMonths(t *testing.T) {
	t.Helper()
	for month, want := range map[string]string{"2026-13": "is not a month", "2026-1": "is not a month", "october": "is not a month", "": "is not a month", "2999-01": "is in the future"} {
		b.refuses(t, 2, want, "bill", "--month", month)
	}
	b.refuses(t, 3, "there is nothing on record of 1970-01", "bill", "--month", "1970-01")
	b.refuses(t, 3, "there is no tenant nobody", "bill", "--tenant", "nobody")
	b.refuses(t, 2, "--billing-weight", "set", "late", "--billing-weight", "0")
}
