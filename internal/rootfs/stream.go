//go:build linux

package rootfs

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"sublet/internal/vps"
)

// peeked is how much of a stream is looked at to tell what it is: Btrfs has its
// mark behind the first 64 KiB.
const peeked = 72 << 10

// maxWindow bounds what zstd may look back, in bytes: --long=29. It is held in memory.
const maxWindow = 512 << 20

// The marks of compressions: RFC 1952, RFC 8878, xz's and bzip2's own
// documents. A frame of zstd may be one that is to be skipped.
var compressions = []struct{ name, mark string }{
	{"gzip", "\x1f\x8b\x08"},
	{"zstd", "\x28\xb5\x2f\xfd"},
	{"xz", "\xfd7zXZ\x00"},
	{"bzip2", "BZh"},
}

// stream is a file without its compression.
type stream struct {
	*bufio.Reader
	compression string // empty for none
	closers     []func() error
}

// Close ends what reads the file, and tells when that failed.
func (s *stream) Close() error {
	var errs []error
	for _, end := range slices.Backward(s.closers) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// open reads from the start of a file or stream what is in it.
func open(ctx context.Context, r io.Reader) (*stream, error) {
	s := &stream{Reader: bufio.NewReaderSize(r, peeked)}
	head, err := s.Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for _, c := range compressions {
		if bytes.HasPrefix(head, []byte(c.mark)) {
			s.compression = c.name
		}
	}
	if len(head) >= 4 && head[0]>>4 == 5 && string(head[1:4]) == "\x2a\x4d\x18" {
		s.compression = "zstd"
	}
	var plain io.Reader
	switch s.compression {
	case "":
		return s, nil
	case "gzip":
		plain, err = gzip.NewReader(s.Reader)
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(s.Reader, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true)); err == nil {
			s.closers = append(s.closers, func() error { z.Close(); return nil })
			plain = z
		}
	case "bzip2":
		plain = bzip2.NewReader(s.Reader)
	case "xz":
		plain, err = s.xz(ctx)
	}
	if err != nil {
		return nil, damaged(err)
	}
	s.Reader = bufio.NewReaderSize(plain, peeked)
	return s, nil
}

// damaged is what a user is told about a file that cannot be read to its end.
func damaged(err error) error {
	return vps.Wrap(vps.CodeInvalid, err, "the file is damaged or cut off: %v", err)
}

// nobody is the user and group that owns nothing.
const nobody = 65534

// xz runs the program, which is faster by far than what there is for Go. It
// reads hostile bytes, so it may do nothing else.
func (s *stream) xz(ctx context.Context) (io.Reader, error) {
	path, err := exec.LookPath("xz")
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "xz is not installed, and this file is compressed with it; apt install xz-utils")
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, path, "--decompress", "--stdout", "--format=xz", "--memlimit-decompress=1GiB")
	cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C"}
	cmd.Stdin = s.Reader
	var said bytes.Buffer
	cmd.Stderr = &said
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	r := &program{out: out}
	r.wait = func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("xz: %w: %s", err, strings.ToValidUTF8(strings.TrimSpace(said.String()), "?"))
		}
		return nil
	}
	s.closers = append(s.closers, func() error {
		cancel()
		if !r.done {
			_ = r.wait() // it was not read to its end, and is killed
		}
		return nil
	})
	return r, nil
}

// program is the output of a program, which ends well only if that does.
type program struct {
	out  io.Reader
	wait func() error
	done bool
	err  error
}

func (p *program) Read(b []byte) (int, error) {
	if p.done {
		return 0, p.err
	}
	n, err := p.out.Read(b)
	if err != nil {
		p.done = true
		if p.err = p.wait(); p.err == nil {
			p.err = err
		}
		err = p.err
	}
	return n, err
}

// counter tells how much of a file has been read.
type counter struct {
	r      io.Reader
	n      int64
	report func(n int64)
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
