package probe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// The modes, as vps.GuestSpec.Probe has them.
const (
	// Frames is a guest that sends and hears raw frames.
	Frames = "frames"
	// Jail is a program that tries to leave its jail.
	Jail = "jail"
	// Kernel is a guest that looks what its kernel can do.
	Kernel = "kernel"
)

// Mark stands in front of every answer, to tell it from what else is written
// on a console.
const Mark = "sublet-probe: "

// Op is what a request asks for.
type Op string

// The requests. Every probe knows Hello and Off.
const (
	// Hello is answered at once with what there is to try.
	Hello Op = "hello"
	// Send sends Frames on the guest's link, all of them Count times. Frames only.
	Send Op = "send"
	// Seen asks how many frames with Marker in them have come in since the
	// start, however they are wrapped. Frames only.
	Seen Op = "seen"
	// Try makes the attempt Name. Jail only.
	Try Op = "try"
	// Examine asks what the kernel can do; Filesystems are on the extra disks, in
	// their order. Kernel only.
	Examine Op = "examine"
	// Off ends the guest.
	Off Op = "off"
)

// Request is one line to a probe.
type Request struct {
	ID int `json:"id"`
	Op Op  `json:"op"`
	// Frames are sent as they are, without a checksum of Ethernet.
	Frames [][]byte `json:"frames,omitempty"`
	// Count is how often; 0 means once.
	Count  int      `json:"count,omitempty"`
	Marker []byte   `json:"marker,omitempty"`
	Name   string   `json:"name,omitempty"`
	Target *Targets `json:"targets,omitempty"`
	// Filesystems are names as mount(2) takes them.
	Filesystems []string `json:"filesystems,omitempty"`
}

// Targets are what a stand-in in a jail goes for. They are told to it, so that
// no attempt fails for want of knowledge. Paths are those on the host.
type Targets struct {
	StateDB    string     `json:"state_db"`
	Socket     string     `json:"socket"`
	KeeperPID  int        `json:"keeper_pid"`
	KeeperSock string     `json:"keeper_socket"`
	VictimPID  int        `json:"victim_pid"`
	VictimDisk string     `json:"victim_disk"`
	VictimTap  string     `json:"victim_tap"`
	VictimRun  string     `json:"victim_run_dir"`
	OwnTap     string     `json:"own_tap"`
	OwnDisk    string     `json:"own_disk"`
	Host       netip.Addr `json:"host"` // an address of the host with an open TCP port
	HostPort   uint16     `json:"host_port"`
}

// Answer is one line from a probe.
type Answer struct {
	ID int `json:"id"`
	// Error says why the request could not be carried out at all.
	Error string `json:"error,omitempty"`
	// Count answers Seen.
	Count int `json:"count,omitempty"`
	// Attempts answers Hello: the names of what Try can do.
	Attempts []Attempt `json:"attempts,omitempty"`
	// Attempt answers Try.
	Attempt *Attempt `json:"attempt,omitempty"`
	// Findings answers Examine.
	Findings []Finding `json:"findings,omitempty"`
	// Last tells that there will be no other one.
	Last bool `json:"last,omitempty"`
}

// Attempt is one try to get out of a jail.
type Attempt struct {
	// Name is short and stable, "read-state-db".
	Name string `json:"name"`
	// What says what is tried, for people.
	What string `json:"what"`
	// Escaped tells that it worked, which is bad.
	Escaped bool `json:"escaped,omitempty"`
	// Seen says what happened, for people: "openat: no such file or directory".
	Seen string `json:"seen,omitempty"`
}

// Finding is one thing that a kernel can do, or should not be able to.
type Finding struct {
	// Name is short and stable, "nft-inet".
	Name string `json:"name"`
	// OK tells that it is as a guest of ours wants it.
	OK bool `json:"ok"`
	// Seen says what happened, for people.
	Seen string `json:"seen,omitempty"`
}

// maxLine bounds a line of either side: a frame of 9000 bytes in base64, and
// room.
const maxLine = 64 << 10

// Serve reads requests from in and writes what handle answers to out, until in
// ends, which is not an error, or an answer is the Last. Lines that
// are no requests are passed over: whoever types on a console does no harm.
func Serve(in io.Reader, out io.Writer, handle func(Request) Answer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var r Request
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &r) != nil || r.Op == "" {
			continue
		}
		a := handle(r)
		a.ID = r.ID
		text, err := json.Marshal(a)
		if err != nil {
			return fmt.Errorf("encode an answer: %w", err)
		}
		// A line of its own, whatever the kernel has just written.
		if _, err := fmt.Fprintf(out, "\n%s%s\n", Mark, text); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if a.Last {
			return nil
		}
	}
	return lines.Err()
}

// nudging is how often a probe that has not answered yet is sent an empty
// line. User Mode Linux looks for input and then sleeps until its next timer,
// which is two steps (os_idle_sleep in arch/um): input that comes between them
// is not seen until something else comes, and a guest that does nothing has no
// timer for many seconds.
const nudging = 100 * time.Millisecond

// Client speaks to a probe over its console. It is for one goroutine at a time.
type Client struct {
	out     io.Writer
	answers chan Answer
	failed  error // set before answers is closed
	last    int
}

// NewClient starts to read the console, in a goroutine that ends with it.
func NewClient(console io.ReadWriter) *Client {
	c := &Client{out: console, answers: make(chan Answer, 16)}
	go c.read(console)
	return c
}

func (c *Client) read(console io.Reader) {
	defer close(c.answers)
	lines := bufio.NewScanner(console)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		_, text, found := bytes.Cut(lines.Bytes(), []byte(Mark))
		var a Answer
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

// Do sends a request and waits for its answer. An error means that there will
// be none: ctx ended, or the console did (io.EOF). An answer of the probe's
// with an Error is returned as it is.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	c.last++
	r.ID = c.last
	text, err := json.Marshal(r)
	if err != nil {
		return Answer{}, fmt.Errorf("encode a request: %w", err)
	}
	if _, err := c.out.Write(append(text, '\n')); err != nil {
		return Answer{}, fmt.Errorf("ask the probe: %w", err)
	}
	nudge := time.NewTicker(nudging)
	defer nudge.Stop()
	for {
		select {
		case <-ctx.Done():
			return Answer{}, context.Cause(ctx)
		case <-nudge.C:
			if _, err := c.out.Write([]byte("\n")); err != nil {
				return Answer{}, fmt.Errorf("ask the probe: %w", err)
			}
		case a, ok := <-c.answers:
			switch {
			case !ok:
				return Answer{}, c.failed
			case a.ID == r.ID:
				return a, nil
			}
		}
	}
}
