package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"sublet/internal/vps"
	"sublet/test/lab"
)

// scrape reads metrics as Prometheus does.
func scrape(t *testing.T, h *lab.Host) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(h.RunDir, "api.sock"))
	}}}
	defer client.CloseIdleConnections()
	reply, err := client.Get("http://sublet/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close() //nolint:errcheck // all that counts is read
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// series are the values of metrics, by name and labels as they are written.
func series(t *testing.T, text string) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all[line[:i]] = value
	}
	return all
}

var guestFamily = regexp.MustCompile("(?m)^\\| `(sublet_guest_[a-z_]+)`")

// hasMetrics scrapes what is told of alice, who runs.
func (q *quotaLab) hasMetrics(t *testing.T) {
	t.Helper()
	t.Log("metrics")
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	families := guestFamily.FindAllStringSubmatch(string(docs), -1)
	if len(families) == 0 {
		t.Fatal("no metrics are documented")
	}
	// The wall drops this, whoever is meant.
	q.TrySSH("alice", "ping -c1 -W1 10.213.255.254")
	q.Sublet("disk", "usage", "alice")
	var text string
	q.Eventually("each documented metric of guests is there", func() bool {
		text = scrape(t, q.Host)
		for _, f := range families {
			if !regexp.MustCompile("(?m)^" + f[1] + `\{[^}]*guest="alice"`).MatchString(text) {
				return false
			}
		}
		return true
	})
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint says %v, %v", problems, err)
	}
	all := series(t, text)
	now := float64(time.Now().Unix())
	for name, between := range map[string][2]float64{
		`sublet_guest_state{guest="alice",state="running"}`:                {1, 1},
		`sublet_guest_memory_limit_bytes{guest="alice"}`:                   {192 * mib, 192 * mib},
		`sublet_guest_memory_used_bytes{guest="alice"}`:                    {mib, 1024 * mib},
		`sublet_guest_cpus{guest="alice"}`:                                 {1, 64},
		`sublet_guest_cpu_seconds_total{guest="alice"}`:                    {0.01, 3600},
		`sublet_guest_start_time_seconds{guest="alice"}`:                   {now - 3600, now + 1},
		`sublet_guest_restarts_total{guest="alice"}`:                       {0, 0},
		`sublet_guest_disk_size_bytes{disk="root",guest="alice"}`:          {64 * mib, 1 << 50},
		`sublet_quota_limit_bytes{name="alice",scope="guest"}`:             {mib, mib},
		`sublet_quota_used_bytes{name="alice",scope="guest"}`:              {40 * mib, 1 << 40},
		`sublet_traffic_sample_errors_total`:                               {0, 0},
		`sublet_quota_reset_timestamp_seconds{name="alice",scope="guest"}`: {now, now + 32*24*3600},
	} {
		if value, ok := all[name]; !ok || value < between[0] || value > between[1] {
			t.Errorf("%s is %v (there: %v), want %v", name, value, ok, between)
		}
	}
}

// agreesWithMetrics compares counters with the ledger. Alice has stopped.
func (q *quotaLab) agreesWithMetrics(t *testing.T) {
	t.Helper()
	t.Log("metrics and the ledger")
	var counted, ledger map[string]float64
	defer func() {
		if t.Failed() {
			t.Logf("metrics: %v; the ledger: %v", counted, ledger)
		}
	}()
	q.Eventually("traffic in metrics is that of the ledger", func() bool {
		counted, ledger = map[string]float64{}, map[string]float64{}
		for name, value := range series(t, scrape(t, q.Host)) {
			if strings.HasPrefix(name, "sublet_guest_traffic_bytes_total{") && value > 0 {
				counted[name] = value
			}
		}
		n := &network{Host: q.Host}
		for key, count := range n.ledger("--months") {
			for direction, bytes := range map[string]int64{"in": count.InBytes, "out": count.OutBytes} {
				if bytes > 0 {
					ledger[trafficSeries(key, direction)] = float64(bytes)
				}
			}
		}
		return maps.Equal(counted, ledger)
	})
	if use := float64(q.use(t).Used); series(t, scrape(t, q.Host))[`sublet_quota_used_bytes{name="alice",scope="guest"}`] != use {
		t.Errorf("metrics do not have the %.0f bytes that quota show has", use)
	}
}

func trafficSeries(key vps.TrafficKey, direction string) string {
	family := map[int]string{4: "ipv4", 6: "ipv6"}[key.Family] // that of drops is not told
	return fmt.Sprintf(`sublet_guest_traffic_bytes_total{class=%q,direction=%q,family=%q,guest="alice"}`, key.Class, direction, family)
}

// leavesNoMetrics of alice, once she is deleted.
func (q *quotaLab) leavesNoMetrics(t *testing.T) {
	t.Helper()
	if !strings.Contains(scrape(t, q.Host), `"alice"`) {
		t.Fatal("nothing is told of alice")
	}
	q.Sublet("delete", "alice", "--yes")
	text := scrape(t, q.Host)
	if strings.Contains(text, `guest="alice"`) {
		t.Errorf("metrics tell of alice after she was deleted:\n%s", text)
	}
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint says %v, %v", problems, err)
	}
}
