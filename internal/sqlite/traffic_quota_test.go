package sqlite

import (
	"testing"
	"time"

	"sublet/internal/vps"
)

// counted is a host whose counters go up, and the ledger that follows them.
type counted struct {
	t  *testing.T
	db *DB
	TrafficSample
}

func newCounted(t *testing.T, at time.Time, guests ...TrafficGuest) *counted {
	t.Helper()
	c := &counted{t: t, db: openNew(t)}
	c.Counters = vps.TrafficCounters{At: at, Epoch: "e"}
	c.Guests, c.Boot, c.Uptime = guests, "b", 24*time.Hour
	c.sample()
	return c
}

func (c *counted) sample() []vps.QuotaAccount {
	c.t.Helper()
	accounts, err := c.db.AddTraffic(c.t.Context(), c.TrafficSample)
	if err != nil {
		c.t.Fatal(err)
	}
	return accounts
}

// pass lets some time go by, in which a link has so many bytes in and half of
// them out, and samples.
func (c *counted) pass(after time.Duration, link string, class vps.TrafficClass, in int64) []vps.QuotaAccount {
	c.t.Helper()
	c.Counters.At, c.Uptime = c.Counters.At.Add(after), c.Uptime+after
	key := vps.TrafficKey{Class: class, Family: 4}
	more := vps.TrafficCount{InBytes: in, InPackets: 1, OutBytes: in / 2, OutPackets: 1}
	for i := range c.Counters.Links {
		if l := &c.Counters.Links[i]; l.Link == link && l.TrafficKey == key {
			l.TrafficCount = l.TrafficCount.Add(more)
			return c.sample()
		}
	}
	c.Counters.Links = append(c.Counters.Links, vps.LinkTraffic{Link: link, TrafficKey: key, TrafficCount: more})
	return c.sample()
}

func (c *counted) want(accounts []vps.QuotaAccount, in ...int64) {
	c.t.Helper()
	if len(accounts) != len(in) {
		c.t.Fatalf("%d accounts; want %d", len(accounts), len(in))
	}
	for i, a := range accounts {
		if a.In != in[i] || a.Out != in[i]/2 {
			c.t.Errorf("the account of %s has %d in and %d out; want %d and half of it", a.ID, a.In, a.Out, in[i])
		}
	}
}

var (
	alice = TrafficGuest{ID: "1", Name: "alice", Tenant: "bob", Link: "sl-alice"}
	web   = TrafficGuest{ID: "2", Name: "web", Tenant: "bob", Link: "sl-web"}
)

// TestQuotaAccounts takes accounts through a month, its end, and edits.
func TestQuotaAccounts(t *testing.T) {
	t.Parallel()
	c := newCounted(t, time.Date(2026, 10, 29, 12, 0, 0, 0, time.UTC), alice, web)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	tenant, guest := vps.NewQuota(vps.QuotaTenant, "bob", "Etc/UTC"), vps.NewQuota(vps.QuotaGuest, "alice", "Etc/UTC")
	c.Quotas = []vps.Quota{tenant, guest}
	c.want(c.sample(), 1000, 1000) // of before they were made
	c.want(c.pass(time.Minute, "sl-web", vps.TrafficHost, 100), 1100, 1000)
	c.want(c.pass(time.Minute, "sl-alice", vps.TrafficBetween, 1<<40), 1100, 1000)
	c.want(c.pass(time.Minute, "sl-alice", vps.TrafficDropped, 1<<40), 1100, 1000)

	t.Log("another reset day counts anew from the history")
	c.Quotas[1].ResetDay = 30
	c.want(c.sample(), 1100, 1000)
	c.want(c.pass(12*time.Hour, "sl-alice", vps.TrafficInternet, 10), 1110, 10)
	c.Quotas[1].ResetDay = 29
	c.want(c.sample(), 1110, 1010)
	c.Quotas[1].ResetDay = 1

	t.Log("the account is in the database")
	stored, err := c.db.QuotaAccounts(t.Context())
	if err != nil || len(stored) != 2 || stored[0].ID != "guest/alice" || stored[0].In != 1010 {
		t.Errorf("stored are %+v (%v)", stored, err)
	}

	t.Log("a guest that moves takes nothing along, and one of the same name is another")
	c.Guests = []TrafficGuest{alice, {ID: "2", Name: "web", Tenant: "carol", Link: "sl-web"}}
	c.want(c.pass(time.Minute, "sl-web", vps.TrafficInternet, 5), 1110, 1010)
	c.Guests = []TrafficGuest{{ID: "3", Name: "alice", Tenant: "bob", Link: "sl-alice"}}
	c.want(c.sample(), 1110, 0)

	t.Log("a month that begins counts from nothing, and what passed before it is not in it")
	c.Counters.At = time.Date(2026, 10, 31, 23, 59, 59, 0, time.UTC)
	c.sample()
	accounts := c.pass(time.Second, "sl-alice", vps.TrafficInternet, 7)
	c.want(accounts, 0, 0)
	if !accounts[0].Start.Equal(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the new month begins at %s", accounts[0].Start)
	}
	c.want(c.pass(time.Second, "sl-alice", vps.TrafficInternet, 70), 70, 70)

	t.Log("a clock that is set back finds the old month in the history")
	c.Counters.At = time.Date(2026, 10, 31, 12, 0, 0, 0, time.UTC)
	c.want(c.sample(), 1117, 7) // with what the guest that has moved had until then
}

// TestQuotaZone has a month that begins within an hour of the host's.
func TestQuotaZone(t *testing.T) {
	t.Parallel()
	c := newCounted(t, time.Date(2026, 10, 31, 18, 20, 0, 0, time.UTC), alice)
	c.pass(time.Minute, "sl-alice", vps.TrafficInternet, 1000)
	c.pass(19*time.Minute, "sl-alice", vps.TrafficInternet, 100) // midnight in India was at 18:30
	c.pass(time.Hour, "sl-alice", vps.TrafficInternet, 10)
	c.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaGuest, "alice", "Asia/Kolkata")}
	c.want(c.sample(), 110)
}

// TestHostQuota counts the public link from when it is known.
func TestHostQuota(t *testing.T) {
	t.Parallel()
	c := newCounted(t, time.Date(2026, 10, 29, 12, 0, 0, 0, time.UTC))
	c.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaHost, "", "Etc/UTC")}
	public := func(in int64) []vps.QuotaAccount {
		key := vps.TrafficKey{Class: vps.TrafficUplink}
		c.Uplinks = []vps.LinkTraffic{{Link: "eth0", TrafficKey: key, TrafficCount: vps.TrafficCount{InBytes: in, OutBytes: in / 2}}}
		return c.sample()
	}
	c.want(public(1<<40), 0)
	c.want(public(1<<40+100), 100)
	c.Counters.Epoch = "other rules"
	c.want(public(1<<40+110), 110)
	c.Boot, c.Uptime = "other boot", time.Minute
	c.want(public(8), 118)
	rows, err := c.db.Traffic(t.Context(), vps.TrafficQuery{Step: vps.StepMonth, GuestIDs: []string{""}})
	if err != nil || len(rows) != 1 || rows[0].InBytes != 118 || rows[0].Class != vps.TrafficUplink {
		t.Errorf("the host's month is %+v (%v)", rows, err)
	}
}
