package guestinit

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"io"
)

const keyType = "ssh-ed25519"

// newHostKey makes an Ed25519 key pair in the formats of OpenSSH: the private
// key as its PROTOCOL.key describes ("openssh-key-v1", not encrypted), the
// public key as one line (RFC 8709). Ed25519 alone is made because every
// client since 2014 knows it, and RSA would take seconds in a small guest.
func newHostKey(rand io.Reader, comment string) (private, public []byte, err error) {
	// The seed is read here: the library's own functions may ignore rand.
	var bytes [ed25519.SeedSize + 4]byte
	if _, err := io.ReadFull(rand, bytes[:]); err != nil {
		return nil, nil, err
	}
	key := ed25519.NewKeyFromSeed(bytes[:ed25519.SeedSize])
	pub := key[ed25519.SeedSize:]

	blob := appendString(nil, []byte(keyType))
	blob = appendString(blob, pub)

	// Two equal words tell a reader that it decrypted well.
	check := bytes[ed25519.SeedSize:]
	secret := append(append([]byte{}, check...), check...)
	secret = append(secret, blob...)
	secret = appendString(secret, key)
	secret = appendString(secret, []byte(comment))
	for i := byte(1); len(secret)%8 != 0; i++ {
		secret = append(secret, i)
	}

	out := []byte("openssh-key-v1\x00")
	out = appendString(out, []byte("none")) // cipher
	out = appendString(out, []byte("none")) // key derivation
	out = appendString(out, nil)            // its options
	out = binary.BigEndian.AppendUint32(out, 1)
	out = appendString(out, blob)
	out = appendString(out, secret)

	private = pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: out})
	public = []byte(keyType + " " + base64.StdEncoding.EncodeToString(blob) + " " + comment + "\n")
	return private, public, nil
}

// appendString appends a string as RFC 4251 section 5 encodes it.
func appendString(b, s []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
