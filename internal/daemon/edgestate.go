package daemon

import (
	"context"
	"maps"
	"slices"

	"sublet/internal/api"
	"sublet/internal/doctor"
	"sublet/internal/edge"
	"sublet/internal/meter"
	"sublet/internal/vps"
)

// edgeFindings say how the edge is, which settings may have disabled.
func (p *parts) edgeFindings(disabled bool) []api.Finding {
	s := p.edge.State()
	finding := func(level doctor.Level, message, remedy string) api.Finding {
		return api.Finding{Check: "edge", Level: string(level), Message: message, Remedy: remedy}
	}
	var found []api.Finding
	for _, port := range slices.SortedFunc(maps.Keys(s.Closed), func(a, b edge.Port) int { return int(a.Number) - int(b.Number) }) {
		found = append(found, finding(doctor.Error, s.Closed[port], "find out what it is needed for, or `sublet domain remove` what needs the port"))
	}
	switch {
	case s.Fault != "":
		found = append(found, finding(doctor.Error, s.Fault, "`sublet events` says since when; it is tried again and again"))
	case s.Wanted && s.PID == 0:
		found = append(found, finding(doctor.Warning, s.Summary(), "it is being started; run the doctor again"))
	case disabled && !s.Wanted && len(found) == 0:
		found = append(found, finding(doctor.OK, "the edge is disabled, so that calls of domains are another router's", ""))
	case len(found) == 0:
		found = append(found, finding(doctor.OK, s.Summary(), ""))
	}
	return found
}

// edgeReading is what metrics tell of the edge.
func (p *parts) edgeReading(ctx context.Context, host *vps.Host) meter.EdgeReading {
	s := p.edge.State()
	r := meter.EdgeReading{
		Up: s.PID > 0, Draining: s.Draining, Restarts: s.Restarts, Handovers: s.Handovers, Configured: s.Configured, Refused: map[string]uint64{},
	}
	stats := p.edge.Stats(ctx)
	r.Accepted, r.Open = stats.Accepted, stats.Open
	for why, n := range stats.Refused {
		r.Refused[string(why)] = n
	}
	names := map[string]string{}
	for i := range host.Guests {
		names[host.Guests[i].ID] = host.Guests[i].Spec.Name
	}
	for i := range stats.Domains {
		d := &stats.Domains[i]
		name := names[d.Guest]
		if name == "" && d.Guest != "" {
			continue // it has just been deleted
		}
		reading := meter.DomainReading{
			Guest: name, Domain: (&vps.Domain{Name: d.Name, Listen: d.Listen}).String(), Connections: d.Connections, Open: d.Open, In: d.In, Out: d.Out,
			Requests: d.Requests, Refused: map[string]uint64{},
		}
		for why, n := range d.Refused {
			reading.Refused[string(why)] = n
		}
		r.Domains = append(r.Domains, reading)
	}
	return r
}
