package api

import (
	"context"
	"net/http"
	"net/url"

	"sublet/internal/vps"
)

// BillQuery selects a bill.
type BillQuery struct {
	// Month is nil for the one that runs.
	Month *vps.Month
	// Tenant is whose part is wanted; empty means everybody's.
	Tenant string
	// Rows says whether the rows of the ledger are wanted too.
	Rows bool
}

// CorrectBill adds a line to the bill of a month that is over.
type CorrectBill struct {
	Guest  string `json:"guest,omitempty" doc:"The guest that it is about; left out: none."`
	Tenant string `json:"tenant,omitempty" doc:"Who gets it; left out: whose the guest was."`
	Amount string `json:"amount" doc:"Decimal in the bill's currency, negative for less, such as -1.50."`
	Reason string `json:"reason" doc:"Stands on the bill; at most 200 characters."`
}

// Bills makes bills and corrects them.
type Bills interface {
	// Bills lists all bills, the oldest month first: those that are kept, and
	// while there is a price the open one of the month that runs.
	Bills(ctx context.Context) ([]vps.BillSummary, error)
	// Bill returns a bill. That of a month that is over is kept when it is
	// made, and never changes.
	Bill(ctx context.Context, q BillQuery) (vps.Bill, error)
	CorrectBill(ctx context.Context, month vps.Month, c CorrectBill) (vps.Bill, error)
}

// currentMonth is what a path has for the month that runs.
const currentMonth = "current"

type (
	billInput struct {
		Month  string `path:"month" doc:"The month, or current for the one that runs." example:"2026-10"`
		Tenant string `query:"tenant" doc:"Only this tenant's part; left out: everybody's."`
		Rows   bool   `query:"rows" doc:"With the rows of the ledger that the traffic is the sum of."`
	}
	correctBillInput struct {
		Month string `path:"month" doc:"The month." example:"2026-10"`
		Body  CorrectBill
	}
)

func (s *Server) registerBills() {
	const tag = "billing"
	all := operation("list-bills", http.MethodGet, "/v1/bills", tag, "List all bills")
	all.Description = "Those that are kept, and while there is a price the open one of the month that runs. Totals have the corrections in them."
	addList(s, all, func(ctx context.Context) ([]vps.BillSummary, error) {
		if s.backend.Bills == nil {
			return nil, missing("bills")
		}
		return s.backend.Bills.Bills(ctx)
	})
	show := operation("show-bill", http.MethodGet, "/v1/bills/{month}", tag, "Show what each tenant owes for a month")
	show.Description = "Amounts are integers in the currency's minor unit, which has digits behind the point: 9400 is 94.00 for 2. " +
		"The bill of the month that runs is up to now. That of a month that is over is kept when it is first made, and never changes; corrections are lines beside it."
	register(s, show, func(ctx context.Context, in *billInput) (*reply[vps.Bill], error) {
		q := BillQuery{Tenant: in.Tenant, Rows: in.Rows}
		if in.Month != currentMonth {
			month, err := parseMonth(in.Month)
			if err != nil {
				return nil, err
			}
			q.Month = &month
		}
		if in.Tenant != "" {
			if err := vps.ValidName("tenant", in.Tenant); err != nil {
				return nil, err
			}
		}
		if s.backend.Bills == nil {
			return nil, missing("bills")
		}
		return bodyOf(s.backend.Bills.Bill(ctx, q))
	})
	correct := operation("correct-bill", http.MethodPost, "/v1/bills/{month}/corrections", tag, "Correct the bill of a month that is over")
	correct.Description = "Adds a line; what the bill has stays. The answer is the bill with it."
	register(s, correct, func(ctx context.Context, in *correctBillInput) (*reply[vps.Bill], error) {
		month, err := parseMonth(in.Month)
		if err != nil {
			return nil, err
		}
		if s.backend.Bills == nil {
			return nil, missing("bills")
		}
		return bodyOf(s.backend.Bills.CorrectBill(ctx, month, in.Body))
	})
}

func parseMonth(text string) (vps.Month, error) {
	month, err := vps.ParseMonth(text)
	if err != nil {
		return month, vps.Invalid("month", "%s", vps.ErrorMessage(err))
	}
	return month, nil
}

// Bills lists all bills, the oldest month first.
func (c *Client) Bills(ctx context.Context) ([]vps.BillSummary, error) {
	return getList[vps.BillSummary](ctx, c, "/v1/bills", nil)
}

// Bill returns the bill of a month.
func (c *Client) Bill(ctx context.Context, q BillQuery) (vps.Bill, error) {
	month, query := currentMonth, url.Values{}
	if q.Month != nil {
		month = q.Month.String()
	}
	if q.Tenant != "" {
		query.Set("tenant", q.Tenant)
	}
	if q.Rows {
		query.Set("rows", "true")
	}
	return get[vps.Bill](ctx, c, "/v1/bills/"+month, query)
}

// CorrectBill adds a line to the bill of a month that is over, and returns the
// bill with it. It is not idempotent: each call adds one.
func (c *Client) CorrectBill(ctx context.Context, month vps.Month, b CorrectBill) (vps.Bill, error) {
	return send[vps.Bill](ctx, c, http.MethodPost, "/v1/bills/"+month.String()+"/corrections", nil, b)
}
