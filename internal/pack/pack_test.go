package pack

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sublet/internal/vps"
)

// memory is a sparse disk: its chunks that are not zeros.
type memory struct {
	size   int64
	chunks map[int64][]byte
}

func (m *memory) Size() int64 { return m.size }

func (m *memory) ReadAt(b []byte, at int64) (int, error) {
	n := 0
	for n < len(b) && at < m.size {
		c := m.chunks[at/ChunkSize]
		part := b[n:min(len(b), n+int(ChunkSize-at%ChunkSize), n+int(m.size-at))]
		clear(part)
		if from := int(at % ChunkSize); from < len(c) {
			copy(part, c[from:])
		}
		n, at = n+len(part), at+int64(len(part))
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) NextData(at int64) (int64, error) {
	next := m.size
	for n := range m.chunks {
		if n >= at/ChunkSize {
			next = min(next, max(at, n*ChunkSize))
		}
	}
	if next >= m.size {
		return 0, io.EOF
	}
	return next, nil
}

func (m *memory) write(at int64, b []byte) { m.chunks[at/ChunkSize] = bytes.Clone(b) }

func filled(pattern string) []byte {
	return bytes.Repeat([]byte(pattern), ChunkSize/len(pattern)+1)[:ChunkSize]
}

func manifest(disks ...Disk) Manifest {
	return Manifest{
		Name: "alice", Image: "debian/12", ImageID: "i", State: vps.SnapshotStopped, Guest: json.RawMessage(`{"version":1}`),
		Disks: disks, Domains: []json.RawMessage{}, Quota: json.RawMessage("null"),
	}
}

// example is a guest with two disks, and what it is packed as.
func example(tb testing.TB) ([]Source, []byte) {
	tb.Helper()
	root := &memory{5*ChunkSize + 4096, map[int64][]byte{0: filled("root"), 3: filled("more"), 5: []byte("the last one is short")}}
	// Zeros that are written down are as good as holes.
	data := &memory{1 << 40, map[int64][]byte{7: make([]byte, ChunkSize), 1<<20 - 1: filled("far")}}
	disks := []Source{root, data}
	var out bytes.Buffer
	m := manifest(Disk{Name: "root", Used: vps.MiB}, Disk{Name: "data"})
	if err := Write(tb.Context(), &out, m, disks, nil, func() error { return nil }); err != nil {
		tb.Fatal(err)
	}
	return disks, out.Bytes()
}

// unpack reads all of a file into disks, which may be there in part.
func unpack(p *Reader, disks []*memory) error {
	for {
		c, err := p.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, ErrCut) {
			return nil
		}
		if err != nil {
			return err
		}
		disks[c.Disk].write(c.Offset, c.Content)
	}
}

func empty(m Manifest) []*memory {
	var disks []*memory
	for _, d := range m.Disks {
		disks = append(disks, &memory{int64(d.Size), map[int64][]byte{}})
	}
	return disks
}

// whole fails unless the disks are what the file says, and what they were.
func whole(tb testing.TB, p *Reader, want []string, got []*memory) {
	tb.Helper()
	digests := digestsOf(tb, got)
	if !slices.Equal(digests, p.Digests()) || !slices.Equal(digests, want) {
		tb.Errorf("the disks are %q, the file says %q, and they were %q", digests, p.Digests(), want)
	}
}

func digestsOf[S Source](tb testing.TB, disks []S) []string {
	tb.Helper()
	var all []string
	for _, d := range disks {
		digest, err := Digest(d)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, digest)
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	disks, file := example(t)
	want := digestsOf(t, disks)
	p, err := NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	m := p.Manifest()
	if m.Name != "alice" || m.Disks[0] != (Disk{"root", 5*ChunkSize + 4096, vps.MiB}) || m.Disks[1] != (Disk{"data", 1 << 40, 0}) || string(m.Guest) != `{"version":1}` {
		t.Errorf("the manifest is %+v", m)
	}
	got := empty(m)
	if err := unpack(p, got); err != nil {
		t.Fatal(err)
	}
	whole(t, p, want, got)
	if len(got[0].chunks) != 3 || len(got[1].chunks) != 1 {
		t.Errorf("there are %d and %d chunks, want 3 and 1: holes stay holes", len(got[0].chunks), len(got[1].chunks))
	}
	if len(file) > 4096 {
		t.Errorf("the file has %d bytes", len(file))
	}
}

// TestCutOff cuts the file at every byte, and goes on from there.
func TestCutOff(t *testing.T) {
	t.Parallel()
	disks, file := example(t)
	want := digestsOf(t, disks)
	for at := range file {
		p, err := NewReader(bytes.NewReader(file[:at]))
		if at < HeadSize && vps.ErrorCode(err) == vps.CodeInvalid || errors.Is(err, ErrCut) {
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", at, err)
		}
		got := empty(p.Manifest())
		if err := unpack(p, got); !errors.Is(err, ErrCut) {
			t.Fatalf("cut at %d it ends with %v", at, err)
		}
		if p.Digests() != nil {
			t.Fatalf("cut at %d the end is known", at)
		}
		kept, err := json.Marshal(p.State())
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := json.Unmarshal(kept, &s); err != nil {
			t.Fatal(err)
		}
		if s.Offset > int64(at) {
			t.Fatalf("cut at %d it says that it read %d", at, s.Offset)
		}
		rest, err := Resume(bytes.NewReader(file[s.Offset:]), s)
		if err != nil {
			t.Fatal(err)
		}
		if err := unpack(rest, got); err != nil {
			t.Fatalf("cut at %d, resumed at %d: %v", at, s.Offset, err)
		}
		whole(t, rest, want, got)
	}
}

// TestDamaged changes every byte of the file, one at a time.
func TestDamaged(t *testing.T) {
	t.Parallel()
	_, file := example(t)
	for at := range file {
		bad := bytes.Clone(file)
		bad[at] ^= 0x41
		p, err := NewReader(bytes.NewReader(bad))
		if err == nil {
			err = unpack(p, empty(p.Manifest()))
		}
		if err == nil || vps.ErrorCode(err) != vps.CodeInvalid && !errors.Is(err, ErrCut) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	// The rest of another file with the same guest is not taken for this one's.
	p, err := NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	_, other := example(t)
	rest, err := Resume(bytes.NewReader(other[p.State().Offset:]), p.State())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rest.Next(); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("the rest of another file: %v", err)
	}
}

// TestForged has frames whose sums are right.
func TestForged(t *testing.T) {
	t.Parallel()
	chunk := filled("x")
	m := manifest(Disk{Name: "root", Size: 3 * ChunkSize}, Disk{Name: "data", Size: ChunkSize + 10})
	m.Schema = 1
	type f = frame
	for name, frames := range map[string]func(w *writer) error{
		"another manifest": func(w *writer) error { return w.json(kindManifest, m) },
		"backwards": func(w *writer) error {
			return errors.Join(w.frame(f{kind: kindChunk, number: 1}, chunk), w.frame(f{kind: kindChunk}, chunk))
		},
		"twice": func(w *writer) error {
			return errors.Join(w.frame(f{kind: kindChunk}, chunk), w.frame(f{kind: kindChunk}, chunk))
		},
		"disk before": func(w *writer) error {
			return errors.Join(w.frame(f{kind: kindChunk, disk: 1}, chunk), w.frame(f{kind: kindChunk}, chunk))
		},
		"no such disk":    func(w *writer) error { return w.frame(f{kind: kindChunk, disk: 2}, chunk) },
		"behind the end":  func(w *writer) error { return w.frame(f{kind: kindChunk, number: 3}, chunk) },
		"far behind":      func(w *writer) error { return w.frame(f{kind: kindChunk, number: 1<<64 - 1}, chunk) },
		"short":           func(w *writer) error { return w.frame(f{kind: kindChunk}, chunk[:100]) },
		"long":            func(w *writer) error { return w.frame(f{kind: kindChunk, disk: 1, number: 1}, chunk) },
		"a bomb":          func(w *writer) error { return w.frame(f{kind: kindChunk}, make([]byte, 64*ChunkSize)) },
		"not enough":      func(w *writer) error { return w.json(kindEnd, end{Disks: []endDisk{{Chunks: 1}, {}}}) },
		"too few disks":   func(w *writer) error { return w.json(kindEnd, end{}) },
		"an end of words": func(w *writer) error { return w.frame(f{kind: kindEnd}, []byte("end")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			w := forge(t, &out)
			if err := errors.Join(w.json(kindManifest, m), frames(w)); err != nil {
				t.Fatal(err)
			}
			p, err := NewReader(&out)
			if err == nil {
				err = unpack(p, empty(p.Manifest()))
			}
			if vps.ErrorCode(err) != vps.CodeInvalid || errors.Is(err, ErrCut) {
				t.Errorf("got %v", err)
			}
		})
	}
	for name, change := range map[string]func(*Manifest){
		"no disk":        func(m *Manifest) { m.Disks = nil },
		"no root":        func(m *Manifest) { m.Disks[0].Name = "first" },
		"name":           func(m *Manifest) { m.Disks[1].Name = "../../etc" },
		"twice":          func(m *Manifest) { m.Disks[1].Name = "root" },
		"huge":           func(m *Manifest) { m.Disks[1].Size = 1 << 62 },
		"nothing":        func(m *Manifest) { m.Disks[1].Size = 0 },
		"negative":       func(m *Manifest) { m.Disks[1].Size = -1 },
		"many":           func(m *Manifest) { m.Disks = append(m.Disks, make([]Disk, 100)...) },
		"guest's name":   func(m *Manifest) { m.Name = "a/b" },
		"another schema": func(m *Manifest) { m.Schema = 2 },
	} {
		t.Run("manifest: "+name, func(t *testing.T) {
			t.Parallel()
			bad := m
			bad.Disks = append([]Disk(nil), m.Disks...)
			change(&bad)
			var out bytes.Buffer
			w := forge(t, &out)
			if err := w.json(kindManifest, bad); err != nil {
				t.Fatal(err)
			}
			if _, err := NewReader(&out); vps.ErrorCode(err) != vps.CodeInvalid {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestProperty packs any disks and unpacks them again.
func TestProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var disks []Source
		var m Manifest
		for i := range rapid.IntRange(1, 3).Draw(t, "disks") {
			d := &memory{rapid.Int64Range(1, 12*ChunkSize).Draw(t, "size"), map[int64][]byte{}}
			for range rapid.IntRange(0, 5).Draw(t, "chunks") {
				n := rapid.Int64Range(0, (d.size-1)/ChunkSize).Draw(t, "number")
				d.chunks[n] = rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "content")
			}
			disks = append(disks, d)
			m.Disks = append(m.Disks, Disk{Name: []string{"root", "a", "b"}[i]})
		}
		m = manifest(m.Disks...)
		var out bytes.Buffer
		read := vps.Bytes(0)
		if err := Write(t.Context(), &out, m, disks, func(n vps.Bytes) {
			if n <= read {
				t.Fatalf("progress from %d to %d", read, n)
			}
			read = n
		}, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		p, err := NewReader(&out)
		if err != nil {
			t.Fatal(err)
		}
		got := empty(p.Manifest())
		if err := unpack(p, got); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			a, err1 := Digest(disks[i])
			b, err2 := Digest(got[i])
			if a != b || a != p.Digests()[i] || err1 != nil || err2 != nil {
				t.Fatalf("disk %d: %s and %s; %v, %v", i, a, b, err1, err2)
			}
		}
	})
}

func TestDigestIsOfContent(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for name, m := range map[string]*memory{
		"empty":   {ChunkSize, map[int64][]byte{}},
		"longer":  {ChunkSize + 1, map[int64][]byte{}},
		"first":   {4 * ChunkSize, map[int64][]byte{0: []byte("a")}},
		"second":  {4 * ChunkSize, map[int64][]byte{1: []byte("a")}},
		"another": {4 * ChunkSize, map[int64][]byte{0: []byte("b")}},
	} {
		d, err := Digest(m)
		if err != nil || seen[d] != "" {
			t.Errorf("%s is as %q: %v", name, seen[d], err)
		}
		seen[d] = name
	}
	sparse, err := Digest(&memory{4 * ChunkSize, map[int64][]byte{0: []byte("a")}})
	written, err2 := Digest(&memory{4 * ChunkSize, map[int64][]byte{0: []byte("a"), 2: make([]byte, ChunkSize)}})
	if diff := cmp.Diff(sparse, written); diff != "" || err != nil || err2 != nil {
		t.Errorf("zeros that are written down: %s %v %v", diff, err, err2)
	}
}

func forge(t *testing.T, out *bytes.Buffer) *writer {
	t.Helper()
	w := newWriter()
	if _, err := out.Write(head(ID{1})); err != nil {
		t.Fatal(err)
	}
	w.w, w.sum = out, firstSum(head(ID{1}))
	return w
}

func FuzzReader(f *testing.F) {
	_, file := example(f)
	f.Add(file)
	f.Add(file[:HeadSize+60])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		for range 100 {
			c, err := p.Next()
			if err != nil {
				return
			}
			d := p.Manifest().Disks[c.Disk]
			if c.Offset < 0 || c.Offset+int64(len(c.Content)) > int64(d.Size) {
				t.Fatalf("%d bytes at %d of %d", len(c.Content), c.Offset, d.Size)
			}
		}
	})
}

// FuzzFrames has the sums right, which a fuzzer does not find.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(`{"schema_version":1,"name":"a","disks":[{"name":"root","size":10}]}`), byte('c'), uint16(0), uint64(0), []byte("0123456789"))
	f.Add([]byte(`{"schema_version":1,"name":"a","disks":[{"name":"root","size":10}]}`), byte('e'), uint16(0), uint64(0), []byte(`{"disks":[{}]}`))
	f.Fuzz(func(t *testing.T, m []byte, kind byte, disk uint16, number uint64, content []byte) {
		var out bytes.Buffer
		w := newWriter()
		out.Write(head(ID{1}))
		w.w, w.sum = &out, firstSum(head(ID{1}))
		if err := errors.Join(w.frame(frame{kind: kindManifest}, m), w.frame(frame{kind: kind, disk: disk, number: number}, content)); err != nil {
			t.Fatal(err)
		}
		p, err := NewReader(&out)
		if err != nil {
			return
		}
		c, err := p.Next()
		if err == nil && (c.Offset < 0 || c.Offset+int64(len(c.Content)) > int64(p.Manifest().Disks[c.Disk].Size)) {
			t.Fatalf("%d bytes at %d", len(c.Content), c.Offset)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	chunk := make([]byte, ChunkSize)
	for i := range chunk {
		chunk[i] = byte(i * i >> 7)
	}
	disk := &memory{64 * ChunkSize, map[int64][]byte{}}
	for i := range int64(64) {
		disk.chunks[i] = chunk
	}
	b.SetBytes(64 * ChunkSize)
	for b.Loop() {
		if err := Write(b.Context(), io.Discard, manifest(Disk{Name: "root"}), []Source{disk}, nil, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
