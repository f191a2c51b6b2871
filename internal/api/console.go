package api

import (
	"bufio"
	"context"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"

	"sublet/internal/vps"
)

// ConsoleConn is an open console on the client's side. Read, Write, Resize
// and Close may be called from different goroutines, Read only from one.
type ConsoleConn struct {
	client *Client
	ctx    func() context.Context
	stop   func() bool
	body   io.ReadWriteCloser
	closed atomic.Bool

	reader *bufio.Reader
	buf    []byte
	rest   []byte
	end    error

	mu    sync.Mutex // one frame at a time
	frame []byte
}

func (c *Client) console(ctx context.Context, path string, o ConsoleOptions) (*ConsoleConn, error) {
	query := url.Values{}
	for key, set := range map[string]bool{"read_only": o.ReadOnly, "takeover": o.Takeover} {
		if set {
			query.Set(key, "true")
		}
	}
	for key, n := range map[string]uint16{"rows": o.Rows, "columns": o.Columns} {
		if n > 0 {
			query.Set(key, strconv.Itoa(int(n)))
		}
	}
	resp, err := c.do(ctx, request{ //nolint:bodyclose // the body is the console; Close closes it
		method: http.MethodGet, path: path, query: query,
		header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {consoleProtocol}},
	})
	if err != nil {
		return nil, err
	}
	body, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok || resp.Header.Get("Upgrade") != consoleProtocol {
		closeQuietly(resp.Body)
		return nil, vps.Errorf(vps.CodeInternal, "the daemon answered %s instead of opening the console; are client and daemon of the same version?", resp.Status)
	}
	return &ConsoleConn{
		client: c, body: body,
		ctx:    func() context.Context { return ctx },
		stop:   context.AfterFunc(ctx, func() { closeQuietly(body) }),
		reader: bufio.NewReaderSize(body, frameChunk),
		buf:    make([]byte, math.MaxUint16),
	}, nil
}

// Read reads what the guest writes. It returns io.EOF when the guest ended or
// the console was closed, and a *vps.Error that says why for any other end,
// such as a takeover.
func (c *ConsoleConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(c.rest) == 0 {
		if c.end != nil {
			return 0, c.end
		}
		kind, payload, err := readFrame(c.reader, c.buf)
		switch {
		case err != nil:
			c.end = c.lost(err)
		case kind == frameData:
			c.rest = payload
		case kind == frameEnd && len(payload) == 0:
			c.end = io.EOF
		case kind == frameEnd:
			c.end = decodeProblem(http.StatusInternalServerError, payload)
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write sends keystrokes to the guest. On a console opened read-only they are
// dropped by the daemon.
func (c *ConsoleConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, frameChunk)
		if err := c.send(frameData, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Resize tells the guest the size of the caller's window, in characters.
func (c *ConsoleConn) Resize(rows, cols uint16) error {
	return c.send(frameSize, sizePayload(rows, cols))
}

// Close ends the console; the guest stays as it is. It may be called at any
// time and more than once, and unblocks Read and Write.
func (c *ConsoleConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.stop()
	// What a half-closed connection could still report helps nobody.
	closeQuietly(c.body)
	return nil
}

func (c *ConsoleConn) send(kind byte, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frame = appendFrame(c.frame[:0], kind, payload)
	_, err := c.body.Write(c.frame)
	switch {
	case err == nil:
		return nil
	case c.closed.Load():
		return io.ErrClosedPipe
	default:
		return c.lost(err)
	}
}

func (c *ConsoleConn) lost(err error) error {
	if c.closed.Load() {
		return io.EOF
	}
	if ctx := c.ctx(); ctx.Err() != nil {
		return c.client.lost(ctx, err)
	}
	return vps.Wrap(vps.CodeUnavailable, err, "the connection to the daemon broke; the guest is as it was, open the console again")
}
