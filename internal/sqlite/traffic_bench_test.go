package sqlite

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"sublet/internal/vps"
)

// busy is a host whose guests all have traffic of all classes and both
// families between any two samples.
func busy(guests int, at time.Time) TrafficSample {
	s := TrafficSample{Counters: vps.TrafficCounters{At: at, Epoch: "e"}, Boot: "b", Uptime: 24 * time.Hour}
	for i := range guests {
		name := fmt.Sprintf("guest-%04d", i)
		link := vps.LinkName(name)
		s.Guests = append(s.Guests, TrafficGuest{ID: fmt.Sprintf("%026d", i), Name: name, Tenant: "t", Link: link})
		for slot := range len(tallyFamilies) * len(vps.TrafficClasses()) {
			if k := keyOf(slot); k.Family != 0 {
				s.Counters.Links = append(s.Counters.Links, vps.LinkTraffic{Link: link, TrafficKey: k})
			}
		}
	}
	return s
}

// later is the next sample: of each counter up to a MiB in 10 seconds more.
func later(s *TrafficSample, by time.Duration) {
	s.Counters.At, s.Uptime = s.Counters.At.Add(by), s.Uptime+by
	for i := range s.Counters.Links {
		n := int64(1000+i%1000) * 1000 * int64(by/time.Second) / 10
		c := &s.Counters.Links[i].TrafficCount
		*c = c.Add(vps.TrafficCount{InBytes: n, InPackets: n / 1400, OutBytes: n / 3, OutPackets: n / 4000})
	}
}

// cpu is the processor's time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func openBench(tb testing.TB) *DB {
	tb.Helper()
	db, err := Open(tb.Context(), tb.TempDir()+"/state.db", nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}

func mustAdd(b *testing.B, db *DB, s *TrafficSample) {
	b.Helper()
	if _, err := db.AddTraffic(b.Context(), *s); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSample is one sample of 1,000 guests that all have traffic of all
// kinds; 1 of 30 closes a step. It tells the processor's time of all of them,
// and of the worst.
func BenchmarkSample(b *testing.B) {
	for _, quotas := range []int{0, 1000} {
		b.Run(fmt.Sprintf("quotas=%d", quotas), func(b *testing.B) {
			db := openBench(b)
			s := busy(1000, time.Date(2026, 10, 30, 12, 57, 0, 0, time.UTC))
			for i := range quotas {
				s.Quotas = append(s.Quotas, vps.NewQuota(vps.QuotaGuest, s.Guests[i].Name, "Etc/UTC"))
			}
			mustAdd(b, db, &s)
			var sum, worst time.Duration
			for b.Loop() {
				later(&s, 10*time.Second)
				before := cpu(b)
				mustAdd(b, db, &s)
				took := cpu(b) - before
				sum, worst = sum+took, max(worst, took)
			}
			b.ReportMetric(float64(sum.Microseconds())/1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(worst.Microseconds())/1000, "cpu-ms-worst")
		})
	}
}

// BenchmarkMonth is a month of history of 20 guests that have traffic of all
// kinds all the time: it tells what it takes on the disk for each.
func BenchmarkMonth(b *testing.B) {
	for b.Loop() {
		db := openBench(b)
		if _, err := db.write.ExecContext(b.Context(), "PRAGMA synchronous = OFF"); err != nil {
			b.Fatal(err)
		}
		info, err := os.Stat(db.path)
		if err != nil {
			b.Fatal(err)
		}
		empty := info.Size()
		const guests, fives = 20, 31 * 24 * 12
		s := busy(guests, time.Date(2026, 10, 1, 0, 0, 1, 0, time.UTC))
		for range fives {
			mustAdd(b, db, &s)
			later(&s, 5*time.Minute)
		}
		if _, err := db.write.ExecContext(b.Context(), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			b.Fatal(err)
		}
		if info, err = os.Stat(db.path); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size()-empty)/guests/1024, "KiB/guest")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkMonths reads the months of 1,000 guests that have a year of them.
func BenchmarkMonths(b *testing.B) {
	db := openBench(b)
	s := busy(1000, time.Date(2025, 11, 15, 0, 0, 0, 0, time.UTC))
	for range 13 {
		mustAdd(b, db, &s)
		later(&s, 30*24*time.Hour)
	}
	for _, bench := range []struct {
		name string
		q    vps.TrafficQuery
	}{
		{"all", vps.TrafficQuery{Step: vps.StepMonth}},
		{"all-of-2-months", vps.TrafficQuery{Step: vps.StepMonth, Since: s.Counters.At.Add(-60 * 24 * time.Hour)}},
		{"one-guest", vps.TrafficQuery{Step: vps.StepMonth, GuestIDs: []string{s.Guests[7].ID}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			before := cpu(b)
			for b.Loop() {
				rows, err := db.Traffic(b.Context(), bench.q)
				if err != nil || len(rows) == 0 {
					b.Fatal(len(rows), err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}
