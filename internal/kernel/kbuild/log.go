package kbuild

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// keptLines is how many of the last lines of a log are looked through when a
// build fails; shownLines is how many a user gets to see.
const (
	keptLines  = 200
	shownLines = 12
	// longestLine is cut in what is kept: a line of a linker may have a megabyte.
	longestLine = 400
)

// tail passes a log on and remembers how it ends. It is safe for concurrent
// use: several programs of a build write to it.
type tail struct {
	w io.Writer

	mu    sync.Mutex
	lines []string
	part  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, more, ended := bytes.Cut(rest, []byte("\n"))
		if room := longestLine - len(t.part); room > 0 {
			t.part = append(t.part, line[:min(room, len(line))]...)
		}
		if ended {
			t.lines = append(t.lines, string(t.part))
			t.part = t.part[:0]
			if len(t.lines) > 2*keptLines {
				t.lines = slices.Clone(t.lines[len(t.lines)-keptLines:])
			}
		}
		rest = more
	}
	if t.w == nil {
		return len(p), nil
	}
	return t.w.Write(p)
}

// blame finds the lines that say why a program failed.
var blame = regexp.MustCompile(`(?i)\berror\b|\*\*\*|undefined reference|no such file|not found|cannot|fatal|killed`)

// relevant returns what of the end of the log a user should see: from the first
// line that says what is wrong, among the last that were kept.
func (t *tail) relevant() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := t.lines
	if len(t.part) > 0 {
		lines = append(slices.Clone(lines), string(t.part))
	}
	lines = lines[max(0, len(lines)-keptLines):]
	if first := slices.IndexFunc(lines, blame.MatchString); first >= 0 {
		lines = lines[first:min(first+shownLines, len(lines))]
	} else {
		lines = lines[max(0, len(lines)-shownLines):]
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

// lineWriter passes on what is written and shows each line to a function.
type lineWriter struct {
	w    io.Writer
	line func(string)
	part []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, more, ended := bytes.Cut(rest, []byte("\n"))
		if room := longestLine - len(l.part); room > 0 {
			l.part = append(l.part, line[:min(room, len(line))]...)
		}
		if ended {
			l.line(string(l.part))
			l.part = l.part[:0]
		}
		rest = more
	}
	return l.w.Write(p)
}
