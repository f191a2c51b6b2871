//go:build linux

package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sublet/internal/durable"
	"sublet/internal/keeper/cgroup" //nolint:depguard // a part of this package
	"sublet/internal/vps"
)

// groupsName is the file in the run folder that tells which control groups
// the guest is in, and what bounds it.
const groupsName = "cgroups.json"

// groups is that file.
type groups struct {
	Group *cgroup.Group `json:"group"`
	// Guest is the room for the guest's own memory, and Memory the hard limit
	// that follows from it.
	Guest  vps.Bytes `json:"guest"`
	Memory vps.Bytes `json:"memory"`
	// Disk is the file whose disk bounds of I/O are for.
	Disk string `json:"disk,omitempty"`
	// Resources are those in force.
	Resources vps.Resources `json:"resources"`
}

// What a guest's processes may take of the host beyond the files in its
// MemoryDir, which hold the guest's own memory. Each process of a guest is one
// of the host, whose kernel keeps a stack, tables and an area for each piece of
// memory for it; see docs/adr/0012-limits.md.
const (
	// overheadBase is for the guest's kernel itself, its helpers, and what is
	// on its way to and from its disks.
	overheadBase = 64 * vps.MiB
	// overheadPart of the memory is for areas and tables of memory that one
	// process of the guest has: at worst an area for each page.
	overheadPart = 8
	// overheadPerProcess is for a process with little memory of its own.
	overheadPerProcess = 160 * vps.KiB
	// overheadMost times the memory is what processes may take at most: a guest
	// with little memory has no room for as many as it may have.
	overheadMost = 2
)

// overhead is that, for a guest with that much memory; 0 processes stands for
// vps.DefaultProcesses.
func overhead(memory vps.Bytes, processes int) vps.Bytes {
	if processes == 0 {
		processes = vps.DefaultProcesses
	}
	return overheadBase + memory/overheadPart + min(vps.Bytes(processes)*overheadPerProcess, overheadMost*memory)
}

// hardLimit is the limit of a guest's control group, on a host with that much
// memory. The host keeps an eighth of its own, as long as a guest with few
// processes fits beside that; else it is the owner who wants too much, and the
// guest is not held to less than it was given.
func hardLimit(memory vps.Bytes, processes int, host vps.Bytes) vps.Bytes {
	const hostPart = 8
	least := memory + overhead(memory, leastProcesses)
	return min(memory+overhead(memory, processes), max(least, host-host/hostPart))
}

// leastProcesses are as many as a guest with an ordinary system has.
const leastProcesses = 128

// hostMemory is how much memory the host has; without an answer no bound
// follows from it.
func hostMemory() vps.Bytes {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return math.MaxInt64
	}
	return vps.Bytes(info.Totalram) * vps.Bytes(info.Unit)
}

// bound makes the guest's control groups, before it starts, and writes down
// what is in force. A host that has no control groups is told of in the log:
// the guest runs without those limits, as the doctor says.
func (k *keeper) bound(anchor int) (*groups, error) {
	name := "guest"
	if !k.cfg.Delegated {
		name = k.cfg.GuestID
	}
	group, err := cgroup.Make(name, k.cfg.Delegated, os.Getpid(), anchor)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "cannot make the control groups of guest %s", k.cfg.Name)
	}
	g := &groups{Group: group, Guest: k.cfg.Memory}
	if len(k.cfg.Disks) > 0 {
		g.Disk = k.cfg.Disks[0]
	}
	if err := g.set(k.cfg.Resources); err != nil {
		k.log.Warn("not all limits of the guest can be held", "guest", k.cfg.Name, "error", err)
	}
	k.cfg.Cgroups = group.Folders()
	return g, durable.WriteJSON(filepath.Join(k.cfg.RunDir, groupsName), g)
}

// set applies limits and remembers those that are in force. The hard limit
// grows with the number of processes; it does not shrink while the guest runs,
// which could kill it.
func (g *groups) set(r vps.Resources) error {
	g.Memory = max(g.Memory, hardLimit(g.Guest, r.Processes, hostMemory()))
	if err := g.Group.Set(cgroup.Limits{Memory: g.Memory, Resources: r, Disk: g.Disk}); err != nil {
		return err
	}
	g.Resources = r
	return nil
}

func readGroups(runDir string) (*groups, error) {
	text, err := os.ReadFile(filepath.Join(runDir, groupsName))
	if err != nil {
		return nil, err
	}
	g := &groups{}
	if err := json.Unmarshal(text, g); err != nil || g.Group == nil {
		return nil, fmt.Errorf("read %s: %w", groupsName, err)
	}
	return g, nil
}

// Limits returns what bounds the guest whose run folder this is; nil when
// nothing was ever written down, as by a keeper of an older version.
func Limits(runDir string) (*vps.Resources, error) {
	g, err := readGroups(runDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil //nolint:nilnil // nothing is known, which is no error
	case err != nil:
		return nil, vps.Wrap(vps.CodeInternal, err, "what bounds the guest in %s cannot be read", runDir)
	}
	return &g.Resources, nil
}

// SetLimits bounds a running guest anew, at once. What the host cannot hold is
// a vps.CodeConflict, and the rest is in force all the same.
func SetLimits(runDir string, r vps.Resources) error {
	g, err := readGroups(runDir)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "what bounds the guest in %s cannot be read", runDir)
	}
	if err := g.set(r); err != nil {
		return err
	}
	if err := durable.WriteJSON(filepath.Join(runDir, groupsName), g); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the new limits hold, but could not be written down in %s", runDir)
	}
	return nil
}

// Unbound removes the control groups that a guest which has ended left, as
// when its keeper was killed. Absent is success.
func Unbound(runDir string) error {
	g, err := readGroups(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.Group.Remove()
}

// CleanUp removes what is left of control groups when no guest runs on the
// host.
func CleanUp() error { return cgroup.CleanUp() }

// outOfMemory makes an exit say that it was the host's limit of memory.
func (g *groups) outOfMemory(e vps.Exit) vps.Exit {
	if e.Failed() && g.Group.OOMKills() > 0 {
		e.Detail = fmt.Sprintf("out of memory: its processes took more than the %s that the host lets them have", g.Memory)
	}
	return e
}
