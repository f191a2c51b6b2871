package cli

import (
	"bytes"
	"io"
)

// plainWriter passes text on to a terminal without what could command it: a
// guest's root decides what is in its log, and whoever reads it later is the
// host's root. Line feeds, tabs and colours (SGR, ECMA-48 8.3.117) stay.
type plainWriter struct {
	w     io.Writer
	state plainState
	// seq holds an escape sequence until it is known to be a colour.
	seq []byte
}

type plainState int

const (
	plainText   plainState = iota
	plainEscape            // behind ESC
	plainCSI               // behind ESC [
	plainString            // in OSC, DCS, SOS, PM or APC, up to BEL or ST
	plainStringEscape
	plainC2 // behind the first byte of U+0080 to U+00BF
)

// maxSequence bounds what a colour may look like.
const maxSequence = 32

// Write passes p on, less the sequences. It reports all of p as written
// unless the terminal fails.
func (p *plainWriter) Write(text []byte) (int, error) {
	out := make([]byte, 0, len(text))
	for _, c := range text {
		out = p.step(out, c)
	}
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}

func (p *plainWriter) step(out []byte, c byte) []byte {
	switch p.state {
	case plainText:
		switch {
		case c == 0x1b:
			p.state = plainEscape
		case c == 0xc2:
			p.state = plainC2
		case c == '\n' || c == '\t' || c >= ' ' && c != 0x7f:
			out = append(out, c)
		}
	case plainC2:
		// U+0080 to U+009F are the C1 controls, which terminals obey too.
		p.state = plainText
		if c > 0x9f {
			out = append(out, 0xc2, c)
		} else if c < 0x80 {
			return p.step(out, c)
		}
	case plainEscape:
		switch c {
		case '[':
			p.state, p.seq = plainCSI, append(p.seq[:0], 0x1b, '[')
		case ']', 'P', 'X', '^', '_':
			p.state = plainString
		default:
			if c < 0x20 || c > 0x2f { // intermediate bytes go on
				p.state = plainText
			}
		}
	case plainCSI:
		p.seq = append(p.seq, c)
		switch {
		case c == 'm':
			// With a private marker, as in ESC [ > 4 m, it is no colour.
			if len(bytes.Trim(p.seq[2:], "0123456789;:")) == 1 {
				out = append(out, p.seq...)
			}
			p.state = plainText
		case c >= 0x40 || c < 0x20:
			p.state = plainText
		case len(p.seq) > maxSequence:
			p.state = plainText
		}
	case plainString:
		switch c {
		case 0x07:
			p.state = plainText
		case 0x1b:
			p.state = plainStringEscape
		case '\n': // a string that never ended; text must not vanish for good
			p.state = plainText
			out = append(out, c)
		}
	case plainStringEscape:
		p.state = plainText
		if c != '\\' {
			p.state = plainEscape
			return p.step(out, c)
		}
	}
	return out
}
