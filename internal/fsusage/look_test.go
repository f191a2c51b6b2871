package fsusage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sublet/internal/vps"
)

// ext4Image makes an image with a few files in it.
func ext4Image(tb testing.TB, path, label, size string) {
	tb.Helper()
	run(tb, "mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", ".", path, size)
}

func look1(tb testing.TB, path string, o Options) vps.DiskUsage {
	tb.Helper()
	u, err := Look(tb.Context(), path, o)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

// feed runs a program with an input.
func feed(tb testing.TB, input, name string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func sparse(tb testing.TB, path string, size int64) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		tb.Fatal(err)
	}
}

func TestLookRaw(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	ext4Image(t, path, "root", "64M")
	u := look1(t, path, Options{})
	if u.Format != vps.DiskRaw || u.Size != 64<<20 || u.Table != "" || len(u.Parts) != 1 || u.Parts[0].Number != 0 || u.Parts[0].Filesystem == nil || u.Parts[0].Filesystem.Label != "root" {
		t.Fatalf("%+v", u)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if u.Allocated != vps.Bytes(st.Blocks*512) || u.Allocated >= u.Size {
		t.Errorf("%d bytes allocated, stat says %d", u.Allocated, st.Blocks*512)
	}
}

// loop makes a block device of a file, until the test ends.
func loop(t *testing.T, path string, args ...string) string {
	t.Helper()
	device := strings.TrimSpace(run(t, "losetup", append(args, "--find", "--show", path)...))
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v\n%s", device, err, out)
		}
	})
	return device
}

func TestLookDevice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	ext4Image(t, path, "loop", "64M")
	u := look1(t, loop(t, path, "--read-only"), Options{})
	if u.Size != 64<<20 || u.Allocated != 64<<20 || u.Parts[0].Filesystem.Label != "loop" {
		t.Errorf("%+v", u)
	}
}

func TestLookSwap(t *testing.T) {
	t.Parallel()
	for page := 4096; page <= 65536; page *= 2 {
		path := filepath.Join(t.TempDir(), "swap")
		sparse(t, path, 8<<20+1)
		run(t, "mkswap", "-q", "-p", strconv.Itoa(page), "-L", "swap "+strconv.Itoa(page), "-U", "b5a4cc3f-6ff1-44e3-b14e-24d9c0ae4a4c", path)
		fs := look1(t, path, Options{}).Parts[0].Filesystem
		if fs == nil || fs.Type != vps.FilesystemSwap || fs.BlockSize != vps.Bytes(page) || fs.Size != 8<<20 || fs.Free != fs.Size-fs.BlockSize ||
			fs.Label != "swap "+strconv.Itoa(page) || fs.UUID != "b5a4cc3f-6ff1-44e3-b14e-24d9c0ae4a4c" || fs.UsedPercent() != 0 {
			t.Errorf("%d: %+v", page, fs)
		}
	}
}

// TestLookPartitions lays a filesystem into each partition.
func TestLookPartitions(t *testing.T) {
	t.Parallel()
	small := filepath.Join(t.TempDir(), "small")
	ext4Image(t, small, "here", "2M")
	content, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		script string
		sector int64
		starts []int64 // in MiB
		table  string
		names  []string
	}{
		"mbr":        {"label: dos\n1M,8M\n16M,8M\n", 512, []int64{1, 16}, "mbr", nil},
		"extended":   {"label: dos\n1M,8M\n16M,100M,E\n17M,8M\n32M,8M\n48M,8M\n", 512, []int64{1, 17, 32, 48}, "mbr", nil},
		"gpt":        {"label: gpt\nstart=1M,size=8M,name=\"root ☂\"\nstart=16M,size=8M\n", 512, []int64{1, 16}, "gpt", []string{"root ☂", ""}},
		"gpt, 4 KiB": {"label: gpt\nstart=1M,size=8M\nstart=16M,size=8M\n", 4096, []int64{1, 16}, "gpt", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk")
			sparse(t, path, 128<<20)
			if tt.sector == 512 {
				feed(t, tt.script, "sfdisk", "-q", path)
			} else {
				feed(t, tt.script, "sfdisk", "-q", loop(t, path, "--sector-size", strconv.FormatInt(tt.sector, 10)))
				run(t, "sync", path)
			}
			for _, s := range tt.starts {
				patch(t, path, s<<20, content)
			}
			check := func(t *testing.T) {
				t.Helper()
				u := look1(t, path, Options{})
				if u.Table != tt.table || len(u.Parts) != len(tt.starts) {
					t.Fatalf("%+v", u)
				}
				for i, p := range u.Parts {
					if p.Start != vps.Bytes(tt.starts[i]<<20) || p.Size != 8<<20 || p.Filesystem == nil || p.Filesystem.Label != "here" || p.Error != "" {
						t.Errorf("part %d: %+v", i, p)
					}
					if tt.names != nil && p.Name != tt.names[i] {
						t.Errorf("part %d is called %q", i, p.Name)
					}
				}
			}
			check(t)
			if tt.table == "gpt" {
				// The copy at the end is as good.
				patch(t, path, tt.sector, make([]byte, 64))
				check(t)
			}
		})
	}
}

func TestLookHostilePartitions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	sparse(t, path, 128<<20)
	feed(t, "label: dos\n16M,100M,E\n17M,8M\n32M,8M\n", "sfdisk", "-q", path)
	// The second extended record leads back to itself.
	second := int64(31) << 20
	b := make([]byte, 512)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for ; second < 33<<20; second += 512 {
		if _, err := f.ReadAt(b, second); err != nil {
			t.Fatal(err)
		}
		if string(b[510:]) == "\x55\xaa" {
			break
		}
	}
	entry := b[446+16:][:16]
	entry[4] = 5
	binary.LittleEndian.PutUint32(entry[8:], uint32((second-16<<20)/512))
	binary.LittleEndian.PutUint32(entry[12:], 16)
	patch(t, path, second, b)
	u := look1(t, path, Options{})
	if !strings.Contains(u.Parts[0].Error, "does not end") || len(u.Parts) != 3 {
		t.Errorf("%+v", u)
	}
	if err := os.Truncate(path, 24<<20); err != nil {
		t.Fatal(err)
	}
	if u := look1(t, path, Options{}); !strings.Contains(u.Parts[0].Error, "31457280") && !strings.Contains(u.Parts[0].Error, "of 25165824") {
		t.Errorf("cut off: %+v", u)
	}
}

func TestLookContents(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	sparse(t, path, 8<<20)
	if u := look1(t, path, Options{}); len(u.Parts) != 1 || u.Parts[0].Contains != "" || u.Parts[0].Error != "" || u.Parts[0].Filesystem != nil {
		t.Errorf("nothing: %+v", u)
	}
	patch(t, path, 512, []byte("LABELONE"))
	if u := look1(t, path, Options{}); u.Parts[0].Contains != lvm {
		t.Errorf("LVM: %+v", u)
	}
	// What was there before does not count.
	ext4Image(t, path, "old", "64M")
	patch(t, path, 0, []byte("LUKS\xba\xbe"))
	if u := look1(t, path, Options{}); u.Parts[0].Filesystem != nil || !strings.HasPrefix(u.Parts[0].Contains, "LUKS") {
		t.Errorf("LUKS: %+v", u)
	}
	patch(t, path, 0, make([]byte, 8))
	feed(t, "label: dos\n1M,8M\n", "sfdisk", "-q", "--wipe", "never", path)
	patch(t, path, extOffset+0x78, []byte("damaged"))
	patch(t, path, 8193*1024+0x78, []byte("damaged"))
	if u := look1(t, path, Options{}); u.Table != "mbr" || len(u.Parts) != 1 || u.Parts[0].Number != 1 || u.Parts[0].Error != "" {
		t.Errorf("a table over a filesystem: %+v", u)
	}
}

func TestLookRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]vps.Code{
		fifo: vps.CodeInvalid, dir: vps.CodeInvalid, "/dev/null": vps.CodeInvalid, filepath.Join(dir, "none"): vps.CodeNotFound,
	} {
		if _, err := Look(t.Context(), path, Options{}); vps.ErrorCode(err) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// differ makes a copy of the image at path that is used differently.
func differ(tb testing.TB, path, other string) {
	tb.Helper()
	run(tb, "cp", "--sparse=always", path, other)
	big := filepath.Join(tb.TempDir(), "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("content "), 1<<17), 0o600); err != nil {
		tb.Fatal(err)
	}
	for i := range 5 {
		run(tb, "debugfs", "-w", "-R", fmt.Sprintf("write %s big%d", big, i), other)
	}
}

// sameContent compares what a source holds with a file, in pieces of all
// lengths.
func sameContent(t *testing.T, s Source, path string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Size() != int64(len(want)) {
		t.Fatalf("it has %d bytes, want %d", s.Size(), len(want))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for off := 0; off < len(want); {
		n := min(1+random.IntN(1<<uint(random.IntN(20))), len(want)-off)
		p := make([]byte, n)
		if got, err := s.ReadAt(p, int64(off)); err != nil || got != n {
			t.Fatalf("%d bytes at %d: %d, %v", n, off, got, err)
		}
		if !bytes.Equal(p, want[off:off+n]) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
		off += n
	}
}

// opened opens a disk without a bound.
func opened(t *testing.T, path string, backing ...string) Source {
	t.Helper()
	s := &stack{ctx: t.Context(), left: &budget{bytes: 1 << 40, reads: 1 << 40}}
	t.Cleanup(s.close)
	l, err := s.open(path, "", backing)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLookCOW lays the difference of two images into an overlay, as the
// guest's kernel does.
func TestLookCOW(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base, changed, over := filepath.Join(dir, "base"), filepath.Join(dir, "changed"), filepath.Join(dir, "over")
	ext4Image(t, base, "base", "48M")
	differ(t, base, changed)
	run(t, "uml_mkcow", over, base)
	s := &stack{ctx: t.Context(), left: newBudget()}
	defer s.close()
	file, err := openRaw(over)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	named, c, err := cowHeader(s.device(file))
	if err != nil || named != base {
		t.Fatalf("it lies on %q: %v", named, err)
	}
	old, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(changed)
	if err != nil {
		t.Fatal(err)
	}
	bits := make([]byte, len(old)/512/8)
	for i := range int64(len(old) / 512) {
		if sector := content[i*512:][:512]; !bytes.Equal(sector, old[i*512:][:512]) {
			bits[i/8] |= 1 << (i % 8)
			patch(t, over, c.data+i*512, sector)
		}
	}
	patch(t, over, c.bitmap, bits)
	sameContent(t, opened(t, over, base), changed)
	u, want := look1(t, over, Options{Backing: []string{base}}), look1(t, changed, Options{})
	if u.Format != vps.DiskCOW || u.Backing != base || u.Size != want.Size || u.Parts[0].Filesystem.Free != want.Parts[0].Filesystem.Free ||
		u.Parts[0].Filesystem.Free == look1(t, base, Options{}).Parts[0].Filesystem.Free {
		t.Errorf("%+v, want %+v", u, want)
	}
	if _, err := Look(t.Context(), over, Options{}); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), "--backing "+base) {
		t.Errorf("without its base: %v", err)
	}
	if _, err := Look(t.Context(), over, Options{Backing: []string{over}}); err == nil {
		t.Error("an overlay on itself was read")
	}
	if _, err := Look(t.Context(), over, Options{Format: vps.DiskRaw}); err != nil {
		t.Errorf("as raw bytes: %v", err)
	}
}

func TestLookQcow2(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base, changed := filepath.Join(dir, "base"), filepath.Join(dir, "changed")
	ext4Image(t, base, "base", "24M")
	differ(t, base, changed)
	want := look1(t, changed, Options{})
	for name, tt := range map[string]struct {
		options string
		compress,
		onBase bool
	}{
		"version 3":                  {"compat=1.1", false, false},
		"version 2":                  {"compat=0.10", false, false},
		"version 2, compressed":      {"compat=0.10", true, false},
		"deflate":                    {"compat=1.1", true, false},
		"zstd":                       {"compression_type=zstd", true, false},
		"small clusters":             {"cluster_size=512", false, false},
		"small clusters, compressed": {"cluster_size=512", true, false},
		"large clusters":             {"cluster_size=2M", false, false},
		"large clusters, zstd":       {"cluster_size=2M,compression_type=zstd", true, false},
		"extended":                   {"extended_l2=on,cluster_size=128k", false, false},
		"extended, compressed":       {"extended_l2=on", true, false},
		"on a base":                  {"compat=1.1", false, true},
		"extended on a base":         {"extended_l2=on,cluster_size=16k", false, true},
		"compressed on a base":       {"compat=0.10", true, true},
		"other refcounts":            {"refcount_bits=1,lazy_refcounts=on", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			args := []string{"convert", "-q", "-f", "raw", "-O", "qcow2", "-o", tt.options}
			var backing []string
			if tt.compress {
				args = append(args, "-c")
			}
			if tt.onBase {
				args = append(args, "-B", base, "-F", "raw")
				backing = []string{base}
			}
			run(t, "qemu-img", append(args, changed, path)...)
			sameContent(t, opened(t, path, backing...), changed)
			u := look1(t, path, Options{Backing: backing})
			if u.Format != vps.DiskQcow2 || u.Size != want.Size || u.Parts[0].Filesystem == nil || u.Parts[0].Filesystem.Free != want.Parts[0].Filesystem.Free {
				t.Errorf("%+v, want %+v", u, want)
			}
		})
	}
	// A chain of two, on a base that is shorter.
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", changed, "-F", "raw", filepath.Join(dir, "middle"), "40M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Join(dir, "middle"), "-F", "qcow2", filepath.Join(dir, "top"))
	longer := filepath.Join(dir, "longer")
	run(t, "cp", "--sparse=always", changed, longer)
	if err := os.Truncate(longer, 40<<20); err != nil {
		t.Fatal(err)
	}
	sameContent(t, opened(t, filepath.Join(dir, "top"), filepath.Join(dir, "middle"), changed), longer)

	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), filepath.Join(dir, "apart"), "8M")
	if _, err := Look(t.Context(), filepath.Join(dir, "apart"), Options{}); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), "data lies in another file") {
		t.Errorf("data apart: %v", err)
	}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, "secret"), "8M")
	patch(t, filepath.Join(dir, "secret"), 32, []byte{0, 0, 0, 2}) // crypt_method: LUKS
	if _, err := Look(t.Context(), filepath.Join(dir, "secret"), Options{}); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("encrypted: %v", err)
	}
}

// bytesSource is bytes in memory.
type bytesSource []byte

func (b bytesSource) Size() int64 { return int64(len(b)) }

func (b bytesSource) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
