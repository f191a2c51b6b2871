// Package vnstat reads the history that `vnstat --json` writes.
//
// The format is that of vnStat 2.x (jsonversion 2, bytes) and 1.13 to 1.18
// (jsonversion 1, KiB); src/dbjson.c of vnStat is its only description. Members
// that are not known are passed over, as newer versions add some, and so are
// years and the best days, which days and months hold already.
package vnstat

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"sublet/internal/vps"
)

const (
	// MaxFile bounds a file in bytes. vnStat's defaults make some 100 KiB of
	// each interface.
	MaxFile = 64 << 20
	// MaxRows bounds the rows of one interface.
	MaxRows = 200_000
)

// File is what vnStat knows of a host.
type File struct {
	// Version is that of vnStat.
	Version    string
	Interfaces []Interface
}

// Interface is the history of one link.
type Interface struct {
	Name string
	// Updated is when vnStat wrote last.
	Updated time.Time
	// Rows are sorted by step and begin, and none is there twice. Those without
	// traffic are left out.
	Rows []Row
}

// Row is what passed a link in one step of time: Rx is what the link received.
type Row struct {
	Step   vps.TrafficStep
	Start  time.Time
	Rx, Tx int64
}

// Counts returns the row as whoever is behind the link sees it: what a guest's
// link on the host received was sent by the guest. With own it is the host's
// own link, and received is received.
func (r Row) Counts(own bool) vps.TrafficCount {
	if own {
		return vps.TrafficCount{InBytes: r.Rx, OutBytes: r.Tx}
	}
	return vps.TrafficCount{InBytes: r.Tx, OutBytes: r.Rx}
}

// Parse reads a file. vnStat writes the dates of its host's clock, which are
// taken for those of zone; hours and five minutes have the moment itself too,
// from version 2.6 on, which tells the two hours apart when the clock is set
// back. What begins after now is refused, but for what can have begun in another
// zone, by vps.ZonesApart. Errors are a *vps.Error with
// CodeInvalid and say what is wrong.
func Parse(r io.Reader, zone *time.Location, now time.Time) (*File, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "the file cannot be read")
	}
	if len(text) > MaxFile {
		return nil, refuse("it is larger than %s", vps.Bytes(MaxFile))
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return nil, refuse("it is empty")
	}
	var in document
	if err := json.Unmarshal(text, &in); err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "this is not what `vnstat --json` writes: %s", jsonReason(err))
	}
	p := parser{zone: zone, now: now}
	switch in.Format {
	case "1":
		p.unit = int64(vps.KiB)
	case "2":
		p.unit = 1
	case "":
		return nil, refuse("it has no jsonversion")
	default:
		return nil, refuse("its jsonversion is %.20q, and 1 and 2 are known", in.Format)
	}
	if len(in.Interfaces) == 0 {
		return nil, refuse("it has no interface")
	}
	file := &File{Version: in.Version}
	for i := range in.Interfaces {
		parsed, err := p.parse(&in.Interfaces[i])
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(file.Interfaces, func(o Interface) bool { return o.Name == parsed.Name }) {
			return nil, refuse("the interface %.20q is there twice", parsed.Name)
		}
		file.Interfaces = append(file.Interfaces, parsed)
	}
	return file, nil
}

func refuse(format string, args ...any) error {
	return vps.Errorf(vps.CodeInvalid, "this is not what `vnstat --json` writes: %s", fmt.Sprintf(format, args...))
}

// jsonReason says what is wrong with JSON, in the words of people.
func jsonReason(err error) string {
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("it is no JSON, from byte %d on", e.Offset)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return typeReason(e)
	}
	return err.Error()
}

// typeReason says what is there, and what belongs there.
func typeReason(e *json.UnmarshalTypeError) string {
	what := "the file as a whole"
	if e.Field != "" {
		what = fmt.Sprintf("%s at byte %d", e.Field, e.Offset)
	}
	there, want := "a "+e.Value, "an object"
	number, isNumber := strings.CutPrefix(e.Value, "number ")
	if isNumber {
		there = number
	} else if e.Value == "array" || e.Value == "object" {
		there = "an " + e.Value
	}
	switch e.Type.Kind() { //nolint:exhaustive // the others are objects
	case reflect.Slice:
		want = "an array"
	case reflect.String:
		want = "a text"
	case reflect.Int, reflect.Int64:
		want = "a whole number"
		if isNumber {
			want += " of less than 2^63"
		}
	}
	return fmt.Sprintf("%s is %s, where %s belongs", what, there, want)
}

// The document as vnStat writes it.
type (
	document struct {
		Version    string      `json:"vnstatversion"`
		Format     string      `json:"jsonversion"`
		Interfaces []jsonLinks `json:"interfaces"`
	}
	jsonLinks struct {
		Name    string     `json:"name"`
		ID      string     `json:"id"` // its name in version 1
		Updated jsonMoment `json:"updated"`
		Traffic struct {
			FiveMinute []jsonRow `json:"fiveminute"`
			Hour       []jsonRow `json:"hour"`
			Day        []jsonRow `json:"day"`
			Month      []jsonRow `json:"month"`
			Hours      []jsonRow `json:"hours"`
			Days       []jsonRow `json:"days"`
			Months     []jsonRow `json:"months"`
		} `json:"traffic"`
	}
	jsonMoment struct {
		Date jsonDate `json:"date"`
		Time struct {
			Hour    int `json:"hour"`
			Minute  int `json:"minute"`
			Minutes int `json:"minutes"` // in version 1
		} `json:"time"`
		Timestamp int64 `json:"timestamp"`
	}
	jsonDate struct {
		Year  int `json:"year"`
		Month int `json:"month"`
		Day   int `json:"day"`
	}
	jsonRow struct {
		ID int64 `json:"id"` // of hours in version 1 the hour
		jsonMoment
		Rx *int64 `json:"rx"`
		Tx *int64 `json:"tx"`
	}
)

// parser turns rows as vnStat writes them into ours.
type parser struct {
	zone *time.Location
	now  time.Time
	unit int64 // of amounts, in bytes
}

func (p parser) parse(in *jsonLinks) (Interface, error) {
	out := Interface{Name: in.Name}
	if p.unit > 1 {
		out.Name = in.ID
	}
	if out.Name == "" {
		return out, refuse("an interface has no name")
	}
	t := &in.Traffic
	for _, list := range []struct {
		step vps.TrafficStep
		rows []jsonRow
	}{
		{vps.StepFiveMinutes, t.FiveMinute},
		{vps.StepHour, append(t.Hour, t.Hours...)},
		{vps.StepDay, append(t.Day, t.Days...)},
		{vps.StepMonth, append(t.Month, t.Months...)},
	} {
		rows, err := p.rows(list.step, list.rows)
		if err != nil {
			return out, vps.Errorf(vps.CodeInvalid, "%s, among the rows of step %s of the interface %.20q", vps.ErrorMessage(err), list.step, out.Name)
		}
		out.Rows = append(out.Rows, rows...)
	}
	if len(out.Rows) > MaxRows {
		return out, refuse("the interface %.20q has %d rows, and %d is the most", out.Name, len(out.Rows), MaxRows)
	}
	out.Updated = p.now
	if m := in.Updated; m.Date.Year != 0 {
		m.Time.Minute += m.Time.Minutes
		at, err := p.moment(&m)
		if err != nil {
			return out, err
		}
		if m.Timestamp > 0 {
			at = time.Unix(m.Timestamp, 0)
		}
		if at.Before(out.Updated) {
			out.Updated = at.In(p.zone)
		}
	}
	return out, nil
}

func (p parser) rows(step vps.TrafficStep, in []jsonRow) ([]Row, error) {
	var out []Row
	for i := range in {
		row, err := p.row(step, &in[i])
		if err != nil {
			return nil, err
		}
		if row.Rx != 0 || row.Tx != 0 {
			out = append(out, row)
		}
	}
	var sum vps.TrafficCount
	for _, row := range out {
		sum = sum.Add(row.Counts(true))
	}
	if max(sum.InBytes, sum.OutBytes) > vps.MaxImportedSum {
		return nil, vps.Errorf(vps.CodeInvalid, "all rows together have %s, which is more than any link passes, so the file is damaged; at most %s are taken over", vps.Bytes(max(sum.InBytes, sum.OutBytes)), vps.Bytes(vps.MaxImportedSum))
	}
	slices.SortFunc(out, func(a, b Row) int { return a.Start.Compare(b.Start) })
	for i := 1; i < len(out); i++ {
		if out[i].Start.Equal(out[i-1].Start) {
			return nil, refuse("%s is there twice", out[i].Start.Format("2006-01-02 15:04"))
		}
	}
	return out, nil
}

func (p parser) row(step vps.TrafficStep, in *jsonRow) (Row, error) {
	row := Row{Step: step}
	for _, amount := range []struct {
		from *int64
		to   *int64
	}{{in.Rx, &row.Rx}, {in.Tx, &row.Tx}} {
		if amount.from == nil {
			return row, refuse("rx or tx is missing")
		}
		if *amount.from < 0 {
			return row, refuse("%d is no amount of traffic", *amount.from)
		}
		if *amount.from > vps.MaxImportedRow/p.unit {
			return row, vps.Errorf(vps.CodeInvalid, "%d %s are more than any link passes, so the file is damaged; at most %s are taken over", *amount.from, p.unitName(), vps.Bytes(vps.MaxImportedRow))
		}
		*amount.to = *amount.from * p.unit
	}
	m := in.jsonMoment
	switch {
	case step == vps.StepMonth:
		m.Date.Day = 1
	case step == vps.StepHour && p.unit > 1:
		if in.ID < 0 || in.ID > 23 {
			return row, refuse("%d is no hour", in.ID)
		}
		m.Time.Hour = int(in.ID)
	}
	at, err := p.moment(&m)
	if err != nil {
		return row, err
	}
	// Days and months keep their names, wherever the file was written.
	if exact := time.Unix(m.Timestamp, 0); m.Timestamp > 0 && (step == vps.StepHour || step == vps.StepFiveMinutes) && p.sameClock(exact, at) {
		at = exact
	}
	row.Start = step.Begin(at, p.zone)
	// Where the file was written it may be tomorrow already.
	if row.Start.After(p.now.Add(vps.ZonesApart)) {
		return row, refuse("%s is in the future", row.Start.Format("2006-01-02 15:04"))
	}
	return row, nil
}

// unitName is that of the file's amounts.
func (p parser) unitName() string {
	if p.unit > 1 {
		return "KiB"
	}
	return "bytes"
}

// sameClock tells whether a clock in the zone shows the same at both moments.
func (p parser) sameClock(a, b time.Time) bool {
	const clock = "2006-01-02 15:04"
	return a.In(p.zone).Format(clock) == b.In(p.zone).Format(clock)
}

// moment is the date and time of a clock in the zone. Times that it skips are
// those an hour later.
func (p parser) moment(m *jsonMoment) (time.Time, error) {
	d, c := m.Date, m.Time
	day := time.Date(d.Year, time.Month(d.Month), d.Day, 0, 0, 0, 0, time.UTC)
	if d.Year < 1970 || d.Year > 9999 || day.Year() != d.Year || int(day.Month()) != d.Month || day.Day() != d.Day {
		return time.Time{}, refuse("%d-%02d-%02d is no date", d.Year, d.Month, d.Day)
	}
	if c.Hour < 0 || c.Hour > 23 || c.Minute < 0 || c.Minute > 59 {
		return time.Time{}, refuse("%d:%02d is no time of a day", c.Hour, c.Minute)
	}
	if c.Hour == 0 && c.Minute == 0 {
		return vps.StepDay.Begin(time.Date(d.Year, time.Month(d.Month), d.Day, 12, 0, 0, 0, p.zone), p.zone), nil
	}
	return time.Date(d.Year, time.Month(d.Month), d.Day, c.Hour, c.Minute, 0, 0, p.zone), nil
}
