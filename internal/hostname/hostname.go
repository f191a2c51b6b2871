// Package hostname brings names of hosts into the one form in which they are
// compared: lower-case ASCII, other alphabets in their A-labels (RFC 5890, 2.3.2),
// without a final dot. It has no state.
package hostname

import (
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"sublet/internal/vps"
)

// Limits of names, RFC 1035, 2.3.4: 255 bytes on the wire are 253 as text.
const (
	maxName  = 253
	maxLabel = 63
	// maxText bounds what is looked at of what people write: letters of other
	// alphabets take up to 4 bytes, and become several.
	maxText = 4 * maxName
)

// profile is idna.Lookup (UTS #46, not transitional) but for hyphens: labels such
// as r3---sn-x are names of hosts that there are, and browsers take them.
var profile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckHyphens(false)) //nolint:gochecknoglobals // a constant

const hint = "write for example blog.example.org, *.example.org, or * for all that no other domain has"

// Canonical returns what somebody wrote as the name of a domain in its canonical
// form (see vps.Domain.Name): a host name, "*." and a suffix, or "*". Names of one
// label are welcome, such as nas or localhost: a network may have them. It returns
// an error with vps.CodeInvalid and no field.
//
// A suffix under which anybody may register names, such as *.com or *.co.uk, is
// refused by the part of the Public Suffix List that ICANN has delegated.
func Canonical(text string) (string, error) {
	written := strings.TrimSpace(text)
	if written == vps.DefaultDomain {
		return written, nil
	}
	if len(written) > maxText {
		return "", vps.Invalid("", "a domain of %d bytes is too long; a name has at most %d characters", len(written), maxName)
	}
	name, isSuffix := strings.CutPrefix(written, "*.")
	if err := mistaken(written, name); err != nil {
		return "", err
	}
	name, err := toASCII(name)
	if err != nil {
		return "", vps.Wrap(vps.CodeInvalid, err, "%q is not a host name; %s", written, hint)
	}
	name = strings.TrimSuffix(name, ".")
	if !isHost(name) || isNumber(name) {
		return "", vps.Invalid("", "%q is not a host name of letters, digits and hyphens, at most %d between dots and %d in all; %s", written, maxLabel, maxName, hint)
	}
	if !isSuffix {
		return name, nil
	}
	if len(name)+len("x.") > maxName {
		return "", vps.Invalid("", "%q is too long for a name below it", written)
	}
	if public(name) {
		return "", vps.Invalid("", "%q stands for names of people everywhere, because anybody may register one below %s; write a suffix that is yours, for example *.example.%s", written, name, name)
	}
	return "*." + name, nil
}

// toASCII converts the labels of other alphabets. The profile alone would take what
// is no text for U+FFFD.
func toASCII(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", errors.New("not UTF-8")
	}
	return profile.ToASCII(name)
}

// mistaken finds what people write that is no name, to say what is meant instead.
func mistaken(written, name string) error {
	bare := strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	_, notAddress := netip.ParseAddr(strings.TrimSuffix(bare, "."))
	_, notPair := netip.ParseAddrPort(name)
	switch {
	case name == "":
		return vps.Invalid("", "a name is needed; %s", hint)
	case strings.ContainsAny(name, "/?#@\\"):
		return vps.Invalid("", "%q is more than a host name; write the name alone, without https:// and what follows the name", written)
	case notAddress == nil || notPair == nil:
		return vps.Invalid("", "%q is an IP address, and callers do not say which one they call; %s", written, hint)
	case strings.Contains(name, ":"):
		return vps.Invalid("", "%q names a port; write the name alone, and the port with --listen", written)
	case strings.Contains(name, "*"):
		return vps.Invalid("", "%q has a star in the middle; a star stands for whole labels at the beginning, as in *.example.org", written)
	case strings.Contains(name, "_"):
		return vps.Invalid("", "%q has an underscore, which names of hosts have not; use a hyphen", written)
	}
	return nil
}

// public tells whether anybody may register names right below, or below names
// right below (as with *.kawasaki.jp in the list).
func public(name string) bool {
	for _, n := range []string{name, "x." + name} {
		if suffix, icann := publicsuffix.PublicSuffix(n); icann && suffix == n {
			return true
		}
	}
	return false
}

// isHost tells whether a name is made as those of hosts are (RFC 1123, 2.1).
func isHost(name string) bool {
	if !wellFormed(name) || strings.Contains(name, "_") {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

// isNumber tells whether a name ends in a number, as IPv4 addresses do in all
// their forms (URL Standard, "ends in a number checker"): 10.1, 0x7f.1.
func isNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	hex, isHex := strings.CutPrefix(last, "0x")
	return strings.Trim(last, "0123456789") == "" || isHex && strings.Trim(hex, "0123456789abcdef") == ""
}

// FromHost returns the name that the Host header of HTTP/1.1 or the :authority of
// HTTP/2 names, in its canonical form and without the port (RFC 9110, 7.2). Of an
// IP address it is the address alone, which is no domain's name. It is empty for
// what is empty or no host (RFC 3986, 3.2.2, without percent-encoding), which has
// to be refused rather than be compared.
//
// Underscores are let through: suffixes may cover names with them. What is in
// canonical form already costs no memory.
func FromHost(header string) string {
	if rest, bracket := strings.CutPrefix(header, "["); bracket {
		address, behind, closed := strings.Cut(rest, "]")
		a, err := netip.ParseAddr(address)
		port, isPort := strings.CutPrefix(behind, ":")
		if !closed || err != nil || !a.Is6() || a.Zone() != "" || behind != "" && !isPort || !isPortNumber(port) {
			return ""
		}
		return a.String()
	}
	host, port, _ := strings.Cut(header, ":")
	if !isPortNumber(port) {
		return ""
	}
	return fold(host)
}

// fold is the canonical form of a name from the wire.
func fold(name string) string {
	if len(name) > maxText {
		return ""
	}
	upper := false
	for _, c := range []byte(name) {
		if c >= 0x80 {
			ascii, err := toASCII(name)
			if err != nil {
				return ""
			}
			return wellFormedOrNone(strings.TrimSuffix(ascii, "."))
		}
		upper = upper || c >= 'A' && c <= 'Z'
	}
	if upper {
		name = strings.ToLower(name)
	}
	return wellFormedOrNone(strings.TrimSuffix(name, "."))
}

func wellFormedOrNone(name string) string {
	if !wellFormed(name) {
		return ""
	}
	return name
}

// wellFormed tells whether a name has labels of lower-case letters, digits,
// hyphens and underscores, and none that is empty or too long.
func wellFormed(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	label := 0
	for _, c := range []byte(name) {
		switch {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
		if label++; label > maxLabel {
			return false
		}
	}
	return label > 0
}

// isPortNumber tells whether this is a port as it may stand behind a host's name:
// digits, or nothing at all (RFC 3986, 3.2.3).
func isPortNumber(s string) bool { return len(s) <= 5 && strings.Trim(s, "0123456789") == "" }
