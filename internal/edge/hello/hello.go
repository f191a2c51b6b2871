// Package hello reads the begin of a TLS connection: what its ClientHello says
// about where the connection is to go. It does no I/O.
//
// A ClientHello (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2) may be split over any
// segments of TCP and any records of TLS (RFC 8446, 5.1). It is read when all of
// it is there, and never before: a name in the first half may be contradicted by
// the second.
//
// What is read, and what is not:
//
//   - It is read at most as strictly as common servers do: what a server would
//     take for a ClientHello is taken, and left to the server to judge. What is
//     wrong in a way that could make two readers see two names is refused: wrong
//     lengths, an extension that is there twice, two host names.
//   - Versions in records and messages are not looked at (RFC 8446, 5.1), except
//     that a major version of 16 or more is garbage. SSLv3 and TLS 1.0 pass.
//   - A hello in the format of SSLv2 has no name and is refused (RFC 6176).
//   - Alerts that are warnings may come before the hello, and are skipped.
//   - Values that clients reserve for nothing (GREASE, RFC 8701) are skipped, as
//     is any other extension that is not known here.
package hello

import (
	"encoding/binary"
	"slices"
)

// MaxSize is how long a ClientHello may be, in bytes, without the four of its
// header. Post-quantum key shares take 1 to 2 KiB.
const MaxSize = 16 << 10

// MaxBytes is more than what a ClientHello of MaxSize can take in records: each
// byte in a record of its own, the last one in a record of full size, and alerts.
// A buffer of this size is never full while Reader wants more.
const MaxBytes = (headerSize+MaxSize)*(recordSize+1) + recordSize + maxRecord + maxAlerts*(recordSize+2)

// Hello is what a ClientHello says that matters for routing.
type Hello struct {
	// ServerName is the host name that the caller asks for (RFC 6066, 3): lower
	// case, without a final dot, of letters, digits, hyphens and underscores in
	// labels of at most 63 bytes, at most 253 in all. It is empty when the caller
	// sent none, or an address, which the RFC forbids and which says nothing.
	ServerName string
	// ALPN is the protocols that the caller offers, the best first (RFC 7301).
	ALPN []string
	// ECH is set if there is an outer encrypted_client_hello (RFC 9849): the name
	// is then the outer one, which is what a server without the keys has to go
	// by. Browsers send one to everybody, so it does not mean that there is
	// another name.
	ECH bool
	// EarlyData is set if the caller sends data before it has an answer (RFC 8446,
	// 4.2.10).
	EarlyData bool
	// Size is how many bytes the ClientHello took, of records with what came
	// before it, or of the message where there are no records. What comes after
	// is not looked at.
	Size int
}

// Extensions of a ClientHello (IANA, TLS ExtensionType values).
const (
	extServerName = 0
	extALPN       = 16
	extEarlyData  = 42
	extECH        = 0xfe0d
)

const (
	headerSize      = 4 // of a handshake message (RFC 8446, 4)
	typeClientHello = 1
	echOuter        = 0
)

// ParseMessage reads a ClientHello that comes without records, as in QUIC (RFC
// 9001, 4.1.3). Errors are those of Parse.
func ParseMessage(b []byte) (Hello, error) {
	size, err := messageSize(b)
	if err != nil {
		return Hello{}, err
	}
	if len(b) < size {
		return Hello{}, ErrMore
	}
	h, err := parseBody(b[headerSize:size])
	if err != nil {
		return Hello{}, err
	}
	h.Size = size
	return h, nil
}

// messageSize is how many bytes the handshake message that begins with b has.
func messageSize(b []byte) (int, error) {
	if len(b) > 0 && b[0] != typeClientHello {
		return 0, errOtherMessage
	}
	if len(b) < headerSize {
		return 0, ErrMore
	}
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	if n > MaxSize {
		return 0, errTooLarge
	}
	return headerSize + n, nil
}

// cursor takes fields off the front of a message.
type cursor []byte

func (c *cursor) skip(n int) bool {
	if len(*c) < n {
		return false
	}
	*c = (*c)[n:]
	return true
}

func (c *cursor) uint8() (uint8, bool) {
	if len(*c) < 1 {
		return 0, false
	}
	v := (*c)[0]
	*c = (*c)[1:]
	return v, true
}

func (c *cursor) uint16() (uint16, bool) {
	if len(*c) < 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(*c)
	*c = (*c)[2:]
	return v, true
}

// vector8 takes a vector whose length is one byte, vector16 one of two.
func (c *cursor) vector8() (cursor, bool) {
	n, ok := c.uint8()
	return c.take(int(n), ok)
}

func (c *cursor) vector16() (cursor, bool) {
	n, ok := c.uint16()
	return c.take(int(n), ok)
}

func (c *cursor) take(n int, ok bool) (cursor, bool) {
	if !ok || len(*c) < n {
		return nil, false
	}
	v := (*c)[:n]
	*c = (*c)[n:]
	return v, true
}

// parseBody reads a ClientHello without the header.
func parseBody(b []byte) (Hello, error) {
	c := cursor(b)
	if !c.skip(2 + 32) { // legacy_version, random
		return Hello{}, errMalformed
	}
	_, sessionOK := c.vector8()
	suites, suitesOK := c.vector16()
	_, compressionOK := c.vector8()
	if !sessionOK || !suitesOK || !compressionOK || len(suites)%2 != 0 {
		return Hello{}, errMalformed
	}
	if len(c) == 0 {
		return Hello{}, nil // extensions are optional before TLS 1.3
	}
	extensions, ok := c.vector16()
	if !ok || len(c) != 0 {
		return Hello{}, errMalformed
	}
	return parseExtensions(extensions)
}

func parseExtensions(c cursor) (Hello, error) {
	var h Hello
	seen := make([]uint16, 0, 64) // does not escape; real hellos have 10 to 20
	for len(c) > 0 {
		kind, kindOK := c.uint16()
		data, dataOK := c.vector16()
		if !kindOK || !dataOK {
			return Hello{}, errMalformed
		}
		seen = append(seen, kind)
		var err error
		switch kind {
		case extServerName:
			h.ServerName, err = parseServerName(data)
		case extALPN:
			h.ALPN, err = parseALPN(data)
		case extECH:
			h.ECH = len(data) > 0 && data[0] == echOuter
		case extEarlyData:
			h.EarlyData = true
			if len(data) != 0 {
				err = errMalformed
			}
		}
		if err != nil {
			return Hello{}, err
		}
	}
	slices.Sort(seen)
	for i := 1; i < len(seen); i++ {
		if seen[i] == seen[i-1] {
			return Hello{}, errTwice // RFC 8446, 4.2
		}
	}
	return h, nil
}

// parseServerName reads a ServerNameList (RFC 6066, 3). Only one type of names was
// ever defined; others are skipped.
func parseServerName(c cursor) (string, error) {
	list, ok := c.vector16()
	if !ok || len(c) != 0 || len(list) == 0 {
		return "", errMalformed
	}
	var host cursor
	for len(list) > 0 {
		kind, kindOK := list.uint8()
		name, nameOK := list.vector16()
		if !kindOK || !nameOK || len(name) == 0 {
			return "", errMalformed
		}
		if kind != 0 {
			continue
		}
		if host != nil {
			return "", errNames
		}
		host = name
	}
	if host == nil {
		return "", nil
	}
	return canonical(host)
}

// parseALPN reads a ProtocolNameList (RFC 7301, 3.1).
func parseALPN(c cursor) ([]string, error) {
	list, ok := c.vector16()
	if !ok || len(c) != 0 || len(list) == 0 {
		return nil, errMalformed
	}
	protocols := make([]string, 0, 2)
	for len(list) > 0 {
		p, ok := list.vector8()
		if !ok || len(p) == 0 {
			return nil, errMalformed
		}
		switch string(p) { // what nearly everybody sends costs no memory
		case "h2":
			protocols = append(protocols, "h2")
		case "http/1.1":
			protocols = append(protocols, "http/1.1")
		case "h3":
			protocols = append(protocols, "h3")
		default:
			protocols = append(protocols, string(p))
		}
	}
	return protocols, nil
}
