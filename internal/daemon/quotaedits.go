package daemon

import (
	"context"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/vps"
)

func (b backend) SetQuota(ctx context.Context, scope vps.QuotaScope, name string, s api.SetQuota, dryRun bool) (api.Change, error) {
	e, err := b.state.SetQuota(ctx, scope, name, func(q vps.Quota) (vps.Quota, error) { return s.Apply(q), nil }, dryRun)
	c, err := b.changeQuota(ctx, e, err, dryRun)
	if q := e.After.Quota(scope, name); err == nil && q != nil {
		if w := q.Warning(); w != "" {
			c.Warnings = append(c.Warnings, w)
		}
	}
	return c, err
}

func (b backend) TopUpQuota(ctx context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (api.Change, error) {
	e, err := b.state.TopUpQuota(ctx, scope, name, more, dryRun)
	return b.changeQuota(ctx, e, err, dryRun)
}

func (b backend) LiftQuota(ctx context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (api.Change, error) {
	e, err := b.state.LiftQuota(ctx, scope, name, lifted, dryRun)
	return b.changeQuota(ctx, e, err, dryRun)
}

func (b backend) RemoveQuota(ctx context.Context, scope vps.QuotaScope, name string, dryRun bool) (api.Change, error) {
	e, err := b.state.RemoveQuota(ctx, scope, name, dryRun)
	return b.changeQuota(ctx, e, err, dryRun)
}

// changeQuota tells of an edit of a quota.
func (b backend) changeQuota(ctx context.Context, e desired.Edited, err error, dryRun bool) (api.Change, error) {
	if err != nil {
		return api.Change{}, err
	}
	return b.change(ctx, e, dryRun)
}
