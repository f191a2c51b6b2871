package bench

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/test/lab"
)

const (
	streamPort = "5001"
	// warmUp is not measured: TCP finds its window.
	warmUp = 300 * time.Millisecond
	window = time.Second
	rounds = 8 // with and without rules, in each iteration
)

// BenchmarkThroughput compares one TCP connection between a guest and its host
// with all rules in place to the same without any.
func BenchmarkThroughput(b *testing.B) {
	compare(b, "all rules", "bare tap", 95, "inet sublet", "inet sublet-traffic", "inet sublet-quota", "bridge sublet-traffic", "bridge sublet-quota")
}

// BenchmarkCounting compares the same with the tables that count and hold
// quotas to the wall alone.
func BenchmarkCounting(b *testing.B) {
	compare(b, "counted and held", "not counted", 98, "inet sublet-traffic", "inet sublet-quota", "bridge sublet-traffic", "bridge sublet-quota")
}

// compare measures with these tables and without them, in turns, in both
// directions; guest, tenant and host have quotas. The daemon is stopped meanwhile,
// or it would put the tables back; the guest runs on without it. The host
// connects, because it does not let guests in; the first direction is that of
// the bytes.
func compare(b *testing.B, with, without string, goal float64, tables ...string) {
	b.Helper()
	h := lab.New(b)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "512MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", "3m")
	for _, scope := range [][]string{{"alice"}, {"--tenant", "owner"}, {"--host"}} {
		h.Sublet(append(append([]string{"quota", "set"}, scope...), "--month", "1000TiB", "--at", "100%=suspend-network")...)
	}
	address := net.JoinHostPort(h.Show("alice").Spec.Address, streamPort)
	startStream(b, h, address)
	h.Stop()
	var rules strings.Builder
	for _, table := range tables {
		rules.WriteString(h.NS.Exec("nft", append([]string{"--stateless", "list", "table"}, strings.Fields(table)...)...) + "\n")
	}
	switchTables := func(there bool) {
		if strings.Contains(h.NS.Exec("nft", "list", "tables"), "table "+tables[0]+"\n") == there {
			return
		}
		if there {
			h.NS.ExecInput(rules.String(), "nft", "-f", "-")
			return
		}
		for _, table := range tables {
			h.NS.Exec("nft", append([]string{"delete", "table"}, strings.Fields(table)...)...)
		}
	}

	type direction struct {
		measure           func(*testing.B, string) float64
		with, bare, ratio *figure
	}
	way := func(name, metric string, measure func(*testing.B, string) float64) direction {
		return direction{
			measure,
			&figure{name: name + ", " + with, unit: "Gbit/s", metric: metric + "-Gbit/s"},
			&figure{name: name + ", " + without, unit: "Gbit/s", metric: metric + "-bare-Gbit/s"},
			&figure{name: name + ", ratio of the medians", unit: "%", metric: metric + "-ratio-%", atLeast: goal},
		}
	}
	directions := []direction{way("guest to host", "out", fromGuest), way("host to guest", "in", toGuest)}
	turn := 0
	for b.Loop() {
		for range rounds {
			// Who comes first takes turns too, against a drift of the machine.
			order := []bool{true, false}
			if turn++; turn%2 == 0 {
				slices.Reverse(order)
			}
			for _, ruled := range order {
				switchTables(ruled)
				for _, d := range directions {
					speed := 0.0
					h.NS.Do(func() { speed = d.measure(b, address) })
					if ruled {
						d.with.add(speed)
					} else {
						d.bare.add(speed)
					}
				}
			}
		}
	}
	var all []*figure
	for _, d := range directions {
		d.ratio.add(100 * d.with.median() / d.bare.median())
		low, high := ratioInterval(d.with, d.bare)
		b.Logf("%s: %.1f %%, and between %.1f and %.1f %% by the samples' own noise", d.ratio.name, d.ratio.median(), low, high)
		all = append(all, d.with, d.bare, d.ratio)
	}
	report(b, all...)
}

// startStream builds the program stream and starts it in the guest.
func startStream(b *testing.B, h *lab.Host, address string) {
	b.Helper()
	const place = "/run/stream"
	host, _, err := net.SplitHostPort(address)
	check(b, err)
	copyStream(b, h, host, place)
	h.SSH("alice", "systemd-run", "--quiet", place, ":"+streamPort)
	h.Eventually("the program in the guest listens", func() bool {
		return strings.Contains(h.SSH("alice", "ss -Hltn"), ":"+streamPort)
	})
}

// copyStream builds the program stream and copies it into the guest with this
// address.
func copyStream(b *testing.B, h *lab.Host, host, place string) {
	b.Helper()
	program := filepath.Join(b.TempDir(), "stream")
	command(b, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./stream")
	f, err := os.Open(program)
	check(b, err)
	defer f.Close() //nolint:errcheck // read only
	cmd := exec.CommandContext(b.Context(), "ssh", "-q", "-i", h.Key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "root@"+host, "cat > "+place+" && chmod +x "+place)
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("copy a program into the guest: %v\n%s", err, out)
	}
}

// dial reports a failure and returns nil: it runs outside of the benchmark's
// own goroutine.
func dial(b *testing.B, address string, order byte) *net.TCPConn {
	b.Helper()
	conn, err := new(net.Dialer).DialContext(b.Context(), "tcp4", address)
	if err == nil {
		_, err = conn.Write([]byte{order})
	}
	tcp, ok := conn.(*net.TCPConn)
	if err != nil || !ok {
		b.Errorf("connect to the guest: %v", err)
		return nil
	}
	return tcp
}

// fromGuest counts what arrives at the host, in Gbit/s.
func fromGuest(b *testing.B, address string) float64 {
	b.Helper()
	conn := dial(b, address, 's')
	if conn == nil {
		return 0
	}
	defer conn.Close() //nolint:errcheck // all that counts was read
	buffer := make([]byte, 256<<10)
	read := func(until time.Duration) float64 {
		total, start := 0, time.Now()
		for time.Since(start) < until {
			n, err := conn.Read(buffer)
			if total += n; err != nil {
				b.Errorf("receive from the guest: %v", err)
				return 0
			}
		}
		return gigabits(total, time.Since(start))
	}
	read(warmUp)
	return read(window)
}

// toGuest lets the guest count what it got, from the first byte to the last.
func toGuest(b *testing.B, address string) float64 {
	b.Helper()
	conn := dial(b, address, 'r')
	if conn == nil {
		return 0
	}
	defer conn.Close() //nolint:errcheck // the guest has counted
	buffer := make([]byte, 256<<10)
	start := time.Now()
	for time.Since(start) < warmUp+window {
		if _, err := conn.Write(buffer); err != nil {
			b.Errorf("send to the guest: %v", err)
			return 0
		}
	}
	if err := conn.CloseWrite(); err != nil {
		b.Error(err)
	}
	var count [8]byte
	if _, err := io.ReadFull(conn, count[:]); err != nil {
		b.Errorf("hear from the guest: %v", err)
		return 0
	}
	return gigabits(int(binary.BigEndian.Uint64(count[:])), time.Since(start))
}

func gigabits(bytes int, took time.Duration) float64 {
	return float64(bytes) * 8 / took.Seconds() / 1e9
}
