package hostfile

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"sublet/internal/vps"
)

// secretKey is the key whose value no message repeats.
const secretKey = "root_password_hash"

// position counts lines and columns (characters) from 1.
type position struct{ line, column int }

// source remembers where in a file each value stands. A nil source, as in a
// File that nobody decoded, knows nothing.
type source struct {
	lines []string
	at    map[string]position
}

func newSource(text string) *source {
	return &source{lines: strings.Split(text, "\n"), at: map[string]position{}}
}

// fail makes an error of vps.CodeInvalid that shows the place. path may be
// empty.
func (s *source) fail(at position, path, format string, args ...any) error {
	return vps.Invalid(path, "%s: %s%s", at, fmt.Sprintf(format, args...), s.excerpt(at))
}

func (p position) String() string { return fmt.Sprintf("line %d, column %d", p.line, p.column) }

// excerpt shows the line with a caret under the column, as two more lines of
// the message. Long lines are cut to a window, and what could steer a
// terminal is replaced.
func (s *source) excerpt(at position) string {
	if at.line < 1 || at.line > len(s.lines) {
		return ""
	}
	line := []rune(s.lines[at.line-1])
	if strings.Contains(string(line), secretKey) || at.column < 1 || at.column > len(line)+1 {
		return ""
	}
	const before, after = 40, 36
	from := max(at.column-1-before, 0)
	to := min(at.column-1+after, len(line))
	var b strings.Builder
	b.WriteString("\n    ")
	for _, r := range line[from:to] {
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	b.WriteString("\n    " + strings.Repeat(" ", at.column-1-from) + "^")
	return b.String()
}

// maxQuoted is how many characters of a value a message repeats.
const maxQuoted = 60

// quote shows a value in a message, cut when it is long.
func quote(s string) string { return fmt.Sprintf("%q", short(s)) }

// short cuts a value that is long.
func short(s string) string {
	if utf8.RuneCountInString(s) > maxQuoted {
		return string([]rune(s)[:maxQuoted]) + "…"
	}
	return s
}
