package api

import (
	"context"
	"net/http"

	"sublet/internal/vps"
)

// SetPrice changes what guests are billed by. What is nil stays as it is.
type SetPrice struct {
	Currency *string         `json:"currency,omitempty" doc:"Code of ISO 4217; the first time it has to be named."`
	Month    *vps.Decimal    `json:"month,omitempty" doc:"Fixed price of a month for the whole host."`
	Share    *vps.ShareRule  `json:"share,omitempty" doc:"How the guests of each day share the fixed price."`
	In       *vps.Decimal    `json:"in,omitempty" doc:"Price of a GiB that a guest received."`
	Out      *vps.Decimal    `json:"out,omitempty" doc:"Price of a GiB that a guest sent."`
	FreeIn   *vps.Bytes      `json:"free_in,omitempty" doc:"Bytes received that are free of charge in each month."`
	FreeOut  *vps.Bytes      `json:"free_out,omitempty" doc:"Bytes sent that are free of charge in each month."`
	FreePer  *vps.QuotaScope `json:"free_per,omitempty" enum:"guest,tenant,host" doc:"Who may use that much: each guest, all guests of each tenant together, or all of the host together."`
}

// Apply lays what is set over a price.
func (s SetPrice) Apply(p vps.Price) vps.Price {
	set(&p.Currency, s.Currency)
	set(&p.Month, s.Month)
	set(&p.Share, s.Share)
	set(&p.In, s.In)
	set(&p.Out, s.Out)
	set(&p.FreeIn, s.FreeIn)
	set(&p.FreeOut, s.FreeOut)
	set(&p.FreePer, s.FreePer)
	return p
}

// Billing keeps the price of the host, and makes bills by it.
type Billing interface {
	// SetPrice changes the price for the month that runs and those to come.
	SetPrice(ctx context.Context, p SetPrice, dryRun bool) (Change, error)
	// RemovePrice removes it: no bill is made any more. Those that are there
	// stay. It is idempotent.
	RemovePrice(ctx context.Context, dryRun bool) (Change, error)
}

type (
	setPriceInput struct {
		DryRun bool `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   SetPrice
	}
	removePriceInput struct {
		DryRun bool `query:"dry_run" doc:"Change nothing, only tell what would be done."`
	}
)

func (s *Server) registerBilling() {
	const tag = "billing"
	change := operation("set-price", http.MethodPatch, "/v1/price", tag, "Set what guests are billed by")
	change.Description = "Members left out stay as they are. It holds for the month that runs and those to come; a month that is over keeps the price that it had. The host shows the price among its settings."
	register(s, change, func(ctx context.Context, in *setPriceInput) (*reply[Change], error) {
		b, err := s.billing()
		if err != nil {
			return nil, err
		}
		return changeOf(b.SetPrice(ctx, in.Body, in.DryRun))
	})
	remove := operation("remove-price", http.MethodDelete, "/v1/price", tag, "Bill nobody any more")
	remove.Description = "The bills that were made stay."
	register(s, remove, func(ctx context.Context, in *removePriceInput) (*reply[Change], error) {
		b, err := s.billing()
		if err != nil {
			return nil, err
		}
		return changeOf(b.RemovePrice(ctx, in.DryRun))
	})
}

func (s *Server) billing() (Billing, error) {
	if s.backend.Billing == nil {
		return nil, missing("bills")
	}
	return s.backend.Billing, nil
}

// SetPrice changes what is not nil of the host's price. With dryRun nothing is
// changed, and the answer tells what would be.
func (c *Client) SetPrice(ctx context.Context, p SetPrice, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodPatch, "/v1/price", dryRunQuery(dryRun), p)
}

// RemovePrice removes the host's price. It is idempotent.
func (c *Client) RemovePrice(ctx context.Context, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodDelete, "/v1/price", dryRunQuery(dryRun), nil)
}
