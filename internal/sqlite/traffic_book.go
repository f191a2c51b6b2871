package sqlite

import (
	"context"
	"database/sql"
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
	links    map[string]*linkBook  // by name
	accounts map[string]*account   // by the quota's ID
}

// guestBook is a row of traffic_guest.
type guestBook struct {
	row int64
	TrafficGuest
	seen bool // it is in the sample that is being entered
}

// linkBook is a row of traffic_link with its rows of traffic_mark.
type linkBook struct {
	row         int64 // 0 while it has none
	guest       int64
	seen, total tally
	marks       [steps]tally
	// What is to be written.
	dirty  bool
	marked [steps]bool
}

// reset gives the link to another guest.
func (l *linkBook) reset(guest int64) {
	l.guest, l.total, l.marks, l.dirty = guest, tally{}, [steps]tally{}, true
	l.marked = [steps]bool{true, true, true, true}
}

// loadBook reads all of the book but guests, which are read when they are met.
func loadBook(ctx context.Context, tx *sql.Tx) (*book, error) {
	b := &book{guests: map[string]*guestBook{}, links: map[string]*linkBook{}, accounts: map[string]*account{}}
	var at int64
	err := tx.QueryRowContext(ctx, "SELECT at, uptime, steady, epoch, boot, five, hour, day, month FROM traffic_state").
		Scan(&at, &b.uptime, &b.steady, &b.epoch, &b.boot, &b.open[0], &b.open[1], &b.open[2], &b.open[3])
	if err != nil {
		return nil, err
	}
	b.at = time.Unix(0, at)
	byRow := map[int64]*linkBook{}
	err = each(ctx, tx, func(rows *sql.Rows) error {
		var name string
		var seen, total []byte
		l := &linkBook{}
		if err := rows.Scan(&l.row, &name, &l.guest, &seen, &total); err != nil {
			return err
		}
		b.links[name], byRow[l.row] = l, l
		if err := l.seen.decode(seen); err != nil {
			return err
		}
		return l.total.decode(total)
	}, "SELECT id, link, guest, seen, total FROM traffic_link")
	if err != nil {
		return nil, err
	}
	err = each(ctx, tx, func(rows *sql.Rows) error {
		var step, link int64
		var total []byte
		if err := rows.Scan(&step, &link, &total); err != nil {
			return err
		}
		l := byRow[link]
		if l == nil || step < 1 || step > steps {
			return errTally
		}
		return l.marks[step-1].decode(total)
	}, "SELECT step, link, total FROM traffic_mark")
	if err != nil {
		return nil, err
	}
	return b, loadAccounts(ctx, tx, b.accounts)
}

// guest returns the row of a guest, made or brought up to date.
func (b *book) guest(ctx context.Context, tx *sql.Tx, g TrafficGuest, now time.Time) (int64, error) {
	g.Link = ""
	known := b.guests[g.ID]
	if known == nil || known.TrafficGuest != g {
		known = &guestBook{TrafficGuest: g}
		err := tx.QueryRowContext(ctx, `INSERT INTO traffic_guest (guest, name, tenant, since) VALUES (?, ?, ?, ?)
			ON CONFLICT (guest) DO UPDATE SET name = excluded.name, tenant = excluded.tenant RETURNING id`,
			g.ID, g.Name, g.Tenant, now.Unix()).Scan(&known.row)
		if err != nil {
			return 0, err
		}
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
	if err := b.saveMarks(ctx, tx); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE traffic_state SET at = ?, uptime = ?, steady = ?, epoch = ?, boot = ?, five = ?, hour = ?, day = ?, month = ?",
		b.at.UnixNano(), b.uptime, b.steady, b.epoch, b.boot, b.open[0], b.open[1], b.open[2], b.open[3])
	return err
}

func (b *book) saveLinks(ctx context.Context, tx *sql.Tx) error {
	update, err := tx.PrepareContext(ctx, "UPDATE traffic_link SET guest = ?, seen = ?, total = ? WHERE id = ?")
	if err != nil {
		return err
	}
	defer func() { _ = update.Close() }()
	for name, l := range b.links {
		switch {
		case !l.dirty:
			continue
		case l.guest == nobody && l.seen == (tally{}):
			// Nobody's, and nothing to remember of it.
			delete(b.links, name)
			for _, statement := range []string{"DELETE FROM traffic_mark WHERE step BETWEEN 1 AND 4 AND link = ?", "DELETE FROM traffic_link WHERE id = ?"} {
				if _, err := tx.ExecContext(ctx, statement, l.row); err != nil {
					return err
				}
			}
		case l.row == 0:
			err = tx.QueryRowContext(ctx, "INSERT INTO traffic_link (link, guest, seen, total) VALUES (?, ?, ?, ?) RETURNING id",
				name, l.guest, l.seen.encode(), l.total.encode()).Scan(&l.row)
		default:
			_, err = update.ExecContext(ctx, l.guest, l.seen.encode(), l.total.encode(), l.row)
		}
		if err != nil {
			return err
		}
		l.dirty = false
	}
	return nil
}

func (b *book) saveMarks(ctx context.Context, tx *sql.Tx) error {
	replace, err := tx.PrepareContext(ctx, "INSERT OR REPLACE INTO traffic_mark (step, link, total) VALUES (?, ?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = replace.Close() }()
	for _, l := range b.links {
		for step := range l.marks {
			if !l.marked[step] {
				continue
			}
			if _, err := replace.ExecContext(ctx, step+1, l.row, l.marks[step].encode()); err != nil {
				return err
			}
			l.marked[step] = false
		}
	}
	return nil
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
