package kbuild

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// sourceSize is what an unpacked source of Linux 7.2 and its build take.
const sourceSize = 4 * vps.GiB

// source is an unpacked source that can be built from.
type source struct {
	dir string
	// version is the Makefile's: "6.12.74".
	version string
	// digest tells one source from another.
	digest string
}

// unpack makes the source at path, an archive or an unpacked folder, available.
// An archive is unpacked into the folder to, which does not exist, as the
// build's user; a folder is used where it lies.
func (b *build) unpack(ctx context.Context, path, to string) (*source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, vps.Wrap(vps.CodeNotFound, err, "the source %s cannot be read; name the archive or the folder of a kernel's source on this host", path)
	}
	if info.IsDir() {
		return b.folder(ctx, path)
	}
	if !info.Mode().IsRegular() {
		return nil, vps.Invalid("source", "%s is neither an archive nor a folder", path)
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return nil, err
	}
	if err := b.own(to); err != nil {
		return nil, err
	}
	digest, err := b.extract(ctx, path, info.Size(), to)
	if err != nil {
		return nil, err
	}
	dir, err := top(to)
	if err != nil {
		return nil, err
	}
	s, err := inspect(dir, filepath.Base(path))
	if err != nil {
		return nil, err
	}
	s.digest = digest
	return s, nil
}

// folder takes an unpacked source. It is told from others by the names, sizes
// and times of its files: reading all of them would take longer than unpacking.
func (b *build) folder(ctx context.Context, path string) (*source, error) {
	s, err := inspect(path, path)
	if err != nil {
		return nil, err
	}
	if err := b.readable(ctx, path); err != nil {
		return nil, err
	}
	for _, left := range []string{".config", "include/config", "arch/x86/include/generated", "arch/um/include/generated"} {
		if _, err := os.Lstat(filepath.Join(path, left)); err == nil {
			return nil, vps.Invalid("source", "the folder %s holds what an earlier build left (%s); run `make mrproper` there", path, left)
		}
	}
	digest := sha256.New()
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == ".git" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			_, _ = fmt.Fprintf(digest, "%s %d %d\n", strings.TrimPrefix(p, path), info.Size(), info.ModTime().UnixNano())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look through the source: %w", err)
	}
	s.digest = sum(digest)
	return s, nil
}

// readable refuses a folder that is shut to the build's user.
func (b *build) readable(ctx context.Context, dir string) error {
	program, err := findTool("test")
	if err != nil {
		return err
	}
	if err := b.run(b.command(ctx, program, "-r", filepath.Join(dir, "Makefile"))); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return vps.Wrap(vps.CodeConflict, err, "the folder %s cannot be read by the user %d, as which kernels are built; open it with chmod -R a+rX, and the folders above it with chmod a+x, or give an archive", dir, b.UID)
	}
	return nil
}

// top returns the folder with the source's Makefile: archives of Linux have
// everything in one folder.
func top(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "Makefile")); err == nil {
		return dir, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) == 1 && entries[0].IsDir() {
		return filepath.Join(dir, entries[0].Name()), nil
	}
	return dir, nil
}

// oldest is the oldest version that is built: what sublet is tried with.
const oldestMajor, oldestMinor = 6, 1

// inspect reads a source's version.
func inspect(dir, what string) (*source, error) {
	f, err := os.Open(filepath.Join(dir, "Makefile"))
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "%s is not the source of a Linux kernel: it has no Makefile", what)
	}
	defer f.Close() //nolint:errcheck // read only
	values := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for lines.Scan() {
		name, value, found := strings.Cut(lines.Text(), "=")
		name = strings.TrimSpace(name)
		if _, had := values[name]; found && !had {
			values[name] = strings.TrimSpace(value)
		}
	}
	major, err1 := strconv.Atoi(values["VERSION"])
	minor, err2 := strconv.Atoi(values["PATCHLEVEL"])
	patch, err3 := strconv.Atoi(values["SUBLEVEL"])
	_, err4 := os.Stat(filepath.Join(dir, "arch/um/Makefile"))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "%s is not the source of a Linux kernel with User Mode Linux in it; take one from kernel.org or Debian's linux-source", what)
	}
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return nil, vps.Invalid("source", "%s is Linux %d.%d; %d.%d is the oldest that is built", what, major, minor, oldestMajor, oldestMinor)
	}
	version := fmt.Sprintf("%d.%d.%d%s", major, minor, patch, values["EXTRAVERSION"])
	if !versionForm.MatchString(version) {
		return nil, vps.Invalid("source", "%s calls itself %.40q, which is no version", what, version)
	}
	return &source{dir: dir, version: version}, nil
}

// The first bytes of archives.
var (
	magicXZ    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	magicZstd  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicGzip  = []byte{0x1f, 0x8b}
	magicBzip2 = []byte("BZh")
	magicTar   = []byte("ustar")
)

// tarMagicAt is where a tar's header has its magic.
const tarMagicAt = 257

// extract lets tar unpack an archive, and returns its digest.
func (b *build) extract(ctx context.Context, path string, size int64, to string) (string, error) {
	if err := b.room(to, b.Room); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", vps.Wrap(vps.CodeNotFound, err, "the source %s cannot be read", path)
	}
	defer f.Close() //nolint:errcheck // read only
	var head [512]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", vps.Wrap(vps.CodeInvalid, err, "%s is empty", path)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	digest := sha256.New()
	in := io.TeeReader(&counter{r: f, tell: func(done int64) {
		b.meter.at(phaseUnpack, float64(done)/float64(max(size, 1)))
	}}, digest)
	plain, done, err := b.decompress(ctx, path, head[:n], in)
	if err != nil {
		return "", err
	}
	tar, err := findTool("tar")
	if err != nil {
		return "", errors.Join(err, done())
	}
	cmd := b.command(ctx, tar, "--extract", "--file=-", "--no-same-owner", "--no-same-permissions", "--directory="+to)
	cmd.Stdin = plain
	cmd.Stdout, cmd.Stderr = b.log, b.log
	err = b.run(cmd)
	if ended := done(); err == nil {
		err = ended
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		// What follows the archive's end was not asked for, but belongs to the
		// digest.
		_, err = io.Copy(io.Discard, in)
	}
	if err != nil {
		if full := b.full(to); full != nil {
			return "", full
		}
		return "", vps.Wrap(vps.CodeInvalid, err, "the archive %s could not be unpacked; it may be cut off or damaged%s", path, b.lastLines())
	}
	return sum(digest), nil
}

// decompress returns what an archive holds, by how it begins. done has to be
// called when the result was read.
func (b *build) decompress(ctx context.Context, path string, head []byte, in io.Reader) (out io.Reader, done func() error, err error) {
	nothing := func() error { return nil }
	switch {
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(in)
		return z, nothing, err
	case bytes.HasPrefix(head, magicBzip2):
		return bzip2.NewReader(in), nothing, nil
	case bytes.HasPrefix(head, magicXZ):
		return b.filter(ctx, in, "xz", "xz-utils", "--decompress", "--stdout")
	case bytes.HasPrefix(head, magicZstd):
		return b.filter(ctx, in, "zstd", "zstd", "--decompress", "--stdout", "--long=31")
	case len(head) > tarMagicAt && bytes.HasPrefix(head[tarMagicAt:], magicTar):
		return in, nothing, nil
	}
	return nil, nil, vps.Invalid("source", "%s is not an archive that is known here; give a .tar, .tar.xz, .tar.gz, .tar.bz2 or .tar.zst, or the unpacked folder", path)
}

// filter runs a program that decompresses. It sees bytes of the owner's, no
// files.
func (b *build) filter(ctx context.Context, in io.Reader, program, pkg string, args ...string) (io.Reader, func() error, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, nil, vps.Wrap(vps.CodeNotFound, err, "the program %s is needed for this archive; install it with: apt-get install %s", program, pkg)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd := b.command(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, w, b.log
	ended := make(chan error, 1)
	go func() {
		err := b.run(cmd)
		_ = w.Close()
		ended <- err
	}()
	return r, func() error {
		_ = r.Close()
		return <-ended
	}, nil
}

// room refuses a disk that is sure to be too small.
func (b *build) room(dir string, need vps.Bytes) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if free := vps.Bytes(st.Bavail) * vps.Bytes(st.Bsize); free < need {
		return vps.Wrap(vps.CodeDenied, unix.ENOSPC, "the disk that holds %s has %s free, and a build takes up to %s for a while; free some space", b.WorkDir, free, need)
	}
	return nil
}

// full says that the disk is full, when it is.
func (b *build) full(dir string) error {
	const little = 512 << 10
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && (int64(st.Bavail)*st.Bsize < little || st.Files > 0 && st.Ffree == 0) {
		return vps.Wrap(vps.CodeDenied, unix.ENOSPC, "the disk that holds %s is full, so the kernel could not be built; free some space (a build takes up to %s for a while)", b.WorkDir, b.Room)
	}
	return nil
}

// counter tells how much of a reader was read.
type counter struct {
	r    io.Reader
	done int64
	tell func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.tell(c.done)
	return n, err
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
