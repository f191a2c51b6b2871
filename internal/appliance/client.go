//go:build linux

package appliance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"sublet/internal/appliance/inside"
	"sublet/internal/vps"
)

// client asks an appliance over its console.
type client struct {
	out io.Writer
	// sound is asked now and then whether the appliance keeps to
	// what it may do.
	sound   func() error
	answers chan inside.Answer
	failed  error // set before answers is closed
	last    int
}

func newClient(console io.ReadWriter, sound func() error) *client {
	c := &client{out: console, sound: sound, answers: make(chan inside.Answer, 16)}
	go c.read(console)
	return c
}

func (c *client) read(console io.Reader) {
	defer close(c.answers)
	lines := bufio.NewScanner(console)
	lines.Buffer(nil, inside.MaxLine)
	for lines.Scan() {
		_, text, found := bytes.Cut(lines.Bytes(), []byte(inside.Mark))
		var a inside.Answer
		if !found || json.Unmarshal(bytes.TrimSpace(text), &a) != nil {
			continue
		}
		select {
		case c.answers <- a:
		default: // nobody asked for so many
		}
	}
	if c.failed = lines.Err(); c.failed == nil {
		c.failed = io.EOF
	}
}

// send sends a request; wait waits for its answer.
func (c *client) send(r inside.Request) (id int, err error) {
	c.last++
	r.ID = c.last
	text, err := json.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("encode a request: %w", err)
	}
	if _, err := c.out.Write(append(text, '\n')); err != nil {
		return 0, fmt.Errorf("ask the appliance: %w", err)
	}
	return c.last, nil
}

// An appliance that does not answer is sent an empty line now and then. User
// Mode Linux looks for input and then sleeps, which is two steps (os_idle_sleep
// in arch/um): input that comes between them is not seen until something else
// comes.
const (
	firstNudge = 10 * time.Millisecond
	lastNudge  = 250 * time.Millisecond
)

func (c *client) wait(ctx context.Context, id int) (inside.Answer, error) {
	pause := firstNudge
	nudge := time.NewTimer(pause)
	defer nudge.Stop()
	for {
		select {
		case <-nudge.C:
			if err := c.sound(); err != nil {
				return inside.Answer{}, err
			}
			if _, err := c.out.Write([]byte("\n")); err != nil {
				return inside.Answer{}, fmt.Errorf("ask the appliance: %w", err)
			}
			pause = min(2*pause, lastNudge)
			nudge.Reset(pause)
		case <-ctx.Done():
			return inside.Answer{}, context.Cause(ctx)
		case a, ok := <-c.answers:
			switch {
			case !ok:
				return inside.Answer{}, fmt.Errorf("the appliance ended: %w", c.failed)
			case a.ID != id:
			case a.Error != "":
				return a, errors.New(printable(a.Error, maxText))
			default:
				return a, nil
			}
		}
	}
}

func (c *client) do(ctx context.Context, r inside.Request) (inside.Answer, error) {
	id, err := c.send(r)
	if err != nil {
		return inside.Answer{}, err
	}
	return c.wait(ctx, id)
}

// greet asks until the appliance has booted so far that it answers: what is
// typed before is lost.
func (c *client) greet(ctx context.Context) (inside.Answer, error) {
	const pause = 200 * time.Millisecond
	for {
		try, stop := context.WithTimeout(ctx, pause)
		a, err := c.do(try, inside.Request{Op: inside.Hello})
		stop()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return a, err
		}
	}
}

// maxText bounds a text of the appliance's that people get to see, in bytes.
const maxText = 1 << 10

// printable makes one harmless line of a text that anybody may have written.
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s))
}

// Do does one job. input is its input, and may be nil; it need not have ended
// when Do returns, and is not closed. output gets what the job writes, as it
// comes when live is set and in large pieces else; nil when the job writes
// nothing. limit bounds the output in bytes; 0 is no bound.
//
// The failure of a job is a vps error: CodeNotFound when a file is missing,
// CodeInvalid when the input is wrong, CodeConflict when the filesystem cannot
// be mounted, CodeDenied when it is full.
func (a *Appliance) Do(ctx context.Context, job inside.Job, input io.Reader, output io.Writer, o Flow) (inside.Outcome, error) {
	if _, err := a.client.do(ctx, inside.Request{Op: inside.Start, Job: &job}); err != nil {
		return inside.Outcome{}, a.broken(err)
	}
	if input != nil {
		if err := a.give(ctx, input); err != nil {
			return inside.Outcome{}, err
		}
	}
	if output != nil {
		if err := a.take(ctx, output, o); err != nil {
			return inside.Outcome{}, err
		}
	}
	answer, err := a.client.do(ctx, inside.Request{Op: inside.End})
	if err != nil {
		return inside.Outcome{}, a.broken(err)
	}
	if answer.Outcome == nil {
		return inside.Outcome{}, a.broken(errors.New("it says nothing of the outcome"))
	}
	return verdict(*answer.Outcome)
}

// Flow says how a job's output comes.
type Flow struct {
	// Live hands it on as it comes, and not in large pieces.
	Live bool
	// Limit bounds it, in bytes; 0 is no bound.
	Limit int64
}

// broken is for an appliance that does not do as it should.
func (a *Appliance) broken(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err // not its fault
	}
	return vps.Wrap(vps.CodeInternal, fmt.Errorf("%w; its console said: %s", err, a.lastWords()),
		"the appliance that worked on the disk failed; what the filesystem holds may have brought it down")
}

// verdict makes an error of a job's failure. Its words are the appliance's.
func verdict(o inside.Outcome) (inside.Outcome, error) {
	o.Error, o.Filesystem = printable(o.Error, maxText), printable(o.Filesystem, 16)
	if o.Failure == "" {
		return o, nil
	}
	code := map[inside.Failure]vps.Code{
		inside.Missing: vps.CodeNotFound, inside.Bad: vps.CodeInvalid, inside.Unsound: vps.CodeConflict, inside.Full: vps.CodeDenied,
	}[o.Failure]
	if code == "" {
		code = vps.CodeInternal
	}
	return o, vps.Errorf(code, "%s", o.Error)
}

// give sends the input, reading one piece while the appliance takes the other.
func (a *Appliance) give(ctx context.Context, input io.Reader) error {
	buf := make([]byte, inside.PieceSize)
	pending := 0 // the request that is not answered yet
	for piece := 0; ; piece = (piece + 1) % inside.Pieces {
		n, err := io.ReadFull(input, buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return fmt.Errorf("read what is to go to the appliance: %w", err)
		}
		if n > 0 {
			if _, err := a.channel.WriteAt(buf[:n], int64(piece)*inside.PieceSize); err != nil {
				return a.broken(err)
			}
		}
		for _, size := range sizes(n, end) {
			over, err := a.settle(ctx, &pending)
			if err != nil || over {
				return err
			}
			if pending, err = a.client.send(inside.Request{Op: inside.Give, Piece: piece, Size: size}); err != nil {
				return a.broken(err)
			}
		}
		if end {
			_, err := a.settle(ctx, &pending)
			return err
		}
	}
}

// sizes are those of the requests for n bytes that were read.
func sizes(n int, end bool) []int {
	switch {
	case !end:
		return []int{n}
	case n > 0:
		return []int{n, 0}
	}
	return []int{0}
}

// settle waits for the answer to the last piece of input.
func (a *Appliance) settle(ctx context.Context, pending *int) (over bool, err error) {
	if *pending == 0 {
		return false, nil
	}
	answer, err := a.client.wait(ctx, *pending)
	if err != nil {
		return false, a.broken(err)
	}
	*pending = 0
	return answer.Over, nil
}

// take fetches the output, handing one piece on while the appliance makes the
// other.
func (a *Appliance) take(ctx context.Context, output io.Writer, o Flow) error {
	buf := make([]byte, inside.PieceSize)
	ask := func(piece int) (int, error) {
		return a.client.send(inside.Request{Op: inside.Take, Piece: piece, Whole: !o.Live})
	}
	id, err := ask(0)
	total := int64(0)
	for piece := 0; ; piece = (piece + 1) % inside.Pieces {
		if err != nil {
			return a.broken(err)
		}
		answer, err := a.client.wait(ctx, id)
		switch {
		case err != nil:
			return a.broken(err)
		case answer.Size == 0:
			return nil
		case answer.Size < 0 || answer.Size > inside.PieceSize:
			return a.broken(fmt.Errorf("a piece of %d bytes", answer.Size))
		}
		if total += int64(answer.Size); o.Limit > 0 && total > o.Limit {
			return a.broken(fmt.Errorf("more than %d bytes of output", o.Limit))
		}
		if id, err = ask((piece + 1) % inside.Pieces); err != nil {
			return a.broken(err)
		}
		if _, err := a.channel.ReadAt(buf[:answer.Size], int64(piece)*inside.PieceSize); err != nil {
			return a.broken(err)
		}
		if _, err := output.Write(buf[:answer.Size]); err != nil {
			return fmt.Errorf("hand the appliance's output on: %w", err)
		}
	}
}
