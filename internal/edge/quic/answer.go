package quic

import (
	"crypto/rand"
	"encoding/binary"
)

// connectionRefused is RFC 9000, 20.1.
const connectionRefused = 0x02

// closing is an Initial packet of a server that closes the connection which a
// client begins: it had this version, sent its first packet to dcid, and calls
// itself scid (RFC 9000, 10.2.3 and 19.19). It has less than 100 bytes.
func closing(version uint32, dcid, scid []byte) ([]byte, error) {
	k, err := serverKeys(version, dcid)
	if err != nil {
		return nil, err
	}
	frames := []byte{frameClose, connectionRefused, 0, 0} // error, no frame, no reason
	var own [8]byte
	_, _ = rand.Read(own[:])

	first := byte(longForm | fixedBit | 1) // a number of two bytes
	if version == Version2 {
		first |= 0x10 // RFC 9369, 3.2
	}
	const number = 0
	head := binary.BigEndian.AppendUint32(append(make([]byte, 0, 100), first), version)
	head = append(append(head, byte(len(scid))), scid...)
	head = append(append(head, byte(len(own))), own[:]...)
	head = append(head, 0) // no token
	head = append(head, byte(2+len(frames)+tagSize))
	head = append(head, 0, number)
	return k.seal(head, number, frames), nil
}
