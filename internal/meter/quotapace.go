package meter

import (
	"time"

	"sublet/internal/vps"
)

// QuotaPaces tells how fast quotas were used of late. It is made at once for all
// of a host, and safe for concurrent use.
type QuotaPaces struct {
	sums map[whose]*paceSum
	now  time.Time
}

// paceSum is what somebody's quota counts, and since when there is any.
type paceSum struct {
	vps.TrafficCount
	since time.Time
}

// NewQuotaPaces returns the paces of a host's quotas: rows are sums of days from
// where it is to look back to, those of a guest apart by tenant.
func NewQuotaPaces(h *vps.Host, rows []vps.TrafficRow, now time.Time) *QuotaPaces {
	p := &QuotaPaces{sums: map[whose]*paceSum{}, now: now}
	guests := make(map[string]*vps.Guest, len(h.Guests))
	for i := range h.Guests {
		guests[h.Guests[i].ID] = &h.Guests[i]
	}
	for i := range rows {
		r := &rows[i]
		if r.Class == vps.TrafficUplink {
			p.of(whose{scope: vps.QuotaHost}).add(r, r.Start)
		}
		if !r.Class.Billed() {
			continue
		}
		since := r.Start
		if g := guests[r.GuestID]; g != nil {
			if since.Before(g.Created) {
				since = g.Created
			}
			p.of(whose{vps.QuotaGuest, g.Spec.Name}).add(r, since)
		}
		// Guests that are gone, or are another's by now, were his all the same.
		if hadBy(h.Tenant(r.Tenant), r) {
			p.of(whose{vps.QuotaTenant, r.Tenant}).add(r, since)
		}
	}
	return p
}

// hadBy tells whether a row is of a tenant, and not of one before him who had his
// name. Where it is not known when the row's was made, it is his when it is
// younger than he is.
func hadBy(t *vps.Tenant, r *vps.TrafficRow) bool {
	return t != nil && (r.TenantMade.Equal(t.Created) || r.TenantMade.IsZero() && !r.Start.Before(t.Created))
}

func (p *QuotaPaces) of(w whose) *paceSum {
	s := p.sums[w]
	if s == nil {
		s = &paceSum{since: p.now}
		p.sums[w] = s
	}
	return s
}

func (s *paceSum) add(r *vps.TrafficRow, since time.Time) {
	s.TrafficCount, s.since = s.Add(r.TrafficCount), earlier(s.since, since)
}

// Of returns the bytes per second that a quota counted in each direction. Both
// are 0 when there is less than an hour to tell by. A guest counts from its making
// on.
func (p *QuotaPaces) Of(q *vps.Quota) (in, out float64) {
	s := p.sums[whoseOf(q)]
	if s == nil {
		return 0, 0
	}
	span := p.now.Sub(s.since)
	if span < time.Hour {
		return 0, 0
	}
	return float64(s.InBytes) / span.Seconds(), float64(s.OutBytes) / span.Seconds()
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
