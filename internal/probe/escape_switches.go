//go:build linux

package probe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// opensForWriting opens without writing: the right is what counts, and most of
// these would hurt the host.
func opensForWriting(t *trail, paths ...string) {
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if t.worked("opening "+p+" for writing", err) {
			closeFD(fd)
		}
	}
}

func procSwitches(a *attacker, t *trail) error {
	for _, root := range []string{"", "/proc/1/root", "/proc/" + strconv.Itoa(a.KeeperPID) + "/root"} {
		for _, p := range []string{
			"sysrq-trigger", "sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/kernel/hotplug", "sys/kernel/hostname",
			"sys/kernel/sysrq", "sys/kernel/panic", "sys/kernel/randomize_va_space", "sys/kernel/usermodehelper/bset",
			"sys/kernel/ns_last_pid", "sys/vm/drop_caches", "sys/vm/overcommit_memory", "sys/vm/panic_on_oom",
			"sys/fs/binfmt_misc/register", "sys/fs/suid_dumpable", "sys/fs/protected_symlinks",
			"sys/net/ipv4/ip_forward", "sys/net/ipv4/conf/all/rp_filter", "sys/net/ipv6/conf/all/forwarding",
			"irq/default_smp_affinity", "mtrr", "bus/pci/devices", "acpi/wakeup", "scsi/scsi", "timer_list", "1/oom_score_adj",
		} {
			opensForWriting(t, root+"/proc/"+p)
		}
	}
	return nil
}

func sysSwitches(a *attacker, t *trail) error {
	for _, p := range []string{
		"kernel/uevent_helper", "kernel/mm/ksm/run", "kernel/mm/transparent_hugepage/enabled", "kernel/debug/tracing/trace_on",
		"kernel/security/apparmor/.load", "kernel/kexec_crash_size", "power/state", "power/disk", "module/kernel/parameters/initcall_debug",
		"class/net/lo/mtu", "class/net/" + a.OwnTap + "/owner", "class/net/" + a.OwnTap + "/mtu", "class/net/" + a.VictimTap + "/mtu",
		"block/vda/uevent", "block/sda/uevent", "firmware/efi/vars/new_var", "fs/bpf",
	} {
		opensForWriting(t, "/sys/"+p, "/proc/1/root/sys/"+p)
	}
	return nil
}

func procMemory(_ *attacker, t *trail) error {
	for _, p := range []string{"kcore", "kmsg", "kpagecount", "kpageflags", "vmallocinfo", "slabinfo", "iomem", "partitions", "mounts", "1/environ", "1/maps", "1/pagemap"} {
		path := "/proc/" + p
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.refused(path, err)
			continue
		}
		what, err := readsFrom(fd)
		closeFD(fd)
		switch {
		case err != nil:
			t.refused(path+" is open, but read", err)
		case p == "partitions" || p == "mounts":
			// They tell things and give nothing.
			t.saw(path + " can be read")
		default:
			t.broke("%s: %s", path, what)
		}
	}
	return nil
}

func cgroupFiles(_ *attacker, t *trail) error {
	dirs := map[string]bool{"/sys/fs/cgroup": true, "/sys/fs/cgroup/unified": true}
	for _, c := range []string{"memory", "pids", "cpu", "cpu,cpuacct", "cpuset", "blkio", "devices", "freezer", "rdma", "systemd"} {
		dirs["/sys/fs/cgroup/"+c] = true
	}
	for _, p := range []string{"self", "1"} {
		groups, err := os.ReadFile("/proc/" + p + "/cgroup")
		if err != nil {
			t.refused("/proc/"+p+"/cgroup", err)
		}
		for line := range strings.Lines(string(groups)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 {
				continue
			}
			for _, top := range []string{"/sys/fs/cgroup/" + strings.TrimPrefix(f[1], "name="), "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
				for dir := filepath.Clean(top + f[2]); len(dir) >= len("/sys/fs/cgroup"); dir = filepath.Dir(dir) {
					dirs[dir] = true
				}
			}
		}
	}
	for dir := range dirs {
		for _, f := range []string{
			"cgroup.procs", "tasks", "release_agent", "notify_on_release", "cgroup.subtree_control", "cgroup.kill", "cgroup.freeze",
			"memory.max", "memory.high", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us", "devices.allow",
		} {
			opensForWriting(t, dir+"/"+f)
		}
		t.worked("making groups in "+dir, unix.Access(dir, unix.W_OK))
	}
	// A hierarchy of its own making: the new one of version 2 shows all groups,
	// and making it changes nothing.
	t.tryInChild(unix.CLONE_NEWNS,
		must(unix.SYS_MOUNT, text("none"), text("/"), nil, unix.MS_REC|unix.MS_PRIVATE, nil),
		step{"mounting cgroup2", unix.SYS_MOUNT, []any{text("none"), text("/"), text("cgroup2"), 0, nil}})
	return nil
}
