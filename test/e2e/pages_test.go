package e2e

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sublet/internal/vps"
	"sublet/test/lab"
)

// listeners are the TCP ports that somebody listens on.
func listeners(h *lab.Host) []string {
	var all []string
	for line := range strings.Lines(h.NS.Exec("ss", "-Hltn")) {
		all = append(all, strings.Fields(line)[3])
	}
	slices.Sort(all)
	return all
}

// hasPages asks for bob's page from outside, when there are pages. Alice, his
// only guest, has stopped.
func (q *quotaLab) hasPages(t *testing.T, before []string) {
	t.Helper()
	t.Log("pages")
	if now := listeners(q.Host); !slices.Equal(now, before) {
		t.Errorf("without an address for pages ports are open: %v, and before the daemon came: %v", now, before)
	}
	const address = lab.HostAddress + ":8444"
	q.Stop()
	q.Start("--pages", address)
	if now := listeners(q.Host); len(now) != len(before)+1 || !slices.Contains(now, address) {
		t.Errorf("with an address for pages ports are open: %v, and before: %v", now, before)
	}
	link := q.Sublet("tenant", "link", "create", "bob")
	if !strings.HasPrefix(link, "http://"+address+"/t/") {
		t.Fatalf("the link is %s", link)
	}
	if text := q.Outside.Exec("curl", "-fsS", link); !strings.Contains(text, "alice") || strings.Contains(text, "<html") {
		t.Errorf("curl gets\n%s", text)
	}
	if text := q.Outside.Exec("curl", "-fsS", "-H", "Accept: text/html", link); !strings.Contains(text, "<html") {
		t.Errorf("a browser gets\n%s", text)
	}
	var page struct {
		Tenant string `json:"tenant"`
		Month  struct {
			Classes []struct {
				Class vps.TrafficClass `json:"class"`
				vps.TrafficCount
			} `json:"classes"`
		} `json:"month"`
	}
	var shown, ledger map[vps.TrafficClass]vps.TrafficCount
	q.Eventually("the page has what the ledger has", func() bool {
		shown = map[vps.TrafficClass]vps.TrafficCount{}
		if err := json.Unmarshal([]byte(q.Outside.Exec("curl", "-fsS", "-H", "Accept: application/json", link)), &page); err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Month.Classes {
			if c.TrafficCount != (vps.TrafficCount{}) {
				shown[c.Class] = c.TrafficCount
			}
		}
		ledger = q.classes()
		return maps.Equal(shown, ledger)
	})
	if page.Tenant != "bob" || ledger[vps.TrafficInternet].OutBytes < mib {
		t.Errorf("the page of %q has %+v", page.Tenant, shown)
	}
	id := strings.TrimSpace(q.Sublet("tenant", "link", "list", "-o", "name"))
	q.Sublet("tenant", "link", "revoke", id)
	if code := q.Outside.Exec("curl", "-sS", "-o", filepath.Join(q.Dir, "page"), "-w", "%{http_code}", link); code != "404" {
		t.Errorf("the link %s is revoked and answers %s", id, code)
	}
}

// classes is what the ledger has of alice.
func (q *quotaLab) classes() map[vps.TrafficClass]vps.TrafficCount {
	n := &network{Host: q.Host}
	sums := map[vps.TrafficClass]vps.TrafficCount{}
	for key, count := range n.ledger("--months") {
		if count != (vps.TrafficCount{}) {
			sums[key.Class] = sums[key.Class].Add(count)
		}
	}
	return sums
}
