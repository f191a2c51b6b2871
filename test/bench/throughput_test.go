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
// with all rules in place to the same without the table, in turns, in both
// directions. The daemon is stopped meanwhile, or it would put the table back;
// the guest runs on without it. The host connects, because it does not let
// guests in; the first direction is that of the bytes.
func BenchmarkThroughput(b *testing.B) {
	h := lab.New(b)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "512MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", "3m")
	address := net.JoinHostPort(h.Show("alice").Spec.Address, streamPort)
	startStream(b, h, address)
	h.Stop()
	rules := h.NS.Exec("nft", "--stateless", "list", "table", "inet", "sublet")

	type direction struct {
		measure           func(*testing.B, string) float64
		with, bare, ratio *figure
	}
	directions := []direction{
		{
			fromGuest,
			&figure{name: "guest to host, all rules", unit: "Gbit/s", metric: "out-Gbit/s"},
			&figure{name: "guest to host, bare tap", unit: "Gbit/s", metric: "out-bare-Gbit/s"},
			&figure{name: "guest to host, ratio of the medians", unit: "%", metric: "out-ratio-%", atLeast: 95},
		},
		{
			toGuest,
			&figure{name: "host to guest, all rules", unit: "Gbit/s", metric: "in-Gbit/s"},
			&figure{name: "host to guest, bare tap", unit: "Gbit/s", metric: "in-bare-Gbit/s"},
			&figure{name: "host to guest, ratio of the medians", unit: "%", metric: "in-ratio-%", atLeast: 95},
		},
	}
	turn := 0
	for b.Loop() {
		for range rounds {
			// Who comes first takes turns too, against a drift of the machine.
			order := []bool{true, false}
			if turn++; turn%2 == 0 {
				slices.Reverse(order)
			}
			for _, ruled := range order {
				if h.NS.Exec("nft", "list", "tables") == "" == ruled {
					if ruled {
						h.NS.ExecInput(rules, "nft", "-f", "-")
					} else {
						h.NS.Exec("nft", "delete", "table", "inet", "sublet")
					}
				}
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
