package e2e

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/test/lab"
)

// TestAudit attacks a host from its own throw-away guests, as an owner does.
func TestAudit(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	before := ofOthers(t, h)
	r := h.Try("net", "audit", "-o", "json")
	var report struct {
		OK      bool `json:"ok"`
		Results []struct {
			Kind, Attack, Seen, Counter string
			OK                          bool
		} `json:"results"`
	}
	if r.Stdout == "" {
		t.Fatalf("the audit ends with %d: %s", r.Code, r.Stderr)
	}
	decode(t, r.Stdout, &report)
	kinds := map[string]int{}
	for _, a := range report.Results {
		kinds[a.Kind]++
		if !a.OK {
			t.Errorf("%s %s got through: %s (%s)", a.Kind, a.Attack, a.Seen, a.Counter)
		}
	}
	if r.Code != 0 || !report.OK || kinds["jail"] < 25 || kinds["network"] < 150 {
		t.Errorf("the audit ends with %d after %v attacks\n%s", r.Code, kinds, r.Stderr)
	}
	if left := h.Sublet("list", "-q") + h.NS.Exec("ip", "-br", "link"); strings.Contains(left, "audit") {
		t.Errorf("it leaves:\n%s", left)
	}
	if diff := cmp.Diff(before, ofOthers(t, h)); diff != "" {
		t.Errorf("what is of others changed (-before +now):\n%s", diff)
	}
}
