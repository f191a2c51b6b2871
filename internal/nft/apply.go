//go:build linux

package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// tables are ours as people read it.
const tables = "inet, netdev and bridge sublet"

// Apply makes our tables be what n and uplinks call for (see Render), in one
// transaction: established connections go on. When they are that already
// nothing is written, and when no ruleset of this network was changed by
// anybody since the last look, nothing but that is asked. When only guests
// changed, only their elements do, and counters, limits and logs of all others
// go on; otherwise the tables are replaced, and the counters of drops are
// carried over. It needs no memory of former calls, or of a former process. On
// an error the old tables stand whole.
//
// When somebody took away the tables that Traffic or SetQuotas made, they are
// back as well.
func (f *Firewall) Apply(ctx context.Context, n vps.Network, uplinks []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, err := collect(n, uplinks)
	if err != nil {
		return err
	}
	if err := f.apply(ctx, w); err != nil {
		return err
	}
	if err := f.restore(ctx); err != nil {
		// The wall stands, which guests must not wait for; who reads the traffic
		// is told the same.
		f.log.ErrorContext(ctx, "the guests' traffic is not counted or held", "error", err)
	}
	f.mended = nil
	return nil
}

func (f *Firewall) apply(ctx context.Context, w *wall) error {
	f.ports = w.ports
	taps, err := w.present()
	if err != nil {
		return err
	}
	if done, err := f.change(ctx, w, taps); done || err != nil {
		return err
	}
	drift, err := f.diff(ctx, w, taps)
	if err != nil || len(drift) == 0 {
		return err
	}
	before, genErr := generation()
	kept, err := keptDrops()
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the firewall's counters could not be read; nothing was changed")
	}
	text := w.replacement(sortedKeys(taps), kept)
	if _, err := f.run(ctx, text, "-f", "-"); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the firewall's tables %s could not be loaded; nothing was changed", tables)
	}
	f.remember(w, taps, before, genErr)
	f.traffic.reads = 0
	f.log.InfoContext(ctx, "firewall replaced", "guests", len(w.taps)+len(w.ports))
	return nil
}

// present returns the indexes of the taps of the wall's guests that there are.
func (w *wall) present() (map[string]int, error) {
	indexes, err := openIndexes()
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the host's links could not be looked up")
	}
	defer indexes.close()
	taps := make(map[string]int, len(w.taps))
	for l := range w.taps {
		i, err := indexes.of(l)
		if err != nil {
			return nil, vps.Wrap(vps.CodeInternal, err, "the host's link %s could not be looked up", l)
		}
		if i != 0 {
			taps[l] = i
		}
	}
	return taps, nil
}

// change brings tables that are known to be in place to w by what differs. It
// reports whether that was enough.
func (f *Firewall) change(ctx context.Context, w *wall, taps map[string]int) (bool, error) {
	gen, err := generation()
	if err != nil || f.inPlace == nil || gen != f.gen || w.structure != f.inPlace.structure {
		return false, nil //nolint:nilerr // What cannot be known is looked up.
	}
	if f.inPlace.same(w) && maps.Equal(f.taps, taps) {
		return true, nil
	}
	var text strings.Builder
	text.WriteString(w.change(f.inPlace))
	for _, l := range sortedKeys(f.taps) {
		if _, ok := taps[l]; !ok {
			// A kernel may have removed it together with the link.
			where := ours(netdev) + " " + l
			fmt.Fprintf(&text, "add chain %s\nflush chain %s\ndelete chain %s\n", where, where, where)
		}
	}
	for _, l := range sortedKeys(taps) {
		if had, ok := f.taps[l]; !ok {
			text.WriteString(guardNew(l))
		} else if had != taps[l] {
			text.WriteString(guardLink(l))
		}
	}
	if _, err := f.run(ctx, text.String(), "-f", "-"); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		f.log.WarnContext(ctx, "the firewall could not be changed in part and is looked at as a whole", "error", err)
		f.inPlace = nil
		return false, nil
	}
	f.remember(w, taps, gen, nil)
	return true, nil
}

// remember keeps what a transaction of ours put in place: before is the
// ruleset's generation at its beginning.
func (f *Firewall) remember(w *wall, taps map[string]int, before uint32, err error) {
	gen, genErr := generation()
	if err != nil || genErr != nil || gen != before+1 {
		// Somebody else was there as well: it has to be looked at.
		f.inPlace = nil
		return
	}
	f.advance(before)
	f.inPlace, f.taps, f.gen = w, taps, gen
}

// Guard puts the wall for frames on taps that there are, before they come up.
// Taps that have it already get it anew, without a moment in between. It is one
// transaction and fails, changing nothing, when our tables are not there or a
// name is not that of a guest's link.
func (f *Firewall) Guard(ctx context.Context, links ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	gen, genErr := generation()
	known := genErr == nil && f.inPlace != nil && gen == f.gen
	var text strings.Builder
	taps := map[string]int{}
	indexes, err := openIndexes()
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the links %s cannot be guarded", strings.Join(links, ", "))
	}
	defer indexes.close()
	for _, l := range links {
		if !linkName.MatchString(l) || !strings.HasPrefix(l, vps.LinkPrefix) {
			return vps.Invalid("link", "%q is not the name of a guest's link", l)
		}
		i, err := indexes.of(l)
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the link %s cannot be guarded", l)
		}
		if i == 0 {
			return vps.Errorf(vps.CodeInternal, "the link %s cannot be guarded: there is none", l)
		}
		taps[l] = i
		if _, had := f.taps[l]; known && !had {
			text.WriteString(guardNew(l))
		} else {
			text.WriteString(guardLink(l))
		}
	}
	if len(links) == 0 {
		return nil
	}
	if _, err := f.run(ctx, text.String(), "-f", "-"); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the links %s could not be guarded; they must stay down until the firewall is there", strings.Join(links, ", "))
	}
	if known {
		all := maps.Clone(f.taps)
		maps.Copy(all, taps)
		f.remember(f.inPlace, all, gen, nil)
	}
	return nil
}

// Diff tells in sentences where the tables on this host differ from what n and
// uplinks call for; nil when they do not. It sees every element, rule, chain
// and set, however it was changed and by whom, also after a restart of the
// process: the tables are compared with how nft lists the wanted ones, which
// are loaded for that into an empty network of its own. Tables that were made
// for another network are told in one sentence. What packets put into sets is
// no difference. So are the tables that Traffic and SetQuotas made, but only for
// the Firewall that did. Diff changes nothing.
func (f *Firewall) Diff(ctx context.Context, n vps.Network, uplinks []string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, err := collect(n, uplinks)
	if err != nil {
		return nil, err
	}
	taps, err := w.present()
	if err != nil {
		return nil, err
	}
	drift, err := f.diffWall(ctx, w, taps)
	if err != nil {
		return nil, err
	}
	restored, err := f.diffRestored(ctx)
	if err != nil {
		f.log.ErrorContext(ctx, "it is not known whether the guests' traffic is counted and held", "error", err)
	}
	return slices.Concat(drift, f.mended, restored), nil
}

// diffWall compares our tables with those of w, unless they are known.
func (f *Firewall) diffWall(ctx context.Context, w *wall, taps map[string]int) ([]string, error) {
	if gen, err := generation(); err == nil && f.inPlace != nil && gen == f.gen {
		if f.inPlace.same(w) && maps.Equal(f.taps, taps) {
			return nil, nil
		}
		return []string{"the tables " + tables + " are those of other guests"}, nil
	}
	return f.diff(ctx, w, taps)
}

// diff compares our tables with those of w.
func (f *Firewall) diff(ctx context.Context, w *wall, taps map[string]int) ([]string, error) {
	// Asked before the tables are listed: a change that comes between the two
	// then shows as a new generation next time.
	gen, genErr := generation()
	present, err := f.list(ctx)
	if err != nil {
		return nil, err
	}
	var drift []string
	for _, family := range families() {
		if present[family] == nil {
			drift = append(drift, "the table "+ours(family)+" is missing")
		}
	}
	if len(drift) > 0 {
		return drift, nil
	}
	if mark := fmt.Sprintf("comment %q", w.mark()); !slices.Contains(present[inet][""].lines, mark) {
		return []string{"the table " + ours(inet) + " was made by another version, or for another gateway"}, nil
	}
	if f.rehearsed == nil || !f.rehearsed.same(w) {
		canonical, err := f.rehearse(ctx, w)
		if err != nil {
			return nil, err
		}
		f.rehearsed, f.canonical = w, canonical
	}
	for _, family := range families() {
		want, have := maps.Clone(f.canonical[family]), present[family]
		if family == netdev {
			want, have = wantLinks(want, taps), withoutGone(have, w, taps)
		}
		drift = append(drift, compare(ours(family), want, have)...)
	}
	if len(drift) == 0 && genErr == nil {
		f.inPlace, f.taps, f.gen = w, taps, gen
	}
	return drift, nil
}

// stand stands for all guests' links in a rehearsal: every network has it.
const stand = "lo"

// wantLinks replaces the rehearsed chain by one for each tap.
func wantLinks(want map[string]*block, taps map[string]int) map[string]*block {
	model := want["chain "+stand]
	delete(want, "chain "+stand)
	for l := range taps {
		b := &block{}
		for _, line := range model.lines {
			b.lines = append(b.lines, strings.ReplaceAll(line, quote(stand), quote(l)))
		}
		want["chain "+l] = b
	}
	return want
}

// withoutGone leaves out the chains of guests' links that are not there: kernels
// differ in whether a chain goes with its link.
func withoutGone(have map[string]*block, w *wall, taps map[string]int) map[string]*block {
	have = maps.Clone(have)
	for l := range w.taps {
		if _, ok := taps[l]; !ok {
			delete(have, "chain "+l)
		}
	}
	return have
}

// CleanUp removes our tables, those that count among them. When there are none it succeeds. Nothing else is
// touched, and it needs no memory of what Apply did.
func (f *Firewall) CleanUp(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var text strings.Builder
	for _, family := range families() {
		// add makes the delete succeed when there is no table.
		text.WriteString("add table " + ours(family) + "\ndelete table " + ours(family) + "\n")
	}
	text.WriteString(removal(trafficName) + removal(quotaName))
	if _, err := f.run(ctx, text.String(), "-f", "-"); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the firewall's tables %s could not be removed; try: nft delete table inet sublet", tables)
	}
	f.inPlace, f.traffic.epoch, f.quotas = nil, "", quotaTables{}
	return nil
}

// list returns our tables as nft writes them, by family and block; a table that
// is not there is nil. What counters and limits are at is left out.
func (f *Firewall) list(ctx context.Context) (map[string]map[string]*block, error) {
	found, err := f.run(ctx, "", "list", "tables")
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the firewall's tables could not be listed")
	}
	names := strings.Split(found, "\n")
	present := map[string]map[string]*block{}
	for _, family := range families() {
		if !slices.Contains(names, "table "+ours(family)) {
			continue
		}
		out, err := f.run(ctx, "", "--stateless", "list", "table", family, wallName)
		if err != nil {
			return nil, vps.Wrap(vps.CodeInternal, err, "the firewall's table %s could not be read", ours(family))
		}
		present[family] = parse(out)
	}
	return present, nil
}

// rehearse loads the tables of w in an empty network namespace that lives no
// longer than the call, with one link for all, and returns how nft lists them
// there. The real rules are not touched; what nft would refuse, it refuses here.
func (f *Firewall) rehearse(ctx context.Context, w *wall) (map[string]map[string]*block, error) {
	var listing map[string]map[string]*block
	err := elsewhere(func() error {
		if _, err := f.run(ctx, w.replacement([]string{stand}, nil), "-f", "-"); err != nil {
			return err
		}
		var err error
		listing, err = f.list(ctx)
		return err
	})
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the firewall's tables %s cannot be made on this host; nothing was changed", tables)
	}
	for _, family := range families() {
		if listing[family] == nil {
			return nil, errors.New("nft does not list the table " + ours(family))
		}
	}
	return listing, nil
}

// elsewhere calls do in an empty network that lives no longer than the call.
func elsewhere(do func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the runtime discards the thread, and the kernel with
		// it the namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- os.NewSyscallError("unshare", err)
			return
		}
		done <- do()
	}()
	return <-done
}
