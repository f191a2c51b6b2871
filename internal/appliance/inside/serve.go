//go:build linux

package inside

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ChannelDevice is where an appliance finds its channel, and Device where the
// n-th of its disks, from 0: behind the disks for root, seed and modules that
// every guest of the driver for User Mode Linux has.
const ChannelDevice = "/dev/ubdd"

// Device returns the path of the n-th disk.
func Device(n int) string { return "/dev/ubd" + string(rune('e'+n)) }

// MaxDisks is how many disks an appliance may have: User Mode Linux has 16.
const MaxDisks = 8

// Serve does what the host asks for on the console until it says that this is
// all, or the console ends. It makes the appliance's own folder to mount in
// below dir; tools is where the rescue system is, or empty.
func Serve(ctx context.Context, in io.Reader, out io.Writer, dir, tools string) error {
	channel, err := openChannel(ChannelDevice)
	if err != nil {
		return err
	}
	defer channel.close()
	s := server{channel: channel, out: out, dir: dir, tools: tools}
	requests := make(chan Request)
	failed := make(chan error, 1)
	go func() { failed <- read(in, requests) }()
	for {
		var r Request
		select {
		case err := <-failed:
			return err
		case r = <-requests:
		}
		a := s.handle(ctx, r)
		a.ID = r.ID
		text, err := json.Marshal(a)
		if err != nil {
			return fmt.Errorf("encode an answer: %w", err)
		}
		// A line of its own, whatever the kernel has just written.
		if _, err := fmt.Fprintf(out, "\n%s%s\n", Mark, text); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if r.Op == Off {
			return nil
		}
	}
}

// read reads requests until in ends. It goes on while one is being handled:
// the empty lines that the host sends to wake the guest must not fill the
// terminal.
func read(in io.Reader, requests chan<- Request) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, MaxLine)
	for lines.Scan() {
		var r Request
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &r) == nil && r.Op != "" {
			requests <- r
		}
	}
	return lines.Err()
}

type server struct {
	channel    *channel
	out        io.Writer
	dir, tools string
	job        *running
}

// running is the job that runs.
type running struct {
	input  *io.PipeWriter
	output *io.PipeReader
	over   chan struct{}
	ended  Outcome // set before over is closed
}

func (s *server) handle(ctx context.Context, r Request) Answer {
	switch r.Op {
	case Hello, Off:
		return Answer{}
	case Start:
		return s.start(ctx, r)
	case Give, Take, End:
	}
	if s.job == nil {
		return Answer{Error: "no job was started"}
	}
	if r.Piece < 0 || r.Piece >= Pieces || r.Size < 0 || r.Size > PieceSize {
		return Answer{Error: "the channel has no such piece"}
	}
	switch r.Op {
	case Give:
		return s.give(r)
	case Take:
		return s.take(r)
	case Hello, Off, Start: // above
	case End:
		_ = s.job.input.Close()
		<-s.job.over
		return Answer{Outcome: &s.job.ended}
	}
	return Answer{Error: fmt.Sprintf("the request %q is not known", r.Op)}
}

func (s *server) start(ctx context.Context, r Request) Answer {
	if r.Job == nil || r.Job.Disk < 0 || r.Job.Disk >= MaxDisks {
		return Answer{Error: "there is no such job"}
	}
	if s.job != nil {
		select {
		case <-s.job.over:
		default:
			return Answer{Error: "another job runs"}
		}
	}
	in, input := io.Pipe()
	output, out := io.Pipe()
	j := &running{input: input, output: output, over: make(chan struct{})}
	s.job = j
	go func() {
		defer close(j.over)
		j.ended = (&worker{job: *r.Job, dir: s.dir, tools: s.tools, in: in, out: out}).do(ctx)
		_ = in.Close()  // what else is given is not for anybody
		_ = out.Close() // the end of the output
	}()
	return Answer{}
}

func (s *server) give(r Request) Answer {
	if r.Size == 0 {
		_ = s.job.input.Close()
		return Answer{}
	}
	piece, err := s.channel.read(r.Piece, r.Size)
	if err != nil {
		return Answer{Error: err.Error()}
	}
	// The only error is that the job is over.
	if _, err := s.job.input.Write(piece); err != nil {
		return Answer{Over: true}
	}
	return Answer{}
}

func (s *server) take(r Request) Answer {
	least := 1
	if r.Whole {
		least = PieceSize
	}
	n, err := io.ReadAtLeast(s.job.output, s.channel.buf, least)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Answer{Error: err.Error()}
	}
	if err := s.channel.write(r.Piece, n); err != nil {
		return Answer{Error: err.Error()}
	}
	return Answer{Size: n}
}

// channel is the guest's end of the channel. It goes past the page cache,
// which would keep what the host has written anew.
type channel struct {
	disk *os.File
	// buf is one piece, aligned to a page as O_DIRECT wants it.
	buf []byte
}

// sector is what the length of a direct read or write is a multiple of.
const sector = 512

func openChannel(path string) (*channel, error) {
	disk, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("open the channel: %w", err)
	}
	buf, err := unix.MmapPtr(-1, 0, nil, PieceSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		_ = disk.Close()
		return nil, fmt.Errorf("make room for a piece of the channel: %w", err)
	}
	return &channel{disk: disk, buf: unsafe.Slice((*byte)(buf), PieceSize)}, nil
}

func (c *channel) close() { _ = c.disk.Close() }

func (c *channel) read(piece, size int) ([]byte, error) {
	whole := (size + sector - 1) / sector * sector
	if _, err := c.disk.ReadAt(c.buf[:whole], int64(piece)*PieceSize); err != nil {
		return nil, fmt.Errorf("read the channel: %w", err)
	}
	return c.buf[:size], nil
}

func (c *channel) write(piece, size int) error {
	whole := (size + sector - 1) / sector * sector
	if _, err := c.disk.WriteAt(c.buf[:whole], int64(piece)*PieceSize); err != nil {
		return fmt.Errorf("write the channel: %w", err)
	}
	return nil
}
