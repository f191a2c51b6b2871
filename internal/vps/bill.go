package vps

import "time"

// BillState says how sure a bill is.
type BillState string

// The states.
const (
	// BillOpen is the bill of a month that is not over, or of which that is not
	// sure because the host's clock was set, up to now. It is made anew each
	// time.
	BillOpen BillState = "open"
	// BillFinal is the bill of a month that is over. It never changes;
	// corrections stand beside it.
	BillFinal BillState = "final"
)

// Bill is what the host cost in a month, and who owes how much of it. Every sum
// in it is exact: lines add up to their tenant's total, and those to the
// bill's.
type Bill struct {
	Schema int       `json:"schema_version"`
	Month  Month     `json:"month"`
	State  BillState `json:"state"`
	// Made is when it was made, and for a final bill kept.
	Made time.Time `json:"made"`
	// Start and End bound the days of the ledger that it has: from Start on and
	// before End. They are the month's begin and end in Timezone, the host's,
	// unless that was another one when those days began.
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	Timezone string    `json:"timezone"`
	// Days are those of the month, and Passed as many of them as the bill has:
	// all, or for an open bill those up to today.
	Days   int `json:"days"`
	Passed int `json:"passed_days"`
	// Price is what it was made by. All amounts are integers in the currency's
	// minor unit, which has Digits behind the point: 9400 is 94.00 for 2.
	Price  Price `json:"price"`
	Digits int   `json:"digits"`
	// Tenants are sorted by name.
	Tenants []BillTenant `json:"tenants"`
	// Fixed is the fixed price of the days that passed.
	Fixed Money `json:"fixed"`
	Total Money `json:"total"`
	// Estimate is what an open bill comes to by the end of the month if it goes
	// on as so far; nil for a final one, and while it is too early to tell.
	Estimate *Money `json:"estimate,omitempty"`
}

// BillSummary is what a list tells of a bill.
type BillSummary struct {
	Month Month     `json:"month"`
	State BillState `json:"state"`
	Made  time.Time `json:"made"`
	// Currency is what Total is in, as an integer of the minor unit, which has
	// Digits behind the point.
	Currency string `json:"currency"`
	Digits   int    `json:"digits"`
	// Total has the corrections in it, of which there are so many, and which come
	// to Corrected.
	Total       Money `json:"total"`
	Corrections int   `json:"corrections"`
	Corrected   Money `json:"corrected"`
	// Estimate is as that of the bill.
	Estimate *Money `json:"estimate,omitempty"`
}

// Summary returns what a list tells of the bill.
func (b Bill) Summary() BillSummary {
	s := BillSummary{Month: b.Month, State: b.State, Made: b.Made, Currency: b.Price.Currency, Digits: b.Digits, Total: b.Total, Estimate: b.Estimate}
	for _, t := range b.Tenants {
		s.Corrections += len(t.Corrections)
		for _, c := range t.Corrections {
			s.Corrected += c.Amount
		}
	}
	return s
}

// BillTenant is the part of a bill that one tenant owes.
type BillTenant struct {
	Tenant string `json:"tenant"`
	// Lines are sorted by the guests' names.
	Lines []BillLine `json:"lines"`
	// Corrections were added to a final bill, the oldest first.
	Corrections []BillCorrection `json:"corrections"`
	Total       Money            `json:"total"`
	// Estimate is as that of the bill.
	Estimate *Money `json:"estimate,omitempty"`
}

// BillLine is what one guest costs its tenant. A guest that changed its tenant
// has a line for each.
type BillLine struct {
	// GuestID and Guest are empty for the fixed price of days on which there was
	// no guest: the owner bears it.
	GuestID string `json:"guest_id"`
	Guest   string `json:"guest"`
	// Days are those on which the guest was there, and Spans how it shared the
	// fixed price on them.
	Days  int        `json:"days"`
	Spans []BillSpan `json:"spans"`
	// Fixed is its share of the fixed price.
	Fixed Money     `json:"fixed"`
	In    BillUsage `json:"in"`
	Out   BillUsage `json:"out"`
	Total Money     `json:"total"`
	// Rows are the rows of the ledger that In and Out are the sums of, by time.
	// They are left out where nobody asked for them.
	Rows []BillRow `json:"rows,omitzero"`
}

// BillSpan is a run of days on which a guest had the same share of each day's
// fixed price: Units of Of, which are guests, bytes of memory or weights. For
// days without a guest it is 1 of 1.
type BillSpan struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Days  int    `json:"days"`
	Units int64  `json:"units"`
	Of    int64  `json:"of"`
}

// BillUsage is traffic in one direction and what it costs: Bytes less Free
// times the price of a GiB, rounded half up to the minor unit.
type BillUsage struct {
	Bytes int64 `json:"bytes"`
	// Undated are those of Bytes that were imported of the month as a whole,
	// without the days.
	Undated int64 `json:"undated,omitempty"`
	Free    int64 `json:"free"`
	Amount  Money `json:"amount"`
}

// BillRow is a row of the ledger that a bill counts: the guest's of the line, of
// one day, as `sublet traffic GUEST --days` shows it. After a change of the
// host's zone two rows may have the same day, which that adds up. One with
// StepMonth is what the imported row of the month has beyond those of its days.
type BillRow struct {
	Step  TrafficStep `json:"step"`
	Start time.Time   `json:"start"`
	TrafficKey
	In  int64 `json:"in_bytes"`
	Out int64 `json:"out_bytes"`
}

// BillCorrection is a line that was added to a final bill.
type BillCorrection struct {
	ID   int64     `json:"id"`
	Made time.Time `json:"made"`
	// Guest is empty for a correction of the tenant's as a whole.
	Guest  string `json:"guest"`
	Tenant string `json:"tenant"`
	Amount Money  `json:"amount"`
	Reason string `json:"reason"`
}

// For returns the part of the bill that a tenant owes: its lines, and as total
// what it owes. A tenant that owes nothing has none.
func (b Bill) For(tenant string) Bill {
	all := b.Tenants
	b.Tenants, b.Fixed, b.Total, b.Estimate = []BillTenant{}, 0, 0, nil
	for _, t := range all {
		if t.Tenant != tenant {
			continue
		}
		b.Tenants, b.Total, b.Estimate = []BillTenant{t}, t.Total, t.Estimate
		for _, l := range t.Lines {
			b.Fixed += l.Fixed
		}
	}
	return b
}

// WithoutRows returns the bill without the rows of the ledger. It shares the
// rest with b.
func (b Bill) WithoutRows() Bill {
	tenants := make([]BillTenant, len(b.Tenants))
	for i, t := range b.Tenants {
		lines := make([]BillLine, len(t.Lines))
		for j, l := range t.Lines {
			l.Rows = nil
			lines[j] = l
		}
		t.Lines = lines
		tenants[i] = t
	}
	b.Tenants = tenants
	return b
}
