package meter

import (
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sublet/internal/vps"
)

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// rootDisk is what the disk that a guest boots from is called (vps.DiskUsage).
const rootDisk = "root"

type put = func(value float64, labels ...string)

// families are all metrics of ours but the build's. docs/metrics.md has them
// too; a test compares.
func families() []family {
	return slices.Concat(guestFamilies(), diskFamilies(), trafficFamilies(), quotaFamilies(), edgeFamilies(), hostFamilies(), daemonFamilies())
}

// ofGuests makes a family with a value for each guest.
func ofGuests(name, help string, kind prometheus.ValueType, value func(*GuestReading) float64) family {
	return family{"sublet_guest_" + name, help, kind, []string{"guest"}, func(r *Reading, put put) {
		for i := range r.Guests {
			put(value(&r.Guests[i]), r.Guests[i].Spec.Name)
		}
	}}
}

func guestFamilies() []family {
	return []family{
		{"sublet_guest_info", "1; what a guest is, as labels.", gauge, []string{"guest", "tenant", "image", "driver"}, func(r *Reading, put put) {
			for i := range r.Guests {
				s := &r.Guests[i].Spec
				put(1, s.Name, s.Tenant, s.Image, s.Driver)
			}
		}},
		{"sublet_guest_state", "1 for the state that a guest is in; there is no other series of the guest.", gauge, []string{"guest", "state"}, func(r *Reading, put put) {
			for i := range r.Guests {
				put(1, r.Guests[i].Spec.Name, string(r.Guests[i].Status.State))
			}
		}},
		ofGuests("restarts_total", "Starts by the restart policy since the last start that was asked for.", counter, func(g *GuestReading) float64 { return float64(g.Status.Restarts) }),
		ofGuests("start_time_seconds", "When the running instance was started, since 1970; 0 when none runs.", gauge, func(g *GuestReading) float64 { return seconds(g.Status.Started) }),
		ofGuests("memory_limit_bytes", "Memory that a guest has.", gauge, func(g *GuestReading) float64 { return float64(g.Spec.Memory) }),
		ofGuests("memory_used_bytes", "Memory of the host that a guest's processes take; 0 when it does not run.", gauge, func(g *GuestReading) float64 { return float64(g.Status.MemoryUsed) }),
		ofGuests("cpus", "Virtual processors that a guest has.", gauge, func(g *GuestReading) float64 { return float64(g.Spec.CPUs) }),
		ofGuests("cpu_seconds_total", "Time of the host's processors that a guest's running instance took.", counter, func(g *GuestReading) float64 { return time.Duration(g.Status.CPUTime).Seconds() }),
	}
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// ofDisks makes a family with a value for each filesystem of each guest.
func ofDisks(name, help string, value func(*vps.DiskSample) float64) family {
	return family{"sublet_guest_disk_" + name, help, gauge, []string{"guest", "disk", "partition"}, func(r *Reading, put put) {
		for i := range r.Guests {
			g := &r.Guests[i]
			for j := range g.Disks {
				put(value(&g.Disks[j]), g.Spec.Name, g.Disks[j].Disk, strconv.Itoa(g.Disks[j].Part))
			}
		}
	}}
}

func diskFamilies() []family {
	return []family{
		{"sublet_guest_disk_size_bytes", "Size of a guest's disk.", gauge, []string{"guest", "disk"}, func(r *Reading, put put) {
			for i := range r.Guests {
				s := &r.Guests[i].Spec
				put(float64(s.Disk), s.Name, rootDisk)
				for _, d := range s.Disks {
					put(float64(d.Size), s.Name, d.Name)
				}
			}
		}},
		ofDisks("used_bytes", "What files take of a guest's filesystem, as last read. The partition is 0 on a disk without any.", func(s *vps.DiskSample) float64 { return float64(s.Used) }),
		ofDisks("available_bytes", "What files can still take of a guest's filesystem, as last read.", func(s *vps.DiskSample) float64 { return float64(s.Available) }),
		ofDisks("allocated_bytes", "What the disk with a guest's filesystem takes on the host.", func(s *vps.DiskSample) float64 { return float64(s.Allocated) }),
		ofDisks("inodes", "How many inodes a guest's filesystem has; 0 where they are not bounded.", func(s *vps.DiskSample) float64 { return float64(s.Inodes) }),
		ofDisks("free_inodes", "How many inodes of a guest's filesystem are free.", func(s *vps.DiskSample) float64 { return float64(s.FreeInodes) }),
	}
}

// ofTraffic makes a family with the guests' traffic in both directions.
func ofTraffic(name, help string, in, out func(vps.TrafficCount) int64) family {
	return family{"sublet_guest_traffic_" + name, help, counter, []string{"guest", "class", "family", "direction"}, func(r *Reading, put put) {
		for i := range r.Guests {
			for _, t := range r.Guests[i].Traffic {
				labels := []string{r.Guests[i].Spec.Name, string(t.Class), ipFamily(t.Family)}
				put(float64(in(t.TrafficCount)), append(labels, "in")...)
				put(float64(out(t.TrafficCount)), append(labels, "out")...)
			}
		}
	}}
}

// ofUplinks makes a family with the public links' own counters.
func ofUplinks(name, help string, in, out func(vps.TrafficCount) int64) family {
	return family{"sublet_host_traffic_" + name, help, counter, []string{"link", "direction"}, func(r *Reading, put put) {
		for _, t := range r.Uplinks {
			put(float64(in(t.TrafficCount)), t.Link, "in")
			put(float64(out(t.TrafficCount)), t.Link, "out")
		}
	}}
}

func ipFamily(version int) string {
	switch version {
	case 4:
		return "ipv4"
	case 6:
		return "ipv6"
	default:
		return ""
	}
}

func trafficFamilies() []family {
	inBytes, outBytes := func(c vps.TrafficCount) int64 { return c.InBytes }, func(c vps.TrafficCount) int64 { return c.OutBytes }
	inPackets, outPackets := func(c vps.TrafficCount) int64 { return c.InPackets }, func(c vps.TrafficCount) int64 { return c.OutPackets }
	drops := func(value func(*Dropped) uint64) func(*Reading, put) {
		return func(r *Reading, put put) {
			for i := range r.Guests {
				for j := range r.Guests[i].Drops {
					d := &r.Guests[i].Drops[j]
					put(float64(value(d)), r.Guests[i].Spec.Name, string(d.Reason))
				}
			}
		}
	}
	return []family{
		ofTraffic("bytes_total", "Traffic of a guest, as it sees it, since the host's counters began: frames without their checksum.", inBytes, outBytes),
		ofTraffic("packets_total", "Packets of a guest, as it sees them, since the host's counters began.", inPackets, outPackets),
		{"sublet_guest_dropped_packets_total", "Packets of a guest, or for one, that the wall dropped.", counter, []string{"guest", "reason"}, drops(func(d *Dropped) uint64 { return d.Packets })},
		{"sublet_guest_dropped_bytes_total", "Bytes of a guest, or for one, that the wall dropped, as frames.", counter, []string{"guest", "reason"}, drops(func(d *Dropped) uint64 { return d.Bytes })},
		ofUplinks("bytes_total", "Traffic of the host's public links, by their own counters; in is what they received.", inBytes, outBytes),
		ofUplinks("packets_total", "Packets of the host's public links, by their own counters.", inPackets, outPackets),
	}
}

// ofQuotas makes a family with a value for each quota.
func ofQuotas(name, help string, value func(*vps.QuotaUse) float64) family {
	return family{"sublet_quota_" + name, help, gauge, []string{"scope", "name"}, func(r *Reading, put put) {
		for i := range r.Quotas {
			u := &r.Quotas[i]
			put(value(u), string(u.Quota.Scope), u.Quota.Name)
		}
	}}
}

func quotaFamilies() []family {
	return []family{
		ofQuotas("used_bytes", "What counts of a quota in its present month. The scope is host, tenant or guest, and the name whose.", func(u *vps.QuotaUse) float64 { return float64(u.Used) }),
		ofQuotas("limit_bytes", "What a quota allows in its present month, with what was topped up.", func(u *vps.QuotaUse) float64 { return float64(u.Limit) }),
		ofQuotas("reset_timestamp_seconds", "When a quota's present month ends, since 1970.", func(u *vps.QuotaUse) float64 { return seconds(u.End) }),
		{"sublet_quota_action", "1 for what a quota has in force: throttle, suspend-network or stop; no series when nothing is.", gauge, []string{"scope", "name", "action"}, func(r *Reading, put put) {
			for i := range r.Quotas {
				if u := &r.Quotas[i]; u.Action != "" {
					put(1, string(u.Quota.Scope), u.Quota.Name, string(u.Action))
				}
			}
		}},
	}
}

// single makes a family with one value.
func single(name, help string, kind prometheus.ValueType, value func(*Reading) float64) family {
	return family{"sublet_" + name, help, kind, nil, func(r *Reading, put put) { put(value(r)) }}
}

func hostFamilies() []family {
	return []family{
		single("host_guests", "How many guests there are.", gauge, func(r *Reading) float64 { return float64(len(r.Guests)) }),
		single("host_memory_bytes", "Memory of the host.", gauge, func(r *Reading) float64 { return float64(r.Host.Memory) }),
		single("host_memory_promised_bytes", "Memory that is promised to guests that run or are to run.", gauge, func(r *Reading) float64 { return float64(r.Host.Promised) }),
		single("host_disk_free_bytes", "What is free on the filesystem with guests' disks.", gauge, func(r *Reading) float64 { return float64(r.Host.DiskFree) }),
	}
}

// ofChannels makes a family with a value for each channel of notices.
func ofChannels(name, help string, value func(NoticeCount) uint64) family {
	return family{"sublet_notices_" + name, help, counter, []string{"channel"}, func(r *Reading, put put) {
		for channel, c := range r.Daemon.Notices {
			put(float64(value(c)), string(channel))
		}
	}}
}

func daemonFamilies() []family {
	return []family{
		single("reconcile_passes_total", "Passes of the loop that makes the host what is desired.", counter, func(r *Reading) float64 { return float64(r.Daemon.Passes) }),
		single("reconcile_last_pass_timestamp_seconds", "When the last pass ended, since 1970; 0 for never.", gauge, func(r *Reading) float64 { return seconds(r.Daemon.LastPass) }),
		single("reconcile_pending_steps", "Steps that were still to be taken after the last pass.", gauge, func(r *Reading) float64 { return float64(r.Daemon.Steps) }),
		single("traffic_samples_total", "Samples of traffic that were kept.", counter, func(r *Reading) float64 { return float64(r.Daemon.Samples) }),
		single("traffic_sample_errors_total", "Samples of traffic that could not be kept.", counter, func(r *Reading) float64 { return float64(r.Daemon.SampleErrors) }),
		single("traffic_last_sample_timestamp_seconds", "When traffic was last kept, since 1970; 0 for never.", gauge, func(r *Reading) float64 { return seconds(r.Daemon.LastSample) }),
		single("notices_waiting", "Notices that wait to be sent.", gauge, func(r *Reading) float64 { return float64(r.Daemon.NoticesWaiting) }),
		ofChannels("sent_total", "Notices that were sent.", func(c NoticeCount) uint64 { return c.Sent }),
		ofChannels("failed_total", "Tries to send a notice that failed.", func(c NoticeCount) uint64 { return c.Failed }),
		ofChannels("given_up_total", "Notices that were given up.", func(c NoticeCount) uint64 { return c.GivenUp }),
	}
}
