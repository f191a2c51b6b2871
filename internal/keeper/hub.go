//go:build linux

package keeper

import (
	"fmt"
	"sync"
)

// Sizes of the console's buffers, in bytes and, for input, in chunks of at
// most maxFrame bytes.
const (
	replaySize  = 64 << 10
	readerLimit = 256 << 10
	inputChunks = 16
)

// hub is the console: it keeps the last output, copies what comes to all
// readers, and lets one of them write. Nothing in it ever blocks: a reader who
// does not keep up loses bytes and is told how many.
type hub struct {
	mu      sync.Mutex
	last    []byte // at most 2*replaySize; the end counts
	readers map[*reader]struct{}
	writer  *reader
	closed  bool
	input   chan []byte
	resize  func(rows, cols uint16)
	// deserted, when set, is called when the writer leaves.
	deserted func()
}

// reader is one caller on the console. Its fields belong to the hub's lock.
type reader struct {
	out  []byte // frames that wait to be sent
	lost int    // bytes of output left out since out was last taken
	wake chan struct{}
	done bool // no more output will come
}

func newHub(resize func(rows, cols uint16)) *hub {
	return &hub{readers: map[*reader]struct{}{}, input: make(chan []byte, inputChunks), resize: resize}
}

// publish hands out what the guest wrote.
func (h *hub) publish(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = append(h.last, b...)
	if len(h.last) > 2*replaySize {
		h.last = append(h.last[:0], h.last[len(h.last)-replaySize:]...)
	}
	for r := range h.readers {
		if len(r.out)+len(b)+frameHeader > readerLimit {
			r.lost += len(b)
			continue
		}
		r.push(frameData, b)
	}
}

// tail returns a copy of the last output.
func (h *hub) tail() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]byte(nil), h.last[max(0, len(h.last)-replaySize):]...)
}

// join adds a reader, as the writer when it asks for that and nobody writes,
// or when it takes over.
func (h *hub) join(q request) *reader {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &reader{wake: make(chan struct{}, 1), done: h.closed}
	h.readers[r] = struct{}{}
	if !q.NoReplay {
		r.push(frameData, h.last[max(0, len(h.last)-replaySize):])
	}
	switch {
	case q.Takeover || q.Write && h.writer == nil:
		if h.writer != nil {
			h.writer.push(frameNotice, []byte("somebody else writes now"))
			h.writer.push(frameRole, []byte{roleReader})
		}
		h.writer = r
		r.push(frameRole, []byte{roleWriter})
		h.setWindow(q.Rows, q.Cols)
	case q.Write:
		r.push(frameNotice, []byte("somebody else writes; you only read"))
		r.push(frameRole, []byte{roleReader})
	}
	return r
}

func (h *hub) leave(r *reader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
	if h.writer == r {
		h.writer = nil
		if h.deserted != nil {
			h.deserted()
		}
	}
}

// write passes a caller's bytes on to the guest, if the caller is the writer
// and the guest reads.
func (h *hub) write(r *reader, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writer != r {
		r.push(frameRole, []byte{roleReader})
		return
	}
	select {
	case h.input <- append([]byte(nil), b...):
	default:
		r.notice(fmt.Sprintf("the guest does not read its console; %d bytes were left out", len(b)))
	}
}

func (h *hub) window(r *reader, rows, cols uint16) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writer == r {
		h.setWindow(rows, cols)
	}
}

func (h *hub) setWindow(rows, cols uint16) {
	if rows > 0 && cols > 0 {
		h.resize(rows, cols)
	}
}

// take returns the frames that wait for a reader and whether more may come.
func (h *hub) take(r *reader) (out []byte, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out, r.out = r.out, nil
	if r.lost > 0 {
		out = appendFrames(out, frameNotice, fmt.Appendf(nil, "%d bytes were left out because they were not read in time", r.lost))
		r.lost = 0
	}
	return out, !r.done
}

// close ends the console for everybody, after what is still waiting.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for r := range h.readers {
		r.done = true
		r.signal()
	}
}

// push queues frames and wakes the one who sends them. What is not console
// output is small, but a caller could make us say it without end.
func (r *reader) push(kind byte, content []byte) {
	if len(r.out) <= 2*readerLimit {
		r.out = appendFrames(r.out, kind, content)
	}
	r.signal()
}

func (r *reader) notice(text string) { r.push(frameNotice, []byte(text)) }

func (r *reader) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}
