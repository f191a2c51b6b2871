package daemon

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/api"
	"sublet/internal/bill"
	"sublet/internal/desired"
	"sublet/internal/vps"
)

// billEvery is how often it is looked whether a day or a month is over.
const billEvery = time.Minute

// book keeps who was there on which day, and the bills.
func (p *parts) book() *bill.Book {
	return &bill.Book{Days: p.db, Bills: p.db, Billing: p.db, Ledger: settledLedger{p}, Host: p.state.Host, Now: time.Now, Sure: p.clockSure}
}

// settledLedger is the ledger with all that the kernel counted until now.
type settledLedger struct{ *parts }

func (l settledLedger) Traffic(ctx context.Context, q vps.TrafficQuery, whole bool) ([]vps.TrafficRow, error) {
	if q.Imported {
		return l.db.Traffic(ctx, q) // which the kernel has nothing of
	}
	if err := l.settle(ctx); err != nil {
		if whole {
			return nil, err
		}
		l.log.WarnContext(ctx, "traffic could not be kept; the kernel goes on counting", "error", err)
	}
	return l.db.Traffic(ctx, q)
}

// settle keeps all that the kernel counted until now.
func (p *parts) settle(ctx context.Context) error {
	host, err := p.quotas.host(ctx)
	if err == nil {
		_, _, err = p.traffic.sample(ctx, &host)
	}
	return err
}

// clockSure tells whether the clock may be believed for what is kept for good:
// the ledger has seen nobody set it for long, or the kernel keeps it in step
// with others, which ends when somebody sets it. A host that booted has a clock
// that nobody has seen.
func (p *parts) clockSure(ctx context.Context) bool {
	if p.synced() {
		return true
	}
	err := p.settle(ctx) // it sees what the clock shows now
	var steady bool
	if err == nil {
		steady, err = p.db.ClockSteady(ctx)
	}
	if err != nil && ctx.Err() == nil {
		p.log.WarnContext(ctx, "it cannot be told whether the clock was set, so no bill is made; it is tried again", "error", err)
	}
	return err == nil && steady
}

// clockSynced tells whether a program keeps the clock in step with others by the
// kernel's own means (adjtimex(2)).
func clockSynced() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

// watchBills keeps who is there, after each edit and at the begin of each day,
// and makes the bills of months that are over, until ctx ends.
func (p *parts) watchBills(ctx context.Context) error {
	book := p.book()
	timer := time.NewTicker(billEvery)
	defer timer.Stop()
	for {
		// The first edit after the last look is not missed: it is in the look, or
		// ends the wait.
		_, edited := p.loop.Snapshot()
		err := book.Record(ctx)
		if err == nil {
			err = book.Close(ctx)
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

// settleBills makes the bills of months that are over before an edit of what
// they go by: the price, and where days begin.
func (b backend) settleBills(ctx context.Context, e desired.Edited) error {
	before, after := e.Before.Settings, e.After.Settings
	if before.Price == after.Price && before.Timezone == after.Timezone {
		return nil
	}
	return b.book().Settle(ctx)
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
	e, err := b.state.SetPrice(ctx, shape, true)
	if err != nil {
		return api.Change{}, err
	}
	if !dryRun {
		if err := b.settleBills(ctx, e); err != nil {
			return api.Change{}, err
		}
		if e, err = b.state.SetPrice(ctx, shape, false); err != nil {
			return api.Change{}, err
		}
	}
	c, err := b.change(ctx, e, dryRun)
	if err != nil || dryRun {
		return c, err
	}
	return c, b.book().Close(ctx) // bills begin with this month
}

// Bills lists all bills.
func (b backend) Bills(ctx context.Context) ([]vps.BillSummary, error) { return b.book().List(ctx) }

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
