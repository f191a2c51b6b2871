//go:build linux

package systemd

import (
	"encoding/json"
	"strings"
	"testing"

	"sublet/internal/hang"
)

const (
	daemonUnit = "sublet.service"
	guestUnit  = "sublet-guest-first.service"
)

// TestSystemd takes a daemon and its guest through all that systemd does to
// them.
func TestSystemd(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.install()
	m.boot()

	t.Log("up makes the daemon a service, and the guest one of its own")
	// Its end is a flush of all rules, as on hosts with rules of their own.
	m.run("sh", "-c", "echo flush ruleset > /etc/nftables.conf && systemctl enable --now nftables.service")
	m.run("/root/sublet/scripts/up")
	for name, want := range map[string]string{"ActiveState": "active", "Type": "notify", "UnitFileState": "enabled"} {
		if got := m.property(daemonUnit, name); got != want {
			t.Errorf("%s of %s is %q; want %q", name, daemonUnit, got, want)
		}
	}
	g := m.guest()
	if g.state != "running" || m.property(guestUnit, "ActiveState") != "active" || m.property(guestUnit, "Slice") != "sublet.slice" {
		t.Errorf("the guest is %+v, and its unit:\n%s", g, m.run("systemctl", "status", "--no-pager", guestUnit))
	}
	for _, pid := range []string{g.pid, m.property(guestUnit, "MainPID")} {
		if group := m.run("cat", "/proc/"+pid+"/cgroup"); !strings.Contains(group, "/sublet.slice/"+guestUnit) {
			t.Errorf("the process %s of the guest is in %s; want %s", pid, group, guestUnit)
		}
	}
	if journal := m.run("journalctl", "--no-pager", "--unit", daemonUnit); !strings.Contains(journal, "msg=ready") || strings.Contains(journal, "time=") {
		t.Errorf("the journal has of the daemon:\n%s", journal)
	}

	t.Log("the edge is a unit of its own")
	m.run("sublet", "domain", "add", "first", "blog.example.org")
	m.eventually("the edge serves", m.edgeServes)
	edge := m.edgeUnit()
	pid := m.property(edge, "MainPID")
	if m.property(edge, "Slice") != "sublet.slice" || !strings.Contains(m.run("cat", "/proc/"+pid+"/cgroup"), "/sublet.slice/"+edge) {
		t.Errorf("the edge is:\n%s", m.run("systemctl", "status", "--no-pager", edge))
	}
	if status := m.run("cat", "/proc/"+pid+"/status"); !strings.Contains(status, "Seccomp:\t2") || strings.Contains(status, "Uid:\t0") {
		t.Errorf("the edge's process is:\n%s", status)
	}

	t.Log("the guest and the edge outlive the daemon, however that ends")
	for _, how := range [][]string{{"restart", daemonUnit}, {"kill", "--signal=KILL", daemonUnit}, {"stop", daemonUnit}} {
		before := m.property(daemonUnit, "MainPID")
		m.run(append([]string{"systemctl"}, how...)...)
		if how[0] == "stop" {
			m.run("systemctl", "start", daemonUnit)
		}
		m.eventually("the daemon is back after "+how[0], func() bool {
			return m.property(daemonUnit, "ActiveState") == "active" && m.property(daemonUnit, "MainPID") != before
		})
		if now := m.guest(); now != g {
			t.Fatalf("after %v of the daemon the guest is %+v; was %+v", how, now, g)
		}
		if now := m.property(m.edgeUnit(), "MainPID"); now != pid || !m.edgeServes() {
			t.Fatalf("after %v of the daemon the edge is process %s; was %s", how, now, pid)
		}
	}
	m.run("sublet", "ssh", "first", "true")

	t.Log("an edge that is killed is started again, as a unit")
	m.run("systemctl", "kill", "--signal=KILL", edge)
	m.eventually("another one serves", func() bool {
		units, _ := m.try("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "sublet-edge-*")
		return strings.Count(units, "sublet-edge-") == 1 && m.property(m.edgeUnit(), "MainPID") != pid && m.edgeServes()
	})

	t.Log("orders go through the unit: restart, stop and start, also of a unit that has just ended")
	for range 3 {
		m.run("sublet", "restart", "first", "--wait", "ssh", "--timeout", hang.After.String())
		m.run("sublet", "kill", "first")
		m.run("sublet", "start", "first", "--wait", "running")
	}
	m.run("sublet", "wait", "first", "--for", "ssh", "--timeout", hang.After.String())

	t.Log("systemctl stop of the guest's unit is an orderly stop, and is taken as one")
	m.run("sublet", "ssh", "first", "echo precious > /root/data")
	m.run("systemctl", "stop", guestUnit)
	m.eventually("the guest is seen to be stopped", func() bool { return m.guest().state == "stopped" })
	if show := m.run("sublet", "show", "first"); !strings.Contains(show, "power") {
		t.Errorf("after systemctl stop it is:\n%s", show)
	}
	if _, err := m.try("systemctl", "is-active", "--quiet", guestUnit); err == nil {
		t.Error("its unit is still active")
	}
	m.run("sublet", "start", "first", "--wait", "ssh", "--timeout", hang.After.String())
	if got := m.run("sublet", "ssh", "first", "cat /root/data"); got != "precious" {
		t.Errorf("after systemctl stop the file says %q", got)
	}

	m.lastWords()
	sent := m.sent()

	t.Log("the machine's power-off stops guests in good order")
	m.run("sublet", "ssh", "first", "echo more >> /root/data")
	m.run("sublet", "create", "idle", "--autostart=false", "--memory", "192MiB", "--ssh-key", "/root/.ssh/id_ed25519.pub", "--wait", "running")
	_, _ = m.try("systemctl", "poweroff") // the connection may go before the answer
	m.off()

	t.Log("and its boot starts those that are marked for it, and the edge")
	m.boot()
	m.eventually("the edge serves", m.edgeServes)
	m.run("sublet", "wait", "first", "--for", "ssh", "--timeout", hang.After.String())
	if got := m.run("sublet", "ssh", "first", "cat /root/data"); got != "precious\nmore" {
		t.Errorf("after the machine's power-off the file says %q", got)
	}
	if dirty, err := m.try("sublet", "ssh", "first", "journalctl -k --no-pager | grep -E 'EXT4-fs.*(recovery|orphan)'"); err == nil {
		t.Errorf("the guest's disk was not clean:\n%s", dirty)
	}
	if out := m.run("sublet", "list", "--output", "csv", "--filter", "name=idle"); !strings.Contains(out, "stopped") {
		t.Errorf("a guest that is not to start at boot:\n%s", out)
	}
	if events := m.run("sublet", "events"); strings.Contains(events, "ended by crash") {
		t.Errorf("the events tell of a crash:\n%s", events)
	}

	if more := m.sent() - sent; more < lastBytes || more > 2*lastBytes {
		t.Errorf("as the machine stopped, the guest sent %d bytes, and the ledger has %d more", lastBytes, more)
	}

	t.Log("down takes it all away")
	m.run("sublet", "delete", "idle", "--yes")
	m.run("umount", "--lazy", "/var/lib/sublet/images") // the test's own mount
	m.run("/root/sublet/scripts/down")
	if units := m.run("systemctl", "list-units", "--all", "--no-legend", "sublet*.service"); units != "" {
		t.Errorf("after down there are the units:\n%s", units)
	}
	if left, err := m.try("sh", "-c", "ls -d /etc/systemd/system/*sublet* /etc/systemd/system/*/*sublet* /run/sublet /var/lib/sublet /usr/local/bin/sublet 2>/dev/null"); err == nil || left != "" {
		t.Errorf("after down there are:\n%s", left)
	}
	if rules := m.run("nft", "list", "ruleset"); rules != "" {
		t.Errorf("after down there are rules:\n%s", rules)
	}
}

// edgeUnit is the unit of the edge that serves.
func (m *machine) edgeUnit() string {
	m.t.Helper()
	unit, _, _ := strings.Cut(m.run("systemctl", "list-units", "--plain", "--no-legend", "sublet-edge-*"), " ")
	return unit
}

// edgeServes tells whether a name that no guest has is refused on port 80.
func (m *machine) edgeServes() bool {
	out, _ := m.try("bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\r\nHost: nobody.example.org\r\n\r\n' >&3 && cat <&3`)
	return strings.Contains(out, " 421 ")
}

// lastBytes are those of the frames that the guest sends while it stops,
// which is when the daemon has: 200 of 1000 bytes, with the headers of UDP (8),
// IPv4 (20) and Ethernet (14).
const lastBytes = 200 * (1000 + 42)

// lastWords has the guest send when it stops. Nobody answers.
func (m *machine) lastWords() {
	m.t.Helper()
	const unit = `cat >/root/bye <<'E'
exec 3>/dev/udp/203.0.113.9/9
for _ in {1..200}; do printf %01000d 0 >&3; done
E
cat >/etc/systemd/system/bye.service <<'E'
[Unit]
After=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStop=bash /root/bye
E
systemctl daemon-reload && systemctl start bye.service`
	m.run("sublet", "ssh", "first", unit)
}

// sent are the bytes that the guest has sent to the internet, by the ledger.
func (m *machine) sent() int64 {
	m.t.Helper()
	var page struct {
		Traffic []struct {
			Out int64 `json:"out_bytes"`
		} `json:"traffic"`
	}
	text := m.run("sublet", "traffic", "first", "--months", "--by", "class", "--filter", "class=internet", "--output", "json")
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		m.t.Fatalf("%v: %s", err, text)
	}
	var sum int64
	for _, line := range page.Traffic {
		sum += line.Out
	}
	return sum
}

// guest is what the daemon says of the guest `first`.
type guest struct{ id, state, pid string }

func (m *machine) guest() guest {
	m.t.Helper()
	var g guest
	text := m.run("sublet", "show", "first", "--output", "json")
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(strings.Trim(strings.TrimSpace(line), ","), ": ")
		value = strings.Trim(value, `"`)
		switch {
		case key == `"id"` && g.id == "":
			g.id = value
		case key == `"state"` && g.state == "":
			g.state = value
		case key == `"pid"` && g.pid == "":
			g.pid = value
		}
	}
	if g.id == "" || g.state == "" {
		m.t.Fatalf("sublet show first: %s", text)
	}
	return g
}
