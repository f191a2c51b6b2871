package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// webServer answers each request with the guest's name. Each connection has a
// process of its own. Of what a small Debian has, perl can do that.
const webServer = `cat >/root/web <<'E'
use IO::Socket::INET;
$SIG{CHLD} = 'IGNORE';
my $l = IO::Socket::INET->new(LocalPort => 80, Listen => 512, ReuseAddr => 1) or die $!;
while (1) {
	my $c = $l->accept or next;
	if (!fork) {
		while (my $q = <$c>) {
			while (<$c> !~ /^\r?$/) {}
			print $c "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nalice";
			$c->flush;
		}
		exit;
	}
	close $c;
}
E
cat >/etc/systemd/system/web.service <<'E'
[Service]
ExecStart=perl /root/web
[Install]
WantedBy=multi-user.target
E
systemctl enable --now web.service`

// TestEdge takes the edge of a real daemon through what happens to it.
func TestEdge(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "256MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
	h.SSH("alice", webServer)
	e := &edge{h, t}
	if s := e.doctor(); !strings.Contains(s, "no guest has a domain, so the edge does not run") {
		t.Errorf("without domains the doctor says %s", s)
	}

	t.Log("a domain is live at once")
	h.Sublet("domain", "add", "alice", "blog.example.org")
	h.Eventually("the first domain is live", func() bool { return e.get("blog.example.org") == nil })
	h.Sublet("domain", "add", "alice", "woken.example.org", "--wake")
	h.Sublet("domain", "add", "alice", "new.example.org")
	edited := time.Now()
	h.Eventually("the next one is live", func() bool { return e.get("new.example.org") == nil })
	t.Logf("seen to be live %s after the command had ended", time.Since(edited).Round(time.Millisecond))
	if said := h.Sublet("domain", "add", "alice", "silent.example.org", "--port", "9", "--http-port", "9", "-o", "json"); !strings.Contains(said, "port 9 of alice does not answer yet") {
		t.Errorf("of a port that nothing serves it is said: %s", said)
	}
	h.Sublet("domain", "remove", "alice", "silent.example.org")
	if s := e.doctor(); !strings.Contains(s, "serves 80/tcp, 443/udp, 443/tcp") {
		t.Errorf("the doctor says %s", s)
	}

	t.Log("callers are served through restarts of the daemon, and while another version takes over")
	load := e.load("blog.example.org")
	for i := range 6 {
		switch i % 3 {
		case 0:
			h.Kill()
			h.Start()
		case 1:
			h.Stop()
			h.Start()
		case 2:
			handovers := strings.Count(e.events(), "the edge was replaced")
			h.Stop()
			startVersion(t, h, fmt.Sprint("other-", i))
			h.Eventually("the daemon answers", func() bool { return h.Try("host", "show").Code == 0 })
			h.Eventually("another edge serves", func() bool { return strings.Count(e.events(), "the edge was replaced") > handovers })
		}
		before := load.calls.Load()
		h.Eventually("there are more callers", func() bool { return load.calls.Load() > before+20 })
	}
	load.end()
	h.Stop()
	h.Start()

	t.Log("an edge that is killed is replaced")
	pid := e.pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := e.get("blog.example.org"); err != nil {
		t.Errorf("a caller right after the kill: %v", err)
	}
	h.Eventually("an event tells", func() bool {
		return strings.Contains(e.events(), fmt.Sprintf("the edge (process %d) ended unexpectedly", pid))
	})

	t.Log("who called is written down, and counted")
	h.Eventually("the access log has the caller", func() bool {
		return strings.Contains(h.Sublet("domain", "log", "alice", "-n", "1"), lab.StrangerAddress)
	})
	info, err := os.Stat(filepath.Join(h.StateDir, "edge", "logs", h.Show("alice").ID, "access.log"))
	if err != nil {
		t.Error(err)
	} else if uid := info.Sys().(*syscall.Stat_t).Uid; uid != uint32(h.Show("alice").UID-2) {
		t.Errorf("the log is of user %d; want the one below first_uid", uid)
	}
	metrics := h.Command("curl", "-sS", "--unix-socket", filepath.Join(h.RunDir, "api.sock"), "http://localhost/metrics").Stdout
	for _, want := range []string{"\nsublet_edge_up 1\n", "\nsublet_edge_restarts_total 1\n", `sublet_domain_requests_total{class="2xx",domain="blog.example.org",guest="alice"} `} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}

	t.Log("a port that a guest is given is not the edge's any more")
	h.Sublet("port", "add", "alice", "443:443/tcp")
	h.Eventually("443 is the guest's", func() bool {
		s := e.doctor()
		return strings.Contains(s, "serves 80/tcp, 443/udp") && !strings.Contains(s, "443/tcp")
	})
	h.Sublet("port", "remove", "alice", "443:443/tcp")
	h.Eventually("443 is the edge's", func() bool { return strings.Contains(e.doctor(), "serves 80/tcp, 443/udp, 443/tcp") })

	t.Log("callers of a stopped guest are told, and one of another domain wakes it")
	h.Sublet("stop", "alice")
	h.Eventually("503 is the answer", func() bool {
		err := e.get("blog.example.org")
		return err != nil && strings.Contains(err.Error(), "503")
	})
	h.Eventually("the guest is woken", func() bool { return e.get("woken.example.org") == nil })
	if events := e.events(); !strings.Contains(events, "somebody called woken.example.org, so that alice is started") {
		t.Errorf("the events tell:\n%s", events)
	}

	t.Log("what callers did goes with the guest, the edge ends with the last domain, and cleanup leaves nothing")
	logs := filepath.Join(h.StateDir, "edge", "logs", h.Show("alice").ID)
	pid = e.pid()
	h.Sublet("delete", "alice", "--yes")
	h.Eventually("the access log is gone", func() bool {
		_, err := os.Stat(logs)
		return os.IsNotExist(err)
	})
	h.Eventually("the edge has ended", func() bool { return syscall.Kill(pid, 0) != nil })
	h.Stop()
	h.Sublet("cleanup")
	if _, err := os.Stat(filepath.Join(h.RunDir, "edge")); !os.IsNotExist(err) {
		t.Errorf("after cleanup the folder of the edge is there: %v", err)
	}
}

// startVersion starts a daemon of another version.
func startVersion(t *testing.T, h *lab.Host, version string) {
	t.Helper()
	env := h.Env
	h.Env = append(append([]string{}, env...), versionVariable+"="+version)
	startMortal(t, h, 1<<30)
	h.Env = env
}

// edge is one as its callers and owner see it.
type edge struct {
	h *lab.Host
	t *testing.T
}

// get is one call of a stranger's.
func (e *edge) get(domain string) error {
	var err error
	e.h.Outside.Do(func() { err = get(context.Background(), domain) })
	return err
}

// get makes a connection from this thread's network and asks for a domain.
func get(ctx context.Context, domain string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(lab.StrangerAddress)}, Timeout: hang.After}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(lab.HostAddress, "80"))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is written any more
	client := http.Client{Timeout: hang.After, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+domain+"/", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // only read from
	text, err := io.ReadAll(answer.Body)
	if err == nil && string(text) != "alice" {
		err = fmt.Errorf("%s: %.80q", answer.Status, text)
	}
	return err
}

// doctor is what the doctor says of the edge.
func (e *edge) doctor() string {
	var all []string
	text := e.h.Try("doctor", "-o", "json").Stdout
	var report struct {
		Findings []struct {
			Check   string `json:"check"`
			Message string `json:"message"`
		} `json:"findings"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		e.t.Fatalf("%v: %s", err, text)
	}
	for _, f := range report.Findings {
		if f.Check == "edge" {
			all = append(all, f.Message)
		}
	}
	return strings.Join(all, "\n")
}

func (e *edge) events() string { return e.h.Sublet("events") }

// pid is the process that serves.
func (e *edge) pid() int {
	e.t.Helper()
	var pid int
	e.h.Eventually("the edge serves", func() bool {
		_, err := fmt.Sscanf(e.doctor(), "the edge (process %d)", &pid)
		return err == nil
	})
	return pid
}

// edgeLoad are strangers who call all the time.
type edgeLoad struct {
	t     *testing.T
	stop  context.CancelFunc
	calls atomic.Int64
	work  sync.WaitGroup
	mu    sync.Mutex
	lost  []string
}

func (e *edge) load(domain string) *edgeLoad {
	ctx, stop := context.WithCancel(e.t.Context())
	l := &edgeLoad{t: e.t, stop: stop}
	for range 4 {
		l.work.Go(func() {
			e.h.Outside.Do(func() {
				for ctx.Err() == nil {
					if err := get(context.WithoutCancel(ctx), domain); err != nil {
						l.mu.Lock()
						l.lost = append(l.lost, err.Error())
						l.mu.Unlock()
					}
					l.calls.Add(1)
				}
			})
		})
	}
	return l
}

func (l *edgeLoad) end() {
	l.t.Helper()
	l.stop()
	l.work.Wait()
	if len(l.lost) > 0 {
		l.t.Errorf("%d of %d calls were lost, among them %s", len(l.lost), l.calls.Load(), l.lost[0])
		return
	}
	l.t.Logf("%d calls, none lost", l.calls.Load())
}
