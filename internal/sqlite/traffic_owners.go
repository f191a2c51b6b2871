package sqlite

import (
	"context"
	"database/sql"
	"time"
)

// TrafficOwner is somebody whose traffic is in the ledger.
type TrafficOwner struct {
	TrafficGuest // without Link; the host itself has no ID and no name
	// Since is when the ledger began to count it; zero when it has not.
	Since time.Time
}

// TrafficOwners returns all guests that the ledger knows, also those that are
// gone, under the name and tenant that they had last, and the host itself,
// in the order in which it met them. Two may have had the same name, one after
// the other.
func (db *DB) TrafficOwners(ctx context.Context) ([]TrafficOwner, error) {
	var owners []TrafficOwner
	err := db.view(ctx, func(tx *sql.Tx) error {
		return each(ctx, tx, func(rows *sql.Rows) error {
			var o TrafficOwner
			var since int64
			if err := rows.Scan(&o.ID, &o.Name, &o.Tenant, &since); err != nil {
				return err
			}
			if since != 0 {
				o.Since = time.Unix(since, 0).UTC()
			}
			owners = append(owners, o)
			return nil
		}, "SELECT guest, name, tenant, since FROM traffic_guest ORDER BY id")
	})
	return owners, err
}
