package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"sublet/internal/vps"
)

// BenchmarkPage makes pages on a host with 1,000 guests, each of which has a
// quota; the ledger is not in it. internal/daemon measures with one.
func BenchmarkPage(b *testing.B) {
	h := newHost()
	for i := range 1000 - len(h.guests) {
		name := fmt.Sprintf("guest-%d", i)
		h.guests = append(h.guests, Guest{ID: "id-" + name, Name: name, Tenant: "carol", State: vps.StateRunning})
		h.uses = append(h.uses, h.use(vps.NewQuota(vps.QuotaGuest, name, "Asia/Shanghai"), vps.TiB, 0.3))
	}
	rows := map[string][]vps.TrafficRow{}
	s := newServer(b, h)
	s.backend = &kept{h, rows}
	for _, page := range []string{"bobs", "owners"} {
		b.Run(page, func(b *testing.B) {
			for b.Loop() {
				r := httptest.NewRequest(http.MethodGet, "/t/"+page, nil)
				r.Header.Set("Accept", "text/html")
				s.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}
