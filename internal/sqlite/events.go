package sqlite

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"sublet/internal/vps"
)

// The number of events that Events returns when none is asked for, and at
// most.
const (
	DefaultEvents = 100
	MaxEvents     = 1000
)

// EventQuery selects events.
type EventQuery struct {
	// Guest is a guest's name; empty means all events, also those of no guest.
	Guest string
	// After is an event's ID. 0 asks for the newest events. Any other value
	// asks for the first ones after it, so that a caller who goes on from the
	// last ID he saw misses none, however many there are.
	After int64
	// Limit is the largest number wanted: 0 means DefaultEvents, and more than
	// MaxEvents counts as MaxEvents.
	Limit int
}

// AddEvent writes an event down and returns it with its ID, which grows from
// event to event. An event without a time gets the present. Beyond 20,000
// events the oldest is dropped for each new one.
func (db *DB) AddEvent(ctx context.Context, ev vps.Event) (vps.Event, error) {
	err := db.change(ctx, func(ctx context.Context, tx *sql.Tx) error { return db.addEvent(ctx, tx, &ev) })
	if err != nil {
		return vps.Event{}, err
	}
	return ev, nil
}

func (db *DB) addEvent(ctx context.Context, tx *sql.Tx, ev *vps.Event) error {
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	ev.Time = ev.Time.UTC().Round(0)
	err := tx.QueryRowContext(ctx, "INSERT INTO event (time, guest, kind, message) VALUES (?, ?, ?, ?) RETURNING id",
		ev.Time.UnixNano(), ev.Guest, ev.Kind, ev.Message).Scan(&ev.ID)
	if err != nil {
		return err
	}
	// IDs have no gaps: AUTOINCREMENT is rolled back with its transaction.
	_, err = tx.ExecContext(ctx, "DELETE FROM event WHERE id <= ?", ev.ID-db.keep.events)
	return err
}

// Events returns events in the order they happened.
func (db *DB) Events(ctx context.Context, q EventQuery) ([]vps.Event, error) {
	if q.Limit < 0 || q.After < 0 {
		return nil, vps.Errorf(vps.CodeInvalid, "the limit and the first event must not be negative")
	}
	if q.Limit == 0 {
		q.Limit = DefaultEvents
	}
	// Only one of these four is built, so that each finds its index.
	query := "SELECT id, time, guest, kind, message FROM event WHERE id > ?1 AND ?2 = ''"
	if q.Guest != "" {
		query = "SELECT id, time, guest, kind, message FROM event WHERE id > ?1 AND guest = ?2"
	}
	if q.After == 0 {
		query += " ORDER BY id DESC LIMIT ?3"
	} else {
		query += " ORDER BY id LIMIT ?3"
	}
	rows, err := db.read.QueryContext(ctx, query, q.After, q.Guest, min(q.Limit, MaxEvents))
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var events []vps.Event
	for rows.Next() {
		var ev vps.Event
		var nanos int64
		if err := rows.Scan(&ev.ID, &nanos, &ev.Guest, &ev.Kind, &ev.Message); err != nil {
			return nil, db.explain(err)
		}
		ev.Time = time.Unix(0, nanos).UTC()
		events = append(events, ev)
	}
	if err := rows.Err(); err != nil {
		return nil, db.explain(err)
	}
	if q.After == 0 {
		slices.Reverse(events)
	}
	return events, nil
}
