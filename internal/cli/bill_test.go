package cli

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (f *fake) Bill(_ context.Context, q api.BillQuery) (vps.Bill, error) {
	if f.failure != nil {
		return vps.Bill{}, f.failure
	}
	f.asked = q
	b := f.bill
	if q.Tenant != "" {
		b = b.For(q.Tenant)
	}
	if !q.Rows {
		b = b.WithoutRows()
	}
	return b, nil
}

func (f *fake) Bills(context.Context) ([]vps.BillSummary, error) {
	now := october()
	now.Month, now.State, now.Estimate = now.Month.Next(), vps.BillOpen, new(vps.Money(94_00))
	return []vps.BillSummary{october().Summary(), now.WithoutRows().Summary()}, f.failure
}

func (f *fake) CorrectBill(_ context.Context, _ vps.Month, c api.CorrectBill) (vps.Bill, error) {
	if _, err := vps.ParseMoney(c.Amount, 2); err != nil {
		return vps.Bill{}, vps.Invalid("amount", "%s", vps.ErrorMessage(err))
	}
	f.corrected = append(f.corrected, c)
	return f.bill, f.failure
}

// october is the bill of docs/billing.md.
func october() vps.Bill {
	gib := int64(vps.GiB)
	month := vps.Month{Year: 2026, Month: time.October}
	row := vps.BillRow{Step: vps.StepDay, Start: month.Start(time.UTC), TrafficKey: vps.TrafficKey{Class: vps.TrafficInternet, Family: 4}, In: 20 * gib, Out: 5 * gib}
	return vps.Bill{
		Schema: 1, Month: month, State: vps.BillFinal, Made: month.Next().Start(time.UTC), Start: month.Start(time.UTC), End: month.Next().Start(time.UTC),
		Timezone: "Asia/Shanghai", Days: 31, Passed: 31, Digits: 2, Fixed: 9400, Total: 15902,
		Price: vps.Price{Currency: "CNY", Month: 94 * vps.DecimalOne, Share: vps.ShareEqual, In: 530_000, Out: 530_000, FreePer: vps.QuotaGuest},
		Tenants: []vps.BillTenant{
			{Tenant: "bob", Total: 14386, Lines: []vps.BillLine{
				{GuestID: "1", Guest: "alice", Days: 31, Spans: []vps.BillSpan{}, Fixed: 3942, In: vps.BillUsage{Bytes: 20 * gib, Amount: 1060}, Out: vps.BillUsage{Bytes: 5 * gib, Amount: 265}, Total: 5267, Rows: []vps.BillRow{row}},
				{GuestID: "2", Guest: "bob", Days: 31, Spans: []vps.BillSpan{}, Fixed: 3942, In: vps.BillUsage{Bytes: gib / 2, Amount: 27}, Out: vps.BillUsage{Bytes: 100 * gib, Amount: 5300}, Total: 9269},
			}, Corrections: []vps.BillCorrection{
				{ID: 1, Made: now, Guest: "alice", Tenant: "bob", Amount: -150, Reason: `=HYPERLINK("http://x") <script>alert(1)</script>`},
			}},
			{Tenant: "carol", Total: 1516, Corrections: []vps.BillCorrection{}, Lines: []vps.BillLine{
				{GuestID: "3", Guest: "carol", Days: 15, Spans: []vps.BillSpan{}, Fixed: 1516, In: vps.BillUsage{Bytes: 1000}, Total: 1516},
			}},
		},
	}
}

func TestBillGolden(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	for name, args := range map[string]string{
		"bill": "bill --month 2026-10", "bill.tenant": "bill --tenant carol", "bill.csv": "bill -o csv", "bill.html": "bill -o html", "bill.json": "bill -o json --tenant bob",
		"bill.list": "bill list", "bill.list.csv": "bill ls -o csv", "bill.list.json": "bill list -o json",
	} {
		w.mustRun(t, strings.Fields(args)...)
		golden(t, "testdata/golden/"+name, w.out.String())
	}
}

func TestBillFits(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	w.mustRun(t, "bill")
	for line := range strings.Lines(w.out.String()) {
		if n := len([]rune(line)) - 1; n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// TestBillUndated: what was imported without its days is told.
func TestBillUndated(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	for i := range w.fake.bill.Tenants[0].Lines {
		w.fake.bill.Tenants[0].Lines[i].Out.Undated = int64(vps.GiB)
	}
	w.mustRun(t, "bill")
	if text := strings.Join(strings.Fields(w.out.String()), " "); !strings.Contains(text, "Of the traffic, 0 GiB received and 2.000 GiB sent were imported of the month as a whole, without its days.") {
		t.Error(text)
	}
}

// TestBillCSV: the lines add up to the total, and no cell is a formula.
func TestBillCSV(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	w.mustRun(t, "bill", "-o", "csv")
	if strings.Count(w.out.String(), "\n") != strings.Count(w.out.String(), "\r\n") {
		t.Error("lines do not end in CRLF (RFC 4180, 2.1)")
	}
	records, err := csv.NewReader(strings.NewReader(w.out.String())).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var sum vps.Money
	for _, r := range records[1:] {
		m, err := vps.ParseMoney(r[15], 2)
		if err != nil {
			t.Fatal(err)
		}
		sum += m
		if r[16] != "" && !strings.HasPrefix(r[16], "'=") {
			t.Errorf("a formula: %s", r[16])
		}
	}
	if sum != w.fake.bill.Total {
		t.Errorf("the lines add up to %d, the bill to %d", sum, w.fake.bill.Total)
	}
	for in, want := range map[string]string{"": "", "a": "a", "=1": "'=1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "＝1": "'＝1", "é": "é", "\tx": "'\tx", "a=1": "a=1"} {
		if got := harmless(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestBillPage: the page is whole, has no script, loads nothing, and what users
// wrote is text in it.
func TestBillPage(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	w.mustRun(t, "bill", "-o", "html")
	page := w.out.String()
	for _, bad := range []string{"<script", "src=", "href=", "@import", "url("} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	for _, want := range []string{"&lt;script&gt;alert(1)", "159.02 CNY", "prefers-color-scheme", "</html>"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// TestBillOpen: a bill that is not final says so, and what the month comes to.
func TestBillOpen(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	w.fake.bill.State, w.fake.bill.Passed, w.fake.bill.Estimate = vps.BillOpen, 12, new(vps.Money(43210))
	w.says(t, 0, "Bill of October 2026 in CNY: provisional, 12 of 31 days", "bill")
	w.says(t, 0, "about 432.10 CNY", "bill")
	w.says(t, 0, "so far, of about 432.10", "bill", "-o", "html")
	w.says(t, 0, `"estimate": 43210`, "bill", "-o", "json")
}

// TestBillDigits: amounts have as many digits as their currency, and a bill says
// to which of them it rounds.
func TestBillDigits(t *testing.T) {
	t.Parallel()
	for currency, want := range map[string]string{"JPY": "rounded half up to 1 JPY", "KWD": "rounded half up to 0.001 KWD", "CNY": "rounded half up to 0.01 CNY"} {
		w := newWorld()
		w.fake.bill = october()
		w.fake.bill.Price.Currency = currency
		w.fake.bill.Digits = w.fake.bill.Price.Digits()
		w.mustRun(t, "bill")
		if text := strings.Join(strings.Fields(w.out.String()), " "); !strings.Contains(text, want) {
			t.Errorf("%s: no %q in %s", currency, want, text)
		}
	}
}

func TestBillAsks(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.fake.bill = october()
	w.mustRun(t, "bill", "--month", "2026-10", "--tenant", "bob", "-o", "json")
	if q := w.fake.asked; q.Month == nil || q.Month.String() != "2026-10" || q.Tenant != "bob" || !q.Rows {
		t.Errorf("%+v", q)
	}
	var b vps.Bill
	if err := json.Unmarshal(w.out.Bytes(), &b); err != nil || b.Total != 14386 || len(b.Tenants[0].Lines[0].Rows) != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	w.mustRun(t, "bill")
	if q := w.fake.asked; q.Month != nil || q.Rows {
		t.Errorf("%+v", q)
	}
	w.says(t, 0, "its total is 159.02 CNY now", "bill", "correct", "--month", "2026-10", "--guest", "alice", "--amount", "-1.50", "--reason", "down for a day")
	if c := w.fake.corrected; len(c) != 1 || c[0] != (api.CorrectBill{Guest: "alice", Amount: "-1.50", Reason: "down for a day"}) {
		t.Errorf("%+v", c)
	}
}

// TestBillRefused types what is wrong.
func TestBillRefused(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--month 2026-13":                         `--month: "2026-13" is not a month; write year and month, for example 2026-10`,
		"--month october":                         `"october" is not a month`,
		"--month=":                                `"" is not a month`,
		"-o yaml":                                 "-o yaml is no format of this verb",
		"2026-10":                                 `there is no verb "2026-10"`,
		"correct --month 2026-10 --amount 1":      "bill correct needs --reason",
		"correct --amount 1 --reason x":           "bill correct needs --month",
		"correct --month 2026-10 --reason x":      "bill correct needs --amount",
		"correct --month x --amount 1 --reason x": `--month: "x" is not a month`,
		"correct --month 2026-10 --amount 1.505 --reason x": `--amount: "1.505" has 3 digits behind the point`,
	} {
		w := newWorld()
		w.fake.bill = october()
		code := w.run(t.Context(), append([]string{"bill"}, strings.Fields(args)...)...)
		if code != ExitUsage || !strings.Contains(w.errors.String(), want) || w.out.Len() > 0 || len(w.fake.corrected) > 0 {
			t.Errorf("sublet bill %s: exit code %d, want %q in:\n%s%s", args, code, want, w.errors.String(), w.out.String())
		}
	}
}

func TestWrapped(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":               "\n",
		"one two three":  "one two\nthree\n",
		"abcdefghijklm":  "abcdefgh\nijklm\n",
		"x 一二三四五六七八九十 y": "x\n一二三四五六七八\n九十 y\n",
	} {
		if got := wrapped(text, 8); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
