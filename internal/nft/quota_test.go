//go:build linux

package nft_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

const mebi = 1 << 20

// quota is one that blocks, and counts in+out.
func quota(id string, limit int64, links ...string) vps.NetworkQuota {
	scope, _, _ := strings.Cut(id, "/")
	return vps.NetworkQuota{ID: id, Scope: vps.QuotaScope(scope), Links: links, Count: vps.CountBoth, Block: limit, Throttle: -1}
}

func (w *world) setQuotas(suspended []string, quotas ...vps.NetworkQuota) {
	w.t.Helper()
	w.host.Do(func() {
		if err := w.wall.SetQuotas(w.t.Context(), quotas, suspended, uplinks); err != nil {
			w.t.Error(err)
		}
	})
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// sink takes datagrams on a port and says nothing.
func (w *world) sink(ns *nstest.NS, port int) {
	w.t.Helper()
	ns.Do(func() {
		conn, err := net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
		if err != nil {
			w.t.Error(err)
			return
		}
		w.t.Cleanup(func() { _ = conn.Close() })
	})
}

// pour sends datagrams that come to so many bytes of frames, of size each.
func (w *world) pour(ns *nstest.NS, to string, total, size int64) {
	w.t.Helper()
	ns.Do(func() {
		conn, err := net.Dial("udp4", to)
		if err != nil {
			w.t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		payload := make([]byte, size-14-20-8)
		for i := int64(0); i*size < total; i++ {
			_, _ = conn.Write(payload) // what the host itself drops is an error
			if i%100 == 99 {
				drained(w.t)
			}
		}
		drained(w.t)
	})
}

// drained waits until packets that cables took are where they go: of more than a
// thousand that wait the kernel drops the rest.
func drained(t *testing.T) {
	t.Helper()
	for range 100_000 {
		stat, err := os.ReadFile("/proc/net/softnet_stat")
		if err != nil {
			t.Error(err)
			return
		}
		waiting := false
		for line := range strings.Lines(string(stat)) {
			// The twelfth number is how many wait (softnet_seq_show in the kernel).
			if fields := strings.Fields(line); len(fields) > 11 && fields[11] != "00000000" {
				waiting = true
			}
		}
		if !waiting {
			return
		}
		<-time.After(100 * time.Microsecond)
	}
	t.Error("packets wait without end")
}

// sent is how many bytes a link of the host was given to send.
func (w *world) sent(link string) int64 {
	w.t.Helper()
	var bytes int64
	if _, err := fmt.Sscan(w.host.Exec("cat", "/sys/class/net/"+link+"/statistics/tx_bytes"), &bytes); err != nil {
		w.t.Fatal(err)
	}
	return bytes
}

// newPoured is a world where guests and the outside take datagrams.
func newPoured(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	for i := range w.network.Guests {
		// Without an answer each datagram is the first of a connection.
		w.network.Guests[i].Limits = vps.NetworkLimits{Packets: 10_000_000, NewConnections: 10_000_000, Connections: 10_000_000}
	}
	w.apply()
	for _, ns := range []*nstest.NS{w.host, w.outside, w.guests["alice"], w.guests["bob"]} {
		silent(ns)
	}
	w.sink(w.outside, 9)
	for _, name := range []string{"alice", "bob"} {
		w.sink(w.guests[name], 20002)
		w.sink(w.guests[name], 20022)
	}
	return w
}

// The ways that datagrams go: from a guest out, and in from outside and from
// the host.
func (w *world) out(guest string, total, size int64) {
	w.pour(w.guests[guest], outside+":9", total, size)
}

var ports = map[string]string{"alice": ":20002", "bob": ":20022"}

func (w *world) in(guest string, total, size int64) {
	w.pour(w.outside, public+ports[guest], total, size)
}

func (w *world) fromHost(guest string, total, size int64) {
	w.pour(w.host, map[string]string{"alice": "10.213.0.2:20002", "bob": "10.213.0.3:20022"}[guest], total, size)
}

// within wants that a limit was used up, and that no MiB more passed.
func within(t *testing.T, what string, passed, limit int64) {
	t.Helper()
	if passed < limit || passed > limit+mebi {
		t.Errorf("%s: %d bytes passed of %d, %+d", what, passed, limit, passed-limit)
	}
}

// TestQuotaBlocks: what is left passes, and then nothing, whatever the scope
// and the way to count, though nobody looks after it.
func TestQuotaBlocks(t *testing.T) {
	t.Parallel()
	w := newPoured(t)
	const limit, much, full = 2 * mebi, 4 * mebi, 1442
	guestOf := func(count vps.QuotaCount) vps.NetworkQuota {
		q := quota("guest/alice", limit, "sl-alice")
		q.Count = count
		return q
	}
	tenant, host := quota("tenant/team", limit, "sl-alice", "sl-bob"), quota("host", limit)
	for _, c := range []struct {
		what      string
		quota     vps.NetworkQuota
		pour      func()
		out, in   int64 // what is left through; -1 for all
		outs, ins []string
	}{
		{"guest, out", guestOf(vps.CountBoth), func() { w.out("alice", much, full) }, limit, 0, nil, nil},
		{"guest, in", guestOf(vps.CountBoth), func() { w.in("alice", much, full) }, 0, limit, nil, nil},
		{"guest, from the host", guestOf(vps.CountBoth), func() { w.fromHost("alice", much, full) }, 0, limit, nil, nil},
		{"guest, both", guestOf(vps.CountBoth), func() { w.in("alice", mebi, full); w.out("alice", much, full) }, mebi, mebi, nil, nil},
		{"guest counts in, out", guestOf(vps.CountIn), func() { w.out("alice", much, full) }, -1, 0, nil, nil},
		{"guest counts in, in", guestOf(vps.CountIn), func() { w.in("alice", much, full) }, 0, limit, nil, nil},
		{"guest counts out, out", guestOf(vps.CountOut), func() { w.out("alice", much, full) }, limit, 0, nil, nil},
		{"guest counts the larger", guestOf(vps.CountMax), func() { w.in("alice", mebi, full); w.out("alice", much, full) }, limit, mebi, nil, nil},
		{"small packets", guestOf(vps.CountOut), func() { w.out("alice", much, 1000) }, limit, 0, nil, nil},
		{"tenant", tenant, func() { w.out("alice", mebi, full); w.out("bob", much, full) }, limit, 0, nil, nil},
		{"tenant, another way", tenant, func() { w.out("bob", much, full); w.out("alice", much, full) }, limit, 0, nil, nil},
		{"host", host, func() { w.out("bob", much, full); w.out("alice", much, full) }, limit, 0, nil, nil},
		{"host, in", host, func() { w.in("bob", much, full); w.in("alice", much, full) }, 0, limit, nil, nil},
	} {
		w.setQuotas(nil) // takes away what the last one used
		w.setQuotas(nil, c.quota)
		out, in := w.sent("up0"), w.sent("sl-alice")+w.sent("sl-bob")
		c.pour()
		if c.out < 0 {
			c.out = much
		}
		within(t, c.what+", what left", w.sent("up0")-out, c.out)
		within(t, c.what+", what came", w.sent("sl-alice")+w.sent("sl-bob")-in, c.in)
	}
	// The host's own traffic goes on, and counts.
	w.setQuotas(nil)
	w.setQuotas(nil, host)
	w.pour(w.host, outside+":9", much, full)
	before := w.sent("up0")
	w.out("alice", mebi, full)
	if left := w.sent("up0") - before; left > full {
		t.Errorf("%d bytes of a guest left behind the host's own", left)
	}
	if got := w.ask(w.host, "tcp", outside+":80", hang.After); got != "outside:80 sees "+public {
		t.Errorf("the host's own traffic is cut off: %q", got)
	}
	if got := w.ask(w.guests["bob"], "udp", public+":20001", hang.After); got == "" {
		t.Error("traffic between guests is cut off")
	}
	if w.count(vps.DropQuota) == 0 {
		t.Error("drops are not counted")
	}
}

// TestQuotaAccount plays who counts: reads, adds up and sets again and again,
// by packets of sizes that the kernel's bytes show badly.
func TestQuotaAccount(t *testing.T) {
	t.Parallel()
	w := newPoured(t)
	const limit = 12 * mebi
	q := quota("guest/alice", limit, "sl-alice")
	last, _ := w.traffic()
	read := func() {
		t.Helper()
		var c vps.TrafficCounters
		w.host.Do(func() { c, _ = w.wall.Traffic(t.Context()) })
		l := ledger{}
		for _, row := range c.Links {
			l[fmt.Sprintf("%s %s/%d", row.Link, row.Class, row.Family)] = row.TrafficCount
		}
		sum := l.since(last)["sl-alice internet/4"]
		q.In, q.Out, q.At, last = q.In+sum.InBytes, q.Out+sum.OutBytes, c.At, l
	}
	read()
	before := w.sent("up0")
	for step := range 30 {
		w.setQuotas(nil, q)
		w.out("alice", mebi, 200)
		read()
		w.out("alice", 100*200, 200) // between reading and setting
		if step == 4 {
			w.wall = nft.New(nil, nft.Options{}) // forgets what it knew
			read()
		}
	}
	w.setQuotas(nil, q)
	if q.Out < limit {
		t.Errorf("%d bytes were counted of %d, and nobody sees that it is reached", q.Out, limit)
	}
	within(t, "in the end", w.sent("up0")-before, limit)

	// A lifted limit holds at once, and so does a lowered one.
	q.Block += 2 * mebi
	w.setQuotas(nil, q)
	before = w.sent("up0")
	w.out("alice", 8*mebi, 1442)
	within(t, "topped up", w.sent("up0")-before, q.Block-q.Out)
	read()
	q.Block = q.Out + mebi
	w.setQuotas(nil, q)
	q.Block = mebi
	w.setQuotas(nil, q)
	before = w.sent("up0")
	w.out("alice", mebi, 1442)
	if passed := w.sent("up0") - before; passed > 0 {
		t.Errorf("%d bytes passed a limit that is used up", passed)
	}
}

// TestQuotaThrottle: from a use on each direction has a rate; what waits is
// nobody's, so what passed is compared with the time that it took.
func TestQuotaThrottle(t *testing.T) {
	t.Parallel()
	w := newPoured(t)
	const rate, full = 8_000_000, 1442 // a MB each second
	for _, scope := range []string{"guest/alice", "tenant/team", "host"} {
		q := quota(scope, -1, "sl-alice")
		if scope == "host" {
			q.Links = nil
		}
		q.Throttle, q.Rate = mebi, rate
		for what, c := range map[string]struct {
			pour func(guest string, total, size int64)
			link string
		}{"out": {w.out, "up0"}, "in": {w.in, "sl-alice"}} {
			w.setQuotas(nil)
			w.setQuotas(nil, q)
			before, began := w.sent(c.link), time.Now()
			c.pour("alice", 16*mebi, full)
			passed := w.sent(c.link) - before
			// A bucket is filled for a second and an eighth.
			most := mebi + 256<<10 + int64(1.1*rate/8*(time.Since(began).Seconds()+1.2))
			if passed < mebi+500_000 || passed > most {
				t.Errorf("%s %s: %d bytes passed, want at most %d", scope, what, passed, most)
			}
		}
	}
}

// TestSuspend: nothing of IP passes a suspended link, old connections neither,
// but neighbours are still found.
func TestSuspend(t *testing.T) {
	t.Parallel()
	w := newWorld6(t, false, nil)
	w.serve(w.outside, "outside", 80)
	w.serve(w.guests["alice"], "alice", 20001)
	w.guests["alice"].Exec("ip", "addr", "add", "10.213.0.2/32", "dev", "eth0")
	w.guests["alice"].Exec("ip", "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
	var conn net.Conn
	w.guests["alice"].Do(func() {
		var err error
		if conn, err = net.Dial("tcp4", outside+":80"); err != nil {
			t.Error(err)
		}
	})
	if conn == nil {
		t.FailNow()
	}
	defer func() { _ = conn.Close() }()
	hello := func(patience time.Duration) string {
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = fmt.Fprintln(conn, "hello")
		buffer := make([]byte, 100)
		n, _ := conn.Read(buffer)
		return string(buffer[:n])
	}
	if hello(hang.After) == "" {
		t.Fatal("the connection does not work")
	}
	own6 := vps.Address6(w.network.Guests[0].Prefix6).String()
	ping := func() error {
		_, err := w.host.Try("busybox", "ping", "-6", "-c1", "-W2", own6)
		return err
	}
	if err := ping(); err != nil {
		t.Fatal(err)
	}
	w.setQuotas([]string{"sl-alice"})
	if got := hello(300 * time.Millisecond); got != "" {
		t.Errorf("an old connection heard %q", got)
	}
	if got := w.ask(w.outside, "udp", public+":20001", 300*time.Millisecond); got != "" {
		t.Errorf("the outside heard %q", got)
	}
	if got := w.ask(w.host, "udp", "10.213.0.2:20001", 300*time.Millisecond); got != "" {
		t.Errorf("the host heard %q", got)
	}
	if ping() == nil {
		t.Error("a ping was answered")
	}
	alice := w.guests["alice"]
	for _, to := range []string{gateway, vps.Gateway6.String() + "%eth0"} {
		alice.Exec("ip", "neigh", "flush", "dev", "eth0")
		if out, err := alice.Try("busybox", "ping", "-c1", "-W1", to); err == nil {
			t.Errorf("the gateway %s answered: %s", to, out)
		}
		to, _, _ = strings.Cut(to, "%")
		if seen := alice.Exec("ip", "neigh", "show", to, "dev", "eth0"); !strings.Contains(seen, hostMAC.String()) {
			t.Errorf("the guest does not find its neighbour %s: %q", to, seen)
		}
	}
	if w.count(vps.DropQuota) == 0 {
		t.Error("drops are not counted")
	}
	w.setQuotas(nil)
	if hello(hang.After) == "" {
		t.Error("the connection did not come back")
	}
	if err := ping(); err != nil {
		t.Error(err)
	}
}

// TestQuotaBridge: the same for ports of a bridge.
func TestQuotaBridge(t *testing.T) {
	t.Parallel()
	s := newBridge(t, func(n *vps.Network) { n.Guests[0].Limits.Packets = 10_000_000 })
	s.bridgeCalls("0")
	a := s.actor
	packet := ether(outsideMAC, a.MAC, typeIPv4, packet4{from: a.Address, to: outside4, proto: protoUDP}.of(udp(a.Address, outside4, 1, 9, make([]byte, 1400))))
	ask := ether(outsideMAC, a.MAC, typeARP, arp(1, a.MAC, a.Address, outside4))
	heard := func(frames ...[]byte) int {
		out, _ := s.play(frames...)
		return len(out)
	}
	many := make([][]byte, 1000)
	for i := range many {
		many[i] = packet
	}
	for _, q := range []vps.NetworkQuota{quota("guest/alice", mebi/2, a.Link), quota("tenant/team", mebi/2, a.Link, "sl-bob"), quota("host", mebi)} {
		s.setQuotas(nil)
		s.setQuotas(nil, q)
		before := s.sent("up0")
		for some := range slices.Chunk(many, 100) {
			s.act(some...)
			drained(t)
		}
		s.public.forget()
		limit := min(q.Block, mebi/2) // half of the host's is held for routed guests
		within(t, q.ID, s.sent("up0")-before, limit)
	}
	s.setQuotas(nil)
	if got := heard(packet, ask); got != 2 {
		t.Errorf("without quotas %d frames were heard, want 2", got)
	}
	s.setQuotas([]string{a.Link})
	s.act(packet, ask)
	s.answer(ether(everybody, outsideMAC, typeARP, arp(1, outsideMAC, outside4, outside4)))
	s.setQuotas(nil)
	if got := heard(); got != 1 {
		t.Errorf("of a suspended guest %d frames were heard, want its ARP", got)
	}
}

// forget throws away what was heard.
func (e *ear) forget() {
	buffer := make([]byte, 1<<16)
	for {
		if _, _, err := unix.Recvfrom(e.fd, buffer, unix.MSG_DONTWAIT); err == unix.EAGAIN {
			return
		}
	}
}

// TestQuotasAreFree: what is there is not written again, also by a process
// without memory; what is gone or changed is.
func TestQuotasAreFree(t *testing.T) {
	t.Parallel()
	w := newPoured(t)
	w.traffic()
	q, r := quota("guest/alice", 100*mebi, "sl-alice"), quota("tenant/team", 100*mebi, "sl-bob")
	r.Throttle, r.Rate, r.Count = 50*mebi, 1_000_000, vps.CountMax
	set := func() { w.setQuotas([]string{"sl-bob"}, q, r, quota("host", 1000*mebi)) }
	w.setQuotas(nil) // nothing to hold, and nothing there
	if tables := w.host.Exec("nft", "list", "tables"); strings.Contains(tables, "sublet-quota") {
		t.Errorf("tables that hold nothing: %s", tables)
	}
	set()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed, err := w.wall.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set()
	w.wall = nft.New(nil, nft.Options{})
	set()
	w.traffic()
	set()
	w.apply()
	set()
	select {
	case <-changed:
		t.Error("equal quotas changed the ruleset")
	default:
	}
	listing := w.host.Exec("nft", "-s", "list", "table", "inet", "sublet-quota")
	for what, do := range map[string]func(){
		"all rules flushed":     func() { w.host.Exec("nft", "flush", "ruleset") },
		"a table deleted":       func() { w.host.Exec("nft", "delete", "table", "inet", "sublet-quota") },
		"the other deleted":     func() { w.host.Exec("nft", "delete", "table", "bridge", "sublet-quota") },
		"a chain flushed":       func() { w.host.Exec("nft", "flush", "chain", "inet", "sublet-quota", "count_out") },
		"an element taken away": func() { w.host.ExecInput("delete element inet sublet-quota out { \"sl-bob\" }\n", "nft", "-f", "-") },
		"a quota set by hand": func() {
			w.host.ExecInput("add quota inet sublet-quota block.guest.alice { over 999999999999 bytes ; }\n", "nft", "-f", "-")
		},
		"nothing, but a restart": func() { w.wall = nft.New(nil, nft.Options{}) },
	} {
		do()
		set()
		if got := w.host.Exec("nft", "-s", "list", "table", "inet", "sublet-quota"); got != listing {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, listing)
		}
	}
	w.traffic()
	w.host.Exec("nft", "flush", "ruleset")
	w.apply()
	if got := w.host.Exec("nft", "-s", "list", "table", "inet", "sublet-quota"); got != listing {
		t.Errorf("after an Apply:\n%s\nwant\n%s", got, listing)
	}
	if tables := w.host.Exec("nft", "list", "tables"); !strings.Contains(tables, "sublet-traffic") {
		t.Errorf("an Apply brought back no more than %s", tables)
	}
	w.setQuotas(nil)
	if got := w.host.Exec("nft", "list", "table", "inet", "sublet-quota"); strings.Contains(got, "hook") {
		t.Errorf("without quotas packets meet %s", got)
	}
}

// TestQuotasRefused: bad input is refused with a reason, and changes nothing.
func TestQuotasRefused(t *testing.T) {
	t.Parallel()
	nstest.New(t)
	wall := nft.New(nil, nft.Options{})
	good := quota("guest/alice", mebi, "sl-alice")
	change := func(do func(q *vps.NetworkQuota)) []vps.NetworkQuota {
		q := good
		do(&q)
		return []vps.NetworkQuota{q}
	}
	for what, c := range map[string]struct {
		quotas             []vps.NetworkQuota
		suspended, uplinks []string
		code               vps.Code
	}{
		"a strange name":     {change(func(q *vps.NetworkQuota) { q.ID = "guest/a\" } flush ruleset" }), nil, nil, vps.CodeInvalid},
		"another scope":      {change(func(q *vps.NetworkQuota) { q.Scope = vps.QuotaTenant }), nil, nil, vps.CodeInvalid},
		"a strange link":     {change(func(q *vps.NetworkQuota) { q.Links = []string{"sl-\""} }), nil, nil, vps.CodeInvalid},
		"no guest's link":    {change(func(q *vps.NetworkQuota) { q.Links = []string{"eth0"} }), nil, nil, vps.CodeInvalid},
		"no rate":            {change(func(q *vps.NetworkQuota) { q.Throttle = 5 }), nil, nil, vps.CodeInvalid},
		"twice":              {[]vps.NetworkQuota{good, good}, nil, nil, vps.CodeConflict},
		"a link of two":      {[]vps.NetworkQuota{good, quota("guest/bob", 1, "sl-alice")}, nil, nil, vps.CodeConflict},
		"suspending no link": {nil, []string{"up0"}, nil, vps.CodeInvalid},
		"a guest's uplink":   {nil, nil, []string{"sl-alice"}, vps.CodeInvalid},
	} {
		err := wall.SetQuotas(t.Context(), c.quotas, c.suspended, c.uplinks)
		if vps.ErrorCode(err) != c.code {
			t.Errorf("%s: got %v, want %s", what, err, c.code)
		}
	}
	tables, err := wall.Drops(t.Context())
	if err != nil || len(tables) != 0 {
		t.Errorf("got %v, %v", tables, err)
	}
}

// BenchmarkQuotas sets the quotas of all guests and of ten tenants: when they
// are new, when a sample was taken and nothing is off, and when all have moved.
func BenchmarkQuotas(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, n vps.Network) func() error {
		b.Helper()
		nstest.New(b)
		wall := nft.New(nil, nft.Options{})
		var quotas []vps.NetworkQuota
		tenants := map[int][]string{}
		for i, g := range n.Guests {
			q := quota(fmt.Sprintf("guest/g%d", i), 500<<30, g.Link)
			q.Throttle, q.Rate = 400<<30, 1_000_000
			quotas = append(quotas, q)
			tenants[i%10] = append(tenants[i%10], g.Link)
		}
		for i, links := range tenants {
			quotas = append(quotas, quota(fmt.Sprintf("tenant/t%d", i), 5000<<30, links...))
		}
		began, steps := cpu(b), 0
		b.Cleanup(func() {
			b.ReportMetric(float64((cpu(b)-began).Microseconds())/1000/float64(max(steps, 1)), "cpu-ms/op")
		})
		return func() error {
			steps++
			c, err := wall.Traffic(b.Context())
			if err != nil {
				return err
			}
			for i := range quotas {
				quotas[i].At = c.At
			}
			return wall.SetQuotas(b.Context(), quotas, nil, uplinks)
		}
	})
}
