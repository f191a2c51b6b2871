//go:build linux

package rootfs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/rootfs"
	"sublet/internal/vps"
)

// A tar archive has no sum of its files' contents. What it is compressed with
// does, at the very end, and that has to be read.
func TestDamagedArchives(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 300<<10)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(noise) // never fails
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, f := range []struct{ name, content string }{
		{"etc/os-release", "ID=test\n"}, {"bin/sh", "#!"}, {"data", string(noise)},
	} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(f.content))}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, f.content) // Close tells
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	pack := func(parts ...io.Reader) []byte {
		var b bytes.Buffer
		// Stored: a changed byte in there breaks nothing but the sum.
		z, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
		if err == nil {
			_, err = io.Copy(z, io.MultiReader(parts...))
		}
		if err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	whole := pack(bytes.NewReader(plain.Bytes()))
	flipped := bytes.Clone(whole)
	flipped[150<<10] ^= 1
	for name, c := range map[string]struct {
		data []byte
		want string // empty for what is taken
	}{
		"whole":            {whole, ""},
		"filled up":        {pack(bytes.NewReader(plain.Bytes()), bytes.NewReader(make([]byte, 1<<20))), ""},
		"a changed byte":   {flipped, "damaged"},
		"without its sum":  {whole[:len(whole)-8], "damaged"},
		"an endless trail": {pack(bytes.NewReader(plain.Bytes()), bytes.NewReader(make([]byte, 65<<20))), "follow its end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close() //nolint:errcheck // read only
			_, err = rootfs.Unpack(t.Context(), f, rootfs.Options{Dir: t.TempDir(), Architecture: "amd64"})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
}
