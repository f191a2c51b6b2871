package daemon

import (
	"context"
	"time"

	"sublet/internal/vps"
)

// QuotaUses shows each quota, in the order of the host's.
func (b backend) QuotaUses(ctx context.Context) ([]vps.QuotaUse, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	uses := make([]vps.QuotaUse, 0, len(host.Quotas))
	for _, q := range host.Quotas {
		start, end := q.Period(now)
		uses = append(uses, vps.QuotaUse{Quota: q, Start: start, End: end, Limit: int64(q.LimitAt(now))})
	}
	return uses, nil
}
