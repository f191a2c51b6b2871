package fsusage

import (
	"bytes"
	"encoding/hex"
	"strings"
	"unicode"
)

// text reads a name that ends at a zero byte or with the field. A guest wrote
// it and people read it: what is not printable becomes a question mark.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(b))
}

// uuidText writes 16 bytes in the usual way; empty when all are zero.
func uuidText(b []byte) string {
	if len(bytes.Trim(b, "\x00")) == 0 {
		return ""
	}
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
