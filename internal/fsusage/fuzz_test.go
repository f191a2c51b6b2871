package fsusage

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"sublet/internal/vps"
)

// windows are the places where small ext filesystems and swap keep what is
// read. The fuzzer works on these bytes only: it is slow with long inputs.
var windows = []struct{ off, length int }{{0, 8}, {1024, 1024}, {2048, 256}, {3072, 64}, {4086, 10}, {8192, 64}}

// stretched is a long device of zeros, with bytes in the windows.
type stretched struct {
	bytesSource
	size int64
}

func stretch(b []byte, size int64) stretched {
	content := make([]byte, 8192+64)
	for _, w := range windows {
		b = b[copy(content[w.off:][:w.length], b):]
	}
	return stretched{content, size}
}

func (s stretched) Size() int64 { return s.size }

func (s stretched) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(s.bytesSource)) {
		copy(p, s.bytesSource[off:])
	}
	return len(p), nil
}

// checkReport fails on numbers that cannot be right.
func checkReport(t *testing.T, fs *vps.Filesystem, size int64) {
	t.Helper()
	switch {
	case fs.Size < 0 || fs.Free < 0 || fs.Reserved < 0 || fs.Kept < 0 || fs.Overhead < 0,
		fs.Type != vps.FilesystemBtrfs && fs.Size > vps.Bytes(size),
		fs.Free > fs.Size || fs.FreeInodes > fs.Inodes, fs.FreeBlocks > fs.Blocks,
		fs.UsedPercent() < 0 || fs.UsedPercent() > 100, fs.InodesPercent() < 0 || fs.InodesPercent() > 100:
		t.Fatalf("of %d bytes: %+v", size, fs)
	}
}

func FuzzFilesystem(f *testing.F) {
	path := filepath.Join(f.TempDir(), "image")
	for _, command := range [][]string{
		{"mke2fs", "-q", "-t", "ext4", path, "2M"},
		{"debugfs", "-w", "-R", "feature needs_recovery", path},
		{"mke2fs", "-q", "-F", "-t", "ext2", "-r", "0", "-O", "none", path, "1M"},
		{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode,uninit_bg,^metadata_csum", path, "20M"},
		{"debugfs", "-w", "-R", "feature needs_recovery", path},
		{"mke2fs", "-q", "-F", "-O", "journal_dev", path, "4M"},
		{"mkswap", "-q", "-f", path},
	} {
		run(f, command[0], command[1:]...)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		var seed []byte
		for _, w := range windows {
			seed = append(seed, b[w.off:][:w.length]...)
		}
		f.Add(seed, int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 16<<10 || size > 1<<50 {
			return
		}
		d := &device{ctx: t.Context(), source: stretch(b, size), left: &budget{bytes: 4 << 20, reads: 1 << 12}}
		fs, err := probe(d, nil)
		if err == nil {
			checkReport(t, &fs, size)
		}
	})
}

// FuzzLook reads whole disks: tables, overlays and qcow2 images.
func FuzzLook(f *testing.F) {
	dir := f.TempDir()
	path, base := filepath.Join(dir, "image"), filepath.Join(dir, "base")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, command := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M"},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", path, "1M"},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path},
		{"qemu-img", "convert", "-q", "-c", "-O", "qcow2", "-o", "cluster_size=512,compression_type=zstd", "../../LICENSE", path},
		{"uml_mkcow", path, base},
	} {
		_ = os.Remove(path)
		run(f, command[0], command[1:]...)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), 5<<10)])
	}
	for _, script := range []string{
		"label: dos\nunit: sectors\nstart=1,size=1\nstart=2,size=10,type=5\nstart=3,size=1\nstart=5,size=1\n",
		"label: gpt\nunit: sectors\ntable-length: 4\nfirst-lba: 3\nlast-lba: 13\nstart=4,size=2\n",
	} {
		if err := os.WriteFile(path, make([]byte, 8<<10), 0o600); err != nil {
			f.Fatal(err)
		}
		feed(f, script, "sfdisk", "-q", path)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &stack{ctx: t.Context(), left: &budget{bytes: 8 << 20, reads: 1 << 14}}
		file := s.device(bytesSource(b))
		d := file
		if _, c, err := cowHeader(file); err == nil {
			d = s.device(c)
		} else if _, q, err := qcow2Header(file); err == nil {
			d = s.device(q)
		}
		var u usage
		u.read(d, nil, nil)
		for _, p := range u.Parts {
			if p.Filesystem != nil {
				checkReport(t, p.Filesystem, int64(p.Size))
			}
			if p.Start < 0 || p.Size < 0 {
				t.Fatalf("%+v", p)
			}
		}
	})
}

// FuzzUnpack unpacks compressed clusters.
func FuzzUnpack(f *testing.F) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(make([]byte, 4096)); err != nil || w.Close() != nil {
		f.Fatal(err)
	}
	f.Add(packed.Bytes()[10:], false)
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00"), true)
	f.Fuzz(func(t *testing.T, b []byte, asZstd bool) {
		data := make([]byte, 4096)
		if err := unpack(data, b, asZstd); err != nil && errors.Is(err, io.ErrShortBuffer) {
			t.Fatal(err)
		}
	})
}
