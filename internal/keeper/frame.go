//go:build linux

package keeper

import (
	"encoding/binary"
	"io"

	"sublet/internal/vps"
)

// protocolVersion is the version of requests that this program speaks.
const protocolVersion = 1

// The ops of a request.
const (
	opStatus  = "status"  // answers with the instance
	opStop    = "stop"    // asks for an orderly shutdown
	opKill    = "kill"    // kills; answers when nothing runs any more
	opWait    = "wait"    // answers when the instance is over
	opConsole = "console" // answers, then frames follow
	opPause   = "pause"   // stands the guest still while the caller stays; see pause.go
)

// request is the line that a caller sends.
type request struct {
	Version int    `json:"v"`
	Op      string `json:"op"`
	// Instance is the one that is meant, by guest ID and start; nil is
	// whichever runs.
	Instance *vps.Instance `json:"instance,omitempty"`
	// The rest is for opConsole.
	Write    bool   `json:"write,omitempty"`
	Takeover bool   `json:"takeover,omitempty"`
	NoReplay bool   `json:"no_replay,omitempty"`
	Rows     uint16 `json:"rows,omitempty"`
	Cols     uint16 `json:"cols,omitempty"`
}

// answer is the line that comes back. Code is empty when all went well.
type answer struct {
	Version  int           `json:"v"`
	Code     vps.Code      `json:"code,omitempty"`
	Message  string        `json:"message,omitempty"`
	Instance *vps.Instance `json:"instance,omitempty"`
}

// maxLine bounds a request and an answer, in bytes.
const maxLine = 16 << 10

// The kinds of frames. A frame is one byte of kind, two of length, high byte
// first, and so many bytes of content. Unknown kinds are skipped.
const (
	frameData   = 'd' // bytes of the console, both ways
	frameWindow = 'w' // to the keeper: rows and columns, two bytes each
	frameNotice = 'n' // to the caller: a text about the console, not from it
	frameRole   = 'r' // to the caller: one byte, 'w' for writer or 'r' for reader
)

const (
	frameHeader = 3
	maxFrame    = 32 << 10
)

const (
	roleWriter = 'w'
	roleReader = 'r'
)

// appendFrames appends content as frames of one kind, as many as it needs.
func appendFrames(b []byte, kind byte, content []byte) []byte {
	for {
		part := content[:min(len(content), maxFrame)]
		content = content[len(part):]
		b = append(b, kind)
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
		b = append(b, part...)
		if len(content) == 0 {
			return b
		}
	}
}

// readFrame reads one frame into buf, which has room for 64 KiB.
func readFrame(r io.Reader, buf []byte) (kind byte, content []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	content = buf[:binary.BigEndian.Uint16(h[1:])]
	_, err = io.ReadFull(r, content)
	return h[0], content, err
}

// frameBuffer makes a buffer for readFrame.
func frameBuffer() []byte { return make([]byte, 1<<16) }
