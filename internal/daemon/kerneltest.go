package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sublet/internal/api"
	"sublet/internal/guest"
	"sublet/internal/keeper"
	"sublet/internal/probe"
	"sublet/internal/seed"
	"sublet/internal/vps"
)

// What tries a kernel: a throw-away guest in folders of its own, which the loop
// never sees. Its disks are ours and empty, and it has no network.

const (
	kernelTests = "kernel-tests" // under the state and the run folder
	// testMemory is enough for all filesystems to be mounted.
	testMemory = 256 * vps.MiB
	// booting bounds one boot and what is asked for in it.
	booting = 90 * time.Second
)

// TestKernel implements api.Kernels.
func (b backend) TestKernel(ctx context.Context, name string) ([]api.KernelTest, error) {
	k, err := b.kernels.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return b.tryKernel(ctx, k)
}

// tryKernel boots a kernel once in each isolation that it knows.
func (b backend) tryKernel(ctx context.Context, k vps.Kernel) ([]api.KernelTest, error) {
	b.trying.Lock()
	defer b.trying.Unlock()
	var reports []api.KernelTest
	for _, isolation := range []vps.Isolation{vps.IsolationStrict, vps.IsolationFast} {
		if isolation == vps.IsolationFast && !k.Fast {
			continue
		}
		r, err := b.tryBoot(ctx, k, isolation)
		if err != nil {
			return reports, err
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func (b backend) tryBoot(ctx context.Context, k vps.Kernel, isolation vps.Isolation) (report api.KernelTest, err error) {
	report = api.KernelTest{Isolation: isolation, Checks: []api.KernelCheck{}}
	host, err := b.state.Host(ctx)
	if err != nil {
		return report, err
	}
	dir, run := b.config.statePath(kernelTests), filepath.Join(b.config.RunDir, kernelTests)
	clear := func() error {
		return errors.Join(keeper.Unbound(filepath.Join(run, testName)), os.RemoveAll(dir), os.RemoveAll(run))
	}
	if err := clear(); err != nil {
		return report, fmt.Errorf("clear the folder of a test: %w", err)
	}
	defer func() { err = errors.Join(err, clear()) }()
	for _, d := range []string{dir, run} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return report, fmt.Errorf("make the folder of a test: %w", err)
		}
	}
	m, kinds, err := testMachine(ctx, dir, run, host.Settings.UID(0), k, isolation)
	if err != nil {
		return report, err
	}
	driver := driverIn(b.config, b.log, run, "sublet-kernel-test-") // a guest may have the name
	ctx, cancel := context.WithTimeout(ctx, booting)
	defer cancel()
	started := time.Now()
	in, err := driver.Start(ctx, m)
	if err != nil {
		return report, err
	}
	defer func() {
		end, stop := context.WithTimeout(context.WithoutCancel(ctx), booting)
		defer stop()
		err = errors.Join(err, driver.Kill(end, in))
		_, waited := driver.Wait(end, in)
		err = errors.Join(err, waited)
	}()
	noBoot := func(err error) error {
		return vps.Wrap(vps.CodeInternal, err, "the kernel %s does not boot with isolation %s%s", k.Name, isolation, lastOf(m.LogPath))
	}
	console, err := driver.Console(ctx, in, guest.ConsoleOptions{Write: true})
	if err != nil {
		return report, noBoot(err) // it has ended already
	}
	a := &audited{instance: in, console: console, client: probe.NewClient(console)}
	defer a.close()
	if _, err := a.greet(ctx); err != nil {
		return report, noBoot(err)
	}
	report.Took = vps.Duration(time.Since(started).Round(10 * time.Millisecond))
	// A card is plugged in, as when a guest's link was made anew.
	if err := driver.Replug(ctx, in); err != nil {
		return report, vps.Wrap(vps.CodeInternal, err, "the kernel %s boots, but takes no network card from its management console", k.Name)
	}
	answer, err := a.client.Do(ctx, probe.Request{Op: probe.Examine, Filesystems: kinds})
	if err != nil {
		return report, vps.Wrap(vps.CodeInternal, err, "the kernel %s boots with isolation %s, but its guest ends while it is examined%s", k.Name, isolation, lastOf(m.LogPath))
	}
	if answer.Error != "" {
		return report, vps.Errorf(vps.CodeInternal, "the kernel %s could not be examined: %s", k.Name, answer.Error)
	}
	for _, f := range answer.Findings {
		report.Checks = append(report.Checks, api.KernelCheck{Name: f.Name, OK: f.OK, Seen: f.Seen})
	}
	return report, nil
}

// testName is the guest's name, and so the one of its run folder.
const testName = "kernel-test"

// testMachine makes the disks of a test, and says which filesystems are on
// them.
func testMachine(ctx context.Context, dir, run string, uid uint32, k vps.Kernel, isolation vps.Isolation) (vps.Machine, []string, error) {
	m := vps.Machine{
		ID: testName, Name: testName, Boots: 1, UID: uid, Kernel: k, Isolation: isolation, CPUs: 1, Memory: testMemory,
		MAC: net.HardwareAddr{2, 0x53, 0x4c, 0, 0, 1}, Leash: true, Lifetime: vps.Duration(booting),
		RunDir: filepath.Join(run, testName), LogPath: filepath.Join(dir, "console.log"),
	}
	s := seed.Seed{
		GuestID: testName, Hostname: testName, Probe: probe.Kernel, KernelRelease: k.Release,
		// Nobody's (RFC 5737): the guest has no card.
		Address: netip.MustParseAddr("192.0.2.2"), Gateway: netip.MustParseAddr("192.0.2.1"),
	}
	copy(s.MAC[:], m.MAC)
	path, _, err := seed.Set(ctx, dir, testName, s, uid)
	if err != nil {
		return m, nil, err
	}
	m.Seed = vps.Disk{Path: path, ReadOnly: true}
	var kinds []string
	for _, f := range []struct {
		kind, program string
		size          vps.Bytes // the least that the program takes
		args          []string
	}{
		{"ext4", "mke2fs", 16 * vps.MiB, []string{"-q", "-F", "-t", "ext4"}},
		{"xfs", "mkfs.xfs", 320 * vps.MiB, []string{"-q", "-f"}},
		{"btrfs", "mkfs.btrfs", 128 * vps.MiB, []string{"-q", "-f"}},
	} {
		program, err := exec.LookPath(f.program)
		if err != nil {
			continue // mounting it is not tried then
		}
		disk := filepath.Join(dir, f.kind+".img")
		if err := makeDisk(disk, f.size, uid); err != nil {
			return m, nil, err
		}
		if out, err := exec.CommandContext(ctx, program, append(f.args, disk)...).CombinedOutput(); err != nil {
			return m, nil, fmt.Errorf("make an empty %s filesystem: %w: %s", f.kind, err, out)
		}
		m.Data, kinds = append(m.Data, vps.Disk{Path: disk}), append(kinds, f.kind)
		m.DiskLimit = max(m.DiskLimit, f.size)
	}
	return m, kinds, nil
}

func makeDisk(path string, size vps.Bytes, uid uint32) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(size)), f.Chown(int(uid), int(uid)), f.Close())
}

// lastOf returns the end of a console's log, for an error.
func lastOf(path string) string {
	const enough = 2 << 10
	text, err := os.ReadFile(path)
	if err != nil || len(text) == 0 {
		return ""
	}
	return "; its console ends with:\n" + string(text[max(0, len(text)-enough):])
}
