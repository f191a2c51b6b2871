package vps_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sublet/internal/vps"
)

func TestCurrencyDigits(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]int{"CNY": 2, "JPY": 0, "KWD": 3, "CLF": 4, "EUR": 2, "AED": 2, "ZWG": 2, "XPF": 0, "UYW": 4} {
		if got, ok := vps.CurrencyDigits(code); !ok || got != want {
			t.Errorf("%s: %d, %v, want %d", code, got, ok, want)
		}
	}
	for _, code := range []string{"", "cny", "CN", "XXX", "NY ", "Y C", "RMB", "CNYX", "AED AFN"} {
		if digits, ok := vps.CurrencyDigits(code); ok {
			t.Errorf("%q is a currency with %d digits", code, digits)
		}
	}
}

func TestParseDecimal(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]vps.Decimal{
		"0": 0, "94": 94_000_000, "0.53": 530_000, "0.000001": 1, "007.50": 7_500_000, "9223372036854.775807": math.MaxInt64,
	} {
		got, err := vps.ParseDecimal(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                     "is not an amount",
		"-1":                   `"-1" is negative`,
		"1e3":                  "is not an amount",
		"1,5":                  "is not an amount",
		"+1":                   "is not an amount",
		".5":                   "is not an amount",
		"5.":                   "is not an amount",
		"NaN":                  "is not an amount",
		"0.1234567":            "has 7 digits behind the point, and at most 6 are possible here",
		"9223372036854.775808": "out of range",
		"٣":                    "is not an amount",
	} {
		if _, err := vps.ParseDecimal(text); err == nil || !strings.Contains(err.Error(), want) || vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestDecimalRoundTrip: what is written is read as the same, as text and JSON.
func TestDecimalRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := vps.Decimal(rapid.Int64Min(0).Draw(t, "decimal"))
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var back vps.Decimal
		if err := json.Unmarshal(text, &back); err != nil || back != d {
			t.Fatalf("%d was written as %s and read as %d, %v", d, text, back, err)
		}
		m, digits := vps.Money(rapid.Int64().Draw(t, "money")), rapid.IntRange(0, 4).Draw(t, "digits")
		if again, err := vps.ParseMoney(m.Text(digits), digits); err != nil && m != math.MinInt64 || err == nil && again != m {
			t.Fatalf("%d was written as %s and read as %d, %v", m, m.Text(digits), again, err)
		}
	})
}

func TestMoneyText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		m      vps.Money
		digits int
		want   string
	}{{9400, 2, "94.00"}, {-150, 2, "-1.50"}, {5, 3, "0.005"}, {-5, 2, "-0.05"}, {7, 0, "7"}, {0, 2, "0.00"}, {math.MinInt64, 2, "-92233720368547758.08"}} {
		if got := tt.m.Text(tt.digits); got != tt.want {
			t.Errorf("%d with %d digits: %s, want %s", tt.m, tt.digits, got, tt.want)
		}
	}
}

func TestPriceValidate(t *testing.T) {
	t.Parallel()
	good := vps.Price{Currency: "CNY", Month: 94 * vps.DecimalOne, Share: vps.ShareEqual, In: 530_000, Out: 530_000, FreeIn: 10 * vps.GiB, FreePer: vps.QuotaGuest}
	if err := good.Validate("price"); err != nil {
		t.Fatal(err)
	}
	if none := vps.DefaultPrice(); none.Validate("price") != nil || none.Set() {
		t.Fatal("no price is none")
	}
	for want, change := range map[string]func(*vps.Price){
		"price.currency: a price needs a currency":            func(p *vps.Price) { p.Currency = "" },
		`price.currency: "RMB" is not a currency`:             func(p *vps.Price) { p.Currency = "RMB" },
		"price.month: 94.005 has too many digits":             func(p *vps.Price) { p.Month = 94_005_000 },
		"price.month: 94.5 has too many digits; JPY has none": func(p *vps.Price) { p.Currency, p.Month = "JPY", 94_500_000 },
		"price.month: -1 is out of range":                     func(p *vps.Price) { p.Month = -1_000_000 },
		"price.month: 1000000001 is out of range":             func(p *vps.Price) { p.Month = (vps.MaxPrice + 1) * vps.DecimalOne },
		"price.in: 1000000000.000001 is out of range":         func(p *vps.Price) { p.In = vps.MaxPrice*vps.DecimalOne + 1 },
		"price.out: -0.000001 is out of range":                func(p *vps.Price) { p.Out = -1 },
		`price.share: "fair" is not a rule`:                   func(p *vps.Price) { p.Share = "fair" },
		"price.free_in: -1 bytes are out of range":            func(p *vps.Price) { p.FreeIn = -1 },
		"price.free_out: -5 bytes are out of range":           func(p *vps.Price) { p.FreeOut = -5 },
		`price.free_per: "" is not who`:                       func(p *vps.Price) { p.FreePer = "" },
	} {
		p := good
		change(&p)
		if err := p.Validate("price"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestMonth(t *testing.T) {
	t.Parallel()
	m, err := vps.ParseMonth("2028-02")
	if err != nil || m.Days() != 29 || m.String() != "2028-02" || m.Title() != "February 2028" || m.Day(9) != "2028-02-09" {
		t.Errorf("%+v, %v", m, err)
	}
	if dec, _ := vps.ParseMonth("2026-12"); dec.Next().String() != "2027-01" || dec.Compare(dec.Next()) >= 0 || dec.Days() != 31 {
		t.Errorf("after %s comes %s", dec, dec.Next())
	}
	for _, text := range []string{"", "2026", "2026-13", "2026-00", "2026-1", "26-10", "2026-10-01", "1969-12", "２026-10", "october"} {
		if m, err := vps.ParseMonth(text); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%q is the month %s, %v", text, m, err)
		}
	}
	if _, err := vps.ParseMonth("1900-01"); !strings.Contains(vps.ErrorMessage(err), "1900-01 is out of range; months begin with 1970-01") {
		t.Error(err)
	}
	// A zone whose clocks skip the first midnight of a month.
	zone, err := time.LoadLocation("Asia/Amman")
	if err != nil {
		t.Fatal(err)
	}
	april := vps.Month{Year: 2011, Month: time.April}
	if got := april.Start(zone).Format(time.RFC3339); got != "2011-04-01T01:00:00+03:00" {
		t.Errorf("April began at %s", got)
	}
}
