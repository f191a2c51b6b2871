package vnstat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/quick"
	"time"
	_ "time/tzdata"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// now is behind all that the files in testdata tell.
var now = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

func parseFile(t *testing.T, name string, zone *time.Location) *File {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	file, err := Parse(f, zone, now)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// The file is what vnStat 2.10 wrote of a database in UTC.
func TestParse2(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"UTC", "Asia/Shanghai", "America/Havana"} {
		z := zone(t, name)
		file := parseFile(t, "vnstat-2.10.json", z)
		if file.Version != "2.10" || len(file.Interfaces) != 2 {
			t.Fatalf("%+v", file)
		}
		eth := file.Interfaces[0]
		if eth.Name != "eth0" || len(eth.Rows) != 2 || !eth.Updated.Equal(time.Date(2026, 11, 30, 6, 23, 0, 0, time.UTC)) {
			t.Errorf("%+v", eth)
		}
		want := Row{Step: vps.StepMonth, Start: time.Date(2026, 10, 1, 0, 0, 0, 0, z), Rx: 123456789012, Tx: 987654321098}
		if d := cmp.Diff(want, eth.Rows[1]); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		tap := file.Interfaces[1]
		counts, sums := map[vps.TrafficStep]int{}, map[vps.TrafficStep]int64{}
		for _, r := range tap.Rows {
			counts[r.Step]++
			sums[r.Step] += r.Rx
			if !r.Step.Begin(r.Start, z).Equal(r.Start) {
				t.Errorf("%s: %s is no begin of a step of %s", name, r.Start, r.Step)
			}
		}
		if d := cmp.Diff(map[vps.TrafficStep]int{vps.StepFiveMinutes: 12, vps.StepHour: 29, vps.StepDay: 34, vps.StepMonth: 5}, counts); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		last := tap.Rows[len(tap.Rows)-1]
		if last.Rx != 213015600230 || last.Tx != 1433506801801 || last.Start.Format(time.DateOnly) != "2026-11-01" {
			t.Errorf("%s: %+v", name, last)
		}
	}
}

// Version 1 has KiB, and hours by their number. The file has the form that
// vnStat 1.18 writes.
func TestParse1(t *testing.T) {
	t.Parallel()
	file := parseFile(t, "vnstat-1.18.json", time.UTC)
	want := []Row{
		{vps.StepHour, time.Date(2026, 9, 30, 23, 0, 0, 0, time.UTC), 3 << 10, 4 << 10},
		{vps.StepHour, time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), 1 << 10, 2 << 10},
		{vps.StepDay, time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), 1000 << 10, 2000 << 10},
		{vps.StepMonth, time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), 5000 << 10, 6000 << 10},
	}
	if d := cmp.Diff(want, file.Interfaces[0].Rows); d != "" {
		t.Error(d)
	}
	if i := file.Interfaces[0]; i.Name != "sl-alice" || !i.Updated.Equal(time.Date(2026, 10, 1, 0, 35, 0, 0, time.UTC)) {
		t.Errorf("%+v", i)
	}
}

// What the host's end of a link receives, the guest sends.
func TestDirections(t *testing.T) {
	t.Parallel()
	r := Row{Rx: 10, Tx: 3}
	if got := r.Counts(false); got != (vps.TrafficCount{InBytes: 3, OutBytes: 10}) {
		t.Errorf("a guest's link: %+v", got)
	}
	if got := r.Counts(true); got != (vps.TrafficCount{InBytes: 10, OutBytes: 3}) {
		t.Errorf("the host's own: %+v", got)
	}
}

// TestTomorrow: where the file was written it may be tomorrow already.
func TestTomorrow(t *testing.T) {
	t.Parallel()
	row := `{"date":{"year":2026,"month":12,"day":1},"time":{"hour":1,"minute":0},"rx":1,"tx":1}`
	text := document2(`"hour":[` + row + `],"day":[` + row + `],"month":[` + row + `]`)
	file, err := Parse(strings.NewReader(text), time.UTC, time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC))
	if err != nil || len(file.Interfaces[0].Rows) != 3 || file.Interfaces[0].Rows[1].Start.Format(time.DateOnly) != "2026-12-01" {
		t.Errorf("%+v, %v", file, err)
	}
	if _, err = Parse(strings.NewReader(text), time.UTC, time.Date(2026, 11, 29, 21, 0, 0, 0, time.UTC)); err == nil {
		t.Error("what has begun nowhere is no error")
	}
}

// When a clock is set back, an hour comes twice, and only the moments tell.
func TestHourThatComesTwice(t *testing.T) {
	t.Parallel()
	z := zone(t, "Europe/Berlin")
	hour := func(stamp string) string {
		return `{"date":{"year":2026,"month":10,"day":25},"time":{"hour":2,"minute":0}` + stamp + `,"rx":1,"tx":1}`
	}
	text := func(rows ...string) string { return document2(`"hour":[` + strings.Join(rows, ",") + `]`) }
	file, err := Parse(strings.NewReader(text(hour(`,"timestamp":1792886400`), hour(`,"timestamp":1792890000`))), z, now)
	if err != nil || len(file.Interfaces[0].Rows) != 2 || file.Interfaces[0].Rows[1].Start.Unix() != 1792890000 {
		t.Errorf("%+v, %v", file, err)
	}
	// Moments that do not go with the date are of another zone.
	file, err = Parse(strings.NewReader(text(hour(`,"timestamp":1792800000`))), z, now)
	if err != nil || file.Interfaces[0].Rows[0].Start.Format("02 15:04") != "25 02:00" {
		t.Errorf("%+v, %v", file, err)
	}
}

// document2 is a file of vnStat 2 with this traffic of one interface.
func document2(traffic string) string {
	return `{"vnstatversion":"2.10","jsonversion":"2","interfaces":[{"name":"x","updated":{"date":{"year":2026,"month":10,"day":26},"time":{"hour":0,"minute":5}},"traffic":{` + traffic + `}}]}`
}

// largeDays are days of 64 PiB each, which is the most that a row may have.
func largeDays(n int) string {
	rows := make([]string, n)
	for i := range rows {
		rows[i] = fmt.Sprintf(`{"date":{"year":2026,"month":10,"day":%d},"rx":72057594037927936,"tx":1}`, i+1)
	}
	return strings.Join(rows, ",")
}

// TestTheMost is read: the limits themselves are no fault.
func TestTheMost(t *testing.T) {
	t.Parallel()
	file, err := Parse(strings.NewReader(document2(`"day":[`+largeDays(16)+`]`)), time.UTC, now)
	if err != nil || len(file.Interfaces[0].Rows) != 16 || file.Interfaces[0].Rows[0].Rx != vps.MaxImportedRow {
		t.Errorf("%+v, %v", file, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	day := func(date, amounts string) string { return document2(`"day":[{"date":` + date + `,` + amounts + `}]`) }
	const good = `{"year":2026,"month":10,"day":1}`
	for text, reason := range map[string]string{
		"":                                      "it is empty",
		" \n":                                   "it is empty",
		"vnstat: error":                         "it is no JSON",
		"{}":                                    "no jsonversion",
		"[]":                                    "writes: the file as a whole is an array, where an object belongs",
		`{"error":"no interface"}`:              "no jsonversion",
		`{"jsonversion":"3"}`:                   `"3"`,
		`{"jsonversion":2}`:                     "jsonversion",
		`{"jsonversion":"2"}`:                   "no interface",
		`{"jsonversion":"2","interfaces":[{}]}`: "no name",
		document2("") + "x":                     "no JSON",
		document2("")[:100]:                     "no JSON",
		day(good, `"rx":1`):                     "missing",
		day(good, `"rx":-1,"tx":1`):             "-1 is no amount",
		day(good, `"rx":1.5,"tx":1`):            "is 1.5, where a whole number of less than 2^63 belongs",
		day(good, `"rx":9223372036854775808,"tx":1`):                                                                          "writes: interfaces.traffic.day.rx at byte 233 is 9223372036854775808, where a whole number of less than 2^63 belongs",
		day(good, `"rx":"1","tx":1`):                                                                                          "is a string, where a whole number belongs",
		`{"jsonversion":"2","interfaces":{}}`:                                                                                 "interfaces at byte 33 is an object, where an array belongs",
		day(`{"year":2026,"month":12,"day":3}`, `"rx":1,"tx":1`):                                                              "2026-12-03 00:00 is in the future",
		day(`{"year":2026,"month":2,"day":30}`, `"rx":1,"tx":1`):                                                              "2026-02-30 is no date",
		day(`{"year":2026,"month":13,"day":1}`, `"rx":1,"tx":1`):                                                              "no date",
		day(`{"year":0,"month":1,"day":1}`, `"rx":1,"tx":1`):                                                                  "no date",
		day(`{"year":2027,"month":1,"day":1}`, `"rx":1,"tx":1`):                                                               "in the future",
		document2(`"hour":[{"date":` + good + `,"time":{"hour":24,"minute":0},"rx":1,"tx":1}]`):                               "no time of a day",
		document2(`"day":[{"date":` + good + `,"rx":1,"tx":1},{"date":` + good + `,"rx":2,"tx":1}]`):                          "there twice",
		`{"jsonversion":"2","interfaces":[{"name":"a"},{"name":"a"}]}`:                                                        "there twice",
		`{"jsonversion":"1","interfaces":[{"id":"a","traffic":{"days":[{"date":` + good + `,"rx":70368744177665,"tx":0}]}}]}`: "70368744177665 KiB are more than any link passes, so the file is damaged; at most 64PiB are taken over, among the rows of step day of the interface \"a\"",
		day(good, `"rx":1,"tx":72057594037927937`):                                                                            "72057594037927937 bytes are more than any link passes",
		day(good, `"rx":1,"tx":9223372036854775807`):                                                                          "more than any link passes",
		document2(`"day":[` + largeDays(17) + `]`):                                                                            "all rows together have 1.1EiB, which is more than any link passes, so the file is damaged; at most 1EiB are taken over, among the rows of step day",
		`{"jsonversion":"1","interfaces":[{"id":"a","traffic":{"hours":[{"id":24,"date":` + good + `,"rx":1,"tx":0}]}}]}`:     "24 is no hour",
	} {
		file, err := Parse(strings.NewReader(text), time.UTC, now)
		if vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), reason) {
			t.Errorf("%.200s: %+v, %v; want %q", text, file, err, reason)
		}
	}
	if _, err := Parse(bytes.NewReader(bytes.Repeat([]byte(" "), MaxFile+1)), time.UTC, now); err == nil || !strings.Contains(err.Error(), "larger than 64MiB") {
		t.Errorf("a large file: %v", err)
	}
}

// Whatever vnStat has in its database, in whatever zone, is read as it is.
func TestParseProperty(t *testing.T) {
	t.Parallel()
	zones := []*time.Location{time.UTC, zone(t, "Asia/Kolkata"), zone(t, "Europe/Berlin"), zone(t, "Asia/Beirut")}
	same := func(seed uint64, pick uint8) bool {
		z := zones[int(pick)%len(zones)]
		r := rand.New(rand.NewPCG(seed, 1))
		want := []Row{}
		lists := map[string][]map[string]any{}
		for name, step := range map[string]vps.TrafficStep{"fiveminute": vps.StepFiveMinutes, "hour": vps.StepHour, "day": vps.StepDay, "month": vps.StepMonth} {
			start := step.Begin(time.Date(2021, 1, 1, 0, 0, 0, 0, z).Add(time.Duration(r.Int64N(600*24))*time.Hour), z)
			for range r.IntN(50) {
				row := Row{Step: step, Start: start, Rx: 1 + r.Int64N(1<<54), Tx: r.Int64N(1 << 54)}
				local := start.In(z)
				entry := map[string]any{
					"id": r.Int(), "rx": row.Rx, "tx": row.Tx, "new": true, "timestamp": start.Unix(),
					"date": map[string]int{"year": local.Year(), "month": int(local.Month()), "day": local.Day()},
				}
				if step == vps.StepHour || step == vps.StepFiveMinutes {
					entry["time"] = map[string]int{"hour": local.Hour(), "minute": local.Minute()}
				}
				lists[name] = append(lists[name], entry)
				want = append(want, row)
				start = step.End(start, z)
			}
		}
		text, err := json.Marshal(map[string]any{"jsonversion": "2", "interfaces": []any{map[string]any{"name": "x", "traffic": lists}}})
		if err != nil {
			t.Error(err)
			return false
		}
		file, err := Parse(bytes.NewReader(text), z, now)
		if err != nil {
			t.Log(z, err)
			return false
		}
		got := map[Row]bool{}
		for _, row := range file.Interfaces[0].Rows {
			row.Start = row.Start.UTC()
			got[row] = true
		}
		for _, row := range want {
			row.Start = row.Start.UTC()
			if !got[row] {
				t.Logf("%s: %+v is not there", z, row)
				return false
			}
		}
		return len(got) == len(want)
	}
	if err := quick.Check(same, &quick.Config{MaxCount: 150}); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"vnstat-2.10.json", "vnstat-1.18.json"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(document2(`"day":[{"date":{"year":2026,"month":10,"day":1},"rx":1,"tx":1}]`)))
	f.Add([]byte(document2(`"day":[` + largeDays(16) + `]`)))
	f.Add([]byte(document2(`"month":[` + largeDays(17) + `]`)))
	f.Add([]byte(`{"jsonversion":"1","interfaces":[{"id":"a","traffic":{"days":[{"date":{"year":2026,"month":10,"day":1},"rx":70368744177664,"tx":70368744177665}]}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse(bytes.NewReader(text), time.UTC, now)
		if err != nil {
			if vps.ErrorCode(err) != vps.CodeInvalid {
				t.Errorf("%v", err)
			}
			return
		}
		for _, i := range file.Interfaces {
			for _, r := range i.Rows {
				if r.Rx < 0 || r.Tx < 0 || max(r.Rx, r.Tx) > vps.MaxImportedRow || r.Start.After(now) || r.Start.Year() < 1970 || i.Updated.After(now) {
					t.Errorf("%+v", r)
				}
			}
		}
	})
}
