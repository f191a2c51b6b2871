//go:build linux

// Package cgroup bounds what a guest's processes take of the host, with the
// control groups of version 2, or of version 1 for each controller that the
// host has there only. Files and their units are those of the kernel's
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Limits are what a group may take. Zero values bound nothing.
type Limits struct {
	// Memory is the most that all processes together may have, with what the
	// kernel keeps for them; beyond it all of them are killed.
	Memory    vps.Bytes
	Resources vps.Resources
	// Disk is a file on the disk that the bounds of I/O are for.
	Disk string
}

// Group is a control group, in as many hierarchies as there are controllers
// for it. It is plain data that can be written down and read again.
type Group struct {
	// V2 is its folder in the hierarchy of version 2, empty when no controller
	// is there.
	V2 string `json:"v2,omitempty"`
	// V1 are its folders in hierarchies of version 1, by controller.
	V1 map[string]string `json:"v1,omitempty"`
	// Missing are the controllers that the host does not have for it.
	Missing []string `json:"missing,omitempty"`
}

// controllers are those that limits need. I/O is called otherwise in version 1.
var controllers = []string{"cpu", "memory", "pids", "io"} //nolint:gochecknoglobals // a constant

func v1Name(controller string) string {
	if controller == "io" {
		return "blkio"
	}
	return controller
}

// folderMode lets everybody look at a group, and only root change it.
const folderMode = 0o755

// Make makes the group with this name, a plain one, or takes one that is there
// and empty. delegated says that the calling process runs in a group that it
// may divide, as in a unit of systemd's with Delegate=yes: then the group is
// made there, and own, the processes that stay outside of it (this one among
// them), are moved aside where version 2 asks for it. Otherwise it is made
// below a group "sublet" at the top. A controller that cannot be had is in
// Missing; an error is only for what should have worked.
func Make(name string, delegated bool, own ...int) (*Group, error) {
	h, err := find("/proc/self")
	if err != nil {
		return nil, err
	}
	g := &Group{V1: map[string]string{}}
	if err := g.makeV2(h, name, delegated, own); err != nil {
		return nil, err
	}
	for _, c := range controllers {
		mount, there := h.v1[v1Name(c)]
		switch {
		case g.V2 != "" && slices.Contains(h.inV2, c):
		case !there:
			g.Missing = append(g.Missing, c)
		default:
			dir := filepath.Join(mount.path, "sublet", name)
			if delegated {
				dir = filepath.Join(mount.path, mount.own, name)
			}
			if err := os.MkdirAll(dir, folderMode); err != nil {
				g.Missing = append(g.Missing, c)
				continue
			}
			g.V1[c] = dir
		}
	}
	return g, nil
}

// makeV2 makes the folder of version 2 when controllers are there.
func (g *Group) makeV2(h *hierarchies, name string, delegated bool, own []int) error {
	if len(h.inV2) == 0 {
		return nil
	}
	parent := filepath.Join(h.v2.path, "sublet")
	if delegated {
		parent = filepath.Join(h.v2.path, h.v2.own)
		// A group with controllers for its children has no processes itself.
		aside := filepath.Join(parent, "keeper")
		if filepath.Base(parent) == "keeper" {
			parent, aside = filepath.Dir(parent), parent
		}
		if err := os.MkdirAll(aside, folderMode); err != nil {
			return fmt.Errorf("make a control group for the keeper: %w", err)
		}
		for _, pid := range own {
			if err := write(aside, "cgroup.procs", strconv.Itoa(pid)); err != nil {
				return fmt.Errorf("move the keeper to a control group of its own: %w", err)
			}
		}
	} else if os.MkdirAll(parent, folderMode) != nil {
		h.inV2 = nil // a host that does not let us: version 1 may
	}
	var enabled []string
	for _, c := range h.inV2 {
		if !delegated && write(h.v2.path, "cgroup.subtree_control", "+"+c) != nil {
			continue
		}
		if write(parent, "cgroup.subtree_control", "+"+c) == nil {
			enabled = append(enabled, c)
		}
	}
	h.inV2 = enabled
	if len(enabled) == 0 {
		return nil
	}
	dir := filepath.Join(parent, name)
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return fmt.Errorf("make a control group for the guest: %w", err)
	}
	g.V2 = dir
	return nil
}

// Folders are those whose cgroup.procs a process is written to to join.
func (g *Group) Folders() []string {
	var all []string
	if g.V2 != "" {
		all = append(all, g.V2)
	}
	for _, dir := range g.V1 {
		if !slices.Contains(all, dir) { // cpu and cpuacct may share one
			all = append(all, dir)
		}
	}
	slices.Sort(all)
	return all
}

// Set applies limits to the group, at any time. It tries all of them and
// returns what could not be set, joined.
func (g *Group) Set(l Limits) error {
	var errs error
	for _, set := range []struct {
		controller string
		asked      bool
		set        func(dir string, v2 bool) error
	}{
		{"memory", l.Memory > 0, l.setMemory},
		{"cpu", l.Resources.CPUWeight > 0 || l.Resources.CPUQuota > 0, l.setCPU},
		{"pids", true, l.setProcesses},
		{"io", l.Resources.IOWeight > 0 || l.Resources.IORead > 0 || l.Resources.IOWrite > 0, l.setIO},
	} {
		dir, v2 := g.V1[set.controller], false
		if dir == "" {
			dir, v2 = g.V2, true
		}
		if slices.Contains(g.Missing, set.controller) || dir == "" {
			if set.asked {
				errs = errors.Join(errs, vps.Errorf(vps.CodeConflict, "this host has no control groups for %s, so that limit cannot be held; boot it with cgroup v2, or ask the provider", set.controller))
			}
			continue
		}
		if err := set.set(dir, v2); err != nil {
			errs = errors.Join(errs, vps.Wrap(vps.CodeConflict, err, "the host's kernel does not take the limit of %s", set.controller))
		}
	}
	return errs
}

// setMemory bounds memory, and swap by as much again: a guest is not to use up
// what others are swapped to.
func (l Limits) setMemory(dir string, v2 bool) error {
	if v2 {
		// All of a guest or nothing: half of one is of no use to anybody.
		return errors.Join(write(dir, "memory.oom.group", "1"), write(dir, "memory.max", orMax(int64(l.Memory))),
			unlessMissing(write(dir, "memory.swap.max", orMax(int64(l.Memory)))))
	}
	const memory, withSwap = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	limit, both := int64(l.Memory), 2*int64(l.Memory)
	if limit == 0 {
		limit, both = -1, -1
	}
	// The one may never be below the other, so the order depends on where they
	// come from.
	err := unlessMissing(write(dir, withSwap, strconv.FormatInt(both, 10)))
	if first := write(dir, memory, strconv.FormatInt(limit, 10)); first != nil || err == nil {
		return errors.Join(first, err)
	}
	return unlessMissing(write(dir, withSwap, strconv.FormatInt(both, 10)))
}

// unlessMissing leaves out that there is no such file: swap is counted where
// the kernel was built, or booted, to do so.
func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// cpuPeriod is the kernel's default period of quotas, in microseconds.
const cpuPeriod = 100_000

func (l Limits) setCPU(dir string, v2 bool) error {
	const weight, shares, percent = 100, 1024, 100
	w := l.Resources.CPUWeight
	if w == 0 {
		w = weight
	}
	quota := int64(l.Resources.CPUQuota) * cpuPeriod / percent
	if v2 {
		return errors.Join(write(dir, "cpu.weight", strconv.Itoa(w)), write(dir, "cpu.max", fmt.Sprintf("%s %d", orMax(quota), cpuPeriod)))
	}
	if quota == 0 {
		quota = -1
	}
	const least = 2 // MIN_SHARES, kernel/sched/sched.h
	return errors.Join(write(dir, "cpu.shares", strconv.Itoa(max(w*shares/weight, least))),
		write(dir, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)), write(dir, "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)))
}

func (l Limits) setProcesses(dir string, _ bool) error {
	n := l.Resources.Processes
	if n == 0 {
		n = vps.DefaultProcesses
	}
	return write(dir, "pids.max", strconv.Itoa(n))
}

func (l Limits) setIO(dir string, v2 bool) error {
	r := l.Resources
	var errs error
	if r.IOWeight > 0 {
		errs = setIOWeight(dir, v2, r.IOWeight)
	}
	if l.Disk == "" {
		return errs
	}
	device, err := deviceOf(l.Disk)
	switch {
	case err != nil && r.IORead == 0 && r.IOWrite == 0:
		return errs // there was never anything to take back
	case err != nil:
		return errors.Join(errs, err)
	case v2:
		return errors.Join(errs, write(dir, "io.max", fmt.Sprintf("%s rbps=%s wbps=%s", device, orMax(int64(r.IORead)), orMax(int64(r.IOWrite)))))
	}
	return errors.Join(errs,
		write(dir, "blkio.throttle.read_bps_device", fmt.Sprintf("%s %d", device, int64(r.IORead))),
		write(dir, "blkio.throttle.write_bps_device", fmt.Sprintf("%s %d", device, int64(r.IOWrite))))
}

// setIOWeight sets the share of a busy disk, which takes a scheduler that
// knows shares (BFQ, or iocost in version 2).
func setIOWeight(dir string, v2 bool, weight int) error {
	// Version 1 has 10 to 1000, the default being 500 (CFQ) or 100 (BFQ).
	const most = 1000
	old := strconv.Itoa(min(max(weight, 10), most))
	files := []struct{ name, value string }{{"blkio.bfq.weight", old}, {"blkio.weight", old}}
	if v2 {
		files = []struct{ name, value string }{{"io.weight", "default " + strconv.Itoa(weight)}, {"io.bfq.weight", old}}
	}
	for _, f := range files {
		if err := write(dir, f.name, f.value); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return errors.New("no scheduler of the host's disks knows weights; use BFQ, or bound bytes per second")
}

// orMax writes a bound as version 2 does.
func orMax(n int64) string {
	if n <= 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// write changes one file of a group. Such files are never made by writing.
func write(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// deviceOf returns "major:minor" of the whole disk that holds a file.
func deviceOf(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", path, err)
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	if unix.Major(dev) == 0 {
		return "", fmt.Errorf("the file system of %s has no disk of its own (Btrfs, overlay, tmpfs), so bytes per second cannot be bounded there", path)
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		// The link leads to the partition's folder in that of its disk.
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(real)
	}
	text, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// OOMKills tells how often the group's memory was not enough, and processes
// were killed for it. 0 when that cannot be told.
func (g *Group) OOMKills() int {
	path := filepath.Join(g.V2, "memory.events")
	if dir := g.V1["memory"]; dir != "" {
		path = filepath.Join(dir, "memory.oom_control")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(strings.NewReader(string(text))); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			kills, _ := strconv.Atoi(n)
			return kills
		}
	}
	return 0
}

// Remove removes the group when no process is in it any more. Absent is
// success.
func (g *Group) Remove() error {
	var errs error
	for _, dir := range g.Folders() {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = errors.Join(errs, fmt.Errorf("remove the control group %s: %w", dir, err))
		}
	}
	return errs
}

// CleanUp removes the group that guests' groups are made below, in every
// hierarchy where it is there and empty.
func CleanUp() error {
	h, err := find("/proc/self")
	if err != nil {
		return err
	}
	paths := []string{h.v2.path}
	for _, m := range h.v1 {
		paths = append(paths, m.path)
	}
	var errs error
	for _, path := range paths {
		if path == "" {
			continue
		}
		err := unix.Rmdir(filepath.Join(path, "sublet"))
		for _, fine := range []error{unix.ENOENT, unix.EBUSY, unix.ENOTEMPTY, unix.EROFS} {
			if errors.Is(err, fine) {
				err = nil
			}
		}
		errs = errors.Join(errs, err)
	}
	return errs
}
