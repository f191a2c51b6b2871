package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/durable"
	"sublet/internal/flock"
	"sublet/internal/vps"
)

// lockPoll is how often a folder that another process works in is tried.
const lockPoll = 50 * time.Millisecond

// lock keeps other processes from making or removing files in the folder.
// What an interrupted one left is removed.
func (c *Catalog) lock(ctx context.Context) (unlock func(), err error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", c.dir, err), dir.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), dir.Close())
		case <-time.After(lockPoll):
		}
	}
	c.sweep(ctx)
	return func() { _ = flock.Release(dir) }, nil // nothing was written
}

func (c *Catalog) sweep(ctx context.Context) {
	left, err := filepath.Glob(filepath.Join(c.dir, tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			c.log.WarnContext(ctx, "cannot remove an unfinished kernel file", "path", path, "error", err)
		}
	}
}

// prepare makes the files of a kernel that are missing.
func (c *Catalog) prepare(ctx context.Context, src *sources) (vps.Kernel, error) {
	release, err := probe(ctx, src.binary)
	if err != nil {
		return vps.Kernel{}, err
	}
	src.modules = c.modulesOf(release)
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return vps.Kernel{}, fmt.Errorf("make the folder of kernels: %w", err)
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return vps.Kernel{}, err
	}
	defer unlock()
	k := vps.Kernel{Name: "uml/" + release, Release: release}
	if k.Path, err = c.keepBinary(ctx, src.binary, release); err != nil {
		return vps.Kernel{}, err
	}
	if k.Initrd, err = c.keepInitrd(ctx, src.init); err != nil {
		return vps.Kernel{}, err
	}
	if src.modules == "" {
		c.log.WarnContext(ctx, "no modules are installed for this kernel", "release", release, "modules_dir", c.opts.ModulesDir)
	} else if k.Modules, err = c.keepModules(ctx, src.modules, release); err != nil {
		return vps.Kernel{}, err
	}
	return k, c.keepManifest(ctx, k)
}

// keepBinary copies the kernel into the folder: apt replaces the original
// while guests run, and a guest's reboot executes its file again. Where
// nothing in the folder may be executed (mounted noexec), the original serves.
func (c *Catalog) keepBinary(ctx context.Context, binary, release string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(c.dir, &st); err != nil {
		return "", fmt.Errorf("look at the filesystem of %s: %w", c.dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		c.log.WarnContext(ctx, "the folder of kernels is mounted noexec; guests run the installed kernel, so restart them after it is upgraded", "path", c.dir)
		return binary, nil
	}
	key, err := digestFile(binary)
	if err != nil {
		return "", fmt.Errorf("read the kernel: %w", err)
	}
	return c.keep(ctx, "linux-"+release+"-"+key, 0o555, func(_ context.Context, f *os.File) error {
		src, err := os.Open(binary)
		if err != nil {
			return err
		}
		defer src.Close() //nolint:errcheck // read only
		_, err = io.Copy(f, src)
		return err
	})
}

func (c *Catalog) keepInitrd(ctx context.Context, init string) (string, error) {
	program, err := os.Open(init)
	if err != nil {
		return "", fmt.Errorf("read the early-boot program: %w", err)
	}
	defer program.Close() //nolint:errcheck // read only
	if err := checkStatic(init, program); err != nil {
		return "", err
	}
	info, err := program.Stat()
	if err != nil {
		return "", fmt.Errorf("read the early-boot program: %w", err)
	}
	digest := sha256.New()
	if err := writeInitrd(digest, program, info.Size()); err != nil {
		return "", fmt.Errorf("make the initrd: %w", err)
	}
	key := keyOf(digest)
	return c.keep(ctx, "initrd-"+key+".cpio", 0o444, func(_ context.Context, f *os.File) error {
		digest := sha256.New()
		if err := writeInitrd(io.MultiWriter(f, digest), program, info.Size()); err != nil {
			return err
		}
		if keyOf(digest) != key {
			return fmt.Errorf("%s changed while it was read", init)
		}
		return nil
	})
}

func (c *Catalog) keepModules(ctx context.Context, dir, release string) (string, error) {
	tree, err := surveyModules(dir)
	if err != nil {
		return "", fmt.Errorf("read the kernel's modules: %w", err)
	}
	return c.keep(ctx, "modules-"+release+"-"+tree.digest+".ext4", 0o444, func(ctx context.Context, f *os.File) error {
		return makeModules(ctx, f, tree)
	})
}

func (c *Catalog) keepManifest(ctx context.Context, k vps.Kernel) error {
	path := c.manifestPath(k)
	for _, p := range []*string{&k.Path, &k.Initrd, &k.Modules} {
		*p = strings.TrimPrefix(*p, c.dir+string(filepath.Separator))
	}
	data, err := json.Marshal(manifest{Version: 1, Kernel: k})
	if err != nil {
		return err
	}
	_, err = c.keep(ctx, filepath.Base(path), 0o444, func(_ context.Context, f *os.File) error {
		_, err := f.Write(append(data, '\n'))
		return err
	})
	return err
}

// keep returns the path of name in the folder, and lets fill make the file
// when it is not there. The folder is locked.
func (c *Catalog) keep(ctx context.Context, name string, mode os.FileMode, fill func(context.Context, *os.File) error) (path string, err error) {
	path = filepath.Join(c.dir, name)
	if info, err := os.Lstat(path); err == nil && info.Mode() == mode && info.Size() > 0 {
		return path, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	started := time.Now()
	f, err := os.OpenFile(filepath.Join(c.dir, tempPrefix+name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = fill(ctx, f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	c.log.InfoContext(ctx, "made kernel file", "path", path, "took", time.Since(started))
	return path, durable.SyncDir(c.dir)
}

// digestFile returns what names a file with this content.
func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return keyOf(h), nil
}

// digestOf returns what names something made of these parts.
func digestOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = io.WriteString(h, p)
		if len(parts) > 1 {
			_, _ = h.Write([]byte{0})
		}
	}
	return keyOf(h)
}

// keyOf returns what a digest is called in a file's name.
func keyOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil))[:digestLength] }
