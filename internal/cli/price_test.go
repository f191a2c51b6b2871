package cli

import (
	"context"
	"strings"
	"testing"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (f *fake) SetPrice(_ context.Context, p api.SetPrice, dryRun bool) (api.Change, error) {
	price := p.Apply(f.price)
	if err := price.Validate("settings.price"); err != nil {
		return api.Change{}, err
	}
	c := api.Change{DryRun: dryRun, Edits: []string{"settings: price.month " + f.price.Month.String() + " -> " + price.Month.String()}}
	if price == f.price {
		c.Edits = nil
	}
	if !dryRun {
		f.price = price
	}
	return c, f.failure
}

func (f *fake) RemovePrice(_ context.Context, dryRun bool) (api.Change, error) {
	if !dryRun {
		f.price = vps.DefaultPrice()
	}
	return api.Change{DryRun: dryRun, Edits: []string{"settings: no price"}}, f.failure
}

func TestPrice(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.says(t, 0, "nobody is billed", "price", "show")
	w.says(t, 0, "price.month 0 -> 94", "price", "set", "--currency", "cny", "--month", "94", "--in", "0.53", "--out", "0.53", "--dry-run")
	if w.fake.price.Set() {
		t.Fatal("a dry run set the price")
	}
	w.mustRun(t, "price", "set", "--currency", "cny", "--month", "94", "--share", "memory", "--in", "0.53", "--out", "0.53", "--free", "10GiB")
	want := vps.Price{Currency: "CNY", Month: 94 * vps.DecimalOne, Share: vps.ShareMemory, In: 530_000, Out: 530_000, FreeIn: 10 * vps.GiB, FreeOut: 10 * vps.GiB, FreePer: vps.QuotaGuest}
	if w.fake.price != want {
		t.Errorf("the price is %+v", w.fake.price)
	}
	w.says(t, 0, "sent      0.53 for each GiB after 10GiB free for each guest", "price", "show")
	w.mustRun(t, "price", "set", "--free-in", "0", "--free-per", "host")
	w.says(t, 0, "received  0.53 for each GiB\nsent      0.53 for each GiB after 10GiB free for all guests of the host together", "price", "show")
	w.says(t, 0, "{\n  \"schema_version\": 1,\n  \"currency\": \"CNY\"", "price", "show", "-o", "json")
	w.says(t, 0, `"in": "0.53"`, "price", "show", "-o", "json")
	w.says(t, 0, "schema_version: 1\n", "price", "show", "-o", "yaml")
	w.says(t, 0, `"settings: price.month 94 -> 95"`, "price", "set", "--month", "95", "-o", "json")
	w.says(t, 0, `"settings: price.month 95 -> 94"`, "price", "set", "--month", "94", "-o", "json")
	w.says(t, ExitUsage, "-o csv is no format of this verb", "price", "set", "--month", "95", "-o", "csv")
	w.says(t, 0, "the price is so already", "price", "set", "--month", "94")
	w.mustRun(t, "price", "remove")
	if w.fake.price != vps.DefaultPrice() {
		t.Errorf("the price is %+v", w.fake.price)
	}
}

// TestPriceRefused types what is no price; nothing is changed.
func TestPriceRefused(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"set":                              "price set needs a flag",
		"set --month ninety":               `--month: "ninety" is not an amount; write digits and a point, for example 0.53`,
		"set --in 0.1234567":               `--in: "0.1234567" has 7 digits behind the point, and at most 6 are possible here`,
		"set --out -0.53":                  `--out: "-0.53" is negative; a price is 0 or more`,
		"set --month 1e3":                  `"1e3" is not an amount`,
		"set --month 99999999999999999999": "out of range for an amount",
		"set --month 1000000001":           "--month: 1000000001 is out of range; use 0 to 1000000000",
		"set --month 94.005":               "--month: 94.005 has too many digits; CNY has 2 digits behind the point",
		"set --currency RMB":               `--currency: "RMB" is not a currency; write its code of ISO 4217`,
		"set --currency JPY --month 94.5":  "--month: 94.5 has too many digits; JPY has none behind the point",
		"set --currency=":                  "`sublet price remove` removes the price",
		"set --share fair":                 `--share: "fair" is not a rule to share by; use equal, memory or weights`,
		"set --free-per family":            `--free-per: "family" is not who may have free traffic`,
		"set --free -1GiB":                 "--free:",
		"set --free 1GiB --free-in 1GiB":   "--free sets both",
		"set 94":                           "takes no name",
	} {
		w := newWorld()
		w.fake.price = vps.Price{Currency: "CNY", Month: 94 * vps.DecimalOne, Share: vps.ShareEqual, FreePer: vps.QuotaGuest}
		before := w.fake.price
		code := w.run(t.Context(), append([]string{"price"}, strings.Fields(args)...)...)
		if code != ExitUsage || !strings.Contains(w.errors.String(), want) {
			t.Errorf("sublet price %s: exit code %d, want %q in:\n%s", args, code, want, w.errors.String())
		}
		if w.fake.price != before {
			t.Errorf("sublet price %s changed the price to %+v", args, w.fake.price)
		}
	}
	w := newWorld()
	w.says(t, ExitUsage, "--currency: a price needs a currency", "price", "set", "--month", "94")
}
