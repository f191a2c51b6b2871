package pack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"sublet/internal/vps"
)

// Chunk is a part of a disk that is not all zeros.
type Chunk struct {
	Disk   int
	Offset int64
	// Content is the reader's, until the next call.
	Content []byte
}

// State is how far a file was read: everything up to Offset was checked. It is
// plain data that can be kept.
type State struct {
	ID       string   `json:"id"`
	Offset   int64    `json:"offset"`
	Sum      []byte   `json:"sum"`
	Manifest Manifest `json:"manifest"`
	// Disk and Next are the disk that is being read and the lowest number that
	// its next chunk may have. Chunks counts those read of each disk.
	Disk   int     `json:"disk"`
	Next   int64   `json:"next"`
	Chunks []int64 `json:"chunks"`
}

// Reader reads a file.
type Reader struct {
	r      io.Reader
	z      *zstd.Decoder
	state  State
	sum    sum
	buf    []byte
	plain  []byte
	digest []string // of the end
}

// ErrCut says that the file ends before its end.
var ErrCut = errors.New("the .sublet file is cut off")

// damaged is the error for a file that is not what Write made.
func damaged(err error) error {
	return vps.Wrap(vps.CodeInvalid, err, "the .sublet file is damaged: it was changed on its way, or is not one that sublet wrote; pack the guest again")
}

// NewReader reads a file's head and its manifest. ErrCut is for one that ends
// too soon, vps.CodeInvalid for what is none or is damaged.
func NewReader(r io.Reader) (*Reader, error) {
	b := make([]byte, HeadSize)
	n, err := io.ReadFull(r, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, cut(err)
	}
	id, err := ParseHead(b[:n])
	if err != nil {
		return nil, err
	}
	p, err := newReader(r)
	if err != nil {
		return nil, err
	}
	p.sum, p.state.ID, p.state.Offset = firstSum(b), id.String(), int64(HeadSize)
	f, content, err := p.frame(maxJSON)
	if err != nil {
		return nil, err
	}
	m := &p.state.Manifest
	if f.kind != kindManifest {
		return nil, damaged(errors.New("it does not begin with a manifest"))
	}
	if err := json.Unmarshal(content, m); err != nil {
		return nil, damaged(err)
	}
	if err := m.check(); err != nil {
		return nil, damaged(err)
	}
	p.state.Chunks = make([]int64, len(m.Disks))
	return p, nil
}

// Resume reads on where State was taken: r begins at its Offset.
func Resume(r io.Reader, s State) (*Reader, error) {
	p, err := newReader(r)
	if err != nil {
		return nil, err
	}
	if len(s.Sum) != len(p.sum) || s.Manifest.check() != nil || len(s.Chunks) != len(s.Manifest.Disks) || s.Disk < 0 || s.Disk >= len(s.Chunks) {
		return nil, fmt.Errorf("pack: the state at %d is damaged", s.Offset)
	}
	p.state, p.sum = s, sum(s.Sum)
	return p, nil
}

func newReader(r io.Reader) (*Reader, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(2*ChunkSize), zstd.WithDecoderMaxWindow(2*ChunkSize))
	if err != nil {
		return nil, fmt.Errorf("begin to decompress: %w", err)
	}
	return &Reader{r: r, z: z}, nil
}

// Manifest is what the file says that it holds.
func (p *Reader) Manifest() Manifest { return p.state.Manifest }

// ID tells the file from all others.
func (p *Reader) ID() string { return p.state.ID }

// State is how far it was read.
func (p *Reader) State() State {
	s := p.state
	s.Sum = append([]byte(nil), p.sum[:]...)
	s.Chunks = append([]int64(nil), p.state.Chunks...)
	return s
}

// Digests are what Digest gives of each disk when all chunks are written to
// where zeros were. They are known once Next has returned io.EOF.
func (p *Reader) Digests() []string { return p.digest }

// Next returns the next chunk. io.EOF says that the end was reached and that
// the whole file is what was written; ErrCut that the file ends before it.
// After any other error than ErrCut nothing of the file can be believed.
func (p *Reader) Next() (Chunk, error) {
	before, sumBefore := p.state, p.sum
	f, content, err := p.frame(ChunkSize)
	if err != nil {
		p.state, p.sum = before, sumBefore // what was not checked was not read
		return Chunk{}, err
	}
	switch f.kind {
	case kindChunk:
		return p.chunk(f, content)
	case kindEnd:
		return Chunk{}, p.end(content)
	}
	return Chunk{}, damaged(errors.New("there is a second manifest"))
}

func (p *Reader) chunk(f frame, content []byte) (Chunk, error) {
	s := &p.state
	disk := int(f.disk)
	if disk >= len(s.Manifest.Disks) || disk < s.Disk {
		return Chunk{}, damaged(fmt.Errorf("a chunk of disk %d follows one of disk %d", disk, s.Disk))
	}
	if disk > s.Disk {
		s.Disk, s.Next = disk, 0
	}
	size := int64(s.Manifest.Disks[disk].Size)
	number := int64(f.number)
	last := (size - 1) / ChunkSize
	if f.number > uint64(last) || number < s.Next {
		return Chunk{}, damaged(fmt.Errorf("chunk %d of disk %d is out of its order", f.number, disk))
	}
	offset := number * ChunkSize
	if int64(len(content)) != min(ChunkSize, size-offset) {
		return Chunk{}, damaged(fmt.Errorf("chunk %d of disk %d has %d bytes", number, disk, len(content)))
	}
	s.Next = number + 1
	s.Chunks[disk]++
	return Chunk{disk, offset, content}, nil
}

func (p *Reader) end(content []byte) error {
	var e end
	if err := json.Unmarshal(content, &e); err != nil {
		return damaged(err)
	}
	if len(e.Disks) != len(p.state.Chunks) {
		return damaged(fmt.Errorf("the end names %d disks", len(e.Disks)))
	}
	for i, d := range e.Disks {
		if d.Chunks != p.state.Chunks[i] {
			return damaged(fmt.Errorf("the end names %d chunks of disk %d, and there were %d", d.Chunks, i, p.state.Chunks[i]))
		}
		p.digest = append(p.digest, d.Digest)
	}
	return io.EOF
}

// frame reads one frame, checks its sum, and only then looks into it. The
// content has at most limit bytes.
func (p *Reader) frame(limit int) (frame, []byte, error) {
	var h [frameHead]byte
	if _, err := io.ReadFull(p.r, h[:]); err != nil {
		return frame{}, nil, cut(err)
	}
	f, err := parseFrame(h)
	if err != nil {
		return f, nil, damaged(err)
	}
	need := int(f.length) + len(p.sum)
	if cap(p.buf) < need {
		p.buf = make([]byte, need)
	}
	b := p.buf[:need]
	if _, err := io.ReadFull(p.r, b); err != nil {
		return f, nil, cut(err)
	}
	content := b[:f.length]
	if p.sum = p.sum.next(h, content); p.sum != sum(b[f.length:]) {
		return f, nil, damaged(errors.New("a checksum differs"))
	}
	p.state.Offset += int64(frameHead + need)
	if p.plain, err = p.z.DecodeAll(content, p.plain[:0]); err != nil {
		return f, nil, damaged(err)
	}
	if len(p.plain) > limit {
		return f, nil, damaged(fmt.Errorf("a frame holds %d bytes", len(p.plain)))
	}
	return f, p.plain, nil
}

// cut is the error for a file that cannot be read any further.
func cut(err error) error { return fmt.Errorf("%w: %w", ErrCut, err) }
