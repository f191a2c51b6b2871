//go:build linux

// Package uml runs guests as User Mode Linux: each guest's kernel is a process
// of the host, kept by a keeper of its own.
package uml

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"sublet/internal/guest"
	"sublet/internal/keeper"
	"sublet/internal/vps"
)

// Name is the driver's name in specs and instances.
const Name = "uml"

// Options say how guests are run.
type Options struct {
	// RunRoot holds the guests' run folders and is what List looks through.
	// Empty means /run/sublet/guests.
	RunRoot string
	// Launcher starts keepers.
	Launcher keeper.Launcher
	// StopTimeout is how long a guest has for an orderly shutdown when its
	// keeper is asked to end, as on a shutdown of the host; 0 means
	// vps.DefaultStopTimeout.
	StopTimeout vps.Duration
	// LogSize and LogFiles bound the console's log: bytes of one file, and how
	// many; 0 means 1 MiB and 3.
	LogSize  vps.Bytes
	LogFiles int
	// Log hears what the driver has to say; nil for nobody.
	Log *slog.Logger
}

// Driver implements guest.Driver and guest.Console.
type Driver struct {
	o Options

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by run folder: one start at a time
}

var (
	_ guest.Driver  = (*Driver)(nil)
	_ guest.Console = (*Driver)(nil)
)

// New returns a driver. It looks at nothing on the host yet.
func New(o Options) *Driver {
	if o.RunRoot == "" {
		o.RunRoot = "/run/sublet/guests"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{o: o, locks: map[string]*sync.Mutex{}}
}

// fileMargin is what the memory's file may need beyond the guest's memory.
const fileMargin = 64 * vps.MiB

// Start implements guest.Driver. What it can find out beforehand it says
// before it touches anything: vps.CodeNotFound for a kernel, disk or link that
// is not there, vps.CodeConflict for one that the guest's user cannot use,
// vps.CodeDenied for too little memory, vps.CodeInvalid for a machine that
// cannot be put in words.
func (d *Driver) Start(ctx context.Context, m vps.Machine) (vps.Instance, error) {
	if err := checkMachine(m); err != nil {
		return vps.Instance{}, err
	}
	defer d.lock(m.RunDir)()
	if old, err := keeper.Status(ctx, m.RunDir); err == nil && old.Exit == nil && old.GuestID == m.ID {
		return old, nil
	}
	if err := d.preflight(m); err != nil {
		return vps.Instance{}, err
	}
	made, err := d.prepare(ctx, m)
	if err != nil {
		return vps.Instance{}, err
	}
	in, err := d.o.Launcher.Launch(ctx, d.config(m))
	if err != nil {
		if made {
			_ = os.RemoveAll(m.RunDir)
		}
		return vps.Instance{}, err
	}
	d.o.Log.InfoContext(ctx, "guest runs", "guest", m.Name, "pid", in.PID, "keeper", in.Keeper)
	return in, nil
}

func (d *Driver) config(m vps.Machine) keeper.Config {
	limit := m.DiskLimit
	if limit > 0 {
		limit = max(limit, m.Memory+fileMargin)
	}
	files, disks := filesOf(m)
	relay := ""
	if m.Kernel.SMP {
		relay = m.Tap
	}
	return keeper.Config{
		Driver: Name, GuestID: m.ID, Name: m.Name, Boots: m.Boots, Kernel: m.Kernel.Name,
		RunDir: m.RunDir, Argv: args(m), Env: env(needsPreload()), UID: m.UID, Files: files, Disks: disks, Relay: relay,
		OwnDirs: []string{umlDir}, Memory: m.Memory + fileMargin, Resources: m.Resources, FileLimit: limit, Mconsole: mconsoleName(m.Name),
		Leash: m.Leash, Lifetime: m.Lifetime, StopTimeout: d.o.StopTimeout, LogPath: m.LogPath, LogSize: d.o.LogSize, LogFiles: d.o.LogFiles,
	}
}

// filesOf are the files that the guest's kernel opens: those that it only
// reads, and those that it writes to.
func filesOf(m vps.Machine) (files, disks []string) {
	for _, path := range []string{m.Kernel.Initrd, m.Kernel.Modules} {
		if path != "" {
			files = append(files, path)
		}
	}
	for _, d := range append([]vps.Disk{m.Root, m.Seed}, m.Data...) {
		if d.Backing != "" {
			files = append(files, d.Backing)
		}
		switch {
		case d.Path == "":
		case d.ReadOnly:
			files = append(files, d.Path)
		default:
			disks = append(disks, d.Path)
		}
	}
	if needsPreload() {
		files = append(files, filepath.Join(m.RunDir, preloadLib))
	}
	return files, disks
}

// runMode lets the guest's user pass through the run folder to what is its
// own there, and see nothing else.
const runMode = 0o711

// prepare makes the run folder and says whether it was not there before.
func (d *Driver) prepare(ctx context.Context, m vps.Machine) (made bool, err error) {
	err = os.Mkdir(m.RunDir, runMode)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(m.RunDir), 0o755); err == nil {
			err = os.Mkdir(m.RunDir, runMode)
		}
	}
	made = err == nil
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err == nil {
		err = os.Chmod(m.RunDir, runMode)
	}
	if err == nil {
		err = placePreload(ctx, d.o.RunRoot, m.RunDir)
	}
	if err != nil {
		if made {
			_ = os.RemoveAll(m.RunDir)
		}
		if vps.ErrorCode(err) != vps.CodeInternal {
			return false, err
		}
		return false, vps.Wrap(vps.CodeInternal, err, "cannot make the run folder %s of guest %s", m.RunDir, m.Name)
	}
	return made, nil
}

// lock keeps two starts in one run folder apart and returns the unlocking.
func (d *Driver) lock(runDir string) func() {
	d.mu.Lock()
	l := d.locks[runDir]
	if l == nil {
		l = &sync.Mutex{}
		d.locks[runDir] = l
	}
	d.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// Attach implements guest.Driver.
func (d *Driver) Attach(ctx context.Context, in vps.Instance) error {
	return keeper.Attach(ctx, in)
}

// Wait implements guest.Driver.
func (d *Driver) Wait(ctx context.Context, in vps.Instance) (vps.Exit, error) {
	return keeper.Wait(ctx, in)
}

// Stop implements guest.Driver: it presses Ctrl-Alt-Del, which the guest's
// init has to take for a power-off. The keeper presses again until the guest
// is over.
func (d *Driver) Stop(ctx context.Context, in vps.Instance) error {
	err := keeper.Stop(ctx, in)
	if vps.ErrorCode(err) == vps.CodeNotFound {
		return nil
	}
	return err
}

// Kill implements guest.Driver.
func (d *Driver) Kill(ctx context.Context, in vps.Instance) error {
	return keeper.Kill(ctx, in)
}

// Inspect implements guest.Driver.
func (d *Driver) Inspect(ctx context.Context, in vps.Instance) (vps.Usage, error) {
	if err := keeper.Attach(ctx, in); err != nil {
		return vps.Usage{}, err
	}
	return keeper.Usage(in)
}

// List implements guest.Driver. A record that cannot be read is logged and
// left out.
func (d *Driver) List(ctx context.Context) ([]vps.Instance, error) {
	dirs, err := os.ReadDir(d.o.RunRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Wrap(vps.CodeInternal, err, "cannot look through the guests' run folders in %s", d.o.RunRoot)
	}
	var all []vps.Instance
	for _, e := range dirs {
		if !e.IsDir() {
			continue // the library of Preload
		}
		in, err := keeper.Find(filepath.Join(d.o.RunRoot, e.Name()))
		switch {
		case err == nil && in.Driver == Name:
			all = append(all, in)
		case err != nil && vps.ErrorCode(err) != vps.CodeNotFound:
			d.o.Log.WarnContext(ctx, "run folder skipped", "folder", e.Name(), "error", err)
		}
	}
	slices.SortFunc(all, func(a, b vps.Instance) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Console implements guest.Console. The value is a guest.Resizer too.
func (d *Driver) Console(ctx context.Context, in vps.Instance, o guest.ConsoleOptions) (io.ReadWriteCloser, error) {
	c, err := keeper.Join(ctx, in, keeper.ConsoleOptions{
		Write: o.Write, Takeover: o.Takeover, NoReplay: o.NoReplay, Rows: o.Rows, Cols: o.Cols,
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}
