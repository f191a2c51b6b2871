package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestLife takes one guest through everything that can happen to it.
func TestLife(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()

	h.Sublet("create", "alice", "--memory", "320MiB", "--disk", "3GiB", "--ssh-key", h.Key+".pub",
		"--timezone", "Asia/Shanghai", "--hostname", "alice.example.org", "--dns", "192.0.2.53",
		"--root-password-file", passwordFile(t, "correct horse"), "--wait", "ssh", "--timeout", hang.After.String())

	t.Log("its identity is what was asked for")
	for command, want := range map[string]string{
		"hostname":                          "alice.example.org",
		"whoami":                            "root",
		"readlink /etc/localtime":           "/usr/share/zoneinfo/Asia/Shanghai",
		"grep ^nameserver /etc/resolv.conf": "nameserver 192.0.2.53",
		"systemctl is-system-running":       "running",
		"ip -br -4 addr show dev vec0 | tr -s ' ' | cut -d ' ' -f 3": "10.213.0.2/32",
		"ip route show default":                              "default via 10.213.0.1 dev vec0 proto static onlink",
		"cut -d: -f2 /etc/shadow | head -n1 | cut -c1-3":     "$6$",
		"test -s /etc/machine-id && wc -c < /etc/machine-id": "33",
		"ls /etc/ssh | grep -c '^ssh_host_.*_key$'":          "1",
	} {
		if got := strings.TrimSpace(h.TrySSH("alice", command).Stdout); got != want {
			t.Errorf("%s says %q; want %q", command, got, want)
		}
	}
	if size := h.SSH("alice", "df -B1M --output=size / | tail -n1"); !between(t, size, 2800, 3072) {
		t.Errorf("its filesystem has %s MiB; want about 3 GiB", size)
	}
	if memory := h.SSH("alice", "awk '/MemTotal/{print int($2/1024)}' /proc/meminfo"); !between(t, memory, 250, 320) {
		t.Errorf("it has %s MiB of memory; want about 320", memory)
	}

	t.Log("a stranger comes in through the first port, and is seen as who he is")
	port := h.Show("alice").Spec.Ports.First
	if from := h.SSHFrom(h.Outside, port, "echo $SSH_CLIENT"); !strings.HasPrefix(from, lab.RouterAddress+" ") {
		t.Errorf("the guest sees the caller as %q; want %s", from, lab.RouterAddress)
	}
	hostKey := h.SSH("alice", "cat /etc/ssh/ssh_host_ed25519_key.pub")

	t.Log("a firewall inside works")
	firewallInside(t, h, "alice")
	hostfsRefused(t, h, "alice")
	lockedModules(t, h, "alice") // until the reboot

	t.Log("a reboot inside works, and is the same life")
	before := h.Show("alice")
	bootID := h.SSH("alice", "cat /proc/sys/kernel/random/boot_id")
	h.TrySSH("alice", "systemctl reboot")
	h.Eventually("the guest boots again", func() bool {
		r := h.TrySSH("alice", "cat /proc/sys/kernel/random/boot_id")
		return r.Code == 0 && strings.TrimSpace(r.Stdout) != bootID
	})
	if after := h.Show("alice"); after.Status.PID != before.Status.PID || after.Status.Restarts != 0 {
		t.Errorf("after a reboot inside it is %+v; was %+v", after.Status, before.Status)
	}
	if now := h.SSH("alice", "cat /etc/ssh/ssh_host_ed25519_key.pub"); now != hostKey {
		t.Errorf("its host key changed with a reboot")
	}

	t.Log("stop is orderly: what was written without sync is there afterwards")
	h.SSH("alice", "echo precious > /root/data")
	h.Sublet("stop", "alice")
	g := h.Show("alice")
	if g.Status.State != "stopped" || g.Status.Exit == nil || g.Status.Exit.Reason != "power-off" {
		t.Fatalf("after stop it is %+v; want stopped by power-off", g.Status)
	}
	h.Sublet("update", "alice", "--disk", "4GiB", "--memory", "256MiB")
	h.Sublet("start", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	if got := h.SSH("alice", "cat /root/data"); got != "precious" {
		t.Errorf("after stop and start the file says %q", got)
	}
	if size := h.SSH("alice", "df -B1M --output=size / | tail -n1"); !between(t, size, 3800, 4096) {
		t.Errorf("its filesystem was not grown to 4 GiB: %s MiB", size)
	}

	t.Log("a panic is told from a crash, and both are restarted")
	h.TrySSH("alice", "sysctl -q kernel.sysrq=1; sync; (sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
	h.Eventually("the panic is seen", func() bool { return strings.Contains(h.Sublet("events"), "ended by panic") })
	h.Eventually("it is started again", func() bool {
		g = h.Show("alice")
		return g.Status.State == "running" && g.Status.Restarts == 1
	})
	if g.Status.Exit != nil {
		t.Errorf("a running guest shows an exit: %+v", g.Status.Exit)
	}
	if err := syscall.Kill(g.Status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.Eventually("the crash is seen", func() bool { return strings.Contains(h.Sublet("events"), "ended by crash") })
	h.Sublet("wait", "alice", "--for", "ssh", "--timeout", hang.After.String())

	t.Log("a power-off inside stays off; start starts it again")
	h.TrySSH("alice", "systemctl poweroff")
	h.Sublet("wait", "alice", "--for", "stopped", "--timeout", hang.After.String())
	h.Sublet("start", "alice")
	h.Sublet("kill", "alice")
	if g := h.Show("alice"); g.Status.State != "stopped" || g.Status.Exit.Reason != "killed" {
		t.Errorf("after kill it is %+v", g.Status)
	}
	if log := h.Sublet("logs", "alice"); !strings.Contains(log, "sublet: the root filesystem has 3GiB now") {
		t.Errorf("the console's log does not begin at power-on: %.300q", log)
	}

	t.Log("delete leaves nothing")
	h.Sublet("delete", "alice", "--yes")
	for _, pattern := range []string{"state/volumes/*", "state/seeds/*", "state/logs/*", "run/guests/alice"} {
		left, err := filepath.Glob(filepath.Join(h.Dir, pattern))
		if err != nil || len(left) > 0 {
			t.Errorf("%s is left: %q, %v", pattern, left, err)
		}
	}
	if links := h.NS.Exec("ip", "-br", "link"); strings.Contains(links, "sl-") {
		t.Errorf("a link is left:\n%s", links)
	}
	if r := h.Try("show", "alice"); r.Code != 3 {
		t.Errorf("show of a deleted guest ends with %d; want 3", r.Code)
	}
}

// firewallInside checks the tools that Debian's packaged kernels support.
// nft's families ip, ip6 and inet are not built into those kernels.
func firewallInside(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	for _, command := range []string{
		"iptables -A INPUT -p tcp --dport 81 -m conntrack --ctstate NEW -j DROP",
		"iptables -t nat -A POSTROUTING -o vec0 -j MASQUERADE",
		"iptables -S INPUT | grep -q 'dport 81.*DROP'",
		"ip6tables -A INPUT -p tcp --dport 81 -j REJECT",
		"iptables -F && iptables -t nat -F && ip6tables -F",
		"nft add table bridge x && nft delete table bridge x",
		"modprobe wireguard 2>/dev/null || ! zcat /proc/config.gz 2>/dev/null | grep -q WIREGUARD=",
		"ip -6 addr show dev lo | grep -q ::1",
	} {
		if r := h.TrySSH(guest, command); r.Code != 0 {
			t.Errorf("%s: exit code %d\n%s%s", command, r.Code, r.Stdout, r.Stderr)
		}
	}
	// The wall inside really drops: the SSH server on another port is not
	// reached any more, and is again when the rule is gone.
	h.SSH(guest, "iptables -A INPUT -p icmp -j DROP")
	address := h.Show(guest).Spec.Address
	if _, err := h.NS.Try("ping", "-c1", "-W1", address); err == nil {
		t.Error("the guest's own firewall does not drop")
	}
	h.SSH(guest, "iptables -F")
	h.NS.Exec("ping", "-c1", "-W5", address)
}

// hostfsRefused tries to mount the host's files in a guest (hostfs of User Mode
// Linux, which Debian's packaged kernels have built in), from where the kernel
// was told to look, and from above that.
func hostfsRefused(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	for _, from := range []string{"", "/", "/etc", "..", "../../../../../..", "/proc/self/root", h.Dir} {
		command := "mount -i -t hostfs none /mnt"
		if from != "" {
			command += " -o " + from
		}
		if r := h.TrySSH(guest, command); r.Code == 0 || !strings.Contains(r.Stderr, "does not exist") {
			t.Errorf("%s: exit code %d\n%s%s\n%s", command, r.Code, r.Stdout, r.Stderr, h.SSH(guest, "ls -la /mnt"))
		}
	}
	if got := h.SSH(guest, "ls /mnt"); got != "" {
		t.Errorf("/mnt of the guest shows %q", got)
	}
}

// lockedModules locks a guest's modules as a program of its own may, and its
// firewall still works. What makes such a lock hold against the guest's root is
// in TestModules.
func lockedModules(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	h.SSH(guest, "modprobe -a iptable_filter xt_tcpudp && sysctl -q kernel.modules_disabled=1")
	if r := h.TrySSH(guest, "modprobe overlay"); r.Code == 0 || !strings.Contains(r.Stderr, "Operation not permitted") {
		t.Errorf("a module can be loaded in a locked kernel: exit code %d\n%s", r.Code, r.Stderr)
	}
	h.SSH(guest, "iptables -A INPUT -p tcp --dport 82 -j DROP && iptables -F")
}

func passwordFile(t *testing.T, password string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func between(t *testing.T, text string, low, high int) bool {
	t.Helper()
	n := 0
	for _, c := range strings.TrimSpace(text) {
		if c < '0' || c > '9' {
			t.Fatalf("%q is not a number", text)
		}
		n = n*10 + int(c-'0')
	}
	return n >= low && n <= high
}
