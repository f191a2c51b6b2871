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

	// passed is what really went by, by guest; fresh the part of it since the
	// last sample, and doubt what counters that began anew may have lost of it.
	passed, fresh, doubt map[string]int64
	again                map[string]bool // guests whose counters began anew since
	sampled              bool
}

func newTrafficWorld(t *rapid.T, dir string) *trafficWorld {
	w := &trafficWorld{
		t: t, path: filepath.Join(dir, "state.db"), zone: time.UTC,
		now:    time.Date(2026, 10, 31, 22, 50, 0, 0, time.UTC),
		kernel: map[string]*tally{}, passed: map[string]int64{}, fresh: map[string]int64{}, doubt: map[string]int64{}, again: map[string]bool{},
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
	w.pass(g.ID, c.InBytes+c.OutBytes)
	w.pass("", c.InBytes+c.OutBytes)
}

func (w *trafficWorld) pass(id string, bytes int64) {
	w.passed[id] += bytes
	w.fresh[id] += bytes
}

// begun tells that counters stand at nothing again, and that this is seen by
// their epoch.
func (w *trafficWorld) begun(id string) { w.doubt[id] += w.fresh[id] }

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
		w.passed[""], w.fresh[""], w.sampled = 0, 0, true
	}
	for id, again := range w.again {
		if again {
			w.doubt[id] += w.fresh[id]
		}
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
		told := map[string]int64{}
		for _, r := range rows {
			if min(r.InBytes, r.InPackets, r.OutBytes, r.OutPackets) < 0 {
				w.t.Fatalf("%s: a negative row %+v", step, r)
			}
			told[r.GuestID] += r.InBytes + r.OutBytes
		}
		for id, passed := range w.passed {
			known := passed - w.fresh[id]
			if id == "" && !w.sampled {
				continue
			}
			if told[id] > known || step != vps.StepFiveMinutes && told[id] < known-w.doubt[id] {
				w.t.Fatalf("%s: %q had %d bytes, of which %d are in doubt; the ledger has %d", step, id, known, w.doubt[id], told[id])
			}
		}
	}
}

func (w *trafficWorld) resetCounter() {
	g := rapid.SampledFrom(w.guests).Draw(w.t, "whose")
	delete(w.kernel, g.Link)
	w.again[g.ID] = true // it may not be seen, when it is higher by the next sample
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
			"traffic": act(w.traffic), "more traffic": act(w.traffic), "sample": act(w.sample), "tick": act(w.tick),
			"failed sample": act(w.failSample), "kill": act(w.reopen), "counter reset": act(w.resetCounter),
			"table reloaded": act(w.reloadTable), "reboot": act(w.reboot), "guest remade": act(w.remake),
			"wait": act(w.wait), "clock set": act(w.setClock), "zone set": act(w.setZone),
		})
		w.t = rt
		w.sample()
	})
}
