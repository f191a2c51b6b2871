//go:build linux

package appliance_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"sublet/internal/appliance"
	"sublet/internal/vps"
)

// BenchmarkCopy tells how fast a large file goes in and out, with the boot of
// the appliance.
func BenchmarkCopy(b *testing.B) {
	const size = 256 << 20
	bench := newBench(b)
	path := filepath.Join(bench.dir, "disk.img")
	var empty, full bytes.Buffer
	if err := tar.NewWriter(&empty).Close(); err != nil {
		b.Fatal(err)
	}
	w := tar.NewWriter(&full)
	if err := w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o600, Size: size}); err != nil {
		b.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte("sublet"), size/6+1)[:size]); err != nil {
		b.Fatal(err)
	}
	if err := bench.Make(b.Context(), appliance.Make{Path: path, Size: vps.GiB, Filesystem: "ext4", UID: testUID}, &empty); err != nil {
		b.Fatal(err)
	}
	if err := os.Chown(path, testUID, testUID); err != nil {
		b.Fatal(err)
	}
	s := appliance.Spec{Disks: []vps.Disk{{Path: path}}, UID: testUID}
	b.Run("in", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if err := bench.CopyIn(b.Context(), s, "/big", bytes.NewReader(full.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("out", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if err := bench.CopyOut(b.Context(), s, "/big", io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}
