package daemon

import (
	"context"
	"time"

	"sublet/internal/meter"
	"sublet/internal/vps"
)

// lookBack is how far back the forecast of a quota looks: as far as people do
// the same things again.
const lookBack = 7 * 24 * time.Hour

// QuotaUses shows what each quota has used up to now, in the order of the
// host's quotas, and when it will be used up.
func (b backend) QuotaUses(ctx context.Context) ([]vps.QuotaUse, error) {
	b.sampleTraffic(ctx)
	return b.quotaUses(ctx, b.db.Traffic)
}

// quotaUses shows what each quota has used as of the last sample. history is
// asked for the days that forecasts look back on.
func (b backend) quotaUses(ctx context.Context, history func(context.Context, vps.TrafficQuery) ([]vps.TrafficRow, error)) ([]vps.QuotaUse, error) {
	states, now := b.quotas.current(), time.Now()
	uses := make([]vps.QuotaUse, 0, len(states))
	if len(states) == 0 {
		return uses, nil
	}
	host, err := b.quotas.host(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := history(ctx, vps.TrafficQuery{Step: vps.StepDay, Since: now.Add(-lookBack), Whole: true})
	if err != nil {
		return nil, err
	}
	paces := meter.NewQuotaPaces(&host, rows, now)
	for i := range states {
		use := states[i].Use
		in, out := paces.Of(&use.Quota)
		use.ReachedAt = meter.ForecastQuota(&use, in, out, now)
		uses = append(uses, use)
	}
	return uses, nil
}
