package meter

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sublet/internal/vps"
)

// Status tells the state of each guest, by name, as it was last observed.
type Status func() map[string]vps.State

// Handler serves the metrics of a host in the format that the caller asks for
// (Prometheus text or OpenMetrics). Everything is read when it is asked for,
// so that nothing of a guest stays behind after it.
func Handler(version string, drops *Drops, fill *Fill, status Status) http.Handler {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sublet_build_info", Help: "The running version, as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	registry.MustRegister(build, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{drops, fill, status})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// collector makes metrics from what is there at the moment. The number of
// series is bounded by guests times reasons, and by their filesystems.
type collector struct {
	drops  *Drops
	fill   *Fill
	status Status
}

func (*collector) packets() *prometheus.Desc {
	return prometheus.NewDesc("sublet_guest_dropped_packets_total", "Packets of a guest, or for one, that the wall dropped.", []string{"guest", "reason"}, nil)
}

func (*collector) bytes() *prometheus.Desc {
	return prometheus.NewDesc("sublet_guest_dropped_bytes_total", "Bytes of a guest, or for one, that the wall dropped.", []string{"guest", "reason"}, nil)
}

func (*collector) state() *prometheus.Desc {
	return prometheus.NewDesc("sublet_guest_state", "1 for the state that a guest is in.", []string{"guest", "state"}, nil)
}

// disk describes a figure about a filesystem of a guest; the partition is 0 on
// a disk without partitions.
func (*collector) disk(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("sublet_guest_disk_"+name, help, []string{"guest", "disk", "partition"}, nil)
}

func (c *collector) disks() []diskMetric {
	bytes := func(b vps.Bytes) float64 { return float64(b) }
	return []diskMetric{
		{c.disk("used_bytes", "What files take of a guest's filesystem, as last read."), func(s *vps.DiskSample) float64 { return bytes(s.Used) }},
		{c.disk("available_bytes", "What files can still take of a guest's filesystem, as last read."), func(s *vps.DiskSample) float64 { return bytes(s.Available) }},
		{c.disk("allocated_bytes", "What the disk takes on the host."), func(s *vps.DiskSample) float64 { return bytes(s.Allocated) }},
		{c.disk("inodes", "How many inodes a guest's filesystem has; 0 where they are not bounded."), func(s *vps.DiskSample) float64 { return float64(s.Inodes) }},
		{c.disk("free_inodes", "How many inodes of a guest's filesystem are free."), func(s *vps.DiskSample) float64 { return float64(s.FreeInodes) }},
	}
}

type diskMetric struct {
	desc  *prometheus.Desc
	value func(*vps.DiskSample) float64
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.packets(), c.bytes(), c.state()} {
		ch <- d
	}
	for _, m := range c.disks() {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, guest := range c.drops.Guests() {
		for _, d := range c.drops.Of(guest) {
			ch <- prometheus.MustNewConstMetric(c.packets(), prometheus.CounterValue, float64(d.Packets), guest, string(d.Reason))
			ch <- prometheus.MustNewConstMetric(c.bytes(), prometheus.CounterValue, float64(d.Bytes), guest, string(d.Reason))
		}
	}
	disks := c.disks()
	for guest, samples := range c.fill.all() {
		for i := range samples {
			for _, m := range disks {
				ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, m.value(&samples[i]), guest, samples[i].Disk, strconv.Itoa(samples[i].Part))
			}
		}
	}
	for guest, state := range c.status() {
		ch <- prometheus.MustNewConstMetric(c.state(), prometheus.GaugeValue, 1, guest, string(state))
	}
}
