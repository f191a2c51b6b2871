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

// paceSum is what somebody's quota counts, since when there is any, and since
// when the first of its guests is there.
type paceSum struct {
	vps.TrafficCount
	since, made time.Time
}

// NewQuotaPaces returns the paces of a host's quotas: rows are of days, or sums
// of several, from where it is to look back to.
func NewQuotaPaces(h *vps.Host, rows []vps.TrafficRow, now time.Time) *QuotaPaces {
	p := &QuotaPaces{sums: map[whose]*paceSum{}, now: now}
	guests := make(map[string]*vps.Guest, len(h.Guests))
	for i := range h.Guests {
		g := &h.Guests[i]
		guests[g.ID] = g
		for _, w := range countedBy(g) {
			s := p.of(w)
			s.made = earlier(s.made, g.Created)
		}
	}
	for i := range rows {
		r := &rows[i]
		switch g := guests[r.GuestID]; {
		case r.Class == vps.TrafficUplink:
			p.of(whose{scope: vps.QuotaHost}).add(r)
		case g != nil && r.Class.Billed():
			for _, w := range countedBy(g) {
				if w.scope != vps.QuotaHost { // it counts the public link
					p.of(w).add(r)
				}
			}
		}
	}
	return p
}

func (p *QuotaPaces) of(w whose) *paceSum {
	s := p.sums[w]
	if s == nil {
		s = &paceSum{since: p.now, made: p.now}
		p.sums[w] = s
	}
	return s
}

func (s *paceSum) add(r *vps.TrafficRow) {
	s.TrafficCount, s.since = s.Add(r.TrafficCount), earlier(s.since, r.Start)
}

// Of returns the bytes per second that a quota counted in each direction. Both
// are 0 when there is less than an hour to tell by. A guest counts from its making
// on.
func (p *QuotaPaces) Of(q *vps.Quota) (in, out float64) {
	s := p.sums[whoseOf(q)]
	if s == nil {
		return 0, 0
	}
	since := s.since
	if q.Scope != vps.QuotaHost && since.Before(s.made) {
		since = s.made
	}
	span := p.now.Sub(since)
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
