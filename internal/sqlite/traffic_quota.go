package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"sublet/internal/vps"
)

// account is what a quota has counted in its month.
type account struct {
	// guest is the ID of the guest that a guest's quota has counted: another
	// one of the same name starts anew.
	guest string
	start int64
	flow
}

// settleQuotas brings the accounts of the sample's quotas up to date, after
// its traffic was entered, and returns them in their order.
func (e *entry) settleQuotas(ctx context.Context) ([]vps.QuotaAccount, error) {
	var whose map[string]members
	if len(e.sample.Quotas) > 0 {
		whose = e.members()
	}
	wanted := make(map[string]bool, len(e.sample.Quotas))
	changed, periods := false, periods{}
	accounts := make([]vps.QuotaAccount, 0, len(e.sample.Quotas))
	for i := range e.sample.Quotas {
		q := &e.sample.Quotas[i]
		id := q.ID()
		wanted[id] = true
		start, end := periods.of(q, e.at)
		m := whose[id]
		a := e.accounts[id]
		var more flow
		if a == nil || a.start != start.Unix() || a.guest != m.guest {
			// New, of another month, or with another reset day or zone: the
			// history knows it, and for a month that begins now it has nothing.
			sum, err := e.flowIn(ctx, start, end, q, m)
			if err != nil {
				return nil, err
			}
			a = &account{guest: m.guest, start: start.Unix()}
			e.accounts[id], more, changed = a, sum, true
		} else if !e.moment.Before(start) {
			for _, row := range m.rows {
				more = more.plus(e.flows[row])
			}
		}
		a.flow, changed = a.plus(more), changed || more != flow{}
		accounts = append(accounts, a.of(id))
	}
	for id := range e.accounts {
		if !wanted[id] {
			delete(e.accounts, id)
			changed = true
		}
	}
	if !changed {
		return accounts, nil
	}
	return accounts, saveAccounts(ctx, e.tx, e.accounts)
}

// periods are the months of quotas at one moment. Most have the same, and to
// find one takes longer than all else that is done for a quota.
type periods map[monthOf][2]time.Time

// monthOf is what a quota's month depends on.
type monthOf struct {
	resetDay int
	timezone string
}

func (p periods) of(q *vps.Quota, at time.Time) (start, end time.Time) {
	key := monthOf{q.ResetDay, q.Timezone}
	month, ok := p[key]
	if !ok {
		month[0], month[1] = q.Period(at)
		p[key] = month
	}
	return month[0], month[1]
}

func (a *account) of(id string) vps.QuotaAccount {
	return vps.QuotaAccount{ID: id, Start: time.Unix(a.start, 0).UTC(), In: a.in, Out: a.out}
}

// members are whose traffic a quota counts now.
type members struct {
	guest string // the ID, for a guest's quota
	rows  []int64
}

// members returns whose traffic each possible quota counts, by its ID.
func (e *entry) members() map[string]members {
	all := make(map[string]members, len(e.sample.Guests))
	all[(&vps.Quota{Scope: vps.QuotaHost}).ID()] = members{rows: []int64{hostRow}}
	for _, g := range e.sample.Guests {
		row := e.guests[g.ID].row
		all[(&vps.Quota{Scope: vps.QuotaGuest, Name: g.Name}).ID()] = members{guest: g.ID, rows: []int64{row}}
		tenant := (&vps.Quota{Scope: vps.QuotaTenant, Name: g.Tenant}).ID()
		all[tenant] = members{rows: append(all[tenant].rows, row)}
	}
	return all
}

// flowIn returns what a quota has counted in a month, by the history, as
// exactly as that is there. For a tenant it is that of all guests while they
// were his.
func (e *entry) flowIn(ctx context.Context, start, end time.Time, q *vps.Quota, m members) (sum flow, err error) {
	rows, pick := m.rows, vps.TrafficClass.Billed
	switch q.Scope {
	case vps.QuotaHost:
		pick = func(c vps.TrafficClass) bool { return c == vps.TrafficUplink }
	case vps.QuotaTenant:
		rows, err = e.rowsOf(ctx, nil, &vps.Tenant{Name: q.Name, Created: e.sample.Tenants[q.Name]})
	case vps.QuotaGuest:
		if m.guest != "" {
			rows, err = e.rowsOf(ctx, []string{m.guest}, nil)
		}
	}
	if err != nil {
		return sum, err
	}
	if len(rows) == 0 {
		return sum, nil
	}
	add := func(_, _ int64, counts *tally) { sum = sum.plus(counts.flow(pick)) }
	for _, w := range parts(start, end, e.sample.Zone) {
		w.guests = rows
		if err := w.each(ctx, e.tx, add); err != nil {
			return sum, err
		}
		if w.table == countTable {
			e.addRunning(w, add)
		}
	}
	return sum, nil
}

// rowsOf returns the rows of guests, or of a tenant's guests while they were his.
func (e *entry) rowsOf(ctx context.Context, ids []string, tenant *vps.Tenant) ([]int64, error) {
	guests, err := guestRows(ctx, e.tx, ids, tenant)
	rows := make([]int64, len(guests))
	for i := range guests {
		rows[i] = guests[i].row
	}
	return rows, err
}

// parts are the parts of the history that make up a month: hours, before the
// first whole one 5 minutes, and whole days of what was imported.
func parts(start, end time.Time, zone *time.Location) []scan {
	from, until := start.Unix(), end.Unix()
	windows := []scan{
		{table: importTable, step: stepNumber(vps.StepDay), from: from, until: until},
		{table: countTable, step: stepNumber(vps.StepHour), from: from, until: until},
	}
	if hour := vps.StepHour.Begin(start, zone); !hour.Equal(start) {
		windows = append(windows, scan{table: countTable, step: stepNumber(vps.StepFiveMinutes), from: from, until: vps.StepHour.End(hour, zone).Unix()})
	}
	return windows
}

// addRunning adds what the step that runs has so far, as the book knows it.
func (e *entry) addRunning(w scan, add func(begin, guest int64, counts *tally)) {
	begin := e.open[w.step-1]
	if begin < w.from || begin >= w.until {
		return
	}
	wanted := map[int64]bool{}
	for _, row := range w.guests {
		wanted[row] = true
	}
	for _, l := range e.links {
		if wanted[l.guest] {
			amount := l.total.since(&l.marks[w.step-1])
			add(begin, l.guest, &amount)
		}
	}
}

// saveAccounts writes all accounts: of each the lengths and texts of quota and
// guest, the start, and the bytes in and out, as uvarints.
func saveAccounts(ctx context.Context, tx *sql.Tx, accounts map[string]*account) error {
	blob := []byte{}
	for id, a := range accounts {
		for _, text := range [...]string{id, a.guest} {
			blob = append(binary.AppendUvarint(blob, uint64(len(text))), text...)
		}
		for _, v := range [...]int64{a.start, a.in, a.out} {
			blob = binary.AppendUvarint(blob, uint64(v))
		}
	}
	_, err := tx.ExecContext(ctx, "UPDATE quota_account SET accounts = ?", blob)
	return err
}

// loadAccounts reads what saveAccounts wrote.
func loadAccounts(ctx context.Context, tx *sql.Tx) (map[string]*account, error) {
	var blob []byte
	if err := tx.QueryRowContext(ctx, "SELECT accounts FROM quota_account").Scan(&blob); err != nil {
		return nil, err
	}
	accounts := map[string]*account{}
	r := pageReader{page: blob}
	for r.more() {
		id := r.text()
		accounts[id] = &account{guest: r.text(), start: r.number(), flow: flow{r.number(), r.number()}}
	}
	return accounts, r.err
}

// QuotaAccounts returns what the last sample left in each quota's account,
// sorted by the quotas' IDs.
func (db *DB) QuotaAccounts(ctx context.Context) (all []vps.QuotaAccount, err error) {
	err = db.view(ctx, func(tx *sql.Tx) error {
		accounts, err := loadAccounts(ctx, tx)
		for _, id := range slices.Sorted(maps.Keys(accounts)) {
			all = append(all, accounts[id].of(id))
		}
		return err
	})
	return all, err
}
