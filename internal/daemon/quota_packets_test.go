package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/internal/hostnet"
	"sublet/internal/nft"
	"sublet/internal/nstest"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// packetWorld is a host with the real kernel's counters, quotas and links. Its
// guest is a network behind the tap, with one connection to a stranger that
// takes all it can get in both directions.
type packetWorld struct {
	*quotaWorld
	ns, outside, guest *nstest.NS

	links   *hostnet.Net
	wall    *nft.Firewall
	traffic *sampler
	// in and out are the payload that got through, as the guest sees it.
	in, out atomic.Int64
}

const (
	uplink, hostAddress, strangerAddress = "up0", "198.51.100.2/24", "198.51.100.1"
	hostAddress6, strangerAddress6       = "2001:db8:5::2/64", "2001:db8:5::1"
)

func newPacketWorld(t *testing.T) *packetWorld {
	t.Helper()
	w := &packetWorld{ns: nstest.New(t), quotaWorld: newQuotaWorld(t, "100%=notify")}
	w.outside = w.ns.Peer()
	w.ns.Veth(uplink, w.outside, "eth0")
	w.ns.Exec("ip", "addr", "add", hostAddress, "dev", uplink)
	w.ns.Exec("ip", "route", "add", "default", "via", strangerAddress)
	w.outside.Exec("ip", "addr", "add", strangerAddress+"/24", "dev", "eth0")
	w.ns.Exec("ip", "addr", "add", hostAddress6, "dev", uplink, "nodad")
	w.ns.Exec("ip", "route", "add", "default", "via", strangerAddress6)
	w.outside.Exec("ip", "addr", "add", strangerAddress6+"/64", "dev", "eth0", "nodad")
	w.born()
	w.plug()
	return w
}

// born starts the daemon, as it were: it remembers nothing of the one before.
func (w *packetWorld) born() {
	w.t.Helper()
	w.wall = nft.New(nil, nft.Options{})
	w.links = hostnet.New(nil, hostnet.Options{Guard: w.wall.Guard})
	w.restart()
	w.clock = time.Now()
	w.enforcer.now = time.Now
	w.enforcer.kernel, w.enforcer.loop = w.wall, w
	w.enforcer.uplinks = func(context.Context, string) ([]string, error) { return []string{uplink}, nil }
	w.traffic = &sampler{kernel: w.wall, uplinks: w.links, db: w.db, boot: "boot", log: w.log}
	w.Kick()
}

// Kick is a pass of the loop, as far as the network goes.
func (w *packetWorld) Kick() {
	w.t.Helper()
	loaded := time.Now()
	host, err := restrained{w.state, w.enforcer}.Host(w.t.Context())
	w.must(err)
	n := host.Network(nil)
	n.Uplink = uplink
	w.must(w.wall.Apply(w.t.Context(), n, []string{uplink}))
	w.must(w.links.Set(w.t.Context(), n))
	w.snapshot = reconcile.Snapshot{Host: host, Loaded: loaded, At: time.Now()}
}

func (w *packetWorld) Snapshot() (reconcile.Snapshot, <-chan struct{}) { return w.snapshot, nil }

// sampled takes a sample after an edit.
func (w *packetWorld) sampled() {
	w.t.Helper()
	w.touch()
	w.must(w.count(w.t.Context(), w.traffic.sample))
}

// plug joins the guest's network with its tap, as a guest's kernel does.
func (w *packetWorld) plug() {
	w.t.Helper()
	w.guest = w.ns.Peer()
	g := w.alice()
	w.guest.Exec("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0") // addresses are there at once
	w.guest.Exec("ip", "tuntap", "add", "eth0", "mode", "tap", "vnet_hdr")
	near, err := w.ns.OpenTap(g.Link(), 0, unix.IFF_VNET_HDR)
	w.must(err)
	far, err := w.guest.OpenTap("eth0", 0, unix.IFF_VNET_HDR)
	w.must(err)
	w.guest.Exec("ip", "link", "set", "eth0", "address", g.Spec.MAC().String(), "up")
	w.guest.Exec("ip", "addr", "add", g.Spec.Address.String()+"/32", "dev", "eth0")
	w.guest.Exec("ip", "route", "add", "default", "via", vps.DefaultSettings().Gateway().String(), "dev", "eth0", "onlink")
	settings := vps.DefaultSettings()
	own := vps.Address6(settings.Prefix6(&g.Spec)).String()
	w.guest.Exec("ip", "addr", "add", own+"/128", "dev", "eth0", "nodad")
	w.guest.Exec("ip", "-6", "route", "add", "default", "via", vps.Gateway6.String(), "dev", "eth0", "src", own)
	nstest.Carry(near, far)
}

// stranger is an address outside, in a network of TCP or UDP.
func stranger(network string) string {
	if strings.HasSuffix(network, "6") {
		return net.JoinHostPort(strangerAddress6, "9000")
	}
	return net.JoinHostPort(strangerAddress, "9000")
}

// connect opens the connection, over tcp4 or tcp6.
func (w *packetWorld) connect(network string) {
	w.t.Helper()
	var listener net.Listener
	var dialled net.Conn
	w.outside.Do(func() {
		var err error
		if listener, err = net.Listen(network, stranger(network)); err != nil {
			w.t.Error(err)
		}
	})
	w.guest.Do(func() {
		var err error
		if dialled, err = net.DialTimeout(network, stranger(network), hang.After); err != nil {
			w.t.Error(err)
		}
	})
	if w.t.Failed() {
		w.t.FailNow()
	}
	accepted, err := listener.Accept()
	w.must(err)
	for _, end := range []struct {
		conn net.Conn
		n    *atomic.Int64
	}{{dialled, &w.in}, {accepted, &w.out}} {
		w.t.Cleanup(func() { _ = end.conn.Close() })
		go func() {
			var err error
			for buffer := make([]byte, 16<<10); err == nil; {
				_, err = end.conn.Write(buffer)
			}
		}()
		go func() { _, _ = io.Copy(payload{end.n}, end.conn) }()
	}
	w.t.Cleanup(func() { _ = listener.Close() })
}

// flood has the guest send datagrams as fast as it can, over udp4 or udp6.
func (w *packetWorld) flood(network string) {
	w.t.Helper()
	var sink net.PacketConn
	var source net.Conn
	w.outside.Do(func() {
		var err error
		if sink, err = net.ListenPacket(network, stranger(network)); err != nil {
			w.t.Error(err)
		}
	})
	w.guest.Do(func() {
		var err error
		if source, err = net.Dial(network, stranger(network)); err != nil {
			w.t.Error(err)
		}
	})
	if w.t.Failed() {
		w.t.FailNow()
	}
	w.t.Cleanup(func() { _, _ = source.Close(), sink.Close() })
	go func() {
		for buffer := make([]byte, 1<<16); ; {
			n, _, err := sink.ReadFrom(buffer)
			if err != nil {
				return
			}
			w.out.Add(int64(n))
		}
	}()
	go func() {
		const size = 1200
		for buffer := make([]byte, size); ; {
			if _, err := source.Write(buffer); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
}

type payload struct{ n *atomic.Int64 }

func (p payload) Write(b []byte) (int, error) {
	p.n.Add(int64(len(b)))
	return len(b), nil
}

// eventually waits for something, for as long as a slow machine may take.
func (w *packetWorld) eventually(what string, ok func() bool) {
	w.t.Helper()
	const patience, pause = hang.After, 20 * time.Millisecond
	for deadline := time.Now().Add(patience); !ok(); <-time.After(pause) {
		if time.Now().After(deadline) {
			w.t.Fatalf("it did not come to this: %s", what)
		}
	}
}

// moves waits until so many bytes more have passed in each direction.
func (w *packetWorld) moves(bytes int64) {
	w.t.Helper()
	in, out := w.in.Load()+bytes, w.out.Load()+bytes
	w.eventually(fmt.Sprintf("%d bytes pass in each direction", bytes), func() bool { return w.in.Load() > in && w.out.Load() > out })
}

// stalls waits until nothing passes any more.
func (w *packetWorld) stalls() {
	w.t.Helper()
	last, since := int64(-1), time.Now()
	w.eventually("nothing passes", func() bool {
		if now := w.in.Load() + w.out.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > time.Second
	})
}

// TestQuotaPackets has one connection go through all that a quota does.
func TestQuotaPackets(t *testing.T) {
	t.Parallel()
	const mib = int64(vps.MiB)
	w := newPacketWorld(t)
	w.limit(48*vps.MiB, "50%=notify", "100%=suspend-network")
	w.sampled()

	// The limit is held while nobody looks.
	w.connect("tcp4")
	w.stalls()
	if passed := w.in.Load() + w.out.Load(); passed > 49*mib || passed < 40*mib {
		t.Errorf("%d bytes of payload passed under a limit of 48 MiB", passed)
	}
	for range 3 { // daemons
		w.born()
		w.sampled()
	}
	// What the kernel held may be a little less than the limit, since it counts
	// packets and not frames: then the rest passes first.
	w.eventually("the limit is reached", func() bool {
		w.sampled()
		return w.current()[0].Use.Used >= 48*mib
	})
	use := w.current()[0].Use
	if use.Used < 48*mib || use.Used > 49*mib || use.Action != vps.ActionSuspend {
		t.Errorf("%d bytes are used, and %q is in force", use.Used, use.Action)
	}
	t.Logf("overshoot: %d bytes", use.Used-48*mib)
	events, err := w.db.Events(t.Context(), sqlite.EventQuery{})
	w.must(err)
	for _, step := range []string{"50% of the quota", "100% of the quota"} {
		told := 0
		for _, ev := range events {
			if strings.Contains(ev.Message, step) {
				told++
			}
		}
		if told != 1 {
			t.Errorf("%q was told %d times", step, told)
		}
	}

	// More of it, and what waited passes.
	_, err = w.state.TopUpQuota(t.Context(), vps.QuotaGuest, "alice", vps.TiB, false)
	w.must(err)
	w.sampled()
	w.moves(mib)

	// A throttle of what goes on, first by the kernel and then by the link.
	w.limit(vps.MiB, "100%=throttle:2Mbit")
	w.sampled()
	w.sampled()
	if w.unshaped {
		t.Error("the link is not shaped")
	}
	for what, n := range map[string]*atomic.Int64{"to the guest": &w.in, "from the guest": &w.out} {
		t.Logf("throttled %s: %.1f %% of the rate", what, w.rate(what, n, 2*vps.Mbit))
	}
	_, err = w.state.LiftQuota(t.Context(), vps.QuotaGuest, "alice", true, false)
	w.must(err)
	w.sampled()
	w.moves(8 * mib)
}

// TestQuotaHoldsAll: the kernel holds a limit against whatever is sent, while
// nobody looks.
func TestQuotaHoldsAll(t *testing.T) {
	t.Parallel()
	const limit, most = 4 * int64(vps.MiB), 5 * int64(vps.MiB)
	for network, start := range map[string]func(*packetWorld, string){
		"tcp6": (*packetWorld).connect, "udp6": (*packetWorld).flood, "udp4": (*packetWorld).flood,
	} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			w := newPacketWorld(t)
			w.limit(vps.Bytes(limit), "100%=suspend-network")
			w.sampled()
			start(w, network)
			w.stalls()
			if passed := w.in.Load() + w.out.Load(); passed > most || passed == 0 {
				t.Errorf("%d bytes of payload passed under a limit of 4 MiB", passed)
			}
			w.born()
			w.eventually("the limit is reached", func() bool {
				w.sampled()
				return w.current()[0].Use.Used >= limit
			})
			if use := w.current()[0].Use; use.Used > most || use.Action != vps.ActionSuspend {
				t.Errorf("%d bytes are used, and %q is in force", use.Used, use.Action)
			}
			t.Logf("overshoot: %d bytes", w.current()[0].Use.Used-limit)
		})
	}
}

// TestQuotaHoldsWhatItCounts: whatever a quota counts, and whosever it is, the
// kernel holds it against a connection at full speed in both directions.
func TestQuotaHoldsWhatItCounts(t *testing.T) {
	t.Parallel()
	const limit = 8 * vps.MiB
	for _, tt := range []struct {
		scope vps.QuotaScope
		name  string
		count vps.QuotaCount
	}{
		{vps.QuotaGuest, "alice", vps.CountIn},
		{vps.QuotaGuest, "alice", vps.CountOut},
		{vps.QuotaGuest, "alice", vps.CountMax},
		{vps.QuotaTenant, vps.DefaultTenant, vps.CountBoth},
		{vps.QuotaHost, "", vps.CountBoth},
		{vps.QuotaHost, "", vps.CountMax},
	} {
		t.Run(strings.TrimSpace(string(tt.scope)+" "+string(tt.count)), func(t *testing.T) {
			t.Parallel()
			w := newPacketWorld(t)
			// What is on its way to the host counts for it, though it is dropped there.
			w.outside.Exec("sysctl", "-q", "-w", "net.ipv4.tcp_wmem=4096 16384 262144")
			_, err := w.state.SetQuota(t.Context(), tt.scope, tt.name, func(q vps.Quota) (vps.Quota, error) {
				q.Limit, q.Count = limit, tt.count
				q.Steps = []vps.QuotaStep{{Percent: 100, Action: vps.ActionSuspend}}
				return q, nil
			}, false)
			w.must(err)
			w.sampled()
			use := func() vps.QuotaUse {
				for _, s := range w.current() {
					if s.Use.Quota.Scope == tt.scope && s.Use.Limit == int64(limit) {
						return s.Use
					}
				}
				t.Fatalf("no such quota in %+v", w.current())
				return vps.QuotaUse{}
			}
			w.connect("tcp4")
			w.stalls()
			w.eventually("the limit is reached", func() bool {
				w.sampled()
				return use().Used >= int64(limit)
			})
			over := use().Used - int64(limit)
			t.Logf("overshoot: %d bytes", over)
			if over > int64(vps.MiB) {
				t.Errorf("%d bytes passed beyond the limit", over)
			}
		})
	}
}

// TestQuotaSetAmidTraffic sets a quota while all that a connection can take
// passes: it is held as exactly as one that was there before.
func TestQuotaSetAmidTraffic(t *testing.T) {
	t.Parallel()
	const mib, more = int64(vps.MiB), 256 * vps.MiB
	w := newPacketWorld(t)
	w.connect("tcp4")
	w.moves(8 * mib)
	w.sampled()
	limit := vps.Bytes(w.current()[0].Use.Used) + more
	w.limit(limit, "100%=suspend-network")
	for w.touch(); len(w.edited) > 0; { // as watch does
		<-w.edited
		w.must(w.count(t.Context(), w.traffic.sample))
	}
	w.stalls()
	w.eventually("the limit is reached", func() bool {
		w.sampled()
		return w.current()[0].Use.Used >= int64(limit)
	})
	over := w.current()[0].Use.Used - int64(limit)
	if over > mib {
		t.Errorf("%d bytes passed beyond the limit", over)
	}
	t.Logf("overshoot: %d bytes", over)
}

// limit sets alice's quota.
func (w *packetWorld) limit(limit vps.Bytes, steps ...string) {
	w.t.Helper()
	w.quota(steps...)
	_, err := w.state.SetQuota(w.t.Context(), vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) {
		q.Limit, q.Topup, q.TopupMonth = limit, 0, ""
		return q, nil
	}, false)
	w.must(err)
}

// rate returns how fast the payload of one direction comes, with its headers,
// in percent of a rate. What waited at the old rate comes first, and on a busy
// machine a window may pass in which little comes; so the first one that fits
// counts.
func (w *packetWorld) rate(what string, n *atomic.Int64, want vps.BitRate) (percent float64) {
	w.t.Helper()
	// A full packet, and what of it is payload: IPv4, TCP with timestamps.
	const packet, payload, bits, window = 1500.0, 1500 - 20 - 32, 8, 2 * time.Second
	w.eventually("the rate "+what+" is within 5 % of "+want.String(), func() bool {
		begin, start := n.Load(), time.Now()
		<-time.After(window)
		percent = 100 * float64(n.Load()-begin) * bits * packet / payload / time.Since(start).Seconds() / float64(want)
		return percent > 95 && percent < 105
	})
	return percent
}
