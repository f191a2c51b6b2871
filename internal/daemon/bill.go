package daemon

import (
	"context"
	"time"

	"sublet/internal/api"
	"sublet/internal/bill"
	"sublet/internal/vps"
)

// billEvery is how often it is looked whether a day or a month is over.
const billEvery = time.Minute

// book keeps who was there on which day, and the bills.
func (p *parts) book() *bill.Book {
	return &bill.Book{Days: p.db, Bills: p.db, Ledger: settledLedger{p}, Host: p.state.Host, Now: time.Now}
}

// settledLedger is the ledger with all that the kernel counted until now. Of
// time that is past it tells only what is sure to be whole.
type settledLedger struct{ *parts }

func (l settledLedger) Traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	host, err := l.quotas.host(ctx)
	if err == nil {
		_, _, err = l.traffic.sample(ctx, &host)
	}
	if err != nil {
		if q.Until.Before(time.Now()) {
			return nil, err
		}
		l.log.WarnContext(ctx, "traffic could not be kept; the kernel goes on counting", "error", err)
	}
	return l.db.Traffic(ctx, q)
}

// watchBills keeps who is there, after each edit and at the begin of each day,
// and makes the bills of months that are over, until ctx ends.
func (p *parts) watchBills(ctx context.Context) error {
	book := p.book()
	timer := time.NewTicker(billEvery)
	defer timer.Stop()
	began, clock := time.Now(), clockWatch{}
	for {
		// The first edit after the last look is not missed: it is in the look, or
		// ends the wait.
		_, edited := p.loop.Snapshot()
		var err error
		if clock.steady(time.Now(), time.Since(began)) {
			if err = book.Record(ctx); err == nil {
				err = book.Close(ctx)
			}
		}
		if err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "days or bills could not be kept; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-edited:
		case <-timer.C:
		}
	}
}

// clockWatch sees that somebody set the clock. Its zero value has seen nothing.
type clockWatch struct {
	wall   time.Time
	up     time.Duration
	jumped bool
	since  time.Duration // up, when it jumped
}

// steady tells whether the clock, which shows wall, goes as time does, of which
// up has passed: it is so unless the clock jumped in the last six hours. Bills
// and days are kept for good, so nothing is made of a time that may be wrong;
// who asks for a bill gets it.
func (c *clockWatch) steady(wall time.Time, up time.Duration) bool {
	const most, patience = time.Minute, 6 * time.Hour
	if !c.wall.IsZero() {
		if off := wall.Round(0).Sub(c.wall) - (up - c.up); off.Abs() > most {
			c.jumped, c.since = true, up
		}
	}
	c.wall, c.up = wall.Round(0), up
	return !c.jumped || up-c.since > patience
}

// closeBills makes the bills of months that are over before something changes
// that they go by.
func (b backend) closeBills(ctx context.Context, dryRun bool) error {
	if dryRun {
		return nil
	}
	return b.book().Close(ctx)
}

// SetPrice changes what guests are billed by, from this month on.
func (b backend) SetPrice(ctx context.Context, p api.SetPrice, dryRun bool) (api.Change, error) {
	return b.reprice(ctx, p.Apply, dryRun)
}

// RemovePrice lets nobody be billed any more.
func (b backend) RemovePrice(ctx context.Context, dryRun bool) (api.Change, error) {
	return b.reprice(ctx, func(vps.Price) vps.Price { return vps.DefaultPrice() }, dryRun)
}

func (b backend) reprice(ctx context.Context, shape func(vps.Price) vps.Price, dryRun bool) (api.Change, error) {
	if err := b.closeBills(ctx, dryRun); err != nil {
		return api.Change{}, err
	}
	e, err := b.state.SetPrice(ctx, shape, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	c, err := b.change(ctx, e, dryRun)
	if err != nil || dryRun {
		return c, err
	}
	return c, b.book().Close(ctx) // bills begin with this month
}

// Bill makes a bill, or returns the one that is kept.
func (b backend) Bill(ctx context.Context, q api.BillQuery) (vps.Bill, error) {
	made, err := b.book().Bill(ctx, q.Month)
	if err != nil {
		return vps.Bill{}, err
	}
	if q.Tenant != "" {
		if made = made.For(q.Tenant); len(made.Tenants) == 0 {
			host, err := b.state.Host(ctx)
			if err == nil && host.Tenant(q.Tenant) == nil {
				err = vps.Errorf(vps.CodeNotFound, "there is no tenant %s, and none on the bill; `sublet tenant list` shows all", q.Tenant)
			}
			if err != nil {
				return vps.Bill{}, err
			}
		}
	}
	if !q.Rows {
		made = made.WithoutRows()
	}
	return made, nil
}

// CorrectBill adds a line to the bill of a month that is over.
func (b backend) CorrectBill(ctx context.Context, month vps.Month, c api.CorrectBill) (vps.Bill, error) {
	corrected, err := b.book().Correct(ctx, month, bill.Correction{Guest: c.Guest, Tenant: c.Tenant, Amount: c.Amount, Reason: c.Reason})
	return corrected.WithoutRows(), err
}
