package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// trafficWorld is a host whose kernel counts what the test says.
type trafficWorld struct {
	t *testing.T
	backend
	links, uplinks []vps.LinkTraffic
	skew           time.Duration // of the host's clock
	broken         error         // of the next samples
}

func (w *trafficWorld) Traffic(context.Context) (vps.TrafficCounters, error) {
	return vps.TrafficCounters{At: time.Now().Add(w.skew), Epoch: "e", Links: append([]vps.LinkTraffic(nil), w.links...)}, w.broken
}
func (w *trafficWorld) ForgetTraffic(context.Context, ...string) error { return nil }
func (w *trafficWorld) Uplinks(context.Context, string) ([]string, error) {
	return []string{"eth0", "eth1"}, nil
}

func (w *trafficWorld) Counters(context.Context, []string) ([]vps.LinkTraffic, error) {
	return append([]vps.LinkTraffic(nil), w.uplinks...), nil
}

// SetQuotas is the kernel's part of quotas, of which there are none.
func (w *trafficWorld) SetQuotas(context.Context, []vps.NetworkQuota, []string, []string) error {
	return nil
}

// Kick and Snapshot are those of a loop that has not run yet.
func (w *trafficWorld) Kick() {}

func (w *trafficWorld) Snapshot() (reconcile.Snapshot, <-chan struct{}) {
	return reconcile.Snapshot{}, nil
}

// newTrafficWorld makes a host with the guests alice and bob. The public link
// has counted before.
func newTrafficWorld(t *testing.T) *trafficWorld {
	t.Helper()
	w := newTrafficWorldWithoutLink(t)
	w.uplink(5000, 5000)
	w.sampleTraffic(t.Context())
	return w
}

// newTrafficWorldWithoutLink makes one whose public link is not up yet.
func newTrafficWorldWithoutLink(t *testing.T) *trafficWorld {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	log := slog.New(slog.DiscardHandler)
	w := &trafficWorld{t: t}
	p := &parts{db: db, log: log, state: desired.New(db, plenty{}), hostBoot: "boot", synced: func() bool { return false }}
	p.quotas = &enforcer{state: p.state, db: db, kernel: w, uplinks: w.Uplinks, loop: w, log: log, now: time.Now, edited: make(chan struct{}, 1)}
	p.traffic = &sampler{kernel: w, uplinks: w, db: db, boot: "boot", log: log}
	w.backend = backend{p}
	for _, name := range []string{"alice", "bob"} {
		if _, err := w.state.Create(t.Context(), name, func(s vps.GuestSpec) (vps.GuestSpec, error) { return s, nil }, false); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *trafficWorld) uplink(in, out int64) {
	w.uplinks = []vps.LinkTraffic{{Link: "eth0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}, TrafficCount: vps.TrafficCount{InBytes: in, InPackets: in / 100, OutBytes: out, OutPackets: out / 100}}}
}

func (w *trafficWorld) count(guest string, class vps.TrafficClass, in, out int64) {
	w.links = append(w.links, vps.LinkTraffic{
		Link: vps.LinkName(guest), TrafficKey: vps.TrafficKey{Class: class, Family: 4},
		TrafficCount: vps.TrafficCount{InBytes: in, InPackets: in / 100, OutBytes: out, OutPackets: out / 100},
	})
}

// history asks for history and returns its rows as text.
func (w *trafficWorld) history(q api.TrafficQuery) []string {
	w.t.Helper()
	if q.Step == "" {
		q.Step = vps.StepDay
	}
	h, err := w.backend.Traffic(w.t.Context(), q)
	if err != nil {
		w.t.Fatal(err)
	}
	var rows []string
	for _, r := range h.Rows {
		rows = append(rows, fmt.Sprintf("%s %s%d %d %d", r.Guest, r.Class, r.Family, r.InBytes, r.OutBytes))
	}
	return rows
}

func (w *trafficWorld) want(got []string, want ...string) {
	w.t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		w.t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestTrafficHistory(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.count("alice", vps.TrafficInternet, 1000, 300)
	w.count("alice", vps.TrafficDropped, 0, 7)
	w.count("bob", vps.TrafficInternet, 50, 60)
	w.uplink(8000, 6000)
	w.want(w.history(api.TrafficQuery{Guest: "alice"}), "alice internet4 1000 300", "alice dropped4 0 7")
	w.want(w.history(api.TrafficQuery{}), "alice internet4 1000 300", "alice dropped4 0 7", "bob internet4 50 60")
	w.want(w.history(api.TrafficQuery{Sum: true, Last: 1, Step: vps.StepMonth}), " dropped4 0 7", " internet4 1050 360")
	w.want(w.history(api.TrafficQuery{Host: true}), " uplink0 3000 1000")
	w.want(w.history(api.TrafficQuery{Guest: "alice", Since: "1h", Step: vps.StepHour, Top: 10}), "alice internet4 1000 300", "alice dropped4 0 7")
	w.want(w.history(api.TrafficQuery{Guest: "alice", Until: "2d"}))
	for _, q := range []api.TrafficQuery{{Guest: "nobody"}, {Since: "soon"}, {Until: "soon"}} {
		if _, err := w.backend.Traffic(t.Context(), q); err == nil {
			t.Errorf("%+v passes", q)
		}
	}
}

// TestTrafficBehind: what cannot be kept now is told, and kept later.
func TestTrafficBehind(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	since := time.Now()
	w.count("alice", vps.TrafficInternet, 1000, 300)
	w.broken = vps.Errorf(vps.CodeDenied, "the disk is full")
	h, err := w.backend.Traffic(t.Context(), api.TrafficQuery{Guest: "alice", Step: vps.StepDay})
	if err != nil || h.Behind != "the disk is full" || h.At.After(since) || h.At.IsZero() || len(h.Rows) != 0 {
		t.Errorf("%+v, %v", h, err)
	}
	check, err := w.backend.CheckTraffic(t.Context(), "")
	if err != nil || check.Until.After(since) || !strings.Contains(strings.Join(check.Notes, "\n"), "the disk is full") {
		t.Errorf("%+v, %v", check, err)
	}
	w.broken = nil
	h, err = w.backend.Traffic(t.Context(), api.TrafficQuery{Guest: "alice", Step: vps.StepDay})
	if err != nil || h.Behind != "" || h.At.Before(since) || len(h.Rows) != 1 || h.Rows[0].InBytes != 1000 {
		t.Errorf("with room again: %+v, %v", h, err)
	}
}

// A guest that is deleted keeps its history; the next of its name begins anew.
func TestTrafficOfDeletedGuests(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.count("alice", vps.TrafficInternet, 1000, 300)
	w.sampleTraffic(t.Context())
	host, err := w.state.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.state.Forget(t.Context(), host.Guests[0].ID); err != nil {
		t.Fatal(err)
	}
	w.want(w.history(api.TrafficQuery{Guest: "alice"}), "alice internet4 1000 300")
	w.want(w.history(api.TrafficQuery{}), "alice internet4 1000 300")
	if _, err := w.state.Create(t.Context(), "alice", func(s vps.GuestSpec) (vps.GuestSpec, error) { return s, nil }, false); err != nil {
		t.Fatal(err)
	}
	w.want(w.history(api.TrafficQuery{Guest: "alice"}))
}

// midMonth is a moment at which all zones have the same month, so that the
// host's may change.
func midMonth() time.Time { return time.Date(2026, 10, 15, 12, 0, 0, 0, time.UTC) }

// TestTrafficKeepsItsDays changes the zone of the host to the west, and back:
// days and months are called what they were when they were counted.
func TestTrafficKeepsItsDays(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.state = w.state.WithClock(midMonth)
	east := zoneOf(t, "Asia/Shanghai")
	host, err := w.state.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	imported := sqlite.TrafficImport{Guest: sqlite.TrafficGuest{ID: host.Guests[0].ID, Name: "alice"}, Zone: east, Now: time.Now()}
	for day := 1; day <= 3; day++ {
		at := time.Date(2025, 1, day, 0, 0, 0, 0, east)
		imported.Rows = append(imported.Rows, vps.TrafficRow{Step: vps.StepDay, Start: at, TrafficCount: vps.TrafficCount{InBytes: int64(day)}})
	}
	imported.Rows = append(imported.Rows, vps.TrafficRow{Step: vps.StepMonth, Start: imported.Rows[0].Start, TrafficCount: vps.TrafficCount{InBytes: 6}})
	if _, err := w.db.ImportTraffic(t.Context(), imported); err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{"Asia/Shanghai", "America/New_York", "Pacific/Auckland", "Asia/Shanghai"} {
		if _, err := w.state.SetSettings(t.Context(), func(s *vps.Settings) { s.Timezone = zone }, false); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			q    api.TrafficQuery
			want string
		}{
			{api.TrafficQuery{Step: vps.StepDay}, "2025-01-01 1, 2025-01-02 2, 2025-01-03 3, "},
			{api.TrafficQuery{Step: vps.StepDay, Sum: true, Since: "2025-01-02", Until: "2025-01-03"}, "2025-01-02 2, "},
			{api.TrafficQuery{Step: vps.StepDay, Since: "2025-01-03"}, "2025-01-03 3, "},
			{api.TrafficQuery{Step: vps.StepMonth, Guest: "alice", Since: "2025-01"}, "2025-01-01 6, "},
			{api.TrafficQuery{Step: vps.StepMonth, Until: "2025-01"}, ""},
		} {
			h, err := w.backend.Traffic(t.Context(), c.q)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, r := range h.Rows {
				got += fmt.Sprintf("%s %d, ", r.Start.Format(time.DateOnly), r.InBytes)
			}
			if got != c.want {
				t.Errorf("%s %+v: got %q, want %q", zone, c.q, got, c.want)
			}
		}
	}
}

func zoneOf(t *testing.T, name string) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func TestTrafficNow(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.count("bob", vps.TrafficHost, 10, 20)
	r, err := w.TrafficNow(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]int64{}
	for _, c := range r.Counters {
		sums[c.Guest+" "+c.Link] += c.InBytes
	}
	if len(sums) != 3 || sums["bob sl-bob"] != 10 || sums[" eth0"] != 5000 {
		t.Errorf("%+v", sums)
	}
	if r, err := w.TrafficNow(t.Context(), "alice"); err != nil || len(r.Counters) != 4 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := w.TrafficNow(t.Context(), "nobody"); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Error(err)
	}
}

// TestTrafficBackwards asks for a time that ends before it begins.
func TestTrafficBackwards(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	for until, good := range map[string]bool{"3d": false, "2d": true, "1d": true} {
		_, err := w.backend.Traffic(t.Context(), api.TrafficQuery{Step: vps.StepHour, Since: "2d", Until: until})
		if (err == nil) != good || !good && !strings.Contains(vps.ErrorMessage(err), "until: 3d is before 2d") {
			t.Errorf("until %s: %v", until, err)
		}
	}
}

func TestCheckTraffic(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	w.count("alice", vps.TrafficInternet, 10<<20, 20<<20)
	w.uplink(5000+11<<20, 5000+21<<20)
	for _, since := range []string{"", "5h", "2d", "2020-01-01"} {
		c, err := w.CheckTraffic(t.Context(), since)
		if err != nil {
			t.Fatal(err)
		}
		if !c.OK || c.Links[0] != "eth0" || c.Lines[0].InBytes != 11<<20 || c.Lines[1].OutBytes != 20<<20 || c.Lines[2].InBytes != 1<<20 {
			t.Errorf("since %q: %+v", since, c)
		}
	}
	if _, err := w.CheckTraffic(t.Context(), "soon"); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Error(err)
	}
	w.count("bob", vps.TrafficInternet, 100<<20, 0)
	if c, err := w.CheckTraffic(t.Context(), ""); err != nil || c.OK {
		t.Errorf("guests with more than the links: %+v, %v", c, err)
	}
}

// TestCheckOfALateLink has guests that were counted before the public link was:
// what they had until then is not held against it.
func TestCheckOfALateLink(t *testing.T) {
	t.Parallel()
	w := newTrafficWorldWithoutLink(t)
	host, err := w.state.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour) // it has been there for longer
	if _, err := w.db.ImportTraffic(t.Context(), sqlite.TrafficImport{Guest: sqlite.TrafficGuest{ID: host.Guests[0].ID, Name: "alice"}, Now: at}); err != nil {
		t.Fatal(err)
	}
	w.sampleTraffic(t.Context())
	w.count("alice", vps.TrafficInternet, 100<<20, 100<<20)
	w.sampleTraffic(t.Context())
	w.uplink(5000, 5000)
	w.sampleTraffic(t.Context())
	for _, since := range []string{"", "1h", "2020-01-01"} {
		c, err := w.CheckTraffic(t.Context(), since)
		if err != nil || !c.OK {
			t.Errorf("since %q: %+v, %v", since, c, err)
		}
	}
}

func TestCheckFrom(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 10, 20, 15, 33, 0, 0, time.UTC)
	owners := func(link, guest time.Time) []sqlite.TrafficOwner {
		g := sqlite.TrafficOwner{Since: guest}
		g.ID = "1"
		return []sqlite.TrafficOwner{{Since: link}, g, {TrafficGuest: sqlite.TrafficGuest{ID: "2"}, Since: now}}
	}
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		what               string
		since, link, guest time.Time
		want               string
	}{
		{"both for long", ago(48 * time.Hour), ago(1000 * time.Hour), ago(2000 * time.Hour), "hour 10-18 15:00"},
		{"the link is as old as the guests", ago(48 * time.Hour), ago(20*time.Hour + time.Minute), ago(20*time.Hour + time.Minute), "hour 10-19 19:00"},
		{"the link came later", ago(48 * time.Hour), ago(20*time.Hour + time.Minute), ago(30 * time.Hour), "hour 10-19 20:00"},
		{"the link came later, just on the hour", ago(48 * time.Hour), ago(20*time.Hour + 33*time.Minute), ago(30 * time.Hour), "hour 10-19 19:00"},
		{"and lately", ago(48 * time.Hour), ago(2*time.Hour + time.Minute), ago(30 * time.Hour), "5min 10-20 13:35"},
		{"just now", ago(48 * time.Hour), ago(time.Minute), ago(30 * time.Hour), "5min 10-20 15:35"},
		{"long ago", ago(200 * 24 * time.Hour), ago(100 * 24 * time.Hour), ago(101 * 24 * time.Hour), "day 07-13 00:00"},
		{"less is asked for", ago(5 * time.Minute), ago(time.Hour), ago(2 * time.Hour), "5min 10-20 15:25"},
		{"no link yet", ago(48 * time.Hour), time.Time{}, ago(30 * time.Hour), "hour 10-18 15:00"},
	} {
		since, step := checkFrom(c.since, owners(c.link, c.guest), now)
		if got := string(step) + since.Format(" 01-02 15:04"); got != c.want {
			t.Errorf("%s: from %s, want %s", c.what, got, c.want)
		}
	}
}

// vnStatFile is a file with one day and its month of each interface.
func vnStatFile(names ...string) string {
	day := time.Now().AddDate(0, 0, -40).UTC()
	date := fmt.Sprintf(`"date":{"year":%d,"month":%d,"day":%d}`, day.Year(), day.Month(), day.Day())
	var links []string
	for _, n := range names {
		links = append(links, fmt.Sprintf(`{"name":%q,"traffic":{"day":[{%s,"rx":30,"tx":4}],"month":[{%s,"rx":300,"tx":40}]}}`, n, date, date))
	}
	return `{"vnstatversion":"2.10","jsonversion":"2","interfaces":[` + strings.Join(links, ",") + `]}`
}

func TestImportTraffic(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	take := func(o api.ImportTraffic, file string) api.ImportedTraffic {
		t.Helper()
		done, err := w.backend.ImportTraffic(t.Context(), o, strings.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	file := vnStatFile("sl-alice", "eth0", "docker0")
	if done := take(api.ImportTraffic{DryRun: true}, file); len(done.Interfaces) != 3 || done.Interfaces[0].Guest != "alice" || done.Interfaces[2].Skipped == "" || done.Interfaces[0].Rows[vps.StepDay] != 1 {
		t.Errorf("%+v", done)
	}
	w.want(w.history(api.TrafficQuery{}))
	for range 2 { // a second time changes nothing
		done := take(api.ImportTraffic{}, file)
		if m := done.Interfaces[0].Months; m.InBytes != 40 || m.OutBytes != 300 {
			t.Errorf("what the link received, the guest sent: %+v", m)
		}
		w.want(w.history(api.TrafficQuery{Guest: "alice"}), "alice internet0 4 30")
		w.want(w.history(api.TrafficQuery{Guest: "alice", Step: vps.StepMonth}), "alice internet0 40 300")
		w.want(w.history(api.TrafficQuery{Host: true, Step: vps.StepMonth}), " uplink0 300 40")
		w.want(w.history(api.TrafficQuery{Guest: "bob"}))
	}
	take(api.ImportTraffic{Guest: "bob", Interface: "docker0"}, file)
	w.want(w.history(api.TrafficQuery{Guest: "bob"}), "bob internet0 4 30")
	take(api.ImportTraffic{Guest: "bob"}, vnStatFile("tap7"))
	// What was taken over is not measured, and in no check.
	if c, err := w.CheckTraffic(t.Context(), "2020-01-01"); err != nil || !c.OK || c.Lines[1].InBytes != 0 || c.Lines[0].InBytes != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestImportTrafficOfSeveralLinks adds up the public links of one file; another
// file of one of them takes their place.
func TestImportTrafficOfSeveralLinks(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	take := func(file, want string) {
		t.Helper()
		done, err := w.backend.ImportTraffic(t.Context(), api.ImportTraffic{}, strings.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range done.Interfaces {
			got = append(got, fmt.Sprintf("%s %v new %v replaced %v", i.Interface, i.Rows, i.New, i.Replaced))
		}
		if got := strings.Join(got, "; "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	both := vnStatFile("eth0", "sl-alice", "eth1")
	take(both, "eth0, eth1 map[day:1 month:1] new map[day:1 month:1] replaced map[]; sl-alice map[day:1 month:1] new map[day:1 month:1] replaced map[]")
	w.want(w.history(api.TrafficQuery{Host: true}), " uplink0 60 8")
	take(both, "eth0, eth1 map[day:1 month:1] new map[] replaced map[]; sl-alice map[day:1 month:1] new map[] replaced map[]")
	w.want(w.history(api.TrafficQuery{Host: true}), " uplink0 60 8")
	take(vnStatFile("eth1"), "eth1 map[day:1 month:1] new map[] replaced map[day:1 month:1]")
	w.want(w.history(api.TrafficQuery{Host: true}), " uplink0 30 4")
}

// Files may have parts only of what vnStat knows.
func TestImportTrafficInParts(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	day := time.Now().AddDate(0, 0, -40).UTC()
	row := fmt.Sprintf(`[{"date":{"year":%d,"month":%d,"day":%d},"time":{"hour":1,"minute":0},"rx":30,"tx":4}]`, day.Year(), day.Month(), day.Day())
	file := func(traffic string) string {
		return `{"vnstatversion":"2.10","jsonversion":"2","interfaces":[{"name":"sl-alice","traffic":{"total":{"rx":1,"tx":1}` + traffic + `}}]}`
	}
	for _, c := range []struct {
		what, file, want string
	}{
		{"nothing but the best days", file(`,"top":` + row), "refused: there is nothing to take over: the file has no traffic of it by 5 minutes, hours, days or months; `vnstat --json` without more writes all of them"},
		{"only totals", file(""), "refused: there is nothing to take over: the file has no traffic of it by 5 minutes, hours, days or months; `vnstat --json` without more writes all of them"},
		{"days", file(`,"day":` + row), "4 30 map[day:1] lacks [month]"},
		{"months", file(`,"month":` + row), "4 30 map[month:1] lacks [day]"},
		{"hours", file(`,"hour":` + row), "4 30 map[hour:1] lacks [day month]"},
		{"5 minutes that are too old", file(`,"fiveminute":` + row), "skipped: it has nothing from before sublet began to count this itself, and that is not too old to be kept"},
		{"days and months", file(`,"day":` + row + `,"month":` + row), "4 30 map[day:1 month:1] lacks []"},
		{"days of version 1", strings.NewReplacer(`"2"`, `"1"`, `"name"`, `"id"`, `"minute"`, `"minutes"`).Replace(file(`,"days":` + row)), "4096 30720 map[day:1] lacks [month]"},
	} {
		for _, dryRun := range []bool{true, false} {
			done, err := w.backend.ImportTraffic(t.Context(), api.ImportTraffic{DryRun: dryRun}, strings.NewReader(c.file))
			if err != nil {
				if got := "refused: " + err.Error(); got != c.want {
					t.Errorf("%s (dry run %v): got %q, want %q", c.what, dryRun, got, c.want)
				}
				continue
			}
			i := done.Interfaces[0]
			got := fmt.Sprintf("%d %d %v lacks %v", i.Total.InBytes, i.Total.OutBytes, i.Rows, i.Lacks)
			if i.Skipped != "" {
				got = "skipped: " + i.Skipped
			}
			if got != c.want {
				t.Errorf("%s (dry run %v): got %q, want %q", c.what, dryRun, got, c.want)
			}
		}
	}
}

func TestImportTrafficRefused(t *testing.T) {
	t.Parallel()
	w := newTrafficWorld(t)
	for _, c := range []struct {
		o    api.ImportTraffic
		file string
		want string
	}{
		{api.ImportTraffic{}, "", "it is empty"},
		{api.ImportTraffic{}, vnStatFile("docker0"), "no interface is the link of a guest"},
		{api.ImportTraffic{Guest: "alice"}, vnStatFile("tap0", "tap1"), "not clear which interface was alice's; name it with --interface: the file has tap0, tap1"},
		{api.ImportTraffic{Interface: "tap2"}, vnStatFile("tap0"), `no interface "tap2"`},
		{api.ImportTraffic{Interface: "tap0"}, vnStatFile("tap0", "sl-alice"), "no interface is the link of a guest"},
		{api.ImportTraffic{}, strings.ReplaceAll(vnStatFile("sl-alice"), `"rx":300`, `"rx":72057594037927937`), "72057594037927937 bytes are more than any link passes, so the file is damaged"},
		{api.ImportTraffic{Guest: "nobody"}, vnStatFile("tap0"), "no guest nobody"},
	} {
		_, err := w.backend.ImportTraffic(t.Context(), c.o, strings.NewReader(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
	w.want(w.history(api.TrafficQuery{}))
}
