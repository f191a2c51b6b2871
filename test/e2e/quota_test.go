package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestQuota uses up a guest's quota, with one connection under it that goes on
// through all of it.
func TestQuota(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	before := listeners(h)
	h.Start()
	h.Sublet("tenant", "add", "bob")
	h.Sublet("create", "alice", "--tenant", "bob", "--memory", "192MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
	q := &quotaLab{Host: h, link: "sl-alice", port: h.Show("alice").Spec.Ports.First}
	q.serve(t)
	q.notices(t)

	// No subtests: another goroutine would be outside of the host's network.
	q.cannotBeOutrun(t)
	q.isToldOnce(t)
	q.isToppedUp(t)
	q.throttles(t)
	q.stops(t)
	q.hasMetrics(t)
	h.Sublet("stop", "alice")
	q.agreesWithMetrics(t)
	q.hasPages(t, before)
	q.leavesNoMetrics(t)
}

type quotaLab struct {
	*lab.Host
	link  string
	port  int // leads to the guest's SSH server
	sinks *sinks
	// received is the payload that came from the guest, and connections how many
	// it has opened.
	received, connections atomic.Int64
}

// quotaPort is where the stranger sends and receives as much as passes.
const quotaPort = 9100

// serve has the stranger send and receive as much as passes.
func (q *quotaLab) serve(t *testing.T) {
	t.Helper()
	var listener net.Listener
	q.Outside.Do(func() {
		var err error
		if listener, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", lab.StrangerAddress, quotaPort)); err != nil {
			t.Error(err)
		}
	})
	if listener == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			q.connections.Add(1)
			go func() {
				for buffer := make([]byte, 64<<10); err == nil; {
					_, err = conn.Write(buffer)
				}
			}()
			go func() {
				defer conn.Close() //nolint:errcheck // the guest has gone
				_, _ = io.Copy(payload{&q.received}, conn)
			}()
		}
	}()
}

// notices has the stranger take them, for the owner and for alice's tenant.
func (q *quotaLab) notices(t *testing.T) {
	t.Helper()
	const hooks, mail = lab.StrangerAddress + ":9200", lab.StrangerAddress + ":9225"
	q.sinks = startSinks(t, q.Outside, hooks, mail)
	q.Sublet("host", "set", "--webhook", "http://"+hooks+"/owner", "--allow-private-webhooks",
		"--email", "owner@example.org", "--mail-from", "sublet@example.org", "--smtp-server", mail, "--smtp-tls", "none")
	q.Sublet("tenant", "set", "bob", "--webhook", "http://"+hooks+"/bob", "--email", "bob@example.org")
	for path, args := range map[string][]string{"/owner": nil, "/bob": {"--tenant", "bob"}} {
		text := q.Sublet(append([]string{"notice", "secret"}, args...)...)
		secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
		if err != nil || len(secret) == 0 {
			t.Fatalf("%s has the secret %q: %v", path, text, err)
		}
		q.sinks.secret[path] = secret
	}
}

type payload struct{ n *atomic.Int64 }

func (c payload) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// stream has the guest open a connection that takes all it can get both ways.
func (q *quotaLab) stream(t *testing.T) {
	t.Helper()
	before := q.connections.Load()
	// By its port, which needs no daemon.
	q.SSHFrom(q.Outside, q.port, fmt.Sprintf("setsid bash -c 'exec 3<>/dev/tcp/%s/%d; cat <&3 >/dev/null & cat /dev/zero >&3' >/dev/null 2>&1 </dev/null &", lab.StrangerAddress, quotaPort))
	q.Eventually("the guest has connected", func() bool { return q.connections.Load() > before })
}

// passed are the bytes of frames that passed a link of the host: as the guest
// sees it, in and out.
func (q *quotaLab) passed(t *testing.T, link, counter string) int64 {
	t.Helper()
	text, err := os.ReadFile("/sys/class/net/" + link + "/statistics/" + counter)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// still waits until nothing comes from the guest any more.
func (q *quotaLab) still() {
	const pause = 3 * time.Second // longer than a slow guest does nothing
	last, since := q.received.Load(), time.Now()
	q.Eventually("nothing passes any more", func() bool {
		if now := q.received.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > pause
	})
}

// quotaUse is what the daemon says of a quota.
type quotaUse struct {
	Used   int64  `json:"used"`
	Limit  int64  `json:"limit"`
	Action string `json:"action"`
}

func (q *quotaLab) use(t *testing.T) quotaUse {
	t.Helper()
	var use quotaUse
	if err := json.Unmarshal([]byte(q.Sublet("quota", "show", "alice", "-o", "json")), &use); err != nil {
		t.Fatal(err)
	}
	return use
}

const mib = 1 << 20

// cannotBeOutrun: the kernel holds the limit without a daemon.
func (q *quotaLab) cannotBeOutrun(t *testing.T) {
	t.Helper()
	t.Log("with the daemon dead")
	const limit, overshoot = 40 * mib, 1 * mib
	q.Sublet("quota", "set", "alice", "--month", "40MiB", "--at", "50%=notify", "--at", "100%=suspend-network")
	q.Kill()
	q.stream(t)
	q.still()
	in, out := q.passed(t, q.link, "tx_bytes"), q.received.Load()
	if in+out > limit+overshoot || in+out < limit/2 {
		t.Errorf("%d bytes to the guest and %d from it passed under a limit of %d", in, out, int64(limit))
	}
	q.Start()
	q.Eventually("the daemon knows it", func() bool { return q.Show("alice").Status.Restraint.Action == "suspend-network" })
	if use := q.use(t); use.Used < limit || use.Used > limit+overshoot || use.Action != "suspend-network" {
		t.Errorf("%d of %d bytes are used, and %q is in force", use.Used, use.Limit, use.Action)
	}
	t.Logf("overshoot: %d bytes", q.use(t).Used-limit)
	if list := q.Sublet("list"); !strings.Contains(list, "running: suspended") {
		t.Errorf("list does not say so:\n%s", list)
	}
}

// isToldOnce: however often the daemon is killed, and although each webhook
// fails at first.
func (q *quotaLab) isToldOnce(t *testing.T) {
	t.Helper()
	for range 3 {
		q.Kill()
		q.Start()
		q.Eventually("the plan is empty", q.Settled)
	}
	events := q.Sublet("events", "alice")
	for _, step := range []string{"50% of the quota", "100% of the quota"} {
		if n := strings.Count(events, step); n != 1 {
			t.Errorf("%q was told %d times:\n%s", step, n, events)
		}
	}
	q.Eventually("no notice waits", func() bool { return q.Sublet("notice", "list", "-o", "name") == "" })
	want := map[string]int{}
	for _, to := range []string{"webhook /owner", "webhook /bob", "mail owner@example.org", "mail bob@example.org"} {
		for _, step := range []string{" 50%", " 100%"} {
			want[to+step] = 1
		}
	}
	counts, wrong, refused := q.sinks.came()
	if !maps.Equal(counts, want) || len(wrong) > 0 || refused != 2 {
		t.Errorf("notices: %v, want %v; %d paths refused the first; wrong are %q", counts, want, refused, wrong)
	}
}

// isToppedUp: what waits in the connection passes at once.
func (q *quotaLab) isToppedUp(t *testing.T) {
	t.Helper()
	t.Log("topped up")
	before := q.received.Load()
	q.Sublet("quota", "topup", "alice", "100GiB")
	q.Eventually("the connection goes on", func() bool { return q.received.Load() > before+mib })
	if r := q.Show("alice").Status.Restraint.Action; r != "" {
		t.Errorf("it is still restrained: %s", r)
	}
}

// throttles the connection in both directions, and lets it go.
func (q *quotaLab) throttles(t *testing.T) {
	t.Helper()
	t.Log("throttled")
	const bits, rate = 8, 4e6
	q.Sublet("quota", "remove", "alice")
	q.Sublet("quota", "set", "alice", "--month", "1MiB", "--at", "100%=throttle:4Mbit")
	q.Eventually("list says so", func() bool { return strings.Contains(q.Sublet("list"), "running: throttled") })
	for _, way := range []struct{ what, link string }{{"to the guest", q.link}, {"from the guest", "sb-alice"}} {
		percent := 0.0
		q.Eventually("it is within 5 % of the rate "+way.what, func() bool {
			const window = 2 * time.Second
			begin, start := q.passed(t, way.link, "tx_bytes"), time.Now()
			<-time.After(window)
			percent = 100 * float64(q.passed(t, way.link, "tx_bytes")-begin) * bits / time.Since(start).Seconds() / rate
			return percent > 95 && percent < 105
		})
		t.Logf("%s: %.1f %% of the rate", way.what, percent)
	}
	q.Sublet("quota", "lift", "alice")
	q.Eventually("it is as fast as before", func() bool {
		begin, start := q.received.Load(), time.Now()
		<-time.After(time.Second)
		return float64(q.received.Load()-begin)*bits/time.Since(start).Seconds() > 3*rate
	})
	if n := q.connections.Load(); n != 1 {
		t.Errorf("it took %d connections", n)
	}
}

// stops the guest, keeps it stopped, and starts it again.
func (q *quotaLab) stops(t *testing.T) {
	t.Helper()
	t.Log("stopped")
	q.Sublet("quota", "remove", "alice")
	q.Sublet("quota", "set", "alice", "--month", "1MiB", "--at", "100%=stop")
	q.Sublet("wait", "alice", "--for", "stopped", "--timeout", hang.After.String())
	q.Kill()
	q.Start()
	for _, order := range [][]string{{"start", "alice"}, {"restart", "alice"}, {"wait", "alice", "--for", "running"}} {
		if r := q.Try(order...); r.Code != 5 || !strings.Contains(r.Stderr, "guest/alice") {
			t.Errorf("%v ends with %d: %s", order, r.Code, r.Stderr)
		}
	}
	if g := q.Show("alice"); g.Status.State != "stopped" || g.Status.Exit == nil || g.Status.Exit.Reason != "power-off" || g.Spec.Power != "running" {
		t.Errorf("it is %+v, and is to be %s", g.Status, g.Spec.Power)
	}
	if list := q.Sublet("list"); !strings.Contains(list, "stopped: quota") {
		t.Errorf("list does not say so:\n%s", list)
	}
	q.Sublet("quota", "lift", "alice")
	q.Sublet("wait", "alice", "--for", "ssh", "--timeout", hang.After.String())
	if boots := strings.Count(q.Sublet("events", "alice"), "no quota stops it any more"); boots != 1 {
		t.Errorf("it was started again %d times", boots)
	}
}
