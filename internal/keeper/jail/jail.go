//go:build linux

// Package jail shuts a guest's process in before it starts: Enter is called by
// a small process of our own, in new namespaces, which turns itself into the
// guest. A server of ours that strangers talk to is shut in by Server in much
// the same way, with other files, another filter and the host's network.
//
// It is assumed that whoever controls the process attacks the host with it.
// What it is left with: a root filesystem that holds the files which it was
// given and nothing else, its own processes in /proc, six devices, no
// capability in any set, and the system calls in filter.go. Why this is our
// own code, and what it was compared to: docs/adr/0011-jail.md.
package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Namespaces are those that the process which calls Enter has to be started
// in, beside the pid namespace that it is in already. The network stays the
// host's: a tap is opened by name, in the network that it is in.
const Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Config says what a guest is started as and what it gets to see.
type Config struct {
	// Root is an empty folder of the host, of no use to anybody else, that
	// becomes the root in the new mount namespace. On the host it stays empty.
	Root string `json:"root"`
	// WorkDir is the guest's working folder, an absolute path inside. It is
	// root's and read-only; nothing of a folder of that name on the host is seen.
	WorkDir string `json:"work_dir"`
	// OwnDirs are plain names of folders in WorkDir that belong to the guest:
	// small, in memory, gone with it.
	OwnDirs []string `json:"own_dirs,omitempty"`
	// Files are files of the host, by absolute path, that the guest sees
	// read-only under the same path. A path may be there twice.
	Files []string `json:"files"`
	// Writable are those that it may write to as well, as far as their mode
	// lets it.
	Writable []string `json:"writable,omitempty"`
	// Devices are disks of the host that it sees as devices of its own.
	Devices []Device `json:"devices,omitempty"`
	// Links are files of the host that the guest sees read-only under another
	// path: from the path inside to that of the host.
	Links map[string]string `json:"links,omitempty"`
	// MemoryDir is a folder for files in memory, which may be executed, of
	// MemorySize bytes.
	MemoryDir  string    `json:"memory_dir"`
	MemorySize vps.Bytes `json:"memory_size"`
	// Cgroups are folders of control groups that the process joins.
	Cgroups []string `json:"cgroups,omitempty"`
	// Connects lets it connect to local sockets of packets, such as one among
	// its Files. It has to have a network namespace of its own then, because
	// abstract sockets of its network are in reach (unix(7)).
	Connects bool `json:"connects,omitempty"`
	// UID is its user and its group, never 0.
	UID uint32 `json:"uid"`
	// Program is what is executed, by its path inside; Argv and Env are all of
	// its arguments, with argv[0], and its environment.
	Program string   `json:"program"`
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
}

// Device is a block device that belongs to the guest's user, in its root.
type Device struct {
	// Path is below /dev.
	Path     string `json:"path"`
	Major    uint32 `json:"major"`
	Minor    uint32 `json:"minor"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// check refuses what would show the guest more than was meant.
func (c *Config) check() error {
	paths := slices.Concat([]string{c.Root, c.WorkDir, c.MemoryDir, c.Program}, c.Files, c.Writable)
	for inside, outside := range c.Links {
		paths = append(paths, inside, outside)
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
			return vps.Invalid("jail", "%q is not a clean, absolute path", p)
		}
		for _, kept := range []string{"/proc", "/dev"} {
			if p == kept || strings.HasPrefix(p, kept+"/") {
				return vps.Invalid("jail", "%q lies in a folder that the jail makes itself", p)
			}
		}
	}
	for _, d := range c.Devices {
		if filepath.Clean(d.Path) != d.Path || !strings.HasPrefix(d.Path, "/dev/") || d.Major == 0 {
			return vps.Invalid("jail", "%q is no place for a disk's device", d.Path)
		}
	}
	for _, d := range c.OwnDirs {
		if d != filepath.Base(d) || !filepath.IsLocal(d) || d == "." {
			return vps.Invalid("jail", "%q is not a plain name", d)
		}
	}
	if c.UID == 0 || len(c.Argv) == 0 || c.MemorySize <= 0 {
		return vps.Invalid("jail", "a user that is not root, arguments and room for memory are needed")
	}
	return nil
}

// Enter reads a Config from r, shuts the calling process in, and executes the
// guest's program in its place. It returns only with an error, which names
// what this host does not allow; there is no jail with a part left out.
//
// The process has to be root, in the Namespaces, with standard streams that
// are the guest's. All other descriptors are closed.
func Enter(r io.Reader) error {
	// What follows changes this thread, and execve leaves no other.
	runtime.LockOSThread()
	var c Config
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	if err := c.check(); err != nil {
		return err
	}
	filter, err := assemble(c.Connects)
	if err != nil {
		return fmt.Errorf("make the filter of system calls: %w", err)
	}
	if err := joinCgroups(c.Cgroups); err != nil {
		return err
	}
	if err := c.buildRoot(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return fmt.Errorf("name the guest's own host: %w", err)
	}
	if err := limit(); err != nil {
		return err
	}
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files from the guest: %w", err)
	}
	if err := drop(c.UID, 0); err != nil {
		return err
	}
	if err := filter.install(0); err != nil {
		return fmt.Errorf("install the filter of system calls; this host's kernel may lack CONFIG_SECCOMP_FILTER: %w", err)
	}
	if err := syscall.Exec(c.Program, c.Argv, c.Env); err != nil {
		return fmt.Errorf("execute %s: %w", c.Program, err)
	}
	return nil
}

// joinCgroups puts this process into its groups while it still may.
func joinCgroups(folders []string) error {
	for _, dir := range folders {
		// 0 stands for the writing process (cgroups(7)).
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o600); err != nil {
			return fmt.Errorf("join the guest's control group: %w", err)
		}
	}
	return nil
}

// addrNoRandomize is ADDR_NO_RANDOMIZE of personality(2), linux/personality.h.
const addrNoRandomize = 0x0040000

// limit sets what bounds this process beside its cgroups. The limits on open
// files and on the size of files are inherited from the keeper.
func limit() error {
	// User Mode Linux maps its memory behind its program break. With a random
	// break it puts up to 1 GiB of nothing between, for which the guest's
	// kernel keeps page structures out of the guest's memory. Newer kernels
	// do the same as we here by themselves (arch/um/os-Linux/main.c).
	if _, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, addrNoRandomize, 0, 0); e != 0 {
		return fmt.Errorf("set the personality: %w", e)
	}
	return limitNone()
}

// limitNone takes away what no process in a jail has a use for.
func limitNone() error {
	for what, resource := range map[string]int{
		"core files": unix.RLIMIT_CORE, "message queues": unix.RLIMIT_MSGQUEUE, "locked memory": unix.RLIMIT_MEMLOCK,
		"realtime priority": unix.RLIMIT_RTPRIO, "priority": unix.RLIMIT_NICE,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{}); err != nil {
			return fmt.Errorf("limit %s: %w", what, err)
		}
	}
	return nil
}

// drop gives up everything that root is, in this thread, but for one capability
// that stays beyond the next exec; 0, CAP_CHOWN, stands for none.
func drop(uid uint32, kept uintptr) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	// EINVAL says that the last one was dropped (capabilities(7)).
	for capability := uintptr(0); ; capability++ {
		if kept != 0 && capability == kept {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && capability > unix.CAP_AUDIT_CONTROL {
			break
		}
		if err != nil {
			return fmt.Errorf("drop the capability %d: %w", capability, err)
		}
	}
	if kept != 0 {
		// Else the change of the user takes it, too.
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("keep a capability: %w", err)
		}
	}
	// The raw calls change this thread only; package syscall's would change all
	// of the runtime's, which have no part in what follows. From 0 to another
	// id the kernel clears the permitted and effective sets.
	id := uintptr(uid)
	for _, call := range []struct {
		what             string
		number, a, b, c2 uintptr
	}{
		{"groups", unix.SYS_SETGROUPS, 0, 0, 0},
		{"group", unix.SYS_SETRESGID, id, id, id},
		{"user", unix.SYS_SETRESUID, id, id, id},
	} {
		if _, _, e := unix.RawSyscall(call.number, call.a, call.b, call.c2); e != 0 {
			return fmt.Errorf("become the guest's %s: %w", call.what, e)
		}
	}
	// Inheritable ones too, which setuid leaves alone.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var left [2]unix.CapUserData
	if kept != 0 {
		bit := uint32(1) << (kept % 32)
		left[kept/32] = unix.CapUserData{Effective: bit, Permitted: bit, Inheritable: bit}
	}
	if err := unix.Capset(&header, &left[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if kept == 0 {
		return nil
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, kept, 0, 0); err != nil {
		return fmt.Errorf("keep a capability beyond exec: %w", err)
	}
	return nil
}
