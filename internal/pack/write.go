package pack

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"sublet/internal/vps"
)

// Write writes a file: the manifest, which names as many disks as there are
// sources and gets their sizes, and then what they hold. progress is called
// with how many bytes of them were read. It needs no room but memory.
//
// The sources do not change meanwhile; whether they did is for the caller to
// find out, in last, which is called before the end is written: an error of it
// leaves a file without an end, which nobody takes for whole.
func Write(ctx context.Context, w io.Writer, m Manifest, disks []Source, progress func(done vps.Bytes), last func() error) error {
	out := newWriter()
	out.w = w
	m.Schema = 1
	for i := range disks {
		m.Disks[i].Size = vps.Bytes(disks[i].Size())
	}
	if err := m.check(); err != nil {
		return err
	}
	var id ID
	_, _ = rand.Read(id[:]) // it never fails
	if _, err := w.Write(head(id)); err != nil {
		return err
	}
	out.sum = firstSum(head(id))
	if err := out.json(kindManifest, m); err != nil {
		return err
	}
	var e end
	done := vps.Bytes(0)
	for i, src := range disks {
		d := newDigest(src.Size())
		err := chunks(src, func(number int64, content []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			d.add(number, content)
			done += vps.Bytes(len(content))
			if progress != nil {
				progress(done)
			}
			return out.frame(frame{kind: kindChunk, disk: uint16(i), number: uint64(number)}, content)
		})
		if err != nil {
			return err
		}
		e.Disks = append(e.Disks, endDisk{d.chunks, d.String()})
	}
	if err := last(); err != nil {
		return err
	}
	return out.json(kindEnd, e)
}

type writer struct {
	w   io.Writer
	z   *zstd.Encoder
	sum sum
	buf []byte
}

func newWriter() *writer {
	// Speed before size. The options are valid, so there is no error.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err)
	}
	return &writer{z: z}
}

func (w *writer) json(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err == nil && len(b) > maxJSON {
		err = fmt.Errorf("%d bytes of JSON are more than %d", len(b), maxJSON)
	}
	if err != nil {
		return err
	}
	return w.frame(frame{kind: kind}, b)
}

func (w *writer) frame(f frame, content []byte) error {
	w.buf = append(w.buf[:0], make([]byte, frameHead)...)
	w.buf = w.z.EncodeAll(content, w.buf)
	f.length = uint32(len(w.buf) - frameHead)
	h := f.bytes()
	copy(w.buf, h[:])
	w.sum = w.sum.next(h, w.buf[frameHead:])
	_, err := w.w.Write(append(w.buf, w.sum[:]...))
	return err
}
