package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sublet/internal/vps"
)

func root(_ context.Context, env Env) []Finding {
	if env.UID != 0 {
		return bad(Error, "run it with sudo, or log in as root", "this runs as user %d; links, firewall and jails need root", env.UID)
	}
	return ok("running as root")
}

func tun(_ context.Context, env Env) []Finding {
	const dev = "/dev/net/tun"
	err := env.OpenTUN(env.path(dev))
	switch {
	case err == nil:
		return ok("%s is usable", dev)
	case errors.Is(err, fs.ErrNotExist):
		return bad(Error, "modprobe tun; where that does not help: mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200",
			"%s is missing; guests have no network without it", dev)
	case errors.Is(err, fs.ErrPermission):
		return bad(Error, "run as root; inside a container, ask the provider to allow the TUN/TAP device", "%s may not be opened", dev)
	default:
		return bad(Error, "modprobe tun; inside a container, ask the provider to allow the TUN/TAP device", "%s does not work: %v", dev, err)
	}
}

// ptrace looks at Yama (Documentation/admin-guide/LSM/Yama.rst). A UML kernel
// traces the processes of its guest, its own children, which it starts with
// PTRACE_TRACEME; it runs without capabilities.
func ptrace(_ context.Context, env Env) []Finding {
	text, err := env.read("/proc/sys/kernel/yama/ptrace_scope")
	if errors.Is(err, fs.ErrNotExist) {
		return ok("tracing is not restricted (no Yama)")
	}
	if err != nil {
		return bad(Warning, "run as root", "kernel.yama.ptrace_scope cannot be read: %v", err)
	}
	const persist = "echo kernel.yama.ptrace_scope=1 > /etc/sysctl.d/99-sublet.conf"
	switch text {
	case "0", "1":
		return ok("kernel.yama.ptrace_scope is %s", text)
	case "2":
		return bad(Error, "sysctl -w kernel.yama.ptrace_scope=1 && "+persist,
			"kernel.yama.ptrace_scope is 2: only privileged processes may trace, but guests run unprivileged and trace their own")
	default:
		return bad(Error, persist+"; remove other settings of it from /etc/sysctl.d, then reboot",
			"kernel.yama.ptrace_scope is %s: tracing is off until the next reboot, and guests cannot run without it", text)
	}
}

// oldestJail is the first kernel whose /proc can be mounted with processes
// alone (subset=pid).
var oldestJail = [2]int{5, 8}

// jail looks at what the kernel has to offer for the jail around a guest's
// process. Mounts and namespaces are only found out by making them.
func jail(_ context.Context, env Env) []Finding {
	release, err := env.read("/proc/sys/kernel/osrelease")
	if err != nil {
		return bad(Warning, "mount -t proc proc /proc", "the kernel's version cannot be read: %v", err)
	}
	var have [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		return bad(Warning, "uname -r", "the kernel calls itself %q, which is no version", firstLine(release))
	}
	if slices.Compare(have[:], oldestJail[:]) < 0 {
		return bad(Error, "boot a newer kernel, or ask the provider for one", "the kernel is %d.%d; the jail around guests needs %d.%d or newer", have[0], have[1], oldestJail[0], oldestJail[1])
	}
	if _, err := env.read("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		return bad(Error, "boot a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no filter for system calls (seccomp), which the jail around guests needs")
	}
	return ok("the kernel, %d.%d, has what the jail around guests needs", have[0], have[1])
}

// oldestNFT is the oldest version that our rules were tried with.
var oldestNFT = [3]int{1, 0, 6}

// trial uses what our rules use, in every family. nft -c hands it to the
// kernel, which checks it and throws it away.
const trial = `table inet sublet_trial {
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		flags interval
	}
	set pairs {
		typeof iifname . ip saddr
	}
	chain before {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local meta l4proto { tcp, udp } dnat ip to meta l4proto . th dport map @ports
	}
	chain after {
		type nat hook postrouting priority srcnat; policy accept;
		masquerade
	}
	chain through {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		iifname . ip saddr @pairs counter accept
	}
}
`

func nft(ctx context.Context, env Env) []Finding {
	if _, err := env.LookPath("nft"); err != nil {
		return bad(Error, "apt-get install nftables", "the program nft is missing; the firewall needs it")
	}
	said, err := env.Run(ctx, "", "nft", "--version")
	if err != nil {
		return bad(Error, "apt-get install --reinstall nftables", "nft does not run: %v", err)
	}
	version, known := parseVersion(said)
	if !known {
		return bad(Warning, "apt-get install nftables", "nft does not tell its version: %q", firstLine(said))
	}
	name := joinVersion(version)
	if slices.Compare(version[:], oldestNFT[:]) < 0 {
		return bad(Warning, "upgrade to Debian 12 or newer", "nft is version %s; older ones than %s were not tried", name, joinVersion(oldestNFT))
	}
	if _, err := env.Run(ctx, trial, "nft", "-c", "-f", "-"); err != nil {
		return bad(Error, "modprobe nf_tables nft_nat nft_chain_nat nft_fib_inet; inside a container, ask the provider for nf_tables; as root, if you are not",
			"the kernel does not take the firewall's rules: %s", firstLine(err.Error()))
	}
	return ok("nft %s, and the kernel takes the firewall's rules", name)
}

func parseVersion(s string) (v [3]int, known bool) {
	m := regexp.MustCompile(`v(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?`).FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits, or nothing for a missing third part
	}
	return v, true
}

func joinVersion(v [3]int) string {
	return strconv.Itoa(v[0]) + "." + strconv.Itoa(v[1]) + "." + strconv.Itoa(v[2])
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func forwarding(_ context.Context, env Env) []Finding {
	text, err := env.read("/proc/sys/net/ipv4/ip_forward")
	switch {
	case err != nil:
		return bad(Warning, "run as root", "net.ipv4.ip_forward cannot be read: %v", err)
	case text == "1":
		return ok("IP forwarding is on")
	default:
		return ok("IP forwarding is off; the daemon turns it on when it starts")
	}
}

func guestKernel(ctx context.Context, env Env) []Finding {
	if env.Kernel == nil {
		return nil
	}
	k, err := env.Kernel(ctx)
	if err != nil {
		why := "no kernel was found"
		if e, isOurs := errors.AsType[*vps.Error](err); isOurs {
			why = e.Message
		}
		return bad(Error, "apt-get install user-mode-linux", "there is no kernel for guests: %s", why)
	}
	return ok("guests boot %s (%s)", k.Name, k.Path)
}

// tools looks for the programs that only building an image needs.
func tools(_ context.Context, env Env) []Finding {
	var out []Finding
	for _, t := range []struct{ program, pkg, use string }{
		{"mmdebstrap", "mmdebstrap", "images cannot be built"},
		{"mke2fs", "e2fsprogs", "images cannot be built"},
	} {
		if _, err := env.LookPath(t.program); err != nil {
			out = append(out, bad(Warning, "apt-get install "+t.pkg, "the program %s is missing; %s without it", t.program, t.use)...)
		}
	}
	if out == nil {
		return ok("mmdebstrap and mke2fs are there")
	}
	return out
}

// leastFree is the room below which the daemon's own records are in danger.
const leastFree = 256 * vps.MiB

func disk(_ context.Context, env Env) []Finding {
	room, err := env.Space(env.StateDir)
	switch {
	case err != nil:
		return bad(Error, "mkdir -p "+path.Clean(env.StateDir), "the room in %s cannot be read: %v", env.StateDir, err)
	case room.Available < leastFree:
		return bad(Error, "free some space there; du -xh "+path.Clean(env.StateDir)+" | sort -h | tail shows what takes it",
			"%s has %s left; with a full disk nothing can be changed any more", env.StateDir, room.Available)
	case room.Available < env.Growth:
		return bad(Warning, "free some space there, add a disk, or delete guests that are not needed",
			"%s has %s left, but guests' disks may still grow by %s; guests see write errors when it is full", env.StateDir, room.Available, env.Growth)
	}
	return ok("%s has %s left, and guests' disks may still grow by %s", env.StateDir, room.Available, env.Growth)
}

func memory(_ context.Context, env Env) []Finding {
	total, err := env.memTotal()
	if err != nil {
		return bad(Warning, "mount -t proc proc /proc", "the host's memory cannot be read: %v", err)
	}
	percent := env.Overcommit
	if percent == 0 {
		percent = 100
	}
	limit := total * vps.Bytes(percent) / 100
	if env.Promised > limit {
		return bad(Warning, "stop a guest, give guests less memory, or raise the setting memory_overcommit and add swap",
			"guests were promised %s of memory, over %d%% of the host's %s", env.Promised, percent, total)
	}
	return ok("guests were promised %s of the host's %s of memory", env.Promised, total)
}

// memTotal reads proc_meminfo(5), which counts in KiB.
func (e Env) memTotal() (vps.Bytes, error) {
	text, err := e.read("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemTotal:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return vps.Bytes(n) * vps.KiB, err
		}
	}
	return 0, errors.New("no MemTotal in /proc/meminfo")
}

// cgroup is a note: guests run without any.
func cgroup(_ context.Context, env Env) []Finding {
	if text, err := env.read("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return ok("cgroup v2 with %s", strings.Join(strings.Fields(text), ", "))
	}
	for _, file := range []string{"/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"} {
		if _, err := env.read(file); err == nil {
			return ok("cgroup v1; limits that need version 2 are not set")
		}
	}
	return ok("no cgroups are mounted; limits that need them are not set")
}

func firewalls(ctx context.Context, env Env) []Finding {
	if env.Firewalls == nil {
		return nil
	}
	found, err := env.Firewalls(ctx)
	if err != nil {
		return bad(Warning, "run as root, and mend what is said of nft first", "the rules of other firewalls cannot be read: %s", vps.ErrorMessage(err))
	}
	if len(found) == 0 {
		return ok("no other firewall drops guests' packets")
	}
	return found
}
