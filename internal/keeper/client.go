//go:build linux

package keeper

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Status asks the keeper in this run folder for its instance.
// vps.CodeNotFound means that no keeper listens there.
func Status(ctx context.Context, runDir string) (vps.Instance, error) {
	return ask(ctx, runDir, request{Op: opStatus})
}

// Attach checks that the keeper of this instance still listens and keeps this
// very one; vps.CodeNotFound when not.
func Attach(ctx context.Context, in vps.Instance) error {
	_, err := ask(ctx, runDirOf(in), request{Op: opStatus, Instance: &in})
	return err
}

// Stop asks for an orderly shutdown and returns. The keeper repeats it until
// the guest is over. vps.CodeNotFound when the instance is over already.
func Stop(ctx context.Context, in vps.Instance) error {
	_, err := ask(ctx, runDirOf(in), request{Op: opStop, Instance: &in})
	return err
}

// Wait blocks until the instance is over and its end is written down, and
// returns that. An instance that has been replaced or whose run folder is gone
// gives vps.CodeNotFound; one whose keeper died, the exit reason vps.ExitLost.
func Wait(ctx context.Context, in vps.Instance) (vps.Exit, error) {
	dir := runDirOf(in)
	var exit *vps.Exit
	err := poll(ctx, func() (bool, error) {
		if got, err := ask(ctx, dir, request{Op: opWait, Instance: &in}); err == nil && got.Exit != nil {
			exit = got.Exit
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		// The keeper has gone, or is just starting or ending.
		found, err := Find(dir)
		switch {
		case err != nil:
			return false, err
		case !same(found, in):
			return false, vps.Errorf(vps.CodeNotFound, "that instance of guest %s has been replaced", in.Name)
		}
		exit = found.Exit
		return exit != nil, nil
	})
	if err != nil {
		return vps.Exit{}, waitError(ctx, err)
	}
	return *exit, nil
}

func waitError(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return vps.Wrap(vps.CodeTimeout, err, "gave up waiting")
}

// killTimeout is how long a keeper gets to kill its guest before it is killed
// itself, with its guest.
const killTimeout = 10 * time.Second

// Kill kills the instance and returns when nothing of it runs any more. A
// keeper that does not answer is killed with it. One that is over is no error.
func Kill(ctx context.Context, in vps.Instance) error {
	dir := runDirOf(in)
	short, cancel := context.WithTimeout(ctx, killTimeout)
	_, err := ask(short, dir, request{Op: opKill, Instance: &in})
	cancel()
	if err == nil || ctx.Err() != nil {
		return waitError(ctx, err)
	}
	// Either it is over, or its keeper is stuck.
	r, err := readRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return vps.Wrap(vps.CodeInternal, err, "cannot read the record of guest %s", in.Name)
	case !same(r.Instance, in) || r.Exit != nil:
		return nil
	}
	r.Self.kill(r.BootID)
	r.Anchor.kill(r.BootID)
	return waitError(ctx, poll(ctx, func() (bool, error) {
		found, err := Find(dir)
		return found.Exit != nil || vps.ErrorCode(err) == vps.CodeNotFound, err
	}))
}

// ConsoleOptions say how to join a console; see guest.ConsoleOptions.
type ConsoleOptions struct {
	Write, Takeover, NoReplay bool
	Rows, Cols                uint16
}

// Join joins the console of a running instance; vps.CodeNotFound when it is
// over. ctx bounds the joining only.
func Join(ctx context.Context, in vps.Instance, o ConsoleOptions) (*Console, error) {
	conn, err := dial(ctx, runDirOf(in))
	if err != nil {
		return nil, err
	}
	r, _, err := exchange(ctx, conn, request{
		Op: opConsole, Instance: &in, Write: o.Write || o.Takeover, Takeover: o.Takeover, NoReplay: o.NoReplay, Rows: o.Rows, Cols: o.Cols,
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	// Whether a writer may write is known by its first frames.
	return &Console{conn: conn, in: r, buf: frameBuffer(), refused: !o.Write && !o.Takeover}, nil
}

// Console is a joined console. One goroutine may read while another writes.
type Console struct {
	conn net.Conn
	in   *bufio.Reader
	buf  []byte
	rest []byte // read, but not yet given to the caller

	mu      sync.Mutex // for writing, and for refused
	refused bool
}

// Read returns what the console shows. Words of the keeper itself come on a
// line of their own in square brackets. io.EOF means that the guest is over.
// A caller that wants to know of a lost writer's role has to read.
func (c *Console) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		kind, b, err := readFrame(c.in, c.buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
				err = io.EOF
			}
			return 0, err
		}
		switch kind {
		case frameData:
			c.rest = b
		case frameNotice:
			c.rest = []byte("\r\n[" + printable(b) + "]\r\n")
		case frameRole:
			c.mu.Lock()
			c.refused = len(b) != 1 || b[0] != roleWriter
			c.mu.Unlock()
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write types p. Whoever is not the writer gets vps.CodeConflict, and nothing
// is typed; it is known from the first Read after the role was lost.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused {
		return 0, vps.Errorf(vps.CodeConflict, "you only read this console; join it again with a take-over to write")
	}
	if len(p) == 0 {
		return 0, nil
	}
	if _, err := c.conn.Write(appendFrames(nil, frameData, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Resize tells the guest the size of the writer's window.
func (c *Console) Resize(rows, cols uint16) error {
	b := binary.BigEndian.AppendUint16(nil, rows)
	b = binary.BigEndian.AppendUint16(b, cols)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.conn.Write(appendFrames(nil, frameWindow, b))
	return err
}

// Close leaves the console.
func (c *Console) Close() error { return c.conn.Close() }

// runDirOf is where the instance's keeper lives.
func runDirOf(in vps.Instance) string { return filepath.Dir(in.Socket) }

// ask sends one request and returns the instance of the answer.
func ask(ctx context.Context, runDir string, q request) (vps.Instance, error) {
	conn, err := dial(ctx, runDir)
	if err != nil {
		return vps.Instance{}, err
	}
	defer func() { _ = conn.Close() }()
	_, a, err := exchange(ctx, conn, q)
	if err != nil {
		return vps.Instance{}, err
	}
	if a.Instance == nil {
		return vps.Instance{}, vps.Errorf(vps.CodeInternal, "the guest's keeper answered without an instance")
	}
	return *a.Instance, nil
}

func dial(ctx context.Context, runDir string) (net.Conn, error) {
	dir, err := os.OpenFile(runDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, vps.Wrap(vps.CodeNotFound, err, "no keeper runs in %s", runDir)
	}
	defer func() { _ = dir.Close() }()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", shortPath(dir, socketName))
	if err != nil {
		return nil, vps.Wrap(vps.CodeNotFound, err, "no keeper runs in %s", runDir)
	}
	return conn, nil
}

// exchange sends q and reads the answer; ctx ends both. What the connection
// carries after that is in the returned reader.
func exchange(ctx context.Context, conn net.Conn, q request) (*bufio.Reader, answer, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			return // ctx ended; the connection is of no use any more
		}
	}()
	q.Version = protocolVersion
	b, err := json.Marshal(q)
	if err != nil {
		return nil, answer{}, err
	}
	in := bufio.NewReaderSize(conn, maxLine)
	if _, err = conn.Write(append(b, '\n')); err != nil {
		err = keeperEnded(err)
	}
	var a answer
	if err == nil {
		a, err = readAnswer(in)
	}
	if err != nil && ctx.Err() != nil {
		err = vps.Wrap(vps.CodeTimeout, err, "the guest's keeper did not answer in time")
	}
	if err != nil {
		return nil, a, err
	}
	return in, a, nil
}

func keeperEnded(err error) error {
	return vps.Wrap(vps.CodeNotFound, err, "the guest's keeper ended before it answered")
}

// readAnswer reads one line that the keeper sent.
func readAnswer(in *bufio.Reader) (a answer, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return a, keeperEnded(err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, vps.Wrap(vps.CodeInternal, err, "the guest's keeper answered with something else than JSON")
	}
	if a.Code != "" {
		return a, vps.Errorf(a.Code, "%s", a.Message)
	}
	return a, nil
}
