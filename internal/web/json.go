package web

import (
	"encoding/json"
	"io"
	"time"

	"sublet/internal/vps"
)

// schemaVersion grows when a member of the JSON form changes its meaning; new
// members do not change it. docs/pages.md describes all of them.
const schemaVersion = 1

// document is a page in JSON. Bytes are those of frames, times RFC 3339.
type document struct {
	Schema    int         `json:"schema_version"`
	Generated time.Time   `json:"generated"`
	Timezone  string      `json:"timezone"`
	Scope     string      `json:"scope"`
	Tenant    string      `json:"tenant,omitempty"`
	Host      string      `json:"host,omitempty"`
	Quotas    []quotaJSON `json:"quotas"`
	Month     monthJSON   `json:"month"`
	Counted   string      `json:"series_of"`
	Series    seriesJSON  `json:"series"`
	Guests    []guestJSON `json:"guests"`
}

type quotaJSON struct {
	ID      string          `json:"id"`
	Scope   vps.QuotaScope  `json:"scope"`
	Name    string          `json:"name"`
	Count   vps.QuotaCount  `json:"count"`
	Limit   int64           `json:"limit_bytes"`
	Used    int64           `json:"used_bytes"`
	Left    int64           `json:"left_bytes"`
	In      int64           `json:"in_bytes"`
	Out     int64           `json:"out_bytes"`
	Start   time.Time       `json:"start"`
	Reset   time.Time       `json:"reset"`
	Zone    string          `json:"timezone"`
	Lifted  bool            `json:"lifted"`
	Action  vps.QuotaAction `json:"action,omitempty"`
	Rate    vps.BitRate     `json:"rate,omitempty"`
	Grace   *time.Time      `json:"grace_until,omitempty"`
	Reached *time.Time      `json:"reached_at,omitempty"`
}

type monthJSON struct {
	Start   time.Time   `json:"start"`
	Classes []classJSON `json:"classes"`
}

type classJSON struct {
	Class vps.TrafficClass `json:"class"`
	vps.TrafficCount
}

type guestJSON struct {
	Name     string      `json:"name"`
	Tenant   string      `json:"tenant,omitempty"`
	State    vps.State   `json:"state,omitempty"`
	Gone     bool        `json:"gone,omitempty"`
	InBytes  int64       `json:"in_bytes"`
	OutBytes int64       `json:"out_bytes"`
	Classes  []classJSON `json:"classes"`
	Series   *seriesJSON `json:"series,omitempty"`
	// Access is the query of the guest's access log.
	Access  string       `json:"access_log,omitempty"`
	Domains []domainJSON `json:"domains,omitempty"`
}

type seriesJSON struct {
	Day   stepsJSON `json:"day"`
	Month stepsJSON `json:"month"`
	Year  stepsJSON `json:"year"`
}

type stepsJSON struct {
	Step   vps.TrafficStep `json:"step"`
	Points []pointJSON     `json:"points"`
}

type pointJSON struct {
	Start time.Time `json:"start"`
	In    int64     `json:"in_bytes"`
	Out   int64     `json:"out_bytes"`
}

// failure is an answer without a page.
type failure struct {
	Schema int    `json:"schema_version"`
	Status int    `json:"status"`
	Error  string `json:"error"`
}

func writeJSON(w io.Writer, v *view) error {
	d := document{
		Schema: schemaVersion, Generated: v.Now, Timezone: v.Now.Location().String(), Scope: "tenant", Tenant: v.Tenant, Host: v.Host,
		Quotas: []quotaJSON{}, Month: monthJSON{v.MonthStart, classesJSON(v.Classes)}, Counted: "guests", Series: *seriesOf(v.Plots), Guests: []guestJSON{},
	}
	if v.Tenant == "" {
		d.Scope = "host"
	}
	if v.Uplink {
		d.Counted = "uplink"
	}
	for _, u := range v.Quotas {
		d.Quotas = append(d.Quotas, quotaJSON{
			ID: u.Quota.ID(), Scope: u.Quota.Scope, Name: u.Quota.Name, Count: u.Quota.Count, Limit: u.Limit, Used: u.Used, Left: left(u), In: u.In, Out: u.Out,
			Start: u.Start, Reset: u.End, Zone: u.Quota.Timezone, Lifted: u.Quota.LiftedAt(v.Now), Action: u.Action, Rate: u.Rate, Grace: u.GraceUntil, Reached: u.ReachedAt,
		})
	}
	for i := range v.Guests {
		g := &v.Guests[i]
		row := guestJSON{Name: g.Name, State: g.State, Gone: g.Gone, InBytes: g.Month.In, OutBytes: g.Month.Out, Classes: classesJSON(g.Classes), Series: seriesOf(g.Plots)}
		if v.Tenant == "" {
			row.Tenant = g.Tenant
		}
		for _, d := range g.Domains {
			row.Domains = append(row.Domains, domainJSON(d))
		}
		if v.Logged && len(g.Domains) > 0 {
			row.Access = accessQuery(g.Name)
		}
		d.Guests = append(d.Guests, row)
	}
	return encodeJSON(w, d)
}

func classesJSON(classes []classTotal) []classJSON {
	list := []classJSON{}
	for _, c := range classes {
		list = append(list, classJSON(c))
	}
	return list
}

// seriesOf returns nil where there are no plots.
func seriesOf(plots []plot) *seriesJSON {
	if len(plots) == 0 {
		return nil
	}
	var all seriesJSON
	for i := range plots {
		p := &plots[i]
		steps := stepsJSON{Step: p.step, Points: make([]pointJSON, len(p.series))}
		for at, a := range p.series {
			steps.Points[at] = pointJSON{p.starts[at], a.In, a.Out}
		}
		switch p.Name {
		case lastDay:
			all.Day = steps
		case lastMonth:
			all.Month = steps
		default:
			all.Year = steps
		}
	}
	return &all
}

func encodeJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	return e.Encode(value)
}
