package web

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/vps"
)

// shanghai is where the host of all tests is.
var shanghai = func() *time.Location {
	zone, err := time.LoadLocation("Asia/Shanghai")
	if err != nil {
		panic(err)
	}
	return zone
}()

// tenantMade is when all tenants were.
var tenantMade = time.Date(2025, 1, 1, 0, 0, 0, 0, shanghai)

// now is when all tests play: with a month begun, and a day.
var now = time.Date(2026, 11, 24, 20, 17, 42, 0, shanghai)

// host is a host of two tenants. Its ledger is made up: each guest has its own
// size and its own hours.
type host struct {
	mu     sync.Mutex
	links  map[string]string // tenant by key
	guests []Guest
	gone   []Guest // which the ledger knows
	uses   []vps.QuotaUse
	asked  []vps.TrafficQuery
	failed error
	silent bool // calls are not written down
	log    func(g Guest, lines int, w io.Writer) error
}

func newHost() *host {
	h := &host{links: map[string]string{"bobs": "bob", "carols": "carol", "owners": ""}}
	for _, name := range []string{"alice", "blog", "mail"} {
		h.guests = append(h.guests, Guest{ID: "id-" + name, Name: name, Tenant: "bob", State: vps.StateRunning})
	}
	h.guests[2].State = vps.StateStopped
	h.guests[1].Domains = []Domain{
		{Name: "*.blog.example.org", State: vps.DomainPending, Steps: proves("blog.example.org", false)},
		{Name: "blog.example.org", State: vps.DomainLive},
		{
			Name: "xn--bcher-kva.example", State: vps.DomainPending, Steps: proves("xn--bcher-kva.example", true), Checked: now.Add(-7 * time.Minute),
			Found: "there is no TXT record _sublet.xn--bcher-kva.example; the name leads to 203.0.113.5, which is this host: who answers here may be anybody, so a file here proves nothing yet; use the TXT record",
		},
	}
	h.guests[2].Domains = []Domain{{Name: "imap.example.org:993", State: vps.DomainStopped}}
	h.guests[2].Since = tenantMade.AddDate(1, 0, 0)
	h.guests = append(h.guests, Guest{ID: "id-secret", Name: "secret", Tenant: "carol", State: vps.StateRunning, Domains: []Domain{{Name: "secret.example", State: vps.DomainLive}}})
	quota := vps.NewQuota(vps.QuotaTenant, "bob", "Asia/Shanghai")
	quota.Limit, quota.ResetDay = 500*vps.GiB, 31
	h.uses = []vps.QuotaUse{
		h.use(vps.NewQuota(vps.QuotaHost, "", "Asia/Shanghai"), 2*vps.TiB, 0.41),
		h.use(quota, 500*vps.GiB, 0.624),
		h.use(vps.NewQuota(vps.QuotaTenant, "carol", "Etc/UTC"), vps.TiB, 0.2),
		h.use(vps.NewQuota(vps.QuotaGuest, "blog", "Asia/Shanghai"), 100*vps.GiB, 1.013),
		h.use(vps.NewQuota(vps.QuotaGuest, "secret", "Asia/Shanghai"), 100*vps.GiB, 0.5),
	}
	h.uses[3].Action, h.uses[3].Rate = vps.ActionThrottle, vps.Mbit
	reached := now.AddDate(0, 0, 5)
	h.uses[1].ReachedAt = &reached
	return h
}

// proves is what proves a name, as package proof would have it.
func proves(name string, file bool) *vps.ProofSteps {
	token := strings.Repeat("w4uj", 8)
	s := &vps.ProofSteps{Record: "_sublet." + name, Value: "sublet=" + token}
	if file {
		s.URL, s.Content = "http://"+name+"/.well-known/sublet-"+token, token
	}
	return s
}

func (h *host) use(q vps.Quota, limit vps.Bytes, part float64) vps.QuotaUse {
	q.Limit = limit
	start, end := q.Period(now)
	used := int64(float64(limit) * part)
	return vps.QuotaUse{Quota: q, Start: start, End: end, Limit: int64(limit), Used: used, In: used / 3, Out: used - used/3}
}

func (h *host) Page(_ context.Context, key string) (Subject, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	tenant, ok := h.links[key]
	if h.failed != nil {
		return Subject{}, h.failed
	}
	if !ok {
		return Subject{}, vps.Errorf(vps.CodeNotFound, "there is no such link")
	}
	s := Subject{Tenant: tenant, TenantMade: tenantMade, Zone: shanghai, Logged: !h.silent}
	if tenant == "" {
		s.Host = "vps-1.example"
	}
	for _, g := range h.guests {
		if tenant == "" || g.Tenant == tenant {
			s.Guests = append(s.Guests, g)
		}
	}
	return s, nil
}

func (h *host) QuotaUses(context.Context) ([]vps.QuotaUse, error) { return slices.Clone(h.uses), nil }

func (h *host) AccessLog(_ context.Context, g Guest, lines int, w io.Writer) error {
	if h.log == nil {
		return nil
	}
	return h.log(g, lines, w)
}

func (h *host) Traffic(_ context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	h.mu.Lock()
	h.asked = append(h.asked, q)
	h.mu.Unlock()
	var rows []vps.TrafficRow
	ledger := slices.Concat([]Guest{{}}, h.guests, h.gone)
	for start := q.Step.Begin(q.Since, shanghai); !start.After(now); start = q.Step.End(start, shanghai) {
		if start.Before(q.Since) {
			continue
		}
		for at, g := range ledger {
			if q.GuestIDs != nil && !slices.Contains(q.GuestIDs, g.ID) || q.Tenant != nil && (g.Tenant != q.Tenant.Name || !tenantMade.Equal(q.Tenant.Created)) {
				continue
			}
			for _, r := range made(q.Step, g.ID, at, start) {
				if r.Guest, r.Tenant = g.Name, g.Tenant; q.Together && !slices.Contains(q.Apart, g.ID) {
					r.GuestID, r.Guest, r.Tenant = "", "", ""
				}
				rows = append(rows, r)
			}
		}
	}
	return rows, nil
}

// made makes up what a guest sent and received in a step: by day more than by
// night, and never the same.
func made(step vps.TrafficStep, id string, at int, start time.Time) []vps.TrafficRow {
	hash := fnv.New32a()
	_, _ = fmt.Fprintf(hash, "%s %s %d", id, step, start.Unix())
	noise := 0.35 + float64(hash.Sum32()%1000)/1000
	length := min(step.End(start, shanghai).Sub(start), now.Sub(start)).Seconds()
	tide := 1.0
	if step == vps.StepHour || step == vps.StepFiveMinutes {
		tide = 1.15 + math.Sin((float64(start.Hour())+float64(start.Minute())/60-9)/24*2*math.Pi)
	}
	amount := int64(45e3 * length * noise * tide / float64(max(at, 1)))
	row := func(class vps.TrafficClass, family int, part float64) vps.TrafficRow {
		n := int64(float64(amount) * part)
		return vps.TrafficRow{
			GuestID: id, Start: start, Step: step, TrafficKey: vps.TrafficKey{Class: class, Family: family},
			TrafficCount: vps.TrafficCount{InBytes: n / 3, InPackets: n / 2000, OutBytes: n - n/3, OutPackets: n / 1000},
		}
	}
	if id == "" {
		return []vps.TrafficRow{row(vps.TrafficUplink, 0, 2.4)}
	}
	return []vps.TrafficRow{
		row(vps.TrafficInternet, 4, 0.7), row(vps.TrafficInternet, 6, 0.2), row(vps.TrafficHost, 4, 0.1), row(vps.TrafficBetween, 4, 0.02), row(vps.TrafficDropped, 4, 0.001),
	}
}

func newServer(tb testing.TB, h *host) *Server {
	tb.Helper()
	return New(h, Options{Now: func() time.Time { return now }})
}

// kept is a host whose ledger is made up only once.
type kept struct {
	*host
	rows map[string][]vps.TrafficRow
}

func (k *kept) Traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	key := fmt.Sprint(q)
	if k.rows[key] == nil {
		rows, err := k.host.Traffic(ctx, q)
		if err != nil {
			return nil, err
		}
		k.rows[key] = rows
	}
	return k.rows[key], nil
}
