package daemon

import (
	"encoding/json"
	"maps"
	"net/http"
	"testing"

	"sublet/internal/api"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
	"sublet/internal/web"
)

// shownPage is what a page in JSON says of traffic.
type shownPage struct {
	Guests []struct {
		Name string `json:"name"`
		Gone bool   `json:"gone"`
		In   int64  `json:"in_bytes"`
	} `json:"guests"`
	Series struct {
		Day   shownPlot `json:"day"`
		Month shownPlot `json:"month"`
		Year  shownPlot `json:"year"`
	} `json:"series"`
}

type shownPlot struct {
	Points []struct {
		In int64 `json:"in_bytes"`
	} `json:"points"`
}

// TestPagesOfGuestsThatMove is about security: on the pages of two tenants
// between whom a guest moves, and that is deleted then, each sees what it had
// with him.
func TestPagesOfGuestsThatMove(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.loop = reconcile.New(reconcile.Options{})
	w.config.Pages.Listen = "127.0.0.1:8444"
	server := web.New(pages{
		backend: w.backend, DB: w.db, host: w.quotas.host, history: &unchanged{db: w.db}, uses: usesOf(w.backend), status: func() map[string]vps.GuestStatus { return nil },
	}, web.Options{})
	addresses := map[string]string{}
	for _, tenant := range []string{"from", "to"} {
		if err := w.PutTenant(t.Context(), tenant, api.UpdateTenant{}); err != nil {
			t.Fatal(err)
		}
		link, err := w.CreatePageLink(t.Context(), api.CreatePageLink{Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		addresses[tenant] = link.Address
	}
	move := func(tenant string) {
		if _, err := w.UpdateGuest(t.Context(), "alice", api.UpdateGuest{Tenant: &tenant}, false); err != nil {
			t.Fatal(err)
		}
	}
	want := func(tenant string, guests map[string]int64) {
		t.Helper()
		code, body := open(t, server, addresses[tenant], "application/json")
		var page shownPage
		if err := json.Unmarshal([]byte(body), &page); err != nil || code != http.StatusOK {
			t.Fatal(code, err, body)
		}
		got, all := map[string]int64{}, int64(0)
		for _, g := range page.Guests {
			name := g.Name
			if g.Gone {
				name += " (gone)"
			}
			got[name] = g.In
			all += g.In
		}
		if !maps.Equal(got, guests) {
			t.Errorf("%s sees %v, want %v", tenant, got, guests)
		}
		for name, plot := range map[string]shownPlot{"day": page.Series.Day, "month": page.Series.Month, "year": page.Series.Year} {
			var sum int64
			for _, p := range plot.Points {
				sum += p.In
			}
			if sum != all {
				t.Errorf("%s sees %d in the last %s, want %d", tenant, sum, name, all)
			}
		}
	}
	move("from")
	w.sampleTraffic(t.Context())
	w.count("alice", vps.TrafficInternet, 5000, 1)
	w.sampleTraffic(t.Context())
	want("from", map[string]int64{"alice": 5000})
	w.links[0].InBytes = 6000 // since the last sample: still his
	move("to")
	w.sampleTraffic(t.Context())
	want("from", map[string]int64{"alice (gone)": 6000})
	want("to", map[string]int64{"alice": 0})
	w.links[0].InBytes = 6030
	w.sampleTraffic(t.Context())
	want("from", map[string]int64{"alice (gone)": 6000})
	want("to", map[string]int64{"alice": 30})

	if err := w.state.Forget(t.Context(), w.idOf(t, "alice")); err != nil {
		t.Fatal(err)
	}
	w.links = nil
	w.sampleTraffic(t.Context())
	want("from", map[string]int64{"alice (gone)": 6000})
	want("to", map[string]int64{"alice (gone)": 30})
}
