package bill

import (
	"context"
	"slices"

	"sublet/internal/vps"
)

// undated returns what imported rows of a month have beyond those of its days:
// other programs keep months for longer. What was counted here is in days, all
// of it.
func (b *Book) undated(ctx context.Context, at moment, m vps.Month) ([]vps.TrafficRow, error) {
	months, err := b.imported(ctx, at, m, vps.StepMonth)
	if err != nil || len(months) == 0 {
		return nil, err
	}
	days, err := b.imported(ctx, at, m, vps.StepDay)
	if err != nil {
		return nil, err
	}
	type key struct {
		guest string
		vps.TrafficKey
	}
	dated := map[key]vps.TrafficCount{}
	for _, r := range days {
		k := key{r.GuestID, r.TrafficKey}
		dated[k] = dated[k].Add(r.TrafficCount)
	}
	for i := range months {
		r := &months[i]
		k := key{r.GuestID, r.TrafficKey}
		in, out := min(dated[k].InBytes, r.InBytes), min(dated[k].OutBytes, r.OutBytes)
		less := vps.TrafficCount{InBytes: -in, OutBytes: -out}
		dated[k] = dated[k].Add(less) // what is left is another row's
		r.Start, r.TrafficCount = m.Start(at.zone), vps.TrafficCount{InBytes: r.InBytes - in, OutBytes: r.OutBytes - out}
	}
	return slices.DeleteFunc(months, func(r vps.TrafficRow) bool { return r.TrafficCount == vps.TrafficCount{} }), nil
}

// imported returns the imported rows of a step that are called by the month, and
// billed.
func (b *Book) imported(ctx context.Context, at moment, m vps.Month, step vps.TrafficStep) ([]vps.TrafficRow, error) {
	q := vps.TrafficQuery{Step: step, Imported: true}
	q.Since, q.Until = step.Around(m.Start(at.zone), m.Next().Start(at.zone))
	rows, err := b.Ledger.Traffic(ctx, q, false)
	return slices.DeleteFunc(rows, func(r vps.TrafficRow) bool {
		return !r.Class.Billed() || vps.MonthOf(step.Named(r.Start, at.zone, at.now)) != m
	}), err
}
