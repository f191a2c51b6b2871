package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/kernel"
	"sublet/internal/kernel/kbuild"
	"sublet/internal/vps"
)

// kernelOf finds the kernel that a guest boots.
func (p *parts) kernelOf(ctx context.Context, settings vps.Settings, spec vps.GuestSpec) (vps.Kernel, error) {
	return p.kernels.Get(ctx, cmp.Or(spec.Kernel, settings.Kernel))
}

// hostKernel finds the kernel that guests boot which name none.
func (p *parts) hostKernel(ctx context.Context) (vps.Kernel, error) {
	host, err := p.state.Host(ctx)
	if err != nil {
		return vps.Kernel{}, err
	}
	return p.kernels.Get(ctx, host.Settings.Kernel)
}

func (b backend) Kernels(ctx context.Context) ([]api.KernelInfo, error) {
	entries, err := b.kernels.Entries(ctx)
	if err != nil {
		return nil, err
	}
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	byDefault, err := b.defaultKernel(ctx, host.Settings)
	if err != nil {
		return nil, err
	}
	running := b.runningKernels(ctx)
	infos := make([]api.KernelInfo, 0, len(entries))
	for _, e := range entries {
		info := api.KernelInfo{
			Kernel: e.Kernel, Features: e.Features.Names(), Origin: "kept for guests that have it", Default: e.Name == byDefault,
			Guests: []string{}, Running: []string{}, Warning: e.Features.Warning, Misses: []string{},
		}
		switch {
		case e.Built != nil:
			info.Origin, info.Created, info.Log = "built from "+e.Built.Origin, &e.Built.Created, e.Built.Log
			info.Misses = append(info.Misses, e.Built.Misses...)
		case e.Packaged:
			info.Origin = "installed on this host"
		}
		for i := range host.Guests {
			if g := &host.Guests[i]; cmp.Or(g.Spec.Kernel, byDefault) == e.Name && g.Spec.Probe == "" {
				info.Guests = append(info.Guests, g.Spec.Name)
			}
		}
		for name, kernel := range running {
			if kernel == e.Name {
				info.Running = append(info.Running, name)
			}
		}
		slices.Sort(info.Running)
		infos = append(infos, info)
	}
	return infos, nil
}

// defaultKernel returns the name of the kernel that guests boot which name
// none, "" when there is none.
func (p *parts) defaultKernel(ctx context.Context, settings vps.Settings) (string, error) {
	if settings.Kernel != "" {
		return settings.Kernel, nil
	}
	k, err := p.kernels.Default(ctx)
	if vps.ErrorCode(err) == vps.CodeNotFound {
		return "", nil
	}
	return k.Name, err
}

// runningKernels returns the kernels that guests run on, by the guest's name.
// One that was started by an older sublet has an empty one.
func (b backend) runningKernels(ctx context.Context) map[string]string {
	running := map[string]string{}
	for _, found := range b.seen(ctx).Observed.Guests {
		if found.Instance != nil && found.Instance.Exit == nil {
			running[found.Instance.Name] = found.Instance.Kernel
		}
	}
	return running
}

func (b backend) Kernel(ctx context.Context, name string) (api.KernelInfo, error) {
	all, err := b.Kernels(ctx)
	if err != nil {
		return api.KernelInfo{}, err
	}
	for _, k := range all {
		if k.Name == name {
			return k, nil
		}
	}
	_, err = b.kernels.Get(ctx, name)
	return api.KernelInfo{}, cmp.Or(err, vps.Errorf(vps.CodeNotFound, "there is no kernel %s on this host", name))
}

func (b backend) UseKernel(ctx context.Context, name string, dryRun bool) (api.Change, error) {
	e, err := b.state.UseKernel(ctx, name, dryRun)
	if err != nil {
		return api.Change{}, err
	}
	return b.change(ctx, e, dryRun)
}

func (b backend) DeleteKernel(ctx context.Context, name string) error {
	return b.kernels.Delete(ctx, name, func() ([]string, error) {
		host, err := b.state.Host(ctx)
		if err != nil {
			return nil, err
		}
		var users []string
		if host.Settings.Kernel == name {
			users = append(users, "the host as its default")
		}
		for i := range host.Guests {
			if g := &host.Guests[i]; g.Spec.Kernel == name {
				users = append(users, g.Spec.Name)
			}
		}
		for guest, on := range b.runningKernels(ctx) {
			if on == name {
				users = append(users, guest+" (runs on it)")
			}
		}
		slices.Sort(users)
		return slices.Compact(users), nil
	})
}

// pruneKernels removes what no guest has, and none can come to have.
func (p *parts) pruneKernels(ctx context.Context) error {
	host, err := p.state.Host(ctx)
	if err != nil {
		return err
	}
	instances, err := p.driver.List(ctx)
	if err != nil {
		return err
	}
	wanted := map[string]bool{host.Settings.Kernel: true}
	for i := range host.Guests {
		wanted[host.Guests[i].Spec.Kernel] = true
	}
	for _, i := range instances {
		if i.Exit != nil {
			continue
		}
		if i.Kernel == "" {
			return nil // started by a sublet that did not write it down
		}
		wanted[i.Kernel] = true
	}
	kept, err := p.kernels.List(ctx)
	if err != nil {
		return err
	}
	kept = slices.DeleteFunc(kept, func(k vps.Kernel) bool { return !wanted[k.Name] })
	return p.kernels.Prune(ctx, kept)
}

// Folders of builds, under the state folder.
const (
	kernelBuilds = "kernel-builds"
	kernelLogs   = "kernel-logs"
	// keptLogs is how many logs of builds are kept.
	keptLogs = 10
)

// sweepBuilds removes what a build left whose daemon was killed.
func (p *parts) sweepBuilds() error { return os.RemoveAll(p.config.statePath(kernelBuilds)) }

func (b backend) BuildKernel(_ context.Context, r api.BuildKernel) (api.Operation, error) {
	job := kbuild.Job{
		Source: r.Source, Apt: kbuild.Apt{Package: r.Package, Suite: r.Suite}, Config: []byte(r.Config), SMP: r.SMP,
	}
	if err := job.Check(); err != nil {
		return api.Operation{}, err
	}
	if !b.building.TryLock() {
		return api.Operation{}, vps.Errorf(vps.CodeConflict, "a kernel is being built already; wait for its end (`sublet kernel list` shows it then)")
	}
	log, path, err := b.kernelLog()
	if err != nil {
		b.building.Unlock()
		return api.Operation{}, err
	}
	job.Log, job.LogPath = log, path
	target := cmp.Or(r.Package, "linux-source")
	if r.Source != "" {
		target = filepath.Base(r.Source)
	}
	return b.operations.begin(b.lifetime, api.Operation{Kind: "kernel-build", Target: target, Log: path}, func(ctx context.Context, w work) error {
		defer b.building.Unlock()
		defer log.Close() //nolint:errcheck // what could not be logged is not the build's failure
		name, err := b.buildKernel(ctx, job, w.progress)
		if err != nil {
			_, _ = fmt.Fprintf(log, "\nsublet: %v\n", err)
			b.log.ErrorContext(ctx, "a kernel could not be built", "log", path, "error", err)
			return err
		}
		w.made(name)
		b.log.InfoContext(ctx, "a kernel was built", "kernel", name, "log", path)
		return nil
	}), nil
}

// buildKernel builds a kernel, boots it, and takes it into the catalogue.
func (b backend) buildKernel(ctx context.Context, job kbuild.Job, progress func(vps.Progress)) (name string, err error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return "", err
	}
	job.WorkDir = b.config.statePath(kernelBuilds)
	job.UID, job.Steps, job.Have, job.Progress = host.Settings.UID(0), b.kernels.LastSteps(ctx), b.kernels.Has, progress
	if err := errors.Join(b.sweepBuilds(), os.MkdirAll(job.WorkDir, 0o711)); err != nil {
		return "", fmt.Errorf("make a folder for the build: %w", err)
	}
	defer func() {
		if swept := b.sweepBuilds(); err == nil && swept != nil {
			b.log.WarnContext(ctx, "what a build left could not be removed", "error", swept)
		}
	}()
	r, err := kbuild.Build(ctx, job)
	if err != nil {
		return "", err
	}
	if r.Binary == "" {
		return kernel.NameOf(r.Release), nil
	}
	progress(vps.Progress{Phase: "boot it", Fraction: kbuild.BuiltFraction})
	candidate, err := b.kernels.Candidate(ctx, r.Binary, r.Release)
	if err != nil {
		return "", err
	}
	if err := b.tryCandidate(ctx, candidate, job.Log); err != nil {
		return "", err
	}
	built := kernel.Built{Release: r.Release, Origin: r.Origin, Created: time.Now().UTC().Truncate(time.Second), Steps: r.Steps, Log: job.LogPath}
	for _, m := range r.Misses {
		built.Misses = append(built.Misses, m.String())
	}
	k, err := b.kernels.Add(ctx, r.Binary, built)
	return k.Name, err
}

// tryCandidate boots a kernel in every way that it can run guests, and refuses
// one that cannot do what its configuration says.
func (b backend) tryCandidate(ctx context.Context, k vps.Kernel, log io.Writer) error {
	features, err := b.kernels.Features(ctx, k)
	if err != nil {
		return err
	}
	reports, err := b.tryKernel(ctx, k)
	for _, r := range reports {
		_, _ = fmt.Fprintf(log, "\nsublet: booted with isolation %s in %s\n", r.Isolation, r.Took)
		for _, c := range r.Checks {
			_, _ = fmt.Fprintf(log, "sublet: %-14s %v %s\n", c.Name, c.OK, c.Seen)
		}
		for _, c := range r.Checks {
			if !c.OK && kernel.Expected(c.Name, features) && err == nil {
				err = vps.Errorf(vps.CodeInternal, "the kernel %s was built and boots with isolation %s, but in a guest of it %s does not work (%s); it is not offered", k.Name, r.Isolation, c.Name, c.Seen)
			}
		}
	}
	return err
}

// kernelLog opens the log of a build, and removes old ones.
func (p *parts) kernelLog() (*os.File, string, error) {
	dir := p.config.statePath(kernelLogs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("make the folder of the builds' logs: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, "", fmt.Errorf("read the folder of the builds' logs: %w", err)
	}
	for _, e := range entries[:max(0, len(entries)-keptLogs+1)] {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, "", fmt.Errorf("remove an old log of a build: %w", err)
		}
	}
	path := filepath.Join(dir, time.Now().UTC().Format("20060102-150405.000")+".log")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("open the log of the build: %w", err)
	}
	return f, path, nil
}

// fastWarnings returns what the kernels say of the isolation fast, for guests
// that came to it by an edit.
func (b backend) fastWarnings(ctx context.Context, before, after vps.Host) []string {
	var warnings []string
	for i := range after.Guests {
		g := &after.Guests[i]
		old := before.Guest(g.Spec.Name)
		if g.Spec.Isolation != vps.IsolationFast || g.Deleting || old != nil && old.Spec.Isolation == vps.IsolationFast {
			continue
		}
		k, err := b.kernelOf(ctx, after.Settings, g.Spec)
		if err != nil {
			continue // the edit would have been refused
		}
		f, err := b.kernels.Features(ctx, k)
		if err != nil || f.Warning == "" {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("%s has the isolation fast: its users are not kept apart from each other and from its root. Its kernel, %s, says of it:\n  %s",
			g.Spec.Name, k.Name, strings.ReplaceAll(f.Warning, "\n", "\n  ")))
	}
	return warnings
}
