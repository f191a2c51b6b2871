package web

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"

	"sublet/internal/vps"
)

// textWidth is how many columns the text form takes at most, those of a plain
// terminal.
const textWidth = 80

// textGuests bounds the guests in the text form; the busiest come first.
const textGuests = 40

// painter writes the text form. Without colour there are no escape sequences.
type painter struct {
	out    strings.Builder
	lang   *language
	colour bool
}

// The colours (ECMA-48, SGR): those of the terminal's own palette.
const (
	sgrBold   = "1"
	sgrDim    = "2"
	sgrGreen  = "32"
	sgrYellow = "33"
	sgrRed    = "31"
	sgrBlue   = "34"
)

func (p *painter) paint(sgr, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

func (p *painter) line(format string, args ...any) {
	p.out.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

// writeText writes the page for a terminal of 80 columns.
func writeText(w io.Writer, v *view, colour bool) error {
	p := &painter{lang: v.Lang, colour: colour}
	title := plain(title(v))
	at := v.Lang.date("full", v.Now)
	p.line("%s%s%s", p.paint(sgrBold, title), pad(textWidth-columns(title)-columns(at)), p.paint(sgrDim, at))
	p.out.WriteByte('\n')
	for i := range v.Quotas {
		p.quota(v, v.Quotas[i])
	}
	if len(v.Quotas) == 0 {
		p.line("%s\n", p.lang.text("quota.none"))
	}
	for i := range v.Plots {
		p.plot(&v.Plots[i])
	}
	p.classes(v)
	p.guests(v)
	p.domains(v)
	_, err := io.WriteString(w, strings.TrimRight(p.out.String(), "\n")+"\n")
	return err
}

// quota writes what is used and left, and what is in force.
func (p *painter) quota(v *view, u *vps.QuotaUse) {
	const bar, high, full = 60, 80, 100
	used := percent(u.Used, u.Limit)
	amounts := p.lang.text("quota.line", size(u.Used), size(u.Limit), size(left(u)))
	name := clip(plain(quotaName(p.lang, v, u)), textWidth-1-columns(amounts))
	p.line("%s%s%s", p.paint(sgrBold, name), pad(textWidth-columns(name)-columns(amounts)), amounts)
	sgr := sgrGreen
	switch {
	case used >= full:
		sgr = sgrRed
	case used >= high:
		sgr = sgrYellow
	}
	filled, rest := gauge(used/full, bar)
	p.line("  %s%s %s", p.paint(sgr, filled), p.paint(sgrDim, rest), fmt.Sprintf("%.1f %%", used))
	p.fact("quota.reset", resetDate(p.lang, v.Now, u))
	p.fact("quota.state", inForce(p.lang, v.Now, u))
	if when := forecast(p.lang, v.Now, u); when != "" {
		p.fact("quota.forecast", when)
	}
	p.out.WriteByte('\n')
}

// fact writes something about a quota, behind what it is.
func (p *painter) fact(what, value string) {
	p.line("  %s", p.lang.text("quota.fact", p.lang.text(what), value))
}

// plot writes a column chart, with the time below.
func (p *painter) plot(of *plot) {
	const rows, most = 6, 72
	s := of.series
	if len(s) > most { // five-minute steps
		s = coarser(s, len(s)/most)
	}
	wide := most / len(s)
	sum := s.Sum()
	head := p.lang.text("last." + of.Name)
	totals := p.lang.text("plot.totals", size(sum.In), size(sum.Out), size(sum.Total()))
	p.line("%s%s%s", p.paint(sgrBold, head), pad(textWidth-columns(head)-columns(totals)), totals)
	peak := s.peak()
	for row := rows; row > 0; row-- {
		var cells strings.Builder
		for _, a := range s {
			cell := eighths(a.Total(), peak, rows, row)
			cells.WriteString(strings.Repeat(string(cell), max(wide-1, 1)))
			if wide > 1 {
				cells.WriteByte(' ')
			}
		}
		label := ""
		if row == rows {
			label = shortSize(peak)
		}
		p.line(" %s %s", padLeft(label, 6), p.paint(sgrBlue, strings.TrimRight(cells.String(), " ")))
	}
	p.line(" %s %s", padLeft("", 6), p.paint(sgrDim, timeAxis(p.lang, of, len(s)*wide)))
	p.out.WriteByte('\n')
}

// eighths returns what one cell of a column shows: the column is rows cells
// high at the peak, and row counts from 1 at its foot.
func eighths(value, peak int64, rows, row int) rune {
	if peak == 0 || value == 0 {
		if row == 1 {
			return '▁'
		}
		return ' '
	}
	const parts = 8
	height := max(int(math.Round(float64(value)/float64(peak)*float64(rows*parts))), 1)
	part := min(max(height-(row-1)*parts, 0), parts)
	return []rune(" ▁▂▃▄▅▆▇█")[part]
}

// timeAxis writes labels below the columns where they belong.
func timeAxis(lang *language, of *plot, width int) string {
	const margin = 8 // of the axis from the left
	axis := []rune(strings.Repeat(" ", textWidth-margin))
	free := 0
	for _, t := range ticks(lang, of) {
		at := t.at * width / len(of.starts)
		if at < free || at+columns(t.label) > len(axis) {
			continue
		}
		// A wide letter takes the place of two.
		letters := []rune(t.label)
		room := axis[at : at+columns(t.label)]
		for i := range room {
			room[i] = 0
		}
		copy(room, letters)
		free = at + columns(t.label) + 1
	}
	return strings.TrimRight(strings.ReplaceAll(string(axis), "\x00", ""), " ")
}

// classes writes the month's traffic by class.
func (p *painter) classes(v *view) {
	p.table(p.lang.text("month.since", p.lang.date("day", v.MonthStart)), len(v.Classes), func(i int) (string, amount, string) {
		c := v.Classes[i]
		return p.lang.text("class." + string(c.Class)), amount{c.InBytes, c.OutBytes}, ""
	})
}

// guests writes the month's traffic by guest.
func (p *painter) guests(v *view) {
	shown := min(len(v.Guests), textGuests)
	if shown == 0 {
		p.line("%s", p.lang.text("guests.none"))
		return
	}
	p.table(p.lang.text("guests.title"), shown, func(i int) (string, amount, string) {
		g := &v.Guests[i]
		note := ""
		switch {
		case g.Gone:
			note = p.lang.text("guests.gone")
		case g.Quota != nil:
			note = fmt.Sprintf("%.0f %%", percent(g.Quota.Used, g.Quota.Limit))
		}
		return plain(g.Name), g.Month, note
	})
	if more := len(v.Guests) - shown; more > 0 {
		p.line("%s", p.lang.text("guests.more", fmt.Sprint(more)))
	}
}

// table writes amounts with bars. row returns a name, an amount, and what is
// told behind the bar.
func (p *painter) table(head string, rows int, row func(int) (string, amount, string)) {
	const sizeWidth, least, longest, between = 10, 20, 12, 6
	nameWidth, noteWidth := least, 0
	for i := range rows {
		name, _, note := row(i)
		nameWidth, noteWidth = max(nameWidth, columns(name)), max(noteWidth, columns(note))
	}
	room := textWidth - 3*sizeWidth - noteWidth - between
	nameWidth = min(nameWidth, room)
	bar := min(room-nameWidth, longest)
	p.line("%s%s%s%s%s", p.paint(sgrBold, head), pad(nameWidth+2-columns(head)),
		padLeft(p.lang.text("in"), sizeWidth), padLeft(p.lang.text("out"), sizeWidth), padLeft(p.lang.text("total"), sizeWidth))
	var most int64
	for i := range rows {
		_, a, _ := row(i)
		most = max(most, a.Total())
	}
	for i := range rows {
		name, a, note := row(i)
		full := ""
		if most > 0 {
			full, _ = gauge(float64(a.Total())/float64(most), bar)
		}
		name = clip(name, nameWidth)
		p.line("  %s%s%s%s  %s%s %s", name+strings.Repeat(" ", nameWidth-columns(name)), padLeft(size(a.In), sizeWidth), padLeft(size(a.Out), sizeWidth),
			padLeft(size(a.Total()), sizeWidth), p.paint(sgrBlue, full), strings.Repeat(" ", bar-columns(full)), padLeft(note, noteWidth))
	}
	p.out.WriteByte('\n')
}

// gauge returns the full and the empty part of a bar, in eighths of a cell.
func gauge(part float64, width int) (full, rest string) {
	const eights = 8
	n := int(math.Round(min(max(part, 0), 1) * float64(width*eights)))
	full = strings.Repeat("█", n/eights)
	if n%eights > 0 {
		full += string([]rune(" ▏▎▍▌▋▊▉")[n%eights])
	}
	return full, strings.Repeat("░", width-columns(full))
}

// plain makes a word fit for a terminal: what is not printable is left out.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}

// columns is how many a text takes: the letters of Chinese and its punctuation
// take two (Unicode Standard Annex 11, blocks that are wide as a whole).
func columns(text string) int {
	n := 0
	for _, r := range text {
		n++
		if r >= 0x2e80 && r <= 0xd7a3 || r >= 0xf900 && r <= 0xfaff || r >= 0xfe30 && r <= 0xfe6f || r >= 0xff00 && r <= 0xff60 || r >= 0xffe0 && r <= 0xffe6 || r >= 0x20000 && r <= 0x3fffd {
			n++
		}
	}
	return n
}

// clip cuts a text down to some columns.
func clip(text string, width int) string {
	if columns(text) <= width {
		return text
	}
	letters := []rune(text)
	for len(letters) > 0 && columns(string(letters))+1 > width {
		letters = letters[:len(letters)-1]
	}
	return string(letters) + "…"
}

func pad(n int) string { return strings.Repeat(" ", max(n, 1)) }

func padLeft(text string, width int) string {
	return strings.Repeat(" ", max(width-columns(text), 0)) + text
}
