package e2e

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// TestModules shows what docs/adr/0010-modules.md promises of a packaged
// kernel: which firewalls its modules make, that a guest's root may load any
// module or shut that door for good, and that hostfs gives nothing of the host.
func TestModules(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--memory", "192MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())
	h.Sublet("create", "bob", "--memory", "192MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", hang.After.String())

	t.Log("a firewall inside works, by modules that come when they are asked for")
	firewallDrops(t, h, "alice")

	t.Log("root may bring a module of its own")
	const own = "insmod /root/dummy.ko"
	h.SSH("alice", "cp $(modinfo -n dummy) /root/dummy.ko && ! grep -q ^dummy /proc/modules && "+own+" && grep -q ^dummy /proc/modules")

	t.Log("root may undo that hostfs is refused, and sees its own jail")
	hostfsRefused(t, h, "alice")
	jailByHostfs(t, h, "alice")

	t.Log("a guest locks itself; nothing that root does opens it, and its firewall works")
	h.SSH("alice", lockItself)
	h.Sublet("restart", "alice", "--wait", "ssh", "--timeout", hang.After.String())
	locked(t, h, "alice", own, "modprobe overlay")
	hostfsRefused(t, h, "alice")
	firewallDrops(t, h, "alice")
}

// lockItself is what docs/adr/0010-modules.md tells a guest's root to do: the
// modules that its firewall needs are loaded at boot, then no others; and no
// process keeps the capability that opens the kernel's memory.
const lockItself = `
lsmod | awk 'NR > 1 { print $1 }' | grep -v '^dummy$' > /etc/modules-load.d/lock.conf
mkdir -p /etc/systemd/system.conf.d
printf '[Manager]\nCapabilityBoundingSet=~CAP_SYS_RAWIO\n' > /etc/systemd/system.conf.d/lock.conf
echo kernel.modules_disabled=1 > /etc/sysctl.d/lock.conf`

// firewallDrops calls a guest's ports through rules of its own firewall, each
// of another kind, and again without the rule. Real packets are dropped.
func firewallDrops(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	const tcp, first = "-I INPUT -p tcp ", 81
	rules := []string{
		"iptables " + tcp + "--dport %d -j DROP",
		"iptables " + tcp + "--dport %d -m conntrack --ctstate NEW -j DROP",
		"iptables " + tcp + "-m multiport --dports 79,%d -j REJECT",
		"iptables " + tcp + "--dport %d -m recent --set --name seen -j DROP",
		"iptables " + tcp + "--dport %d -m limit --limit 1000/s -m comment --comment x -j DROP",
		"iptables " + tcp + "--dport %d -m addrtype --dst-type LOCAL -j REJECT --reject-with tcp-reset",
		"iptables -t nat -I PREROUTING -p tcp --dport %d -j REDIRECT --to-ports 9",
		"iptables -t nat -I PREROUTING -p tcp --dport %d -j DNAT --to-destination 192.0.2.9",
		"iptables -t mangle -I PREROUTING -p tcp --dport %d -m length --length 0:99 -j DROP",
		"iptables -t raw -I PREROUTING -p tcp --dport %d -j DROP",
		"ip6tables " + tcp + "--dport %d -m conntrack --ctstate NEW -j DROP",
		"ip6tables " + tcp + "--dport %d -j REJECT",
	}
	ports := make([]int, len(rules))
	for i := range rules {
		ports[i] = first + i
	}
	listenInGuest(t, h, guest, ports...)
	// The answerer speaks IPv4; this one speaks IPv6, on the same ports.
	six := h.SSH(guest, "ip -6 -o addr show dev vec0 scope global | grep -o 'fd[0-9a-f:]*' | head -1")
	h.SSH(guest, fmt.Sprintf("systemd-run --quiet perl -MIO::Socket::IP -e '"+
		`my @s = map { IO::Socket::IP->new(LocalHost => "::", V6Only => 1, LocalPort => $_, Listen => 9) or die $! } @ARGV; `+
		`while (1) { my $r = ""; vec($r, fileno $_, 1) = 1 for @s; select $r, undef, undef, undef; `+
		`for (@s) { next unless vec $r, fileno $_, 1; my $c = $_->accept; readline $c; print $c "six\n" } }' %s`,
		strings.Trim(fmt.Sprint(ports), "[]")))
	four := h.Show(guest).Spec.Address
	// The ports are called side by side: a call that nobody answers takes two
	// seconds.
	answered := func() map[string]bool {
		answers := make([]string, len(rules))
		var calls sync.WaitGroup
		for i, rule := range rules {
			address := four
			if strings.HasPrefix(rule, "ip6tables") {
				address = six
			}
			calls.Go(func() { answers[i] = from(h.NS)("tcp", address, ports[i]) })
		}
		calls.Wait()
		did := map[string]bool{}
		for i, rule := range rules {
			if answers[i] != "" {
				did[rule] = true
			}
		}
		return did
	}
	all := make([]string, len(rules))
	for i, rule := range rules {
		all[i] = fmt.Sprintf(rule, ports[i])
	}
	commands := strings.Join(all, " && ")
	h.Eventually("without rules, all ports answer", func() bool { return len(answered()) == len(rules) })
	h.SSH(guest, commands)
	if through := answered(); len(through) > 0 {
		t.Errorf("through these rules, the port answers: %q", slices.Sorted(maps.Keys(through)))
	}
	h.SSH(guest, strings.ReplaceAll(commands, " -I ", " -D "))
	h.Eventually("without rules, all ports answer again", func() bool { return len(answered()) == len(rules) })
	bridgeDrops(t, h, guest)
	h.SSH(guest, "iptables -A INPUT -p tcp --dport 79 -j LOG --log-prefix noted: && iptables -F && ip6tables -F && iptables -t nat -F")
}

// bridgeDrops lets a bridge inside a guest drop what one of its ports sends to
// another, by the family of nft that Debian's kernels have.
func bridgeDrops(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	h.SSH(guest, `set -e
		ip link add br9 type bridge; ip link set br9 up
		for n in 1 2; do
			ip netns add n$n; ip link add p$n type veth peer name eth0 netns n$n
			ip link set p$n master br9 up; ip -n n$n link set eth0 up; ip -n n$n addr add 192.0.2.$n/24 dev eth0
		done`)
	const ping = "ip netns exec n1 ping -q -c1 -W1 192.0.2.2"
	reached := func() bool { return h.TrySSH(guest, ping).Code == 0 }
	h.Eventually("the bridge forwards", reached)
	h.SSH(guest, "nft add table bridge x && nft 'add chain bridge x f { type filter hook forward priority 0 ; }' && "+
		"nft add rule bridge x f ip protocol icmp counter drop && nft add rule bridge x f ct state established accept")
	if reached() {
		t.Error("a rule of nft's family bridge does not drop")
	}
	h.SSH(guest, "nft delete table bridge x")
	h.Eventually("the bridge forwards again", reached)
	h.SSH(guest, "ip netns del n1; ip netns del n2; ip link del br9")
}

// locked tries to get into the kernel of a guest that locked itself. The
// commands load modules.
func locked(t *testing.T, h *lab.Host, guest string, load ...string) {
	t.Helper()
	const denied = "Operation not permitted"
	attempts := append([]string{
		`perl -e 'open(my $f, "+<", "/dev/mem") or die "$!\n"'`,
		`perl -e 'open(my $f, "<", "/proc/kcore") or die "$!\n"'`,
		"mknod /root/mem c 1 1; head -c1 /root/mem",
		"unshare -Urmpf --mount-proc head -c1 /dev/mem",
	}, load...)
	for _, command := range attempts {
		r := h.TrySSH(guest, command)
		if r.Code == 0 || !strings.Contains(r.Stderr, denied) && !strings.Contains(r.Stderr, "Permission denied") {
			t.Errorf("%s: exit code %d\n%s%s", command, r.Code, r.Stdout, r.Stderr)
		}
	}
	if r := h.TrySSH(guest, "sysctl -w kernel.modules_disabled=0"); r.Code == 0 || h.SSH(guest, "cat /proc/sys/kernel/modules_disabled") != "1" {
		t.Errorf("the lock was opened: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	// What root may trace, or lets the kernel start in its stead, has no more
	// than root. Only threads of the kernel, which have no memory, cannot be
	// traced.
	holders := h.SSH(guest, `perl -e 'for my $p (glob "/proc/[0-9]*/status") { open(my $f, $p) or next; local $/; my $s = <$f>;
		next unless $s =~ /^VmSize/m; $s =~ /^Name:\s*(.*)/m; my $n = $1;
		for my $set ("Prm", "Bnd") { $s =~ /^Cap$set:\s*(\w+)/m; print "$n $set\n" if hex($1) >> `+strconv.Itoa(unix.CAP_SYS_RAWIO)+` & 1 } }'`)
	if holders != "" {
		t.Errorf("these programs can still get CAP_SYS_RAWIO:\n%s", holders)
	}
	h.SSH(guest, `printf '#!/bin/sh\n(grep CapBnd /proc/self/status; head -c1 /dev/mem; insmod /root/dummy.ko) > /root/helped 2>&1; touch /root/done\n' > /root/helper
		chmod +x /root/helper; rm -f /root/done; echo '|/root/helper' > /proc/sys/kernel/core_pattern`)
	h.TrySSH(guest, "ulimit -c unlimited; sh -c 'kill -SEGV $$'")
	h.Eventually("the kernel starts root's program", func() bool { return h.TrySSH(guest, "test -e /root/done").Code == 0 })
	if said := h.SSH(guest, "cat /root/helped"); strings.Count(said, denied) != 2 {
		t.Errorf("a program that the kernel started got in:\n%s", said)
	}
}

// undoHostfs is a program for a guest's root: in the memory of Debian's
// kernel, it finds the pointer to the argument hostfs= (root_ino in
// fs/hostfs/hostfs_kern.c), which leads to the stack of the process on the
// host, and makes it one to an empty text. The kernel's own memory begins at
// 0x60000000 (TASK_SIZE and uml_physmem in arch/um), as /dev/mem does. Then it
// mounts hostfs and prints all that there is but what lies in /proc.
const undoHostfs = `use strict; use Fcntl;
my ($base, $most, $all) = (0x60000000, 24 << 20, "");
sysopen(my $mem, "/dev/mem", O_RDWR) or die "open: $!\n";
while (length $all < $most) { sysread($mem, my $part, 1 << 16) or last; $all .= $part }
sub put { sysseek($mem, $_[0], 0); syswrite($mem, pack("Q", $_[1])) }
my ($empty, $undone) = ($base + index($all, "hostfs=\0") + 7);
for (my $at = 0; $at + 8 <= length $all && !$undone; $at += 8) {
	my $was = unpack("Q", substr($all, $at, 8));
	next unless $was >> 20 == 0x7ffffff && $was != 0x7fffffffffff;
	put($at, $empty);
	$undone = system("mount -i -t hostfs none /mnt -o / 2>/dev/null") == 0 or put($at, $was);
}
die "hostfs is still refused\n" unless $undone;
sub walk {
	my ($dir) = @_;
	opendir(my $d, "/mnt$dir") or return print "closed $dir/\n";
	for my $name (sort grep { !/^\.\.?$/ } readdir $d) {
		my $path = "$dir/$name"; my @s = lstat "/mnt$path";
		if ($dir eq "/proc") { print "proc $s[4] $name\n" }
		elsif (-d _ && !-l _) { walk($path) }
		else { print "file $path\n" }
	}
}
walk("");
print "wrote\n" if open(my $f, ">", "/mnt/written");
`

// jailByHostfs undoes the kernel's own refusal of hostfs, as a guest's root
// can who writes to the kernel's memory, and compares what is there with what
// the jail is made of (docs/adr/0011-jail.md).
func jailByHostfs(t *testing.T, h *lab.Host, guest string) {
	t.Helper()
	h.SSH(guest, "cat > /root/undo.pl <<'END'\n"+undoHostfs+"END\n")
	seen := h.SSH(guest, "perl /root/undo.pl && umount /mnt")
	g := h.Show(guest)
	own := []string{
		"/lib/", "/lib64/", "/usr/lib/", "/dev/", "/memory/",
		filepath.Join(h.RunDir, "guests", guest) + "/",
		filepath.Join(h.StateDir, "kernels") + "/",
		filepath.Join(h.StateDir, "images") + "/", lab.Images(t) + "/",
		filepath.Join(h.StateDir, "volumes", g.ID) + "/",
		filepath.Join(h.StateDir, "seeds", g.ID) + ".seed",
	}
	kinds := map[string]int{}
	for line := range strings.Lines(seen) {
		kind, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		kinds[kind]++
		switch kind {
		case "file":
			if !slices.ContainsFunc(own, func(prefix string) bool { return strings.HasPrefix(what, prefix) }) {
				t.Errorf("hostfs shows %s, which is not the guest's", what)
			}
		case "proc":
			uid, name, _ := strings.Cut(what, " ")
			if strings.Trim(name, "0123456789") == "" && uid != strconv.Itoa(g.UID) {
				t.Errorf("hostfs shows process %s of user %s; the guest is user %d", name, uid, g.UID)
			}
		case "wrote":
			t.Error("the root of the jail can be written to")
		}
	}
	// The guest's own disk has to be there: else nothing was seen at all.
	if !strings.Contains(seen, filepath.Join("volumes", g.ID)) || kinds["proc"] == 0 {
		t.Errorf("hostfs shows %v, without the guest's own disk:\n%s", slices.Sorted(maps.Keys(kinds)), seen)
	}
}
