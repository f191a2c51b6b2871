//go:build linux

package hostnet_test

import (
	"fmt"
	"strings"
	"testing"

	"sublet/internal/hostnet"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// TestCounters compares what the public links counted with what /sys shows.
func TestCounters(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	outside, guest := host.Peer(), host.Peer()
	host.Veth("up0", outside, "eth0")
	host.Veth("sl-alice", guest, "eth0")
	host.Exec("ip", "addr", "add", "203.0.113.1/24", "dev", "up0")
	outside.Exec("ip", "addr", "add", "203.0.113.9/24", "dev", "eth0")
	// The kernels' own words would come in between.
	for _, ns := range []*nstest.NS{host, outside, guest} {
		ns.Exec("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
	}
	outside.Exec("busybox", "ping", "-c3", "-s1000", "203.0.113.1")
	statistic := func(link, name string) (value int64) {
		t.Helper()
		if _, err := fmt.Sscan(host.Exec("cat", "/sys/class/net/"+link+"/statistics/"+name), &value); err != nil {
			t.Fatal(err)
		}
		return value
	}
	h := hostnet.New(nil, hostnet.Options{})
	check := func(uplinks ...string) {
		t.Helper()
		rows, err := h.Counters(t.Context(), uplinks)
		if err != nil || len(rows) != 1 {
			t.Fatalf("got %+v, %v", rows, err)
		}
		want := vps.LinkTraffic{Link: "up0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{
			InBytes: statistic("up0", "rx_bytes"), InPackets: statistic("up0", "rx_packets"),
			OutBytes: statistic("up0", "tx_bytes"), OutPackets: statistic("up0", "tx_packets"),
		}}
		if rows[0] != want {
			t.Errorf("got %+v, want %+v", rows[0], want)
		}
		if rows[0].InBytes < 3*1042 || rows[0].OutPackets < 3 {
			t.Errorf("three answered pings are not in %+v", rows[0])
		}
	}
	check("up0")
	check("up0", "gone", "up0")
	host.Exec("ip", "link", "add", "br0", "type", "bridge")
	host.Exec("ip", "link", "set", "up0", "master", "br0")
	host.Exec("ip", "link", "set", "sl-alice", "master", "br0")
	check("br0")
	rows, err := h.Counters(t.Context(), []string{strings.Repeat("x", 15)})
	if err != nil || len(rows) != 0 {
		t.Errorf("got %+v, %v", rows, err)
	}
}
