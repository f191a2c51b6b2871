package quic

import (
	"crypto/rand"
	"encoding/binary"
)

// Versions of QUIC whose Initial packets are known.
const (
	Version1 uint32 = 1          // RFC 9000
	Version2 uint32 = 0x6b3343cf // RFC 9369
)

// MinDatagram is the least size of a datagram with an Initial packet of a client,
// in bytes (RFC 9000, 14.1). Smaller ones are never answered.
const MinDatagram = 1200

const (
	longForm = 0x80 // RFC 8999, 5.1
	fixedBit = 0x40

	maxID      = 20 // of versions 1 and 2; others may have 255 bytes (RFC 8999, 5.1)
	minFirstID = 8  // of what a client makes up for its first packets (RFC 9000, 7.2)
)

// kind is the type of a packet with a long header, the same for all versions.
type kind uint8

const (
	kindInitial kind = iota
	kindZeroRTT
	kindHandshake
	kindRetry
)

// header is what all versions say in a long header (RFC 8999, 5.1), and for
// those that are known what follows.
type header struct {
	version  uint32
	dcid     []byte
	scid     []byte
	kind     kind
	known    bool // the version is 1 or 2; what is below is for these only
	number   int  // where the packet number is
	end      int  // where the packet ends
	hasToken bool
}

// isLong tells whether a datagram begins with a long header.
func isLong(b []byte) bool { return len(b) > 0 && b[0]&longForm != 0 }

// parseHeader reads the long header of the packet that b begins with.
func parseHeader(b []byte) (h header, ok bool) {
	if !isLong(b) || len(b) < 7 {
		return h, false
	}
	h.version = binary.BigEndian.Uint32(b[1:])
	at := 5
	if h.dcid, at, ok = field(b, at, 255); !ok {
		return h, false
	}
	if h.scid, at, ok = field(b, at, 255); !ok {
		return h, false
	}
	kinds := [4]kind{kindInitial, kindZeroRTT, kindHandshake, kindRetry}
	switch h.version {
	case Version1:
	case Version2: // RFC 9369, 3.2
		kinds = [4]kind{kindRetry, kindInitial, kindZeroRTT, kindHandshake}
	default:
		return h, true
	}
	if len(h.dcid) > maxID || len(h.scid) > maxID {
		return h, false
	}
	h.known = true
	h.kind = kinds[b[0]>>4&3]
	if h.kind == kindRetry {
		h.end = len(b)
		return h, true
	}
	if h.kind == kindInitial {
		n, next, ok := varint(b, at)
		if !ok || n > uint64(len(b)-next) {
			return h, false
		}
		h.hasToken = n > 0
		at = next + int(n)
	}
	n, at, ok := varint(b, at)
	if !ok || n > uint64(len(b)-at) {
		return h, false
	}
	h.number, h.end = at, at+int(n)
	return h, true
}

// field takes bytes with a length of one byte before them.
func field(b []byte, at, most int) ([]byte, int, bool) {
	if at >= len(b) {
		return nil, at, false
	}
	n := int(b[at])
	at++
	if n > most || n > len(b)-at {
		return nil, at, false
	}
	return b[at : at+n], at + n, true
}

// varint takes an integer of 1, 2, 4 or 8 bytes (RFC 9000, 16).
func varint(b []byte, at int) (uint64, int, bool) {
	if at >= len(b) {
		return 0, at, false
	}
	n := 1 << (b[at] >> 6)
	if n > len(b)-at {
		return 0, at, false
	}
	v := uint64(b[at] & 0x3f)
	for _, c := range b[at+1 : at+n] {
		v = v<<8 | uint64(c)
	}
	return v, at + n, true
}

// versionNegotiation answers a packet of a version that is not known (RFC 9000,
// 17.2.1). It offers version 1 alone, which every server has: guests may not have
// version 2, and a client may be told of its choices once only (6.2).
func versionNegotiation(h header) []byte {
	var unused [1]byte
	_, _ = rand.Read(unused[:])
	b := append(make([]byte, 0, 16+len(h.dcid)+len(h.scid)), longForm|fixedBit|unused[0]&0x3f, 0, 0, 0, 0)
	b = append(append(b, byte(len(h.scid))), h.scid...)
	b = append(append(b, byte(len(h.dcid))), h.dcid...)
	return binary.BigEndian.AppendUint32(b, Version1)
}
