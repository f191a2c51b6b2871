package api

import (
	"encoding/binary"
	"io"

	"sublet/internal/vps"
)

// The console's protocol. After the upgrade both sides send frames:
//
//	type (1 byte) | length of the payload (2 bytes, big endian) | payload
//
// Frames of a type that the receiver does not know are skipped, so that the
// protocol can grow.
const (
	// consoleProtocol is the token of the Upgrade header.
	consoleProtocol = "sublet-console/1"

	// frameData carries bytes of the terminal, in both directions.
	frameData = 0
	// frameSize carries rows and columns, 2 bytes each, to the server.
	frameSize = 1
	// frameEnd is the last one from the server: empty for the normal end,
	// else a Problem as JSON.
	frameEnd = 2

	frameHeader = 3
	// frameChunk is what one frame of data carries at most when we send it.
	frameChunk = 16 << 10
)

// appendFrame appends a frame to dst. The payload has at most 65535 bytes.
func appendFrame(dst []byte, kind byte, payload []byte) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(payload)))
	return append(dst, payload...)
}

// readFrame reads one frame into buf, which holds at least 65535 bytes. An
// end between two frames is io.EOF, one within a frame io.ErrUnexpectedEOF.
func readFrame(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return head[0], buf[:n], nil
}

func sizePayload(rows, cols uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, rows), cols)
}

func parseSize(payload []byte) (rows, cols uint16, err error) {
	if len(payload) != 4 {
		return 0, 0, vps.Errorf(vps.CodeInvalid, "a frame with the window's size has 4 bytes, not %d", len(payload))
	}
	return binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]), nil
}
