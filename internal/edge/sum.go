package edge

import (
	"cmp"
	"maps"
	"slices"

	"sublet/internal/vps"
)

// Add adds what another process counted, which began after those before. s may be
// the zero value.
func (s *Stats) Add(o *Stats) {
	if s.Guests == nil {
		s.Guests = make(map[string]Counters, len(o.Guests))
	}
	for id, c := range o.Guests {
		c.Add(s.Guests[id])
		s.Guests[id] = c
	}
	for _, d := range o.Domains {
		at, there := slices.BinarySearchFunc(s.Domains, d, compareCounters)
		if there {
			s.Domains[at].Add(d.Counters)
			continue
		}
		var c Counters
		c.Add(d.Counters)
		d.Counters = c // with a map of its own
		s.Domains = slices.Insert(s.Domains, at, d)
	}
	s.Refused = addRefused(s.Refused, o.Refused)
	s.Accepted += o.Accepted
	s.Open += o.Open
	s.Callers += o.Callers
	if len(o.Certificates) > 0 {
		s.Certificates = o.Certificates // of the process that was added last
	}
	for _, c := range o.Certificates {
		at, there := slices.BinarySearchFunc(s.Certificates, c.Name, func(c vps.Certificate, name string) int { return cmp.Compare(c.Name, name) })
		switch {
		case !there:
			s.Certificates = slices.Insert(s.Certificates, at, c)
		case newer(&c, &s.Certificates[at]):
			s.Certificates[at] = c
		}
	}
}

// Of returns the part of s that is about guests and domains of which keep says that
// they are there, and about reasons that there are. Another process's Stats are not
// to be believed in more than their figures: it may be in strangers' hands.
func (s *Stats) Of(keep func(guestID, name string, listen uint16) bool) Stats {
	e := Stats{
		Guests: make(map[string]Counters), Refused: known(s.Refused),
		Accepted: s.Accepted, Open: s.Open, Callers: s.Callers, Certificates: s.Certificates[:min(len(s.Certificates), vps.MaxDomains)],
	}
	seen := make(map[domainKey]bool)
	for _, d := range s.Domains {
		key := domainKey{d.Guest, d.Name, d.Listen}
		if seen[key] || key != (domainKey{}) && !keep(d.Guest, d.Name, d.Listen) {
			continue
		}
		seen[key] = true
		d.Refused = known(d.Refused)
		e.Domains = append(e.Domains, d)
	}
	slices.SortFunc(e.Domains, compareCounters)
	for id, c := range s.Guests {
		if keep(id, "", 0) {
			c.Refused = known(c.Refused)
			e.Guests[id] = c
		}
	}
	return e
}

// known are the reasons that there are.
func known(counts map[Reason]uint64) map[Reason]uint64 {
	counts = maps.Clone(counts)
	maps.DeleteFunc(counts, func(why Reason, _ uint64) bool { return !isReason(why) })
	return counts
}

// Ended returns what s is worth when its process has ended, for guests and
// domains that keep says are still there.
func (s *Stats) Ended(keep func(guestID, name string, listen uint16) bool) Stats {
	e := s.Of(keep)
	e.Open, e.Callers, e.Certificates = 0, 0, nil
	for i := range e.Domains {
		e.Domains[i].Open = 0
	}
	for id, c := range e.Guests {
		c.Open = 0
		e.Guests[id] = c
	}
	return e
}

func compareCounters(a, b DomainCounters) int {
	return cmp.Or(cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Listen, b.Listen))
}

// Add adds counts of the same thing.
func (c *Counters) Add(o Counters) {
	c.Connections += o.Connections
	c.Open += o.Open
	c.In += o.In
	c.Out += o.Out
	for i, n := range o.Requests {
		c.Requests[i] += n
	}
	c.Refused = addRefused(c.Refused, o.Refused)
}

// addRefused returns the sum in a map of its own; nil for nothing.
func addRefused(a, b map[Reason]uint64) map[Reason]uint64 {
	if len(a)+len(b) == 0 {
		return nil
	}
	sum := make(map[Reason]uint64, max(len(a), len(b)))
	for _, m := range []map[Reason]uint64{a, b} {
		for why, n := range m {
			sum[why] += n
		}
	}
	return sum
}
