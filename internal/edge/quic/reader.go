package quic

import (
	"bytes"
	"errors"

	"sublet/internal/edge/hello"
)

// ErrIgnored says that a datagram says nothing about the connection: it is not
// QUIC, belongs to another connection, or is forged. What came before stands.
var ErrIgnored = errors.New("the datagram is no part of the beginning of this connection")

// ErrGone says that the client closed the connection before it began.
var ErrGone = errors.New("the client closed the connection")

// errContradiction is for two frames that say different things about one byte.
var errContradiction = &hello.RefusalError{
	Reason: hello.ReasonMalformed, Alert: hello.AlertDecodeError,
	Text: "the ClientHello has two contents at one place",
}

// maxCrypto is how much of the stream of handshake messages is kept.
const maxCrypto = hello.MaxSize + 4

// Reader puts the ClientHello of one connection together, of Initial packets in
// any order, of which some may be lost or come twice. Ready when zero, for one
// goroutine at a time.
type Reader struct {
	dcid    []byte
	version uint32
	keys    *keys
	data    []byte // the stream, with holes
	have    []bool // which bytes of it came
	whole   int    // how many came without a hole
}

// Add reads a datagram of the client. It answers hello.ErrMore while the
// ClientHello is not whole, ErrIgnored for what is to be taken for lost, and a
// *hello.RefusalError for what will never become a ClientHello. The datagram is not
// kept.
func (r *Reader) Add(datagram []byte) (hello.Hello, error) {
	used := false
	for b := datagram; isLong(b); {
		h, ok := parseHeader(b)
		if !ok || !h.known {
			break
		}
		if h.kind == kindInitial {
			err := r.packet(b[:h.end], h)
			if err != nil && !errors.Is(err, ErrIgnored) {
				return hello.Hello{}, err
			}
			used = used || err == nil
		}
		b = b[h.end:] // coalesced packets, RFC 9000, 12.2
	}
	if !used {
		return hello.Hello{}, ErrIgnored
	}
	return hello.ParseMessage(r.data[:r.whole])
}

// packet reads an Initial packet.
func (r *Reader) packet(b []byte, h header) error {
	if r.keys == nil {
		if len(h.dcid) < minFirstID {
			return ErrIgnored
		}
		k, err := clientKeys(h.version, h.dcid)
		if err != nil {
			return err
		}
		frames, ok := k.open(b, h.number)
		if !ok {
			return ErrIgnored
		}
		r.keys, r.version, r.dcid = k, h.version, bytes.Clone(h.dcid)
		return r.frames(frames)
	}
	if h.version != r.version || !bytes.Equal(h.dcid, r.dcid) {
		return ErrIgnored
	}
	frames, ok := r.keys.open(b, h.number)
	if !ok {
		return ErrIgnored
	}
	return r.frames(frames)
}

// Types of frames that may be in Initial packets (RFC 9000, 12.4).
const (
	framePadding = 0x00
	framePing    = 0x01
	frameACK     = 0x02
	frameACKECN  = 0x03
	frameCrypto  = 0x06
	frameClose   = 0x1c
)

// frames reads what is in a packet. A packet with a frame that may not be in it
// is as good as none.
func (r *Reader) frames(b []byte) error {
	for at := 0; at < len(b); {
		kind := b[at] // all of these have one byte, as the shortest way is a must
		at++
		var ok bool
		switch kind {
		case framePadding, framePing:
			ok = true
		case frameACK, frameACKECN:
			at, ok = skipACK(b, at, kind == frameACKECN)
		case frameClose:
			return ErrGone
		case frameCrypto:
			var offset, n uint64
			if offset, at, ok = varint(b, at); ok {
				n, at, ok = varint(b, at)
			}
			if ok = ok && n <= uint64(len(b)-at); ok {
				if err := r.crypto(offset, b[at:at+int(n)]); err != nil {
					return err
				}
				at += int(n)
			}
		}
		if !ok {
			return ErrIgnored
		}
	}
	return nil
}

// skipACK is RFC 9000, 19.3.
func skipACK(b []byte, at int, ecn bool) (int, bool) {
	var fields [4]uint64 // largest, delay, ranges, the first range
	var ok bool
	for i := range fields {
		if fields[i], at, ok = varint(b, at); !ok {
			return at, false
		}
	}
	if fields[2] > uint64(len(b)) {
		return at, false
	}
	left := 2 * int(fields[2])
	if ecn {
		left += 3
	}
	for range left {
		if _, at, ok = varint(b, at); !ok {
			return at, false
		}
	}
	return at, true
}

// crypto takes a piece of the stream. What is beyond the longest ClientHello is
// left out: it is the server's business, if it is not too long anyway.
func (r *Reader) crypto(offset uint64, b []byte) error {
	if offset >= maxCrypto {
		return nil
	}
	at := int(offset)
	b = b[:min(len(b), maxCrypto-at)]
	if n := at + len(b) - len(r.data); n > 0 {
		r.data = append(r.data, make([]byte, n)...)
		r.have = append(r.have, make([]bool, n)...)
	}
	for i, c := range b {
		if r.have[at+i] && r.data[at+i] != c {
			return errContradiction
		}
		r.data[at+i], r.have[at+i] = c, true
	}
	for r.whole < len(r.have) && r.have[r.whole] {
		r.whole++
	}
	return nil
}
