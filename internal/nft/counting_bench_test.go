//go:build linux

package nft_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// BenchmarkCounting measures what counting and quotas cost a guest that sends
// to the outside: in windows of half a second, without either, with counting,
// and with quotas of the guest, its tenant and the host as well, in turns. The
// metrics are medians, and the medians of the ratios within a turn.
func BenchmarkCounting(b *testing.B) {
	for _, c := range []struct {
		what   string
		stream func(b *testing.B, w *benchWorld) *atomic.Int64
	}{{"TCP", tcpStream}, {"packets", datagrams}} {
		b.Run(c.what, func(b *testing.B) {
			w := newBenchWorld(b)
			passed := c.stream(b, w)
			window := func() float64 {
				const settle, length = 100 * time.Millisecond, 500 * time.Millisecond
				<-time.After(settle)
				before, began := passed.Load(), time.Now()
				<-time.After(length)
				return float64(passed.Load()-before) / time.Since(began).Seconds()
			}
			var bare, counting, holding, ratio, ratioHeld []float64
			for b.Loop() {
				w.without(b)
				x := window()
				w.counting(b)
				y := window()
				w.holding(b)
				z := window()
				bare, counting, holding = append(bare, x), append(counting, y), append(holding, z)
				ratio, ratioHeld = append(ratio, 100*y/x), append(ratioHeld, 100*z/x)
			}
			for name, values := range map[string][]float64{"bare/s": bare, "counted/s": counting, "held/s": holding, "counted-%": ratio, "held-%": ratioHeld} {
				slices.Sort(values)
				b.ReportMetric(values[len(values)/2], name)
			}
		})
	}
}

// benchWorld is a host with one guest and a machine outside.
type benchWorld struct {
	host, outside, guest *nstest.NS
	wall                 *nft.Firewall
	link                 string
}

func newBenchWorld(b *testing.B) *benchWorld {
	b.Helper()
	w := &benchWorld{host: nstest.New(b), wall: nft.New(nil, nft.Options{})}
	w.outside, w.guest = w.host.Peer(), w.host.Peer()
	g := guest(1, "alice")
	g.Limits = vps.NetworkLimits{Packets: 100_000_000, NewConnections: 10_000_000, Connections: 10_000_000}
	w.link = g.Link
	w.host.Veth("up0", w.outside, "eth0")
	w.host.Veth(g.Link, w.guest, "eth0")
	w.host.Exec("ip", "addr", "add", public+"/24", "dev", "up0")
	w.outside.Exec("ip", "addr", "add", outside+"/24", "dev", "eth0")
	w.host.Exec("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	w.host.Exec("ip", "addr", "add", gateway+"/32", "dev", g.Link)
	w.host.Exec("ip", "route", "add", g.Address.String(), "dev", g.Link, "src", gateway)
	w.guest.Exec("ip", "link", "set", "eth0", "address", g.MAC.String())
	w.guest.Exec("ip", "addr", "add", g.Address.String()+"/32", "dev", "eth0")
	w.guest.Exec("ip", "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
	if err := w.wall.Apply(b.Context(), network(g), uplinks); err != nil {
		b.Fatal(err)
	}
	w.counting(b)
	w.holding(b)
	return w
}

// without takes away all that counts.
func (w *benchWorld) without(b *testing.B) {
	b.Helper()
	for _, family := range []string{"inet", "bridge"} {
		for _, name := range []string{"sublet-traffic", "sublet-quota"} {
			w.host.Exec("nft", "delete", "table", family, name)
		}
	}
}

func (w *benchWorld) counting(b *testing.B) {
	b.Helper()
	if _, err := w.wall.Traffic(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func (w *benchWorld) holding(b *testing.B) {
	b.Helper()
	const far = 1 << 60
	q, r := quota("guest/alice", far, w.link), quota("tenant/team", far, w.link)
	if err := w.wall.SetQuotas(b.Context(), []vps.NetworkQuota{q, r, quota("host", far)}, nil, uplinks); err != nil {
		b.Fatal(err)
	}
}

// tcpStream counts the bytes of one connection.
func tcpStream(b *testing.B, w *benchWorld) *atomic.Int64 {
	b.Helper()
	passed := new(atomic.Int64)
	w.outside.Do(func() {
		listener, err := net.Listen("tcp4", "0.0.0.0:80")
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { _ = listener.Close() })
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			buffer := make([]byte, 1<<20)
			for {
				n, err := conn.Read(buffer)
				if err != nil {
					return
				}
				passed.Add(int64(n))
			}
		}()
	})
	w.guest.Do(func() {
		conn, err := net.Dial("tcp4", outside+":80")
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { _ = conn.Close() })
		go func() { _, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{zeros{}}) }()
	})
	return passed
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// datagrams counts small packets that arrive.
func datagrams(b *testing.B, w *benchWorld) *atomic.Int64 {
	b.Helper()
	passed := new(atomic.Int64)
	w.outside.Do(func() {
		conn, err := net.ListenPacket("udp4", "0.0.0.0:9")
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { _ = conn.Close() })
		go func() {
			buffer := make([]byte, 2048)
			for {
				if _, _, err := conn.ReadFrom(buffer); err != nil {
					return
				}
				passed.Add(1)
			}
		}()
	})
	w.guest.Do(func() {
		conn, err := net.Dial("udp4", outside+":9")
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { _ = conn.Close() })
		go func() {
			payload := make([]byte, 64)
			for {
				if _, err := conn.Write(payload); err != nil && b.Context().Err() != nil {
					return
				}
			}
		}()
	})
	return passed
}

// BenchmarkTraffic reads the counters of guests that have some of every class
// and both families.
func BenchmarkTraffic(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n vps.Network) func() error {
		b.Helper()
		host := nstest.New(b)
		wall := nft.New(nil, nft.Options{})
		if err := wall.Apply(b.Context(), n, uplinks); err != nil {
			b.Fatal(err)
		}
		if _, err := wall.Traffic(b.Context()); err != nil {
			b.Fatal(err)
		}
		for _, class := range []string{"internet", "host", "between"} {
			for _, way := range []string{"in", "out"} {
				var elements []string
				for _, g := range n.Guests {
					for _, family := range []string{"ipv4", "ipv6"} {
						elements = append(elements, fmt.Sprintf("%q . %s counter packets 5 bytes 700", g.Link, family))
					}
				}
				host.ExecInput(fmt.Sprintf("add element inet sublet-traffic %s-%s { %s }\n", class, way, strings.Join(elements, ", ")), "nft", "-f", "-")
			}
		}
		const settled = 10
		for range settled {
			if _, err := wall.Traffic(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		c, err := wall.Traffic(b.Context())
		if err != nil || len(c.Links) != 6*len(n.Guests) {
			b.Fatalf("%d rows, %v", len(c.Links), err)
		}
		b.ReportAllocs()
		began := cpu(b)
		steps := 0
		b.Cleanup(func() {
			b.ReportMetric(float64((cpu(b)-began).Microseconds())/1000/float64(max(steps, 1)), "cpu-ms/op")
		})
		return func() error {
			steps++
			_, err := wall.Traffic(b.Context())
			return err
		}
	})
}

// cpu is the processor time that the process has had, in the kernel as well.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
