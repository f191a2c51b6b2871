package disk

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The first bytes of what uml_mkcow (uml-utilities 20070815.4) wrote for a
// sparse file of 64 GiB with the time 1700000000, called /tmp/exp/base.
const goldenCOW = "OOOM\x00\x00\x00\x03\x65\x53\xf1\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x10\x00\x00\x00\x00\x00/tmp/exp/base\x00"

func goldenHeader() COWHeader {
	return COWHeader{Backing: "/tmp/exp/base", MTime: 1700000000, Size: 64 << 30, SectorSize: 512, Alignment: 4096}
}

func TestCOWHeaderGolden(t *testing.T) {
	t.Parallel()
	b, err := goldenHeader().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4128)
	copy(want, goldenCOW)
	if !bytes.Equal(b, want) {
		t.Errorf("header is\n%q\nwant\n%q", b[:64], want[:64])
	}
	h, err := ParseCOW(append(b, 1, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goldenHeader(), h); diff != "" {
		t.Error(diff)
	}
	// uml_mkcow made that file 68736262144 bytes long: data offset + 64 GiB.
	if got, want := h.DataOffset(), uint64(68736262144-64<<30); got != want {
		t.Errorf("data starts at %d, want %d", got, want)
	}
}

func TestCOWHeaderOffsets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ size, bitmap, data uint64 }{
		{1, 1, 12288},
		{512 * 8, 1, 12288},
		{512*8 + 1, 2, 12288},
		{512 * 8 * 4096, 4096, 12288},
		{512*8*4096 + 1, 4097, 16384},
		{64 << 30, 16 << 20, 8192 + 16<<20},
	} {
		h := goldenHeader()
		h.Size = tt.size
		if h.BitmapOffset() != 8192 || h.BitmapLength() != tt.bitmap || h.DataOffset() != tt.data {
			t.Errorf("size %d: bitmap %d+%d, data %d; want 8192+%d, %d", tt.size, h.BitmapOffset(), h.BitmapLength(), h.DataOffset(), tt.bitmap, tt.data)
		}
	}
}

func TestCOWHeaderRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*COWHeader){
		"relative path": func(h *COWHeader) { h.Backing = "base" },
		"no path":       func(h *COWHeader) { h.Backing = "" },
		"long path":     func(h *COWHeader) { h.Backing = "/" + strings.Repeat("x", 4095) },
		"zero in path":  func(h *COWHeader) { h.Backing = "/a\x00b" },
		"no size":       func(h *COWHeader) { h.Size = 0 },
		"huge size":     func(h *COWHeader) { h.Size = 1 << 63 },
		"data too far":  func(h *COWHeader) { h.Size = 8 << 40 },
		"sector":        func(h *COWHeader) { h.SectorSize = 0 },
		"alignment":     func(h *COWHeader) { h.Alignment = 0 },
		"odd alignment": func(h *COWHeader) { h.Alignment = 5000 },
	} {
		h := goldenHeader()
		change(&h)
		if _, err := h.Marshal(); !errors.Is(err, ErrNotCOW) {
			t.Errorf("%s: got %v, want ErrNotCOW", name, err)
		}
	}
	longest := goldenHeader()
	longest.Backing = "/" + strings.Repeat("x", 4094)
	b, err := longest.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ParseCOW(b); err != nil || h != longest {
		t.Errorf("the longest path does not come back: %v", err)
	}
}

// TestCOWHeaderEqualsReference compares with what uml_mkcow writes here.
func TestCOWHeaderEqualsReference(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base, cow := filepath.Join(dir, "base"), filepath.Join(dir, "cow")
	for _, size := range []int64{4096, 1<<20 + 512, 3 << 30, 64 << 30} {
		makeSparse(t, base, size)
		if err := os.Chtimes(base, time.Unix(1234567890, 0), time.Unix(1234567890, 0)); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(cow)
		if out, err := exec.CommandContext(t.Context(), "uml_mkcow", cow, base).CombinedOutput(); err != nil {
			t.Fatalf("uml_mkcow (package uml-utilities): %v\n%s", err, out)
		}
		h := COWHeader{Backing: base, MTime: 1234567890, Size: uint64(size), SectorSize: 512, Alignment: 4096}
		ours, err := h.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(cow)
		if err != nil {
			t.Fatal(err)
		}
		theirs := make([]byte, h.DataOffset())
		if _, err := f.ReadAt(theirs, 0); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		if !bytes.Equal(append(ours, make([]byte, len(theirs)-len(ours))...), theirs) {
			t.Errorf("size %d: header or bitmap differs from uml_mkcow's", size)
		}
		if info.Size() != int64(h.DataOffset())+size {
			t.Errorf("size %d: uml_mkcow's file has %d bytes, want %d", size, info.Size(), int64(h.DataOffset())+size)
		}
	}
}

func FuzzParseCOW(f *testing.F) {
	good, err := goldenHeader().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseCOW(b)
		if err != nil {
			return
		}
		again, err := h.Marshal()
		if err != nil {
			t.Fatalf("parsed, but not written: %v", err)
		}
		if !bytes.Equal(again, b[:cowLength]) {
			t.Fatalf("%q does not come back", b[:cowLength])
		}
		if h.DataOffset() < h.BitmapOffset()+h.BitmapLength() || h.DataOffset() > cowMaxOffset {
			t.Fatalf("data at %d", h.DataOffset())
		}
	})
}
