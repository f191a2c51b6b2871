package web

import (
	"cmp"
	"context"
	"slices"
	"time"

	"sublet/internal/vps"
)

// Pages stay small however many guests there are: only so many have plots of
// their own, or are listed unless the caller asks for all, and only pages about
// a few guests have five-minute steps.
const (
	plottedGuests = 16
	listedGuests  = 50
	fineGuests    = 4
	shownQuotas   = 6
)

// view is everything that a page shows, in no form and no language yet.
type view struct {
	// Lang is what the caller reads, Asked its tag when the address said so.
	Lang  *language
	Asked string
	// All lists all guests, however many.
	All bool
	Now time.Time
	// Tenant is empty on the owner's page. Host is empty on a tenant's.
	Tenant, Host string
	// Guest is the one that the page was narrowed down to; empty for all.
	Guest string
	// Quotas are those that stand at the top of the page.
	Quotas []*vps.QuotaUse
	// Plots are the last day, month and year, together: of all guests, or of the
	// host's public link on the owner's page (Uplink).
	Plots  []plot
	Uplink bool
	// Classes is the calendar month up to now, of all guests.
	MonthStart time.Time
	Classes    []classTotal
	Guests     []guestView
	// Logged tells that guests with domains have access logs.
	Logged bool
}

// plot is one period with its series.
type plot struct {
	period
	series
}

// classTotal is what went of one class.
type classTotal struct {
	Class vps.TrafficClass
	vps.TrafficCount
}

// guestView is one guest of a page.
type guestView struct {
	Guest
	// Month is the billed part of Classes, in the calendar month.
	Month   amount
	Classes []classTotal
	// Quota is the guest's own, nil without one.
	Quota *vps.QuotaUse
	// Plots is empty for guests that are shown without.
	Plots []plot
}

// errNoGuest is for one that is not of the page.
var errNoGuest = vps.Errorf(vps.CodeNotFound, "there is no such guest")

// look gathers what a page shows. Narrowed down to a guest that is not of the
// page it is vps.CodeNotFound.
func (s *Server) look(ctx context.Context, about Subject, guest string) (*view, error) {
	now := s.o.Now().In(about.Zone)
	v := &view{Now: now, Tenant: about.Tenant, Host: about.Host, Guest: guest, Logged: about.Logged, MonthStart: vps.StepMonth.Begin(now, about.Zone)}
	for _, g := range about.Guests {
		if guest == "" || g.Name == guest {
			v.Guests = append(v.Guests, guestView{Guest: g})
		}
	}
	if guest != "" && len(v.Guests) == 0 {
		return nil, errNoGuest
	}
	v.Uplink = about.Tenant == "" && guest == ""
	if err := s.addMonth(ctx, &about, v); err != nil {
		return nil, err
	}
	if err := s.addQuotas(ctx, v); err != nil {
		return nil, err
	}
	// The busiest first: they are what people look for.
	slices.SortStableFunc(v.Guests, func(a, b guestView) int { return cmp.Compare(b.Month.Total(), a.Month.Total()) })
	for _, p := range periodsTo(now, about.Zone, v.Uplink || len(v.Guests) <= fineGuests) {
		if err := s.addPlot(ctx, &about, v, p); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func ids(guests []guestView) []string {
	list := make([]string, len(guests))
	for i := range guests {
		list[i] = guests[i].ID
	}
	return list
}

// addMonth adds the calendar month, by guest and class, and the guests that are
// gone but had traffic in it.
func (s *Server) addMonth(ctx context.Context, about *Subject, v *view) error {
	month := newPeriod("", vps.StepMonth, 1, v.Now, v.Now.Location())
	q := month.query()
	known := make(map[string]bool, len(v.Guests))
	for i := range v.Guests {
		known[v.Guests[i].ID] = true
	}
	if v.Guest != "" {
		q.GuestIDs = ids(v.Guests)
	}
	rows, err := s.backend.Traffic(ctx, about.traffic(q))
	if err != nil {
		return err
	}
	counts := make(map[string]map[vps.TrafficClass]vps.TrafficCount, len(v.Guests))
	for i := range rows {
		r := &rows[i]
		if _, ok := month.place(r.Start); !ok || r.Class == vps.TrafficUplink {
			continue // of another month, or the host's own
		}
		if !known[r.GuestID] {
			known[r.GuestID] = true
			v.Guests = append(v.Guests, guestView{Guest: Guest{ID: r.GuestID, Name: r.Guest, Tenant: r.Tenant, Gone: true}})
		}
		of := counts[r.GuestID]
		if of == nil {
			of = map[vps.TrafficClass]vps.TrafficCount{}
			counts[r.GuestID] = of
		}
		of[r.Class] = of[r.Class].Add(r.TrafficCount)
	}
	all := map[vps.TrafficClass]vps.TrafficCount{}
	for i := range v.Guests {
		g := &v.Guests[i]
		of := counts[g.ID]
		g.Classes = classTotals(of)
		for class, n := range of {
			all[class] = all[class].Add(n)
			if class.Billed() {
				g.Month = g.Month.plus(amount{n.InBytes, n.OutBytes})
			}
		}
	}
	v.Classes = classTotals(all)
	return nil
}

func classTotals(counts map[vps.TrafficClass]vps.TrafficCount) []classTotal {
	var list []classTotal
	for _, c := range vps.TrafficClasses() {
		list = append(list, classTotal{c, counts[c]})
	}
	return list
}

// addQuotas adds the quotas of what the page is about, and of no other tenant.
func (s *Server) addQuotas(ctx context.Context, v *view) error {
	uses, err := s.backend.QuotaUses(ctx)
	if err != nil {
		return err
	}
	byName := make(map[string]int, len(v.Guests))
	for i := range v.Guests {
		if !v.Guests[i].Gone { // another one may have its name
			byName[v.Guests[i].Name] = i
		}
	}
	for i := range uses {
		u := &uses[i]
		shown := false
		switch u.Quota.Scope {
		case vps.QuotaHost:
			shown = v.Uplink
		case vps.QuotaTenant:
			shown = v.Guest == "" && (v.Tenant == "" || u.Quota.Name == v.Tenant)
		case vps.QuotaGuest:
			at, known := byName[u.Quota.Name]
			if shown = known; known {
				v.Guests[at].Quota = u
			}
		}
		if shown {
			v.Quotas = append(v.Quotas, u)
		}
	}
	// What the whole page is about comes first. Of the others the fullest are what
	// matters, when there are many; the rest stands beside the guests.
	many := len(v.Quotas) > shownQuotas
	slices.SortStableFunc(v.Quotas, func(a, b *vps.QuotaUse) int {
		rank := cmp.Compare(v.rank(a), v.rank(b))
		if rank == 0 && many {
			return cmp.Compare(percent(b.Used, b.Limit), percent(a.Used, a.Limit))
		}
		return rank
	})
	v.Quotas = v.Quotas[:min(len(v.Quotas), shownQuotas)]
	return nil
}

// rank is 0 for the quota of all that is on the page, and 1 for others.
func (v *view) rank(u *vps.QuotaUse) int {
	if u.Quota.Scope == vps.QuotaHost || v.Tenant != "" && u.Quota.Scope == vps.QuotaTenant {
		return 0
	}
	return 1
}

// addPlot adds one period: of all together, and of the guests that have plots.
func (s *Server) addPlot(ctx context.Context, about *Subject, v *view, p period) error {
	plotted := v.Guests[:min(len(v.Guests), plottedGuests)]
	q := p.query()
	switch {
	case v.Uplink:
		q.GuestIDs = append(ids(plotted), "")
	case v.Guest != "":
		q.GuestIDs = ids(plotted)
	default:
		q.Together, q.Apart = true, ids(plotted)
	}
	rows, err := s.backend.Traffic(ctx, about.traffic(q))
	if err != nil {
		return err
	}
	of := p.byGuest(rows)
	for i := range plotted {
		g := &plotted[i]
		g.Plots = append(g.Plots, plot{p, p.whole(of[g.ID])})
	}
	all := of[""]
	if !v.Uplink {
		all = together(len(p.starts), of)
	}
	v.Plots = append(v.Plots, plot{p, p.whole(all)})
	return nil
}

// left is what may still be used, never less than nothing.
func left(u *vps.QuotaUse) int64 { return max(u.Limit-u.Used, 0) }

// percent tells how much of a limit is used.
func percent(used, limit int64) float64 {
	if limit <= 0 {
		return 0
	}
	return float64(used) / float64(limit) * 100
}
