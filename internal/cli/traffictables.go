package cli

import (
	"strconv"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// historyTable makes the table of a history. With sum it ends with what the
// lines add up to, and the estimate of a last step that still runs.
func historyTable(lines []trafficLine, by string, wide, sum bool) *barTable {
	t := &barTable{head: []string{strings.ToUpper(stepName(lines[0].Step))}}
	if by != "" {
		t.text = []int{len(t.head)}
		t.head = append(t.head, strings.ToUpper(by))
	}
	t.head = append(t.head, "IN", "OUT", "TOTAL", "AVG RATE")
	if wide {
		t.head = append(t.head, "INTERNET", "HOST", "BETWEEN", "DROPPED", "PACKETS")
	}
	cells := func(label string, l *trafficLine, rate string) []string {
		row := []string{label}
		switch by {
		case "class":
			row = append(row, string(l.Class))
		case "guest":
			row = append(row, l.Guest)
		}
		row = append(row, trafficAmount(l.InBytes), trafficAmount(l.OutBytes), trafficAmount(l.Total), rate)
		if wide {
			row = append(row, wideAmounts(l)...)
		}
		return row
	}
	for i := range lines {
		l := &lines[i]
		t.rows = append(t.rows, barRow{cells(l.stepLabel(), l, trafficRate(l.Rate)), l.InBytes, l.OutBytes})
	}
	last := &lines[len(lines)-1]
	if !sum || by != "" || len(lines) == 1 && !last.Running {
		return t
	}
	t.rows = append(t.rows, barRow{})
	if e := last.Estimate; e != nil {
		row := make([]string, len(t.head))
		copy(row, []string{"estimated", trafficAmount(e.In), trafficAmount(e.Out), trafficAmount(e.Total)})
		t.rows = append(t.rows, barRow{cells: row})
	}
	all := sumLines(lines)
	t.rows = append(t.rows, barRow{cells: cells("sum", &all, "")})
	return t
}

func wideAmounts(l *trafficLine) []string {
	var out []string
	_, link := l.Classes[vps.TrafficUplink] // which knows no others
	for _, class := range vps.TrafficClasses() {
		text := ""
		if c := l.Classes[class]; !link {
			text = trafficAmount(c.Bytes())
		}
		out = append(out, text)
	}
	return append(out, strconv.FormatInt(l.InPackets+l.OutPackets, 10))
}

func stepName(s vps.TrafficStep) string {
	switch s {
	case vps.StepMonth:
		return "month"
	case vps.StepDay:
		return "day"
	case vps.StepHour:
		return "hour"
	case vps.StepFiveMinutes:
	}
	return "5 minutes"
}

// summaryTable shows a line for each guest, of today and of this month, and one
// for the public links.
func summaryTable(lines, host []trafficLine, wide bool) *barTable {
	t := &barTable{head: []string{"GUEST", "TODAY", lines[0].Start.Format("2006-01"), "IN", "OUT", "ESTIMATED"}}
	if wide {
		t.head = append(t.head, "INTERNET", "HOST", "BETWEEN", "DROPPED", "PACKETS")
	}
	today := map[string]int64{}
	for _, l := range lines {
		if l.Step == vps.StepDay {
			today[l.GuestID] += l.Total
		}
	}
	add := func(name, today string, l *trafficLine, bar bool) {
		estimate := ""
		if l.Estimate != nil {
			estimate = trafficAmount(l.Estimate.Total)
		}
		row := []string{name, today, trafficAmount(l.Total), trafficAmount(l.InBytes), trafficAmount(l.OutBytes), estimate}
		if wide {
			row = append(row, wideAmounts(l)...)
		}
		r := barRow{cells: row}
		if bar {
			r.in, r.out = l.InBytes, l.OutBytes
		}
		t.rows = append(t.rows, r)
	}
	var months []trafficLine
	todays := int64(0)
	for _, l := range lines {
		if l.Step != vps.StepMonth {
			continue
		}
		name := l.Guest
		if l.Deleted {
			name += " (deleted)"
		}
		add(name, trafficAmount(today[l.GuestID]), &l, true)
		months = append(months, l)
		todays += today[l.GuestID]
	}
	t.rows = append(t.rows, barRow{})
	if len(months) > 1 {
		all := sumLines(months)
		for _, l := range months {
			if l.Estimate != nil {
				if all.Estimate == nil {
					all.Estimate = &trafficEstimate{}
				}
				all.Estimate.Total += l.Estimate.Total
			}
		}
		add("all guests", trafficAmount(todays), &all, false)
	}
	hostToday := ""
	for _, l := range host {
		if l.Step == vps.StepDay {
			hostToday = trafficAmount(l.Total)
		}
	}
	for i := range host {
		if host[i].Step == vps.StepMonth {
			add("public links", hostToday, &host[i], false)
		}
	}
	return t
}

// guestTable shows today and yesterday, this month and the last, and all of it.
func guestTable(title string, days, months []trafficLine, h api.TrafficHistory) *barTable {
	t := &barTable{head: []string{title, "IN", "OUT", "TOTAL", "AVG RATE", "ESTIMATED"}}
	now := h.At.In(trafficZone(h))
	add := func(label string, l *trafficLine) {
		estimate := ""
		if l.Estimate != nil {
			estimate = trafficAmount(l.Estimate.Total)
		}
		rate := ""
		if l.Step != "" {
			rate = trafficRate(l.Rate)
		}
		t.rows = append(t.rows, barRow{cells: []string{label, trafficAmount(l.InBytes), trafficAmount(l.OutBytes), trafficAmount(l.Total), rate, estimate}})
	}
	find := func(lines []trafficLine, start time.Time) *trafficLine {
		for i := range lines {
			if lines[i].Start.Equal(start) {
				return &lines[i]
			}
		}
		return nil
	}
	zone := now.Location()
	for _, x := range []struct {
		label, before string
		step          vps.TrafficStep
		lines         []trafficLine
	}{{"today", "yesterday", vps.StepDay, days}, {"this month", "last month", vps.StepMonth, months}} {
		begin := x.step.Begin(now, zone)
		if l := find(x.lines, begin); l != nil {
			add(x.label, l)
		} else {
			add(x.label, &trafficLine{})
		}
		if l := find(x.lines, x.step.Begin(begin.Add(-time.Minute), zone)); l != nil {
			add(x.before, l)
		}
	}
	t.rows = append(t.rows, barRow{})
	all := sumLines(months)
	add("since "+months[0].Start.Format("2006-01"), &all)
	return t
}

// classTable splits one line by class.
func classTable(l *trafficLine) *barTable {
	t := &barTable{head: []string{"THIS MONTH", "IN", "OUT", "TOTAL"}}
	for _, class := range vps.TrafficClasses() {
		c := l.Classes[class]
		row := barRow{[]string{string(class), trafficAmount(c.InBytes), trafficAmount(c.OutBytes), trafficAmount(c.Bytes())}, c.InBytes, c.OutBytes}
		t.rows = append(t.rows, row)
	}
	return t
}
