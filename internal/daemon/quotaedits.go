package daemon

import (
	"context"
	"reflect"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/meter"
	"sublet/internal/vps"
)

func (b backend) SetQuota(ctx context.Context, scope vps.QuotaScope, name string, s api.SetQuota, dryRun bool) (api.Change, error) {
	e, err := b.state.SetQuota(ctx, scope, name, s.Apply, dryRun)
	c, err := b.changeQuota(ctx, e, err, dryRun)
	if err != nil {
		return c, err
	}
	c.Warnings = append(c.Warnings, quotaWarnings(e.Before, e.After)...)
	return c, nil
}

// quotaWarnings are those of the quotas that an edit made or changed.
func quotaWarnings(before, after vps.Host) []string {
	var warnings []string
	for i := range after.Quotas {
		q := &after.Quotas[i]
		if old := before.Quota(q.Scope, q.Name); old != nil && reflect.DeepEqual(*old, *q) {
			continue
		}
		if w := q.Warning(); w != "" {
			warnings = append(warnings, w)
		}
	}
	return warnings
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

// foreseeQuotas sets what quotas would have in force after an edit that is not
// made, and says what would become known and change of that.
func (b backend) foreseeQuotas(ctx context.Context, e *desired.Edited) (lines []string) {
	b.quotas.restrain(&e.Before)
	b.quotas.restrain(&e.After)
	if reflect.DeepEqual(e.Before.Quotas, e.After.Quotas) {
		return nil
	}
	states, err := b.quotas.foresee(ctx, &e.After, b.traffic.rehearse)
	if err != nil {
		b.log.WarnContext(ctx, "what quotas would call for cannot be told", "error", err)
		return nil
	}
	meter.Restrain(states, &e.After)
	for i := range states {
		for _, r := range states[i].New {
			lines = append(lines, "notice: "+states[i].Tell(r, b.quotas.now()))
		}
	}
	for i := range e.After.Guests {
		g := &e.After.Guests[i]
		var was *vps.Restraint
		if old := e.Before.Guest(g.Spec.Name); old != nil {
			was = old.Restraint
		}
		switch is := g.Restraint; {
		case is != nil && (was == nil || was.String() != is.String()):
			lines = append(lines, "guest "+g.Spec.Name+": "+is.String())
		case is == nil && was != nil:
			lines = append(lines, "guest "+g.Spec.Name+": not "+was.String()+" any more")
		}
	}
	return lines
}
