package vps

import (
	"fmt"
	"strings"
	"time"
)

// ShareRule says how guests share the fixed price of the host.
type ShareRule string

// The rules.
const (
	ShareEqual   ShareRule = "equal"   // each guest as much
	ShareMemory  ShareRule = "memory"  // by GuestSpec.Memory
	ShareWeights ShareRule = "weights" // by GuestSpec.BillingWeight
)

// Bounds of what may be asked for. MaxPrice is in whole units of a currency,
// and has room for the dear ones among the small currencies.
const (
	DefaultBillingWeight = 100
	MaxBillingWeight     = 10_000
	MaxPrice             = 1_000_000_000
	// MaxReason bounds the reason of a correction, in characters.
	MaxReason = 200
	// MaxCorrections bounds those of one month.
	MaxCorrections = 1000
)

// Price is what the host costs, and by what guests are billed for it. Without a
// currency there is no price, and there are no bills.
type Price struct {
	// Currency is a code of ISO 4217, "CNY".
	Currency string `json:"currency"`
	// Month is the fixed price of a month for the whole host, in units of the
	// currency. It has no more digits behind the point than the currency.
	Month Decimal   `json:"month"`
	Share ShareRule `json:"share"`
	// In and Out are the prices of a GiB that a guest received and sent, of
	// traffic for which TrafficClass.Billed is true.
	In  Decimal `json:"in"`
	Out Decimal `json:"out"`
	// FreeIn and FreeOut are free of charge in each month, in bytes, and FreePer
	// says to whom: each guest, all guests of each tenant together, or all
	// guests of the host together.
	FreeIn  Bytes      `json:"free_in"`
	FreeOut Bytes      `json:"free_out"`
	FreePer QuotaScope `json:"free_per"`
}

// DefaultPrice is the price of a host for which none was set.
func DefaultPrice() Price { return Price{Share: ShareEqual, FreePer: QuotaGuest} }

// Set tells whether there is a price.
func (p *Price) Set() bool { return p.Currency != "" }

// Digits are those that amounts have behind the point; 0 without a currency.
func (p *Price) Digits() int {
	digits, _ := CurrencyDigits(p.Currency)
	return digits
}

// MonthMoney is the fixed price of a month.
func (p *Price) MonthMoney() Money {
	v, _ := p.Month.scaled(p.Digits()) // Validate has seen to it
	return Money(v)
}

// Validate checks the price; field is what it is called in the input.
func (p *Price) Validate(field string) error {
	digits, known := CurrencyDigits(p.Currency)
	_, whole := p.Month.scaled(digits)
	switch {
	case p.Currency == "" && (p.Month != 0 || p.In != 0 || p.Out != 0):
		return Invalid(field+".currency", "a price needs a currency; name one by its code of ISO 4217, for example CNY")
	case p.Currency != "" && !known:
		return Invalid(field+".currency", "%q is not a currency; write its code of ISO 4217, for example CNY, EUR or USD", p.Currency)
	case p.Month >= 0 && !whole:
		return Invalid(field+".month", "%s has too many digits; %s has %s behind the point", p.Month, p.Currency, digitsText(digits))
	case p.FreeIn < 0:
		return Invalid(field+".free_in", "%d bytes are out of range; use 0 or more", int64(p.FreeIn))
	case p.FreeOut < 0:
		return Invalid(field+".free_out", "%d bytes are out of range; use 0 or more", int64(p.FreeOut))
	}
	for _, v := range []struct {
		name  string
		value Decimal
	}{{"month", p.Month}, {"in", p.In}, {"out", p.Out}} {
		if v.value < 0 || v.value > MaxPrice*DecimalOne {
			return Invalid(field+"."+v.name, "%s is out of range; use 0 to %d", v.value, MaxPrice)
		}
	}
	switch p.Share {
	case ShareEqual, ShareMemory, ShareWeights:
	default:
		return Invalid(field+".share", "%q is not a rule to share by; use equal, memory or weights", string(p.Share))
	}
	switch p.FreePer {
	case QuotaGuest, QuotaTenant, QuotaHost:
		return nil
	}
	return Invalid(field+".free_per", "%q is not who may have free traffic; use guest, tenant or host", string(p.FreePer))
}

func digitsText(n int) string {
	switch n {
	case 0:
		return "none"
	case 1:
		return "1 digit"
	}
	return fmt.Sprintf("%d digits", n)
}

// Month is a month of a calendar, without a time zone.
type Month struct {
	Year  int
	Month time.Month
}

const monthLayout = "2006-01"

// MonthOf returns the month that holds t, in t's zone.
func MonthOf(t time.Time) Month { return Month{t.Year(), t.Month()} }

// ParseMonth reads "2026-10". It returns an Error with CodeInvalid and no
// field.
func ParseMonth(s string) (Month, error) {
	t, err := time.Parse(monthLayout, s)
	switch {
	case err != nil:
		return Month{}, Invalid("", "%q is not a month; write year and month, for example 2026-10", s)
	case t.Year() < 1970:
		return Month{}, Invalid("", "%s is out of range; months begin with 1970-01 here", s)
	}
	return MonthOf(t), nil
}

// String writes the month as ParseMonth reads it.
func (m Month) String() string { return m.Start(time.UTC).Format(monthLayout) }

// Title writes the month for people: "October 2026".
func (m Month) Title() string { return fmt.Sprintf("%s %d", m.Month, m.Year) }

// MarshalText writes the month as String does.
func (m Month) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what ParseMonth reads.
func (m *Month) UnmarshalText(text []byte) error {
	v, err := ParseMonth(string(text))
	if err == nil {
		*m = v
	}
	return err
}

// Start is the begin of the month in a zone, as TrafficStep.Begin has it.
func (m Month) Start(zone *time.Location) time.Time { return dayBegin(m.Year, m.Month, 1, zone) }

// Next returns the month that follows.
func (m Month) Next() Month { return MonthOf(time.Date(m.Year, m.Month+1, 1, 0, 0, 0, 0, time.UTC)) }

// Days returns how many days the month has.
func (m Month) Days() int { return time.Date(m.Year, m.Month+1, 0, 0, 0, 0, 0, time.UTC).Day() }

// Day writes a day of the month, from 1, as "2026-10-31".
func (m Month) Day(day int) string { return fmt.Sprintf("%s-%02d", m, day) }

// Compare returns -1, 0 or 1, as m is before, the same as, or after o.
func (m Month) Compare(o Month) int { return strings.Compare(m.String(), o.String()) }

// GuestSpan says that a guest was there from First to Day, as a clock showed that
// may have been wrong.
type GuestSpan struct {
	First string // as Day
	GuestDay
}

// GuestDay says that a guest was there on a day, at any time of it, with what
// the host's fixed price is shared by. What changes during a day counts as it
// is at its end.
type GuestDay struct {
	// Day is in the host's time zone, "2026-10-31".
	Day     string `json:"day"`
	GuestID string `json:"guest_id"`
	// Guest and Tenant are the names that it had, or has.
	Guest  string `json:"guest"`
	Tenant string `json:"tenant"`
	Memory Bytes  `json:"memory"`
	Weight int    `json:"weight"`
}
