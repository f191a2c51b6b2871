package meter

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// EdgeReading is what the edge counted and how it is.
type EdgeReading struct {
	// Up tells that a process serves, Draining counts those before it that still
	// have connections.
	Up       bool
	Draining int
	// Restarts and Handovers are since the daemon started.
	Restarts, Handovers uint64
	// Configured is when what the edge does now was decided; zero for never.
	Configured time.Time
	// Accepted are callers' connections, Open those that there are, Refused those
	// that were nobody's in particular, by reason.
	Accepted uint64
	Open     int
	Refused  map[string]uint64
	// Domains are those with counters of their own, and one without a name for all
	// others together.
	Domains []DomainReading
}

// DomainReading is what was counted for one domain.
type DomainReading struct {
	// Guest is its name. Domain is "*.example.org", or with a port
	// "imap.example.org:993"; both are empty for all others together.
	Guest, Domain string
	Connections   uint64
	Open          int64
	// In and Out are bytes to the guest and from it.
	In, Out uint64
	// Requests are those of HTTP, by the class of the answer, 1xx first.
	Requests [5]uint64
	Refused  map[string]uint64
}

// ofDomains makes a family with what value puts for each domain.
func ofDomains(name, help string, kind prometheus.ValueType, labels []string, value func(d *DomainReading, put put)) family {
	return family{"sublet_domain_" + name, help, kind, append([]string{"guest", "domain"}, labels...), func(r *Reading, put put) {
		for i := range r.Edge.Domains {
			d := &r.Edge.Domains[i]
			value(d, func(v float64, labels ...string) { put(v, append([]string{d.Guest, d.Domain}, labels...)...) })
		}
	}}
}

func ofEdge(name, help string, kind prometheus.ValueType, value func(*EdgeReading) float64) family {
	return family{"sublet_edge_" + name, help, kind, nil, func(r *Reading, put put) { put(value(&r.Edge)) }}
}

// byReason puts each, in the same order each time.
func byReason(counts map[string]uint64, put put) {
	for _, why := range slices.Sorted(maps.Keys(counts)) {
		put(float64(counts[why]), why)
	}
}

func edgeFamilies() []family {
	return []family{
		ofDomains("connections_total", "Connections that the edge made to a domain's guest. Without names it is for all domains that have no series of their own.", counter, nil, func(d *DomainReading, put put) { put(float64(d.Connections)) }),
		ofDomains("open_connections", "Connections to a domain's guest that there are now.", gauge, nil, func(d *DomainReading, put put) { put(float64(d.Open)) }),
		ofDomains("bytes_total", "Bytes that the edge passed on to a domain's guest (in), and that came from it (out).", counter, []string{"direction"}, func(d *DomainReading, put put) {
			put(float64(d.In), "in")
			put(float64(d.Out), "out")
		}),
		ofDomains("requests_total", "Requests of HTTP for a domain, by the class of the answer.", counter, []string{"class"}, func(d *DomainReading, put put) {
			for i, n := range d.Requests {
				put(float64(n), fmt.Sprintf("%dxx", i+1))
			}
		}),
		ofDomains("refused_total", "Callers of a domain that did not come to its guest, by reason.", counter, []string{"reason"}, func(d *DomainReading, put put) { byReason(d.Refused, put) }),
		ofEdge("up", "1 when the edge serves. It is 0, too, when no guest has a domain.", gauge, func(e *EdgeReading) float64 {
			if e.Up {
				return 1
			}
			return 0
		}),
		ofEdge("draining", "Processes of the edge that were replaced and still have connections.", gauge, func(e *EdgeReading) float64 { return float64(e.Draining) }),
		ofEdge("open_connections", "Connections of callers that the edge has.", gauge, func(e *EdgeReading) float64 { return float64(e.Open) }),
		ofEdge("config_timestamp_seconds", "When what the edge does now was decided, since 1970; 0 for never.", gauge, func(e *EdgeReading) float64 { return seconds(e.Configured) }),
		ofEdge("accepted_total", "Connections of callers that the edge took.", counter, func(e *EdgeReading) float64 { return float64(e.Accepted) }),
		ofEdge("restarts_total", "Processes of the edge that ended unexpectedly, since the daemon started.", counter, func(e *EdgeReading) float64 { return float64(e.Restarts) }),
		ofEdge("handovers_total", "Processes of the edge that were replaced by another one, since the daemon started.", counter, func(e *EdgeReading) float64 { return float64(e.Handovers) }),
		{"sublet_edge_refused_total", "Callers that the edge refused who were nobody's in particular, by reason.", counter, []string{"reason"}, func(r *Reading, put put) { byReason(r.Edge.Refused, put) }},
	}
}
