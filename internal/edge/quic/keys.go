package quic

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
)

// What the secrets of Initial packets are made with: RFC 9001, 5.2, and RFC 9369,
// 3.3.1.
var (
	salt1 = []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}
	salt2 = []byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9}
)

const (
	nonceSize  = 12
	sampleSize = 16 // RFC 9001, 5.4.3
	tagSize    = 16
)

// keys protect the Initial packets of one side.
type keys struct {
	packet cipher.AEAD  // AEAD_AES_128_GCM
	header cipher.Block // RFC 9001, 5.4.3
	iv     [nonceSize]byte
}

// initialKeys are those for a connection whose first packet had this version,
// Version1 or Version2, and this destination connection ID.
func initialKeys(version uint32, dcid []byte, label string) (*keys, error) {
	salt, prefix := salt1, "quic "
	if version == Version2 {
		salt, prefix = salt2, "quicv2 "
	}
	initial, err := hkdf.Extract(sha256.New, dcid, salt)
	if err != nil {
		return nil, err
	}
	secret, err := expandLabel(initial, label, sha256.Size)
	if err != nil {
		return nil, err
	}
	var parts [3][]byte
	for i, part := range []struct {
		label string
		size  int
	}{{"key", 16}, {"iv", nonceSize}, {"hp", 16}} {
		if parts[i], err = expandLabel(secret, prefix+part.label, part.size); err != nil {
			return nil, err
		}
	}
	block, err := aes.NewCipher(parts[0])
	if err != nil {
		return nil, err
	}
	k := &keys{iv: [nonceSize]byte(parts[1])}
	if k.packet, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	k.header, err = aes.NewCipher(parts[2])
	return k, err
}

func clientKeys(version uint32, dcid []byte) (*keys, error) {
	return initialKeys(version, dcid, "client in")
}

func serverKeys(version uint32, dcid []byte) (*keys, error) {
	return initialKeys(version, dcid, "server in")
}

// expandLabel is HKDF-Expand-Label without a context (RFC 8446, 7.1).
func expandLabel(secret []byte, label string, size int) ([]byte, error) {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(nil, uint16(size))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix+label...)
	return hkdf.Expand(sha256.New, secret, string(append(info, 0)), size)
}

// open removes the protection of a packet whose number is at h.number, and
// returns the frames in it. The packet itself is left as it is.
func (k *keys) open(packet []byte, number int) ([]byte, bool) {
	if len(packet) < number+4+sampleSize { // RFC 9001, 5.4.2
		return nil, false
	}
	mask := k.mask(packet[number+4:])
	first := packet[0] ^ mask[0]&0x0f
	size := 1 + int(first&3)
	head := append(make([]byte, 0, number+size), packet[:number+size]...)
	head[0] = first
	var n uint64
	for i, b := range mask[1 : 1+size] {
		head[number+i] ^= b
		n = n<<8 | uint64(head[number+i])
	}
	// The number is whole: nothing was acknowledged yet (RFC 9000, 17.1).
	frames, err := k.packet.Open(nil, k.nonce(n), packet[number+size:], head)
	return frames, err == nil
}

// seal protects a packet: head ends with its number in two bytes.
func (k *keys) seal(head []byte, n uint16, frames []byte) []byte {
	number := len(head) - 2
	packet := k.packet.Seal(head, k.nonce(uint64(n)), frames, head)
	mask := k.mask(packet[number+4:])
	packet[0] ^= mask[0] & 0x0f
	packet[number] ^= mask[1]
	packet[number+1] ^= mask[2]
	return packet
}

func (k *keys) mask(sample []byte) (mask [sampleSize]byte) {
	k.header.Encrypt(mask[:], sample[:sampleSize])
	return mask
}

// nonce is RFC 9001, 5.3.
func (k *keys) nonce(n uint64) []byte {
	nonce := k.iv
	for i := range 8 {
		nonce[nonceSize-1-i] ^= byte(n >> (8 * i))
	}
	return nonce[:]
}
