package meter_test

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"sublet/internal/meter"
	"sublet/internal/vps"
)

var update = flag.Bool("update", false, "rewrite the table of docs/metrics.md")

// reading is one in which every metric has a value.
func reading(guests int) meter.Reading {
	at := time.Date(2026, 11, 30, 6, 0, 0, 500e6, time.UTC)
	r := meter.Reading{
		Uplinks: []vps.LinkTraffic{{Link: "eth0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: 1, InPackets: 2, OutBytes: 3, OutPackets: 4}}},
		Quotas: []vps.QuotaUse{
			{Quota: vps.NewQuota(vps.QuotaHost, "", "Etc/UTC"), Used: 5, Limit: 10, End: at},
			{Quota: vps.NewQuota(vps.QuotaGuest, "g0", "Etc/UTC"), Used: 10, Limit: 10, End: at, Action: vps.ActionThrottle},
		},
		Edge: meter.EdgeReading{
			Up: true, Draining: 1, Restarts: 2, Handovers: 3, Configured: at, Accepted: 50, Open: 4, Refused: map[string]uint64{"name": 5},
			Domains: []meter.DomainReading{
				{Connections: 1},
				{Guest: "g0", Domain: "*.example.org", Connections: 40, Open: 3, In: 100, Out: 200, Requests: [5]uint64{0, 7, 0, 1, 0}, Refused: map[string]uint64{"stopped": 6, "guest-rate": 2}},
			},
		},
		Host: meter.HostReading{Memory: 8 * vps.GiB, Promised: vps.GiB, DiskFree: 30 * vps.GiB},
		Daemon: meter.DaemonReading{
			Passes: 7, LastPass: at, Steps: 1, Samples: 9, SampleErrors: 2, LastSample: at, NoticesWaiting: 3,
			Notices: map[vps.NoticeChannel]meter.NoticeCount{vps.ChannelWebhook: {Sent: 4, Failed: 5, GivenUp: 6}, vps.ChannelMail: {}},
		},
	}
	for i := range guests {
		spec := vps.NewGuestSpec(fmt.Sprintf("g%d", i))
		spec.Disks = []vps.DataDisk{{Name: "data", Size: vps.GiB}}
		g := meter.GuestReading{
			Spec:   spec,
			Status: vps.GuestStatus{State: vps.StateRunning, Started: at, Restarts: 2, MemoryUsed: vps.MiB, CPUTime: vps.Duration(1500 * time.Millisecond)},
			Drops:  []meter.Dropped{{Drop: drop(vps.DropSpoofed, 7)}},
			Disks:  []vps.DiskSample{{Disk: "root", Part: 2, Used: 60, Available: 30, Allocated: 9, Inodes: 7, FreeInodes: 3}, {Disk: "data", Used: 1}},
		}
		for _, class := range vps.TrafficClasses() {
			families := []int{4, 6}
			if class == vps.TrafficDropped {
				families = []int{0} // of both together, as the kernel's tables have it
			}
			for _, family := range families {
				g.Traffic = append(g.Traffic, vps.LinkTraffic{TrafficKey: vps.TrafficKey{Class: class, Family: family}, TrafficCount: vps.TrafficCount{InBytes: 100, InPackets: 1, OutBytes: 200, OutPackets: 2}})
			}
		}
		r.Guests = append(r.Guests, g)
	}
	return r
}

// scrape asks as Prometheus does.
func scrape(t *testing.T, handler http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("answered %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	text := scrape(t, meter.Handler("1.2.3", func() meter.Reading { return reading(1) }))
	for _, line := range []string{
		`sublet_guest_info{driver="uml",guest="g0",image="debian/12",tenant="owner"} 1`,
		`sublet_guest_state{guest="g0",state="running"} 1`,
		`sublet_guest_restarts_total{guest="g0"} 2`,
		`sublet_guest_memory_limit_bytes{guest="g0"} 5.36870912e+08`,
		`sublet_guest_memory_used_bytes{guest="g0"} 1.048576e+06`,
		`sublet_guest_cpu_seconds_total{guest="g0"} 1.5`,
		`sublet_guest_start_time_seconds{guest="g0"} 1.7960184005e+09`,
		`sublet_guest_disk_size_bytes{disk="data",guest="g0"} 1.073741824e+09`,
		`sublet_guest_disk_used_bytes{disk="root",guest="g0",partition="2"} 60`,
		`sublet_guest_disk_free_inodes{disk="root",guest="g0",partition="2"} 3`,
		`sublet_guest_traffic_bytes_total{class="internet",direction="out",family="ipv6",guest="g0"} 200`,
		`sublet_guest_traffic_packets_total{class="between",direction="in",family="ipv4",guest="g0"} 1`,
		`sublet_guest_traffic_packets_total{class="dropped",direction="out",family="",guest="g0"} 2`,
		`sublet_guest_dropped_packets_total{guest="g0",reason="spoofed"} 7`,
		`sublet_domain_connections_total{domain="*.example.org",guest="g0"} 40`,
		`sublet_domain_connections_total{domain="",guest=""} 1`,
		`sublet_domain_open_connections{domain="*.example.org",guest="g0"} 3`,
		`sublet_domain_bytes_total{direction="out",domain="*.example.org",guest="g0"} 200`,
		`sublet_domain_requests_total{class="2xx",domain="*.example.org",guest="g0"} 7`,
		`sublet_domain_requests_total{class="4xx",domain="*.example.org",guest="g0"} 1`,
		`sublet_domain_refused_total{domain="*.example.org",guest="g0",reason="stopped"} 6`,
		`sublet_edge_refused_total{reason="name"} 5`,
		`sublet_edge_up 1`,
		`sublet_edge_draining 1`,
		`sublet_edge_accepted_total 50`,
		`sublet_edge_open_connections 4`,
		`sublet_edge_restarts_total 2`,
		`sublet_edge_handovers_total 3`,
		`sublet_edge_config_timestamp_seconds 1.7960184005e+09`,
		`sublet_guest_dropped_bytes_total{guest="g0",reason="spoofed"} 420`,
		`sublet_host_traffic_bytes_total{direction="out",link="eth0"} 3`,
		`sublet_quota_used_bytes{name="",scope="host"} 5`,
		`sublet_quota_limit_bytes{name="g0",scope="guest"} 10`,
		`sublet_quota_action{action="throttle",name="g0",scope="guest"} 1`,
		`sublet_host_guests 1`,
		`sublet_reconcile_passes_total 7`,
		`sublet_traffic_sample_errors_total 2`,
		`sublet_notices_waiting 3`,
		`sublet_notices_given_up_total{channel="webhook"} 6`,
		`sublet_notices_sent_total{channel="mail"} 0`,
		`process_resident_memory_bytes `,
		`go_goroutines `,
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no line %s", line)
		}
	}
	if !strings.Contains(text, `,version="1.2.3"} 1`) || strings.Contains(text, `sublet_quota_action{action="",`) {
		t.Error(text)
	}
}

// TestMetricsAreConventional lets Prometheus's own linter judge.
func TestMetricsAreConventional(t *testing.T) {
	t.Parallel()
	problems, err := testutil.GatherAndLint(meter.Registry("1.2.3", func() meter.Reading { return reading(2) }))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestMetricsForget: of a guest that is gone, nothing is left.
func TestMetricsForget(t *testing.T) {
	t.Parallel()
	now := reading(2)
	handler := meter.Handler("1.2.3", func() meter.Reading { return now })
	if text := scrape(t, handler); !strings.Contains(text, `"g1"`) {
		t.Fatal("the guest is not there")
	}
	now = reading(1)
	if text := scrape(t, handler); strings.Contains(text, `"g1"`) || !strings.Contains(text, `"g0"`) {
		t.Error("a guest that is gone still has metrics")
	}
	now = meter.Reading{}
	for line := range strings.Lines(scrape(t, handler)) {
		if strings.Contains(line, "guest=") || strings.HasPrefix(line, "sublet_quota") {
			t.Errorf("of nobody: %s", line)
		}
	}
}

// TestSeriesAreBounded: what a guest can have is a fixed number.
func TestSeriesAreBounded(t *testing.T) {
	t.Parallel()
	count := func(guests int) int {
		n, err := testutil.GatherAndCount(meter.Registry("1.2.3", func() meter.Reading { return reading(guests) }))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	one := count(2) - count(1)
	if got := count(11) - count(1); got != 10*one || one > 60 {
		t.Errorf("%d series of one guest, %d of ten", one, got)
	}
}

// documented is the table of docs/metrics.md.
func documented(t *testing.T) (before, table, after string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- metrics -->\n", "<!-- end -->"
	before, rest, _ := strings.Cut(string(text), begin)
	table, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatal("docs/metrics.md has no table between its marks")
	}
	return before + begin, table, end + after
}

// TestMetricsDocs: the documentation has every metric, and no other one.
func TestMetricsDocs(t *testing.T) {
	t.Parallel()
	all, err := meter.Registry("1.2.3", func() meter.Reading { return reading(1) }).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), "sublet_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		slices.Sort(labels)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), kind(f), strings.Join(labels, ", "), f.GetHelp())
	}
	before, table, after := documented(t)
	if *update {
		if err := os.WriteFile("../../docs/metrics.md", []byte(before+b.String()+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(b.String(), table); d != "" {
		t.Errorf("docs/metrics.md differs from the code (-want +got; -update rewrites it):\n%s", d)
	}
}

func kind(f *dto.MetricFamily) string { return strings.ToLower(f.GetType().String()) }

// BenchmarkScrape is of 1,000 guests, without the kernel's part.
func BenchmarkScrape(b *testing.B) {
	r := reading(1000)
	handler := meter.Handler("1.2.3", func() meter.Reading { return r })
	for b.Loop() {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		b.ReportMetric(float64(w.Body.Len()), "bytes")
	}
}
