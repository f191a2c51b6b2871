package edge

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestStatsOfStrangers: of what a process says that is in strangers' hands nothing
// is kept but figures of what there is.
func TestStatsOfStrangers(t *testing.T) {
	t.Parallel()
	known := Counters{In: 7, Open: 1, Refused: map[Reason]uint64{ReasonName: 1}}
	lies := known
	lies.Refused = map[Reason]uint64{ReasonName: 1, "x\n": 2}
	s := Stats{
		Guests: map[string]Counters{"alice": lies, "nobody": lies},
		Domains: []DomainCounters{
			{"nobody", "n.example", 0, lies}, {"alice", "a.example", 0, lies}, {"alice", "a.example", 0, lies}, {"alice", "a.example", 5, lies}, {"", "", 0, lies}, {"", "", 0, lies},
		},
		Refused: map[Reason]uint64{"y": 1}, Accepted: 3, Open: 2, Callers: 1, Certificates: make([]vps.Certificate, vps.MaxDomains+1),
	}
	keep := func(id, name string, listen uint16) bool {
		return id == "alice" && (name == "" || name == "a.example") && listen == 0
	}
	want := Stats{
		Guests: map[string]Counters{"alice": known}, Domains: []DomainCounters{{"", "", 0, known}, {"alice", "a.example", 0, known}},
		Refused: map[Reason]uint64{}, Accepted: 3, Open: 2, Callers: 1, Certificates: s.Certificates[:vps.MaxDomains],
	}
	if d := cmp.Diff(want, s.Of(keep)); d != "" {
		t.Error(d)
	}
	known.Open = 0
	want.Guests["alice"], want.Domains[0].Counters, want.Domains[1].Counters = known, known, known
	want.Open, want.Callers, want.Certificates = 0, 0, nil
	if d := cmp.Diff(want, s.Ended(keep)); d != "" {
		t.Error(d)
	}
}
