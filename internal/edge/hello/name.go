package hello

import (
	"bytes"
	"net/netip"
)

// Limits of names, RFC 1035, 2.3.4: 255 bytes on the wire are 253 as text.
const (
	maxName  = 253
	maxLabel = 63
)

// canonical is a host name of a ClientHello as the table of domains has it, or
// nothing for an address.
func canonical(raw []byte) (string, error) {
	name := raw
	if name[len(name)-1] == '.' {
		name = name[:len(name)-1] // RFC 6066 has none, some clients send it
	}
	if len(name) == 0 || len(name) > maxName {
		return "", errName
	}
	var buf [maxName]byte
	label, digits := 0, true
	for i, c := range name {
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
			digits = false
		case c >= 'a' && c <= 'z', c == '-', c == '_':
			digits = false
		case c >= '0' && c <= '9':
		case c == '.':
			if label == 0 {
				return "", errName
			}
			label = -1
		default:
			if isAddress(name) {
				return "", nil
			}
			return "", errName
		}
		if label++; label > maxLabel {
			return "", errName
		}
		buf[i] = c
	}
	if label == 0 {
		return "", errName
	}
	if digits && isAddress(name) {
		return "", nil
	}
	return string(buf[:len(name)]), nil
}

// isAddress is about what can be an address by its characters: of IPv4 with
// digits only, or of IPv6 with colons, which host names have not.
func isAddress(name []byte) bool {
	if len(name) > 64 || !bytes.ContainsAny(name, ":.") {
		return false
	}
	_, err := netip.ParseAddr(string(name))
	return err == nil
}
