package daemon

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/sqlite"
	"sublet/internal/vnstat"
	"sublet/internal/vps"
)

// ImportTraffic takes over what vnStat counted.
func (b backend) ImportTraffic(ctx context.Context, o api.ImportTraffic, file io.Reader) (api.ImportedTraffic, error) {
	b.sampleTraffic(ctx) // so that it is known from when on we count ourselves
	var done api.ImportedTraffic
	host, err := b.state.Host(ctx)
	if err != nil {
		return done, err
	}
	now := time.Now()
	from, err := vnstat.Parse(file, hostZone(&host), now)
	if err != nil {
		return done, err
	}
	uplinks, err := b.traffic.uplinks.Uplinks(ctx, host.Settings.Uplink)
	if err != nil {
		return done, err
	}
	var owner *sqlite.TrafficOwner
	if o.Guest != "" {
		found, err := b.trafficOwner(ctx, &host, o.Guest)
		if err != nil {
			return done, err
		}
		owner = &found
	}
	chosen, err := chooseInterfaces(from, o, owner, &host, uplinks)
	if err != nil {
		return done, err
	}
	for _, c := range chosen {
		made, err := b.importInterface(ctx, &host, c, o.DryRun, now)
		if err != nil {
			return done, err
		}
		done.Interfaces = append(done.Interfaces, made)
	}
	return done, nil
}

// chosenInterface is an interface of a file and whose history it is.
type chosenInterface struct {
	*vnstat.Interface
	guest sqlite.TrafficGuest
	own   bool   // it is the host's own, and guest is empty
	skip  string // why it is left out
}

// noRows says why an interface of a file is left out.
const noRows = "the file has no traffic of it by 5 minutes, hours, days or months; `vnstat --json` without more writes all of them"

// chooseInterfaces finds whose each interface is. It returns an error when
// there would be nothing to take over.
func chooseInterfaces(file *vnstat.File, o api.ImportTraffic, owner *sqlite.TrafficOwner, host *vps.Host, uplinks []string) ([]chosenInterface, error) {
	var names []string
	for _, i := range file.Interfaces {
		names = append(names, i.Name)
	}
	there := "the file has " + strings.Join(names, ", ")
	if owner != nil && o.Interface == "" {
		if o.Interface = linkOf(host, owner.ID); len(names) == 1 {
			o.Interface = names[0]
		}
		if !slices.Contains(names, o.Interface) {
			return nil, vps.Invalid("interface", "it is not clear which interface was %s's; name it with --interface: %s", owner.Name, there)
		}
	}
	if o.Interface != "" && !slices.Contains(names, o.Interface) {
		return nil, vps.Invalid("interface", "there is no interface %q; %s", o.Interface, there)
	}
	var chosen []chosenInterface
	taken, empty := 0, 0
	for i := range file.Interfaces {
		c := chosenInterface{Interface: &file.Interfaces[i]}
		if o.Interface != "" && c.Name != o.Interface {
			continue
		}
		if owner != nil {
			c.guest = owner.TrafficGuest
		} else {
			c.find(host, uplinks)
		}
		switch {
		case c.skip == "" && len(c.Rows) == 0:
			c.skip = noRows
			empty++
		case c.skip == "":
			taken++
		}
		chosen = append(chosen, c)
	}
	if taken == 0 && empty > 0 {
		return nil, vps.Errorf(vps.CodeInvalid, "there is nothing to take over: %s", noRows)
	}
	if taken == 0 {
		return nil, vps.Invalid("guest", "no interface is the link of a guest or a public link of this host; name the guest with --guest, and --interface: %s", there)
	}
	return together(chosen), nil
}

// together makes one of the interfaces that are the host's own, whose counts it
// adds up.
func together(chosen []chosenInterface) (made []chosenInterface) {
	own := -1
	for _, c := range chosen {
		switch {
		case !c.own || c.skip != "":
			made = append(made, c)
		case own < 0:
			own = len(made)
			made = append(made, c)
		default:
			all := *made[own].Interface
			all.Name += ", " + c.Name
			all.Rows = slices.Concat(all.Rows, c.Rows)
			if c.Updated.After(all.Updated) {
				all.Updated = c.Updated
			}
			made[own].Interface = &all
		}
	}
	return made
}

// find looks whose an interface is by its name.
func (c *chosenInterface) find(host *vps.Host, uplinks []string) {
	for i := range host.Guests {
		if g := &host.Guests[i]; g.Link() == c.Name {
			c.guest = sqlite.TrafficGuest{ID: g.ID, Name: g.Spec.Name, Tenant: g.Spec.Tenant}
			return
		}
	}
	if c.own = slices.Contains(uplinks, c.Name); !c.own {
		c.skip = "it is neither the link of a guest nor a public link; name the guest with --guest"
	}
}

func linkOf(host *vps.Host, id string) string {
	for i := range host.Guests {
		if host.Guests[i].ID == id {
			return host.Guests[i].Link()
		}
	}
	return ""
}

// importInterface takes over one interface, or with a dry run tells what it
// would.
func (b backend) importInterface(ctx context.Context, host *vps.Host, c chosenInterface, dryRun bool, now time.Time) (api.ImportedInterface, error) {
	none := map[vps.TrafficStep]int{}
	made := api.ImportedInterface{Interface: c.Name, Guest: c.guest.Name, Skipped: c.skip, Rows: map[vps.TrafficStep]int{}, New: none, Replaced: none}
	if c.skip != "" {
		return made, nil
	}
	made.Until = c.Updated
	key := vps.TrafficKey{Class: vps.TrafficInternet}
	if c.own {
		key.Class = vps.TrafficUplink
	}
	rows := make([]vps.TrafficRow, 0, len(c.Rows))
	for _, r := range c.Rows {
		rows = append(rows, vps.TrafficRow{Step: r.Step, Start: r.Start, TrafficKey: key, TrafficCount: r.Counts(c.own)})
	}
	imported, err := b.db.ImportTraffic(ctx, sqlite.TrafficImport{Guest: c.guest, Zone: hostZone(host), Rows: rows, Now: now, DryRun: dryRun})
	if err != nil {
		return made, err
	}
	made.New, made.Replaced = imported.New, imported.Replaced
	if len(imported.Rows) == 0 {
		made.Skipped = "it has nothing from before sublet began to count this itself, and that is not too old to be kept"
		return made, nil
	}
	sums := map[vps.TrafficStep]vps.TrafficCount{}
	for _, r := range imported.Rows {
		made.Rows[r.Step]++
		if made.Since.IsZero() || r.Start.Before(made.Since) {
			made.Since = r.Start.In(hostZone(host))
		}
		sums[r.Step] = sums[r.Step].Add(r.TrafficCount)
	}
	made.Months = sums[vps.StepMonth]
	for _, step := range vps.TrafficSteps() {
		if made.Rows[step] > 0 {
			made.Total = sums[step]
		}
	}
	for _, step := range []vps.TrafficStep{vps.StepDay, vps.StepMonth} {
		if !slices.ContainsFunc(c.Rows, func(r vnstat.Row) bool { return r.Step == step }) {
			made.Lacks = append(made.Lacks, step)
		}
	}
	return made, nil
}
