//go:build linux

package nft

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Traffic returns what passed between guests' links and others, and what the
// walls and the quotas dropped, since the counters' epoch began: by link, class
// and family, sorted by them, without rows of zeros. Frames that were dropped and
// are no IP have the family 0. Links that have no guest any more are among them
// until ForgetTraffic. Public links are not (hostnet has those).
//
// The counters are in tables of their own, which live through Apply and the
// death of the process. Where they are missing or were changed they are made
// anew, with another epoch; the same goes for tables that were saved and loaded
// again. When they are those that we made, but not as we would make them, as
// after an upgrade, what they counted up to then is returned once more, with the
// epoch of before. A single counter that is lower than before within an epoch was set
// back by hand and began anew.
func (f *Firewall) Traffic(ctx context.Context) (vps.TrafficCounters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.readTraffic(ctx)
	if err != nil {
		return vps.TrafficCounters{}, vps.Wrap(vps.CodeInternal, err, "the guests' traffic could not be read from the firewall")
	}
	return c, nil
}

// trafficTables is what is known of the tables that count.
type trafficTables struct {
	// epoch is empty when nothing is known; else they stood whole at the
	// generation gen, and had not counted drops of before.
	epoch  string
	gen    uint32
	before dropSums
	// canonical is how this host's nft lists them, by family; nil at first.
	canonical map[string]map[string]*block
	sums      trafficSums
	// reads is how often they were read since some set that counts was made.
	reads int
}

func (f *Firewall) readTraffic(ctx context.Context) (vps.TrafficCounters, error) {
	d, err := newDumper()
	if err != nil {
		return vps.TrafficCounters{}, err
	}
	defer d.close()
	const tries = 5
	for range tries {
		last, err := f.renewTraffic(ctx, d)
		if errors.Is(err, errInterrupted) {
			continue
		}
		if err != nil {
			return vps.TrafficCounters{}, err
		}
		if last != nil {
			return *last, nil
		}
		c, quotas, err := f.traffic.sums.count(d, f.traffic.epoch, f.traffic.before)
		if err != nil {
			return vps.TrafficCounters{}, err
		}
		// Somebody may have replaced the tables while they were read.
		if gen, err := generation(); err != nil || gen == f.traffic.gen {
			f.quotas.note(c.At, quotas)
			f.fit(ctx)
			return c, err
		}
	}
	return vps.TrafficCounters{}, errInterrupted
}

// count reads the counters of an epoch, and what quotas are at. before is what had
// been dropped before it.
func (sums *trafficSums) count(d *dumper, epoch string, before dropSums) (vps.TrafficCounters, map[string]held, error) {
	// Quotas first: what passes until the rest is read then counts twice for
	// them, and not never.
	c := vps.TrafficCounters{At: time.Now(), Epoch: epoch}
	quotas, err := readQuotas(d)
	if err != nil {
		return c, nil, err
	}
	if err := sums.readPassed(d); err != nil {
		return c, nil, err
	}
	drops, err := readDrops(d)
	if err != nil {
		return c, nil, err
	}
	sums.setDrops(drops, before)
	c.Links = sums.rows()
	return c, quotas, nil
}

// renewTraffic makes the tables that count anew where they are not whole. When
// they were ours, it returns what they had counted, but for what passes in the
// moment until there are others; nil when they were not, or are as they should
// be. It fails with errInterrupted when somebody else changes them.
func (f *Firewall) renewTraffic(ctx context.Context, d *dumper) (*vps.TrafficCounters, error) {
	differs, err := f.diffTraffic(ctx, d)
	if err != nil || len(differs) == 0 {
		return nil, err
	}
	gen, err := generation()
	if err != nil {
		return nil, err
	}
	epoch, foreign, err := trafficEpoch(d)
	if err != nil || len(foreign) > 0 {
		return nil, errors.Join(err, f.remakeTraffic(ctx, d, differs))
	}
	before, err := readBefore(d)
	if err != nil {
		return nil, err
	}
	c, quotas, err := f.traffic.sums.count(d, epoch, before)
	if err != nil {
		return nil, err
	}
	if now, err := generation(); err != nil || now != gen {
		return nil, cmp.Or(err, errInterrupted)
	}
	if err := f.remakeTraffic(ctx, d, differs); err != nil {
		return nil, err
	}
	f.quotas.note(c.At, quotas)
	return &c, nil
}

// ForgetTraffic removes the counters of links, those of drops too: of such as
// no guest has any more, when their last traffic has been read. Links that have
// none are passed over.
func (f *Firewall) ForgetTraffic(ctx context.Context, links ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	gone := map[linkBytes]bool{}
	for _, l := range links {
		if !linkName.MatchString(l) {
			return vps.Invalid("link", "%q is not the name of a guest's link", l)
		}
		var name linkBytes
		copy(name[:], l)
		gone[name] = true
	}
	if err := f.forgetLinks(ctx, gone); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the traffic of links that are gone could not be forgotten")
	}
	return nil
}

// forgetLinks removes the elements of links from all sets that count.
func (f *Firewall) forgetLinks(ctx context.Context, gone map[linkBytes]bool) error {
	d, err := newDumper()
	if err != nil {
		return err
	}
	defer d.close()
	users, err := d.linksOfUIDs()
	if err != nil {
		return err
	}
	var text strings.Builder
	remove := func(family, table, set string, goes func(key *counterKey) bool, element func(key *counterKey) string) error {
		found, err := d.counters(family, table, set)
		for i := range found {
			if key := &found[i].key; goes(key) {
				fmt.Fprintf(&text, "delete element %s %s %s { %s }\n", family, table, set, element(key))
			}
		}
		return err
	}
	ofLink := func(key *counterKey) bool { return gone[key.name()] }
	for _, s := range passedSets() {
		if err := remove(s.family, trafficName, s.name(), ofLink, func(key *counterKey) string { return versionElement(s.family, key) }); err != nil {
			return err
		}
	}
	for _, c := range dropCounts() {
		goes := ofLink
		if c.key == byUser {
			// Guests that are gone have left the wall, and their users may come again.
			goes = func(key *counterKey) bool { return users[*key] == "" }
		}
		if err := remove(c.family, c.table, c.set, goes, c.element); err != nil {
			return err
		}
	}
	for _, way := range directions() {
		if err := remove(inet, trafficName, beforeSet(way), ofLink, func(key *counterKey) string { return versionElement(inet, key) }); err != nil {
			return err
		}
	}
	if text.Len() == 0 {
		return nil
	}
	if err := f.load(ctx, text.String()); err != nil {
		return err
	}
	f.traffic.sums = trafficSums{}
	maps.DeleteFunc(f.traffic.before, func(k dropKey, _ amount) bool { return gone[k.link] })
	return nil
}

// ensureTraffic makes the tables that count where they are not whole.
func (f *Firewall) ensureTraffic(ctx context.Context, d *dumper) error {
	differs, err := f.diffTraffic(ctx, d)
	if err != nil || len(differs) == 0 {
		return err
	}
	return f.remakeTraffic(ctx, d, differs)
}

// remakeTraffic makes the tables anew, since they differ.
func (f *Firewall) remakeTraffic(ctx context.Context, d *dumper, differs []string) error {
	if f.traffic.epoch != "" {
		f.mended = append(f.mended, differs...)
	}
	return f.makeTraffic(ctx, d)
}

// diffTraffic tells in sentences where the tables that count are not those that
// we made. When they are, it knows them from then on.
func (f *Firewall) diffTraffic(ctx context.Context, d *dumper) ([]string, error) {
	gen, err := generation()
	if err != nil || f.traffic.epoch != "" && gen == f.traffic.gen {
		return nil, err
	}
	epoch, differs, err := trafficEpoch(d)
	if err != nil || len(differs) > 0 {
		return differs, err
	}
	if differs, err = f.trafficDiffers(ctx); err != nil || len(differs) > 0 {
		return differs, err
	}
	before, err := readBefore(d)
	if err != nil {
		return nil, err
	}
	f.traffic.epoch, f.traffic.gen, f.traffic.before = epoch, gen, before
	return nil, nil
}

// trafficEpoch returns the epoch of the tables that there are, and tells in
// sentences why they are not those that we made: the object that says so has
// the epoch in its name, which no copy of the table can have.
func trafficEpoch(d *dumper) (epoch string, differs []string, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", nil, err
	}
	var handles []string
	for _, family := range trafficFamilies() {
		tables, err := d.handles(family)
		if err != nil {
			return "", nil, err
		}
		handle, ok := tables[trafficName]
		if !ok {
			differs = append(differs, missingTable(family, trafficName))
		}
		handles = append(handles, strconv.FormatUint(handle, 10))
	}
	if len(differs) > 0 {
		return "", differs, nil
	}
	epoch = string(bytes.TrimSpace(boot)) + "/" + strings.Join(handles, ".")
	marks := map[string]bool{}
	err = d.objects(inet, trafficName, unix.NFT_OBJECT_COUNTER, func(name string, _ []byte) { marks[name] = true })
	if !marks[epochMark(epoch)] {
		differs = []string{"the tables " + trafficName + " are not those that sublet made, so what they counted may have been counted before"}
	}
	return epoch, differs, err
}

func missingTable(family, name string) string {
	return "the table " + family + " " + name + " is missing"
}

func epochMark(epoch string) string {
	sum := sha256.Sum256([]byte(epoch))
	return "epoch-" + hex.EncodeToString(sum[:8])
}

// trafficDiffers tells where the tables are not what we would make. Their
// elements, of which there are many, are not looked at.
func (f *Firewall) trafficDiffers(ctx context.Context) ([]string, error) {
	const withoutElements = "--terse"
	if f.traffic.canonical == nil {
		var err error
		if f.traffic.canonical, err = f.rehearseNamed(ctx, trafficName, trafficText(nil), withoutElements); err != nil {
			return nil, err
		}
	}
	return f.differsFrom(ctx, trafficName, f.traffic.canonical, withoutElements)
}

// rehearseNamed returns how nft lists the tables of a name that a text makes.
func (f *Firewall) rehearseNamed(ctx context.Context, name, text string, flags ...string) (listing map[string]map[string]*block, err error) {
	err = elsewhere(func() error {
		if _, err := f.run(ctx, text, "-f", "-"); err != nil {
			return err
		}
		var err error
		listing, err = f.listNamed(ctx, name, flags...)
		return err
	})
	return listing, err
}

// differsFrom tells in sentences where the tables of a name are not listed as
// want.
func (f *Firewall) differsFrom(ctx context.Context, name string, want map[string]map[string]*block, flags ...string) ([]string, error) {
	have, err := f.listNamed(ctx, name, flags...)
	if err != nil {
		return nil, err
	}
	var differs []string
	for _, family := range trafficFamilies() {
		differs = append(differs, compare(family+" "+name, want[family], have[family])...)
	}
	return differs, nil
}

// listNamed lists the tables of a name, but for what counters and quotas are at.
func (f *Firewall) listNamed(ctx context.Context, name string, flags ...string) (map[string]map[string]*block, error) {
	listing := map[string]map[string]*block{}
	for _, family := range trafficFamilies() {
		out, err := f.run(ctx, "", slices.Concat([]string{"--stateless"}, flags, []string{"list", "table", family, name})...)
		if err != nil {
			return nil, err
		}
		blocks := parse(out)
		for block := range blocks {
			if strings.HasPrefix(block, "counter ") || strings.HasPrefix(block, "quota ") {
				delete(blocks, block)
			}
		}
		listing[family] = blocks
	}
	return listing, nil
}

// trafficText is the text of the tables.
func trafficText(before dropSums) string {
	var b strings.Builder
	for _, family := range trafficFamilies() {
		b.WriteString(trafficTable(family, before))
	}
	return b.String()
}

// makeTraffic makes the tables anew.
func (f *Firewall) makeTraffic(ctx context.Context, d *dumper) error {
	before, err := readDrops(d)
	if err != nil {
		return err
	}
	f.traffic.epoch, f.traffic.reads = "", 0
	if err := f.load(ctx, removal(trafficName)+trafficText(before)); err != nil {
		return err
	}
	epoch, _, err := trafficEpoch(d)
	if err != nil {
		return err
	}
	gen, err := generation()
	if err != nil {
		return err
	}
	f.traffic.epoch, f.traffic.gen, f.traffic.before = epoch, gen, before
	mark := fmt.Sprintf("add counter %s %s %s\n", inet, trafficName, epochMark(epoch))
	if err := f.load(ctx, mark); err != nil {
		f.traffic.epoch = ""
		return err
	}
	f.log.InfoContext(ctx, "guests' traffic is counted from now on", "epoch", epoch)
	return nil
}

// load runs a text in one transaction. What is known of tables that it leaves
// alone is known after it, too, when nobody else changed anything.
func (f *Firewall) load(ctx context.Context, text string) error {
	before, genErr := generation()
	if _, err := f.run(ctx, text, "-f", "-"); err != nil {
		return err
	}
	if gen, err := generation(); err == nil && genErr == nil && gen == before+1 {
		f.advance(before)
	}
	return nil
}

// advance takes what was known at a generation to the next one, after a
// transaction of ours that left all of that alone.
func (f *Firewall) advance(before uint32) {
	for _, gen := range []*uint32{&f.gen, &f.traffic.gen, &f.quotas.gen} {
		if *gen == before {
			*gen = before + 1
		}
	}
}

// restore makes tables that we made anew where somebody took them away.
func (f *Firewall) restore(ctx context.Context) error {
	counts, holds, err := f.unsure()
	if err != nil || !counts && !holds {
		return err
	}
	d, err := newDumper()
	if err != nil {
		return err
	}
	defer d.close()
	if counts {
		err = f.ensureTraffic(ctx, d)
	}
	if holds {
		err = errors.Join(err, f.setQuotas(ctx, d, f.quotas.wanted))
	}
	return err
}

// unsure tells whether the tables that count, and those that hold quotas, should
// be there and may not be any more.
func (f *Firewall) unsure() (counts, holds bool, err error) {
	gen, err := generation()
	counts = f.traffic.epoch != "" && f.traffic.gen != gen
	holds = f.quotas.wanted != nil && !f.quotas.wanted.empty() && f.quotas.gen != gen
	return counts, holds, err
}

// diffRestored tells in sentences what restore would mend.
func (f *Firewall) diffRestored(ctx context.Context) (drift []string, err error) {
	counts, holds, err := f.unsure()
	if err != nil || !counts && !holds {
		return nil, err
	}
	d, err := newDumper()
	if err != nil {
		return nil, err
	}
	defer d.close()
	if counts {
		if drift, err = f.diffTraffic(ctx, d); err != nil {
			return nil, err
		}
	}
	if !holds {
		return drift, nil
	}
	now, err := readQuotas(d)
	if err != nil {
		return nil, err
	}
	differs, err := f.diffQuotas(ctx, d, f.quotas.wanted, now)
	return append(drift, differs...), err
}
