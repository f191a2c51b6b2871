package meter

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapes bounds how many are answered at the same time.
const scrapes = 4

// Registry returns the metrics of a host and of the program. Everything about
// guests is read when it is asked for, so that nothing of a guest stays behind
// after it. read may be called from several goroutines.
func Registry(version string, read func() Reading) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sublet_build_info", Help: "1; the running version is a label.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	registry.MustRegister(
		build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newCollector(read),
	)
	return registry
}

// Handler serves the metrics of a host in the format that the caller asks for
// (Prometheus text or OpenMetrics).
func Handler(version string, read func() Reading) http.Handler {
	return promhttp.HandlerFor(Registry(version, read), promhttp.HandlerOpts{MaxRequestsInFlight: scrapes, EnableOpenMetrics: true})
}

// family is all that one metric is: what it is called and means, and which
// values a reading has of it.
type family struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
	values     func(r *Reading, put func(value float64, labels ...string))
}

// collector makes metrics of readings. The number of series is bounded by
// guests times classes, reasons and filesystems.
type collector struct {
	read         func() Reading
	families     []family
	descriptions []*prometheus.Desc
}

func newCollector(read func() Reading) *collector {
	c := &collector{read: read, families: families()}
	for _, f := range c.families {
		c.descriptions = append(c.descriptions, prometheus.NewDesc(f.name, f.help, f.labels, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descriptions {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	r := c.read()
	for i, f := range c.families {
		f.values(&r, func(value float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(c.descriptions[i], f.kind, value, labels...)
		})
	}
}
