package sqlite

import (
	"context"
	"database/sql"
	"time"

	"sublet/internal/vps"
)

// How long samples of disks are kept: those of hours for as long as a
// forecast looks back, those of days for two years. A filesystem takes at most
// 15*24 + 2*365 rows of some 70 bytes.
const (
	hours    = int64(3600)
	days     = 24 * hours
	keepHour = 15 * days
	keepDay  = 2 * 365 * days
)

// DiskLevel is the threshold in percent that a filesystem was last told to
// have reached, 0 for none. What is "blocks" or "inodes".
type DiskLevel struct {
	GuestID string
	Disk    string
	Part    int
	What    string
	Level   int
}

// AddDiskSamples keeps samples: each takes the place of what is there of the
// same filesystem in the same hour, and in the same day. What is too old, and
// what belongs to a guest that known does not know, is dropped.
func (db *DB) AddDiskSamples(ctx context.Context, samples []vps.DiskSample, known func(guestID string) bool) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, s := range samples {
			at := s.At.Unix()
			for _, step := range []struct{ length, keep int64 }{{hours, keepHour}, {days, keepDay}} {
				_, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO disk_sample (guest, disk, part, step, time, at, used, available, allocated, inodes, free_inodes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
					s.GuestID, s.Disk, s.Part, step.length, at-at%step.length, at, s.Used, s.Available, s.Allocated, int64(s.Inodes), int64(s.FreeInodes))
				if err != nil {
					return err
				}
				_, err = tx.ExecContext(ctx, "DELETE FROM disk_sample WHERE guest = ? AND disk = ? AND part = ? AND step = ? AND time < ?", s.GuestID, s.Disk, s.Part, step.length, at-step.keep)
				if err != nil {
					return err
				}
			}
		}
		return forgetDisks(ctx, tx, known)
	})
}

// forgetDisks drops what belongs to guests that are gone.
func forgetDisks(ctx context.Context, tx *sql.Tx, known func(guestID string) bool) error {
	rows, err := tx.QueryContext(ctx, "SELECT DISTINCT guest FROM disk_sample UNION SELECT DISTINCT guest FROM disk_level")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var gone []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return err
		}
		if !known(id) {
			gone = append(gone, id)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, id := range gone {
		for _, statement := range []string{"DELETE FROM disk_sample WHERE guest = ?", "DELETE FROM disk_level WHERE guest = ?"} {
			if _, err := tx.ExecContext(ctx, statement, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// DiskSamples returns the samples of a guest's filesystems since a time, those
// of days before those of hours begin, each filesystem's oldest first.
func (db *DB) DiskSamples(ctx context.Context, guestID string, since time.Time) ([]vps.DiskSample, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT disk, part, at, used, available, allocated, inodes, free_inodes FROM disk_sample s
		WHERE guest = ?1 AND at >= ?2 AND (step = ?3 OR time + ?4 <= (
			SELECT min(time) FROM disk_sample h WHERE h.guest = ?1 AND h.disk = s.disk AND h.part = s.part AND h.step = ?3))
		ORDER BY disk, part, at`, guestID, since.Unix(), hours, days)
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var samples []vps.DiskSample
	for rows.Next() {
		s := vps.DiskSample{GuestID: guestID}
		var at, inodes, free int64
		if err := rows.Scan(&s.Disk, &s.Part, &at, &s.Used, &s.Available, &s.Allocated, &inodes, &free); err != nil {
			return nil, db.explain(err)
		}
		s.At, s.Inodes, s.FreeInodes = time.Unix(at, 0).UTC(), uint64(inodes), uint64(free)
		samples = append(samples, s)
	}
	if err := rows.Err(); err != nil {
		return nil, db.explain(err)
	}
	return samples, nil
}

// DiskLevels returns all levels that are not 0.
func (db *DB) DiskLevels(ctx context.Context) ([]DiskLevel, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT guest, disk, part, what, level FROM disk_level")
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var levels []DiskLevel
	for rows.Next() {
		var l DiskLevel
		if err := rows.Scan(&l.GuestID, &l.Disk, &l.Part, &l.What, &l.Level); err != nil {
			return nil, db.explain(err)
		}
		levels = append(levels, l)
	}
	if err := rows.Err(); err != nil {
		return nil, db.explain(err)
	}
	return levels, nil
}

// SetDiskLevel keeps a level, and with it the event that tells of it, nil for
// none: either both are kept or neither, so that people are told once.
func (db *DB) SetDiskLevel(ctx context.Context, l DiskLevel, ev *vps.Event) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		statement, args := "INSERT OR REPLACE INTO disk_level (guest, disk, part, what, level) VALUES (?, ?, ?, ?, ?)", []any{l.GuestID, l.Disk, l.Part, l.What, l.Level}
		if l.Level == 0 {
			statement, args = "DELETE FROM disk_level WHERE guest = ? AND disk = ? AND part = ? AND what = ?", args[:4]
		}
		if _, err := tx.ExecContext(ctx, statement, args...); err != nil {
			return err
		}
		if ev == nil {
			return nil
		}
		return db.addEvent(ctx, tx, ev)
	})
}
