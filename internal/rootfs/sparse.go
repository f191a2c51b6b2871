//go:build linux

package rootfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
)

// holeSize is the piece that is left out of a file when it is all zeros: the
// block size of almost every filesystem.
const holeSize = 4096

//nolint:gochecknoglobals // a constant
var zeros [holeSize]byte

// CopySparse writes what comes from r to the new file f, in which blocks of
// zeros become holes, and returns how much came. It ends with ctx.
func CopySparse(ctx context.Context, f *os.File, r io.Reader, progress func(n int64)) (int64, error) {
	const piece = 1 << 20
	buf := make([]byte, piece)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return at, err
		}
		n, err := io.ReadFull(r, buf)
		if werr := writeSparse(f, buf[:n], at); werr != nil {
			return at, werr
		}
		at += int64(n)
		if progress != nil {
			progress(at)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return at, f.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

// writeSparse writes the longest runs of blocks that are not all zeros.
func writeSparse(f *os.File, b []byte, at int64) error {
	empty := func(i int) bool {
		block := b[i:min(i+holeSize, len(b))]
		return bytes.Equal(block, zeros[:len(block)])
	}
	for from := 0; from < len(b); {
		to := from
		for to < len(b) && !empty(to) {
			to = min(to+holeSize, len(b))
		}
		if to > from {
			if _, err := f.WriteAt(b[from:to], at+int64(from)); err != nil {
				return err
			}
		}
		for from = to; from < len(b) && empty(from); {
			from = min(from+holeSize, len(b))
		}
	}
	return nil
}
