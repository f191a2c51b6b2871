package sqlite

import (
	"testing"
	"time"

	"sublet/internal/vps"
)

func internet(in, out int64) vps.TrafficCount {
	return vps.TrafficCount{InBytes: in, InPackets: in / 100, OutBytes: out, OutPackets: out / 100}
}

func linkCounter(link string, class vps.TrafficClass, family int, c vps.TrafficCount) vps.LinkTraffic {
	return vps.LinkTraffic{Link: link, TrafficKey: vps.TrafficKey{Class: class, Family: family}, TrafficCount: c}
}

// TestTraffic follows one guest's counter over the begin of an hour.
func TestTraffic(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	start := time.Date(2026, 10, 31, 12, 59, 40, 0, time.UTC)
	alice := TrafficGuest{ID: "1", Name: "alice", Tenant: "bob", Link: "sl-alice"}
	quota := vps.NewQuota(vps.QuotaGuest, "alice", "Etc/UTC")
	for i := range 4 {
		after := time.Duration(i) * 10 * time.Second
		accounts, err := db.AddTraffic(t.Context(), TrafficSample{
			Counters: vps.TrafficCounters{At: start.Add(after), Epoch: "e", Links: []vps.LinkTraffic{
				linkCounter("sl-alice", vps.TrafficInternet, 4, internet(int64(i+1)*1000, int64(i+1)*100)),
			}},
			Guests: []TrafficGuest{alice}, Boot: "b", Uptime: time.Hour + after, Quotas: []vps.Quota{quota},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(accounts) != 1 || accounts[0].In != int64(i+1)*1000 || accounts[0].Out != int64(i+1)*100 {
			t.Errorf("after %s the account is %+v", after, accounts)
		}
	}
	for _, step := range vps.TrafficSteps() {
		rows, err := db.Traffic(t.Context(), vps.TrafficQuery{Step: step, GuestIDs: []string{"1"}})
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, r := range rows {
			sum += r.InBytes
			if r.Guest != "alice" {
				t.Errorf("%s: a row of %q", step, r.Guest)
			}
		}
		want := map[vps.TrafficStep]int{vps.StepFiveMinutes: 2, vps.StepHour: 2, vps.StepDay: 1, vps.StepMonth: 1}[step]
		if len(rows) != want || sum != 4000 {
			t.Errorf("%s: %d rows with %d bytes, want %d with 4000: %+v", step, len(rows), sum, want, rows)
		}
	}
}
