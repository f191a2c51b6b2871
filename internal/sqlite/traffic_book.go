package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"sublet/internal/vps"
)

// Rows of traffic_guest that are no guests'.
const (
	nobody  int64 = 0 // there is no such row
	hostRow int64 = 1 // the host itself
)

// steps is the number of vps.TrafficSteps.
const steps = 4

// book is the ledger but for its history: what the next sample starts from.
type book struct {
	// at is when the last sample was taken, by the wall clock; in the process
	// that took it it has the monotonic clock. Uptime is the same since boot,
	// and steady since when, of the latter, both have agreed.
	at             time.Time
	uptime, steady time.Duration
	epoch, boot    string
	// open are the begins of the steps that run, in seconds since 1970, in the
	// order of vps.TrafficSteps.
	open     [steps]int64
	guests   map[string]*guestBook // by ID: those of the last sample
	lastRow  int64                 // the highest of a link
	links    map[string]*linkBook  // by name
	accounts map[string]*account   // by the quota's ID
}

// guestBook is a row of traffic_guest.
type guestBook struct {
	row int64
	TrafficGuest
	tenantMade int64 // as in the row
	seen       bool  // it is in the sample that is being entered
}

// linkBook is a link in traffic_link and traffic_mark.
type linkBook struct {
	row         int64 // its place there
	guest       int64
	seen, total tally
	marks       [steps]tally
	// owner is who has it in the sample that is being entered, and counted that
	// its counters have been.
	owner   int64
	counted bool
	// What is to be written.
	dirty  bool
	marked [steps]bool
}

// newLink adds a link.
func (b *book) newLink(name string, guest int64) *linkBook {
	b.lastRow++
	l := &linkBook{row: b.lastRow, guest: guest, dirty: true}
	b.links[name] = l
	return l
}

// reset gives the link to another guest.
func (l *linkBook) reset(guest int64) {
	l.guest, l.total, l.marks, l.dirty = guest, tally{}, [steps]tally{}, true
	l.marked = [steps]bool{true, true, true, true}
}

// loadBook reads all of the book but guests, which are read when they are met.
func loadBook(ctx context.Context, tx *sql.Tx) (*book, error) {
	b := &book{guests: map[string]*guestBook{}, links: map[string]*linkBook{}}
	var at int64
	err := tx.QueryRowContext(ctx, "SELECT at, uptime, steady, epoch, boot, five, hour, day, month FROM traffic_state").
		Scan(&at, &b.uptime, &b.steady, &b.epoch, &b.boot, &b.open[0], &b.open[1], &b.open[2], &b.open[3])
	if err != nil {
		return nil, err
	}
	b.at = time.Unix(0, at)
	if err := b.loadLinks(ctx, tx); err != nil {
		return nil, err
	}
	b.accounts, err = loadAccounts(ctx, tx)
	return b, err
}

func (b *book) loadLinks(ctx context.Context, tx *sql.Tx) error {
	byRow := map[int64]*linkBook{}
	err := eachLink(ctx, tx, func(name string, l *linkBook) {
		b.links[name], byRow[l.row] = l, l
		b.lastRow = max(b.lastRow, l.row)
	})
	if err != nil {
		return err
	}
	return eachMark(ctx, tx, 0, func(step int, row int64, total *tally) {
		if l := byRow[row]; l != nil && step >= 1 && step <= steps {
			l.marks[step-1] = *total
		}
	})
}

// guest returns the row of a guest, made or brought up to date.
func (b *book) guest(ctx context.Context, tx *sql.Tx, g TrafficGuest, tenantMade int64, now time.Time) (int64, error) {
	g.Link = ""
	known := b.guests[g.ID]
	if known == nil || known.TrafficGuest != g || known.tenantMade != tenantMade {
		row, err := keepGuest(ctx, tx, g, tenantMade, now)
		if err != nil {
			return 0, err
		}
		known = &guestBook{row: row, TrafficGuest: g, tenantMade: tenantMade}
		b.guests[g.ID] = known
	}
	known.seen = true
	return known.row, nil
}

// forgetGuests drops those that were not in the sample.
func (b *book) forgetGuests() {
	for id, g := range b.guests {
		if !g.seen {
			delete(b.guests, id)
		}
		g.seen = false
	}
}

// save writes what has changed.
func (b *book) save(ctx context.Context, tx *sql.Tx) error {
	if err := b.saveLinks(ctx, tx); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE traffic_state SET at = ?, uptime = ?, steady = ?, epoch = ?, boot = ?, five = ?, hour = ?, day = ?, month = ?",
		b.at.UnixNano(), b.uptime, b.steady, b.epoch, b.boot, b.open[0], b.open[1], b.open[2], b.open[3])
	return err
}

// saveLinks writes the pages on which something has changed.
func (b *book) saveLinks(ctx context.Context, tx *sql.Tx) error {
	pages := make([]bookPage, b.lastRow/pageSize+1)
	for name, l := range b.links {
		p := &pages[l.row/pageSize]
		p.dirty = p.dirty || l.dirty
		for step := range l.marked {
			p.marked[step] = p.marked[step] || l.marked[step]
		}
		if l.dirty && l.guest == nobody && l.seen == (tally{}) {
			delete(b.links, name) // nothing to remember of it
		}
		l.dirty, l.marked = false, [steps]bool{}
	}
	for name, l := range b.links {
		p := &pages[l.row/pageSize]
		if p.dirty {
			p.links = l.append(p.links, name)
		}
		for step := range p.marked {
			if p.marked[step] {
				p.totals[step] = appendCounts(p.totals[step], l.row, &l.marks[step])
			}
		}
	}
	err := writing(ctx, tx, "INSERT OR REPLACE INTO traffic_link (page, links) VALUES (?, ?)", func(write writer) error {
		for page := range pages {
			if p := &pages[page]; p.dirty {
				if err := write(page, notNil(p.links)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return writing(ctx, tx, "INSERT OR REPLACE INTO traffic_mark (step, page, totals) VALUES (?, ?, ?)", func(write writer) error {
		for page := range pages {
			for step, marked := range pages[page].marked {
				if !marked {
					continue
				}
				if err := write(step+1, page, notNil(pages[page].totals[step])); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// bookPage is a page of traffic_link, and those of traffic_mark with the same
// links, by step: whether they are to be written, and with what.
type bookPage struct {
	dirty  bool
	links  []byte
	marked [steps]bool
	totals [steps][]byte
}

// writer runs a statement with values.
type writer func(values ...any) error

// writing has do run one statement many times: to read it takes SQLite longer
// than to follow it.
func writing(ctx context.Context, tx *sql.Tx, statement string, do func(writer) error) (err error) {
	s, err := tx.PrepareContext(ctx, statement)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return do(func(values ...any) error {
		_, err := s.ExecContext(ctx, values...)
		return err
	})
}

// notNil makes an empty value of nil, which would be NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// each reads all rows of a query.
func each(ctx context.Context, tx *sql.Tx, row func(*sql.Rows) error, query string, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// stepNumber is a step's number in the tables: 1 for the shortest.
func stepNumber(step vps.TrafficStep) int {
	for i, s := range vps.TrafficSteps() {
		if s == step {
			return i + 1
		}
	}
	return 0
}
