package daemon

import (
	"bytes"
	"context"
	"io"
	"time"

	"sublet/internal/edge"
	"sublet/internal/web"
)

const (
	// pageAccess is how much of an access log a page shows: the newest lines of so
	// many bytes.
	pageAccess = 1 << 20
	// longestAccess bounds a line: four fields of 4 KiB, each byte of which may be
	// written as six.
	longestAccess = 128 << 10
)

// AccessLog implements web.Backend.
func (p pages) AccessLog(_ context.Context, g web.Guest, lines int, w io.Writer) error {
	_, err := p.backend.accessLog(g.ID).last(lines, pageAccess, &accessLines{since: g.Since, to: w})
	return err
}

// accessLines passes on the lines of calls that began at a time or later. Who writes
// access logs may be in strangers' hands: what is no such line is left out, and so is
// what is not printable ASCII. A last line that has no end yet is left out, too.
type accessLines struct {
	since time.Time
	to    io.Writer
	part  []byte // of a line that goes on
	long  bool   // the line is longer than any, and none
}

func (a *accessLines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		text := p
		if end >= 0 {
			text = p[:end]
		}
		if a.long = a.long || len(a.part)+len(text) > longestAccess; !a.long {
			a.part = append(a.part, text...)
		}
		if end < 0 {
			break
		}
		p = p[end+1:]
		if err := a.line(); err != nil {
			return 0, err
		}
		a.part, a.long = a.part[:0], false
	}
	return n, nil
}

// line passes on the line that has just ended, if it is to be.
func (a *accessLines) line() error {
	at, ok := edge.LineTime(a.part)
	if a.long || !ok || at.Before(a.since) {
		return nil
	}
	for i, c := range a.part {
		if c < ' ' || c > '~' {
			a.part[i] = '?'
		}
	}
	_, err := a.to.Write(append(a.part, '\n'))
	return err
}
