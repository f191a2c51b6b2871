package desired

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"sublet/internal/vps"
)

// SetQuota makes a quota, or changes one. shape gets it as it is; a new one
// has the defaults of vps.NewQuota and no limit. What shape does to scope and
// name is not kept. What was topped up, or lifted, for the present month stays
// so when that begins on another day now.
func (s *State) SetQuota(ctx context.Context, scope vps.QuotaScope, name string, shape func(vps.Quota) (vps.Quota, error), dryRun bool) (Edited, error) {
	var guest string
	before, after, err := s.edit(ctx, dryRun, func(c *contents) (err error) {
		guest, err = setQuota(c, scope, name, s.now(), shape)
		return err
	})
	return Edited{before, after, guest}, err
}

// TopUpQuota adds to the limit of a quota until its next reset.
func (s *State) TopUpQuota(ctx context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (Edited, error) {
	return s.editQuota(ctx, scope, name, dryRun, func(q *vps.Quota) error {
		if more <= 0 {
			return vps.Invalid("bytes", "%d bytes are nothing to top up with; give at least 1 byte, for example 100GiB", int64(more))
		}
		month := q.Month(s.now())
		if q.TopupMonth != month {
			q.Topup, q.TopupMonth = 0, month
		}
		if more > math.MaxInt64-q.Limit-q.Topup {
			return vps.Invalid("bytes", "%s more are out of range; limit and top-up together stay below 2^63 bytes", more)
		}
		q.Topup += more
		return nil
	})
}

// LiftQuota stops the enforcement of a quota until its next reset, or with
// lifted false takes that back.
func (s *State) LiftQuota(ctx context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (Edited, error) {
	return s.editQuota(ctx, scope, name, dryRun, func(q *vps.Quota) error {
		q.LiftedMonth = ""
		if lifted {
			q.LiftedMonth = q.Month(s.now())
		}
		return nil
	})
}

// RemoveQuota removes a quota. Nothing of it is enforced from then on.
func (s *State) RemoveQuota(ctx context.Context, scope vps.QuotaScope, name string, dryRun bool) (Edited, error) {
	var guest string
	before, after, err := s.edit(ctx, dryRun, func(c *contents) (err error) {
		if guest, err = counted(c, scope, name); err != nil {
			return err
		}
		if c.host.Quota(scope, name) == nil {
			return vps.NoQuota(scope, name)
		}
		dropQuota(c, scope, name)
		return nil
	})
	return Edited{before, after, guest}, err
}

// editQuota changes a quota that exists.
func (s *State) editQuota(ctx context.Context, scope vps.QuotaScope, name string, dryRun bool, change func(*vps.Quota) error) (Edited, error) {
	return s.SetQuota(ctx, scope, name, func(q vps.Quota) (vps.Quota, error) {
		if q.Limit == 0 { // it is new
			return q, vps.NoQuota(scope, name)
		}
		err := change(&q)
		return q, err
	}, dryRun)
}

// setQuota puts what shape makes of a quota into the host. It returns the ID
// of the guest whose traffic it counts, "" for others.
func setQuota(c *contents, scope vps.QuotaScope, name string, now time.Time, shape func(vps.Quota) (vps.Quota, error)) (guest string, err error) {
	was, old := vps.NewQuota(scope, name, c.host.Settings.Timezone), c.host.Quota(scope, name)
	if old != nil {
		was = *old
	}
	if guest, err = counted(c, scope, name); err != nil {
		return "", err
	}
	was.Steps = slices.Clone(was.Steps)
	q, err := shape(was)
	if err != nil {
		return "", err
	}
	q.Scope, q.Name = scope, name
	if err := q.Validate(); err != nil {
		return "", err
	}
	if q, err = normalizeQuota(was, q, now); err != nil {
		return "", err
	}
	if old != nil {
		*old = q
	} else {
		c.host.Quotas = append(c.host.Quotas, q)
	}
	return guest, nil
}

// normalizeQuota makes quotas that mean the same also equal, and settles which
// months a top-up and a lift are for.
func normalizeQuota(was, q vps.Quota, now time.Time) (vps.Quota, error) {
	if q.Topup == 0 {
		q.TopupMonth = ""
	}
	topup, topupErr := heldMonth(&was, &q, "topup_month", was.TopupMonth, q.TopupMonth, now)
	lifted, liftedErr := heldMonth(&was, &q, "lifted_month", was.LiftedMonth, q.LiftedMonth, now)
	if q.TopupMonth, q.LiftedMonth = topup, lifted; topup == "" {
		q.Topup = 0
	}
	if q.Steps == nil {
		q.Steps = []vps.QuotaStep{}
	}
	return q, cmp.Or(topupErr, liftedErr)
}

// heldMonth returns the month of q that something holds for, or "" for none;
// month says so, and before did of the quota as it was. What holds for the
// present month holds on when that begins on another day now. A month that the
// quota does not have, and that is over or was one of before, is dropped: it
// means nothing any more, and no host that the quota is taken to would know it.
// Any other is an error that names field.
func heldMonth(was, q *vps.Quota, field, before, month string, now time.Time) (string, error) {
	if month == "" {
		return "", nil
	}
	if month == before && month == was.Month(now) {
		return q.Month(now), nil
	}
	err := q.ValidMonth(field, month)
	if err != nil && (month == before || over(month, now)) {
		return "", nil
	}
	return month, err
}

// over tells whether a month that began on a day is over, whichever day of the
// month and zone it goes by.
func over(month string, now time.Time) bool {
	const longest = 31
	return month < now.UTC().AddDate(0, 0, -longest-1).Format(time.DateOnly)
}

// counted returns the ID of the guest of this name, and "" for the host and for
// tenants, when there is what a quota is to count.
func counted(c *contents, scope vps.QuotaScope, name string) (guest string, err error) {
	switch {
	case scope == vps.QuotaGuest:
		g, err := find(c, name)
		if err != nil {
			return "", err
		}
		return g.ID, nil
	case scope == vps.QuotaTenant && c.host.Tenant(name) == nil:
		return "", vps.NoTenant(name)
	}
	return "", nil
}

// dropQuota removes a quota if it is there.
func dropQuota(c *contents, scope vps.QuotaScope, name string) {
	c.host.Quotas = slices.DeleteFunc(c.host.Quotas, func(q vps.Quota) bool { return q.Scope == scope && q.Name == name })
}
