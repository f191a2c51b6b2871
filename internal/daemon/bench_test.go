package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/api"
	"sublet/internal/meter"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
	"sublet/internal/web"
)

// crowded is a host with 1,000 guests that have traffic of all classes all the
// time, and a ledger of 13 months. Host, tenants and, if they are to, guests
// have quotas.
func crowded(b *testing.B, quotas bool) (backend, vps.Host) {
	b.Helper()
	const guests, few = 1000, 4 // so few that their page plots five minutes
	back, _ := pagesWorld(b)
	var file strings.Builder
	file.WriteString("version: 1\nsettings: {subnet: 10.213.0.0/16, ports: 10000-60000}\ntenants: [{name: bob}, {name: many}]\nguests:\n")
	for i := range guests {
		tenant := "many"
		if i < few {
			tenant = "bob"
		}
		fmt.Fprintf(&file, "- {name: g%d, tenant: %s, ports: 0}\n", i, tenant)
	}
	if quotas {
		file.WriteString("quotas:\n- {scope: host, limit: 2TiB}\n- {scope: tenant, name: many, limit: 1TiB}\n")
		for i := range guests {
			fmt.Fprintf(&file, "- {scope: guest, name: g%d, limit: 500GiB}\n", i)
		}
	}
	if _, err := back.state.Apply(b.Context(), strings.NewReader(file.String()), false, false); err != nil {
		b.Fatal(err)
	}
	host, err := back.state.Host(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	back.quotas.loop = loadedLoop{host: host}
	return back, host
}

// ledgerClasses are those that guests' counters have.
var ledgerClasses = []vps.TrafficClass{vps.TrafficInternet, vps.TrafficHost, vps.TrafficBetween, vps.TrafficDropped} //nolint:gochecknoglobals // a constant

// fillLedger samples each guest once a day for 13 months, every six hours in
// the last 40 days, and every five minutes in the last.
func fillLedger(b *testing.B, db *sqlite.DB, host *vps.Host) {
	b.Helper()
	sample := sqlite.TrafficSample{Boot: "boot", Quotas: host.Quotas, Counters: vps.TrafficCounters{Epoch: "1"}, Tenants: map[string]time.Time{}}
	for i := range host.Guests {
		g := &host.Guests[i]
		sample.Guests = append(sample.Guests, sqlite.TrafficGuest{ID: g.ID, Name: g.Spec.Name, Tenant: g.Spec.Tenant, Link: g.Link()})
	}
	for i := range host.Tenants {
		sample.Tenants[host.Tenants[i].Name] = time.Time{}
	}
	now := time.Now()
	start := now.AddDate(0, -13, 0).Truncate(5 * time.Minute)
	for at := start; !at.After(now); {
		past := int64(at.Sub(start) / time.Second)
		sample.Uptime, sample.Counters.At = at.Sub(start)+time.Hour, at
		sample.Counters.Links = sample.Counters.Links[:0]
		for _, g := range sample.Guests {
			for _, class := range ledgerClasses {
				for _, family := range []int{4, 6} {
					sample.Counters.Links = append(sample.Counters.Links, vps.LinkTraffic{
						Link: g.Link, TrafficKey: vps.TrafficKey{Class: class, Family: family},
						TrafficCount: vps.TrafficCount{InBytes: past * 100, InPackets: past, OutBytes: past * 300, OutPackets: past},
					})
				}
			}
		}
		sample.Uplinks = []vps.LinkTraffic{{Link: "eth0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: past * 1e5, OutBytes: past * 3e5}}}
		if _, err := db.AddTraffic(b.Context(), sample); err != nil {
			b.Fatal(err)
		}
		switch age := now.Sub(at); {
		case age > 40*24*time.Hour:
			at = at.Add(24 * time.Hour)
		case age > 25*time.Hour:
			at = at.Add(6 * time.Hour)
		default:
			at = at.Add(5 * time.Minute)
		}
	}
}

// BenchmarkPages makes pages of a crowded host as a browser gets them: after
// each sample, and again before the next.
func BenchmarkPages(b *testing.B) {
	back, host := crowded(b, true)
	fillLedger(b, back.db, &host)
	accounts, err := back.db.QuotaAccounts(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	back.quotas.states = meter.EvaluateQuotas(host.Quotas, accounts, nil, time.Now())
	history := &unchanged{db: back.db}
	served := web.New(pages{
		backend: back, DB: back.db, history: history, host: back.quotas.host, uses: usesOf(back), status: func() map[string]vps.GuestStatus { return nil },
	}, web.Options{})
	for name, c := range map[string]api.CreatePageLink{"4 guests": {Tenant: "bob"}, "996 guests": {Tenant: "many"}, "owner": {All: true}} {
		link, err := back.CreatePageLink(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		for _, look := range []string{"first look", "again"} {
			b.Run(name+"/"+look, func(b *testing.B) {
				before := processorTime(b)
				for b.Loop() {
					if look == "first look" {
						history.answers = nil
					}
					if code, body := open(b, served, link.Address, "text/html"); code != http.StatusOK {
						b.Fatal(code, body)
					}
				}
				b.ReportMetric(milliseconds(processorTime(b)-before)/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// BenchmarkMonths answers `sublet traffic --months`, summed, and by guest.
func BenchmarkMonths(b *testing.B) {
	back, host := crowded(b, false)
	fillLedger(b, back.db, &host)
	countAll(b, back, &host, ledgerClasses[:3], time.Now())
	for _, sum := range []bool{true, false} {
		b.Run(fmt.Sprintf("sum=%t", sum), func(b *testing.B) {
			for b.Loop() {
				h, err := back.Traffic(b.Context(), api.TrafficQuery{Step: vps.StepMonth, Sum: sum})
				if err == nil {
					_, err = json.Marshal(h)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSample is one sample of a crowded host from the kernel's counters to
// the end: read, kept, quotas evaluated and held; with traffic to the internet
// alone, or of all classes. The clock goes on by ten
// seconds each time, so the worst is where five minutes and an hour end.
func BenchmarkSample(b *testing.B) {
	for _, c := range []struct {
		what    string
		classes []vps.TrafficClass
		quotas  bool
	}{
		{"internet", ledgerClasses[:1], false},
		{"all classes", ledgerClasses[:3], false},
		{"all classes, quotas", ledgerClasses[:3], true},
	} {
		b.Run(c.what, func(b *testing.B) {
			back, host := crowded(b, c.quotas)
			sample := countAll(b, back, &host, c.classes, time.Date(2026, 10, 30, 12, 57, 0, 0, time.UTC))
			var took []time.Duration
			for b.Loop() {
				before := processorTime(b)
				sample()
				took = append(took, processorTime(b)-before)
			}
			slices.Sort(took)
			b.ReportMetric(milliseconds(took[len(took)/2]), "cpu-ms-median")
			b.ReportMetric(milliseconds(took[len(took)-1]), "cpu-ms-worst")
		})
	}
}

// countAll gives a host the kernel's counters, with some traffic of every guest
// in these classes, over IPv4 and IPv6, in both directions, and returns what
// takes a sample of them. What was dropped is the wall's to count.
func countAll(b *testing.B, back backend, host *vps.Host, classes []vps.TrafficClass, began time.Time) (sample func()) {
	b.Helper()
	ns := nstest.New(b)
	kernel := &goingOn{Firewall: nft.New(nil, nft.Options{}), began: began}
	log := slog.New(slog.DiscardHandler)
	q := back.quotas
	q.db, q.kernel, q.log, q.now = back.db, kernel, log, kernel.now
	q.uplinks = func(context.Context, string) ([]string, error) { return []string{uplink}, nil }
	back.traffic = &sampler{kernel: kernel, uplinks: kernel, db: back.db, boot: "boot", log: log}
	sample = func() {
		kernel.turns++
		if err := q.count(b.Context(), back.traffic.sample); err != nil {
			b.Fatal(err)
		}
	}
	sample() // makes the tables
	for _, class := range classes {
		for _, way := range []string{"in", "out"} {
			var elements []string
			for i := range host.Guests {
				for _, family := range []string{"ipv4", "ipv6"} {
					elements = append(elements, fmt.Sprintf("%q . %s counter packets 5 bytes 700", host.Guests[i].Link(), family))
				}
			}
			ns.ExecInput(fmt.Sprintf("add element inet sublet-traffic %s-%s { %s }\n", class, way, strings.Join(elements, ", ")), "nft", "-f", "-")
		}
	}
	const settled = 10
	for range settled {
		sample()
	}
	return sample
}

// goingOn is the kernel's tables with counters that have grown at each reading,
// and a clock of their own.
type goingOn struct {
	*nft.Firewall
	began time.Time
	turns int64
}

func (k *goingOn) now() time.Time { return k.began.Add(time.Duration(k.turns) * 10 * time.Second) }

func (k *goingOn) Traffic(ctx context.Context) (vps.TrafficCounters, error) {
	c, err := k.Firewall.Traffic(ctx)
	c.At = k.now()
	for i := range c.Links {
		l := &c.Links[i]
		l.InBytes, l.InPackets, l.OutBytes, l.OutPackets = l.InBytes+1000*k.turns, l.InPackets+k.turns, l.OutBytes+3000*k.turns, l.OutPackets+k.turns
	}
	return c, err
}

func (*goingOn) Uplinks(context.Context, string) ([]string, error) { return []string{uplink}, nil }

func (k *goingOn) Counters(context.Context, []string) ([]vps.LinkTraffic, error) {
	return []vps.LinkTraffic{{Link: uplink, TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: k.turns * 1e6, OutBytes: k.turns * 1e6}}}, nil
}

// processorTime is what the process has used of processors, in the kernel too.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
