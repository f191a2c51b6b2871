//go:build linux

package uml

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"sublet/internal/guest"
	"sublet/internal/guest/guesttest"
	"sublet/internal/vps"
)

// TestRelay gives a guest the network of a kernel with SMP, which the keeper
// passes on. The kernel here has none, and does not mind.
func TestRelay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.machine(t)
	m.Kernel.SMP = true
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v: %s", args, err, out)
		}
	}
	const host, inside = "192.0.2.1", "192.0.2.2/24"
	address := func() {
		ip("addr", "add", host+"/24", "dev", m.Tap)
		ip("link", "set", m.Tap, "up")
	}
	address()
	d := b.driver(t)
	in, err := d.Start(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	rig := b.rig()
	rig.Booted(t, d, in)
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", in.PID))
	hosts, err2 := os.Readlink("/proc/self/ns/net")
	if err != nil || err2 != nil || own == hosts {
		t.Errorf("the guest's network is %s, the host's %s: %v, %v", own, hosts, err, err2)
	}
	// reaches says so when the host answers, in a way that the typed echo does not.
	reaches := func(what, command string) {
		t.Helper()
		s := guesttest.Join(t, d, in, guest.ConsoleOptions{Takeover: true, NoReplay: true})
		s.Type(t, command+"until ping -c1 -W1 "+host+" >/dev/null; do :; done; echo reach''ed-"+what+"\n")
		s.Until(t, "reached-"+what)
		_ = s.Close()
	}
	up := "ip addr add " + inside + " dev vec0; ip link set vec0 up; "
	reaches("first", up)
	reaches("large", "ping -c1 -s 1400 "+host+" >/dev/null && ")
	reaches("updown", "ip link set vec0 down; "+up)
	ip("link", "del", m.Tap)
	ip("tuntap", "add", "dev", m.Tap, "mode", "tap", "vnet_hdr", "user", fmt.Sprint(testUID))
	address()
	reaches("anew", "")
	rig.Reboot(t, d, in)
	reaches("rebooted", up)
	if err := d.Kill(t.Context(), in); err != nil {
		t.Error(err)
	}
	if exit, err := d.Wait(t.Context(), in); err != nil || exit.Reason == vps.ExitLost {
		t.Errorf("it ended with %+v, %v", exit, err)
	}
}
