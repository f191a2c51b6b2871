package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/nstest"
)

// Addresses of the edge's bench, all on the loopback of a network of its own.
const (
	edgeServer    = "127.0.0.2:7443" // example.org
	edgeServerTLS = "127.0.0.2:7444" // tls.example.org
	edgeOurs      = "127.0.0.3:443"
	edgeHAProxy   = "127.0.0.4:443"
)

// edgeScene is a network with a server, and the two proxies beside each other.
type edgeScene struct {
	b             *testing.B
	net           *nstest.NS
	load          string // the program edgeload
	ours, haproxy *edgeProxy
	both          []*edgeProxy
}

type edgeProxy struct {
	name, address string
	pid           int
}

func newEdgeScene(b *testing.B) *edgeScene {
	b.Helper()
	s := &edgeScene{b: b}
	// Made from a goroutine of its own: New keeps its thread.
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.net = nstest.New(b)
	}()
	<-done
	if s.net == nil {
		b.FailNow() // it has said why
	}
	s.net.Do(func() {
		for setting, value := range map[string]string{
			"ip_local_port_range": "1025 65535",
			"tcp_max_tw_buckets":  "0", // what callers leave behind is not the proxies'
		} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+setting, []byte(value), 0o600); err != nil {
				b.Error(err)
			}
		}
	})
	most := edgeMost(b)
	dir := b.TempDir()
	s.load = filepath.Join(dir, "edgeload")
	proxy := filepath.Join(dir, "edgeproxy")
	command(b, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "./edgeload", "./edgeproxy")
	s.start(edgeServer, s.load, "server", edgeServer, edgeServerTLS)
	s.ours = &edgeProxy{"edge", edgeOurs, s.start(edgeOurs, proxy, edgeOurs, "example.org="+edgeServer, "tls.example.org="+edgeServerTLS)}
	s.haproxy = &edgeProxy{"HAProxy", edgeHAProxy, s.start(edgeHAProxy, "haproxy", "-db", "-f", haproxyConfig(b, dir, most))}
	s.both = []*edgeProxy{s.ours, s.haproxy}
	return s
}

// haproxyConfig routes by server name as the edge does.
func haproxyConfig(b *testing.B, dir string, most int) string {
	b.Helper()
	table, path := filepath.Join(dir, "names"), filepath.Join(dir, "haproxy.cfg")
	check(b, os.WriteFile(table, []byte("example.org plain\ntls.example.org real\n"), 0o600))
	check(b, os.WriteFile(path, fmt.Appendf(nil, `global
	maxconn %d
	maxpipes 100
defaults
	mode tcp
	option splice-auto
	timeout connect 10s
	timeout client 1h
	timeout server 1h
frontend edge
	bind %s
	tcp-request inspect-delay 10s
	tcp-request content accept if { req_ssl_hello_type 1 }
	use_backend %%[req_ssl_sni,lower,map(%s)]
backend plain
	server guest %s
backend real
	server guest %s
`, most, edgeHAProxy, table, edgeServer, edgeServerTLS), 0o600))
	return path
}

// edgeMost is how many connections a proxy may have, each of which takes it two
// descriptors.
func edgeMost(b *testing.B) int {
	b.Helper()
	// Not everybody may have more than there are.
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 18, Max: 1 << 18})
	var limit unix.Rlimit
	check(b, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	return int(min(limit.Max, 1<<18)-2400) / 2 // and what else the edge keeps some for
}

// start runs a program of the network until the bench ends, and returns when it
// listens.
func (s *edgeScene) start(address, program string, args ...string) int {
	s.b.Helper()
	cmd := exec.CommandContext(s.b.Context(), program, args...)
	cmd.Stderr = os.Stderr
	s.net.Do(func() { check(s.b, cmd.Start()) })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.b.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(hang.After); ; {
		var err error
		s.net.Do(func() {
			var conn net.Conn
			if conn, err = net.Dial("tcp4", address); err == nil {
				_ = conn.Close()
			}
		})
		if err == nil {
			return cmd.Process.Pid
		}
		if time.Now().After(deadline) {
			s.b.Fatalf("%s does not listen: %v", program, err)
		}
		select {
		case <-ended:
			s.b.Fatalf("%s has ended", program)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// edgeSeen is what edgeload writes.
type edgeSeen struct {
	Rate, P50, P99 float64
	Failures       int64
}

// call lets callers do something for a while.
func (s *edgeScene) call(what, address string, number float64) (seen edgeSeen) {
	s.b.Helper()
	cmd := exec.CommandContext(s.b.Context(), s.load, what, address, fmt.Sprint(number))
	cmd.Stderr = os.Stderr
	var out []byte
	var err error
	s.net.Do(func() { out, err = cmd.Output() })
	if err == nil {
		err = json.Unmarshal(out, &seen)
	}
	if err != nil || seen.Failures > 0 {
		s.b.Fatalf("edgeload %s %s: %v, %d failures", what, address, err, seen.Failures)
	}
	return seen
}

// measured is what callers have seen of a proxy, and what it took meanwhile.
type measured struct {
	edgeSeen
	cpu time.Duration // of the proxy's, per second
}

// turns measures both proxies, the first one drawn.
func (s *edgeScene) turns(what string, during time.Duration) (ours, theirs measured) {
	s.b.Helper()
	for _, i := range rand.Perm(2) {
		p := s.both[i]
		before, start := exactCPU(s.b, p.pid), time.Now()
		m := measured{edgeSeen: s.call(what, p.address, during.Seconds())}
		m.cpu = time.Duration(float64(exactCPU(s.b, p.pid)-before) / time.Since(start).Seconds())
		if p == s.ours {
			ours = m
		} else {
			theirs = m
		}
	}
	return ours, theirs
}

// exactCPU is the processor time that a process has used, from the clock that
// the kernel has for each (clock_getcpuclockid(3)).
func exactCPU(b *testing.B, pid int) time.Duration {
	b.Helper()
	var t unix.Timespec
	check(b, unix.ClockGettime(int32(^pid<<3|2), &t))
	return time.Duration(t.Nano())
}

// versus are samples of both proxies.
type versus struct {
	ours, theirs figure
	ratio        figure // of the medians, in percent
}

func newVersus(name, unit, metric string, atLeast, atMost float64) *versus {
	return &versus{
		figure{name: name, unit: unit, metric: metric + "-edge"},
		figure{metric: metric + "-haproxy"},
		figure{metric: metric + "-ratio-%", atLeast: atLeast, atMost: atMost},
	}
}

func (v *versus) add(ours, theirs float64) {
	v.ours.add(ours)
	v.theirs.add(theirs)
}

// reportVersus prints a line for each. What the edge adds to something may be
// nothing but noise, and so may be the ratio: the samples' own is told.
func reportVersus(b *testing.B, all ...*versus) {
	b.Helper()
	for _, v := range all {
		if v.ours.median() <= 0 || v.theirs.median() <= 0 {
			b.Logf("%-55s edge %9.2f, HAProxy %9.2f %s, n=%d: noise hides it, no ratio", v.ours.name, v.ours.median(), v.theirs.median(), v.ours.unit, len(v.ours.samples))
			continue
		}
		v.ratio.add(100 * v.ours.median() / v.theirs.median())
		low, high := ratioInterval(&v.ours, &v.theirs)
		b.Logf("%-55s edge %9.2f (%.2f–%.2f), HAProxy %9.2f (%.2f–%.2f) %s, n=%d: %.0f %% (%.0f–%.0f %% by noise alone)  %s", v.ours.name,
			v.ours.median(), slices.Min(v.ours.samples), slices.Max(v.ours.samples),
			v.theirs.median(), slices.Min(v.theirs.samples), slices.Max(v.theirs.samples), v.ours.unit, len(v.ours.samples),
			v.ratio.median(), low, high, v.ratio.verdict())
		for _, f := range []*figure{&v.ours, &v.theirs, &v.ratio} {
			b.ReportMetric(f.median(), f.metric)
		}
	}
	b.ReportMetric(0, "ns/op") // 0 drops it: an iteration is many things
}

const edgeRounds = 5 // of turns, in each iteration

// BenchmarkEdgeBulk compares the throughput of one connection through the edge
// to that through HAProxy, with splice on.
func BenchmarkEdgeBulk(b *testing.B) {
	s := newEdgeScene(b)
	up, down := newVersus("bulk to the guest", "Gbit/s", "up-Gbit/s", 100, 0), newVersus("bulk to the caller", "Gbit/s", "down-Gbit/s", 100, 0)
	upCPU, downCPU := newVersus("processor for 1 Gbit to the guest", "ms", "up-cpu", 0, 0), newVersus("processor for 1 Gbit to the caller", "ms", "down-cpu", 0, 0)
	for b.Loop() {
		for range edgeRounds {
			ours, theirs := s.turns("send", time.Second)
			up.add(ours.Rate/1e9, theirs.Rate/1e9)
			upCPU.add(milliseconds(ours.cpu)/ours.Rate*1e9, milliseconds(theirs.cpu)/theirs.Rate*1e9)
			ours, theirs = s.turns("receive", time.Second)
			down.add(ours.Rate/1e9, theirs.Rate/1e9)
			downCPU.add(milliseconds(ours.cpu)/ours.Rate*1e9, milliseconds(theirs.cpu)/theirs.Rate*1e9)
		}
	}
	reportVersus(b, up, upCPU, down, downCPU)
}

// BenchmarkEdgeConnections compares how many new TLS connections pass in a
// second, and what each takes of the proxy's processor: with the bytes of a
// handshake, which spares callers the cryptography, and in earnest.
func BenchmarkEdgeConnections(b *testing.B) {
	s := newEdgeScene(b)
	var all []*versus
	for _, what := range []string{"connect", "tls"} {
		all = append(all, newVersus(what+", new connections per second", "", what+"-rate", 90, 0),
			newVersus(what+", connections per second of the proxy's processor", "", what+"-per-cpu", 90, 0))
	}
	for b.Loop() {
		for range edgeRounds {
			for i, what := range []string{"connect", "tls"} {
				ours, theirs := s.turns(what, time.Second)
				all[2*i].add(ours.Rate, theirs.Rate)
				all[2*i+1].add(ours.Rate/ours.cpu.Seconds(), theirs.Rate/theirs.cpu.Seconds())
			}
		}
	}
	reportVersus(b, all...)
}

// BenchmarkEdgeLatency compares what the proxies add to the time of a round
// trip on 1,000 connections: at a pace of 4,000 a second, and as fast as it goes.
func BenchmarkEdgeLatency(b *testing.B) {
	s := newEdgeScene(b)
	var all []*versus
	for _, what := range []string{"pace", "full"} {
		all = append(all, newVersus(what+", added at the median", "µs", what+"-p50", 0, 0), newVersus(what+", added at p99", "µs", what+"-p99", 0, 100),
			newVersus(what+", round trips per second of the proxy's processor", "", what+"-per-cpu", 0, 0))
	}
	for b.Loop() {
		for range edgeRounds {
			for i, what := range []string{"pace", "full"} {
				bare := s.call(what, edgeServer, 2)
				ours, theirs := s.turns(what, 2*time.Second)
				all[3*i].add(ours.P50-bare.P50, theirs.P50-bare.P50)
				all[3*i+1].add(ours.P99-bare.P99, theirs.P99-bare.P99)
				all[3*i+2].add(ours.Rate/ours.cpu.Seconds(), theirs.Rate/theirs.cpu.Seconds())
			}
		}
	}
	reportVersus(b, all...)
}

// BenchmarkEdgeIdle tells what 10,000 connections that do nothing take of
// memory, or as many as this host lets a process have, in proportion.
func BenchmarkEdgeIdle(b *testing.B) {
	v := newVersus("resident, 10,000 idle connections (goal ≤ 150)", "MiB", "idle-MiB", 0, 0)
	for b.Loop() {
		s := newEdgeScene(b)
		v.add(s.idle(s.ours), s.idle(s.haproxy))
	}
	reportVersus(b, v)
}

func (s *edgeScene) idle(p *edgeProxy) float64 {
	s.b.Helper()
	n := min(10_000, edgeMost(s.b))
	cmd := exec.CommandContext(s.b.Context(), s.load, "idle", p.address, strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(s.b, err)
	out, err := cmd.StdoutPipe()
	check(s.b, err)
	before := memory(s.b, p.pid, "status", "VmRSS")
	s.net.Do(func() { check(s.b, cmd.Start()) })
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil {
		s.b.Fatalf("edgeload idle: %q, %v", line, err)
	}
	m := memory(s.b, p.pid, "status", "VmRSS", "RssAnon", "VmHWM")
	s.b.Logf("%s: %d connections: resident %.1f MiB, of it its own %.1f, the most that it had %.1f; without connections %.1f", p.name, n, m[0], m[1], m[2], before[0])
	_ = in.Close()
	rest, _ := io.ReadAll(lines)
	if err := cmd.Wait(); err != nil {
		s.b.Fatalf("edgeload idle: %s %v", rest, err)
	}
	return before[0] + (m[0]-before[0])*10_000/float64(n)
}
