package cli

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func TestSSH(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args string
		want string
	}{
		{"alice", "ssh -p 20000 -o HostKeyAlias=sublet-g-1 -o StrictHostKeyChecking=accept-new root@203.0.113.5"},
		{"alice uptime", "ssh -p 20000 -o HostKeyAlias=sublet-g-1 -o StrictHostKeyChecking=accept-new root@203.0.113.5 uptime"},
		{"alice ls -l -o json", "ssh -p 20000 -o HostKeyAlias=sublet-g-1 -o StrictHostKeyChecking=accept-new root@203.0.113.5 ls -l -o json"},
		{"-l bob alice", "ssh -p 20000 -o HostKeyAlias=sublet-g-1 -o StrictHostKeyChecking=accept-new bob@203.0.113.5"},
		{"alice -- -L 8080:localhost:80 uptime", "ssh -p 20000 -o HostKeyAlias=sublet-g-1 -o StrictHostKeyChecking=accept-new root@203.0.113.5 -L 8080:localhost:80 uptime"},
		{"dora", "ssh -p 22 -o HostKeyAlias=sublet-g-5 -o StrictHostKeyChecking=accept-new root@10.213.0.6"},
	} {
		w := populate(t)
		w.mustRun(t, "create", "dora", "--ports", "0")
		var got []string
		w.options.Exec = func(path string, argv, _ []string) error {
			if path != "/usr/bin/ssh" {
				t.Errorf("runs %s", path)
			}
			got = argv
			return nil
		}
		w.mustRun(t, append([]string{"ssh"}, strings.Fields(test.args)...)...)
		if strings.Join(got, " ") != test.want {
			t.Errorf("sublet ssh %s runs %q, want %q", test.args, got, test.want)
		}
	}
	w := populate(t)
	if code := w.run(t.Context(), "ssh", "bob"); code != 4 || !strings.Contains(w.errors.String(), "bob is stopped; `sublet start bob --wait ssh` starts it") {
		t.Errorf("a stopped guest: exit code %d, %s", code, w.errors.String())
	}
	if code := w.run(t.Context(), "ssh", "-l", "-oProxyCommand=x", "alice"); code != 2 {
		t.Errorf("an option as a user: exit code %d", code)
	}
	if code := w.run(t.Context(), "ssh", "zoe"); code != 3 {
		t.Errorf("no such guest: exit code %d", code)
	}
}

// TestRequests checks that every flag arrives, and that what was left out is
// left out.
func TestRequests(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.created = nil
	w.mustRun(t, "create", "zoe", "--dry-run")
	w.mustRun(t, "create", "full", "--dry-run", "--image", "debian/12", "--memory", "1GiB", "--disk", "10GB", "--ports", "30000-30009",
		"--tenant", "bob", "--hostname", "h", "--locale", "zh_CN.UTF-8", "--timezone", "Asia/Shanghai", "--dns", "9.9.9.9,1.1.1.1", "--address", "10.213.0.9",
		"--bandwidth", "20Mbit", "--network-peer", "--allow-smtp", "--ipv6", "2001:db8::5", "--rule", "deny out 192.0.2.0/24",
		"--limit-packets", "1", "--limit-new-connections", "2", "--limit-connections", "3", "--cpu-weight", "4", "--cpu-quota", "5%", "--io-weight", "6",
		"--io-read", "64KiB", "--io-write", "128KiB", "--processes", "99", "--forward", "8443:443/tcp", "--restart", "always", "--autostart=false", "--stopped", "--stop-timeout", "90s")
	want := []api.CreateGuest{{Name: "zoe"}, {
		Name: "full", Image: new("debian/12"), Memory: new(vps.GiB), Disk: new(vps.Bytes(1e10)), Ports: &vps.PortBlock{First: 30000, Count: 10},
		Tenant: new("bob"), Hostname: new("h"), Locale: new("zh_CN.UTF-8"), Timezone: new("Asia/Shanghai"),
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("1.1.1.1")}, Address: new(netip.MustParseAddr("10.213.0.9")),
		Forwards: []vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}}, Restart: new(vps.RestartAlways), Autostart: new(false),
		Power: new(vps.PowerStopped), StopTimeout: new(vps.Duration(90 * time.Second)),
		Bandwidth: new(20 * vps.Mbit), NetworkPeer: new(true), SMTP: new(true), IPv6: new(netip.MustParsePrefix("2001:db8::5/128")),
		Rules:  []vps.Rule{{Action: vps.Deny, Direction: vps.Out, Peer: netip.MustParsePrefix("192.0.2.0/24")}},
		Limits: &api.SetLimits{Packets: new(1), NewConnections: new(2), Connections: new(3)},
		Resources: &api.SetResources{
			CPUWeight: new(4), CPUQuota: new(5), IOWeight: new(6), IORead: new(64 * vps.KiB), IOWrite: new(128 * vps.KiB), Processes: new(99),
		},
	}}
	if d := cmp.Diff(want, w.created, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("sent (-want +got):\n%s", d)
	}
	w.mustRun(t, "stop", "alice", "--timeout", "5s")
	w.mustRun(t, "delete", "alice", "bob", "alice", "--yes")
	w.mustRun(t, "apply", "-f", "-", "--prune")
	if d := cmp.Diff([]string{"stop alice 5s", "delete alice 0s", "delete bob 0s"}, w.orders); d != "" {
		t.Errorf("orders (-want +got):\n%s", d)
	}
	if w.applied != (api.ApplyOptions{Prune: true}) {
		t.Errorf("applied with %+v", w.applied)
	}
}

func TestBuildInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld()
	ctx, cancel := context.WithCancel(t.Context())
	w.onPoll = cancel
	if code := w.run(ctx, "image", "build", "debian/12"); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(w.errors.String(), "the build of debian/12 goes on in the daemon") {
		t.Errorf("says %s", w.errors.String())
	}
}

func TestBuildTakesTooLong(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.options.Poll = time.Hour
	if code := w.run(t.Context(), "image", "build", "debian/12", "--timeout", "1ms"); code != 6 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(w.errors.String(), "sublet: debian/12 is not built after 1ms") {
		t.Errorf("says %s", w.errors.String())
	}
}

func TestBuildBar(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.options.IsTerminal = func(any) bool { return true }
	w.mustRun(t, "image", "build", "debian/12")
	if want := "\r\x1b[Kdebian/12 [#########---------------]  40 %  0s  installing packages"; !strings.Contains(w.errors.String(), want) {
		t.Errorf("drew %q", w.errors.String())
	}
	if got := drawBar("debian/12", "installing", 2, time.Minute, 0, 30); got != "debian/12 [##################…" {
		t.Errorf("a narrow bar is %q", got)
	}
}

func TestFollowEvents(t *testing.T) {
	t.Parallel()
	w := populate(t)
	ctx, cancel := context.WithCancel(t.Context())
	polls := 0
	w.onPoll = func() {
		switch polls++; polls {
		case 2:
			w.failure = vps.Errorf(vps.CodeUnavailable, "the daemon is being restarted")
		case 3:
			w.failure = nil
			w.events = append(w.events, vps.Event{ID: 4, Time: now, Guest: "bob", Kind: vps.EventStarted, Message: "bob runs"})
		case 4:
			cancel()
		}
	}
	if code := w.run(ctx, "events", "--follow", "-o", "json"); code != 0 {
		t.Fatalf("exit code %d: %s", code, w.errors.String())
	}
	lines := strings.Split(strings.TrimSpace(w.out.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[3], `"guest":"bob"`) {
		t.Errorf("printed:\n%s", w.out.String())
	}
}

func TestAgo(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 60 * time.Second: "1m0s", 3*time.Hour + 5*time.Minute: "3h5m", 50 * time.Hour: "2d2h",
	} {
		if got := ago(d); got != want {
			t.Errorf("ago(%s) = %s, want %s", d, got, want)
		}
	}
}

// TestHelp checks that every verb says what it is for, and that no flag is
// without words.
func TestHelp(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for _, c := range New(w.options).Commands() {
		for _, verb := range append(c.Commands(), c) {
			if verb.Short == "" || strings.HasSuffix(verb.Short, ".") {
				t.Errorf("%s: %q is no short text", verb.CommandPath(), verb.Short)
			}
			if verb.Args == nil && verb.Name() != "list" && verb.Name() != "help" {
				t.Errorf("%s does not check its words", verb.CommandPath())
			}
		}
	}
}
