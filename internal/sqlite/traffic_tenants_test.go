package sqlite

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sublet/internal/vps"
)

var (
	bob   = &vps.Tenant{Name: "bob", Created: time.Date(2026, 10, 1, 0, 0, 0, 1, time.UTC)}
	carol = &vps.Tenant{Name: "carol", Created: time.Date(2026, 10, 2, 0, 0, 0, 2, time.UTC)}
)

// newRented is a host of bob's and carol's, on which bob has alice and web.
func newRented(t *testing.T) *counted {
	t.Helper()
	c := newCounted(t, time.Date(2026, 10, 29, 12, 0, 0, 0, time.UTC))
	c.Tenants = map[string]time.Time{"bob": bob.Created, "carol": carol.Created}
	c.Guests = []TrafficGuest{alice, web}
	c.sample()
	return c
}

// migrated opens the ledger as one in which it was not written down when tenants
// were made.
func (c *counted) migrated() {
	c.t.Helper()
	if _, err := c.db.write.ExecContext(c.t.Context(), "UPDATE traffic_guest SET tenant_made = 0"); err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(c.t.TempDir(), "copy.db")
	if _, err := c.db.write.ExecContext(c.t.Context(), "VACUUM INTO ?", path); err != nil {
		c.t.Fatal(err)
	}
	c.db = openAt(c.t, path)
}

// seen returns what a query has, as "guest in" by guest, in each step alike.
func (c *counted) seen(q vps.TrafficQuery) []string {
	c.t.Helper()
	var seen []string
	for i, step := range vps.TrafficSteps() {
		in := map[string]int64{}
		q.Step = step
		rows, err := c.db.Traffic(c.t.Context(), q)
		if err != nil {
			c.t.Fatal(err)
		}
		var lines []string
		for _, r := range rows {
			in[r.Guest] += r.InBytes
		}
		for guest, n := range in {
			lines = append(lines, fmt.Sprint(guest, " ", n))
		}
		slices.Sort(lines)
		if i > 0 && !slices.Equal(lines, seen) {
			c.t.Errorf("by %s there is %v, by %s %v", step, lines, vps.TrafficSteps()[0], seen)
		}
		seen = lines
	}
	return seen
}

func (c *counted) sees(tenant *vps.Tenant, want ...string) {
	c.t.Helper()
	if got := c.seen(vps.TrafficQuery{Tenant: tenant}); !slices.Equal(got, want) {
		c.t.Errorf("%s sees %v, want %v", tenant.Name, got, want)
	}
}

// of returns a guest as another tenant's.
func of(g TrafficGuest, tenant, name string) TrafficGuest {
	g.Tenant, g.Name = tenant, name
	return g
}

// TestTenantsSeeTheirsOnly is about security: a guest that goes over to another
// tenant takes nothing along, and leaves nothing behind to be seen.
func TestTenantsSeeTheirsOnly(t *testing.T) {
	t.Parallel()
	c := newRented(t)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.pass(time.Minute, "sl-web", vps.TrafficInternet, 7)
	c.sees(bob, "alice 1000", "web 7")
	c.sees(carol)

	t.Log("in the same five minutes")
	c.Guests = []TrafficGuest{of(alice, "carol", "alice"), web}
	c.sample()
	c.sees(bob, "alice 1000", "web 7")
	c.sees(carol)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 20)
	c.sees(bob, "alice 1000", "web 7")
	c.sees(carol, "alice 20")

	t.Log("and on another day, under a name that the one before does not learn")
	c.Guests[0].Name = "secret"
	c.pass(20*time.Hour, "sl-alice", vps.TrafficInternet, 300)
	if got := c.seen(vps.TrafficQuery{Tenant: bob, GuestIDs: []string{alice.ID}}); !slices.Equal(got, []string{"alice 1000"}) {
		t.Errorf("bob sees %v", got)
	}
	if got := c.seen(vps.TrafficQuery{Tenant: carol, Since: c.Counters.At.Add(-time.Hour * 24 * 31)}); !slices.Equal(got, []string{"secret 320"}) {
		t.Errorf("carol sees %v", got)
	}

	t.Log("the owner sees a guest as one, and all of it")
	if got := c.seen(vps.TrafficQuery{}); !slices.Equal(got, []string{"secret 1320", "web 7"}) {
		t.Errorf("the owner sees %v", got)
	}
	if got := c.seen(vps.TrafficQuery{Together: true, Apart: []string{web.ID}}); !slices.Equal(got, []string{" 1320", "web 7"}) {
		t.Errorf("together there is %v", got)
	}
	owners, err := c.db.TrafficOwners(t.Context())
	if err != nil || len(owners) != 3 || owners[1].Name != "secret" || owners[1].Tenant != "carol" {
		t.Errorf("the ledger knows %+v (%v)", owners, err)
	}

	t.Log("back again")
	c.Guests = []TrafficGuest{alice, web}
	c.sample()
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 4)
	c.sees(bob, "alice 1004", "web 7")
	c.sees(carol, "secret 320")
}

// TestTenantsMadeAnew is about security: who takes the name of a tenant that is
// gone sees nothing of his, nor do quotas count it.
func TestTenantsMadeAnew(t *testing.T) {
	t.Parallel()
	c := newRented(t)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.Guests = c.Guests[1:] // alice is deleted
	c.sample()
	c.sees(bob, "alice 1000")
	c.Guests[0].Tenant = "carol"
	c.sample()

	later := &vps.Tenant{Name: "bob", Created: c.Counters.At.Add(time.Second)}
	c.Tenants = map[string]time.Time{"bob": later.Created, "carol": carol.Created}
	c.sees(later)
	c.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaTenant, "bob", "Etc/UTC")}
	c.want(c.sample(), 0)
	c.Guests = []TrafficGuest{web, {ID: "3", Name: "alice", Tenant: "bob", Link: "sl-alice"}}
	c.sample()
	c.want(c.pass(time.Minute, "sl-web", vps.TrafficInternet, 5), 5)
	c.sees(later, "web 5")
	c.sees(bob, "alice 1000")
}

// TestWholeQuery adds up the steps of each guest.
func TestWholeQuery(t *testing.T) {
	t.Parallel()
	c := newRented(t)
	first := c.Counters.At.Truncate(24 * time.Hour)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.pass(48*time.Hour, "sl-alice", vps.TrafficInternet, 10)
	c.pass(time.Minute, "sl-web", vps.TrafficInternet, 1)
	rows, err := c.db.Traffic(t.Context(), vps.TrafficQuery{Step: vps.StepDay, Whole: true})
	if err != nil || len(rows) != 2 || rows[0].InBytes != 1010 || !rows[0].Start.Equal(first) || rows[1].InBytes != 1 || !rows[1].Start.Equal(first.Add(48*time.Hour)) {
		t.Errorf("%+v (%v)", rows, err)
	}

	t.Log("each tenant's apart")
	c.Guests = []TrafficGuest{of(alice, "carol", "alice"), web}
	c.sample()
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 5)
	rows, err = c.db.Traffic(t.Context(), vps.TrafficQuery{Step: vps.StepDay, Whole: true})
	if err != nil || len(rows) != 3 || rows[0].InBytes != 1010 || rows[0].Tenant != "bob" || !rows[0].TenantMade.Equal(bob.Created) ||
		rows[2].InBytes != 5 || rows[2].GuestID != alice.ID || rows[2].Tenant != "carol" || !rows[2].TenantMade.Equal(carol.Created) {
		t.Errorf("%+v (%v)", rows, err)
	}
}

// TestTrafficVersion differs after what changes history, and only then.
func TestTrafficVersion(t *testing.T) {
	t.Parallel()
	c := newRented(t)
	before := c.db.TrafficVersion()
	c.sees(bob)
	if c.db.TrafficVersion() != before {
		t.Error("it differs after a look")
	}
	c.sample()
	if sampled := c.db.TrafficVersion(); sampled == before {
		t.Error("it is the same after a sample")
	}
	before = c.db.TrafficVersion()
	if _, err := c.db.ImportTraffic(t.Context(), TrafficImport{Guest: alice, Now: c.Counters.At}); err != nil {
		t.Fatal(err)
	}
	if c.db.TrafficVersion() == before {
		t.Error("it is the same after an import")
	}
}

// TestMigrateTrafficTenants opens a database in which it was not written down
// when tenants were made.
func TestMigrateTrafficTenants(t *testing.T) {
	t.Parallel()
	c := newRented(t)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.migrated()
	c.sees(bob, "alice 1000")
	c.sees(&vps.Tenant{Name: "bob", Created: c.Counters.At.Add(time.Hour)})
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1)
	c.sees(bob, "alice 1001")
	var rows int
	if err := c.db.read.QueryRowContext(t.Context(), "SELECT count(*) FROM traffic_guest WHERE guest = '1' AND tenant_made <> 0").Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%d rows are alice's (%v)", rows, err)
	}
}

// TestMigrateMovedGuests is about security: before it was written down when
// tenants were made, a guest was another's for longer than its tenant is there.
func TestMigrateMovedGuests(t *testing.T) {
	t.Parallel()
	c := newRented(t)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.migrated()
	later := &vps.Tenant{Name: "bob", Created: c.Counters.At}
	c.Tenants["bob"] = later.Created
	c.sees(later)
	c.sample()
	c.sees(later)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1)
	c.sees(later, "alice 1")
	if got := c.seen(vps.TrafficQuery{}); !slices.Equal(got, []string{"alice 1001"}) {
		t.Errorf("the owner sees %v", got)
	}
}
