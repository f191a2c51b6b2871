package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"time"

	"sublet/internal/vps"
)

// AddPageLink keeps a link and returns it with its ID, which no other link has
// or had. At the limit of vps.MaxPageLinks it is vps.CodeConflict.
func (db *DB) AddPageLink(ctx context.Context, l vps.PageLink, hash [sha256.Size]byte) (vps.PageLink, error) {
	err := db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var links int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM page_link").Scan(&links); err != nil {
			return err
		}
		if links >= vps.MaxPageLinks {
			return vps.Errorf(vps.CodeConflict, "there are %d links already; revoke some with `sublet tenant link revoke`", links)
		}
		return tx.QueryRowContext(ctx, "INSERT INTO page_link (tenant, tenant_made, hash, note, made) VALUES (?, ?, ?, ?, ?) RETURNING id",
			l.Tenant, nanoseconds(l.TenantCreated), hash[:], l.Note, nanoseconds(l.Created)).Scan(&l.ID)
	})
	if err != nil {
		return vps.PageLink{}, err
	}
	return l, nil
}

const pageLinkColumns = "id, tenant, tenant_made, note, made"

// PageLink returns the link whose key has this hash, or vps.CodeNotFound.
func (db *DB) PageLink(ctx context.Context, hash [sha256.Size]byte) (vps.PageLink, error) {
	l, err := scanPageLink(db.read.QueryRowContext(ctx, "SELECT "+pageLinkColumns+" FROM page_link WHERE hash = ?", hash[:]).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return l, vps.Errorf(vps.CodeNotFound, "there is no such link")
	}
	return l, db.explain(err)
}

// PageLinks returns all links, the oldest first.
func (db *DB) PageLinks(ctx context.Context) ([]vps.PageLink, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT "+pageLinkColumns+" FROM page_link ORDER BY id")
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var links []vps.PageLink
	for rows.Next() {
		l, err := scanPageLink(rows.Scan)
		if err != nil {
			return nil, db.explain(err)
		}
		links = append(links, l)
	}
	return links, db.explain(rows.Err())
}

// DeletePageLink removes a link, or is vps.CodeNotFound.
func (db *DB) DeletePageLink(ctx context.Context, id int64) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "DELETE FROM page_link WHERE id = ?", id)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return vps.Errorf(vps.CodeNotFound, "there is no link %d; `sublet tenant link list` shows all", id)
	})
}

func scanPageLink(scan func(...any) error) (vps.PageLink, error) {
	var l vps.PageLink
	var tenantMade, made int64
	err := scan(&l.ID, &l.Tenant, &tenantMade, &l.Note, &made)
	l.TenantCreated, l.Created = instant(tenantMade), instant(made)
	return l, err
}

// nanoseconds and instant keep times; 0 stands for the zero time.

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
