package bill

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"sublet/internal/vps"
)

// Correction asks for a line on a final bill.
type Correction struct {
	// Guest names the guest that it is about, empty for none; Tenant who gets
	// it, empty for whose the guest was.
	Guest, Tenant string
	// Amount is in the bill's currency, as in "-1.50".
	Amount string
	Reason string
}

// Correct returns the bill with its corrections, each added to its tenant's
// total and the bill's. The bill itself stays as it was. It fails with
// vps.CodeInvalid when a total is beyond 63 bits.
func Correct(b vps.Bill, corrections []vps.BillCorrection) (vps.Bill, error) {
	b.Tenants = slices.Clone(b.Tenants)
	for _, c := range corrections {
		i, found := slices.BinarySearchFunc(b.Tenants, c.Tenant, func(t vps.BillTenant, name string) int { return strings.Compare(t.Tenant, name) })
		if !found {
			b.Tenants = slices.Insert(b.Tenants, i, vps.BillTenant{Tenant: c.Tenant, Lines: []vps.BillLine{}})
		}
		t := &b.Tenants[i]
		t.Corrections = append(slices.Clip(t.Corrections), c)
		if beyond(t.Total, c.Amount) || beyond(b.Total, c.Amount) {
			return vps.Bill{}, vps.Invalid("amount", "%s more makes the total too large to be counted", c.Amount.Text(b.Digits))
		}
		t.Total += c.Amount
		b.Total += c.Amount
	}
	return b, nil
}

func beyond(a, b vps.Money) bool {
	return b > 0 && a > math.MaxInt64-b || b < 0 && a < math.MinInt64-b
}

// Correct adds a correction to the bill of a month that is over, and returns
// the bill with it. Nothing is changed when it fails: with vps.CodeConflict for
// a month that is not over, with vps.CodeNotFound for a guest or tenant that is
// not on the bill, and with vps.CodeInvalid for an amount or a reason that is
// none.
func (b *Book) Correct(ctx context.Context, m vps.Month, c Correction) (vps.Bill, error) {
	bill, err := b.Bill(ctx, &m)
	if err != nil {
		return vps.Bill{}, err
	}
	if bill.State != vps.BillFinal {
		return vps.Bill{}, vps.Errorf(vps.CodeConflict, "%s is not over, so its bill is still made anew each time; correct it once it is", m.Title())
	}
	line, err := c.line(bill, b.Now())
	if err != nil {
		return vps.Bill{}, err
	}
	if line.Tenant, err = b.debtor(ctx, bill, c); err != nil {
		return vps.Bill{}, err
	}
	if _, err := Correct(bill, []vps.BillCorrection{line}); err != nil {
		return vps.Bill{}, err
	}
	if err := b.Bills.AddCorrection(ctx, m, line); err != nil {
		return vps.Bill{}, err
	}
	return b.Bill(ctx, &m)
}

// line checks amount and reason.
func (c Correction) line(b vps.Bill, now time.Time) (vps.BillCorrection, error) {
	amount, err := vps.ParseMoney(c.Amount, b.Digits)
	reason := strings.TrimSpace(c.Reason)
	switch {
	case err != nil:
		return vps.BillCorrection{}, vps.Invalid("amount", "%s", vps.ErrorMessage(err))
	case amount == 0:
		return vps.BillCorrection{}, vps.Invalid("amount", "0 corrects nothing; write for example -1.50 for less and 1.50 for more")
	case reason == "":
		return vps.BillCorrection{}, vps.Invalid("reason", "a correction needs a reason, which stands on the bill")
	case utf8.RuneCountInString(reason) > vps.MaxReason:
		return vps.BillCorrection{}, vps.Invalid("reason", "%d characters are too many; use at most %d", utf8.RuneCountInString(reason), vps.MaxReason)
	case !utf8.ValidString(reason) || strings.ContainsFunc(reason, unprintable):
		return vps.BillCorrection{}, vps.Invalid("reason", "there is a character in it that cannot be printed; write it in one line of text")
	}
	return vps.BillCorrection{Made: now.Truncate(time.Second).UTC(), Guest: c.Guest, Amount: amount, Reason: reason}, nil
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// debtor finds whose the correction is.
func (b *Book) debtor(ctx context.Context, bill vps.Bill, c Correction) (string, error) {
	if c.Guest == "" && c.Tenant == "" {
		return "", vps.Invalid("guest", "say whose bill it corrects: a guest, or a tenant")
	}
	var whose []string
	for _, t := range bill.Tenants {
		if c.Tenant != "" && t.Tenant != c.Tenant {
			continue
		}
		if c.Guest == "" || slices.ContainsFunc(t.Lines, func(l vps.BillLine) bool { return l.Guest == c.Guest }) {
			whose = append(whose, t.Tenant)
		}
	}
	switch {
	case len(whose) == 1:
		return whose[0], nil
	case len(whose) > 1:
		return "", vps.Invalid("tenant", "the guest %s was of several tenants in that month; name one of %s", c.Guest, strings.Join(whose, ", "))
	case c.Guest != "" && c.Tenant != "":
		return "", vps.Errorf(vps.CodeNotFound, "the guest %s of the tenant %s is not on the bill of %s", c.Guest, c.Tenant, bill.Month)
	case c.Guest != "":
		return "", vps.Errorf(vps.CodeNotFound, "the guest %s is not on the bill of %s", c.Guest, bill.Month)
	}
	host, err := b.Host(ctx)
	if err != nil {
		return "", err
	}
	if host.Tenant(c.Tenant) == nil {
		return "", vps.NoTenant(c.Tenant)
	}
	return c.Tenant, nil
}
