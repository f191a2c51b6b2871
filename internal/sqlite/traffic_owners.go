package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"sublet/internal/vps"
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
	known := map[string]int{} // places by ID
	err := db.view(ctx, func(tx *sql.Tx) error {
		return each(ctx, tx, func(rows *sql.Rows) error {
			var o TrafficOwner
			var since int64
			if err := rows.Scan(&o.ID, &o.Name, &o.Tenant, &since); err != nil {
				return err
			}
			if at, ok := known[o.ID]; ok { // of another tenant by now
				owners[at].TrafficGuest = o.TrafficGuest
				return nil
			}
			if since != 0 {
				o.Since = time.Unix(since, 0).UTC()
			}
			known[o.ID] = len(owners)
			owners = append(owners, o)
			return nil
		}, "SELECT guest, name, tenant, since FROM traffic_guest ORDER BY id")
	})
	return owners, err
}

// keepGuest brings a guest's row up to date and returns it. Without one, and
// for another tenant than that of the last one, there is a new row. A row of
// which it is not known when its tenant was made is his only as in ofTenant: what
// is older than he is may be another's.
func keepGuest(ctx context.Context, tx *sql.Tx, g TrafficGuest, tenantMade int64, now time.Time) (row int64, err error) {
	var last TrafficGuest
	var made, since int64
	err = tx.QueryRowContext(ctx, "SELECT id, name, tenant, tenant_made, since FROM traffic_guest WHERE guest = ? ORDER BY id DESC LIMIT 1", g.ID).
		Scan(&row, &last.Name, &last.Tenant, &made, &since)
	switch {
	case err == nil && last.Tenant == g.Tenant && made == tenantMade && last.Name == g.Name:
		return row, nil
	case err == nil && last.Tenant == g.Tenant && (made == tenantMade || made == 0 && since >= tenantMade/int64(time.Second)):
		_, err = tx.ExecContext(ctx, "UPDATE traffic_guest SET name = ?, tenant_made = ? WHERE id = ?", g.Name, tenantMade, row)
	case err == nil || errors.Is(err, sql.ErrNoRows):
		err = tx.QueryRowContext(ctx, "INSERT INTO traffic_guest (guest, name, tenant, tenant_made, since) VALUES (?, ?, ?, ?, ?) RETURNING id",
			g.ID, g.Name, g.Tenant, tenantMade, now.Unix()).Scan(&row)
	}
	return row, err
}

// ofTenant is the condition for rows of traffic_guest that are a tenant's: its
// name, and when it was made in nanoseconds and in seconds, are the parameters
// (tenantParameters). Rows of which that is not known are his when they are
// younger than he is.
const ofTenant = "tenant = ? AND (tenant_made = ? OR tenant_made = 0 AND since >= ?)"

func tenantParameters(name string, made time.Time) []any {
	ns := nanoseconds(made)
	return []any{name, ns, ns / int64(time.Second)}
}

// guestRows returns rows of traffic_guest, and who they are. Nil IDs and a nil
// tenant mean all.
func guestRows(ctx context.Context, tx *sql.Tx, ids []string, tenant *vps.Tenant) (rows []guestBook, err error) {
	query, args := "SELECT id, guest, name, tenant, tenant_made FROM traffic_guest WHERE TRUE", []any(nil)
	if ids != nil {
		list, err := json.Marshal(ids)
		if err != nil {
			return nil, err
		}
		query, args = query+" AND guest IN (SELECT value FROM json_each(?))", append(args, string(list))
	}
	if tenant != nil {
		query, args = query+" AND "+ofTenant, append(args, tenantParameters(tenant.Name, tenant.Created)...)
	}
	err = each(ctx, tx, func(r *sql.Rows) error {
		var g guestBook
		err := r.Scan(&g.row, &g.ID, &g.Name, &g.Tenant, &g.tenantMade)
		rows = append(rows, g)
		return err
	}, query+" ORDER BY id", args...)
	return rows, err
}
