package sqlite

import (
	"context"
	"database/sql"

	"sublet/internal/vps"
)

// ProofNews is what is told of a change of a proof.
type ProofNews struct {
	Event   vps.Event
	Notices []AddressedNotice
}

// Proofs returns what is known of all names, in no order.
func (db *DB) Proofs(ctx context.Context) ([]vps.Proof, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT name, tenant, tenant_made, since, proved, method, checked, message, failing, failures FROM domain_proof")
	if err != nil {
		return nil, db.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var all []vps.Proof
	for rows.Next() {
		var p vps.Proof
		var made, since, proved, checked, failing int64
		if err := rows.Scan(&p.Name, &p.Tenant, &made, &since, &proved, &p.Method, &checked, &p.Message, &failing, &p.Failures); err != nil {
			return nil, db.explain(err)
		}
		p.TenantCreated, p.Since, p.Proved, p.Checked, p.Failing = instant(made), instant(since), instant(proved), instant(checked), instant(failing)
		all = append(all, p)
	}
	return all, db.explain(rows.Err())
}

// KeepProof writes down what is known of a name, in place of what was, in one
// transaction with what is told of it; nil for nothing.
func (db *DB) KeepProof(ctx context.Context, p vps.Proof, news *ProofNews) error {
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO domain_proof (name, tenant, tenant_made, since, proved, method, checked, message, failing, failures)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			p.Name, p.Tenant, nanoseconds(p.TenantCreated), nanoseconds(p.Since), nanoseconds(p.Proved), p.Method, nanoseconds(p.Checked), p.Message, nanoseconds(p.Failing), p.Failures)
		if err != nil || news == nil {
			return err
		}
		if err := db.addEvent(ctx, tx, &news.Event); err != nil {
			return err
		}
		for _, n := range news.Notices {
			if err := db.addNotice(ctx, tx, n.Notice, n.To); err != nil {
				return err
			}
		}
		return nil
	})
}

// ForgetProofs removes what is known of names, in one transaction. What is gone
// already is no error.
func (db *DB) ForgetProofs(ctx context.Context, proofs []vps.Proof) error {
	if len(proofs) == 0 {
		return nil
	}
	return db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, p := range proofs {
			if _, err := tx.ExecContext(ctx, "DELETE FROM domain_proof WHERE name = ? AND tenant = ? AND tenant_made = ?", p.Name, p.Tenant, nanoseconds(p.TenantCreated)); err != nil {
				return err
			}
		}
		return nil
	})
}
