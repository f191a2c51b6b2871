//go:build linux

package nft

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// SetQuotas makes the kernel hold quotas, and cuts links off: every IP packet
// from and to the guests of suspended is dropped, but for neighbour discovery,
// established connections too. Quotas count what guests have of the billed
// classes, the host's what its public links (uplinks) pass; the host's drops
// guests' traffic alone. What is dropped has the reason vps.DropQuota.
//
// The kernel holds all of it without us. What is left of a quota is set so that
// not more than a MiB passes beyond its Block or Throttle; a little more than
// nothing does (slack), so that who counts sees that it was reached. Traffic
// that passed between NetworkQuota.At, when that is the At of a former Traffic
// of this process, and now is taken into account; else the count begins now.
//
// Equal values change nothing, and counting on alone rewrites nothing unless
// what the kernel holds is off by more than a part of what is left. Nothing is
// changed on an error. Links that are ports of bridges are known from Apply.
func (f *Firewall) SetQuotas(ctx context.Context, quotas []vps.NetworkQuota, suspended, uplinks []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, err := collectQuotas(quotas, suspended, uplinks, f.ports)
	if err != nil {
		return err
	}
	d, err := newDumper()
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "quotas cannot be held by the firewall; are we root?")
	}
	defer d.close()
	f.quotas.wanted = w
	if err := f.setQuotas(ctx, d, w); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "quotas could not be put into the firewall; those that it holds stand")
	}
	return nil
}

// quotaTables is what is known of the tables that hold quotas.
type quotaTables struct {
	// standing is what stood at the generation gen, but for what objects were set
	// to; nil when nothing is known.
	standing *quotaWall
	gen      uint32
	// wanted is what was last asked for, nil at first.
	wanted *quotaWall
	// readings are what objects were at when traffic was read, the oldest first.
	readings []quotaReading
	// seen is what a quota's use was when an object was last compared with it,
	// and ratios what came of it: bytes of packets for each byte of frames.
	seen   map[string]quotaSeen
	ratios map[string]float64
}

// held is what an object is at. The kernel does not tell more than it is set
// to; spent says that it has got there.
type held struct {
	over, consumed uint64
	spent          bool
}

type quotaReading struct {
	at      time.Time
	objects map[string]held // by family and name
}

type quotaSeen struct {
	used     int64
	consumed uint64
}

// quotaSpent is NFT_QUOTA_F_DEPLETED.
const quotaSpent = 1 << 1

// readQuotas returns what our objects are at.
func readQuotas(d *dumper) (map[string]held, error) {
	found := map[string]held{}
	for _, family := range trafficFamilies() {
		err := d.objects(family, quotaName, unix.NFT_OBJECT_QUOTA, func(name string, data []byte) {
			h := held{over: number(attribute(data, unix.NFTA_QUOTA_BYTES)), consumed: number(attribute(data, unix.NFTA_QUOTA_CONSUMED))}
			if flags := attribute(data, unix.NFTA_QUOTA_FLAGS); len(flags) == 4 {
				h.spent = binary.BigEndian.Uint32(flags)&quotaSpent != 0
			}
			found[family+" "+name] = h
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// note keeps what objects were at.
func (q *quotaTables) note(at time.Time, objects map[string]held) {
	const enough = 8
	q.readings = append(q.readings, quotaReading{at, objects})
	q.readings = q.readings[max(0, len(q.readings)-enough):]
}

// at returns the reading of a moment, nil when there is none. A moment that was
// stored has lost what is less than a millisecond.
func (q *quotaTables) at(at time.Time) map[string]held {
	for _, r := range slices.Backward(q.readings) {
		if r.at.Truncate(time.Millisecond).Equal(at.Truncate(time.Millisecond)) {
			return r.objects
		}
	}
	return nil
}

// setting is what an object should be at: left is what may still have passed
// since the quota was counted, since what has.
type setting struct {
	key         string
	left, since uint64
}

// slack is passed beyond every threshold: a large packet that does not fit any
// more would else leave a rest for ever, and nobody would see the threshold
// reached.
const slack = 128 << 10

// setting compares an object with what it is at, and learns how many bytes of
// packets, which the kernel counts, come to one of frames.
func (f *Firewall) setting(o *object, now map[string]held) setting {
	q := &f.quotas
	key := o.key
	s := setting{key: key}
	h, there := now[key]
	read := q.at(o.quota.At)
	if was, known := read[key]; known && there {
		s.since = h.consumed - min(was.consumed, h.consumed)
		if o.share == o.whole && !was.spent {
			q.learn(key, o.used(), was.consumed)
		}
	} else if there {
		// Counted from now on; the next call with the same At must not count anew.
		if read == nil {
			read = map[string]held{}
			q.note(o.quota.At, read)
		}
		read[key] = h
	}
	ratio, ok := q.ratios[key]
	if !ok {
		ratio = usualRatio
	}
	if rest := o.at() - o.used(); rest > 0 {
		const most = 1 << 62
		s.left = uint64(min((float64(rest)*ratio+slack)*float64(o.share)/float64(o.whole), most))
	}
	return s
}

// usualRatio is that of full packets in Ethernet.
const usualRatio = 1500.0 / (1500 + vps.FrameBytes)

// learn compares what an object consumed with what was counted meanwhile.
func (q *quotaTables) learn(key string, used int64, consumed uint64) {
	const enough, least = 1 << 20, 0.5
	was, ok := q.seen[key]
	if ok && used-was.used < enough && used >= was.used && consumed >= was.consumed {
		return
	}
	if ok && used > was.used && consumed >= was.consumed {
		ratio := float64(consumed-was.consumed) / float64(used-was.used)
		q.ratios[key] = min(1, max(least, ratio))
	}
	q.seen[key] = quotaSeen{used, consumed}
}

// off is how much an object may differ from what it should be set to.
func (s setting) off() uint64 {
	const part, most = 32, 256 << 10
	return min(s.left/part, most)
}

// setQuotas brings the tables to w.
func (f *Firewall) setQuotas(ctx context.Context, d *dumper, w *quotaWall) error {
	if f.quotas.seen == nil {
		f.quotas.seen, f.quotas.ratios = map[string]quotaSeen{}, map[string]float64{}
	}
	now, err := readQuotas(d)
	if err != nil {
		return err
	}
	differs, err := f.diffQuotas(ctx, d, w, now)
	if err != nil {
		return err
	}
	whole := len(differs) == 0
	if !whole && f.quotas.standing != nil && w.same(f.quotas.standing) {
		f.mended = append(f.mended, differs...)
	}
	var text strings.Builder
	settings := make([]setting, len(w.objects))
	for i := range w.objects {
		o := &w.objects[i]
		s := f.setting(o, now)
		settings[i] = s
		h := now[s.key]
		over := h.consumed - s.since + s.left
		switch {
		case h.spent && over > h.over:
			// What it dropped was added to what it consumed, and nobody tells how much.
			whole = false
		case !h.spent && max(over, h.over)-min(over, h.over) > s.off():
			fmt.Fprintf(&text, "add quota %s %s %s { over %d bytes ; }\n", o.family, quotaName, o.name, over)
		}
	}
	if !whole {
		return f.replaceQuotas(ctx, d, w, settings)
	}
	if text.Len() == 0 {
		return nil
	}
	return f.load(ctx, text.String())
}

// diffQuotas tells in sentences where the tables are not those of w, but for what
// objects are set to. Where nothing is held no tables are as good. When there is
// no difference it knows them from then on.
func (f *Firewall) diffQuotas(ctx context.Context, d *dumper, w *quotaWall, now map[string]held) ([]string, error) {
	gen, err := generation()
	if err != nil {
		return nil, err
	}
	if f.quotas.standing != nil && gen == f.quotas.gen && w.same(f.quotas.standing) {
		return nil, nil
	}
	var missing []string
	for _, family := range trafficFamilies() {
		tables, err := d.handles(family)
		if err != nil {
			return nil, err
		}
		if _, ok := tables[quotaName]; !ok {
			missing = append(missing, missingTable(family, quotaName))
		}
	}
	if len(missing) == len(trafficFamilies()) && w.empty() {
		f.quotas.standing = nil
		return nil, nil
	}
	if len(missing) > 0 {
		return missing, nil
	}
	if !w.holds(now) {
		return []string{"the tables " + quotaName + " hold other quotas"}, nil
	}
	want, err := f.rehearseNamed(ctx, quotaName, w.text(nil, nil))
	if err != nil {
		return nil, err
	}
	differs, err := f.differsFrom(ctx, quotaName, want)
	if err == nil && len(differs) == 0 {
		f.quotas.standing, f.quotas.gen = w, gen
	}
	return differs, err
}

// holds tells whether the objects that there are are those of w.
func (w *quotaWall) holds(now map[string]held) bool {
	for i := range w.objects {
		if _, ok := now[w.objects[i].key]; !ok {
			return false
		}
	}
	return len(now) == len(w.objects)
}

// limitText is what an object that is made anew is set to.
func limitText(s setting) string {
	return fmt.Sprintf("over %d bytes used %d bytes", s.left, s.since)
}

// replaceQuotas makes the tables anew, in one transaction. What was dropped so
// far stays counted.
func (f *Firewall) replaceQuotas(ctx context.Context, d *dumper, w *quotaWall, settings []setting) error {
	limits := map[string]string{}
	for _, s := range settings {
		limits[s.key] = limitText(s)
	}
	kept, err := d.kept(quotaDrops())
	if err != nil {
		return err
	}
	f.quotas.standing = nil
	if err := f.load(ctx, removal(quotaName)+w.text(limits, kept)); err != nil {
		return err
	}
	gen, err := generation()
	if err != nil {
		return err
	}
	// Objects count from zero now, when their quotas were counted.
	f.quotas.standing, f.quotas.gen, f.quotas.readings = w, gen, nil
	f.traffic.reads = 0
	clear(f.quotas.seen)
	for i, s := range settings {
		at := w.objects[i].quota.At
		read := f.quotas.at(at)
		if read == nil {
			read = map[string]held{}
			f.quotas.note(at, read)
		}
		read[s.key] = held{over: s.left}
	}
	f.log.InfoContext(ctx, "quotas replaced", "objects", len(w.objects), "suspended", len(w.suspended[inet])+len(w.suspended[bridge]))
	return nil
}
