package daemon

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/meter"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// hostZone is where the host's days begin: in UTC when its zone is unknown, of
// which the sampler tells.
func hostZone(host *vps.Host) *time.Location { return vps.Zone(host.Settings.Timezone) }

// trafficOwner finds whose history a name means: the guest that has it, or else
// the one that had it last.
func (b backend) trafficOwner(ctx context.Context, host *vps.Host, name string) (sqlite.TrafficOwner, error) {
	owners, err := b.db.TrafficOwners(ctx)
	if err != nil {
		return sqlite.TrafficOwner{}, err
	}
	for i := range host.Guests {
		g := &host.Guests[i]
		if g.Spec.Name != name {
			continue
		}
		at := slices.IndexFunc(owners, func(o sqlite.TrafficOwner) bool { return o.ID == g.ID })
		if at >= 0 {
			return owners[at], nil
		}
		return sqlite.TrafficOwner{TrafficGuest: sqlite.TrafficGuest{ID: g.ID, Name: name, Tenant: g.Spec.Tenant}}, nil
	}
	for _, o := range slices.Backward(owners) {
		if o.Name == name && o.ID != "" {
			return o, nil
		}
	}
	return sqlite.TrafficOwner{}, vps.Errorf(vps.CodeNotFound, "there is no guest %s, and no history of one that was called so; `sublet traffic` shows all", name)
}

// Traffic returns history, of which the newest is of this moment.
func (b backend) Traffic(ctx context.Context, q api.TrafficQuery) (api.TrafficHistory, error) {
	b.sampleTraffic(ctx)
	host, err := b.quotas.host(ctx)
	if err != nil {
		return api.TrafficHistory{}, err
	}
	zone := hostZone(&host)
	now := time.Now().In(zone)
	h := api.TrafficHistory{Step: q.Step, Zone: zone.String(), At: now}
	if last, why := b.sampled.behind(); why != nil {
		h.At, h.Behind = last.In(zone), vps.ErrorMessage(why)
	}
	query := vps.TrafficQuery{Step: q.Step, Together: q.Sum}
	if query.Since, err = vps.ParseSince("since", q.Since, now); err != nil {
		return h, err
	}
	if query.Until, err = vps.ParseSince("until", q.Until, now); err != nil {
		return h, err
	}
	if !query.Until.IsZero() && query.Until.Before(query.Since) {
		return h, vps.Invalid("until", "%s is before %s, since when traffic is asked for; turn the two round", q.Until, q.Since)
	}
	if !query.Since.IsZero() {
		query.Since = q.Step.Begin(query.Since, zone) // the step that holds it too
	}
	switch {
	case q.Host:
		query.GuestIDs = []string{""}
	case q.Guest != "":
		owner, err := b.trafficOwner(ctx, &host, q.Guest)
		if err != nil {
			return h, err
		}
		query.GuestIDs = []string{owner.ID}
	case q.Last > 0 && query.Since.IsZero():
		// All guests have too many rows to look at those of long ago for this.
		query.Since = stepsAgo(q.Step, q.Last, now)
	}
	rows, err := b.namedTraffic(ctx, query, now)
	if err != nil {
		return h, err
	}
	if !q.Host {
		rows = slices.DeleteFunc(rows, func(r vps.TrafficRow) bool { return r.Class == vps.TrafficUplink })
	}
	if q.Sum {
		rows = meter.SumTraffic(rows)
	}
	h.Rows = meter.TopTraffic(meter.NewestTraffic(rows, q.Last), q.Top)
	return h, nil
}

// namedTraffic returns the rows whose steps have names within the query's
// bounds, by the clock and the zone of now.
func (b backend) namedTraffic(ctx context.Context, q vps.TrafficQuery, now time.Time) ([]vps.TrafficRow, error) {
	since, until := q.Since, q.Until
	q.Since, q.Until = q.Step.Around(since, until)
	rows, err := b.db.Traffic(ctx, q)
	rows = meter.NameTraffic(rows, now.Location(), now)
	return slices.DeleteFunc(rows, func(r vps.TrafficRow) bool {
		return r.Start.Before(since) || !until.IsZero() && !r.Start.Before(until)
	}), err
}

// stepsAgo is the begin of the first of n steps, of which the last holds now.
func stepsAgo(step vps.TrafficStep, n int, now time.Time) time.Time {
	begin := step.Begin(now, now.Location())
	for range n - 1 {
		if begin.Year() < 1970 {
			break
		}
		begin = step.Begin(begin.Add(-time.Second), now.Location())
	}
	return begin
}

// TrafficNow reads the kernel's counters.
func (b backend) TrafficNow(ctx context.Context, guest string) (api.TrafficReading, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return api.TrafficReading{}, err
	}
	names := map[string]string{} // by link
	for i := range host.Guests {
		if g := &host.Guests[i]; guest == "" || g.Spec.Name == guest {
			names[g.Link()] = g.Spec.Name
		}
	}
	if guest != "" && len(names) == 0 {
		return api.TrafficReading{}, vps.Errorf(vps.CodeNotFound, "there is no guest %s; `sublet list` shows all", guest)
	}
	now, err := b.traffic.kernel.Traffic(ctx)
	if err != nil {
		return api.TrafficReading{}, err
	}
	r := api.TrafficReading{At: now.At.UTC(), Epoch: now.Epoch}
	// Each class is there from the begin, as rates of classes that begin later
	// would have nothing to begin from.
	for link, name := range names {
		for _, class := range vps.TrafficClasses() {
			r.Counters = append(r.Counters, api.TrafficCounter{Guest: name, Link: link, TrafficKey: vps.TrafficKey{Class: class}})
		}
	}
	slices.SortFunc(r.Counters, func(a, b api.TrafficCounter) int {
		return strings.Compare(a.Guest+" "+string(a.Class), b.Guest+" "+string(b.Class))
	})
	for _, l := range now.Links {
		if name, ok := names[l.Link]; ok {
			r.Counters = append(r.Counters, api.TrafficCounter{Guest: name, Link: l.Link, TrafficKey: l.TrafficKey, TrafficCount: l.TrafficCount})
		}
	}
	if guest != "" {
		return r, nil
	}
	links, err := b.traffic.publicCounters(ctx, host.Settings.Uplink)
	for _, l := range links {
		r.Counters = append(r.Counters, api.TrafficCounter{Link: l.Link, TrafficKey: l.TrafficKey, TrafficCount: l.TrafficCount})
	}
	return r, err
}

// The history that a check looks at unless it is told otherwise, and from when
// on it takes the finest steps, and no finer ones than days: to look at every
// five minutes of many guests takes long.
const (
	checkSince = 48 * time.Hour
	checkFine  = 6 * time.Hour
	checkHours = 89 * 24 * time.Hour
)

// CheckTraffic compares guests with the public links, from the moment on from
// which both are counted.
func (b backend) CheckTraffic(ctx context.Context, since string) (vps.TrafficCheck, error) {
	b.sampleTraffic(ctx)
	host, err := b.state.Host(ctx)
	if err != nil {
		return vps.TrafficCheck{}, err
	}
	now := time.Now().In(hostZone(&host))
	u := meter.UplinkTraffic{Until: now}
	last, behind := b.sampled.behind()
	if behind != nil {
		u.Until = last.In(now.Location())
	}
	if u.Since, err = vps.ParseSince("since", since, now); err != nil {
		return vps.TrafficCheck{}, err
	}
	if u.Since.IsZero() {
		u.Since = now.Add(-checkSince)
	}
	owners, err := b.db.TrafficOwners(ctx)
	if err != nil {
		return vps.TrafficCheck{}, err
	}
	query := vps.TrafficQuery{Counted: true}
	query.Since, query.Step = checkFrom(u.Since, owners, now)
	u.Since = query.Since
	rows, err := b.db.Traffic(ctx, query)
	if err != nil {
		return vps.TrafficCheck{}, err
	}
	for _, r := range rows {
		if r.Class == vps.TrafficUplink {
			u.Host = append(u.Host, r)
		} else {
			u.Guests = append(u.Guests, r)
		}
	}
	if err := b.describeUplinks(ctx, &u, host.Settings.Uplink); err != nil {
		return vps.TrafficCheck{}, err
	}
	check := meter.CheckTraffic(u)
	if behind != nil {
		check.Notes = append(check.Notes, "what passed since then is not counted yet: "+vps.ErrorMessage(behind))
	}
	return check, nil
}

// checkFrom returns from when on a check compares, and by which steps. Where
// guests were counted before the public links were, the step amid which those
// began has more of the guests, so it is left out.
func checkFrom(since time.Time, owners []sqlite.TrafficOwner, now time.Time) (time.Time, vps.TrafficStep) {
	var links, guests time.Time
	for _, o := range owners {
		switch {
		case o.ID == "":
			links = o.Since
		case !o.Since.IsZero() && (guests.IsZero() || o.Since.Before(guests)):
			guests = o.Since
		}
	}
	bound := links.After(since)
	if bound {
		since = links
	}
	step := vps.StepHour
	switch age := now.Sub(since); {
	case age <= checkFine:
		step = vps.StepFiveMinutes
	case age > checkHours:
		step = vps.StepDay
	}
	begin := step.Begin(since, now.Location())
	if bound && guests.Before(links) && !guests.IsZero() && begin.Before(links) {
		begin = step.End(begin, now.Location())
	}
	return begin, step
}

// describeUplinks says what the public links are like, as sysfs has it
// (Documentation/ABI/testing/sysfs-class-net of Linux).
func (b backend) describeUplinks(ctx context.Context, u *meter.UplinkTraffic, configured string) error {
	found, err := b.traffic.publicCounters(ctx, configured)
	if err != nil {
		return err
	}
	const ethernet = "1" // ARPHRD_ETHER, linux/if_arp.h
	for _, l := range found {
		u.Links = append(u.Links, l.Link)
		dir := filepath.Join("/sys/class/net", filepath.Base(l.Link))
		if kind, err := os.ReadFile(filepath.Join(dir, "type")); err == nil && strings.TrimSpace(string(kind)) != ethernet {
			u.Headerless = append(u.Headerless, l.Link)
		}
		if _, err := os.Stat(filepath.Join(dir, "wireless")); err == nil {
			u.Wireless = append(u.Wireless, l.Link)
		}
	}
	return nil
}
