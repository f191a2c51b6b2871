package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"sublet/internal/api"
	"sublet/internal/meter"
	"sublet/internal/vps"
)

// ledger is a fake's traffic.
type ledger struct {
	rows     []vps.TrafficRow
	readings []api.TrafficReading
	check    vps.TrafficCheck
	asked    []api.TrafficQuery
	imported api.ImportTraffic
	file     string
	done     api.ImportedTraffic
	onRead   func()
	behind   string
}

func (f *fake) Traffic(_ context.Context, q api.TrafficQuery) (api.TrafficHistory, error) {
	f.traffic.asked = append(f.traffic.asked, q)
	if q.Guest != "" && !slices.ContainsFunc(f.traffic.rows, func(r vps.TrafficRow) bool { return r.Guest == q.Guest }) {
		if _, err := f.find(q.Guest); err != nil {
			return api.TrafficHistory{}, err
		}
	}
	since, err := vps.ParseSince("since", q.Since, now)
	if err != nil {
		return api.TrafficHistory{}, err
	}
	if q.Last > 0 && since.IsZero() && q.Guest == "" && !q.Host { // as the daemon bounds it
		since = q.Step.Begin(now, time.UTC)
		for range q.Last - 1 {
			since = q.Step.Begin(since.Add(-time.Second), time.UTC)
		}
	}
	h := api.TrafficHistory{Schema: api.SchemaVersion, Step: q.Step, Zone: "UTC", At: now, Behind: f.traffic.behind}
	for _, r := range f.traffic.rows {
		host := r.Class == vps.TrafficUplink
		if r.Step == q.Step && host == q.Host && (q.Guest == "" || r.Guest == q.Guest) && !r.Start.Before(since) {
			h.Rows = append(h.Rows, r)
		}
	}
	if q.Sum {
		h.Rows = meter.SumTraffic(h.Rows)
	}
	h.Rows = meter.TopTraffic(meter.NewestTraffic(h.Rows, q.Last), q.Top)
	return h, f.failure
}

func (f *fake) TrafficNow(_ context.Context, guest string) (api.TrafficReading, error) {
	if guest != "" {
		if _, err := f.find(guest); err != nil {
			return api.TrafficReading{}, err
		}
	}
	if f.failure != nil {
		return api.TrafficReading{}, f.failure
	}
	r := f.traffic.readings[0]
	if len(f.traffic.readings) > 1 {
		f.traffic.readings = f.traffic.readings[1:]
	} else if f.traffic.onRead != nil {
		f.traffic.onRead()
	}
	r.Counters = slices.DeleteFunc(slices.Clone(r.Counters), func(c api.TrafficCounter) bool { return guest != "" && c.Guest != guest })
	return r, nil
}

func (f *fake) CheckTraffic(_ context.Context, since string) (vps.TrafficCheck, error) {
	_, err := vps.ParseSince("since", since, now)
	if err == nil {
		err = f.failure
	}
	return f.traffic.check, err
}

func (f *fake) ImportTraffic(_ context.Context, o api.ImportTraffic, file io.Reader) (api.ImportedTraffic, error) {
	text, err := io.ReadAll(file)
	if err != nil {
		return api.ImportedTraffic{}, err
	}
	f.traffic.imported, f.traffic.file = o, string(text)
	done := f.traffic.done
	done.Schema, done.DryRun = api.SchemaVersion, o.DryRun
	return done, f.failure
}

// withTraffic is a host whose guests had traffic, two of them deleted since.
func withTraffic(t *testing.T) *world {
	t.Helper()
	w := populate(t)
	add := func(id, guest string, step vps.TrafficStep, start time.Time, class vps.TrafficClass, family int, in, out int64) {
		w.traffic.rows = append(w.traffic.rows, vps.TrafficRow{
			GuestID: id, Guest: guest, Step: step, Start: start, TrafficKey: vps.TrafficKey{Class: class, Family: family},
			TrafficCount: vps.TrafficCount{InBytes: in, InPackets: in / 1000, OutBytes: out, OutPackets: out / 900},
		})
	}
	const mib, gib = 1 << 20, 1 << 30
	month, today := vps.StepMonth.Begin(now, time.UTC), vps.StepDay.Begin(now, time.UTC)
	add("g-1", "alice", vps.StepMonth, month.AddDate(0, -2, 0), vps.TrafficInternet, 0, 900*gib, 80*gib)
	add("g-1", "alice", vps.StepMonth, month.AddDate(0, -1, 0), vps.TrafficInternet, 4, 71*gib, 1022*gib)
	add("g-1", "alice", vps.StepMonth, month, vps.TrafficInternet, 4, 2*gib, 50*gib)
	add("g-1", "alice", vps.StepMonth, month, vps.TrafficInternet, 6, 1*gib, 20*gib)
	add("g-1", "alice", vps.StepMonth, month, vps.TrafficHost, 4, 300*mib, 12*mib)
	add("g-1", "alice", vps.StepMonth, month, vps.TrafficDropped, 4, 5*mib, 70*gib)
	add("g-2", "bob", vps.StepMonth, month, vps.TrafficInternet, 4, 1500, 700)
	add("g-2", "bob", vps.StepMonth, month, vps.TrafficBetween, 4, 3*mib, 9*mib)
	add("g-0", "carol", vps.StepMonth, month, vps.TrafficInternet, 4, 7*gib, gib)
	add("", "", vps.StepMonth, month, vps.TrafficUplink, 0, 11*gib, 73*gib)
	for d := range 40 {
		start := today.AddDate(0, 0, -d)
		add("g-1", "alice", vps.StepDay, start, vps.TrafficInternet, 4, int64(d*d)*gib/40, int64(40-d)*gib)
		if d == 0 {
			add("g-1", "alice", vps.StepDay, start, vps.TrafficDropped, 4, 0, 70*gib)
			add("g-2", "bob", vps.StepDay, start, vps.TrafficInternet, 4, 1500, 700)
		}
	}
	hour := vps.StepHour.Begin(now, time.UTC)
	for h := range 30 {
		add("g-1", "alice", vps.StepHour, hour.Add(-time.Duration(h)*time.Hour), vps.TrafficInternet, 4, int64(h)*mib, int64(100-h)*mib)
	}
	add("g-1", "alice", vps.StepFiveMinutes, vps.StepFiveMinutes.Begin(now, time.UTC), vps.TrafficInternet, 4, 1, 0)
	reading := func(seconds int, scale int64) api.TrafficReading {
		counter := func(guest, link string, class vps.TrafficClass, in, out int64) api.TrafficCounter {
			return api.TrafficCounter{Guest: guest, Link: link, TrafficKey: vps.TrafficKey{Class: class, Family: 4}, TrafficCount: vps.TrafficCount{InBytes: in * scale, InPackets: 10 * scale, OutBytes: out * scale, OutPackets: 20 * scale}}
		}
		return api.TrafficReading{Schema: api.SchemaVersion, At: now.Add(time.Duration(seconds) * time.Second), Epoch: "e", Counters: []api.TrafficCounter{
			counter("alice", "sl-alice", vps.TrafficInternet, 1_000_000, 2_500_000), counter("alice", "sl-alice", vps.TrafficDropped, 0, 40_000),
			counter("bob", "sl-bob", vps.TrafficHost, 125, 250), counter("", "eth0", vps.TrafficUplink, 1_100_000, 2_600_000),
		}}
	}
	w.traffic.readings = []api.TrafficReading{reading(0, 1), reading(2, 3), reading(4, 4)}
	w.traffic.check = meter.CheckTraffic(meter.UplinkTraffic{
		Since: now.Add(-48 * time.Hour), Until: now, Links: []string{"eth0"},
		Host: []vps.TrafficRow{{TrafficCount: vps.TrafficCount{InBytes: 11 * gib, InPackets: 9e6, OutBytes: 73 * gib, OutPackets: 55e6}}},
		Guests: []vps.TrafficRow{
			{TrafficKey: vps.TrafficKey{Class: vps.TrafficInternet}, TrafficCount: vps.TrafficCount{InBytes: 10 * gib, InPackets: 6e6, OutBytes: 71 * gib, OutPackets: 50e6}},
			{TrafficKey: vps.TrafficKey{Class: vps.TrafficHost}, TrafficCount: vps.TrafficCount{InBytes: 300 * mib, InPackets: 3e5, OutBytes: 12 * mib, OutPackets: 4e4}},
			{TrafficKey: vps.TrafficKey{Class: vps.TrafficDropped}, TrafficCount: vps.TrafficCount{InBytes: 5 * mib, InPackets: 80000, OutBytes: 70 * gib, OutPackets: 5e7}},
		},
	})
	w.traffic.done = api.ImportedTraffic{Interfaces: []api.ImportedInterface{
		{Interface: "sl-alice", Guest: "alice", Rows: map[vps.TrafficStep]int{vps.StepDay: 62, vps.StepMonth: 14}, New: map[vps.TrafficStep]int{vps.StepDay: 30}, Replaced: map[vps.TrafficStep]int{vps.StepDay: 1, vps.StepMonth: 1}, Since: now.AddDate(-1, 0, 0), Until: now, Months: vps.TrafficCount{InBytes: 12 * gib, OutBytes: 3 * gib}, Total: vps.TrafficCount{InBytes: 12 * gib, OutBytes: 3 * gib}},
		{Interface: "eth0", Rows: map[vps.TrafficStep]int{vps.StepMonth: 14}, Since: now.AddDate(-1, 0, 0), Until: now, Total: vps.TrafficCount{InBytes: 20 * gib, OutBytes: 4 * gib}, Lacks: []vps.TrafficStep{vps.StepDay}},
		{Interface: "docker0", Skipped: "it is no guest's link and no public one; name the guest with --guest"},
	}}
	return w
}

func TestTrafficGolden(t *testing.T) {
	t.Parallel()
	for file, args := range map[string]string{
		"traffic":              "traffic",
		"traffic.wide":         "traffic -o wide",
		"traffic.json":         "traffic -o json --filter guest=bob",
		"traffic.alice":        "traffic alice",
		"traffic.days":         "traffic alice --days",
		"traffic.days.wide":    "traffic alice --days --since 3d -o wide",
		"traffic.days.json":    "traffic alice --days --since 1d -o json",
		"traffic.days.csv":     "traffic --days --since 3d -o csv",
		"traffic.hours":        "traffic --hours",
		"traffic.5min":         "traffic alice --5min",
		"traffic.months":       "traffic --months",
		"traffic.months.class": "traffic --months --by class",
		"traffic.months.guest": "traffic --months --by guest",
		"traffic.top":          "traffic --top",
		"traffic.host":         "traffic --host",
		"traffic.none":         "traffic bob --hours",
		"traffic.check":        "traffic --check",
		"traffic.check.json":   "traffic --check -o json",
	} {
		w := withTraffic(t)
		w.run(t.Context(), strings.Fields(args)...)
		golden(t, filepath.Join("testdata", "golden", file), w.out.String()+"--- standard error\n"+w.errors.String())
		if !strings.Contains(args, "-o ") {
			for line := range strings.Lines(w.out.String()) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
					t.Errorf("%s: a line of %d characters: %s", args, n, line)
				}
			}
		}
	}
}

func TestTrafficLive(t *testing.T) {
	t.Parallel()
	for file, args := range map[string]string{
		"traffic.live":       "traffic --live",
		"traffic.live.alice": "traffic alice --live",
		"traffic.live.json":  "traffic --live -o json",
	} {
		w := withTraffic(t)
		ctx, cancel := context.WithCancel(t.Context())
		w.traffic.onRead = cancel
		if code := w.run(ctx, append(strings.Fields(args), "--interval", "100ms")...); code != 0 {
			t.Errorf("%s: exit code %d\n%s", args, code, w.errors.String())
		}
		golden(t, filepath.Join("testdata", "golden", file), w.out.String()+"--- standard error\n"+w.errors.String())
	}
}

// On a terminal the table is drawn over itself, and bars have their colours.
func TestTrafficOnATerminal(t *testing.T) {
	t.Parallel()
	w := withTraffic(t)
	w.options.IsTerminal = func(any) bool { return true }
	w.options.Env = func(name string) string { return map[string]string{"LANG": "C.UTF-8"}[name] }
	ctx, cancel := context.WithCancel(t.Context())
	w.traffic.readings = append(w.traffic.readings, w.traffic.readings[2])
	w.traffic.readings[3].At = now.Add(6 * time.Second)
	w.traffic.onRead = cancel
	if code := w.run(ctx, "traffic", "--live", "--interval", "100ms"); code != 0 {
		t.Fatalf("exit code %d\n%s", code, w.errors.String())
	}
	if got := strings.Count(w.out.String(), "\x1b[6A\r\x1b[J"); got != 1 {
		t.Errorf("drawn over %d times:\n%q", got, w.out.String())
	}
	w.run(t.Context(), "traffic", "alice", "--days")
	if !strings.Contains(w.out.String(), paintGreen+"█") || !strings.Contains(w.out.String(), paintCyan+"▒") {
		t.Errorf("no bars in colours:\n%s", w.out.String())
	}
}

// TestTrafficBehind: that newer traffic is not counted yet is said once.
func TestTrafficBehind(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"", "alice", "--days", "alice --months -o json"} {
		w := withTraffic(t)
		w.traffic.behind = "the disk is full"
		w.mustRun(t, strings.Fields("traffic "+args)...)
		if said := w.errors.String(); strings.Count(said, "is not shown, and will be counted later: the disk is full") != 1 {
			t.Errorf("traffic %s says %q", args, said)
		}
	}
}

func TestTrafficExits(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{
		"traffic nobody":                         3,
		"traffic carol":                          0, // deleted, with a history
		"traffic carol --months":                 0,
		"traffic dora --days":                    3,
		"traffic alice bob":                      2,
		"traffic alice --days --months":          2,
		"traffic --days --since tomorrow":        2,
		"traffic --since 7d":                     2,
		"traffic --days --by colour":             2,
		"traffic alice --host":                   2,
		"traffic --check alice":                  2,
		"traffic --check --since 7d":             0,
		"traffic --check --since soon":           2,
		"traffic --live --since 7d":              2,
		"traffic --live --interval 1ms":          2,
		"traffic --days --interval 1s":           2,
		"traffic --days -o xml":                  2,
		"traffic --prune":                        2,
		"traffic nobody --live":                  3,
		"traffic import":                         2,
		"traffic import --vnstat-json /no/where": 2,
	} {
		w := withTraffic(t)
		if got := w.run(t.Context(), strings.Fields(args)...); got != want {
			t.Errorf("%s: exit code %d, want %d\n%s", args, got, want, w.errors.String())
		}
	}
	w := withTraffic(t)
	w.traffic.check.OK = false
	if code := w.run(t.Context(), "traffic", "--check"); code != 1 || !strings.Contains(w.out.String(), "LARGER") {
		t.Errorf("guests with more than the links: exit code %d\n%s", code, w.out.String())
	}
}

func TestTrafficImport(t *testing.T) {
	t.Parallel()
	w := withTraffic(t)
	file := filepath.Join(t.TempDir(), "old.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.mustRun(t, "traffic", "import", "--vnstat-json", file, "--guest", "alice", "--interface", "tap3", "--dry-run")
	if w.traffic.imported != (api.ImportTraffic{Guest: "alice", Interface: "tap3", DryRun: true}) || w.traffic.file != "{}" {
		t.Errorf("%+v %q", w.traffic.imported, w.traffic.file)
	}
	golden(t, filepath.Join("testdata", "golden", "traffic.import"), w.out.String()+"--- standard error\n"+w.errors.String())
	w.options.Stdin = strings.NewReader("[]")
	w.mustRun(t, "traffic", "import", "--vnstat-json", "-", "-o", "json")
	if w.traffic.file != "[]" || !strings.Contains(w.out.String(), `"interface": "eth0"`) {
		t.Errorf("%q\n%s", w.traffic.file, w.out.String())
	}
	w.failure = vps.Errorf(vps.CodeInvalid, "this is not what `vnstat --json` writes: it is empty")
	if code := w.run(t.Context(), "traffic", "import", "--vnstat-json", file); code != 2 || !strings.Contains(w.errors.String(), "it is empty") {
		t.Errorf("exit code %d: %s", code, w.errors.String())
	}
}

// TestTrafficFits has names and numbers that are longer than a terminal is wide,
// and more guests than it has lines.
func TestTrafficFits(t *testing.T) {
	t.Parallel()
	var speeds []trafficSpeed
	for i := range 40 {
		speeds = append(speeds, trafficSpeed{Guest: fmt.Sprintf("guest-with-a-name-of-32-letters-%d", i), In: vps.BitRate(i) * vps.Mbit, Out: vps.Gbit, Since: vps.TrafficCount{InBytes: 1 << 40}})
	}
	speeds = append(speeds, trafficSpeed{Link: "pub0", In: 800 * vps.Mbit, Out: 40 * vps.Gbit})
	for _, c := range []struct{ width, lines int }{{120, 24}, {80, 24}, {60, 10}, {46, 60}, {45, 5}} {
		var b strings.Builder
		table := speedTable(busiest(slices.Clone(speeds), c.lines), "")
		table.fit = true
		if err := table.write(&b, barStyle{in: "█", out: "▒"}, c.width, false); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		if n := strings.Count(text, "\n"); n >= max(c.lines, 7) {
			t.Errorf("%d lines for %d:\n%s", n, c.lines, text)
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > c.width {
				t.Errorf("%d columns for %d: %s", n, c.width, line)
			}
		}
		if !strings.Contains(text, "all ") || !strings.Contains(text, "780.00Mbit/s") || !strings.Contains(text, "pub0") {
			t.Errorf("the sum of all is not there:\n%s", text)
		}
		if others := strings.Contains(text, " oth"); others != (c.lines < 40) {
			t.Errorf("%d lines, others %v:\n%s", c.lines, others, text)
		}
	}
}

// TestEstimateAfterAZoneChange: a day that began when it did in another zone is
// longer than others, and what it will have is worked out by that.
func TestEstimateAfterAZoneChange(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 10, 20, 2, 0, 0, 0, time.UTC)
	h := api.TrafficHistory{Step: vps.StepDay, Zone: "UTC", At: at, Rows: []vps.TrafficRow{{
		Start: at.Add(-2 * time.Hour), From: at.Add(-10 * time.Hour), Step: vps.StepDay,
		TrafficKey: vps.TrafficKey{Class: vps.TrafficInternet, Family: 4}, TrafficCount: vps.TrafficCount{InBytes: 10_000_000},
	}}}
	lines := trafficLines(h, trafficSplit{})
	if len(lines) != 1 || lines[0].Estimate == nil || lines[0].Estimate.In != 32_000_000 || lines[0].Rate != 2222 {
		t.Errorf("%+v, %+v", lines, lines[0].Estimate)
	}
}

// TestTrafficOfOtherSteps asks for steps of which nothing is on record.
func TestTrafficOfOtherSteps(t *testing.T) {
	t.Parallel()
	w := withTraffic(t)
	for args, want := range map[string]string{
		"bob --hours":                  "no hours of bob are on record; see --days and --months for what there is",
		"bob --5min --since 1h":        "no 5 minutes of bob are on record of that time; see --days and --months for what there is",
		"--host --5min":                "no 5 minutes of public links are on record; see --months for what there is",
		"bob --days --filter guest=x*": "--filter lets none of it through",
		"noports --hours":              "no traffic of noports is kept yet",
		"noports --days --since 2d":    "no traffic of noports is kept of that time",
	} {
		w.says(t, 0, want, append([]string{"traffic"}, strings.Fields(args)...)...)
	}
	// Nothing passed lately, so no step that runs has anything.
	w.traffic.rows = slices.DeleteFunc(w.traffic.rows, func(r vps.TrafficRow) bool { return now.Before(r.Step.End(r.Start, time.UTC)) })
	w.says(t, 0, "no 5 minutes of guests are on record; see --hours and --days and --months for what there is", "traffic", "--5min")
}
