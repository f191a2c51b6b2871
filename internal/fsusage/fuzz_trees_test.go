package fsusage

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"path/filepath"
	"testing"
)

// patched is a source with other bytes in some places.
type patched struct {
	Source
	pieces map[int64][]byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.Source.ReadAt(b, off)
	for at, piece := range p.pieces {
		if at < off+int64(n) && off < at+int64(len(piece)) {
			copy(b[max(at-off, 0):n], piece[max(off-at, 0):])
		}
	}
	return n, err
}

// fuzzRead reads what a fuzzer made of a filesystem.
func fuzzRead(t *testing.T, s Source) {
	t.Helper()
	d := &device{ctx: t.Context(), source: s, left: &budget{bytes: 8 << 20, reads: 1 << 12}}
	fs, err := probe(d, nil)
	if err == nil {
		checkReport(t, &fs, s.Size())
	}
}

// FuzzXFS changes the superblock, the headers of the first group and the start
// of the log, and puts the checksums right, so that what lies behind them is
// reached.
func FuzzXFS(f *testing.F) {
	path := filepath.Join(f.TempDir(), "image")
	sparse(f, path, 64<<20)
	mkfsXFS(f, path, "-l", "size=6m", "-d", "agcount=2")
	clean := openSource(f, path)
	raw := make([]byte, 1536)
	if _, err := clean.ReadAt(raw, 0); err != nil {
		f.Fatal(err)
	}
	s, err := parseXFS(raw[:512], clean.Size())
	if err != nil {
		f.Fatal(err)
	}
	log := s.log(nil).start
	record := make([]byte, 1024)
	if _, err := clean.ReadAt(record, log); err != nil {
		f.Fatal(err)
	}
	f.Add(raw[:264], raw[512:576], raw[1024:1064], record[:330])
	used := append([]byte{}, record[:330]...)
	binary.BigEndian.PutUint32(used[40:], 7)
	f.Add(raw[:264], raw[512:576], raw[1024:1064], used)
	old := append([]byte{}, raw[:264]...)
	old[101] = 0xa4 // version 4, which has no checksums
	f.Add(old, raw[512:576], raw[1024:1064], used)
	f.Fuzz(func(t *testing.T, super, agf, agi, first []byte) {
		head, rec := append([]byte{}, raw...), append([]byte{}, record...)
		copy(head[:264], super)
		copy(head[512:576], agf)
		copy(head[1024:1064], agi)
		copy(rec, first)
		for _, c := range []struct{ at, sum int }{{0, 224}, {512, 216}, {1024, 312}} {
			sector := head[c.at:][:512]
			clear(sector[c.sum:][:4])
			binary.LittleEndian.PutUint32(sector[c.sum:], crc32.Checksum(sector, castagnoli))
		}
		fuzzRead(t, patched{clean, map[int64][]byte{0: head, log: rec}})
	})
}

// FuzzBtrfs changes the superblock and the nodes that are read, and puts the
// checksums right.
func FuzzBtrfs(f *testing.F) {
	path := filepath.Join(f.TempDir(), "image")
	sparse(f, path, 128<<20)
	run(f, "mkfs.btrfs", "-q", "-f", "-n", "4096", "-m", "single", path)
	clean := openSource(f, path)
	d := &device{ctx: f.Context(), source: clean, left: newBudget()}
	s, err := superAt(d, btrfsPlaces[0])
	if err != nil {
		f.Fatal(err)
	}
	v, err := assembleBtrfs(s, d, nil)
	if err != nil {
		f.Fatal(err)
	}
	if err := v.readChunks(); err != nil {
		f.Fatal(err)
	}
	extents, err := v.rootOf(btrfsExtentTree)
	if err != nil {
		f.Fatal(err)
	}
	places, blocks := []int64{btrfsPlaces[0]}, [][]byte{s.raw}
	for _, p := range []btrfsPointer{{s.chunkRoot, s.chunkGeneration, 0}, {s.root, s.generation, 0}, extents} {
		n, err := v.node(p)
		if err != nil {
			f.Fatal(err)
		}
		at, _ := v.chunkAt(p.address).places(p.address)
		places, blocks = append(places, int64(at[0].offset)), append(blocks, n.raw)
	}
	// The fuzzer is slow with long inputs, so it makes edits: which block and
	// how many bytes (1, 2, 4, 8), where, and the bytes.
	f.Add([]byte{})
	for block, size := range map[byte]int{0: 600, 1: 101 + 4*btrfsItemBytes, 2: 101 + 4*btrfsItemBytes, 3: 101 + 4*btrfsItemBytes} {
		for at := 32; at < size; at += 8 {
			f.Add([]byte{block | 3<<2, byte(at), byte(at >> 8), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
			f.Add([]byte{block | 2<<2, byte(at), byte(at >> 8), 1, 0, 0, 0})
		}
	}
	// The contents of items stand at the ends of the leaves.
	for block := byte(1); block < 4; block++ {
		for at := 4096 - 8; at > 4096-800; at -= 8 {
			f.Add([]byte{block | 3<<2, byte(at), byte(at >> 8), 0, 0, 0, 0, 0, 0, 0, 0x40})
			f.Add([]byte{block, byte(at), byte(at >> 8), 3})
		}
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		pieces := map[int64][]byte{}
		for i, b := range blocks {
			pieces[places[i]] = bytes.Clone(b)
		}
		for len(edits) > 3 {
			width := 1 << (edits[0] >> 2 & 3)
			block, at := pieces[places[edits[0]&3]], int(binary.LittleEndian.Uint16(edits[1:]))%4096
			edits = edits[3:]
			edits = edits[copy(block[at:], edits[:min(width, len(edits))]):]
		}
		for _, block := range pieces {
			copy(block, s.sum.of(block[32:]))
		}
		fuzzRead(t, patched{clean, pieces})
	})
}
