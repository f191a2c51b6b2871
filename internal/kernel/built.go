package kernel

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// Built is what is known of a kernel that was built on this host.
type Built struct {
	// Release is what uname -r says in a guest; the kernel's name follows from
	// it.
	Release string `json:"release"`
	// Origin says which source it was built from, for people.
	Origin string `json:"origin"`
	// Created is when it was built.
	Created time.Time `json:"created"`
	// Steps is how many steps the build took, for the next one's estimate.
	Steps int `json:"steps,omitempty"`
	// Misses are options that did not come out as they were asked for, one
	// sentence each.
	Misses []string `json:"misses,omitempty"`
	// Log is the path of the build's log, which may be gone.
	Log string `json:"log,omitempty"`
}

// builtRecord is the file that makes a built kernel one of the catalogue's.
type builtRecord struct {
	Version int `json:"version"`
	Built
	// Binary is the kernel's name in the folder.
	Binary string `json:"binary"`
}

const builtPrefix = "built-"

// Entry is a kernel with where it comes from.
type Entry struct {
	vps.Kernel
	Features Features
	// Built is nil for a kernel that was not built here.
	Built *Built
	// Packaged tells that it is the one which is installed on the host now.
	Packaged bool
}

// Candidate returns a kernel that was just built, so that it can be tried: its
// binary where it lies, and the early-boot program. It is not in the catalogue.
func (c *Catalog) Candidate(ctx context.Context, binary, release string) (vps.Kernel, error) {
	if err := checkRelease(release); err != nil {
		return vps.Kernel{}, err
	}
	k := vps.Kernel{Name: NameOf(release), Release: release, Path: binary}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return k, fmt.Errorf("make the folder of kernels: %w", err)
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return k, err
	}
	defer unlock()
	if k.Initrd, err = c.currentInitrd(ctx); err != nil {
		return k, fullDisk(err, c.dir)
	}
	return c.describe(ctx, k)
}

// Add takes a built kernel into the catalogue: its binary is copied, and from
// then on List and Get know it. Adding one that is there already changes
// nothing.
func (c *Catalog) Add(ctx context.Context, binary string, b Built) (vps.Kernel, error) {
	if err := checkRelease(b.Release); err != nil {
		return vps.Kernel{}, err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return vps.Kernel{}, fmt.Errorf("make the folder of kernels: %w", err)
	}
	if err := c.add(ctx, binary, b); err != nil {
		return vps.Kernel{}, fullDisk(err, c.dir)
	}
	return c.Get(ctx, NameOf(b.Release))
}

func (c *Catalog) add(ctx context.Context, binary string, b Built) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	path, err := c.keepBinary(ctx, binary, b.Release)
	if err != nil {
		return err
	}
	if path == binary {
		return vps.Errorf(vps.CodeConflict, "nothing in %s may be executed (it is mounted noexec), so no kernel can be kept there; name another folder with --state-dir", c.dir)
	}
	data, err := json.Marshal(builtRecord{Version: 1, Built: b, Binary: filepath.Base(path)})
	if err != nil {
		return err
	}
	_, err = c.keep(ctx, filepath.Base(c.recordPath(b.Release)), 0o444, func(_ context.Context, f *os.File) error {
		_, err := f.Write(append(data, '\n'))
		return err
	})
	return err
}

// NameOf returns the name of the kernel with this release.
func NameOf(release string) string { return "uml/" + release }

// Expected tells whether a check of this name in a guest has to succeed under a
// kernel with these features. What a kernel is not configured for is not
// expected of it.
func Expected(check string, f Features) bool {
	switch check {
	case "nft-ip", "nft-ip6", "nft-inet", "nft-netdev", "nft-arp":
		return f.NFTables
	case "nft-bridge":
		return f.NFTablesBridge
	case "iptables", "ip6tables":
		return f.Iptables
	case "wireguard":
		return f.WireGuard
	case "xfs":
		return f.XFS
	case "btrfs":
		return f.Btrfs
	}
	return true
}

func releaseOf(name string) string { return strings.TrimPrefix(name, "uml/") }

var releaseRegexp = regexp.MustCompile(releasePattern)

func checkRelease(release string) error {
	if !releaseRegexp.MatchString(release) {
		return vps.Errorf(vps.CodeInvalid, "%q is not a kernel's release", release)
	}
	return nil
}

func (c *Catalog) recordPath(release string) string {
	return filepath.Join(c.dir, builtPrefix+release+".json")
}

// record reads what is known of a built kernel. It fails with fs.ErrNotExist
// when there is none, or when its binary is gone.
func (c *Catalog) record(release string) (builtRecord, error) {
	var r builtRecord
	data, err := os.ReadFile(c.recordPath(release))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", c.recordPath(release), err)
	}
	if r.Binary != filepath.Base(r.Binary) || !strings.HasPrefix(r.Binary, "linux-") {
		return r, fmt.Errorf("%s names the file %q, which is no kernel", c.recordPath(release), r.Binary)
	}
	_, err = os.Stat(filepath.Join(c.dir, r.Binary))
	return r, err
}

// records returns all built kernels that are whole, the newest first.
func (c *Catalog) records(ctx context.Context) ([]builtRecord, error) {
	names, err := filepath.Glob(filepath.Join(c.dir, builtPrefix+"*.json"))
	if err != nil {
		return nil, err
	}
	var all []builtRecord
	for _, name := range names {
		release := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), builtPrefix), ".json")
		r, err := c.record(release)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				c.log.WarnContext(ctx, "the record of a built kernel cannot be read", "path", name, "error", err)
			}
			continue
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b builtRecord) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.Release, b.Release))
	})
	return all, nil
}

// LastSteps returns how many steps the latest build took, 0 when there was
// none.
func (c *Catalog) LastSteps(ctx context.Context) int {
	all, err := c.records(ctx)
	if err != nil || len(all) == 0 {
		return 0
	}
	return all[0].Steps
}

// Has tells whether a kernel of this release was built here and is there.
func (c *Catalog) Has(release string) bool {
	if checkRelease(release) != nil {
		return false
	}
	_, err := c.record(release)
	return err == nil
}

// Get returns a kernel by its name, with the early-boot program of today;
// "" means Default. It fails with CodeNotFound when there is none of this
// name, and is as cheap as Default.
func (c *Catalog) Get(ctx context.Context, name string) (vps.Kernel, error) {
	if name == "" {
		return c.Default(ctx)
	}
	release := releaseOf(name)
	if name != NameOf(release) || checkRelease(release) != nil {
		return vps.Kernel{}, noKernel(name)
	}
	k, err := c.find(ctx, name, release)
	if err != nil {
		return vps.Kernel{}, fullDisk(err, c.dir)
	}
	return c.describe(ctx, k)
}

func noKernel(name string) error {
	return vps.Errorf(vps.CodeNotFound, "there is no kernel %s on this host; `sublet kernel list` shows those that there are, `sublet kernel build` makes one", name)
}

// find looks for a kernel among those that were built, then at the installed
// one, and at last among older ones that are kept.
func (c *Catalog) find(ctx context.Context, name, release string) (vps.Kernel, error) {
	r, err := c.record(release)
	switch {
	case err == nil:
		return c.assemble(ctx, vps.Kernel{Name: name, Release: release, Path: filepath.Join(c.dir, r.Binary)})
	case !errors.Is(err, fs.ErrNotExist):
		return vps.Kernel{}, err
	}
	if k, err := c.Default(ctx); err == nil && k.Name == name {
		return k, nil
	}
	kept, err := c.List(ctx)
	if err != nil {
		return vps.Kernel{}, err
	}
	for _, k := range kept {
		if k.Name == name {
			return c.assemble(ctx, k)
		}
	}
	return vps.Kernel{}, noKernel(name)
}

// assemble gives a kernel the early-boot program of today, and writes down
// what belongs together.
func (c *Catalog) assemble(ctx context.Context, k vps.Kernel) (vps.Kernel, error) {
	init, err := c.initPath()
	if err != nil {
		return vps.Kernel{}, err
	}
	// This is asked for often: what was assembled once is looked for first.
	id := strings.Join([]string{k.Name, k.Modules, (&sources{binary: k.Path, init: init}).fingerprint()}, "\n")
	if last, ok := c.assembled.Load(id); ok {
		if k, ok := last.(vps.Kernel); ok && complete(k) {
			return k, nil
		}
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return vps.Kernel{}, err
	}
	defer unlock()
	if k.Initrd, err = c.keepInitrd(ctx, init); err != nil {
		return vps.Kernel{}, err
	}
	if err := c.keepManifest(ctx, k); err != nil {
		return vps.Kernel{}, err
	}
	c.assembled.Store(id, k)
	return k, nil
}

// currentInitrd makes the initrd of the early-boot program that is installed.
func (c *Catalog) currentInitrd(ctx context.Context) (string, error) {
	init, err := c.initPath()
	if err != nil {
		return "", err
	}
	return c.keepInitrd(ctx, init)
}

// Entries returns every kernel once, by name: the installed one, those that
// were built, and older ones that are kept because guests have them.
func (c *Catalog) Entries(ctx context.Context) ([]Entry, error) {
	var all []Entry
	add := func(e Entry) error {
		if slices.ContainsFunc(all, func(had Entry) bool { return had.Name == e.Name }) {
			return nil
		}
		var err error
		if e.Features, err = c.Features(ctx, e.Kernel); err != nil {
			return err
		}
		e.Fast, e.SMP = e.Features.Fast, e.Features.SMP
		all = append(all, e)
		return nil
	}
	built, err := c.records(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range built {
		k, err := c.Get(ctx, NameOf(r.Release))
		if err == nil {
			err = add(Entry{Kernel: k, Built: &r.Built})
		}
		if err != nil {
			return nil, err
		}
	}
	packaged, err := c.Default(ctx)
	switch {
	case err == nil:
		if err := add(Entry{Kernel: packaged, Packaged: true}); err != nil {
			return nil, err
		}
	case vps.ErrorCode(err) != vps.CodeNotFound:
		return nil, err
	}
	kept, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range kept {
		if err := add(Entry{Kernel: k}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Delete removes a kernel that users, which is asked while nobody can add one,
// names nobody for. It fails with CodeConflict when it does, and for the
// kernel that is installed on the host, which is a package manager's; with
// CodeNotFound when there is none of this name.
func (c *Catalog) Delete(ctx context.Context, name string, users func() ([]string, error)) error {
	release := releaseOf(name)
	entries, err := c.Entries(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		return noKernel(name)
	}
	if entries[i].Packaged {
		return vps.Errorf(vps.CodeConflict, "the kernel %s belongs to a package of this host; remove it with: apt-get remove user-mode-linux", name)
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	by, err := users()
	if err != nil {
		return err
	}
	if len(by) > 0 {
		return vps.Errorf(vps.CodeConflict, "the kernel %s is in use by %s; give them another one first (`sublet update NAME --kernel …`, and a restart for those that run on it)", name, strings.Join(by, ", "))
	}
	// The record first: without it the rest is rubbish that Prune removes.
	paths := []string{c.recordPath(release)}
	kept, err := c.List(ctx)
	if err != nil {
		return err
	}
	for _, k := range kept {
		if k.Name == name {
			paths = append(paths, c.manifestPath(k), k.Path, k.Modules)
		}
	}
	paths = append(paths, entries[i].Path)
	var errs []error
	for _, path := range paths {
		if filepath.Dir(path) != c.dir {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, durable.SyncDir(c.dir))...); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the kernel %s could not be deleted whole", name)
	}
	c.log.InfoContext(ctx, "deleted a kernel", "kernel", name)
	return nil
}
