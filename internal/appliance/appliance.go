//go:build linux

// Package appliance does what needs a filesystem mounted that is not ours: in
// a short-lived guest of our own with no network, and never in the host's
// kernel. Why, and what was compared: docs/adr/0020-appliance.md.
//
// An appliance boots the host's kernel for guests and stays in its initrd,
// where package inside works. It has the disks that it works on and the user
// who owns them, the jail and the limits of every guest, and ends with its
// job, with the process that started it, and after a time.
package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sublet/internal/appliance/inside"
	"sublet/internal/seed"
	"sublet/internal/vps"
)

// Driver is the part of a driver that appliances need; see guest.Driver. It
// must look after the appliances' run folders and no others.
type Driver interface {
	Start(ctx context.Context, m vps.Machine) (vps.Instance, error)
	Kill(ctx context.Context, in vps.Instance) error
	List(ctx context.Context) ([]vps.Instance, error)
}

// Options say how appliances are run. All fields but the last two are needed.
type Options struct {
	Driver Driver
	// Console joins the console of a running appliance as its writer.
	Console func(ctx context.Context, in vps.Instance) (io.ReadWriteCloser, error)
	// Kernel returns what to boot.
	Kernel func(ctx context.Context) (vps.Kernel, error)
	// RunRoot holds the appliances' run folders, the same as the driver's.
	// Guests' users have to be able to pass through it.
	RunRoot string
	// Lifetime bounds one appliance; 0 means a day.
	Lifetime time.Duration
	// Log hears what happens; nil for nobody.
	Log *slog.Logger
}

// Host runs appliances. It may be used by many goroutines at a time.
type Host struct{ o Options }

// New returns a host of appliances. Nothing runs yet.
func New(o Options) *Host {
	if o.Lifetime == 0 {
		o.Lifetime = 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Host{o}
}

// Defaults of what an appliance gets.
const (
	// DefaultMemory is enough to unpack and copy.
	DefaultMemory = 160 * vps.MiB
	booting       = 60 * time.Second
	ending        = 30 * time.Second
)

// Spec is what an appliance works on.
type Spec struct {
	// Disks are what it gets, writable unless they say otherwise. Nothing else
	// may use them meanwhile.
	Disks []vps.Disk
	// UID is the user that it runs as, who may open the disks.
	UID uint32
	// Tools is the disk of the rescue system, read-only; the zero value for
	// jobs that need no programs.
	Tools vps.Disk
	// Memory of the appliance; 0 means DefaultMemory.
	Memory vps.Bytes
	// Limit bounds every file that it writes to, in bytes; 0 is no bound.
	Limit vps.Bytes
}

// Appliance is one that runs. It is for one goroutine at a time, and has to be
// closed.
type Appliance struct {
	host     *Host
	dir      string
	instance vps.Instance
	console  io.ReadWriteCloser
	client   *client
	channel  *os.File
}

// Start boots an appliance and returns when it answers. vps.CodeConflict: a
// disk is in use.
func (h *Host) Start(ctx context.Context, s Spec) (_ *Appliance, err error) {
	if len(s.Disks) > inside.MaxDisks {
		return nil, vps.Invalid("disks", "an appliance can have %d disks, not %d", inside.MaxDisks, len(s.Disks))
	}
	kernel, err := h.o.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	// The name is a folder, and part of a socket's short address.
	name := "a-" + strings.ToLower(rand.Text()[:10])
	a := &Appliance{host: h, dir: filepath.Join(h.o.RunRoot, name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	machine := vps.Machine{
		ID: name, Name: name, UID: s.UID, Kernel: kernel, Memory: max(s.Memory, DefaultMemory), Root: s.Tools,
		DiskLimit: s.Limit, Leash: true, Lifetime: vps.Duration(h.o.Lifetime), RunDir: a.dir, LogPath: filepath.Join(a.dir, "console.log"),
	}
	if err := a.prepare(ctx, &machine, s); err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "an appliance cannot be made ready in %s", a.dir)
	}
	if a.instance, err = h.o.Driver.Start(ctx, machine); err != nil {
		return nil, err
	}
	if a.console, err = h.o.Console(ctx, a.instance); err != nil {
		return nil, err
	}
	a.client = newClient(a.console, a.sound)
	boot, cancel := context.WithTimeout(ctx, booting)
	defer cancel()
	if _, err := a.client.greet(boot); err != nil {
		return nil, vps.Wrap(vps.CodeInternal, fmt.Errorf("%w; its console said: %s", err, a.lastWords()), "the appliance that works on the disk did not come up")
	}
	return a, nil
}

// prepare makes the run folder with the seed and the channel.
func (a *Appliance) prepare(ctx context.Context, m *vps.Machine, s Spec) error {
	const passable = 0o711
	if err := os.MkdirAll(a.dir, passable); err != nil {
		return err
	}
	path, _, err := seed.Set(ctx, a.dir, "seed", seed.Seed{
		GuestID: m.ID, Hostname: seed.Appliance, Probe: seed.Appliance, KernelRelease: m.Kernel.Release,
	}, s.UID)
	if err != nil {
		return err
	}
	m.Seed = vps.Disk{Path: path, ReadOnly: true}
	channel := filepath.Join(a.dir, "channel")
	if a.channel, err = os.OpenFile(channel, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if err := errors.Join(a.channel.Truncate(inside.Pieces*inside.PieceSize), a.channel.Chown(int(s.UID), -1)); err != nil {
		return err
	}
	m.Data = append([]vps.Disk{{Path: channel}}, s.Disks...)
	// The limit is one for all files.
	if m.DiskLimit > 0 {
		m.DiskLimit = max(m.DiskLimit, inside.Pieces*inside.PieceSize)
	}
	return nil
}

// Close ends the appliance and removes what it left. It takes no part in the
// disks' consistency: a job that has been answered is on them.
func (a *Appliance) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), ending)
	defer cancel()
	var errs []error
	if a.instance.Socket != "" {
		errs = append(errs, a.host.o.Driver.Kill(ctx, a.instance))
	}
	if a.console != nil {
		_ = a.console.Close() // nothing was asked for that is not answered
	}
	if a.channel != nil {
		errs = append(errs, a.channel.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(a.dir))...)
}

// sound tells whether the channel is as long as it was made. Whoever has taken
// the appliance over could else fill the host's memory through it; what it
// takes until then is charged to its control group.
func (a *Appliance) sound() error {
	info, err := a.channel.Stat()
	if err != nil {
		return err
	}
	if info.Size() != inside.Pieces*inside.PieceSize {
		return fmt.Errorf("it has changed the length of its channel to %d", info.Size())
	}
	return nil
}

// lastWords are the end of the console's log, for ours: nobody else reads what
// an appliance writes.
func (a *Appliance) lastWords() string {
	const enough = 2 << 10
	text, err := os.ReadFile(filepath.Join(a.dir, "console.log"))
	if err != nil {
		return ""
	}
	return printable(string(text[max(0, len(text)-enough):]), enough)
}

// Sweep kills and removes appliances that an earlier process left. It must
// not run beside others of the same folder; the daemon calls it when it
// starts, before any guest does.
func (h *Host) Sweep(ctx context.Context) error {
	instances, err := h.o.Driver.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, in := range instances {
		if in.Exit == nil {
			h.o.Log.WarnContext(ctx, "an appliance of an earlier daemon still ran; it is ended", "name", in.Name)
			errs = append(errs, h.o.Driver.Kill(ctx, in))
		}
	}
	entries, err := os.ReadDir(h.o.RunRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, os.RemoveAll(filepath.Join(h.o.RunRoot, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "what appliances left in %s could not be removed", h.o.RunRoot)
	}
	return nil
}
