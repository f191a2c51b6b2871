package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestOwnKernel runs guests on a kernel that sublet built, in both isolations,
// beside a guest on the packaged one.
func TestOwnKernel(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	own := h.UseKernel(lab.Newest)
	h.Start()
	release := strings.TrimPrefix(own, "uml/")

	t.Log("it is tried in a throw-away guest, in both isolations")
	tried := h.Sublet("kernel", "test", own)
	if strings.Count(tried, "boot") != 2 || strings.Contains(tried, " no ") {
		t.Errorf("kernel test says\n%s", tried)
	}

	if shown := h.Sublet("kernel", "show", own); strings.Contains(shown, "left out") || !strings.Contains(shown, "built from linux-source-7.2") {
		t.Errorf("kernel show says\n%s", shown)
	}

	t.Log("a guest follows the default, whatever that becomes, from its next start on")
	create := func(name string, more ...string) lab.Result {
		return h.Try(append([]string{"create", name, "--memory", "256MiB", "--ssh-key", h.Key + ".pub", "--wait", "ssh", "--timeout", hang.After.String()}, more...)...)
	}
	mustCreate := func(name string, more ...string) string {
		r := create(name, more...)
		if r.Code != 0 {
			t.Fatalf("create %s: %d\n%s", name, r.Code, r.Stderr)
		}
		return r.Stderr
	}
	if r := create("fast", "--isolation", "fast"); r.Code != 4 || !strings.Contains(r.Stderr, "does not know the isolation fast") {
		t.Errorf("fast on the packaged kernel: %d\n%s", r.Code, r.Stderr)
	}
	mustCreate("alice")
	packaged := h.SSH("alice", "uname -r")
	h.Sublet("kernel", "use", own)
	if got := h.SSH("alice", "uname -r"); got != packaged {
		t.Errorf("alice runs on %s at once", got)
	}
	h.Sublet("restart", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	if got := h.SSH("alice", "uname -r"); got != release {
		t.Errorf("alice runs on %s after a restart, not on %s", got, release)
	}

	t.Log("fast comes with the kernel's own warning")
	if said := mustCreate("fast", "--isolation", "fast"); !strings.Contains(said, "This is insecure and should only be used with a trusted userspace") {
		t.Errorf("create says\n%s", said)
	}
	for guest, want := range map[string]string{"alice": "seccomp=off", "fast": "seccomp=on"} {
		// The kernel takes the word out of its command line; the process has it.
		argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.Show(guest).Status.PID))
		if err != nil || !strings.Contains(string(argv), "\x00"+want+"\x00") {
			t.Errorf("%s was started with %q, %v", guest, argv, err)
		}
	}

	for _, guest := range []string{"alice", "fast"} {
		t.Logf("%s has what it needs, and no way to the host", guest)
		ownFirewall(t, h, guest)
		h.SSH(guest, "ip link add wg0 type wireguard && ip addr add 10.99.0.1/24 dev wg0 && ip link set wg0 up && ip link del wg0")
		h.SSH(guest, "! grep -qw hostfs /proc/filesystems && ! test -e /proc/modules && ! test -e /dev/mem && ! mount -t hostfs none /mnt 2>/dev/null")
	}
	firewallDrops(t, h, "fast")

	t.Log("a guest reboots by itself, and finds its network again when its link was removed")
	for _, guest := range []string{"alice", "fast"} {
		before := h.SSH(guest, "cat /proc/sys/kernel/random/boot_id")
		h.TrySSH(guest, "systemctl reboot")
		h.Eventually(guest+" has rebooted", func() bool {
			r := h.TrySSH(guest, "cat /proc/sys/kernel/random/boot_id")
			return r.Code == 0 && strings.TrimSpace(r.Stdout) != before
		})
		h.NS.Exec("ip", "link", "del", "sl-"+guest)
		h.Eventually(guest+" answers through a new link", func() bool { return h.TrySSH(guest, "true").Code == 0 })
	}

	t.Log("what is in use is not deleted, and it is said by whom")
	if r := h.Try("kernel", "use", "default"); r.Code != 4 || !strings.Contains(r.Stderr, "guest fast follows the default kernel and could not boot with it") {
		t.Errorf("a default that fast cannot boot: %d\n%s", r.Code, r.Stderr)
	}
	h.Sublet("update", "fast", "--kernel", own)
	h.Sublet("kernel", "use", "default")
	h.Sublet("stop", "alice")
	r := h.Try("kernel", "delete", own)
	if r.Code != 4 || !strings.Contains(r.Stderr, "fast (runs on it)") || strings.Contains(r.Stderr, "alice") {
		t.Errorf("delete: %d\n%s", r.Code, r.Stderr)
	}
	h.Sublet("delete", "fast", "--yes")
	h.Sublet("update", "alice", "--kernel", own)
	if r := h.Try("kernel", "delete", own); r.Code != 4 || !strings.Contains(r.Stderr, "in use by alice") {
		t.Errorf("delete of what is pinned: %d\n%s", r.Code, r.Stderr)
	}
	h.Sublet("update", "alice", "--kernel", "default")
	h.Sublet("kernel", "delete", own)
	if list := h.Sublet("kernel", "list", "-q"); strings.Contains(list, own) {
		t.Errorf("it is still there:\n%s", list)
	}
}

// ownFirewall drops packets by nft's families that the packaged kernel lacks:
// ip, ip6 and inet, with connection tracking and translation.
func ownFirewall(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	const port = 70
	listenInGuest(t, h, guest, port)
	address := h.Show(guest).Spec.Address
	answers := func() bool { return from(h.NS)("tcp", address, port) != "" }
	h.Eventually("the port answers", answers)
	for _, family := range []string{"ip", "inet"} {
		h.SSH(guest, fmt.Sprintf(`nft add table %[1]s own && nft 'add chain %[1]s own in { type filter hook input priority 0 ; }' &&
			nft add rule %[1]s own in tcp dport %[2]d ct state new counter drop`, family, port))
		if answers() {
			t.Errorf("a rule of nft's family %s does not drop", family)
		}
		h.SSH(guest, "nft delete table "+family+" own")
		h.Eventually("the port answers again", answers)
	}
	h.SSH(guest, `nft add table ip6 own && nft 'add chain ip6 own post { type nat hook postrouting priority 100 ; }' &&
		nft add rule ip6 own post masquerade && nft add table netdev own && nft delete table ip6 own && nft delete table netdev own`)
}
