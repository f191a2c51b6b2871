// Package proof finds out whether a name is a tenant's: by a TXT record that only
// who has the name's zone can make, or by a file that only who has the server
// behind the name can put there (docs/adr/0032-proofs.md).
package proof

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"strings"
	"time"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// Key is what all tokens of a host are derived from.
type Key [sha256.Size]byte

// OpenKey reads the key in a file, and makes both when there is none. Whoever has
// the key can make tokens, which is of no use without the names; without it all
// tokens change, and names are lost when that has lasted.
func OpenKey(path string) (Key, error) {
	key, err := durable.OpenKey(path)
	if err != nil {
		return Key{}, vps.Wrap(vps.CodeInternal, err, "the key of proofs in %s can neither be read nor made; put a backup in its place, or remove it and give every tenant new tokens", path)
	}
	return key, nil
}

// Claim is that a name is a tenant's.
type Claim struct {
	// Name is that of a domain: a host name, or "*." and a suffix.
	Name   string
	Tenant string
	// Created is when the tenant was made: one who comes after a tenant of the same
	// name has other tokens.
	Created time.Time
}

// tokenBytes is how much of the HMAC a token has: 160 bits, 32 letters.
const tokenBytes = 20

// Token is what proves a claim: letters and digits, the same whenever it is asked
// for, so that none has to be kept.
func (k Key) Token(c Claim) string {
	mac := hmac.New(sha256.New, k[:])
	_, _ = mac.Write([]byte("sublet domain\x00" + c.Tenant + "\x00" + c.Created.UTC().Format(time.RFC3339Nano) + "\x00" + c.Name))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(mac.Sum(nil)[:tokenBytes]))
}

const (
	recordPrefix = "_sublet."
	valuePrefix  = "sublet="
	// maxName is the longest name in DNS as text without the final dot: 255 octets
	// on the wire (RFC 1035, 2.3.4).
	maxName = 253
)

// Steps returns what has to be done to prove a claim.
func (k Key) Steps(c Claim) vps.ProofSteps {
	token := k.Token(c)
	suffix, isSuffix := strings.CutPrefix(c.Name, "*.")
	s := vps.ProofSteps{Record: recordPrefix + suffix, Value: valuePrefix + token}
	if len(s.Record) > maxName {
		s.Record = ""
	}
	if !isSuffix {
		s.URL, s.Content = "http://"+c.Name+filePath(token), token
	}
	return s
}

func filePath(token string) string { return "/.well-known/sublet-" + token }
