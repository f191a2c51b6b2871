package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
)

// pageSize is how many guests, or links, share a row: those whose number
// divided by it is the same.
const pageSize = 16

// errPage is of bytes that are no page.
var errPage = errors.New("counts of traffic are damaged")

// appendCounts adds to a page what a guest, or a link, has: its number and a
// tally. Nothing is not written.
func appendCounts(page []byte, number int64, counts *tally) []byte {
	if *counts == (tally{}) {
		return page
	}
	return counts.append(binary.AppendUvarint(page, uint64(number)))
}

// readCounts calls do for all that is on a page, with its tally in counts.
func readCounts(page []byte, counts *tally, do func(number int64, counts *tally)) error {
	r := pageReader{page: page}
	for r.more() {
		number := r.number()
		r.tally(counts)
		if r.err == nil {
			do(number, counts)
		}
	}
	return r.err
}

// asSeen stands for a tally that is the one before: it is larger than the number
// of slots that any has.
const asSeen = 127

// append adds a link to a page: its number, the length of its name, the name,
// whose it is, and both tallies.
func (l *linkBook) append(page []byte, name string) []byte {
	page = binary.AppendUvarint(page, uint64(l.row))
	page = binary.AppendUvarint(page, uint64(len(name)))
	page = append(page, name...)
	page = binary.AppendUvarint(page, uint64(l.guest))
	page = l.seen.append(page)
	if l.total == l.seen {
		return append(page, asSeen)
	}
	return l.total.append(page)
}

// eachLink reads all links.
func eachLink(ctx context.Context, tx *sql.Tx, do func(name string, l *linkBook)) error {
	return each(ctx, tx, func(rows *sql.Rows) error {
		var page sql.RawBytes
		if err := rows.Scan(&page); err != nil {
			return err
		}
		r := pageReader{page: page}
		for r.more() {
			l := &linkBook{row: r.number()}
			name := r.text()
			l.guest = r.number()
			r.tally(&l.seen)
			if l.total = l.seen; !r.skip(asSeen) {
				r.tally(&l.total)
			}
			if r.err == nil {
				do(name, l)
			}
		}
		return r.err
	}, "SELECT links FROM traffic_link")
}

// eachMark reads the marks of a step, by its number, or of all for 0.
func eachMark(ctx context.Context, tx *sql.Tx, step int, do func(step int, row int64, total *tally)) error {
	var counts tally
	return each(ctx, tx, func(rows *sql.Rows) error {
		var of int
		var page sql.RawBytes
		if err := rows.Scan(&of, &page); err != nil {
			return err
		}
		return readCounts(page, &counts, func(row int64, total *tally) { do(of, row, total) })
	}, "SELECT step, totals FROM traffic_mark WHERE step = ?1 OR ?1 = 0", step)
}

// pageReader takes a page apart. After its first error all is zero.
type pageReader struct {
	page []byte
	at   int // what is before it was read
	err  error
}

func (r *pageReader) more() bool { return r.at < len(r.page) && r.err == nil }

func (r *pageReader) number() int64 {
	x, n := binary.Uvarint(r.page[r.at:])
	if n <= 0 || r.err != nil {
		r.err = errPage
		return 0
	}
	r.at += n
	return int64(x)
}

// skip goes over a byte if that is what comes.
func (r *pageReader) skip(b byte) bool {
	if !r.more() || r.page[r.at] != b {
		return false
	}
	r.at++
	return true
}

func (r *pageReader) text() string {
	n := r.number()
	if n < 0 || n > int64(len(r.page)-r.at) {
		r.err = errPage
		return ""
	}
	s := string(r.page[r.at : r.at+int(n)])
	r.at += int(n)
	return s
}

func (r *pageReader) tally(t *tally) {
	*t = tally{}
	for range r.number() {
		i := r.number()
		if i < 0 || i >= int64(len(t)) {
			r.err = errPage
			return
		}
		c := &t[i]
		c.InBytes, c.InPackets, c.OutBytes, c.OutPackets = r.number(), r.number(), r.number(), r.number()
		if r.err != nil {
			return
		}
	}
}
