package sqlite

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sublet/internal/vps"
)

// trafficWorld is a host whose traffic is known, with a ledger that is to tell
// it, and all that may happen to both.
type trafficWorld struct {
	t    *rapid.T
	path string
	db   *DB

	now    time.Time // the wall clock
	zone   *time.Location
	uptime time.Duration
	boot   int
	epoch  int
	guests []TrafficGuest
	made   int
	kernel map[string]*tally // by link
	public tally             // the uplink's counter

	// passed is what really went by, by guest and direction; fresh the part of it
	// since the last sample, and doubt what counters that began anew may have
	// lost of it.
	passed, fresh, doubt map[way]int64
	again                map[way]bool // whose counters began anew since
	sampled              bool
}

// way is a direction of a guest's traffic, or of the host's own.
type way struct {
	id  string
	out bool
}

func newTrafficWorld(t *rapid.T, dir string) *trafficWorld {
	w := &trafficWorld{
		t: t, path: filepath.Join(dir, "state.db"), zone: time.UTC,
		now:    time.Date(2026, 10, 31, 22, 50, 0, 0, time.UTC),
		kernel: map[string]*tally{}, passed: map[way]int64{}, fresh: map[way]int64{}, doubt: map[way]int64{}, again: map[way]bool{},
	}
	w.reopen()
	for range 3 {
		w.guests = append(w.guests, w.newGuest(fmt.Sprintf("g%d", len(w.guests))))
	}
	return w
}

func (w *trafficWorld) newGuest(name string) TrafficGuest {
	w.made++
	return TrafficGuest{ID: fmt.Sprintf("id%d", w.made), Name: name, Tenant: "t", Link: vps.LinkName(name)}
}

// reopen is a daemon that was killed, and started again.
func (w *trafficWorld) reopen() {
	if w.db != nil {
		if err := w.db.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	db, err := Open(w.t.Context(), w.path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	// Nobody pulls the plug here.
	if _, err := db.write.ExecContext(w.t.Context(), "PRAGMA synchronous = OFF"); err != nil {
		w.t.Fatal(err)
	}
	w.db = db
}

func (w *trafficWorld) traffic() {
	g := rapid.SampledFrom(w.guests).Draw(w.t, "whose")
	at := rapid.IntRange(0, 3*len(tallyFamilies)-1).Draw(w.t, "of")
	n := rapid.Int64Range(1, 1<<33).Draw(w.t, "bytes")
	if w.kernel[g.Link] == nil {
		w.kernel[g.Link] = &tally{}
	}
	c := vps.TrafficCount{InBytes: n, InPackets: n/1500 + 1, OutBytes: n / 3, OutPackets: n/4500 + 1}
	k := w.kernel[g.Link]
	k[at] = k[at].Add(c)
	up := &w.public[len(w.public)-1]
	*up = up.Add(c)
	for _, id := range []string{g.ID, ""} {
		w.pass(way{id, false}, c.InBytes)
		w.pass(way{id, true}, c.OutBytes)
	}
}

func (w *trafficWorld) pass(of way, bytes int64) {
	w.passed[of] += bytes
	w.fresh[of] += bytes
}

// begun tells that counters stand at nothing again, and that this is seen by
// their epoch.
func (w *trafficWorld) begun(id string) {
	for _, of := range []way{{id, false}, {id, true}} {
		w.doubt[of] += w.fresh[of]
	}
}

func (w *trafficWorld) sampleNow() (TrafficSample, error) {
	s := TrafficSample{
		Counters: vps.TrafficCounters{At: w.now, Epoch: fmt.Sprint(w.epoch)},
		Guests:   w.guests, Boot: fmt.Sprint(w.boot), Uptime: w.uptime, Zone: w.zone,
		Uplinks: []vps.LinkTraffic{{Link: "eth0", TrafficKey: keyOf(len(w.public) - 1), TrafficCount: w.public[len(w.public)-1]}},
	}
	for link, t := range w.kernel {
		for i, c := range t {
			if c != (vps.TrafficCount{}) {
				s.Counters.Links = append(s.Counters.Links, vps.LinkTraffic{Link: link, TrafficKey: keyOf(i), TrafficCount: c})
			}
		}
	}
	_, err := w.db.AddTraffic(w.t.Context(), s)
	return s, err
}

func (w *trafficWorld) sample() {
	if _, err := w.sampleNow(); err != nil {
		w.t.Fatal(err)
	}
	if !w.sampled { // the uplink has counted for long
		for _, of := range []way{{}, {out: true}} {
			w.passed[of], w.fresh[of] = 0, 0
		}
		w.sampled = true
	}
	for of := range w.again {
		w.doubt[of] += w.fresh[of]
	}
	clear(w.again)
	clear(w.fresh)
	w.check()
}

// failSample is a sample whose transaction cannot be committed.
func (w *trafficWorld) failSample() {
	exec := func(statement string) {
		if _, err := w.db.write.ExecContext(w.t.Context(), statement); err != nil {
			w.t.Fatal(err)
		}
	}
	exec("CREATE TRIGGER full BEFORE UPDATE ON traffic_state BEGIN SELECT RAISE(ABORT, 'full'); END")
	if _, err := w.sampleNow(); err == nil {
		w.t.Fatal("a sample that cannot be kept is no error")
	}
	exec("DROP TRIGGER full")
	w.check()
}

// check compares the ledger with what passed.
func (w *trafficWorld) check() {
	for _, step := range vps.TrafficSteps() {
		rows, err := w.db.Traffic(w.t.Context(), vps.TrafficQuery{Step: step})
		if err != nil {
			w.t.Fatal(err)
		}
		told := map[way]int64{}
		for _, r := range rows {
			if min(r.InBytes, r.InPackets, r.OutBytes, r.OutPackets) < 0 {
				w.t.Fatalf("%s: a negative row %+v", step, r)
			}
			told[way{r.GuestID, false}] += r.InBytes
			told[way{r.GuestID, true}] += r.OutBytes
		}
		for of, passed := range w.passed {
			known := passed - w.fresh[of]
			if of.id == "" && !w.sampled {
				continue
			}
			if told[of] > known || step != vps.StepFiveMinutes && told[of] < known-w.doubt[of] {
				w.t.Fatalf("%s: %+v had %d bytes, of which %d are in doubt; the ledger has %d", step, of, known, w.doubt[of], told[of])
			}
		}
	}
}

// resetCounter lets a guest's counters begin anew, in both directions or in one,
// each of which is a counter of its own in the kernel. It may not be seen, when
// they are higher by the next sample.
func (w *trafficWorld) resetCounter() {
	g := rapid.SampledFrom(w.guests).Draw(w.t, "whose")
	which := rapid.IntRange(1, 3).Draw(w.t, "directions")
	counters := w.kernel[g.Link]
	if counters == nil {
		return
	}
	for i := range counters {
		c := &counters[i]
		if which&1 != 0 {
			c.InBytes, c.InPackets = 0, 0
			w.again[way{g.ID, false}] = true
		}
		if which&2 != 0 {
			c.OutBytes, c.OutPackets = 0, 0
			w.again[way{g.ID, true}] = true
		}
	}
}

func (w *trafficWorld) reloadTable() {
	w.epoch++
	clear(w.kernel)
	for _, g := range w.guests {
		w.begun(g.ID)
	}
}

func (w *trafficWorld) reboot() {
	w.boot, w.uptime, w.public = w.boot+1, time.Minute, tally{}
	w.begun("")
	w.reloadTable()
	w.reopen()
}

// remake deletes a guest and makes another one of its name.
func (w *trafficWorld) remake() {
	w.sample()
	i := rapid.IntRange(0, len(w.guests)-1).Draw(w.t, "whose")
	if rapid.Bool().Draw(w.t, "forgotten") {
		delete(w.kernel, w.guests[i].Link)
		w.sample()
	}
	if rapid.Bool().Draw(w.t, "seen without") {
		all := w.guests
		w.guests = slices.Delete(slices.Clone(all), i, i+1)
		w.sample()
		w.guests = all
	}
	w.guests = slices.Clone(w.guests)
	w.guests[i] = w.newGuest(w.guests[i].Name)
}

func (w *trafficWorld) wait() {
	d := time.Duration(rapid.Int64Range(1, int64(2*time.Hour)).Draw(w.t, "for"))
	w.now, w.uptime = w.now.Add(d), w.uptime+d
}

func (w *trafficWorld) tick() {
	w.now, w.uptime = w.now.Add(10*time.Second), w.uptime+10*time.Second
}

// fiveMinutes is the rarest sampling that there is, with a host that is busy.
func (w *trafficWorld) fiveMinutes() {
	late := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(w.t, "late"))
	d := time.Duration(vps.MaxTrafficSample) + late
	w.now, w.uptime = w.now.Add(d), w.uptime+d
	w.sample()
}

func (w *trafficWorld) setClock() {
	hours := rapid.SampledFrom([]int{-24 * 365, -24 * 31, -25, -1, 1, 25, 24 * 31, 24 * 365 * 12}).Draw(w.t, "hours")
	w.now = w.now.Add(time.Duration(hours) * time.Hour)
}

func (w *trafficWorld) setZone() {
	name := rapid.SampledFrom([]string{"Etc/UTC", "Asia/Shanghai", "Asia/Kolkata", "America/Havana", "Australia/Lord_Howe"}).Draw(w.t, "zone")
	zone, err := time.LoadLocation(name)
	if err != nil {
		w.t.Fatal(err)
	}
	w.zone = zone
}

// TestLedgerProperty lets anything happen between samples, in any order: what
// the ledger tells is never more than what passed, and less by no more than what
// passed between two samples where counters began anew.
func TestLedgerProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w := newTrafficWorld(rt, t.TempDir())
		defer func() {
			if err := w.db.Close(); err != nil {
				rt.Error(err)
			}
		}()
		w.sample()
		act := func(do func()) func(*rapid.T) {
			return func(t *rapid.T) { w.t = t; do() }
		}
		rt.Repeat(map[string]func(*rapid.T){
			"traffic": act(w.traffic), "more traffic": act(w.traffic), "sample": act(w.sample), "rare sample": act(w.fiveMinutes), "tick": act(w.tick),
			"failed sample": act(w.failSample), "kill": act(w.reopen), "counter reset": act(w.resetCounter),
			"table reloaded": act(w.reloadTable), "reboot": act(w.reboot), "guest remade": act(w.remake),
			"wait": act(w.wait), "clock set": act(w.setClock), "zone set": act(w.setZone),
		})
		w.t = rt
		w.sample()
	})
}

// TestJitter samples every 5 minutes, each time more or less late, while traffic
// goes at a steady rate: each hour gets what passed in it, but for half of what
// passed between two samples at either end, and no hour's is another's for good.
func TestJitter(t *testing.T) {
	t.Parallel()
	const rate = 1000 // bytes a second
	rapid.Check(t, func(rt *rapid.T) {
		w := newTrafficWorld(rt, t.TempDir())
		defer func() {
			if err := w.db.Close(); err != nil {
				rt.Error(err)
			}
		}()
		w.now = w.now.Truncate(time.Hour)
		begin, g := w.now, w.guests[0]
		w.kernel[g.Link] = &tally{}
		w.sample()
		every := time.Duration(vps.MaxTrafficSample)
		const most = time.Minute
		for n := range 60 {
			at := begin.Add(time.Duration(n+1)*every + time.Duration(rapid.Int64Range(0, int64(most)).Draw(rt, "late")))
			w.uptime += at.Sub(w.now)
			w.now = at
			bytes := int64(at.Sub(begin).Seconds() * rate)
			w.passed[way{g.ID, false}] = bytes
			w.kernel[g.Link][0].InBytes = bytes
			w.sample()
		}
		rows, err := w.db.Traffic(rt.Context(), vps.TrafficQuery{Step: vps.StepHour, GuestIDs: []string{g.ID}})
		if err != nil {
			rt.Fatal(err)
		}
		off := int64((every + most).Seconds() * rate)
		for _, r := range rows[:4] { // the fifth may have begun
			if apart := r.InBytes - 3600*rate; apart > off || apart < -off {
				rt.Fatalf("the hour of %s has %d bytes", r.Start, r.InBytes)
			}
		}
	})
}
